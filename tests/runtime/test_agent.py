"""The agent: what it refuses before anything is trained, and the status that it makes of events."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ft.recipes.digest import digest_of
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.runstore import (
    ATTEMPT_LOCK,
    RANKS_LOCK,
    Control,
    Event,
    ExitCode,
    RankExit,
    Reason,
    Status,
)
from ft.recipes.store import LocalStore
from ft.runtime.agent import only_writer, sweep, unfit
from ft.runtime.marks import Mark, Place
from ft.runtime.ranks import RankEnd, Ranks, explain, is_lost_elsewhere
from ft.runtime.stop import Request, leave_request, pid_path, read_request
from ft.runtime.telling import advance

RECIPE = """\
base_model: some/model
datasets: [{path: rows.jsonl, type: alpaca}]
learning_rate: 1e-4
"""


def plan_in(store: LocalStore) -> RunPlan:
    """A plan whose only input lies in the store."""
    data = store.root / "inputs" / "111-rows.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text('{"instruction": "a", "output": "b"}\n')
    fact = FileFact("data", data, data.name, digest_of(data), data.stat().st_size)
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    facts = Facts(files={("base_model",): None, ("datasets", 0, "path"): fact}, machine=machine)
    plan = resolve(normalize(loads(RECIPE)).flat, facts)
    store.plan_path.write_text(plan.to_json())
    return plan


def run_agent(store: LocalStore, attempt: int = 1) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "ft.runtime.agent",
        str(store.root),
        "--attempt",
        str(attempt),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def spoil_version(store: LocalStore) -> None:
    values = json.loads(store.plan_path.read_text())
    store.plan_path.write_text(json.dumps({**values, "schema_version": 99}))


def lose_plan(store: LocalStore) -> None:
    store.plan_path.unlink()


def lose_input(store: LocalStore) -> None:
    (store.root / "inputs" / "111-rows.jsonl").unlink()


def change_input(store: LocalStore) -> None:
    (store.root / "inputs" / "111-rows.jsonl").write_text("{}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_version, "plan.json has schema version 99, this runtime reads 5: launcher and runtime are of "
                        "different versions of ft"),
        (lose_plan, "plan.json cannot be read: [Errno 2] No such file or directory"),
        (lose_input, "inputs/111-rows.jsonl is missing"),
        (change_input, "inputs/111-rows.jsonl is not the file that was planned: its sha256 is another"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_78_and_says_why(tmp_path: Path, spoil: Any, message: str) -> None:
    store = LocalStore(tmp_path)
    plan_in(store)
    spoil(store)
    done = run_agent(store)
    assert done.returncode == ExitCode.CONFIG, done.stderr
    assert "Traceback" not in done.stderr
    status = store.get_status()
    assert status is not None
    assert (status.phase, status.exit_code, status.reason) == ("end", 78, "config")
    assert str(status.message).startswith(message)
    last = store.events()[0][-1]
    assert (last.kind, last.data["mark"], last.data["exit_code"]) == ("attempt", "end", 78)


def test_the_agent_imports_no_torch() -> None:
    code = "import sys, ft.runtime.agent; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ft.runtime.agent.LOCK_TIMEOUT_S", 0.2)
    store = LocalStore(tmp_path)
    with (tmp_path / ATTEMPT_LOCK).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with only_writer(store) as alone:
            assert not alone
    with only_writer(store) as alone:
        assert alone


def event(kind: str, **data: Any) -> Event:
    return Event(kind, 5.0, 1, data)


@pytest.mark.parametrize(
    ("happened", "expected"),
    [
        (event("phase", name="load", mark="begin"), Status(1, "load", 1.0)),
        (event("phase", name="load", mark="end", seconds=1), Status(1, "start", 1.0)),
        (event("phase", name="save", mark="begin"), Status(1, "save", 1.0)),
        (event("phase", name="save", mark="end", seconds=1), Status(1, "train", 1.0)),
        (event("phase", name="eval", mark="end", seconds=1), Status(1, "train", 1.0)),
        (
            event("progress", step=3, total_steps=9),
            Status(1, "start", 1.0, 3, 9, last_step_at=5.0),
        ),
        (
            event(
                "step",
                step=3,
                total_steps=9,
                epoch=0.5,
                loss=1.5,
                tokens_per_s=10.0,
                trained_tokens=7,
            ),
            Status(1, "start", 1.0, 3, 9, 0.5, 1.5, 10.0, 7, last_step_at=5.0),
        ),
        (
            event("resume", step=4, name="step-00000004"),
            Status(1, "start", 1.0, 4, checkpoint_step=4),
        ),
        (
            event("checkpoint", step=6, name="x", bytes=1, seconds=1),
            Status(1, "start", 1.0, checkpoint_step=6),
        ),
        (event("log", level="info", message="x"), Status(1, "start", 1.0)),
    ],
)
def test_status_after_an_event(happened: Event, expected: Status) -> None:
    assert advance(Status(1, "start", 1.0), happened) == expected


def told(rank: int, at: float, code: int, message: str, reason: str = "unclassified") -> RankEnd:
    return RankEnd(rank, RankExit(code, reason, message, 4, at), at + 0.1)


def silent(rank: int, gone_at: float | None) -> RankEnd:
    return RankEnd(rank, None, gone_at)


LOST = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
DIED_1 = "rank 1 died without a word at step 4: killed, or out of memory"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        # Rank 1 is the cause, rank 0 loses it a moment later.
        ([told(0, 10.02, 1, LOST), told(1, 10.0, 1, "ValueError: x")], (1, "rank 1: ValueError: x")),
        # The same, but rank 0 noticed before rank 1 had written the time down.
        ([told(0, 9.99, 1, LOST), told(1, 10.0, 1, "ValueError: x")], (1, "rank 1: ValueError: x")),
        # Rank 0 is stuck in a collective until torchrun kills it.
        ([silent(0, 40.1), told(1, 10.0, 1, "ValueError: x")], (1, "rank 1: ValueError: x")),
        # Rank 0 aborts because of rank 1.
        ([silent(0, 10.1), told(1, 10.0, 1, "ValueError: x")], (1, "rank 1: ValueError: x")),
        # Rank 1 is killed; the agent sees it a tenth of a second after rank 0 does.
        ([told(0, 10.0, 1, LOST), silent(1, 10.1)], (137, DIED_1)),
        # The connection broke first; what torchrun kills 30 s later is no cause.
        ([told(0, 10.0, 1, LOST), silent(1, 40.2)], (1, f"rank 0: {LOST}")),
        # Two that lost each other: the first.
        ([told(0, 10.2, 1, LOST), told(1, 10.1, 1, LOST)], (1, f"rank 1: {LOST}")),
        # Data and configuration are always the cause, however late they are told.
        ([told(0, 99.0, 79, "row 3", "data"), told(1, 10.0, 1, "ValueError: x")], (79, "rank 0: row 3")),
        ([silent(0, 10.0), told(1, 99.0, 78, "no model", "config")], (78, "rank 1: no model")),
        ([told(0, 10.0, 1, LOST), told(1, 12.0, 77, "ECC", "bad_node")], (77, "rank 1: ECC")),
        ([told(0, 10.0, 1, "ValueError: x"), told(1, 99.0, 77, "ECC", "bad_node")], (1, "rank 0: ValueError: x")),
        # All saved and stopped: nobody is to blame.
        ([told(0, 10.1, 75, "saved", "preempted"), told(1, 10.0, 75, "saved", "preempted")], (75, "saved")),
        ([told(0, 10.0, 0, "done", "done"), silent(1, 10.3)], (137, DIED_1)),
        ([told(0, 10.0, 0, "done", "done"), told(1, 10.0, 0, "done", "done")], (137, "torchrun died")),
        # One of two never came up: the other waited for it, or lost it, or was the cause itself.
        ([silent(0, 40.0), silent(1, None)], (137, DIED_1)),
        ([told(0, 10.0, 1, LOST), silent(1, None)], (137, DIED_1)),
        ([told(0, 10.0, 1, "ValueError: x"), silent(1, None)], (1, "rank 0: ValueError: x")),
        ([silent(0, None), silent(1, None)],
         (1, "the ranks ended before they could say anything: see agent.log of the attempt")),
        # A rank that is alone needs no name.
        ([told(0, 10.0, 1, "ValueError: x")], (1, "ValueError: x")),
    ],
)  # fmt: skip
def test_the_rank_that_ended_the_attempt(ends: list[RankEnd], expected: tuple[int, str]) -> None:
    for order in (ends, ends[::-1]):
        end = explain(order, step=4)
        assert (end.exit_code, end.message, end.step) == (*expected, 4)


LATE = "RuntimeError: [/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation"


@pytest.mark.parametrize(
    ("others", "named", "message"),
    [
        # Stuck until the agent kills it: it never said anything.
        ([RankEnd(1, None, 20.0, Mark(30, Place.BATCH, 5, 2.0))], 1,
         "rank 1 did not arrive: for 8 s it was reading a batch, step 5, while rank 0 waited for it"),
        # It comes when the others have gone: the connection is closed.
        ([RankEnd(1, RankExit(1, "unclassified", LOST, 4, 18.0), 18.1, Mark(31, Place.EVAL, 4, 4.0))], 1,
         "rank 1 did not arrive: for 6 s it was evaluating, step 4, while rank 0 waited for it"),
        # NCCL aborts who waits: it has no other last words than a line in its log.
        ([RankEnd(1, None, 9.0, Mark(31, Place.COMPUTE, 5, 2.0), waited=True),
          RankEnd(2, None, 20.0, Mark(28, Place.COMPUTE, 4, 1.0))], 2,
         "rank 2 did not arrive: for 8 s it was in the forward or backward pass, step 4, while rank 1 waited for it"),
        # Two wait for the third; it had not even begun.
        ([RankEnd(1, RankExit(1, "unclassified", LATE, 4, 10.2), 10.3, Mark(31, Place.COMPUTE, 5, 2.0)),
          RankEnd(2, None, 20.0, None)], 2,
         "rank 2 did not arrive: it never began to train, while rank 0 waited for it"),
    ],
)  # fmt: skip
def test_the_rank_that_did_not_arrive(others: list[RankEnd], named: int, message: str) -> None:
    first = RankEnd(
        0,
        RankExit(1, "unclassified", LATE, 4, 10.0),
        10.1,
        Mark(31, Place.COMPUTE, 5, 2.0),
    )
    end = explain([*others, first], step=4)
    assert (end.exit_code, end.reason, end.rank, end.message) == (1, "unclassified", named, message)


def late(rank: int, at: float, count: int) -> RankEnd:
    end = RankExit(1, "unclassified", LATE, 4, at)
    return RankEnd(rank, end, at + 0.1, Mark(count, Place.COMPUTE, 5, 2.0))


def closed(rank: int, at: float, count: int) -> RankEnd:
    end = RankExit(1, "unclassified", LOST, 4, at)
    return RankEnd(rank, end, at + 0.1, Mark(count, Place.COMPUTE, 5, 2.0))


@pytest.mark.parametrize(
    ("ends", "elsewhere", "rank"),
    [
        ([told(0, 10.0, 1, LOST)], True, 0),
        ([told(0, 10.0, 1, LOST), told(1, 10.1, 1, LOST)], True, 0),
        # Another rank of this node has a cause of its own, or died.
        ([told(0, 10.0, 1, LOST), told(1, 10.1, 1, "ValueError: x")], False, 1),
        ([told(0, 10.0, 1, LOST), silent(1, 10.1)], False, 1),
        # What torchrun kills long afterwards is no cause.
        ([told(0, 10.0, 1, LOST), silent(1, 40.0)], True, 0),
        # Both waited for a rank that is not here; one only noticed that the other had given up.
        ([late(0, 10.0, 31), late(1, 10.2, 30)], True, 0),
        ([late(0, 10.0, 31), closed(1, 10.1, 31)], True, 0),
        # One of this node did not come.
        ([late(0, 10.0, 31), closed(1, 18.0, 29)], False, 1),
        ([late(0, 10.0, 31), RankEnd(1, None, 20.0, Mark(31, Place.COMPUTE, 5, 2.0))], False, 1),
        ([told(0, 10.0, 75, "saved", "preempted")], False, 0),
        ([silent(0, None)], False, None),
    ],
)  # fmt: skip
def test_ranks_that_lost_one_of_another_node(
    ends: list[RankEnd], elsewhere: bool, rank: int | None
) -> None:
    assert is_lost_elsewhere(ends) is elsewhere
    assert explain(ends, step=4, has_others=True).rank == rank


@pytest.mark.parametrize(
    ("findings", "code", "reason"),
    [
        ([{"rank": 2, "kind": "silent"}], 77, "lost_peer"),
        ([{"rank": 1, "kind": "silent"}, {"rank": 2, "kind": "silent"}], 77, "bad_node"),
        ([{"rank": 2, "kind": "failed"}], 77, "bad_node"),
        ([{"rank": 2, "kind": "config"}], 78, "config"),
        ([], 77, "bad_node"),
    ],
)
def test_a_preflight_that_misses_another_node_does_not_blame_this_one(
    findings: list[dict[str, Any]], code: int, reason: str
) -> None:
    verdict = {"exit_code": code, "message": "why", "findings": findings}
    error = unfit(verdict, range(2))
    assert (error.exit_code, error.reason, error.message) == (code, reason, "why")


RANK = """\
import sys, time
from pathlib import Path
from ft.runtime.stop import StopFlag, join

