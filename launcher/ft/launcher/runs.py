"""Run records on this laptop: `$XDG_STATE_HOME/ft/runs/<id>/`. Atomic writes, never a secret value.

```
runs/<id>/record.json        RunRecord
          submission.json    what was, or is to be, submitted
          submit.lock        held (flock) by the CLI that is submitting
```
A backend may keep more beside them. A record says SUBMITTING before anything starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ft.launcher.backends.base import Handle, Submission
from ft.recipes.errors import NotFoundError, UsageError
from ft.recipes.paths import expand
from ft.recipes.runstore import JsonRecord, RunState, write_atomic

RECORD = "record.json"
SUBMISSION = "submission.json"
SUBMIT_LOCK = "submit.lock"
RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class RunRecord(JsonRecord):
    """What this laptop knows about a run. Parent, group and trial are for sweeps; empty for a single run."""

    id: str
    name: str
    """The user's `--name`, else the id. The same name attaches, it never starts a second run."""
    backend: str
    state: str
    """SUBMITTING until the backend has taken the run; then the last state that was seen."""
    created_at: float
    """Unix time in seconds."""
    recipe: str
    plan_sha256: str
    output_dir: str
    store: str
    handle: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    cloud_file: str = ""
    """Axolotl's cloud file, as it was named after `--cloud`."""
    message: str = ""
    """Why the run was never started; empty otherwise."""
    resumed_after: int = 0
    """The restart policy begins after this attempt: what failed before it was mended by somebody."""
    adopted: bool = False
    """Another machine made its store, which is never deleted from here."""
    fetched_to: str = ""
    """Folder that `ft cloud fetch` has put the result into."""
    parent: str | None = None
    group: str | None = None
    trial: int | None = None

    def as_handle(self) -> Handle:
        return Handle(self.backend, self.handle)

    @property
    def never_started(self) -> bool:
        """No backend has taken it, and none will unless somebody asks again."""
        return not self.handle and RunState(self.state).ended

    @property
    def submitting(self) -> bool:
        return self.state == RunState.SUBMITTING


def state_home() -> Path:
    """`$XDG_STATE_HOME/ft`, by default `~/.local/state/ft`."""
    return expand(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "ft"


def data_home() -> Path:
    """`$XDG_DATA_HOME/ft`, by default `~/.local/share/ft`."""
    return expand(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "ft"


def new_id() -> str:
    """Sorts by time, unique without a coordinator: `20261123-174512-3f9a`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


class Runs:
    """All records of this laptop."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or state_home() / "runs"

    def folder(self, run_id: str) -> Path:
        return self.root / run_id

    def all(self) -> list[RunRecord]:
        """Oldest first. A folder without a readable record is passed over: it is being made."""
        folders = sorted(p for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []
        records = [record for folder in folders if (record := self._read(folder)) is not None]
        return sorted(records, key=lambda record: record.created_at)

    def get(self, run_id: str) -> RunRecord | None:
        return self._read(self.folder(run_id))

    def reread(self, record: RunRecord) -> RunRecord:
        """As it is now. Raises: NotFoundError if the run was removed."""
        found = self.get(record.id)
        if found is None:
            raise removed(record.id)
        return found

    def find(self, reference: str) -> RunRecord:
        """By id, name, prefix of an id, or `@last`. Raises: NotFoundError, UsageError if it is ambiguous."""
        records = self.all()
        if reference == "@last":
            if not records:
                raise NotFoundError("there is no run yet", hint="ft cloud run recipe.yml")
            return records[-1]
        exact = [r for r in records if reference in {r.id, r.name}]
        found = exact or [r for r in records if r.id.startswith(reference)]
        if not found:
            raise NotFoundError(
                f"no run {reference!r}", hint="ft cloud ls  lists the runs of this machine"
            )
        if len(found) > 1:
            ids = ", ".join(r.id for r in found[:4])
            raise UsageError(
                f"{reference!r} fits {len(found)} runs: {ids}", hint="give more characters"
            )
        return found[0]

    def named(self, name: str) -> RunRecord | None:
        return next((record for record in self.all() if record.name == name), None)

    def create(self, record: RunRecord, submission: Submission) -> None:
        """Write a new record durably. The submission goes first: a record without one could not be healed."""
        folder = self.folder(record.id)
        folder.mkdir(parents=True, exist_ok=True)
        self.put_submission(record.id, submission)
        write_atomic(folder / RECORD, record.to_json())

    def update(self, record: RunRecord, **changes: Any) -> RunRecord:
        """Change these fields, and no other that somebody else has changed since `record` was read.

        Returns: the record as it is now. Raises: NotFoundError if the run was removed.
        """
        with self._alone():
            new = replace(self.reread(record), **changes)
            write_atomic(self.folder(record.id) / RECORD, new.to_json())
        return new

    def put_submission(self, run_id: str, submission: Submission) -> None:
        write_atomic(self.folder(run_id) / SUBMISSION, json.dumps(submission.to_json(), indent=1))

    def submission(self, run_id: str) -> Submission:
        return Submission.from_json(json.loads((self.folder(run_id) / SUBMISSION).read_text()))

    def remove(self, record: RunRecord) -> None:
        """Delete the record and what the backend keeps beside it."""
        with self._alone():
            shutil.rmtree(self.folder(record.id))

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Held while a name is looked up and its record made: two CLIs must not both find it free."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".names.lock"):
            yield

    @contextmanager
    def held(self, run_id: str) -> Iterator[None]:
        """Held while a run is started, resumed, withdrawn or removed. Raises: NotFoundError if it was removed."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder(run_id) / SUBMIT_LOCK))
            except FileNotFoundError:
                raise removed(run_id) from None
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Held for the moment in which a record changes or goes; outside of its folder, which may go."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".records.lock"):
            yield

    def _read(self, folder: Path) -> RunRecord | None:
        try:
            return RunRecord.from_json((folder / RECORD).read_bytes())
        except (OSError, ValueError):
            return None


def removed(run_id: str) -> NotFoundError:
    """For whoever still has the record of a run that is gone."""
    return NotFoundError(f"run {run_id} was removed in the meantime")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an flock on `path`, waiting for it. The kernel lets go when the process dies."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the flock on `path`."""
    try:
        with path.open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def holder(path: Path) -> int | None:
    """Pid of the process that holds the flock on `path` for writing; None if nobody on this machine does."""
    try:
        inode = str(path.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for words in map(str.split, lines):
        # `1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF`; a number alone is that of any file system.
        if words[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and words[5].split(":")[-1] == inode:
            pid = int(words[4])
            if _has_open(pid, path):
                return pid
    return None


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(link.samefile(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
