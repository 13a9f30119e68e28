"""A run in a folder of a file system that laptop and nodes mount under one path: NFS, Lustre, a volume of Kubernetes.

Each write is a file of its own that gets its name once it is whole and on disk. So no reader sees a half, and each
change is a change of a folder: that is what a client of NFS notices, which asks its server again whenever a folder is
opened, while it may believe for a minute in what it knew of files, and of their absence (nfs(5), lookupcache).
A claim is a hard link, which one of many makes, on NFS too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from ft.launcher.medium import (
    CHUNK_BYTES,
    FOLDER_SCHEME,
    FolderMedium,
    Listed,
    MediumError,
    MediumFullError,
    MediumRefusedError,
)
from ft.recipes.digest import sha256_of_file
from ft.recipes.runstore import MANIFEST, fsync_folder

HIDDEN: Final = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|\.nfs[0-9a-f]+")
"""Files on their way, and what a client of NFS keeps for whoever still reads a deleted one."""
FULL: Final = {
    errno.ENOSPC: "no space is left on its file system",
    errno.EDQUOT: "the quota there is used up",
}
REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class SharedFolder(FolderMedium):
    """One run in a folder that many machines see: a `SharedMedium`.

    Files get the mode that the umask leaves. The folder of the run is made by `begin` and by nothing else: where it is
    not there, its file system is not mounted, and what is written would stay on this machine.
    """

    def __init__(self, uri: str) -> None:
        """Raises: ValueError if `uri` is no `file:///FOLDER/RUN`. Nothing is asked yet."""
        path = uri.removeprefix(FOLDER_SCHEME).rstrip("/")
        if not uri.startswith(f"{FOLDER_SCHEME}/") or path.count("/") < 2:
            raise ValueError(f"{uri!r} is no folder of a run: expected {FOLDER_SCHEME}/FOLDER/RUN")
        super().__init__(Path(path))
        self.uri = uri.rstrip("/")

    # ------------------------------------------------------------------------- of `medium.Medium`

    def listed(self, folder: str = "") -> list[Listed]:
        found: list[Listed] = []
        with self._translated():
            for at, _, names in os.walk(self.root / folder, onerror=_raise_unless_gone):
                for name in names:
                    path = Path(at, name)
                    with contextlib.suppress(FileNotFoundError):
                        seen = path.stat()
                        if stat.S_ISREG(seen.st_mode) and HIDDEN.fullmatch(name) is None:
                            relative = path.relative_to(self.root).as_posix()
                            found.append(Listed(relative, seen.st_size, seen.st_mtime))
        if not found:
            self._must_be_mounted()
        return sorted(found, key=lambda file: file.path)

    def read(self, name: str) -> bytes:
        with self._translated():
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                self._look_again(self.root / name)
                return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        with self._translated(), self._written(self.root / name) as stream:
            stream.write(content)

    def upload(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            self.put(name, path)

    def download(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            with self._translated():
                source = (self.root / name).open("rb")
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as target:
                while chunk := self._chunk(source):
                    target.write(chunk)

    def drop(self, folder: str) -> None:
        self._must_be_mounted()
        with self._translated(), contextlib.suppress(FileNotFoundError):
            (self.root / folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.root / folder)

    def set_aside(self, folder: str) -> None:
        with self._translated():
            super().set_aside(folder)

    # ------------------------------------------------------------------------------------ beyond

    def begin(self) -> None:
        """See `SharedMedium`. The folder that holds the runs has to be there: made here, it would be this machine's."""
        self._must_be_mounted()
        with self._translated():
            self.root.mkdir(exist_ok=True)
        probe = f".claim-{uuid.uuid4().hex}"
        self.claim(probe, b"")
        self.remove([probe])

    def put(self, name: str, path: Path, sha256: str | None = None) -> bool:
        """Send a file unless the same bytes are there. False if they were. Raises: FileNotFoundError, OSError."""
        target, size = self.root / name, path.stat().st_size
        with self._translated():
            there = sha256_of_file(target) if _size_of(target) == size else None
        if there is not None and there == (sha256 or sha256_of_file(path)):
            return False
        with path.open("rb") as source, self._translated(), self._written(target) as stream:
            shutil.copyfileobj(source, stream, CHUNK_BYTES)
        return True

    def claim(self, name: str, content: bytes) -> bytes:
        """Write it if there is none yet. What is there then: ours, or what another one wrote before."""
        path = self.root / name
        with self._translated(), self._temporary(path) as temporary:
            _write_through(temporary, content)
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass  # Or our own reply was lost: reading it tells.
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                raise MediumRefusedError(
                    f"{self.uri}: its file system has no hard links ({error.strerror}), which claims need; "
                    "NFS, Lustre and CephFS have them"
                ) from None
            fsync_folder(path.parent)
        return self.read(name)

    def remove(self, names: Sequence[str]) -> None:
        """What is not there is no error."""
        with self._translated():
            for name in names:
                (self.root / name).unlink(missing_ok=True)

    def ranged(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, without the last one."""
        with self._translated(), (self.root / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(max(0, end - start))

    # ------------------------------------------------------------------------------------- files

    @contextlib.contextmanager
    def _written(self, path: Path) -> Iterator[IO[bytes]]:
        """A file that replaces `path` once it is whole and on disk."""
        with self._temporary(path) as temporary:
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)

    @contextlib.contextmanager
    def _temporary(self, path: Path) -> Iterator[Path]:
        """A name beside `path` that no other machine uses; nothing is left of it."""
        if not self.root.is_dir():
            self._look_again(self.root)
        if not self.root.is_dir():
            raise MediumRefusedError(self._nowhere(self.root))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _look_again(self, path: Path) -> None:
        """Have a client of NFS ask for what it believes not to be there: opening folders makes it do so."""
        folders = [self.root.parent, *reversed(path.parents)]
        for folder in (one for one in folders if one.is_relative_to(self.root.parent)):
            with contextlib.suppress(FileNotFoundError):
                os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))

    def _chunk(self, stream: IO[bytes]) -> bytes:
        with self._translated():
            return stream.read(CHUNK_BYTES)

    # ------------------------------------------------------------------------------------ errors

    def _must_be_mounted(self) -> None:
        """Raises: MediumRefusedError if the folder that holds the runs is not there."""
        if not self.root.parent.is_dir():
            raise MediumRefusedError(self._nowhere(self.root.parent))

    def _nowhere(self, folder: Path) -> str:
        return (
            f"there is no folder {folder} on {socket.gethostname()}; it has to be of a file system that "
            "the nodes and the machine that sends the run mount under the same path"
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """What fails here is of the medium. FileNotFoundError where only the file is not there."""
        try:
            yield
        except MediumError:
            raise
        except FileNotFoundError:
            self._must_be_mounted()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.uri) from None
        except OSError as error:
            if error.errno in FULL:
                raise MediumFullError(f"{self.uri}: {FULL[error.errno]}") from None
            where = f" ({error.filename})" if error.filename else ""
            text = f"{self.uri}: {error.strerror or error}{where}, on {socket.gethostname()}"
            raise (MediumRefusedError if error.errno in REFUSED else MediumError)(text) from None


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _write_through(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
