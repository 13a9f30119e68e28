"""The copy of a run that outlives its machine: written by the machine, read from a laptop.

The copy lies on a volume. It is laid out as a store is (`runstore.py`), but for files that only grow: those lie in
pieces (`events.jsonl.pieces/000000`, …), so that a look at a long log costs its last piece and not all of it.
A published folder is copied file by file, its manifest last, and verified by whoever takes it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from ft.launcher.ends import OUTCOME
from ft.recipes.runstore import (
    ADJUST,
    ATTEMPTS,
    CHECKPOINTS,
    CONTROL,
    EVENTS,
    FINAL,
    INPUTS,
    MANIFEST,
    PLAN,
    STATUS,
    Manifest,
    why_invalid,
)
from ft.recipes.store import LocalStore

PIECES: Final = ".pieces"
PIECE_BYTES: Final = 1 << 18
SUPERVISOR_LOG: Final = "supervisor.log"
"""What looks after the attempts says here what it does."""
GROWING: Final = (".log", ".rows.jsonl")
NOT_MIRRORED: Final = (".pid", ".mark")
CHUNK_BYTES: Final = 4 << 20
SETTLED_S: Final = 2.0


class Medium(Protocol):
    """What the copy lies on."""

    def commit(self) -> None:
        """Make durable, and visible to others, what was written."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder of the run, as others see them: path in the folder -> size."""


