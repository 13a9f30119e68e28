"""What runs remotely (decision 15): the files of the `ft` package as one tar.

A wheel has one `ft` folder, a checkout one a room; both give the same bytes. Only the names and the
contents of package files count: no time, owner, mode, order of a folder or Python cache.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import ft

PACKAGE = "ft"


def bundle_bytes(roots: Iterable[Path] | None = None) -> bytes:
    """An uncompressed tar with `ft/<room>/…`, sorted by name.

    `roots` are the folders that make up the package, by default those it was imported from.
    Uncompressed, because the bytes that zlib writes differ between its versions.
    Raises: OSError if a file cannot be read.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in package_files(roots):
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def source_digest(roots: Iterable[Path] | None = None) -> str:
    """sha256 of `bundle_bytes(roots)`, in hex."""
    return hashlib.sha256(bundle_bytes(roots)).hexdigest()


def package_files(roots: Iterable[Path] | None = None) -> list[tuple[str, Path]]:
    """(name in the bundle, file) of every package file, sorted by name."""
    rooms = _rooms([Path(root) for root in ft.__path__] if roots is None else roots)
    files = ((f"{PACKAGE}/{name}", path) for room in rooms for name, path in _files(room))
    return sorted(files)


def _rooms(roots: Iterable[Path]) -> list[Path]:
    """One folder a room. The first root that has it wins, as it does for `import`."""
    rooms: dict[str, Path] = {}
    for root in roots:
        for room in root.iterdir():
            if room.is_dir() and not is_debris(room):
                rooms.setdefault(room.name, room)
    return list(rooms.values())


def _files(room: Path) -> Iterator[tuple[str, Path]]:
    for path in room.rglob("*"):
        relative = path.relative_to(room.parent)
        if path.is_file() and not any(is_debris(Path(part)) for part in relative.parts):
            yield relative.as_posix(), path


def is_debris(path: Path) -> bool:
    """What Python, an editor or a file manager leaves behind; a wheel never holds it."""
    return (
        path.name.startswith(".") or path.name == "__pycache__" or path.name.endswith((".pyc", "~"))
    )
