"""What backends have in common whose runs are elsewhere, and are seen here through a copy of what they say.

Beside the record: `store/` (what the run says, fetched again and again), `outcome.json` (an end that only this laptop
saw).
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from ft.launcher.backends.base import Handle, LogLine, LogQuery
from ft.launcher.ends import ENDED_BY, OUTCOME, Outcome, outcome, what_stays
from ft.launcher.logs import LogReader
from ft.launcher.machine.words import CONTROL, ENDING
from ft.launcher.mirror import SUPERVISOR_LOG, Replica, SeenStore
from ft.launcher.runs import Runs
from ft.recipes.errors import FtError
from ft.recipes.runstore import Control, ExitCode, Reason, RunState, write_atomic
from ft.recipes.store import LocalStore

STORE: Final = "store"
LOOK_EVERY_S: Final = 1.0
SILENT_S: Final = 120.0
"""As long as a service may be silent before nobody knows what a run does."""
FRESH_S: Final = 60.0
"""A heartbeat that is younger is of a living machine."""
STALE_S: Final = 90.0
"""An upload whose machine has not said for so long that it goes on does not."""


@dataclass(frozen=True, slots=True)
class Alive:
    """What the vendor says of a run's machines."""

    lives: bool
    """Whether it goes on, or waits for a machine."""
    is_held: bool
    """Whether a machine has it."""
    said: str = ""
    """Why it waits, or where it is, in the vendor's words."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of a run's machines."""

    state: RunState
    alive: Alive
    at: float
    """When that was, by `time.monotonic`."""
    asked_at: float
    """When the vendor was last asked, whether it answered or not."""


class RunCopy(Protocol):
    """The copy of a run, as a laptop reads and writes it. Methods raise FtError."""

    def refresh(self, replica: Replica) -> None: ...
    def write(self, name: str, text: str) -> None: ...
    def say(self, key: str, value: object) -> None: ...
    def word(self, key: str) -> object: ...


