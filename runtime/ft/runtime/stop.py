"""A request to stop: why, and until when there is time to save. Imports no torch.

A signal, or a file for a rank that was not there yet when it came. No request is lost: the agent writes the file and
then sends SIGTERM to the ranks that have a pid file; a rank hears signals, then writes its pid file, then looks for
the request. Whoever is first, the other one sees it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from ft.recipes.runstore import ExitCode, JsonRecord, Reason, write_atomic

STOP_FILE = "stop"
GRACE_S: Final = 30.0
"""From a signal to the end of the machine: what the shortest-tempered clouds give."""

EXIT_CODES: Final[Mapping[Reason, ExitCode]] = {
    Reason.PREEMPTED: ExitCode.PREEMPTED,
    Reason.HAND_OFF: ExitCode.HAND_OFF,
    Reason.CANCELLED: ExitCode.DETERMINISTIC,
    Reason.USER: ExitCode.DETERMINISTIC,
}
"""How an attempt ends that was asked to; also the order in which a reason outdoes the ones before it."""


class StoppedError(Exception):
    """The attempt ends on request before its first step; every rank raises it at the same place."""

    def __init__(self, reason: Reason = Reason.PREEMPTED) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request(JsonRecord):
    """Why to stop, and until when (Unix time in seconds; None: as long as it takes)."""

    reason: str
    until: float | None = None
    because: str = ""
    """The rest of the sentence "saved at step 7 and stopped: …"; empty where the reason says it all."""

    @property
    def exit_code(self) -> ExitCode:
        return EXIT_CODES[Reason(self.reason)]

    @property
    def code(self) -> int:
        """1 and up, so that ranks agree on the gravest one by a maximum; 0 is no request."""
        return 1 + list(EXIT_CODES).index(Reason(self.reason))


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; whoever has it reads it when he can act on it."""

    def __init__(self, *, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        """From a signal on."""
        self.folder: Path | None = None
        """Of the attempt, where the agent leaves the request; None for the agent itself."""
        self.heard_at: float | None = None

    @property
    def requested(self) -> bool:
        return self.heard_at is not None

    def listen(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self._note)

    def note(self) -> None:
        """As if a signal had come now."""
        if self.heard_at is None:
            self.heard_at = time.time()

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        # Nothing else: a handler that logs can meet a half-written line of its own process.
        self.note()

    def request(self) -> Request | None:
        """What was asked: the agent's words if it has left any, else what a signal means."""
        if self.heard_at is None:
            return None
        left = read_request(self.folder) if self.folder is not None else None
        return left or Request(Reason.PREEMPTED, self.heard_at + self.grace_s)


def reason_of(code: int) -> Reason:
    """The reason with this `Request.code`."""
    return list(EXIT_CODES)[code - 1]


def pid_path(folder: Path, rank: int) -> Path:
    """In the attempt's folder, there as soon as the rank hears signals."""
    return folder / f"rank{rank}.pid"


def join(stop: StopFlag, folder: Path, rank: int) -> None:
    """Call it once `stop` listens: from now on the agent signals this rank. Takes over an earlier request."""
    stop.folder = folder
    write_atomic(pid_path(folder, rank), str(os.getpid()))
    if (folder / STOP_FILE).exists():
        stop.note()


def leave_request(folder: Path, request: Request) -> None:
    """For the ranks of this attempt, also those that are still to come."""
    write_atomic(folder / STOP_FILE, request.to_json())


def read_request(folder: Path) -> Request | None:
    """None if the agent has left none."""
    try:
        return Request.from_json((folder / STOP_FILE).read_bytes())
    except (OSError, ValueError):
        return None
