"""How attempts and runs end, as whoever looks after a run writes it down: the same words on every backend."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ft.recipes.runstore import (
    MANIFEST,
    AttemptEnd,
    Control,
    ExitCode,
    JsonRecord,
    Reason,
    RunState,
    Verdict,
    newest_valid,
    step_folders,
)
from ft.recipes.store import LocalStore

OUTCOME: Final = "outcome.json"
"""The end of a run, as it lies on disk: written last of all."""
ENDED_BY: Final = {
    Reason.CANCELLED: "cancelled",
    Reason.USER: "stopped by the user",
}


@dataclass(frozen=True, slots=True)
class Outcome(JsonRecord):
    """How a run ended, written as the last act of whoever looked after it."""

    state: str
    reason: str
    exit_code: int
    message: str
    ended_at: float
    delivered_to: str = ""


def outcome(
    state: RunState, reason: Reason, code: int, message: str, delivered: str = ""
) -> Outcome:
    """An end, as of now."""
    return Outcome(state, reason, int(code), message, time.time(), delivered)


def end_of_attempt(
    store: LocalStore, number: int, code: int, *, checkpoint_step: int
) -> AttemptEnd:
    """The end of an attempt whose agent ended with `code`, 128+n after a signal."""
    status = store.get_status()
    mine = status if status is not None and status.attempt == number else None
    told = mine.reason if mine is not None and mine.exit_code is not None else None
    return AttemptEnd(
        exit_code=code,
        step=mine.step if mine else 0,
        checkpoint_step=checkpoint_step,
        reason=told or (Reason.KILLED if code > 128 else ""),
    )


def said(store: LocalStore, number: int, names: Mapping[str, str]) -> str:
    """How the attempt put its end. `names` is what the user calls an input: it knows only what that became here."""
    status = store.get_status()
    message = (status.message or "") if status and status.attempt == number else ""
    for name, path in names.items():
        message = message.replace(f"inputs/{name}", path)
    return message


def stop_asked(store: LocalStore) -> Control | None:
    """What the launcher asked for, if it is to stop."""
    control = store.get_control()
    return control if control is not None and control.request == "stop" else None


def stopped(
    store: LocalStore,
    run_id: str,
    ends: Sequence[AttemptEnd],
    *,
    killed: bool,
    names: Mapping[str, str],
) -> Outcome:
    """The end of a run that somebody ended: by `cancel`, Ctrl-C, or with his own limit.

    `killed`: the grace was over, the last attempt was killed before it had saved.
    """
    control, last = stop_asked(store), ends[-1] if ends else None
    reason = Reason.CANCELLED
    if control is not None and control.reason in set(ENDED_BY):
        reason = Reason(control.reason)
    elif last is not None and last.reason in set(ENDED_BY):
        reason = Reason(last.reason)
    stays = what_stays(store, run_id)
    if last is None:
        code, what = int(ExitCode.PREEMPTED), "before the first attempt"
    else:
        code = last.exit_code
        what = f"at step {last.step}" + (", killed without saving" if killed else "")
    message = f"{ENDED_BY[reason]} {what}; {stays}"
    if control is None and last is not None and last.reason == Reason.USER:
        # His limit, in its own words.
        message = f"{said(store, store.attempts()[-1], names)}; {stays}"
    return outcome(RunState.CANCELLED, reason, code, message)


def failed(store: LocalStore, decision: Verdict, code: int, names: Mapping[str, str]) -> Outcome:
    """What went wrong, and why it is not tried again."""
    words = said(store, store.attempts()[-1], names)
    message = f"{words} ({decision.message})" if words else decision.message
    return outcome(RunState.FAILED, decision.reason, code, message)


def what_stays(store: LocalStore, run_id: str) -> str:
    """The end of a sentence on a run that was stopped."""
    saved = newest_published(store)
    if not saved:
        return "there is no checkpoint yet"
    return f"its checkpoint of step {saved} stays: `ft cloud resume {run_id}` goes on from there"


def newest_published(store: LocalStore) -> int:
    """Step of the newest checkpoint that has a manifest; 0 without one. Not verified: that reads every byte."""
    folders = [f for f in step_folders(store.checkpoints) if (f / MANIFEST).is_file()]
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def newest_step(store: LocalStore) -> int:
    """Step of the newest valid checkpoint, 0 without one. Reads every byte of it."""
    newest, _ = newest_valid(store.checkpoints)
    return int(newest.name.removeprefix("step-")) if newest else 0
