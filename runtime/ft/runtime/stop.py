"""A request to stop: a signal, or a file for a rank that was not there yet when it came. Imports no torch.

No request is lost. The agent writes the file and then sends SIGTERM to the ranks that have a pid file; a rank hears
signals, then writes its pid file, then looks for the request. Whoever is first, the other one sees it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

from ft.recipes.runstore import write_atomic

STOP_FILE = "stop"


class StoppedError(Exception):
    """The attempt ends on request before its first step; every rank raises it at the same place."""


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; whoever has it reads it when he can act on it."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self._note)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        # Nothing else: a handler that logs can meet a half-written line of its own process.
        self.requested = True


def pid_path(folder: Path, rank: int) -> Path:
    """In the attempt's folder, there as soon as the rank hears signals."""
    return folder / f"rank{rank}.pid"


def join(stop: StopFlag, folder: Path, rank: int) -> None:
    """Call it once `stop` listens: from now on the agent signals this rank. Takes over an earlier request."""
    write_atomic(pid_path(folder, rank), str(os.getpid()))
    if (folder / STOP_FILE).exists():
        stop.requested = True


def leave_request(folder: Path) -> None:
    """For the ranks of this attempt that are still to come."""
    (folder / STOP_FILE).touch()
