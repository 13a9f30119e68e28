"""Store: where a run lives. Trainer and agent know only this protocol (decision 6)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ft.recipes.runstore import (
    ADJUST,
    ATTEMPT_END,
    ATTEMPTS,
    CHECKPOINTS,
    CONTROL,
    EVENTS,
    FINAL,
    MANIFEST,
    PLAN,
    STATUS,
    Adjust,
    AttemptEnd,
    Control,
    Event,
    Manifest,
    Status,
    entries_of,
    fsync_folder,
    newest_valid,
    step_folders,
    step_name,
    write_atomic,
)


class Store(Protocol):
    """One run. Methods raise OSError when the medium fails and return None for what is not there."""

    @property
    def uri(self) -> str: ...

    def staging(self, name: str) -> Path:
        """An empty local folder to write into before `publish`; what an earlier process left there is gone."""

    def publish(
        self,
        staged: Path,
        name: str,
        *,
        step: int,
        attempt: int,
        plan_sha256: str,
        meta: Mapping[str, Any],
    ) -> Manifest:
        """Make `staged` visible as `name` ("step-00000120" or "final"), manifest last. One writer at a time."""

    def newest_checkpoint(self, *, plan_sha256: str) -> tuple[Path | None, list[str]]:
        """A local folder with the newest whole checkpoint, and why newer ones were passed over."""

    def prune(self, *, keep: int, valid: str | None = None) -> list[str]:
        """Drop old checkpoints but the newest `keep`; the newest valid one always stays. Returns the names.

        `valid` is a checkpoint that is known to be whole, so that no byte has to be read again.
        """

    def final(self) -> Path | None: ...
    def put_status(self, status: Status) -> None: ...
    def get_status(self) -> Status | None: ...
    def put_control(self, control: Control) -> None: ...
    def get_control(self) -> Control | None: ...
    def append_event(self, event: Event) -> None: ...

    def events(self, *, offset: int = 0) -> tuple[list[Event], int]:
        """Events from byte `offset` on, and the offset after the last whole line."""


class LocalStore:
    """A folder on a POSIX file system. Publishes by temporary name, fsync, manifest last, rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        return str(self.root)

    @property
    def plan_path(self) -> Path:
        return self.root / PLAN

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS

    def attempt_folder(self, attempt: int) -> Path:
        return self.root / ATTEMPTS / str(attempt)

    def attempts(self) -> list[int]:
        """Numbers of the attempts so far, in order."""
        folder = self.root / ATTEMPTS
        return (
            sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
            if folder.is_dir()
            else []
        )

    def staged(self, name: str) -> Path:
        """Where `staging(name)` is."""
        return self.root / f".staging-{name}"

    def staging(self, name: str) -> Path:
        folder = self.staged(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(
        self,
        staged: Path,
        name: str,
        *,
        step: int,
        attempt: int,
        plan_sha256: str,
        meta: Mapping[str, Any],
    ) -> Manifest:
        target = self.root / FINAL if name == FINAL else self.checkpoints / name
        target.parent.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(name, step, attempt, plan_sha256, entries_of(staged), time.time(), meta)
        for entry in manifest.files:
            _fsync_file(staged / entry.path)
        write_atomic(staged / MANIFEST, manifest.to_json())
        # A run that was resumed from before this step writes it again; the older one goes as a whole.
        aside = _put_by(target) if target.exists() else None
        staged.rename(target)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        fsync_folder(target.parent)
        return manifest

    def newest_checkpoint(self, *, plan_sha256: str) -> tuple[Path | None, list[str]]:
        return newest_valid(self.checkpoints, plan_sha256=plan_sha256)

    def prune(self, *, keep: int, valid: str | None = None) -> list[str]:
        folders = step_folders(self.checkpoints)
        if len(folders) <= keep:
            return []
        newest = self.checkpoints / valid if valid else newest_valid(self.checkpoints)[0]
        dropped = [folder for folder in folders[: max(0, len(folders) - keep)] if folder != newest]
        for folder in dropped:
            # Half deleted it must not look like a checkpoint; what a kill leaves, the next attempt sweeps.
            shutil.rmtree(_put_by(folder))
        return [folder.name for folder in dropped]

    def final(self) -> Path | None:
        folder = self.root / FINAL
        return folder if (folder / MANIFEST).is_file() else None

    def put_status(self, status: Status) -> None:
        write_atomic(self.root / STATUS, status.to_json())

    def get_status(self) -> Status | None:
        text = _read(self.root / STATUS)
        return Status.from_json(text) if text else None

    def put_control(self, control: Control) -> None:
        write_atomic(self.root / CONTROL, control.to_json())

    def clear_control(self) -> None:
        """What was asked of an earlier attempt must not end the next one."""
        (self.root / CONTROL).unlink(missing_ok=True)

    def put_adjust(self, adjust: Adjust) -> None:
        write_atomic(self.root / ADJUST, adjust.to_json())

    def get_adjust(self) -> Adjust:
        """What earlier attempts found out; nothing, if they found nothing."""
        text = _read(self.root / ADJUST)
        if text is None:
            return Adjust()
        found = Adjust.from_json(text)
        return replace(found, left_out=tuple(found.left_out), rollbacks=tuple(found.rollbacks))

    def set_aside(self, checkpoint: Path) -> Path:
        """Rename a broken checkpoint, so that nobody looks at it again and nothing of it is lost."""
        name = checkpoint.name.replace("step-", "broken-", 1)
        target, count = checkpoint.with_name(name), 1
        while target.exists():
            count += 1
            target = checkpoint.with_name(f"{name}-{count}")
        checkpoint.rename(target)
        return target

    def put_attempt_end(self, attempt: int, end: AttemptEnd) -> None:
        write_atomic(self.attempt_folder(attempt) / ATTEMPT_END, end.to_json())

    def attempt_ends(self, *, after: int = 0) -> list[AttemptEnd]:
        """Of the attempts with a number above `after`, in order; one that nobody saw end is left out."""
        texts = [
            _read(self.attempt_folder(attempt) / ATTEMPT_END)
            for attempt in self.attempts()
            if attempt > after
        ]
        return [AttemptEnd.from_json(text) for text in texts if text]

    def get_control(self) -> Control | None:
        text = _read(self.root / CONTROL)
        return Control.from_json(text) if text else None

    def append_event(self, event: Event) -> None:
        # One write of one line with O_APPEND: agent and worker share the file without a lock.
        line = (event.to_json() + "\n").encode()
        descriptor = os.open(self.root / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # A full disk has cut a line short: it must not swallow this one.
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root / EVENTS))
        finally:
            os.close(descriptor)

    def events(self, *, offset: int = 0) -> tuple[list[Event], int]:
        data = _read_from(self.root / EVENTS, offset)
        whole = data[: data.rfind(b"\n") + 1]
        return list(_parse_events(whole)), offset + len(whole)


def _parse_events(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            yield Event.from_json(line)
        except ValueError:
            continue  # A line cut short by a full disk must not hide the ones after it.


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read()
    except FileNotFoundError:
        return b""


def _put_by(folder: Path) -> Path:
    """Give it a name that nobody looks for, in one step; whatever had that name is gone."""
    aside = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def _fsync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


__all__ = ["LocalStore", "Store", "step_name"]