stop = StopFlag()
stop.listen()
join(stop, Path(sys.argv[1]), int(sys.argv[2]))
while not stop.requested:
    time.sleep(0.01)
sys.exit(75)
"""


def start_rank(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RANK, str(folder), str(rank)])


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_request_reaches_ranks_that_run_and_ranks_that_still_start(tmp_path: Path) -> None:
    """Both orders: the one that is there gets the signal, the other one finds the file."""
    ranks = Ranks(tmp_path, range(2))
    with start_rank(tmp_path, 0) as early:
        wait_until(pid_path(tmp_path, 0).exists)
        leave_request(tmp_path, Request(Reason.PREEMPTED, 12.5))
        ranks.signal(signal.SIGTERM)
        assert early.wait(30) == 75
    with start_rank(tmp_path, 1) as late:
        assert late.wait(30) == 75
    assert read_request(tmp_path) == Request("preempted", 12.5)


def test_the_agent_misses_a_rank_that_was_killed(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, range(2))
    with start_rank(tmp_path, 1) as process:
        wait_until(pid_path(tmp_path, 1).exists)
        ranks.look()
        assert ranks.gone_at == {}
        before = time.time()
        process.kill()
        # Nobody has waited for it yet: what is left of it does not count as alive.
        wait_until(lambda: ranks.look() or ranks.gone_at)
    assert set(ranks.gone_at) == {1}
    assert before <= ranks.gone_at[1] <= time.time()
    assert ranks.ends() == [RankEnd(0, None), RankEnd(1, None, ranks.gone_at[1])]
    # Killed too late for anybody to look: it was there, so it is gone now.
    unwatched = Ranks(tmp_path, range(1, 2))
    (end,) = unwatched.ends()
    assert end.gone_at is not None
    assert end.gone_at >= ranks.gone_at[1]
    assert explain([end], step=3).exit_code == 137


def test_a_request_from_before_the_attempt_ends_it_before_the_preflight(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan_in(store)
    store.put_control(Control("stop", 1.0))
    done = run_agent(store)
    status = store.get_status()
    assert status is not None
    assert (done.returncode, status.reason) == (79, "cancelled")
    assert status.message == "stopped before training began"
    assert [event.kind for event in store.events()[0]] == ["attempt", "attempt"]


def test_a_rank_that_outlives_its_agent_keeps_the_next_attempt_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ft.runtime.agent.LOCK_TIMEOUT_S", 0.3)
    store = LocalStore(tmp_path)
    with (tmp_path / RANKS_LOCK).open("a") as orphan:
        fcntl.flock(orphan, fcntl.LOCK_SH)
        with only_writer(store) as alone:
            assert not alone
    with only_writer(store) as alone:
        assert alone
        with (tmp_path / RANKS_LOCK).open("a") as rank:
            fcntl.flock(rank, fcntl.LOCK_SH | fcntl.LOCK_NB)


ORPHAN = "from ft.runtime.node import die_with_agent; die_with_agent(); print('lives')"


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_a_rank_whose_agent_has_gone_does_not_begin(lives: bool, alone: bool) -> None:
    """Its parent must be the agent, or stands for torchrun, whose parent must be."""
    agent = os.getpid() if lives else 1
    torchrun = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {ORPHAN!r}]).returncode)"
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN if alone else torchrun],
        env={**os.environ, "FT_AGENT_PID": str(agent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout == "lives\n") is lives
    assert (done.returncode == 0) is lives


def test_a_bug_in_the_agent_is_an_end_with_a_sentence(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan_in(store)
    store.put_control(Control("stop", 1.0, reason="nobody knows"))
    done = run_agent(store)
    status = store.get_status()
    assert status is not None
    assert (done.returncode, status.exit_code, status.reason) == (1, 1, "unclassified")
    assert status.message == "the agent failed: ValueError: 'nobody knows' is not a valid Reason"


def test_what_a_killed_attempt_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    left = (
        "attempts/1/scratch-rank0/node0",
        "attempts/2/scratch-rank11",
        "checkpoints/.old-step-00000002",
        ".old-final",
        ".staging-final",
    )
    kept = ("attempts/1/other", "checkpoints/step-00000002", "final")
    for name in (*left, *kept):
        (tmp_path / name).mkdir(parents=True)
    sweep(LocalStore(tmp_path))
    assert [name for name in (*left, *kept) if (tmp_path / name).exists()] == list(kept)
