"""How a run ended: the curve, the facts, the last lines of its log, the exit code."""

from __future__ import annotations

import sys
from typing import Any, Final

from ft.launcher.cli import console, curve
from ft.launcher.cli.run import Run
from ft.launcher.cli.watch import Watch, number
from ft.recipes.errors import RunCancelledError, RunFailedError
from ft.recipes.runstore import Reason, RunState

LOG_LINES: Final = 12
SAID_ALL: Final = frozenset({Reason.CONFIG, Reason.DATA})
"""A user's to mend, and the sentence says how: the end of the log would be a traceback."""
STATE_STYLES: Final = {
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "yellow",
    RunState.UNKNOWN: "red",
}


def show(run: Run, watch: Watch, state: RunState, *, as_json: bool) -> None:
    """The result on stdout; on stderr the end of the log, where a failure is not explained."""
    result = summary(run, watch, state)
    if as_json:
        console.out_json(result)
    else:
        for line in curve.render(watch.losses, unicode=console.speaks_utf8(sys.stdout)):
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
        "reason": status.reason if status else None,
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
    reason = f" ({result['reason']})" if result["reason"] and state is RunState.FAILED else ""
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
        facts["held out"] = f"loss {number(result['eval_loss'])}"
    if result["wall_s"] is not None:
        attempts = f" in {result['attempts']} attempts" if result["attempts"] > 1 else ""
        facts["time"] = f"{console.duration(result['wall_s'])}{attempts}"
    if result["trained_tokens"] is not None:
        facts["trained"] = f"{result['trained_tokens']} tokens"
    if result["output"]:
        facts["output"] = result["output"]
    return facts


def _show_log(run: Run) -> None:
    lines = run.backend.logs(
        run.record.as_handle(), follow=False, tail=LOG_LINES, since=None, rank=None
    )
    texts = [line.text for line in lines]
    if texts:
        console.note("last lines of the log:", "dim")
    for text in texts:
        console.note(f"  {text}")


def check(run: Run, state: RunState) -> None:
    """Turn a bad end into its exit code. Raises: RunFailedError, RunCancelledError."""
    name = run.record.id
    if state is RunState.CANCELLED:
        raise RunCancelledError(f"run {name} was cancelled")
    if state is RunState.FAILED:
        raise RunFailedError(
            f"run {name} failed", hint=f"ft cloud logs {name}  shows all of its log"
        )
    if state is RunState.UNKNOWN:
        raise RunFailedError(
            f"run {name} is gone", hint=f"ft cloud logs {name}  shows what it said"
        )
