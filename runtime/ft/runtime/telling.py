"""What the agent tells the world: status.json and its own events. Imports no torch.

Best effort: a disk that is full for a minute costs some lines, never the training that goes on beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ft.recipes.runstore import Event, RankExit, Status
from ft.recipes.store import LocalStore

log = logging.getLogger("ft.agent")

HEARTBEAT_S = 1.0
INNER_PHASES = frozenset({"save", "eval"})
"""They lie within `train`, which goes on after them."""


class Telling:
    """The status of one attempt, and what follows from its events."""

    def __init__(self, store: LocalStore, attempt: int) -> None:
        self.store, self.attempt = store, attempt
        last = store.get_status()
        saved = last.checkpoint_step if last is not None else None
        # Until it says more, the run stands where its newest checkpoint is.
        self.status = Status(
            attempt,
            "start",
            time.time(),
            step=saved or 0,
            total_steps=last.total_steps if last is not None else None,
            checkpoint_step=saved,
        )
        self.before, self._offset = store.events()
        """Events of the attempts before."""
        saves = [float(e.data["seconds"]) for e in self.before if e.kind == "checkpoint"]
        self.save_s = max(saves, default=0.0)
        """The longest save of the run."""
        self.step_s = 0.0
        """The longest step of this attempt that was logged."""
        self._written_at = 0.0
        self._failing = False

    def emit(self, kind: str, **data: object) -> None:
        event = Event(kind, time.time(), self.attempt, data)
        self._try(lambda: self.store.append_event(event))

    def follow(self) -> None:
        """Take in what the ranks have said since."""
        events, self._offset = self.store.events(offset=self._offset)
        for event in events:
            if event.attempt != self.attempt:
                continue
            self.status = advance(self.status, event)
            if event.kind == "checkpoint":
                self.save_s = max(self.save_s, float(event.data["seconds"]))
            elif event.kind == "step":
                self.step_s = max(self.step_s, float(event.data["step_time_s"]))

    def beat(self, cost: float | None, *, force: bool = False) -> None:
        """Write the status, at most once a second. `cost` in US dollars so far."""
        now = time.time()
        if force or now - self._written_at >= HEARTBEAT_S:
            self._written_at = now
            self.status = replace(self.status, updated_at=now, cost=cost)
            self._try(lambda: self.store.put_status(self.status))

    def end(self, end: RankExit, cost: float | None) -> None:
        """The last words of the attempt."""
        self.follow()
        self.status = replace(
            self.status,
            phase="end",
            step=max(end.step, self.status.step),
            exit_code=end.exit_code,
            reason=end.reason,
            message=end.message,
            rank=end.rank,
        )
        self.beat(cost, force=True)
        self.emit(
            "attempt", mark="end", exit_code=end.exit_code, reason=end.reason, message=end.message
        )

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._failing:
                log.warning("the store cannot be written: %s; tried again", error)
            self._failing = True
        else:
            self._failing = False


def advance(status: Status, event: Event) -> Status:
    """Status after `event`. Pure."""
    data = event.data
    if event.kind == "phase" and data.get("mark") == "begin":
        return replace(status, phase=data["name"])
    if event.kind == "phase" and data.get("name") in INNER_PHASES:
        return replace(status, phase="train")
    if event.kind == "progress":
        step, total = data["step"], data["total_steps"]
        return replace(status, step=step, total_steps=total, last_step_at=event.time)
    if event.kind == "step":
        names = ("step", "total_steps", "epoch", "loss", "tokens_per_s", "trained_tokens")
        values: dict[str, Any] = {name: data.get(name) for name in names}
        return replace(status, last_step_at=event.time, **values)
    if event.kind == "resume":
        return replace(status, step=data["step"], checkpoint_step=data["step"])
    if event.kind == "checkpoint":
        return replace(status, checkpoint_step=data["step"])
    return status
