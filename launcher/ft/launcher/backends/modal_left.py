"""Name of a store on a volume of Modal's, and whether what was left there is of that place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ft.launcher.backends.left import Left
from ft.launcher.runs import RUN_ID
from ft.recipes.errors import UsageError
from ft.recipes.plan import RunPlan

SCHEME = "modal://"


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

    def has(self, left: Left, plan: RunPlan) -> bool:
        """Whether it was written for this plan in this place, and not copied from another one."""
        job = left.job()
        return (job.get("volume"), job.get("plan_sha256")) == (self.volume, plan.sha256)
