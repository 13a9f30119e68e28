"""Ends of attempts with real processes: which rank is named, and a stop that comes while the ranks start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ft.recipes.runstore import Control
from ft.recipes.store import LocalStore

pytestmark = pytest.mark.e2e


def of_kind(lab: Any, store: Path, kind: str, attempt: int) -> list[dict[str, Any]]:
    events = lab.events(store)
    return [e["data"] for e in events if e["kind"] == kind and e["attempt"] == attempt]


def ends_of(lab: Any, store: Path) -> list[tuple[int, str, str]]:
    ends = [e["data"] for e in lab.events(store) if e["kind"] == "attempt"]
    return [(e["exit_code"], e["reason"], e["message"]) for e in ends if e["mark"] == "end"]


def test_a_killed_rank_is_named_and_its_peer_is_not_blamed(lab: Any) -> None:
    """Rank 0 gets `Connection closed by peer` at the same moment, and says so."""
    recipe = lab.recipe(
        max_steps=60, save_steps=4, eval_steps=7, val_set_size=8, logging_steps=40,
        gradient_accumulation_steps=1, cloud={"gpu": "cpu:2"},
    )  # fmt: skip
    store = lab.start(recipe, "lost")
    lab.wait_for(lambda: len(of_kind(lab, store, "checkpoint", 1)) >= 2)
    folder = store / "attempts" / "1"
    os.kill(int((folder / "rank1.pid").read_text()), signal.SIGKILL)
    outcome = lab.outcome("lost")
    assert outcome["state"] == "SUCCEEDED", outcome
    (killed, done) = ends_of(lab, store)
    assert killed[:2] == (137, "killed")
    assert killed[2].startswith("rank 1 died without a word at step ")
    assert done == (0, "done", "done")
    assert (folder / "rank0.exit.json").is_file()
    assert not list((store / "attempts").glob("*/scratch-*"))
    status = LocalStore(store).get_status()
    assert status is not None
    # Step 60 was not logged: 40 is the last that was.
    assert (status.step, status.total_steps) == (60, 60)
    assert of_kind(lab, store, "progress", 2)[-1] == {"step": 60, "total_steps": 60}
    first = of_kind(lab, store, "resume", 2)[0]["step"]
    assert first >= 8
    # Steps, savings and evaluations lie side by side within `train`.
    phases = [d for d in of_kind(lab, store, "phase", 2) if d["mark"] == "end"]
    seconds = {name: sum(d["seconds"] for d in phases if d["name"] == name) for name in
               ("train", "save", "eval")}  # fmt: skip
    assert seconds["save"] > 0
    assert seconds["eval"] > 0
    (logged,) = [d for d in of_kind(lab, store, "step", 2) if d["step"] == 40]
    stepping = logged["step_time_s"] * (40 - first)
    assert 0 < stepping < seconds["train"] - seconds["save"] - seconds["eval"] + 0.01


def test_a_stop_between_preflight_and_ranks_is_not_lost(lab: Any) -> None:
    store = lab.start(lab.recipe(), "early")

    def preflight_is_over() -> bool:
        return any(d["mark"] == "end" for d in of_kind(lab, store, "phase", 1))

    lab.wait_for(preflight_is_over)
    LocalStore(store).put_control(Control("stop", time.time()))
    outcome = lab.outcome("early")
    assert (outcome["state"], outcome["exit_code"]) == ("CANCELLED", 79), outcome
    assert ends_of(lab, store) == [(79, "cancelled", "stopped before training began")]
    kinds = {event["kind"] for event in lab.events(store)}
    assert not kinds & {"step", "progress", "checkpoint", "final"}
