"""What the laptop that sends a run leaves beside its plan on the volume, so that another laptop can go on with it."""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Self

from ft.images import bundle
from ft.launcher.backends.base import Submission
from ft.launcher.runs import RUN_ID
from ft.recipes.errors import UsageError
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import JsonRecord

SCHEME = "modal://"
DIGITS = 12
"""Of a digest, for people."""


@dataclass(frozen=True, slots=True)
class Place:
    """Name of a store on a volume: `modal://VOLUME/RUN`."""

    volume: str
    run: str

    @classmethod
    def named(cls, store: str) -> Self:
        """Raises: UsageError."""
        volume, _, run = store.removeprefix(SCHEME).partition("/")
        if not volume or not RUN_ID.fullmatch(run):
            raise UsageError(
                f"{store} names no run: expected {SCHEME}VOLUME/RUN, the run by its id (20261123-174512-3f9a)",
                hint=f"modal volume ls {volume or 'ft-store'}",
            )
        return cls(volume, run)

    @property
    def began_at(self) -> float:
        """Unix time, which an id begins with."""
        return float(calendar.timegm(time.strptime(self.run.rpartition("-")[0], "%Y%m%d-%H%M%S")))


@dataclass(frozen=True, slots=True)
class Left(JsonRecord):
    """`submission.json` of a run's folder: its submission but for the plan, and what it was sent with."""

    ft: str
    """Version of the ft that sent it last."""
    source_sha256: str
    """Of the source that the containers got from there."""
    request: dict[str, Any]
    """Names of secrets, never a value."""
    uploads: list[dict[str, Any]]
    resumed_after: int = 0

    @classmethod
    def of(cls, submission: Submission, *, source_sha256: str, resumed_after: int) -> Self:
        told = submission.to_json()
        here = version("ft-launcher")
        return cls(here, source_sha256, told["request"], told["uploads"], resumed_after)

    def submission(self, backend: str, plan: RunPlan) -> Submission:
        """Raises: ValueError if this was written by something else."""
        told = {"backend": backend, "request": self.request, "uploads": self.uploads}
        try:
            return Submission.from_json({**told, "plan": json.loads(plan.to_json())})
        except (KeyError, TypeError) as error:
            raise ValueError(f"what was sent is not what was expected ({error!r})") from error

    def says_of(self, place: Place, plan: RunPlan) -> bool:
        """Whether it was written for this plan in this place, and not copied from another one."""
        job = self.request.get("job")
        if not isinstance(job, Mapping):
            return False
        return (job.get("volume"), job.get("plan_sha256")) == (place.volume, plan.sha256)

    def difference(self) -> str:
        """One sentence, where the ft of this laptop is another one; else empty."""
        here = bundle.source_digest()
        if here == self.source_sha256:
            return ""
        return (
            f"it was sent by ft {self.ft} (source {self.source_sha256[:DIGITS]}), and here is ft "
            f"{version('ft-launcher')} (source {here[:DIGITS]}): a resume from here goes on with the source that "
            "is here, in the image that it began with"
        )
