"""What the copy of a run lies on: files by name, in a folder that is mounted here or in a bucket."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ft.recipes.runstore import MANIFEST

CHUNK_BYTES: Final = 4 << 20
FOLDER_SCHEME: Final = "file://"
"""Of the URI of a copy in a folder that many machines see. What stands behind it is the path, without escapes."""
SET_ASIDE: Final = "manifest.broken.json"
"""The manifest of a checkpoint that does not match it: nobody looks at it again, nothing of it is lost."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a copy, as its medium lists it."""

    path: str
    """Relative to the run, with forward slashes."""
    size: int
    mtime: float
    """Unix time in seconds."""


class Medium(Protocol):
    """One run on a medium. Names are relative to the run. Methods raise OSError where the medium fails."""

    def listed(self, folder: str = "") -> list[Listed]:
        """Every file at or below `folder`; none if it is not there."""

    def read(self, name: str) -> bytes:
        """Raises: FileNotFoundError."""

    def write(self, name: str, content: bytes) -> None:
        """A small file; a reader sees the old or the new content."""

    def upload(self, files: Mapping[str, Path]) -> None:
        """Files of any size, by the name they get. Raises: FileNotFoundError if one is not here any more."""

    def download(self, files: Mapping[str, Path]) -> None:
        """The other way; folders are made. Raises: FileNotFoundError."""

    def drop(self, folder: str) -> None:
        """All of a folder, its manifest first: half deleted it must not look like a whole one."""

    def set_aside(self, folder: str) -> None:
        """Make a broken checkpoint none, without deleting it."""

    def commit(self) -> None:
        """Make durable, and visible to others, what was written. Where each write is both, it does nothing."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below `folder`, as others see them: path in the folder -> size."""


class SharedMedium(Medium, Protocol):
    """A medium that many machines and laptops write at once: each write is whole, durable and seen by all.

    Methods raise OSError, `MediumError` where the medium has failed.
    """

    def begin(self) -> None:
        """Make a place for the run, where it needs one. Raises: MediumRefusedError if there can be none."""

    def put(self, name: str, path: Path, sha256: str | None = None) -> bool:
        """Send a file unless the same bytes are there. False if they were. Raises: FileNotFoundError, OSError."""

    def claim(self, name: str, content: bytes) -> bytes:
        """Write it if there is none yet. What is there then: ours, or what another one wrote before."""

    def remove(self, names: Sequence[str]) -> None:
        """What is not there is no error."""

    def ranged(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, without the last one."""


class MediumError(OSError):
    """The medium did not do what it was asked for; it may the next time."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


class MediumRefusedError(MediumError):
    """It will not: it is not there, or it is not for this user."""


class MediumFullError(MediumError):
    """It will once somebody has made room."""


class FolderMedium:
    """A folder of a volume that is mounted here. What was written is durable once it is committed."""

    def __init__(
        self,
        root: Path,
        *,
        commit: Callable[[], None] = lambda: None,
        sizes: Callable[[str], dict[str, int]] | None = None,
    ) -> None:
        """`sizes`: what others see, where that may be something else than what lies here."""
        self.root, self._commit, self._sizes = root, commit, sizes

    def listed(self, folder: str = "") -> list[Listed]:
        found = []
        for path in sorted((self.root / folder).rglob("*")):
            if path.is_file():
                stat = path.stat()
                name = path.relative_to(self.root).as_posix()
                found.append(Listed(name, stat.st_size, stat.st_mtime))
        return found

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)

    def upload(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            copy_file(path, self.root / name)

    def download(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            copy_file(self.root / name, path)

    def drop(self, folder: str) -> None:
        (self.root / folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def set_aside(self, folder: str) -> None:
        target = self.root / folder
        (target / MANIFEST).rename(target / SET_ASIDE)

    def commit(self) -> None:
        self._commit()

    def sizes(self, folder: str) -> dict[str, int]:
        if self._sizes is not None:
            return self._sizes(folder)
        return {file.path.removeprefix(f"{folder}/"): file.size for file in self.listed(folder)}


def copy_file(source: Path, target: Path) -> None:
    """Bytes only: a volume may not know modes. Folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, CHUNK_BYTES)


def replace_file(path: Path, content: bytes) -> None:
    """A reader sees the old or the new content. Not fsynced: a volume is made durable by its commit."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
