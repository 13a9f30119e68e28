"""`submission.json` beside a plan: what the laptop that sends a run leaves, so that another one can go on with it."""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Self

from ft.images import bundle
from ft.launcher.backends.base import Submission
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import JsonRecord

DIGITS = 12
"""Of a digest, for people."""


@dataclass(frozen=True, slots=True)
class Left(JsonRecord):
    """A submission but for the plan, and what it was sent with."""

    ft: str
    """Version of the ft that sent it last."""
    source_sha256: str
    """Of the source that the machines got from there."""
    request: dict[str, Any]
    """Names of secrets, never a value."""
    uploads: list[dict[str, Any]]
    resumed_after: int = 0
    backend: str = "modal"
    """Whose request it is. Those of the first stores, all of Modal's, do not say so."""
    cloud: dict[str, Any] = field(default_factory=dict)
    """The recipe's `cloud:` block, for a resume with another backend."""
    number: int = 0
    """How often the run was sent; 0 where the backend counts in another way."""

    @classmethod
    def of(
        cls, submission: Submission, *, source_sha256: str, resumed_after: int, number: int = 0
    ) -> Self:
        told = submission.to_json()
        return cls(
            version("ft-launcher"),
            source_sha256,
            told["request"],
            told["uploads"],
            resumed_after,
            submission.backend,
            told.get("cloud", {}),
            number,
        )

    def submission(self, plan: RunPlan) -> Submission:
        """Raises: ValueError if this was written by something else."""
        told = {"backend": self.backend, "request": self.request, "uploads": self.uploads}
        try:
            return Submission.from_json(
                {**told, "cloud": self.cloud, "plan": json.loads(plan.to_json())}
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"what was sent is not what was expected ({error!r})") from error

    def job(self) -> Mapping[str, Any]:
        """What its machines were given, if it says so."""
        job = self.request.get("job")
        return job if isinstance(job, Mapping) else {}

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


def began_at(run: str) -> float:
    """Unix time, which an id begins with."""
    return float(calendar.timegm(time.strptime(run.rpartition("-")[0], "%Y%m%d-%H%M%S")))
