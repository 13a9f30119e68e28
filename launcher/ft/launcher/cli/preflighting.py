"""Runs the preflight as a child, shows its table, reads its report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ft.launcher import local_python
from ft.launcher.cli import console
from ft.recipes.errors import RunFailedError

SAID_BY_US: Final = "preflight: "
"""How a rank begins what people should read; the rest of stderr is torchrun's and libraries'."""
LAST_LINES: Final = 40


def run(num_processes: int, arguments: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """The report. The table goes to stdout as it grows, or to stderr if `quiet`.

    Raises: RunFailedError without a report.
    """
    with tempfile.TemporaryDirectory(prefix="ft-preflight-") as folder:
        path = Path(folder) / "report.json"
        command = local_python.preflight_command(
            num_processes, [*arguments, "--json-out", str(path)]
        )
        # A session of its own: Ctrl-C is for us, and we end all of them at once. The folder is empty, so that no
        # module of the current one is imported.
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if quiet else None,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            # Single-threaded; no rank may outlive us.
            preexec_fn=local_python.die_with(os.getpid(), signal.SIGKILL),  # noqa: PLW1509
        )
        try:
            last = _pass_on(child)
        finally:
            _end(child)
        try:
            report = json.loads(path.read_bytes())
        except (OSError, ValueError):
            for line in last:
                console.note(line)
            raise RunFailedError(
                f"the preflight ended without a report (torchrun: {child.returncode})",
                hint="what torchrun and the ranks said stands above",
            ) from None
    assert isinstance(report, dict)
    return report


def _pass_on(child: subprocess.Popen[str]) -> deque[str]:
    """Show what the ranks say for people. Returns: the end of everything else, once the child is done."""
    last = deque[str](maxlen=LAST_LINES)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(SAID_BY_US):
            console.note(line.rstrip("\n").removeprefix(SAID_BY_US))
        else:
            last.append(line.rstrip("\n"))
    child.wait()
    return last


def _end(child: subprocess.Popen[str]) -> None:
    """If it still runs. The ranks die with torchrun; asking it kindly would take half a minute."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
