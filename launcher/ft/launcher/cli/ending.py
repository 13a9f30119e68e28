"""How a run ended: the curve, the facts, the last lines of its log, the exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Final

from ft.launcher.backends.base import LogQuery
from ft.launcher.cli import console, curve
from ft.launcher.cli.run import Run
from ft.launcher.cli.watch import Watch, number
from ft.recipes.errors import RunCancelledError, RunFailedError
from ft.recipes.runstore import Reason, RunState, Status

LOG_LINES: Final = 12
SAID_ALL: Final = frozenset({Reason.CONFIG, Reason.DATA})
"""A user's to mend, and the sentence says how: the end of the log would be a traceback."""
TRACEBACK: Final = "Traceback (most recent call last):"
TORCHRUN: Final = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^=+\n.* FAILED\n-+\n(?:.*\n)*?=+\n",
        r"^\*+\nSetting OMP_NUM_THREADS.*\n\*+\n",
        r"^[EWI]\d{4} [\d:.]+ +\d+ torch/distributed/.*\n",
        rf"^{re.escape(TRACEBACK)}\n(?:[ \t].*\n)*?"
        r"[ \t].*torch/distributed/run\.py.*\n(?:[ \t].*\n)*.*\n",
    )
)
"""Its report, its banner, its log, and the traceback that leads through it."""
STATE_STYLES: Final = {
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "yellow",
    RunState.UNKNOWN: "red",
}


def show(
    run: Run, watch: Watch, state: RunState, *, as_json: bool, with_curve: bool = True
) -> None:
    """The result on stdout; on stderr the end of the log, where a failure is not explained."""
    result = summary(run, watch, state)
    if as_json:
        console.out_json(result)
    else:
        losses = watch.losses if with_curve else {}
        for line in curve.render(losses, unicode=console.speaks_utf8(sys.stdout)):
            console.out(line)
        _show_summary(result, watch, state)
    if state in {RunState.FAILED, RunState.UNKNOWN} and result["reason"] not in SAID_ALL:
        _show_log(run)


def summary(run: Run, watch: Watch, state: RunState) -> dict[str, Any]:
    """The final state as JSON: what `--json` prints. What is not known is null."""
    status = run.status()
    ended = watch.last_time or (status.updated_at if status else None)
    return {
        "id": run.record.id,
        "name": run.record.name,
        "backend": run.record.backend,
        "state": str(state),
        "reason": run.reason() or (status.reason if status else None),
        "message": run.explain() or None,
        "step": watch.step,
        "total_steps": watch.total_steps or (status.total_steps if status else None),
        "loss": watch.loss,
        "eval_loss": watch.eval_loss,
        "trained_tokens": watch.trained_tokens,
        "attempts": watch.attempt,
        "wall_s": round(ended - run.record.created_at, 3) if ended else None,
        "output": run.delivered() or None,
    }


def _show_summary(result: dict[str, Any], watch: Watch, state: RunState) -> None:
    says_more = result["reason"] and state in {RunState.FAILED, RunState.CANCELLED}
    reason = f" ({result['reason']})" if says_more else ""
    console.out(f"{state}{reason}  run {result['id']}", STATE_STYLES[state], "bold")
    for label, text in _facts(result, watch).items():
        for line in console.labelled(label, text):
            console.out(line)


def _facts(result: dict[str, Any], watch: Watch) -> dict[str, str]:
    """Label -> text, without what is not known."""
    facts: dict[str, str] = {}
    if result["message"] not in {None, Reason.DONE}:
        # A run may succeed and still have something to say: that its result could not be delivered.
        facts["note" if result["state"] == RunState.SUCCEEDED else "why"] = result["message"]
    total = f" of {result['total_steps']}" if result["total_steps"] else ""
    facts["steps"] = f"{result['step']}{total}"
    if result["loss"] is not None:
        first = watch.losses[min(watch.losses)]
        facts["loss"] = f"{number(result['loss'])}, at first {number(first)}"
    if result["eval_loss"] is not None:
        facts["evaluation"] = f"loss {number(result['eval_loss'])}"
    if result["wall_s"] is not None:
        attempts = f" in {result['attempts']} attempts" if result["attempts"] > 1 else ""
        facts["time"] = f"{console.duration(result['wall_s'])}{attempts}"
    if result["trained_tokens"] is not None:
        facts["trained"] = f"{result['trained_tokens']} tokens"
    if result["output"]:
        facts["output"] = result["output"]
    return facts


def _show_log(run: Run) -> None:
    status = run.status()
    lines = relevant(run, status) if status is not None else []
    if lines:
        who = "" if status is None or status.rank is None else f" of rank {status.rank}"
        console.note(f"last lines of the log{who}:", "dim")
    for line in lines:
        console.note(f"  {console.log_line(line)}")


def relevant(run: Run, status: Status) -> list[str]:
    """The last lines of whoever ended the last attempt, from the last traceback on, without torchrun's own words."""
    rank = f"rank{status.rank or 0}"
    for source in (rank, "agent"):
        query = LogQuery(attempt=status.attempt, sources=(source,))
        lines = [line.text for line in run.backend.logs(run.record.as_handle(), query)]
        said = without_boilerplate(lines)
        if said:
            return from_last_traceback(said)[-LOG_LINES:]
    return []


def without_boilerplate(lines: Sequence[str]) -> list[str]:
    """Without what torchrun says about a child that failed, its own traceback, and empty lines. Pure."""
    text = "".join(f"{line}\n" for line in lines)
    for pattern in TORCHRUN:
        text = pattern.sub("", text)
    return [line for line in text.splitlines() if line.strip()]


def from_last_traceback(lines: Sequence[str]) -> list[str]:
    """From the start of the last traceback on; all lines where there is none. Pure."""
    starts = [number for number, line in enumerate(lines) if line.startswith(TRACEBACK)]
    return list(lines[starts[-1] :] if starts else lines)


def check(run: Run, state: RunState) -> None:
    """Turn a bad end into its exit code. Raises: RunFailedError, RunCancelledError."""
    name = run.record.id
    if state is RunState.CANCELLED:
        what = "stopped" if run.reason() == Reason.USER else "cancelled"
        raise RunCancelledError(f"run {name} was {what}", hint=f"ft cloud resume {name}  goes on")
    if state is RunState.FAILED:
        raise RunFailedError(
            f"run {name} failed", hint=f"ft cloud logs {name}  shows all of its log"
        )
    if state is RunState.UNKNOWN:
        raise RunFailedError(
            f"run {name} is gone: {run.explain()}",
            hint=f"ft cloud logs {name}  shows what it said",
        )