class Mirror:
    """A run's folder on this machine (`store`), and the copy of it. One process writes both."""

    def __init__(
        self, store: LocalStore, copy: Path, *, only: Callable[[str], bool] | None = None
    ) -> None:
        """`only`: which files of attempts are pushed, by name, and nothing else is; for a machine that assists."""
        self.store, self.copy, self._only = store, LocalStore(copy), only
        self._seen: dict[str, tuple[int, int]] = {}
        """Small file -> (mtime in ns, size) as it was copied."""
        self._lengths: dict[str, int] = {}
        """Growing file -> bytes that are in the copy."""

    # ------------------------------------------------------------------------------------ out

    def push_words(self) -> bool:
        """Copy what the run says of itself: status, events, logs, ends. True if anything was new."""
        found = [self._push_growing(path) for path in self._growing()]
        # Behind the events: a status never tells of more than they do.
        return any([*found, *[self._push_small(path) for path in self._small()]])

    def push_published(self, *, keep: int, medium: Medium) -> list[str]:
        """Copy checkpoints and the result that the copy lacks, the newest first; then drop old ones.

        A manifest is written once the medium lists every file of it with its size. A checkpoint that the run drops
        meanwhile is passed over. Returns the names that were published. Raises: OSError if the medium lacks something.
        """
        names = []
        for folder in self._published():
            name = folder.relative_to(self.store.root).as_posix()
            target = self.copy.root / name
            if not _is_published(folder, target) and self._publish(folder, target, name, medium):
                names.append(folder.name)
        if names:
            newest = max((n for n in names if n != FINAL), default=None)
            if self.copy.prune(keep=keep, valid=newest):
                medium.commit()
        return names

    def _publish(self, folder: Path, target: Path, name: str, medium: Medium) -> bool:
        """Copy what is held by links of our own: training may drop a checkpoint while it travels."""
        held = self.store.root / f".held-{folder.name}"
        shutil.rmtree(held, ignore_errors=True)
        try:
            shutil.copytree(folder, held, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            return False
        try:
            return _copy_published(held, target, name, medium)
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def _published(self) -> Iterator[Path]:
        """The result, then checkpoints from the newest."""
        folders = [self.store.root / FINAL]
        if self.store.checkpoints.is_dir():
            folders += sorted(self.store.checkpoints.glob("step-*"), reverse=True)
        yield from (folder for folder in folders if (folder / MANIFEST).is_file())

    def _growing(self) -> Iterator[Path]:
        yield from self._of_run(EVENTS, SUPERVISOR_LOG)
        yield from (path for path in self._of_attempts() if path.name.endswith(GROWING))

    def _small(self) -> Iterator[Path]:
        yield from (
            path
            for path in self._of_attempts()
            if not path.name.endswith((*GROWING, *NOT_MIRRORED, ".tmp"))
        )
        yield from self._of_run(ADJUST, STATUS)

    def _of_run(self, *names: str) -> Iterator[Path]:
        if self._only is None:
            yield from (path for name in names if (path := self.store.root / name).is_file())

    def _of_attempts(self) -> Iterator[Path]:
        """Files of attempts, but for what their ranks put by."""
        for path in (self.store.root / ATTEMPTS).glob("*/*"):
            if path.is_file() and (self._only is None or self._only(path.name)):
                yield path

    def _push_growing(self, path: Path) -> bool:
        name = path.relative_to(self.store.root).as_posix()
        there = self._lengths.get(name, 0)
        if path.stat().st_size <= there:
            return False
        folder = self.copy.root / f"{name}{PIECES}"
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as stream:
            number = there // PIECE_BYTES
            stream.seek(number * PIECE_BYTES)
            while piece := stream.read(PIECE_BYTES):
                replace_file(folder / f"{number:06d}", piece)
                there = number * PIECE_BYTES + len(piece)
                number += 1
        self._lengths[name] = there
        return True

    def _push_small(self, path: Path) -> bool:
        name = path.relative_to(self.store.root).as_posix()
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if self._seen.get(name) == stamp:
                return False
            content = path.read_bytes()
        except FileNotFoundError:
            return False  # Taken away meanwhile, as what only a living attempt needs.
        target = self.copy.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)
        self._seen[name] = stamp
        return True

    # ------------------------------------------------------------------------------------- in

    def restore(self, *, plan_sha256: str) -> list[str]:
        """Make the run's folder from the copy: plan, inputs, words, the newest whole checkpoint, the result.

        A checkpoint that does not match its manifest is set aside in the copy. Returns a line for each. What lies in
        the run's folder already is replaced, but for inputs and a checkpoint, which are compared.
        """
        source, target = self.copy.root, self.store.root
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / PLAN, target / PLAN)
        for path in sorted((source / INPUTS).rglob("*")):
            _copy_if_other(path, target / path.relative_to(source))
        for path in _words(source):
            self._restore_words(path, target / path.relative_to(source))
        if self.copy.final() is not None:
            _copy_tree(source / FINAL, target / FINAL)
        return self._restore_checkpoint(plan_sha256)

    def _restore_words(self, path: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(PIECES):
            to = to.with_name(to.name.removesuffix(PIECES))
            pieces = sorted(piece for piece in path.iterdir() if not piece.name.startswith("."))
            to.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
            self._lengths[to.relative_to(self.store.root).as_posix()] = to.stat().st_size
        else:
            shutil.copyfile(path, to)
            found = to.stat()
            name = to.relative_to(self.store.root).as_posix()
            self._seen[name] = (found.st_mtime_ns, found.st_size)

    def _restore_checkpoint(self, plan_sha256: str) -> list[str]:
        passed: list[str] = []
        for folder in sorted(self.copy.checkpoints.glob("step-*"), reverse=True):
            if not (folder / MANIFEST).is_file():
                continue  # Cut off while it was copied: it does not exist.
            here = self.store.checkpoints / folder.name
            if why_invalid(here, plan_sha256=plan_sha256) is None and _is_published(here, folder):
                return passed
            shutil.rmtree(here, ignore_errors=True)
            _copy_tree(folder, here)
            why = why_invalid(here, plan_sha256=plan_sha256)
            if why is None:
                return passed
            shutil.rmtree(here)
            aside = self.copy.set_aside(folder)
            passed.append(f"checkpoint not used: {folder.name}: {why}; set aside as {aside.name}")
        return passed


def _words(root: Path) -> Iterator[Path]:
    """What the next machine has to know of what a copy says: no logs of earlier attempts, which only people read."""
    yield from root.glob(f"*{PIECES}")
    yield from (path for name in (STATUS, ADJUST) if (path := root / name).is_file())
    for path in (root / ATTEMPTS).glob("*/*"):
        if path.is_file() and not path.name.startswith("."):
            yield path


def _is_published(folder: Path, target: Path) -> bool:
    """Whether both have the same manifest."""
    try:
        return (folder / MANIFEST).read_bytes() == (target / MANIFEST).read_bytes()
    except FileNotFoundError:
        return False


def _copy_published(folder: Path, target: Path, name: str, medium: Medium) -> bool:
    """Copy a published folder, its manifest last. False if it was taken away meanwhile."""
    shutil.rmtree(target, ignore_errors=True)  # Of another attempt, or cut off.
    try:
        manifest = (folder / MANIFEST).read_bytes()
        files = Manifest.from_json(manifest).files
        for entry in files:
            _copy_file(folder / entry.path, target / entry.path)
    except FileNotFoundError:
        shutil.rmtree(target, ignore_errors=True)
        return False
    medium.commit()
    there = medium.sizes(name)
    for entry in files:
        if there.get(entry.path) != entry.size:
            raise OSError(
                f"{name}/{entry.path} has {entry.size} bytes, committed were {there.get(entry.path)}"
            )
    replace_file(target / MANIFEST, manifest)
    medium.commit()
    return True


def _copy_tree(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            _copy_file(path, target / path.relative_to(source))


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, CHUNK_BYTES)


def _copy_if_other(path: Path, target: Path) -> None:
    """Inputs have their sha256 in their names; the agent verifies them, so size is enough here."""
    if path.is_file() and not (target.is_file() and target.stat().st_size == path.stat().st_size):
        _copy_file(path, target)


def replace_file(path: Path, content: bytes) -> None:
    """A reader sees the old or the new content. Not fsynced: a volume is made durable by its commit."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


# --------------------------------------------------------------------------------- seen from afar


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a copy, as its volume lists it."""

    path: str
    """Relative to the run, with forward slashes."""
    size: int
    mtime: float


class Replica:
    """What a copy says, in a folder of this laptop that reads like a store. Weights and inputs stay where they are."""

    INDEX: Final = ".replica.json"

    def __init__(self, root: Path) -> None:
        self.root = root

    def refresh(self, listed: Iterable[Listed], read: Callable[[str], bytes]) -> None:
        """Fetch what has changed since the last time. `read` gives the bytes of a file by its path.

        `outcome.json` comes last, so that whoever sees the end sees all before it. Raises: what `read` raises.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        index = self._index()
        files = {file.path: file for file in listed if _is_wanted(file.path)}
        # Times are whole seconds: what changed last may change once more without a sign.
        newest = max((file.mtime for file in files.values()), default=0.0)
        try:
            self._fetch(files, index, newest, read)
        finally:
            replace_file(self.root / self.INDEX, json.dumps(index).encode())

    def _fetch(
        self,
        files: Mapping[str, Listed],
        index: dict[str, list[float]],
        newest: float,
        read: Callable[[str], bytes],
    ) -> None:
        for path in sorted(files, key=lambda path: (path == OUTCOME, path == STATUS, path)):
            stamp = [files[path].mtime, files[path].size]
            if index.get(path) != stamp:
                try:
                    self._put(path, read(path))
                except FileNotFoundError:
                    continue  # It was taken away since it was listed.
                is_settled = newest - files[path].mtime > SETTLED_S
                index[path] = stamp if is_settled else []
        for path in set(index) - set(files):
            self._take_away(path)
            del index[path]

    def forget_end(self) -> None:
        """The run goes on: its end is one no more."""
        (self.root / OUTCOME).unlink(missing_ok=True)
        index = self._index()
        index.pop(OUTCOME, None)
        if self.root.is_dir():
            replace_file(self.root / self.INDEX, json.dumps(index).encode())

    def _index(self) -> dict[str, list[float]]:
        """File -> its time and size when it was fetched; empty if it has to be fetched again."""
        try:
            found = json.loads((self.root / self.INDEX).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _put(self, path: str, content: bytes) -> None:
        folder, slash, piece = path.partition(f"{PIECES}/")
        target = self.root / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        if not slash:
            replace_file(target, content)
            return
        # Pieces are of one size but for the last: each has its place.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, content, int(piece) * PIECE_BYTES)
        finally:
            os.close(descriptor)

    def _take_away(self, path: str) -> None:
        """A checkpoint that was dropped, or what only a living attempt needed."""
        if f"{PIECES}/" not in path:
            target = self.root / path
            target.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                target.parent.rmdir()


def _is_wanted(path: str) -> bool:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or pure.name.startswith("."):
        return False
    if pure.parts[0] in {CHECKPOINTS, FINAL}:
        return pure.name == MANIFEST
    return pure.parts[0] not in {INPUTS, CONTROL}
