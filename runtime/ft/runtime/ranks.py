"""The ranks of an attempt as their agent sees them, and which of them ended it. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ft.recipes.runstore import ExitCode, RankExit, Reason
from ft.runtime.marks import Mark, read_mark
from ft.runtime.node import is_alive
from ft.runtime.stillness import Stillness, is_stopped
from ft.runtime.stop import EXIT_CODES, pid_path

SCRATCH = "scratch-rank"
"""In the attempt's folder, before the rank: files that go with the attempt."""

KILLED = 128 + signal.SIGKILL

FOLLOW_UP_S = 5.0
"""What fails this soon after another rank may be its consequence: peers notice a lost connection within
milliseconds, torchrun kills a rank that is stuck after 30 s."""

LOST_PEER = re.compile(
    r"gloo/|connection (closed|reset) by peer|broken pipe|DistBackendError|DistNetworkError|DistStoreError|NCCL",
    re.IGNORECASE,
)
"""How a rank speaks whose peer is gone. It is the cause only if nobody has a better one."""

LOG_TAIL_BYTES = 64 << 10

WATCHDOG = "Watchdog caught collective operation timeout"
"""In the log of a rank that NCCL has aborted because it waited too long: it has no other last words."""

TIMED_OUT = re.compile(r"timed out", re.IGNORECASE)
"""How it speaks if the peer is still there and did not come."""

LINGER_S = 10.0
"""What a rank has to end by itself once another one has failed: it may be stuck where no signal reaches it."""


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How one rank ended: in its own words, or as its agent saw it."""

    rank: int
    end: RankExit | None
    """None: it died without a word."""
    gone_at: float | None = None
    """Unix time when the agent missed its process; None if it never had one that hears signals."""
    mark: Mark | None = None
    """Where it was last."""
    waited: bool = False
    """NCCL aborted it because it had waited too long for others."""

    @property
    def at(self) -> float:
        """Unix time of the end. A rank that never came up says nothing about when."""
        if self.end is not None:
            return self.end.at
        return math.inf if self.gone_at is None else self.gone_at


@dataclass(slots=True)
class Ranks:
    """The worker's processes on this node."""

    folder: Path
    """Of the attempt."""
    ranks: range
    gone_at: dict[int, float] = field(default_factory=dict)
    stillness: Stillness | None = None
    """None: nobody asks."""
    has_others: bool = False
    """Ranks of other nodes may be what these wait for."""

    def look(self) -> None:
        """Note who is gone; call it often, the times are as exact as that."""
        for rank in self.ranks:
            if rank not in self.gone_at:
                pid = self._pid(rank)
                if pid is not None and not is_alive(pid):
                    self.gone_at[rank] = time.time()

    def signal(self, signum: signal.Signals) -> None:
        """To every rank that hears signals by now."""
        for rank in self.ranks:
            pid = self._pid(rank)
            if pid is not None and rank not in self.gone_at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)

    def lingers(self) -> bool:
        """True once a rank has failed and others are still there long after."""
        if not self.gone_at or len(self.gone_at) == len(self.ranks):
            return False
        if time.time() - min(self.gone_at.values()) < LINGER_S:
            return False
        ends = [read_exit(self.folder, rank) for rank in self.gone_at]
        return any(end is None or end.exit_code != ExitCode.DONE for end in ends)

    def stand_still(self) -> str | None:
        """What to say once no rank has done anything for too long; None while one of them works."""
        pids = {rank: pid for rank in self.ranks if (pid := self._pid(rank)) is not None}
        if self.stillness is None or self.gone_at or len(pids) < len(self.ranks):
            return None
        marks = {rank: read_mark(self.folder, rank) for rank in self.ranks}
        busy = [rank for rank, mark in marks.items() if mark is None or not mark.waits]
        if self.has_others and not busy:
            self.stillness.begin_anew()
            return None
        if not self.stillness.lasts(pids.values()):
            return None
        stopped = [rank for rank, pid in pids.items() if is_stopped(pid)]
        suspects = stopped or busy or list(self.ranks)
        rank = min(suspects, key=lambda rank: mark.count if (mark := marks[rank]) else 0)
        return _standing(rank, marks[rank], len(self.ranks), stopped=bool(stopped))

    def ends(self) -> list[RankEnd]:
        """Call it once torchrun has ended: then no rank lives on, whatever `look` has seen so far."""
        for rank in self.ranks:
            if rank not in self.gone_at and self._pid(rank) is not None:
                self.gone_at[rank] = time.time()
        return [
            RankEnd(
                rank,
                read_exit(self.folder, rank),
                self.gone_at.get(rank),
                read_mark(self.folder, rank),
                WATCHDOG in end_of_log(self.folder, rank),
            )
            for rank in self.ranks
        ]

    def _pid(self, rank: int) -> int | None:
        try:
            return int(pid_path(self.folder, rank).read_text())
        except (OSError, ValueError):
            return None


def end_of_log(folder: Path, rank: int) -> str:
    """The last 64 KiB of what a rank printed; empty without a log."""
    path = folder / f"rank{rank}.log"
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def exit_path(folder: Path, rank: int) -> Path:
    """In the attempt's folder: the last words of a rank."""
    return folder / f"rank{rank}.exit.json"


def read_exit(folder: Path, rank: int) -> RankExit | None:
    """None if the rank has not said how it ended."""
    try:
        return RankExit.from_json(exit_path(folder, rank).read_bytes())
    except (OSError, ValueError):
        return None


