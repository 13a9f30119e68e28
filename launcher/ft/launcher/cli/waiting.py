"""`ft cloud wait`: no view, one line per end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final

from ft.launcher.cli import console
from ft.launcher.cli.run import Run
from ft.recipes.errors import RunCancelledError, RunFailedError, WaitTimeoutError
from ft.recipes.runstore import RunState

POLL_S: Final = 0.25
LOST_POLLS: Final = 4
"""A run is gone when it was UNKNOWN this often in a row, as for `attach`."""
CODES: Final = {
    RunState.SUCCEEDED: 0,
    RunState.FAILED: RunFailedError.exit_code,
    RunState.UNKNOWN: RunFailedError.exit_code,
    RunState.CANCELLED: RunCancelledError.exit_code,
}
WORST_FIRST: Final = (RunFailedError.exit_code, RunCancelledError.exit_code, 0)


def wait(runs: Sequence[Run], *, timeout_s: float | None, first: bool, as_json: bool) -> int:
    """Until all `runs` have ended, or the `first` one. Returns the exit code of the worst end.

    Raises: WaitTimeoutError naming who goes on.
    """
    deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
    waiting, lost, codes = list(runs), dict.fromkeys((run.record.id for run in runs), 0), []
    while waiting:
        for run in list(waiting):
            name, state = run.record.id, run.state()
            lost[name] = lost[name] + 1 if state is RunState.UNKNOWN else 0
            if state.ended or lost[name] == LOST_POLLS:
                _tell(run, state, as_json=as_json)
                codes.append(CODES[state])
                waiting.remove(run)
        if not waiting or (first and codes):
            break
        left = deadline - time.monotonic()
        if left <= 0:
            names = ", ".join(run.record.id for run in waiting)
            raise WaitTimeoutError(f"not ended after {timeout_s:g} s: {names}")
        time.sleep(min(POLL_S, left))
    return next(code for code in WORST_FIRST if code in codes)


def _tell(run: Run, state: RunState, *, as_json: bool) -> None:
    if as_json:
        console.out_json_line(_to_json(run, state))
        return
    reason = f" ({run.reason()})" if run.reason() and state is not RunState.SUCCEEDED else ""
    said = "" if state is RunState.SUCCEEDED else f": {run.explain()}"
    output = f"  {run.delivered()}" if state is RunState.SUCCEEDED else ""
    console.out(f"{state}{reason}  {run.record.name}{said}{output}")


def _to_json(run: Run, state: RunState) -> dict[str, Any]:
    return {
        "id": run.record.id,
        "name": run.record.name,
        "state": str(state),
        "reason": run.reason() or None,
        "message": run.explain() or None,
        "output": run.delivered() or None,
        "exit_code": CODES[state],
    }
