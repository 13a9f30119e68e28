"""Ranks that stand still: no processor time, nothing read or written, for a long time. Imports no torch.

A collective has a timeout, so a rank that does not come to one is found by its peers. Nobody waits with a timeout for
a rank that loads, prepares data or saves: that takes as long as it is big. What it does not do is nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 1.0

ASLEEP_S = 30.0
"""Who looks this much later than it wanted to has itself been stopped: nothing can be said about that time."""

BUSY_SHARE = 0.01
BUSY_S = 0.3
BUSY_BYTES = 64 << 10
BUSY_FAULTS = 64
"""Less than all of these is what threads that only look at a clock use."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used since they began."""

    cpu_s: float = 0.0
    num_bytes: int = 0
    """Read and written, files and sockets alike."""
    faults: int = 0
    """Pages that had to be fetched: how mapped weights are read."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_s + other.cpu_s,
            self.num_bytes + other.num_bytes,
            self.faults + other.faults,
        )

    def moved_since(self, before: Usage, elapsed_s: float) -> bool:
        """Whether there was work. A process that has ended meanwhile is work, too."""
        return (
            self.cpu_s < before.cpu_s
            or self.cpu_s - before.cpu_s > BUSY_S + BUSY_SHARE * elapsed_s
            or self.num_bytes - before.num_bytes > BUSY_BYTES
            or self.faults - before.faults > BUSY_FAULTS
        )


def usage_of(pids: Iterable[int]) -> Usage | None:
    """Of these processes and all below them; None where the system does not say."""
    total = Usage()
    try:
        for pid in pids:
            for each in _family(pid):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    total += _usage(each)
    except (OSError, ValueError, IndexError):
        return None
    return total


@dataclass(slots=True)
class Stillness:
    """Watches all ranks of an attempt together: as long as one of them works, the others may wait for it."""

    limit_s: float
    clock: Callable[[], float] = time.monotonic
    usage: Callable[[Iterable[int]], Usage | None] = usage_of
    _since: float | None = None
    _looked: float = 0.0
    _before: Usage = Usage()

    def lasts(self, pids: Iterable[int]) -> bool:
        """Whether none of these processes, nor their children, has done anything for `limit_s`. Call it often."""
        now = self.clock()
        if self._since is not None and now - self._looked < LOOK_S:
            return False
        late = self._since is None or now - self._looked > ASLEEP_S
        self._looked = now
        usage = self.usage(pids)
        if usage is None:
            self._since = None
        elif late or self._since is None or usage.moved_since(self._before, now - self._since):
            self._since, self._before = now, usage
        else:
            return now - self._since > self.limit_s
        return False

    def begin_anew(self) -> None:
        """What has lasted so far does not count."""
        self._since = None


def is_stopped(pid: int) -> bool:
    """By a signal or a debugger."""
    try:
        return _stat(pid)[0] in {"T", "t"}
    except (OSError, IndexError):
        return False


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in path.read_text().split():
                yield from _family(int(child))


def _usage(pid: int) -> Usage:
    stat = _stat(pid)
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return Usage(
        (int(stat[11]) + int(stat[12])) / TICKS_PER_S,
        int(io["rchar"]) + int(io["wchar"]),
        int(stat[9]),
    )


def _stat(pid: int) -> list[str]:
    """From the third field on, which is the state: the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
