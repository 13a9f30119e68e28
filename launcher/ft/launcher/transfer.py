"""Files of a published folder -> a folder of the user: continued, verified, and nobody else's file overwritten.

The source is any place that can list its files with size and sha256 and open one at an offset: a folder here,
later a volume or a bucket. A file is `<name>.part` until its bytes on disk have the sha256 of the manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Protocol

from ft.launcher.backends.base import DELIVERED
from ft.recipes.digest import sha256_of_file
from ft.recipes.errors import StoreError, UsageError
from ft.recipes.runstore import MANIFEST, FileEntry, Manifest, fsync_folder, write_atomic

PART: Final = ".part"
CHUNK_BYTES: Final = 4 << 20
TRIES: Final = 2
"""How often a file is read from its beginning before its sha256 is called wrong."""
ADAPTER_CONFIG: Final = "adapter_config.json"
NAMED_AT_MOST: Final = 5
"""Files in one message."""


class Source(Protocol):
    """A published folder that can be read."""

    def files(self) -> tuple[FileEntry, ...]:
        """What belongs to it, without the manifest."""

    def open(self, path: str, offset: int) -> AbstractContextManager[BinaryIO]:
        """A stream of the file's bytes from `offset` on. Raises: OSError."""


class FolderSource:
    """A published folder that can be seen from here."""

    def __init__(self, folder: Path) -> None:
        """Raises: StoreError if it has no readable manifest."""
        self.folder = folder
        try:
            self.manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{folder / MANIFEST} cannot be read: {error}") from error

    def files(self) -> tuple[FileEntry, ...]:
        return self.manifest.files

    @contextlib.contextmanager
    def open(self, path: str, offset: int) -> Iterator[BinaryIO]:
        with (self.folder / path).open("rb") as stream:
            stream.seek(offset)
            yield stream


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy is."""

    path: str
    """The file that is being copied."""
    done: int
    """Bytes of all files that are in place or on their way."""
    total: int
    moved: int
    """Bytes that were read by this copy; the rest lay there already."""
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.moved / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end; None while nothing has moved."""
        return (self.total - self.done) / self.rate if self.rate else None


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did."""

    files: tuple[FileEntry, ...]
    moved: int
    """Bytes that were read from the source."""
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def conflicts(
    entries: tuple[FileEntry, ...], target: Path, known: Mapping[str, frozenset[str]] | None = None
) -> list[str]:
    """Files of the user's own that a copy would overwrite: neither the same bytes, nor in `known` (name -> sha256s)."""
    found = []
    for entry in entries:
        path = target / entry.path
        if not path.exists() or _is(path, entry):
            continue
        if not path.is_file() or sha256_of_file(path) not in (known or {}).get(entry.path, ()):
            found.append(entry.path)
    return found


def copy(source: Source, target: Path, *, tell: Tell | None = None) -> Copied:
    """Copy every file of `source` below `target`; what is whole there already stays, what was begun goes on.

    Raises: StoreError naming the file: it cannot be read or written, does not fit on the disk, or has another
    sha256 than the manifest even when it is read again.
    """
    entries = source.files()
    for entry in entries:
        _must_lie_below(entry.path)
    count = _Count(sum(entry.size for entry in entries), tell)
    try:
        target.mkdir(parents=True, exist_ok=True)
        missing = [entry for entry in entries if not _is(target / entry.path, entry)]
        count.done = count.total - sum(entry.size for entry in missing)
        _must_fit(missing, target)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror or error}") from error
    for entry in missing:
        _copy_file(source, entry, target / entry.path, count)
    return Copied(entries, count.moved, count.seconds)


class _Count:
    """Bytes so far, told now and then."""

    def __init__(self, total: int, tell: Tell | None) -> None:
        self.total, self.tell = total, tell
        self.done = self.moved = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def add(self, path: str, *, done: int, moved: int) -> None:
        self.done += done
        self.moved += moved
        if self.tell is not None:
            self.tell(Progress(path, self.done, self.total, self.moved, self.seconds))


def _copy_file(source: Source, entry: FileEntry, target: Path, count: _Count) -> None:
    part = target.with_name(target.name + PART)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            for _ in range(TRIES):
                _continue(source, entry, part, count)
                if _is(part, entry):
                    part.replace(target)
                    fsync_folder(target.parent)
                    return
                count.add(entry.path, done=-part.stat().st_size, moved=0)
                part.write_bytes(b"")
            part.unlink()
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror or error}") from error
    raise StoreError(f"{entry.path}: its bytes do not have the sha256 of its manifest")