class AfarBackend(ABC):
    """See `ft.launcher.backends.base.Backend` for the contract."""

    service: str
    """What the vendor is called, in a sentence."""
    look_every_s: float = LOOK_EVERY_S
    """How often the vendor is asked about a run at most."""

    def __init__(self, runs: Runs | None = None) -> None:
        self.runs = runs or Runs()
        self._looked_at: dict[str, float] = {}
        self._seen: dict[str, Seen] = {}
        self._silent = ""
        """What was said when the vendor was last asked about a run in vain."""

    @abstractmethod
    def _copy(self, handle: Handle) -> RunCopy:
        """Where the run is seen."""

    @abstractmethod
    def _ask(self, handle: Handle) -> Alive:
        """Ask the vendor. A run that broke off without an end gets it here: nobody else saw it. Raises: FtError."""

    @abstractmethod
    def _terminate(self, handle: Handle) -> None:
        """End every machine of the run that there may be. Raises: FtError."""

    # ------------------------------------------------------------------------------------ looks

    def status(self, handle: Handle) -> RunState:
        key = handle.values["run"]
        end = self._end(handle)
        if end is not None:
            return RunState(end.state)
        seen = self._seen.get(key)
        if seen is None or time.monotonic() - seen.asked_at >= self.look_every_s:
            seen = self._seen[key] = self._look(handle, seen)
        return seen.state

    def _look(self, handle: Handle, before: Seen | None) -> Seen:
        """The state as the vendor has it now; where it does not answer, the last one for a while."""
        now = time.monotonic()
        try:
            alive = self._ask(handle)
        except FtError as error:
            self._try_refresh(handle)  # The run may have said itself that it has ended.
            end, self._silent = self._end(handle), error.message
            if end is not None:
                state = RunState(end.state)
                return Seen(state, Alive(lives=False, is_held=False), at=now, asked_at=now)
            if before is not None and now - before.at < SILENT_S:
                return replace(before, asked_at=now)
            return Seen(RunState.UNKNOWN, Alive(lives=False, is_held=True), at=now, asked_at=now)
        self._silent = ""
        self._try_refresh(handle, at_once=not alive.lives)
        end = self._end(handle)
        if end is not None:
            state = RunState(end.state)
        else:
            state = self._living(handle, alive) if alive.lives else RunState.UNKNOWN
        return Seen(state, alive, now, now)

    def _living(self, handle: Handle, alive: Alive) -> RunState:
        store = self._replica(handle)
        attempts, status = store.attempts(), store.get_status()
        if not attempts:
            return RunState.RUNNING if alive.is_held else RunState.QUEUED
        is_running = (
            status is not None and status.attempt == attempts[-1] and status.exit_code is None
        )
        return RunState.RUNNING if is_running and alive.is_held else RunState.RECOVERING

    def _spoke_lately(self, handle: Handle) -> bool:
        """Whether an attempt goes on that the vendor does not know, as far as its words tell. Raises: FtError."""
        self._copy(handle).refresh(Replica(self._mirrored(handle.values["run"])))
        status = self._replica(handle).get_status()
        if status is None or status.exit_code is not None:
            return False
        return time.time() - status.updated_at <= FRESH_S

    def explain(self, handle: Handle) -> str:
        key, end = handle.values["run"], self._end(handle)
        if end is None:
            seen = self._seen.get(key)
            if self._silent or seen is None:
                return self._silent
            if seen.state is RunState.UNKNOWN:
                gone = f"nothing of it lives on {self.service}; `ft cloud resume {key}` goes on"
                return seen.alive.said or gone
            return seen.alive.said
        message = end.message
        for upload in self.runs.submission(key).uploads:
            message = message.replace(f"inputs/{upload.name}", str(upload.source))
        return message

    def reason(self, handle: Handle) -> str:
        end = self._end(handle)
        return end.reason if end is not None else ""

    def elsewhere(self, handle: Handle) -> bool:
        del handle
        return False

    def delivered(self, handle: Handle) -> str:
        """It stays where it is until somebody fetches it."""
        del handle
        return ""

    def logs(self, handle: Handle, query: LogQuery) -> Iterator[LogLine]:
        log = self._mirrored(handle.values["run"]) / SUPERVISOR_LOG
        reader = LogReader(self.store(handle), query, supervisor_log=log)

        def look() -> tuple[bool, bool]:
            state = self.status(handle)
            self.store(handle)
            over = state.ended or state is RunState.UNKNOWN
            return over, over

        yield from reader.lines(look)

    # ------------------------------------------------------------------------------------- ends

    def cancel(self, handle: Handle, *, grace_s: float, reason: Reason) -> None:
        if self._end(handle) is not None:
            return
        by = f"pid {os.getpid()}"
        request = Control("stop", time.time(), by=by, reason=reason, grace_s=grace_s)
        self._copy(handle).say(CONTROL, request.to_json())
        alive = self._ask(handle)
        self._try_refresh(handle, at_once=True)
        if self._end(handle) is not None or alive.is_held:
            return
        # No machine is there to hear it.
        self._terminate(handle)
        what = " while it waited for a machine" if alive.lives else " when nothing of it lived"
        self._end_here(handle, reason, what)

    def kill(self, handle: Handle, *, reason: Reason) -> None:
        self._wait_for_upload(handle)
        if self._end(handle) is not None:
            return
        self._terminate(handle)
        self._end_here(handle, reason, ": it did not answer and was killed")

    def _wait_for_upload(self, handle: Handle) -> None:
        """What the run has saved may still be on its way: its machine says so again and again while it is."""
        last, changed_at = None, time.monotonic()
        while time.monotonic() - changed_at < STALE_S:
            ending, alive = self._copy(handle).word(ENDING), self._ask(handle)
            self._try_refresh(handle, at_once=True)
            if ending is None or not alive.lives or self._end(handle) is not None:
                return
            if ending != last:
                last, changed_at = ending, time.monotonic()
            time.sleep(2 * self.look_every_s)

    def _end_here(self, handle: Handle, reason: Reason, what: str) -> None:
        """Write the end that no machine can write any more, here and where a new segment would look.

        Unless one was written at the last moment.
        """
        self._try_refresh(handle, at_once=True)
        if self._end(handle) is not None:
            return
        stays = what_stays(self._replica(handle), handle.values["run"])
        message = f"{ENDED_BY[reason]}{what}; {stays}"
        end = outcome(RunState.CANCELLED, reason, int(ExitCode.PREEMPTED), message)
        self._copy(handle).write(OUTCOME, end.to_json())
        self._write_end(handle, end)

    def _write_end(self, handle: Handle, end: Outcome) -> None:
        write_atomic(self.runs.folder(handle.values["run"]) / OUTCOME, end.to_json())

    def _end(self, handle: Handle) -> Outcome | None:
        for path in (self.runs.folder(handle.values["run"]), self._mirrored(handle.values["run"])):
            try:
                return Outcome.from_json((path / OUTCOME).read_bytes())
            except FileNotFoundError:
                continue
        return None

    def _forget_end(self, key: str) -> None:
        """The run goes on: what this laptop knows of its end is not so any more."""
        (self.runs.folder(key) / OUTCOME).unlink(missing_ok=True)
        Replica(self._mirrored(key)).forget_end()
        self._seen.pop(key, None)

    # ------------------------------------------------------------------------------------ store

    def store(self, handle: Handle) -> LocalStore:
        """As it was a second ago at most, where the copy can be read; else as it was last seen."""
        if self._end(handle) is None:
            self._try_refresh(handle)
        return self._replica(handle)

    def _replica(self, handle: Handle) -> LocalStore:
        return SeenStore(self._mirrored(handle.values["run"]))

    def _mirrored(self, key: str) -> Path:
        return self.runs.folder(key) / STORE

    def _read(self, key: str, name: str) -> bytes | None:
        """A file beside the record; None if it is not there."""
        try:
            return (self.runs.folder(key) / name).read_bytes()
        except FileNotFoundError:
            return None

    def _try_refresh(self, handle: Handle, *, at_once: bool = False) -> None:
        """Fetch what is new, unless that was done a moment ago. What cannot be had now is had later."""
        key, now = handle.values["run"], time.monotonic()
        if not at_once and now - self._looked_at.get(key, float("-inf")) < LOOK_EVERY_S:
            return
        self._looked_at[key] = now
        try:
            self._copy(handle).refresh(Replica(self._mirrored(handle.values["run"])))
        except FtError as error:
            self._silent = error.message
