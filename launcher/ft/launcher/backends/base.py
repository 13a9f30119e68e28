"""Backend: the seam between `ft` and every vendor. A dry-run is a value (decision 4)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ft.recipes.runstore import RunState
from ft.recipes.store import LocalStore

if TYPE_CHECKING:
    from ft.images.spec import ImageSpec
    from ft.recipes.plan import RunPlan


DELIVERED = ".ft-delivered.json"
"""In `output_dir`: which files the last delivery brought."""


class Capability(Flag):
    """What a backend can do; asked as data, never by the backend's name (decision 9)."""

    NONE = 0
    IMAGE = auto()
    """Runs in a container image of ours."""
    MULTI_NODE = auto()
    VOLUMES = auto()
    SPOT = auto()
    DETACH = auto()
    EXEC = auto()
    ARRAYS = auto()


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `ft cloud doctor`."""

    name: str
    ok: bool
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file or folder of the laptop that becomes `inputs/<name>` of the run."""

    source: Path
    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Submission:
    """The exact request and the uploads: what `--dry-run` prints, tests compare and `submit` sends."""

    backend: str
    request: Mapping[str, Any]
    """Plain JSON: what the vendor gets. For `local`, the command line and the folders."""
    plan_json: str
    uploads: tuple[Upload, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "request": dict(self.request),
            "plan": json.loads(self.plan_json),
            "uploads": [
                {"source": str(u.source), "name": u.name, "sha256": u.sha256, "size": u.size}
                for u in self.uploads
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Submission:
        # Imported here: shell completion reads run records, and a plan's classes take longer to make.
        from ft.recipes.plan import RunPlan

        plan = RunPlan.from_json(json.dumps(data["plan"]))
        uploads = tuple(
            Upload(Path(u["source"]), u["name"], u["sha256"], u["size"]) for u in data["uploads"]
        )
        return cls(data["backend"], data["request"], plan.to_json(), uploads)


@dataclass(frozen=True, slots=True)
class Handle:
    """What a vendor needs to find a run again: plain strings, kept in the run record."""

    backend: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log. `time` is None where the source has none."""

    text: str
    attempt: int
    source: str
    """`rank0`, `agent`, `supervisor`."""
    time: datetime | None = None


class Backend(Protocol):
    """A place where runs run. Every method may raise FtError; none raises for a run that is gone."""

    name: str
    capabilities: Capability

    def check(self) -> list[Check]:
        """Credentials, versions, reachability. No side effects."""

    def prepare(
        self,
        plan: RunPlan,
        image: ImageSpec | None,
        *,
        uploads: tuple[Upload, ...],
        store: str | None,
    ) -> Submission:
        """Pure and printable. `store` is the recipe's `cloud.store`. Raises: PlanError if it cannot run here."""

    def submit(self, submission: Submission, *, key: str) -> Handle:
        """Start the run: the only side effect. Idempotent on `key`, the run id.

        Raises: SubmitError if the run was not taken; nothing is left running then.
        """

    def find(self, key: str) -> Handle | None:
        """The run that an earlier `submit` with this key started, although its reply was lost."""

    def status(self, handle: Handle) -> RunState:
        """One snapshot of the machines. A run that is gone is UNKNOWN, not an exception."""

    def explain(self, handle: Handle) -> str:
        """One sentence on why the run is in its state; empty while all is well."""

    def delivered(self, handle: Handle) -> str:
        """Where the finished adapter or model was put; empty until it was."""

    def logs(
        self,
        handle: Handle,
        *,
        follow: bool,
        tail: int | None,
        since: datetime | None,
        rank: int | None,
    ) -> Iterator[LogLine]:
        """Lines of all attempts in order, oldest first. `follow` goes on until the run has ended.

        Not promised: whole lines across a kill, and times where the program printed none.
        """

    def cancel(self, handle: Handle, *, grace_s: float) -> None:
        """Ask the run to save and end, and end it after `grace_s`. Idempotent."""

    def store(self, handle: Handle) -> LocalStore:
        """The run's store as seen from this laptop. Read-only by convention."""
