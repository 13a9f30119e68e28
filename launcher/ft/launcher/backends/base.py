"""Backend: the seam between `ft` and every vendor. A dry-run is a value (decision 4)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ft.recipes.errors import PlanError
from ft.recipes.runstore import Reason, RunState
from ft.recipes.store import LocalStore

if TYPE_CHECKING:
    from ft.images.spec import ImageSpec
    from ft.launcher.transfer import Source
    from ft.recipes.plan import RunPlan
    from ft.recipes.schema.cloud import CloudBlock


DELIVERED = ".ft-delivered.json"
"""In `output_dir`: which files the last delivery brought."""


class Capability(Flag):
    """What a backend can do; asked as data, never by the backend's name (decision 9)."""

    NONE = 0
    IMAGE = auto()
    """Runs in a container image of ours."""
    PUSHED_IMAGE = auto()
    """Takes it from a registry as `ft image push` left it, and comes in as root."""
    MULTI_NODE = auto()
    VOLUMES = auto()
    SPOT = auto()
    DETACH = auto()
    EXEC = auto()
    """Runs commands beside training: `ft cloud exec`."""
    ARRAYS = auto()
    SIMULATE = auto()
    """Takes `--simulate`: faults on order."""
    COSTS = auto()
    """An hour costs money, so `ft cloud run` asks first."""


