"""On a node of SkyPilot's: a command beside what runs of a run there. `python -m … RUN NODE COMMAND…`.

Whoever comes by ssh has another environment, and often another home, than the job: both are those of its process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ft.launcher.beside import environment_of, run_beside
from ft.launcher.runs import holder
from ft.recipes.errors import NotFoundError, StoreError
from ft.recipes.runstore import ATTEMPT_LOCK

SEGMENT: Final = "ft.launcher.backends.sky_remote"


def main(argv: Sequence[str]) -> int:
    """The exit code of the command; 8 with a sentence if there is nothing of the run here."""
    run, node, *command = argv
    environment = next(_segments(run, node), None)
    if environment is None:
        print(f"error: nothing of run {run} runs on this machine as node {node}", file=sys.stderr)  # noqa: T201
        return NotFoundError.exit_code
    work = Path(environment["HOME"]) / ".ft-run" / run
    roots = sorted(work.glob(f"node{node}-segment*"), key=lambda path: path.stat().st_mtime)
    agent = holder(roots[-1] / ATTEMPT_LOCK) if roots else None
    of_attempt = environment_of(agent) if agent is not None else None
    folder = roots[-1] if roots else Path(environment["HOME"])
    return run_beside(command, folder, of_attempt or environment, takes_input=True)


def _segments(run: str, node: str) -> Iterator[dict[str, str]]:
    """The environment of each process that is a segment of the run on this node."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            job = json.loads(words[words.index(SEGMENT) + 1])
            environment = environment_of(int(path.parent.name))
        except (OSError, ValueError, IndexError, StoreError):
            continue  # It has ended, is something else, or another user's.
        is_ours = isinstance(job, dict) and job.get("run") == run
        if is_ours and environment and environment.get("SKYPILOT_NODE_RANK") == node:
            yield environment


if __name__ == "__main__":
    os.umask(0o022)
    raise SystemExit(main(sys.argv[1:]))