def _continue(source: Source, entry: FileEntry, part: Path, count: _Count) -> None:
    """Append to `part` what it lacks. One that is too long is of another file, and begins again."""
    there = part.stat().st_size
    if there > entry.size:
        part.write_bytes(b"")
        there = 0
    count.add(entry.path, done=there, moved=0)
    with source.open(entry.path, there) as stream, part.open("ab") as to:
        while there < entry.size and (chunk := stream.read(min(CHUNK_BYTES, entry.size - there))):
            to.write(chunk)
            there += len(chunk)
            count.add(entry.path, done=len(chunk), moved=len(chunk))
        to.flush()
        os.fsync(to.fileno())


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold the flock on `part`, which exists from now on. Raises: StoreError if another copy writes it."""
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{part} is being written by another ft") from error
        yield


def _is(path: Path, entry: FileEntry) -> bool:
    """Whether the bytes on disk are those of the manifest."""
    return (
        path.is_file()
        and path.stat().st_size == entry.size
        and sha256_of_file(path) == entry.sha256
    )


def _must_lie_below(path: str) -> None:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise StoreError(f"the manifest names {path!r}, which does not lie below its folder")


def _must_fit(missing: list[FileEntry], target: Path) -> None:
    begun = sum(
        part.stat().st_size for entry in missing if (part := target / (entry.path + PART)).is_file()
    )
    needed = sum(entry.size for entry in missing) - begun
    free = shutil.disk_usage(target).free
    if needed > free:
        raise StoreError(f"{target} needs {needed} bytes more, and {free} are free")


# -------------------------------------------------------------------------------------- deliveries


@dataclass(frozen=True, slots=True)
class Delivery:
    """What `.ft-delivered.json` says of a folder: whose result lies there, and what each file was (sha256)."""

    run: str
    files: Mapping[str, str]
    before: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What earlier deliveries had put there, while this one is not done."""

    def is_whole(self, folder: Path) -> bool:
        """Whether every file is there as it was delivered. Reads every byte."""
        try:
            return all(
                (folder / name).is_file() and sha256_of_file(folder / name) == hashed
                for name, hashed in self.files.items()
            )
        except OSError:
            return False

    def known(self) -> dict[str, frozenset[str]]:
        """Name -> every sha256 that a file of ours may have; the next delivery may overwrite it."""
        return {
            name: self.before.get(name, frozenset()) | {self.files.get(name, "")} - {""}
            for name in {*self.files, *self.before}
        }


def delivery_in(folder: Path) -> Delivery | None:
    """The last delivery into `folder`; names that do not lie below it are left out."""
    try:
        data = json.loads((folder / DELIVERED).read_bytes())
        names, hashes = data["files"], data.get("sha256", {})
        below = [n for n in names if isinstance(n, str) and _lies_below(n)]
        before = {
            name: frozenset(map(str, known))
            for name, known in data.get("before", {}).items()
            if _lies_below(name)
        }
        files = {name: str(hashes.get(name, "")) for name in below}
        return Delivery(str(data.get("run", "")), files, before)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def deliver(
    source: Source,
    target: Path,
    *,
    run_id: str,
    base_model: str | None,
    force: bool,
    tell: Tell | None = None,
) -> Copied:
    """Make `target` hold the result of a run, and no file of an earlier delivery besides.

    An old adapter beside a new model would be loaded with it. Files of the user's own stay; one that stands in the way
    is overwritten with `force` only. `base_model` is the name that a delivered adapter gets for its base, if not None.
    Raises: UsageError naming what is in the way, StoreError.
    """
    entries = source.files()
    before = delivery_in(target)
    known = before.known() if before else {}
    gone = sorted(set(known) - {entry.path for entry in entries})
    if not force:
        changed = [n for n in gone if (target / n).is_file() and not _unchanged(target, n, known)]
        refuse([*conflicts(entries, target, known), *changed], target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in gone:
            (target / name).unlink(missing_ok=True)
        # First, so that a delivery that is cut off is known for what it is, and all that it has not replaced yet.
        hashes = {entry.path: entry.sha256 for entry in entries}
        _note_delivery(target, run_id, hashes, before=known)
        done = copy(source, target, tell=tell)
        config = _with_base_model(target, base_model) if base_model is not None else None
        if config is not None:
            hashes[ADAPTER_CONFIG] = sha256(config.encode()).hexdigest()
        # Before the file: one that is still as it was exported is ours anyway.
        _note_delivery(target, run_id, hashes)
        if config is not None:
            write_atomic(target / ADAPTER_CONFIG, config)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror or error}") from error
    return done


def refuse(names: list[str], target: Path) -> None:
    """Raises: UsageError if there are any `names` in the way."""
    if names:
        more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
        raise UsageError(
            f"{target} holds other files of the same name: {', '.join(names[:NAMED_AT_MOST])}{more}",
            hint="--to another folder, or --force to overwrite them",
        )


def _unchanged(target: Path, name: str, known: Mapping[str, frozenset[str]]) -> bool:
    return sha256_of_file(target / name) in known[name]


def _note_delivery(
    target: Path,
    run_id: str,
    hashes: Mapping[str, str],
    *,
    before: Mapping[str, frozenset[str]] | None = None,
) -> None:
    """`before`: what may still lie there from earlier deliveries; None once this one is done."""
    note: dict[str, Any] = {"run": run_id, "files": list(hashes), "sha256": dict(hashes)}
    if before:
        note["before"] = {name: sorted(known) for name, known in before.items()}
    write_atomic(target / DELIVERED, json.dumps(note, indent=1) + "\n")


def _with_base_model(target: Path, base_model: str) -> str | None:
    """The adapter's configuration that names its base as the user knows it, not as `inputs/…`; None without one."""
    config = target / ADAPTER_CONFIG
    if not config.is_file():
        return None
    values = json.loads(config.read_text())
    values["base_model_name_or_path"] = base_model
    return json.dumps(values, indent=2) + "\n"


def _lies_below(name: str) -> bool:
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts
