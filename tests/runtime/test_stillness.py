"""Ranks that do nothing at all are told from ranks that work or wait for one that works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ft.runtime.marks import Marks, Place
from ft.runtime.ranks import Ranks
from ft.runtime.stillness import Stillness, Usage, is_stopped, usage_of
from ft.runtime.stop import pid_path


class Clock:
    def __init__(self) -> None:
        self.now, self.used = 0.0, Usage(1.0, 1000, 10)

    def __call__(self) -> float:
        return self.now

    def usage(self, pids: Iterable[int]) -> Usage | None:
        return self.used


def watch(seconds: int, clock: Clock, stillness: Stillness, *, step_s: float = 2.0) -> list[float]:
    """The times at which it lasts too long."""
    found, until = [], clock.now + seconds
    while clock.now < until:
        clock.now += step_s
        if stillness.lasts([1]):
            found.append(clock.now)
    return found


def test_nothing_done_for_longer_than_the_limit() -> None:
    clock = Clock()
    stillness = Stillness(60.0, clock, clock.usage)
    assert watch(62, clock, stillness) == []
    assert watch(4, clock, stillness) == [64.0, 66.0]


@pytest.mark.parametrize(
    "work", [Usage(2.0), Usage(0.0, 70_000), Usage(0.0, 0, 65), Usage(-0.5)], ids=str
)
def test_work_of_any_kind_begins_the_wait_anew(work: Usage) -> None:
    clock = Clock()
    stillness = Stillness(60.0, clock, clock.usage)
    for _ in range(5):
        assert watch(50, clock, stillness) == []
        clock.used += work
    assert watch(70, clock, stillness) == [clock.now - 6, clock.now - 4, clock.now - 2, clock.now]


def test_threads_that_look_at_a_clock_are_no_work() -> None:
    clock = Clock()
    stillness = Stillness(60.0, clock, clock.usage)
    for _ in range(31):
        clock.used += Usage(0.005, 500)
        assert watch(2, clock, stillness) == []
    assert watch(2, clock, stillness) == [64.0]


def test_who_was_asleep_itself_says_nothing_about_that_time() -> None:
    clock = Clock()
    stillness = Stillness(60.0, clock, clock.usage)
    watch(50, clock, stillness)
    clock.now += 3600  # Ctrl-Z, or a laptop that was closed.
    assert watch(60, clock, stillness) == []
    assert watch(4, clock, stillness) != []


def test_nothing_is_said_where_the_system_does_not_tell() -> None:
    clock = Clock()
    stillness = Stillness(60.0, clock, lambda _: None)
    assert watch(200, clock, stillness) == []


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_the_work_of_children_counts(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    with python(code) as child:
        before = usage_of([child.pid])
        assert before is not None
        deadline = time.monotonic() + 30
        while not (now := usage_of([child.pid])) or now.cpu_s < before.cpu_s + 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert now.moved_since(before, 1.0)
        subprocess.run(["pkill", "-9", "-P", str(child.pid)], check=True)


def test_a_process_that_is_gone_uses_nothing() -> None:
    with python("print('ready', flush=True)\nimport time\ntime.sleep(99)") as child:
        pid = child.pid
        assert usage_of([pid]) != Usage()
    assert usage_of([pid]) == Usage()
    assert not is_stopped(pid)


def test_the_stopped_rank_is_named_and_not_those_that_wait(tmp_path: Path) -> None:
    with (
        python("print('ready', flush=True)\nimport time\ntime.sleep(99)") as one,
        python("print('ready', flush=True)\nimport time\ntime.sleep(99)") as two,
    ):
        for rank, child in enumerate((one, two)):
            pid_path(tmp_path, rank).write_text(str(child.pid))
            Marks(tmp_path, rank).at(Place.SAVE, 6)
        clock = Clock()
        ranks = Ranks(tmp_path, range(2), stillness=Stillness(1.0, clock))
        assert ranks.stand_still() is None
        os.kill(two.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while not is_stopped(two.pid):
            assert time.monotonic() < deadline
        said = None
        for _ in range(20):
            clock.now += 1.5
            said = said or ranks.stand_still()
        assert said == (
            "rank 1 did not arrive: for 0 s it was saving, step 6, and was stopped by a signal, "
            "while the others waited for it"
        )


def test_without_a_stopped_one_it_is_the_one_that_is_behind(tmp_path: Path) -> None:
    with python("print('ready', flush=True)\nimport time\ntime.sleep(99)") as one:
        marks = Marks(tmp_path, 1)
        Marks(tmp_path, 0).at(Place.LOAD)
        for place in (Place.LOAD, Place.DATA):
            marks.at(place)
        for rank in range(2):
            pid_path(tmp_path, rank).write_text(str(one.pid))
        clock = Clock()
        ranks = Ranks(tmp_path, range(2), stillness=Stillness(1.0, clock, clock.usage))
        assert ranks.stand_still() is None
        clock.now = 1.5
        assert ranks.stand_still() == (
            "rank 0 did not arrive: for 0 s it was loading the model, and used neither processor "
            "nor disk, while the others waited for it"
        )
        alone = Ranks(tmp_path, range(1), stillness=Stillness(1.0, clock, clock.usage))
        assert alone.stand_still() is None
        clock.now = 3.0
        assert alone.stand_still() == (
            "rank 0 stood still: for 0 s it was loading the model, and used neither processor nor disk"
        )


def test_ranks_that_wait_for_another_node_may_stand_still_and_no_others(tmp_path: Path) -> None:
    with python("print('ready', flush=True)\nimport time\ntime.sleep(99)") as one:
        marks = [Marks(tmp_path, rank) for rank in range(2)]
        for rank, mark in enumerate(marks):
            mark.at(Place.SAVE, 6)
            pid_path(tmp_path, rank).write_text(str(one.pid))
        clock = Clock()
        stillness = Stillness(5.0, clock, clock.usage)
        ranks = Ranks(tmp_path, range(2), stillness=stillness, has_others=True)

        def stand_still(seconds: int) -> list[str]:
            found = []
            for _ in range(seconds):
                clock.now += 1.5
                found.append(ranks.stand_still())
            return [said for said in found if said]

        with marks[0].waiting():
            with marks[1].waiting():
                assert stand_still(20) == []
            # Rank 1 has come back from it, and the time before does not count.
            assert stand_still(4) == []
            assert stand_still(2)[0] == (
                "rank 1 did not arrive: for 0 s it was saving, step 6, and used neither processor nor disk, "
                "while the others waited for it"
            )
            # On a single node somebody has to be the one.
            ranks.has_others = False
            with marks[1].waiting():
                assert stand_still(6)
