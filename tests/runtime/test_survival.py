"""What an attempt learns and keeps, its limits, bad numbers, and saves that fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ft.recipes.errors import UsageError
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import LimitsPlan, RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.runstore import Adjust, Event, ExitCode, RankExit, Reason, Status, step_name
from ft.recipes.simulate import Simulation, parse_simulation
from ft.recipes.store import LocalStore
from ft.runtime.adjust import adjusted, after_out_of_memory, largest_proper_divisor
from ft.runtime.blame import last_words, named
from ft.runtime.callbacks.boundary import Ending
from ft.runtime.callbacks.finite import BadSteps, go_back, next_adjust
from ft.runtime.checkpoint.write import Checkpoints, is_of_the_medium
from ft.runtime.ends import AttemptError
from ft.runtime.events import Events
from ft.runtime.limits import Limits, billed_s
from ft.runtime.marks import Mark, Marks, Place, mark_path, read_mark
from ft.runtime.node import Rank
from ft.runtime.simulate import Faults, faults_of
from ft.runtime.stop import Request, StopFlag, leave_request, reason_of
from ft.runtime.telling import Telling
from ft.runtime.world import World

CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
RECIPE = "base_model: a/b\nlearning_rate: 1e-4\ndatasets: [{path: a/b, type: alpaca}]\n"


def plan_of(lines: str) -> RunPlan:
    return resolve(normalize(loads(RECIPE + lines)).flat, Facts(files={}, machine=CPU))


# ------------------------------------------------------------------------------------ out of memory


@pytest.mark.parametrize(
    ("micro", "accumulation", "expected"),
    [(8, 1, [(4, 2), (2, 4), (1, 8)]), (6, 2, [(3, 4), (1, 12)]), (7, 1, [(1, 7)]), (1, 4, [])],
)
def test_out_of_memory_goes_down_to_one_row_with_the_same_global_batch(
    micro: int, accumulation: int, expected: list[tuple[int, int]]
) -> None:
    plan = plan_of(f"micro_batch_size: {micro}\ngradient_accumulation_steps: {accumulation}\n")
    adjust: Adjust | None = Adjust()
    found = []
    while (adjust := after_out_of_memory(plan, adjust or Adjust(), evaluating=False)) is not None:
        smaller = adjusted(plan, adjust)
        assert smaller.global_batch_size == plan.global_batch_size
        found.append((smaller.optim.micro_batch_size, smaller.optim.gradient_accumulation_steps))
        assert smaller.checkpoint.eval_batch_size == plan.checkpoint.eval_batch_size
    assert found == expected


def test_out_of_memory_in_an_evaluation_makes_that_smaller_and_nothing_else() -> None:
    plan = plan_of("micro_batch_size: 1\neval_batch_size: 5\nval_set_size: 0.1\n")
    sizes = []
    adjust: Adjust | None = Adjust()
    while (adjust := after_out_of_memory(plan, adjust or Adjust(), evaluating=True)) is not None:
        smaller = adjusted(plan, adjust)
        assert smaller.optim == plan.optim
        sizes.append(smaller.checkpoint.eval_batch_size)
    assert sizes == [2, 1]
    assert after_out_of_memory(plan, Adjust(), evaluating=False) is None


def test_the_largest_proper_divisor() -> None:
    assert [largest_proper_divisor(n) for n in (2, 3, 4, 9, 12, 13, 15)] == [1, 1, 2, 3, 6, 1, 5]


def test_what_was_learnt_is_kept_in_the_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.get_adjust() == Adjust()
    learnt = Adjust(micro_batch_size=2, left_out=(5, 6), rollbacks=(6,))
    store.put_adjust(learnt)
    assert store.get_adjust() == learnt


# ------------------------------------------------------------------------------- limits of an attempt


@pytest.mark.parametrize(
    ("limits", "billed_before_s", "age_s", "save_s", "expected"),
    [
        ((None, None, None), 0, 1e9, 0, None),
        # 15 s of margin, and twice the time of a save.
        ((100, None, None), 0, 84.9, 0, None),
        ((100, None, None), 0, 85.0, 0, ("hand-off", 100.0)),
        ((100, None, None), 0, 64.9, 10, None),
        ((100, None, None), 0, 65.0, 10, ("hand-off", 100.0)),
        # Never more than half of the time.
        ((20, None, None), 0, 9.9, 0, None),
        ((20, None, None), 0, 10.0, 0, ("hand-off", 20.0)),
        # 2 USD at 3.6 USD an hour are 2000 s.
        ((None, 2.0, 3.6), 0, 1984.9, 0, None),
        ((None, 2.0, 3.6), 0, 1985.0, 0, ("user", 2000.0)),
        ((None, 2.0, 3.6), 1900, 84.9, 0, None),
        ((None, 2.0, 3.6), 1900, 85.0, 0, ("user", 100.0)),
        ((None, 2.0, 3.6), 2500, 0.0, 0, ("user", 0.0)),
        # Money ends the run, time only the attempt.
        ((100, 0.1, 3.6), 0, 90.0, 0, ("user", 100.0)),
    ],
)
def test_a_limit_is_met_before_it_is_reached(
    limits: tuple[int | None, float | None, float | None],
    billed_before_s: float,
    age_s: float,
    save_s: float,
    expected: tuple[str, float] | None,
) -> None:
    timeout_s, max_cost, price = limits
    plan = LimitsPlan(timeout_s=timeout_s, max_cost=max_cost, price_per_hour=price)
    request = Limits(plan, 1000.0, billed_before_s).request(1000.0 + age_s, save_s=save_s)
    if expected is None:
        assert request is None
    else:
        assert request is not None
        assert (request.reason, request.until) == (expected[0], pytest.approx(1000 + expected[1]))


def test_the_cost_is_of_all_attempts() -> None:
    limits = Limits(LimitsPlan(timeout_s=None, max_cost=None, price_per_hour=7.2), 1000.0, 500.0)
    assert limits.cost(1500.0) == pytest.approx(2.0)
    assert Limits(LimitsPlan(timeout_s=1, max_cost=None, price_per_hour=None), 0, 0).cost(9) is None


def test_an_attempt_is_billed_until_its_last_sign_of_life() -> None:
    events = [
        Event("attempt", 10.0, 1),
        Event("attempt", 25.0, 1),
        Event("attempt", 40.0, 2),
        Event("step", 50.0, 2),
    ]
    assert billed_s(events, None) == 15 + 10
    # Killed at 58: no event says so, its heartbeat does.
    assert billed_s(events, Status(2, "train", 58.0)) == 15 + 18
    assert billed_s([], Status(1, "train", 58.0)) == 0
    beside = [Event("phase", 1.0, 0), *events, Event("log", 9000.0, 0)]
    assert billed_s(beside, None) == 15 + 10, "what is of no attempt runs on no GPU"


# -------------------------------------------------------------------------------------- a request


def test_reasons_survive_the_agreement_and_the_gravest_wins() -> None:
    reasons = [Reason.PREEMPTED, Reason.HAND_OFF, Reason.CANCELLED, Reason.USER]
    codes = [Request(reason).code for reason in reasons]
    assert codes == [1, 2, 3, 4]
    assert [reason_of(code) for code in codes] == reasons
    assert [Request(reason).exit_code for reason in reasons] == [75, 76, 79, 79]


def test_a_signal_means_preemption_unless_the_agent_says_more(tmp_path: Path) -> None:
    stop = StopFlag(grace_s=20.0)
    assert stop.request() is None
    stop.note()
    assert stop.heard_at is not None
    assert stop.request() == Request("preempted", stop.heard_at + 20)
    stop.folder = tmp_path
    assert stop.request() == Request("preempted", stop.heard_at + 20)
    leave_request(tmp_path, Request("user", None, "max_cost"))
    assert stop.request() == Request("user", None, "max_cost")


@pytest.mark.parametrize(
    ("ending", "newest", "expected"),
    [
        (Ending(Request("preempted"), True, 30.0), 7, "saved at step 7 and stopped: a signal asked for it"),
        (Ending(Request("hand-off", None, "its time is over"), True, 9.0), 7,
         "saved at step 7 and stopped: its time is over"),
        (Ending(Request("preempted"), False, 4.6), 6,
         "stopped at step 7 without saving, it takes about 12 s and 5 s were left: "
         "a signal asked for it; step 6 is saved"),
        (Ending(Request("preempted"), False, -3.0), 6,
         "stopped at step 7 without saving, no time was left for that: a signal asked for it; step 6 is saved"),
        (Ending(Request("cancelled"), True, None), 0,
         "stopped at step 7, whose checkpoint could not be written: it was cancelled; nothing is saved yet"),
    ],
)  # fmt: skip
def test_an_end_on_request_says_what_became_of_the_step(
    ending: Ending, newest: int, expected: str
) -> None:
    assert ending.message(7, newest, 12.0) == expected


# ------------------------------------------------------------------------ numbers that are not finite


def test_three_bad_steps_of_a_hundred_are_within_the_budget() -> None:
    bad = BadSteps()
    assert [bad.note(step) for step in (1, 50, 100)] == [False, False, False]
    # Step 1 is a hundred steps ago.
    assert bad.note(101) is False
    assert bad.note(102) is True
    assert bad.steps == [50, 100, 101, 102]


def test_going_back_helps_once_per_place_and_three_times_in_all() -> None:
    first = next_adjust(Adjust(), [5, 6, 7, 8], newest_step=4)
    assert first == Adjust(left_out=(5, 6, 7, 8), rollbacks=(8,))
    # No checkpoint past the place: the same place again.
    assert next_adjust(first, [10, 11, 12, 13], newest_step=8) is None
    # A checkpoint, but no good step.
    assert next_adjust(first, [9, 10, 11, 12], newest_step=10) is None
    second = next_adjust(first, [19, 20, 21, 22], newest_step=10)
    assert second == Adjust(left_out=(5, 6, 7, 8, 19, 20, 21, 22), rollbacks=(8, 22))
    assert next_adjust(Adjust(rollbacks=(1, 2, 3)), [99], newest_step=50) is None
    # What a smaller micro batch taught stays.
    kept = next_adjust(Adjust(micro_batch_size=2), [5], newest_step=0)
    assert kept == Adjust(micro_batch_size=2, left_out=(5,), rollbacks=(5,))


def checkpoint(store: LocalStore, step: int) -> None:
    staged = store.staging(step_name(step))
    (staged / "weights").write_text(str(step))
    store.publish(staged, step_name(step), step=step, attempt=1, plan_sha256="0" * 64, meta={})


def alone() -> World:
    return World(plan_of("").parallel, Rank(0, 0, 1))


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for step in (2, 4, 6):
        checkpoint(store, step)
    with pytest.raises(AttemptError) as caught:
        go_back(store, alone(), [5, 6, 7, 8], 6)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.PREEMPTED, Reason.ROLLBACK)
    assert caught.value.message == (
        "loss or gradient was not finite in steps 5, 6, 7, 8: back to the checkpoint before step 5; "
        "these steps are left out"
    )
    assert sorted(path.name for path in store.checkpoints.iterdir()) == [
        "broken-00000006", "step-00000002", "step-00000004",
    ]  # fmt: skip
    assert store.get_adjust() == Adjust(left_out=(5, 6, 7, 8), rollbacks=(8,))
    with pytest.raises(AttemptError) as again:
        go_back(store, alone(), [9, 10, 11, 12], 4)
    assert (again.value.exit_code, again.value.reason) == (79, Reason.DETERMINISTIC)


# ------------------------------------------------------------------------------------ checkpoints


def checkpoints(store: LocalStore, faults: Faults | None = None) -> Checkpoints:
    events = Events(store, 1, speaks=True)
    return Checkpoints(store, events, alone(), faults or Faults(), plan_sha256="0" * 64, keep=4)


def write(folder: Path) -> None:
    (folder / "weights").write_text("x")


def names(store: LocalStore) -> list[str]:
    return sorted(path.name for path in store.checkpoints.iterdir())


def test_one_failed_save_is_told_and_the_next_one_counts(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    found = checkpoints(store, Faults((Simulation("disk-full", 2),)))
    assert [found.save(step, write) for step in (2, 4, 6)] == [True, False, True]
    assert names(store) == ["step-00000002", "step-00000006"]
    assert list(tmp_path.glob(".staging-*")) == []
    told = [event.data["message"] for event in store.events()[0] if event.kind == "log"]
    assert told == [
        "the checkpoint of step 4 could not be written: [Errno 28] No space left on device (simulated) "
        "(newest whole one: step 2); training goes on"
    ]


def test_two_failed_saves_in_a_row_end_the_attempt(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    faults = Faults((Simulation("disk-full", 2), Simulation("disk-full", 3)))
    found = checkpoints(store, faults)
    assert [found.save(step, write) for step in (2, 4)] == [True, False]
    with pytest.raises(AttemptError) as caught:
        found.save(6, write)
    assert (caught.value.exit_code, caught.value.reason) == (79, Reason.INFRA)
    assert names(store) == ["step-00000002"]


FILE_LIMIT = textwrap.dedent(
    """
    import resource, signal, sys
    from pathlib import Path
    import torch
    sys.path.insert(0, sys.argv[2])
    import test_survival as here
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = here.LocalStore(Path(sys.argv[1]))
    found = here.checkpoints(store)
    assert found.save(2, here.write)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    big = {"a": torch.zeros(100_000)}
    save = {
        "torch": lambda folder: torch.save(big, folder / "optimizer.pt"),
        "safetensors": lambda folder: here.save_file(big, folder / "model.safetensors"),
    }[sys.argv[3]]
    print(found.save(4, save), here.names(store), len(list(store.root.glob(".staging-*"))))
    """
)


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_a_medium_that_takes_no_more_is_noticed_in_every_librarys_words(
    tmp_path: Path, library: str
) -> None:
    """For real: the kernel refuses to let a file grow, in the middle of a save."""
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(tmp_path), str(Path(__file__).parent), library],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "False ['step-00000002'] 0", done.stderr[-2000:]


def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file as save

    save(tensors, path)


def test_errors_that_are_not_of_the_medium_are_bugs() -> None:
    assert is_of_the_medium(OSError(errno.ENOSPC, "full"))
    assert not is_of_the_medium(RuntimeError("shape mismatch"))


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights", 0)


def flip(folder: Path) -> None:
    (folder / "weights").write_text("7")


def lose(folder: Path) -> None:
    (folder / "weights").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (truncate, "weights has 0 bytes, expected 1"),
        (flip, "weights has another sha256 than its manifest"),
        (lose, "weights is missing"),
        (lose_manifest, "no manifest"),
    ],
)
def test_a_broken_checkpoint_is_set_aside_and_said(tmp_path: Path, spoil: object, why: str) -> None:
    store = LocalStore(tmp_path)
    for step in (2, 4):
        checkpoint(store, step)
    assert callable(spoil)
    spoil(store.checkpoints / step_name(4))
    found = checkpoints(store)
    newest = found.newest()
    assert newest is not None
    assert (newest.name, found.newest_step) == ("step-00000002", 2)
    assert names(store) == ["broken-00000004", "step-00000002"]
    (event,) = store.events()[0]
    assert event.data == {
        "level": "warning",
        "message": f"checkpoint not used: step-00000004: {why}; set aside as broken-00000004",
    }


# ------------------------------------------------------------------------------ marks and simulations


def test_marks_tell_where_a_rank_was_last(tmp_path: Path) -> None:
    assert read_mark(tmp_path, 1) is None
    marks = Marks(tmp_path, 1)
    begun = read_mark(tmp_path, 1)
    assert begun is not None
    assert begun == Mark(0, Place.START, 0, begun.at)
    marks.at(Place.BATCH, 3)
    marks.at(Place.COMPUTE, 3)
    last = read_mark(tmp_path, 1)
    assert last is not None
    assert last == Mark(2, Place.COMPUTE, 3, last.at)
    mark_path(tmp_path, 1).write_bytes(b"half")
    assert read_mark(tmp_path, 1) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preempt@30s", Simulation("preempt", 30)),
        ("kill@0.5s", Simulation("kill", 0.5)),
        ("oom@step:7", Simulation("oom", 7)),
        ("nan@step:12", Simulation("nan", 12)),
        ("disk-full@save:2", Simulation("disk-full", 2)),
    ],
)
def test_a_simulation_reads_and_writes_itself(text: str, expected: Simulation) -> None:
    assert parse_simulation(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    ["", "oom", "oom@7s", "preempt@step:7", "nan@step:0", "disk-full@step:1", "x@1s", "kill@30"],
)
def test_a_simulation_that_cannot_be_says_what_can(text: str) -> None:
    with pytest.raises(UsageError, match="expected one of preempt@30s, kill@30s"):
        parse_simulation(text)


def test_only_the_last_rank_has_the_fault() -> None:
    order = (Simulation("oom", 3), Simulation("nan", 4))
    first, last = (
        faults_of(order, attempt=1, rank=rank, world_size=2, as_planned=True) for rank in (0, 1)
    )
    first.before_step(3)
    with pytest.raises(torch.OutOfMemoryError, match="simulated at step 3"):
        last.before_step(3)
    assert torch.isfinite(first.loss(4, torch.ones(())))
    assert torch.isnan(last.loss(4, torch.ones(())))
    assert torch.isfinite(last.loss(5, torch.ones(())))
    # With a smaller micro batch it fits.
    faults_of(order, attempt=2, rank=1, world_size=2, as_planned=False).before_step(3)


# ------------------------------------------------------------------------- the name of an unknown end


def test_a_known_line_names_an_end_and_a_death_by_signal_stays_one(tmp_path: Path) -> None:
    nccl = "RuntimeError: NCCL WARN Error while creating shared memory segment"
    found = named(RankExit(1, "unclassified", nccl, 3), tmp_path)
    assert (found.exit_code, found.reason) == (78, "config")
    assert found.message.startswith(f"{nccl}: Shared memory (/dev/shm) is too small")
    # What another rank's end may have caused forbids nothing.
    refused = "DistBackendError: Last error: socketStartConnect: Connect to 10.0.0.2<1234> failed : Connection refused"
    found = named(RankExit(1, "unclassified", refused, 3), tmp_path)
    assert (found.exit_code, found.reason) == (1, "unclassified")
    assert found.message.startswith(f"{refused}: ")
    log = tmp_path / "rank1.log"
    log.write_text(
        "OSError: [Errno 28] No space left on device\nTraceback (most recent call last)\nValueError: x\n"
    )
    unknown = RankExit(1, "unclassified", "rank 1: ValueError: x", 3, rank=1)
    assert named(unknown, tmp_path) == unknown
    log.write_text("OSError: [Errno 28] No space left on device\n")
    killed = RankExit(137, "killed", "rank 1 died without a word", 3, rank=1)
    found = named(killed, tmp_path)
    assert (found.exit_code, found.reason) == (137, "killed")
    assert "The disk is full" in found.message


def test_the_last_words_are_a_whole_chain_of_tracebacks() -> None:
    first = "Traceback (most recent call last):\nOSError: old\n"
    cause = "Traceback (most recent call last):\nKeyError: 'x'\n"
    during = "\nDuring handling of the above exception, another exception occurred:\n\n"
    last = "Traceback (most recent call last):\nValueError: y\n"
    assert last_words(first + "step 3\n" + cause + during + last) == cause + during + last
    assert last_words(first + last) == last
    assert last_words("no traceback") == "no traceback"


# ------------------------------------------------------------------------------ a disk that is full


def test_what_cannot_be_told_does_not_end_the_attempt(tmp_path: Path) -> None:
    """For real: a file stands where the folder of the store was."""
    store = LocalStore(tmp_path / "store")
    store.root.mkdir()
    telling, events = Telling(store, 1), Events(store, 1, speaks=True)
    telling.beat(None)
    store.root.rename(tmp_path / "elsewhere")
    (tmp_path / "store").write_text("")
    telling.beat(None, force=True)
    telling.emit("log", level="info", message="lost")
    events.log("lost too")
    (tmp_path / "store").unlink()
    (tmp_path / "elsewhere").rename(store.root)
    telling.emit("log", level="info", message="there again")
    assert [event.data["message"] for event in store.events()[0]] == ["there again"]


def test_a_line_that_was_cut_short_swallows_none_after_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.append_event(Event("log", 1.0, 1, {"message": "whole"}))
    with (tmp_path / "events.jsonl").open("ab") as stream:
        stream.write(b'{"kind":"log","ti')
    store.append_event(Event("log", 2.0, 1, {"message": "after"}))
    assert [event.data["message"] for event in store.events()[0]] == ["whole", "after"]


def test_a_checkpoint_set_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for _ in range(2):
        checkpoint(store, 2)
        store.set_aside(store.checkpoints / step_name(2))
    assert names(store) == ["broken-00000002", "broken-00000002-2"]


def test_a_save_that_fails_while_the_attempt_ends_does_not_change_its_end(tmp_path: Path) -> None:
    faults = Faults((Simulation("disk-full", 1), Simulation("disk-full", 2)))
    found = checkpoints(LocalStore(tmp_path), faults)
    assert found.save(2, write) is False
    found.ending = True
    assert found.save(4, write) is False
