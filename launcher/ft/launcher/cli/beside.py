"""`ft cloud exec`: a command on the machine where a run trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from ft.launcher.backends.base import Capability
from ft.launcher.cli.run import Run
from ft.recipes.errors import NotFoundError, UsageError
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import RunState

ALIVE: Final = {RunState.RUNNING, RunState.RECOVERING}


def execute(run: Run, command: Sequence[str], *, node: int, interactive: bool) -> int:
    """The exit code of the command. Raises: UsageError, NotFoundError where there is no machine to run it on."""
    backend, record = run.backend, run.record
    if Capability.EXEC not in backend.capabilities:
        raise UsageError(f"backend {backend.name} runs no commands beside a run")
    plan = RunPlan.from_json(run.runs.submission(record.id).plan_json)
    nodes = plan.parallel.num_nodes
    if node >= nodes:
        raise UsageError(
            f"--node {node}: run {record.id} has {nodes} of them, counted from 0"
            if nodes > 1
            else f"--node {node}: run {record.id} has one node, 0"
        )
    state = run.state()
    if state not in ALIVE:
        raise _no_machine(run, state)
    # None where it was closed before we began.
    takes_input = sys.stdin is not None and (interactive or not sys.stdin.isatty())
    return backend.execute(record.as_handle(), command, node=node, takes_input=takes_input)


def _no_machine(run: Run, state: RunState) -> NotFoundError:
    name, why = run.record.id, run.explain()
    if state.ended:
        way = f"ft cloud logs {name}  has what it said"
        if state is not RunState.SUCCEEDED:
            way += f"; ft cloud resume {name}  goes on"
    elif state is RunState.UNKNOWN:
        way = f"ft cloud status {name}  says more"
    else:
        way = f"ft cloud attach {name}  shows when it begins"
    said = f": {why}" if why else ""
    return NotFoundError(f"run {name} is {state}, so no machine of it lives{said}", hint=way)
