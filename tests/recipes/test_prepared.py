"""Entries are whole or not there, made once, and found again by content."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ft.recipes import prepared as cache

Built = tuple[dict[str, int], dict[str, Any]]


def build(text: str, log: list[str] | None = None) -> Callable[[Path], Built]:
    def into(folder: Path) -> Built:
        (folder / cache.ROWS).write_text(text)
        if log is not None:
            log.append(text)
        return {"kept": len(text)}, {"text": text}

    return into


def test_an_entry_is_made_once_and_found_again(tmp_path: Path) -> None:
    log: list[str] = []
    folder, meta, was_there = cache.entry(tmp_path, "k1", build("one", log))
    assert (folder, was_there) == (tmp_path / "k1", False)
    assert (meta.key, meta.counts, meta.made_of) == ("k1", {"kept": 3}, {"text": "one"})
    again = cache.entry(tmp_path, "k1", build("other", log))
    assert again == (folder, meta, True)
    assert (folder / cache.ROWS).read_text() == "one"
    assert cache.entry(tmp_path, "k2", build("two", log))[2] is False
    assert log == ["one", "two"]
    assert [path.name for path, _ in cache.entries(tmp_path)] == ["k1", "k2"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> Built:
        (folder / cache.ROWS).write_text("half")
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        cache.entry(tmp_path, "k", fails)
    assert [path.name for path in tmp_path.iterdir()] == [f"k{cache.LOCK}"]
    assert cache.entry(tmp_path, "k", build("whole"))[1].counts == {"kept": 5}


@pytest.mark.parametrize("broken", [cache.META, cache.ROWS])
def test_half_of_an_entry_is_none(tmp_path: Path, broken: str) -> None:
    folder, *_ = cache.entry(tmp_path, "k", build("one"))
    (folder / broken).unlink()
    assert list(cache.entries(tmp_path)) == []
    assert cache.entry(tmp_path, "k", build("two"))[2] is False
    assert (folder / cache.ROWS).read_text() == "two"


def slow_build(root: Path, began: Path, text: str) -> None:
    def into(folder: Path) -> Built:
        (folder / cache.ROWS).write_text("half")
        began.touch()
        time.sleep(60 if text == "killed" else 0.5)
        (folder / cache.ROWS).write_text(text)
        return {}, {}

    cache.entry(root, "k", into)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    root, began = tmp_path / "root", tmp_path / "began"
    first = multiprocessing.get_context("fork").Process(
        target=slow_build, args=(root, began, "first")
    )
    first.start()
    wait_for(began)
    waits: list[int] = []
    folder, _, was_there = cache.entry(root, "k", build("second"), waiting=lambda: waits.append(1))
    first.join()
    assert (was_there, (folder / cache.ROWS).read_text()) == (True, "first")
    assert waits


def test_a_wait_can_be_ended(tmp_path: Path) -> None:
    root, began = tmp_path / "root", tmp_path / "began"
    first = multiprocessing.get_context("fork").Process(
        target=slow_build, args=(root, began, "first")
    )
    first.start()
    wait_for(began)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        cache.entry(root, "k", build("second"), waiting=stop)
    first.join()


def test_a_killed_process_leaves_nothing_half_made(tmp_path: Path) -> None:
    root, began = tmp_path / "root", tmp_path / "began"
    first = multiprocessing.get_context("fork").Process(
        target=slow_build, args=(root, began, "killed")
    )
    first.start()
    wait_for(began)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert list(cache.entries(root)) == []
    folder, _, was_there = cache.entry(root, "k", build("second"))
    assert (was_there, (folder / cache.ROWS).read_text()) == (False, "second")
    assert sorted(path.name for path in root.iterdir()) == ["k", f"k{cache.LOCK}"]


def test_an_entry_can_be_taken_away(tmp_path: Path) -> None:
    folder, *_ = cache.entry(tmp_path, "k", build("one"))
    assert cache.remove(folder) is True
    assert list(cache.entries(tmp_path)) == []
    assert cache.remove(folder) is False


def test_an_entry_in_the_making_is_left_alone(tmp_path: Path) -> None:
    root, began = tmp_path / "root", tmp_path / "began"
    first = multiprocessing.get_context("fork").Process(
        target=slow_build, args=(root, began, "first")
    )
    first.start()
    wait_for(began)
    assert cache.remove(root / "k") is False
    first.join()
    assert (root / "k" / cache.ROWS).read_text() == "first"


def test_entries_come_by_their_last_use(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        cache.entry(tmp_path, name, build(name))
    for age, name in enumerate(("c", "a", "b")):
        os.utime(tmp_path / name / cache.META, (1000 + age, 1000 + age))
    assert [path.name for path, _ in cache.entries(tmp_path)] == ["c", "a", "b"]
    cache.entry(tmp_path, "c", build("c"))  # A use.
    assert [path.name for path, _ in cache.entries(tmp_path)] == ["a", "b", "c"]


def test_what_is_known_of_an_entry_is_readable(tmp_path: Path) -> None:
    folder, meta, _ = cache.entry(tmp_path, "k", build("one"))
    assert json.loads((folder / cache.META).read_text())["made_of"] == {"text": "one"}
    assert cache.Meta.read(folder) == meta
