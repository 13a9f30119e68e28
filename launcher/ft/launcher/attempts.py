"""Attempts of a run, put together from its events and from what its supervisor noted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from ft.recipes.runstore import ATTEMPT_END, AttemptEnd, Event, Reason
from ft.recipes.store import LocalStore

KILLED: Final = 128 + 9


@dataclass(slots=True)
class Attempt:
    """One attempt. What nobody knows is None."""

    number: int
    began_at: float | None = None
    """Unix time in seconds."""
    ended_at: float | None = None
    first_step: int | None = None
    """The first step that it did, or was about to do."""
    last_step: int | None = None
    """The last one that it finished."""
    checkpoint_step: int | None = None
    """The newest checkpoint that it wrote or began from."""
    exit_code: int | None = None
    """None while it runs, and if nobody saw it end."""
    reason: str | None = None
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def apply(self, event: Event) -> None:
        """Take in one event of this attempt; one without its step, of another version of ft, says nothing."""
        data, step = event.data, event.data.get("step")
        match event.kind:
            case "attempt" if data.get("mark") == "end":
                self.ended_at = event.time
                self.exit_code, self.reason = data.get("exit_code"), data.get("reason")
                self.message = data.get("message")
            case "attempt":
                self.began_at = event.time
            case _ if not isinstance(step, int):
                return
            case "resume":
                self.checkpoint_step, self.first_step = step, step + 1
            case "step" | "progress":
                self.last_step, self.first_step = step, self.first_step or 1
            case "checkpoint":
                self.checkpoint_step = step


def attempts_of(store: LocalStore) -> list[Attempt]:
    """In order. Raises: OSError, ValueError if the store cannot be read."""
    found = {number: Attempt(number) for number in store.attempts()}
    events: Iterable[Event] = store.events()[0]
    for event in events:
        if event.attempt:
            found.setdefault(event.attempt, Attempt(event.attempt)).apply(event)
    for attempt in found.values():
        end = end_of(store, attempt.number)
        if end is not None:
            attempt.exit_code = end.exit_code
            attempt.reason = end.reason or attempt.reason
            attempt.last_step = max(attempt.last_step or 0, end.step) or None
    return [found[number] for number in sorted(found)]


def end_of(store: LocalStore, attempt: int) -> AttemptEnd | None:
    """What a supervisor noted; None if none saw it end. Raises: ValueError."""
    try:
        text = (store.attempt_folder(attempt) / ATTEMPT_END).read_bytes()
    except FileNotFoundError:
        return None
    return AttemptEnd.from_json(text)


def note_missing_ends(store: LocalStore, *, after: int, checkpoint_step: int) -> list[int]:
    """Write an end for each attempt above `after` whose supervisor died before it could; returns their numbers.

    It is the one that the attempt itself told, else death by a signal. Nobody may be writing the store.
    """
    noted = []
    for attempt in attempts_of(store):
        if attempt.number > after and end_of(store, attempt.number) is None:
            told = attempt.exit_code is not None
            end = AttemptEnd(
                exit_code=KILLED if attempt.exit_code is None else attempt.exit_code,
                step=attempt.last_step or attempt.checkpoint_step or 0,
                checkpoint_step=checkpoint_step,
                reason=(attempt.reason or "") if told else Reason.KILLED,
            )
            store.attempt_folder(attempt.number).mkdir(parents=True, exist_ok=True)
            store.put_attempt_end(attempt.number, end)
            noted.append(attempt.number)
    return noted
