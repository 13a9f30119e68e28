"""When an attempt must end by itself: before its time is up, and before its money is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ft.recipes.plan import LimitsPlan
from ft.recipes.runstore import Event, Reason, Status
from ft.runtime.stop import Request

MARGIN_S = 15.0
"""For the end of the processes; a step and a save come on top."""
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The two limits of a plan, seen from one attempt."""

    plan: LimitsPlan
    began_at: float
    """Unix time in seconds when this attempt began."""
    billed_before_s: float
    """Seconds of all attempts before."""

    def request(self, now: float, *, save_s: float, step_s: float = 0.0) -> Request | None:
        """The limit that is nearly reached. `save_s` is what the longest save took, `step_s` the longest step.

        Twice that is kept free.

        At most half of the time is kept free, so that a short limit still leaves something to train.
        """
        margin = MARGIN_S + 2 * (save_s + step_s)
        for reason, limit_s, because in self._limits():
            if now >= self.began_at + limit_s - min(margin, limit_s / 2):
                return Request(reason, self.began_at + limit_s, because)
        return None

    def cost(self, now: float) -> float | None:
        """US dollars so far; None without a price."""
        if self.plan.price_per_hour is None:
            return None
        billed_s = self.billed_before_s + now - self.began_at
        return billed_s / SECONDS_PER_HOUR * self.plan.price_per_hour

    def _limits(self) -> Iterable[tuple[Reason, float, str]]:
        """(reason, seconds from the beginning of this attempt, why); the gravest first."""
        if self.plan.max_cost is not None and self.plan.price_per_hour is not None:
            total_s = self.plan.max_cost / self.plan.price_per_hour * SECONDS_PER_HOUR
            left_s = max(0.0, total_s - self.billed_before_s)
            yield (
                Reason.USER,
                left_s,
                f"max_cost {self.plan.max_cost:g} USD is nearly spent; "
                "ft cloud resume with a higher --max-cost goes on",
            )
        if self.plan.timeout_s is not None:
            because = f"its timeout of {self.plan.timeout_s} s is nearly over"
            yield Reason.HAND_OFF, float(self.plan.timeout_s), because


def billed_s(events: Iterable[Event], last: Status | None) -> float:
    """Seconds that the attempts in `events` have run, each from its first event to its last sign of life.

    Events of no attempt (0) are of what looks after the run, on machines that cost little or nothing.
    """
    spans: dict[int, tuple[float, float]] = {}
    for event in (event for event in events if event.attempt):
        first, newest = spans.get(event.attempt, (event.time, event.time))
        spans[event.attempt] = (min(first, event.time), max(newest, event.time))
    if last is not None and last.attempt in spans:
        first, newest = spans[last.attempt]
        spans[last.attempt] = (first, max(newest, last.updated_at))
    return sum(newest - first for first, newest in spans.values())
