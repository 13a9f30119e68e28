"""Faults on order, with real processes: what each becomes, and what the user reads."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

TWO = {"gradient_accumulation_steps": 1, "cloud": {"gpu": "cpu:2"}}
"""Two processes with the same global batch as one with the recipe as it is."""


def start(lab: Any, name: str, *faults: str, **changes: Any) -> Path:
    orders = [word for fault in faults for word in ("--simulate", fault)]
    recipe = lab.recipe(**changes)
    done = lab.ft("cloud", "run", str(recipe), "--name", name, "--detach", *orders)
    assert done.returncode == 0, done.stderr
    return lab.store_of(name)


def ends_of(lab: Any, store: Path) -> list[tuple[int, str, str]]:
    ends = [e["data"] for e in lab.events(store) if e["kind"] == "attempt"]
    return [(e["exit_code"], e["reason"], e["message"]) for e in ends if e["mark"] == "end"]


def of_kind(lab: Any, store: Path, kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in lab.events(store) if event["kind"] == kind]


def rows_per_step(lab: Any, store: Path, attempt: int, ranks: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for rank in range(ranks):
        for entry in lab.rows_of(store, attempt, rank):
            found.setdefault(entry["step"], []).extend(entry["rows"])
    return {step: sorted(rows) for step, rows in found.items()}


def test_out_of_memory_on_one_rank_goes_on_with_half_the_micro_batch(lab: Any) -> None:
    """The rows of every step are those of an undisturbed run, and so are the losses up to rounding."""
    plain = start(lab, "plain", lora_dropout=0.0, **TWO)
    assert lab.outcome("plain")["state"] == "SUCCEEDED"
    store = start(lab, "oom", "oom@step:5", lora_dropout=0.0, **TWO)
    outcome = lab.outcome("oom")
    assert (outcome["state"], outcome["reason"]) == ("SUCCEEDED", "done"), outcome
    first, last = ends_of(lab, store)
    assert first == (
        75,
        "oom",
        "rank 1: out of memory: simulated at step 5; the next attempt uses micro_batch_size 1 and "
        "gradient_accumulation_steps 2, the same global batch, and eval_batch_size 2",
    )
    assert last == (0, "done", "done")
    assert [d["step"] for d in of_kind(lab, store, "resume")] == [4]
    again, expected = rows_per_step(lab, store, 2, 2), rows_per_step(lab, plain, 1, 2)
    assert again == {step: rows for step, rows in expected.items() if step > 4}
    losses, undisturbed = lab.losses(store), lab.losses(plain)
    assert losses == pytest.approx(undisturbed, abs=1e-5)


def test_a_killed_run_remembers_the_smaller_micro_batch(lab: Any) -> None:
    store = start(lab, "kept", "oom@step:3", max_steps=60)
    lab.wait_for(lambda: any(d["step"] >= 6 for d in of_kind(lab, store, "checkpoint")))
    os.kill(int((store / "attempts" / "2" / "rank0.pid").read_text()), signal.SIGKILL)
    assert lab.outcome("kept")["state"] == "SUCCEEDED"
    assert [end[:2] for end in ends_of(lab, store)] == [(75, "oom"), (137, "killed"), (0, "done")]
    assert {len(entry["rows"]) for entry in lab.rows_of(store, 3, 0)} == {1}


def test_a_step_without_finite_numbers_updates_nothing(lab: Any) -> None:
    store = start(lab, "nan", "nan@step:7")
    assert lab.outcome("nan")["state"] == "SUCCEEDED"
    assert [end[:2] for end in ends_of(lab, store)] == [(0, "done")]
    losses = lab.losses(store)
    assert [step for step, loss in losses.items() if loss is None] == [7]
    told = [d["message"] for d in of_kind(lab, store, "log") if d["level"] == "warning"]
    assert len(told) == 1
    assert told[0].startswith("step 7: loss or gradient is not finite; no update from its rows [")
    counters = [d for d in of_kind(lab, store, "step") if d["step"] in {6, 7}]
    assert counters[0]["trained_tokens"] == counters[1]["trained_tokens"]


def test_too_many_of_them_go_back_and_leave_the_batches_out(lab: Any) -> None:
    faults = [f"nan@step:{step}" for step in (5, 6, 7, 8)]
    store = start(lab, "back", *faults, **TWO)
    assert lab.outcome("back")["state"] == "SUCCEEDED"
    first, last = ends_of(lab, store)
    assert first[:2] == (75, "rollback")
    assert "steps 5, 6, 7, 8: back to the checkpoint before step 5" in first[2]
    assert last[:2] == (0, "done")
    assert [d["step"] for d in of_kind(lab, store, "resume")] == [4]
    assert (store / "checkpoints" / "broken-00000006").is_dir()
    rows = rows_per_step(lab, store, 2, 2)
    assert [step for step, found in sorted(rows.items()) if not found] == [5, 6, 7, 8]


def test_going_back_once_is_enough_where_it_does_not_help(lab: Any) -> None:
    faults = [f"nan@step:{step}" for step in range(5, 13)]
    store = start(lab, "hopeless", *faults)
    outcome = lab.outcome("hopeless")
    assert (outcome["state"], outcome["reason"]) == ("FAILED", "deterministic"), outcome
    assert [end[:2] for end in ends_of(lab, store)] == [(75, "rollback"), (79, "deterministic")]
    assert "lower learning_rate" in outcome["message"]


def test_a_disk_that_is_full_once_costs_one_checkpoint(lab: Any) -> None:
    store = start(lab, "full-once", "disk-full@save:2")
    assert lab.outcome("full-once")["state"] == "SUCCEEDED"
    saved = [d["step"] for d in of_kind(lab, store, "checkpoint")]
    assert saved == [2, 6, 8, 10, 12]


def test_a_disk_that_stays_full_ends_the_run_and_says_what_is_left(lab: Any) -> None:
    store = start(lab, "full", "disk-full@save:2", "disk-full@save:3")
    outcome = lab.outcome("full")
    assert (outcome["state"], outcome["reason"], outcome["exit_code"]) == ("FAILED", "infra", 79)
    assert "No space left on device (simulated) (newest whole one: step 2)" in outcome["message"]
    assert [path.name for path in (store / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_preempted_machine_saves_and_the_next_one_goes_on(lab: Any) -> None:
    store = start(lab, "spot", "preempt@14s", max_steps=150, num_epochs=100, save_steps=1000)
    assert lab.outcome("spot")["state"] == "SUCCEEDED"
    first, last = ends_of(lab, store)
    assert (first[:2], last[:2]) == ((75, "preempted"), (0, "done"))
    if of_kind(lab, store, "resume"):
        (saved,) = [d["step"] for d in of_kind(lab, store, "resume")]
        assert first[2] == f"saved at step {saved} and stopped: a signal asked for it"
    else:
        # A slow machine: it had not begun to train.
        assert first[2] == "stopped before training began"


def test_a_machine_that_dies_takes_its_children_along_and_the_next_one_goes_on(lab: Any) -> None:
    store = start(lab, "gone", "kill@14s", max_steps=150, num_epochs=100, save_steps=5)
    assert lab.outcome("gone")["state"] == "SUCCEEDED"
    assert [end[:2] for end in ends_of(lab, store)] == [(0, "done")]
    attempts = {e["attempt"] for e in lab.events(store)}
    assert attempts == {1, 2}
    # Nothing of the first attempt was written once the second had begun.
    order = [e["attempt"] for e in lab.events(store)]
    assert order == sorted(order)


def test_a_deadline_hands_over_to_the_next_attempt(lab: Any) -> None:
    """At half of so short a time: the first steps lie before it on any machine that can run these tests."""
    store = start(
        lab, "long", max_steps=400, num_epochs=100, save_steps=1000,
        cloud={"gpu": "cpu", "timeout": 50},
    )  # fmt: skip
    lab.wait_for(lambda: ends_of(lab, store))
    code, reason, message = ends_of(lab, store)[0]
    assert (code, reason) == (76, "hand-off")
    assert message.endswith("stopped: its timeout of 50 s is nearly over")
    lab.wait_for(lambda: of_kind(lab, store, "resume"))
    done = lab.ft("cloud", "cancel", "long", "--now")
    assert done.returncode == 0, done.stderr


def test_a_budget_ends_the_run_with_what_it_has(lab: Any) -> None:
    """36 USD an hour are a cent a second: 50 s, of which half are kept free."""
    store = start(
        lab, "money", max_steps=4000, num_epochs=1000, save_steps=1000,
        cloud={"gpu": "cpu", "max_cost": 0.5, "price_per_hour": 36.0},
    )  # fmt: skip
    outcome = lab.outcome("money")
    assert outcome["reason"] == "user", outcome
    ((code, reason, message),) = ends_of(lab, store)
    assert (code, reason) == (79, "user")
    assert "max_cost 0.5 USD is nearly spent" in message
    (saved,) = [d["step"] for d in of_kind(lab, store, "checkpoint")]
    assert message.startswith(f"saved at step {saved} and stopped: ")


def test_the_rank_that_hangs_is_named_within_the_timeout(lab: Any) -> None:
    store = start(
        lab, "stuck", max_steps=400, num_epochs=100, save_steps=2, ddp_timeout=8, **TWO
    )  # fmt: skip
    lab.wait_for(lambda: len(of_kind(lab, store, "checkpoint")) >= 2)
    stuck_at = time.time()
    os.kill(int((store / "attempts" / "1" / "rank1.pid").read_text()), signal.SIGSTOP)
    lab.wait_for(lambda: ends_of(lab, store))
    ended = next(e["time"] for e in lab.events(store) if e["data"].get("exit_code") == 1)
    # The timeout, ten seconds for the one that hears no signal, and a margin for a busy machine.
    assert ended - stuck_at < 8 + 10 + 10
    code, reason, message = ends_of(lab, store)[0]
    assert (code, reason) == (1, "unclassified")
    assert message.startswith("rank 1 did not arrive: ")
    assert message.endswith(", while rank 0 waited for it")
    done = lab.ft("cloud", "cancel", "stuck", "--now")
    assert done.returncode == 0, done.stderr