def user_of_image(capabilities: Capability) -> Literal["ft", "root"]:
    """Whose containers of an image for such a backend are (`ImageSpec.user`)."""
    return "root" if Capability.PUSHED_IMAGE in capabilities else "ft"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `ft cloud doctor`."""

    name: str
    ok: bool
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of an upload that is put together."""

    path: str
    """In the folder that it becomes a part of; with forward slashes."""
    source: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A file or folder of the laptop that becomes `inputs/<name>` of the run."""

    source: Path
    name: str
    sha256: str
    size: int
    parts: tuple[Part, ...] = ()
    """Of a folder that is put together: its files, wherever they lie. Else all of `source` travels."""

    def to_json(self) -> dict[str, Any]:
        values = {"source": str(self.source), "name": self.name, "sha256": self.sha256}
        parts = [{"path": p.path, "source": str(p.source), "sha256": p.sha256} for p in self.parts]
        return {**values, "size": self.size, **({"parts": parts} if parts else {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Upload:
        parts = tuple(
            Part(p["path"], Path(p["source"]), p["sha256"]) for p in data.get("parts", ())
        )
        return cls(Path(data["source"]), data["name"], data["sha256"], data["size"], parts)


@dataclass(frozen=True, slots=True)
class Submission:
    """The exact request and the uploads: what `--dry-run` prints, tests compare and `submit` sends."""

    backend: str
    request: Mapping[str, Any]
    """Plain JSON: what the vendor gets. For `local`, the command line and the folders."""
    plan_json: str
    uploads: tuple[Upload, ...]
    cloud: Mapping[str, Any] = field(default_factory=dict)
    """The recipe's `cloud:` block as plain JSON, so that another backend can be asked for the same; none if adopted."""

    def base_model(self) -> str | None:
        """The base model as the user knows it, where the plan names it `inputs/…`; else None."""
        from ft.recipes.plan import RunPlan

        name = RunPlan.from_json(self.plan_json).model.base_model
        sources = {f"inputs/{upload.name}": str(upload.source) for upload in self.uploads}
        return sources.get(name)

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "request": dict(self.request),
            "plan": json.loads(self.plan_json),
            "uploads": [upload.to_json() for upload in self.uploads],
            **({"cloud": dict(self.cloud)} if self.cloud else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Submission:
        """Raises: PlanError if its plan is one of another version of ft."""
        # Imported here: shell completion reads run records, and a plan's classes take longer to make.
        from pydantic import ValidationError

        from ft.recipes.plan import RunPlan

        try:
            plan = RunPlan.from_json(json.dumps(data["plan"]))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise PlanError(
                f"the plan of this run was made by another version of ft ({where})",
                hint="start it anew: ft cloud run RECIPE",
            ) from error
        uploads = tuple(Upload.from_json(upload) for upload in data["uploads"])
        cloud = data.get("cloud", {})
        return cls(data["backend"], data["request"], plan.to_json(), uploads, cloud)


def filled(value: Any, places: Mapping[str, str]) -> Any:
    """Plain JSON with what is known by now in its places: `{run}` for the id of the run."""
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(place, text)
        return value
    if isinstance(value, Mapping):
        return {key: filled(item, places) for key, item in value.items()}
    return [filled(item, places) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Handle:
    """What a vendor needs to find a run again: plain strings, kept in the run record."""

    backend: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What a backend makes of a store that another machine began. Nothing was started for it, or written there."""

    submission: Submission
    """What `submit` was given there, or would have been."""
    handle: Handle
    began_at: float
    """Unix time in seconds."""
    resumed_after: int = 0
    """The restart policy begins after this attempt, as it does there."""
    notes: tuple[str, ...] = ()
    """Sentences on what is not here as it was there, and on what a resume would do about it."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log. `time` is None where the source has none."""

    text: str
    attempt: int
    source: str
    """`rank0`, `agent`, `supervisor`."""
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines of a run's log. Whatever is None is no limit."""

    follow: bool = False
    """Go on until the run has ended."""
    tail: int | None = None
    """Only the last lines of those that there are at first."""
    since: datetime | None = None
    attempt: int | None = None
    sources: tuple[str, ...] = ("agent", "rank0")


def cannot_be_resumed(lost: Sequence[str]) -> str:
    """Of a store that lacks these inputs of its plan."""
    return f"{', '.join(lost)} is missing: it can be looked at, but not resumed"


class Backend(Protocol):
    """A place where runs run. Every method may raise FtError; none raises for a run that is gone."""

    name: str
    capabilities: Capability

    def check(self) -> list[Check]:
        """Credentials, versions, reachability. No side effects."""

    def must_be_able_to_send(self) -> None:
        """Raises: DependencyError for what this machine lacks to send a run, as far as it tells without a network."""

    def prepare(
        self,
        plan: RunPlan,
        image: ImageSpec | None,
        *,
        uploads: tuple[Upload, ...],
        cloud: CloudBlock,
        simulate: tuple[str, ...] = (),
    ) -> Submission:
        """Pure and printable. `cloud` is the recipe's block, `simulate` needs Capability.SIMULATE.

        Raises: PlanError if it cannot run here.
        """

    def submit(self, submission: Submission, *, key: str) -> Handle:
        """Start the run: the only side effect. Idempotent on `key`, the run id.

        Raises: SubmitError if the run was not taken; nothing is left running then.
        """

    def resume(self, submission: Submission, *, handle: Handle) -> Handle:
        """Go on with a run that has ended or is gone: what was asked of it and its end are forgotten.

        Raises: SubmitError if it was not taken.
        """

    def adopt(self, store: str, *, key: str) -> Adopted:
        """Read a store that another machine made, by its name. Starts nothing, and writes nothing there.

        `key` is the id that the run gets here: the last part of the name, unless that is no id or is taken here. Of a
        run that is here already, an end is forgotten that another laptop may have gone on from.
        Raises: UsageError if it is no store of a run, or cannot go by `key`; NotFoundError if there is none of that
        name; PlanError if its plan is of another version.
        """

    def release(self, handle: Handle) -> None:
        """Another backend goes on with the run, which has ended here: forget what would find it here again.

        Raises: SubmitError if it has not ended, UnreachableError if nobody can say so.
        """

    def find(self, key: str) -> Handle | None:
        """The run that an earlier `submit` with this key started, although its reply was lost."""

    def abandon(self, key: str) -> None:
        """See that nothing begins of a submission that was cut off, and that nobody will finish."""

    def status(self, handle: Handle) -> RunState:
        """One snapshot of the machines. A run that is gone is UNKNOWN, not an exception."""

    def explain(self, handle: Handle) -> str:
        """One sentence on why the run is in its state; empty while all is well."""

    def reason(self, handle: Handle) -> str:
        """Why the run ended, a word of `Reason`; empty while it has not."""

    def elsewhere(self, handle: Handle) -> bool:
        """Whether another machine looks after the run: it was adopted, and not resumed here."""

    def delivered(self, handle: Handle) -> str:
        """Where the finished adapter or model was put; empty until it was."""

    def logs(self, handle: Handle, query: LogQuery) -> Iterator[LogLine]:
        """Lines of all attempts in order, oldest first. Times count from the last line that has one.

        Not promised: whole lines across a kill, and times where the program printed none.
        """

    def cancel(self, handle: Handle, *, grace_s: float, reason: Reason) -> None:
        """Ask the run to save and to end within `grace_s`, after which it is killed; returns at once.

        `reason` is CANCELLED or USER. Idempotent; the last word counts. A run that nobody looks after ends here.
        """

    def kill(self, handle: Handle, *, reason: Reason) -> None:
        """End a run that did not answer `cancel`. Idempotent."""

    def execute(
        self, handle: Handle, command: Sequence[str], *, node: int, takes_input: bool
    ) -> int:
        """Run a command beside training, on the machine of that node, in the run's folder; needs Capability.EXEC.

        It has the environment of what runs there, secrets among it, and nothing of it is recorded. What it prints goes
        to our standard output and error as it comes; `takes_input`: it reads our standard input, else nothing.
        Returns: its exit code, 128+n after a signal, 127 if there is no such command.
        Raises: NotFoundError if nothing of the run is alive there.
        """

    def discard(self, handle: Handle, *, plan_sha256: str) -> None:
        """Delete the store of a run that has ended. What is gone already is no error.

        Raises: StoreError if what is there is not the store of that plan, or cannot be deleted.
        """

    def store(self, handle: Handle) -> LocalStore:
        """The run's store as seen from this laptop. Read-only by convention.

        Where the store is far away it lacks inputs and weights: of what is published it has the manifests.
        """

    def published(self, handle: Handle, folder: Path) -> Source:
        """The files of a published folder of `store(handle)`. Raises: StoreError if it cannot be read."""