def explain(ends: Sequence[RankEnd], *, step: int, has_others: bool = False) -> RankExit:
    """The end of the attempt, in the words of the rank that ended it: its peers fail in a collective. Pure.

    `step` is the last finished one that the agent knows of, for a rank that died without a word. `has_others`: there
    are ranks on other nodes, of which nothing is known here; see `is_lost_elsewhere`.
    A deterministic failure or a wrong configuration is always the cause. Else it is the first failure, unless that
    one complains about a lost peer and a rank with a cause of its own ended at nearly the same time.
    """
    failures = sorted(
        (end for end in ends if end.end is None or end.end.exit_code != ExitCode.DONE),
        key=lambda end: end.at,
    )
    if not failures:
        return RankExit(KILLED, Reason.KILLED, "torchrun died", step)
    unseen = [failure for failure in failures if failure.at == math.inf]
    if len(unseen) == len(ends):
        message = "the ranks ended before they could say anything: see agent.log of the attempt"
        return RankExit(ExitCode.UNCLASSIFIED, Reason.UNCLASSIFIED, message, step)
    if unseen and all(failure.end is None for failure in failures):
        # Who hears signals waited for them until torchrun killed it.
        return _told(unseen[0], len(ends), step)
    together = [f for f in failures if f.at <= failures[0].at + FOLLOW_UP_S]
    named = _named(failures, together)
    if named is not None:
        return _told(named, len(ends), step)
    own = [failure for failure in together if not _lost_a_peer(failure)]
    late = _late(failures[0], ends, step, has_others=has_others) if not own else None
    if late is not None:
        return late
    if not own:
        # Whom the others lost may never have come up far enough to be watched.
        own = unseen
    return _told((own or together)[0], len(ends), step)


def _named(failures: Sequence[RankEnd], together: Sequence[RankEnd]) -> RankEnd | None:
    """The failure that is the cause whatever happened besides; None if there is no such thing."""
    for failure in failures:
        if _code(failure) in {ExitCode.DETERMINISTIC, ExitCode.CONFIG}:
            return failure
    for failure in failures:
        if failure.end is not None and failure.end.reason == Reason.ROLLBACK:
            return failure
    return next((f for f in together if _code(f) == ExitCode.BAD_NODE), None)


def is_lost_elsewhere(ends: Sequence[RankEnd]) -> bool:
    """Whether all that happened here is that the ranks lost one, or waited for one in vain, that is not here. Pure."""
    failures = [end for end in ends if end.end is None or end.end.exit_code != ExitCode.DONE]
    first = min((failure.at for failure in failures), default=math.inf)
    together = [failure for failure in failures if failure.at <= first + FOLLOW_UP_S]
    return (
        first < math.inf
        and all(_lost_a_peer(failure) for failure in together)
        and not any(_came_too_late(failure, together[0]) for failure in failures)
    )


def _late(
    first: RankEnd, ends: Sequence[RankEnd], step: int, *, has_others: bool
) -> RankExit | None:
    """The rank for which another one waited in vain, and what it was at; None if `first` did not wait for one.

    Who is missing did not time out itself: it is stuck, and says nothing, or comes too late, to closed connections.
    Were there none, the one that has come least far, unless it is on another node.
    """
    if not _timed_out(first):
        return None
    if has_others:
        missing = [end for end in ends if _came_too_late(end, first)]
    else:
        missing = [end for end in ends if not _timed_out(end)] or list(ends)
    behind = min(missing, key=_count, default=first)
    if behind is first:
        return None
    what = _was_at(behind.mark, first.at)
    message = f"rank {behind.rank} did not arrive: {what}, while rank {first.rank} waited for it"
    return RankExit(
        ExitCode.UNCLASSIFIED,
        Reason.UNCLASSIFIED,
        message,
        first.end.step if first.end else step,
        first.at,
        behind.rank,
    )


def _standing(rank: int, mark: Mark | None, num_ranks: int, *, stopped: bool) -> str:
    what = _was_at(mark, time.time())
    how = "was stopped by a signal" if stopped else "used neither processor nor disk"
    if num_ranks == 1:
        return f"rank {rank} stood still: {what}, and {how}"
    return f"rank {rank} did not arrive: {what}, and {how}, while the others waited for it"


def _was_at(mark: Mark | None, now: float) -> str:
    if mark is None:
        return "it never began to train"
    where = f", step {mark.step}" if mark.step else ""
    return f"for {max(0.0, now - mark.at):.0f} s it was {mark.place.doing}{where}"


def _timed_out(end: RankEnd) -> bool:
    return end.waited or (end.end is not None and TIMED_OUT.search(end.end.message) is not None)


def _told(failure: RankEnd, num_ranks: int, step: int) -> RankExit:
    """The failure, with the rank's name where there are several."""
    end = failure.end
    if end is None:
        message = (
            f"rank {failure.rank} died without a word at step {step}: killed, or out of memory"
        )
        gone_at = failure.gone_at or 0.0
        return RankExit(KILLED, Reason.KILLED, message, step, gone_at, failure.rank)
    if num_ranks == 1 or end.reason in EXIT_CODES or end.reason == Reason.ROLLBACK:
        return replace(end, rank=failure.rank)
    return replace(end, message=f"rank {failure.rank}: {end.message}", rank=failure.rank)


def _came_too_late(end: RankEnd, first: RankEnd) -> bool:
    """Whether `first` timed out waiting for it: it said nothing, or spoke of closed connections behind it."""
    if not _timed_out(first) or _timed_out(end):
        return False
    return end.end is None or _count(end) < _count(first)


def _count(end: RankEnd) -> int:
    return end.mark.count if end.mark else 0


def _code(failure: RankEnd) -> int | None:
    return failure.end.exit_code if failure.end is not None else None


def _lost_a_peer(failure: RankEnd) -> bool:
    end = failure.end
    if end is None:
        return failure.waited
    if end.exit_code != ExitCode.UNCLASSIFIED:
        return False
    return LOST_PEER.search(end.message) is not None
