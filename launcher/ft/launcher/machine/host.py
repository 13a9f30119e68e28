"""The machine that a segment of a run has, and whoever rents it out: all that differs between vendors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from ft.launcher.machine.words import Words
from ft.launcher.medium import Medium

MACHINE: Final = "machine.json"
"""In the folder of an attempt: which machine it got, and the `call` that it is of."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a segment is given; plain JSON, no secret."""

    run: str
    plan_sha256: str
    timeout_s: int | None
    """Of a segment; None without a limit."""
    gpus: tuple[str, ...]
    """What was asked for, the first choice first; none for a CPU."""
    nodes: int
    resumed_after: int
    """The restart policy begins after this attempt."""
    segment: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "gpus": tuple(values["gpus"])})


class Host(Protocol):
    """One per segment."""

    call: str
    """Who this segment is, among all that may claim it. All machines of it have the same."""
    words: Words
    medium: Medium
    root: Path
    """Where the run lies on this machine."""
    grace_s: float
    """How long an attempt may take to save once it is known that the machine goes."""
    exports_elsewhere: bool
    """The result is made of the last checkpoint by a segment of its own, on a machine that costs less."""

    def reload(self) -> None:
        """See on the medium what other machines have written."""

    def note_begun(self, rank: int) -> None:
        """The segment has begun on this machine, `rank` among its machines; its folder is there."""

    def facts(self) -> dict[str, object]:
        """Which machine this is, for people: region, container, …"""

    def is_going(self) -> bool:
        """Whether the machine is taken back in a moment. One whose vendor raises in place of that says no."""

    def begin_next(self, segment: int, *, exports: bool = False) -> str:
        """See that the next segment begins; what it is called, empty where nobody knows yet.

        `exports`: all that is left of the run is its export. Only asked for where `exports_elsewhere`.
        """
