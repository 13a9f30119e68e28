"""Digests of files and folders; launcher and runtime must get the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

IGNORED_PARTS = frozenset({".git", ".cache", "__pycache__"})
"""Caches and version control inside a model folder neither travel nor count."""


def files_of(path: Path) -> Iterator[Path]:
    """The file itself, or every file below the folder, sorted by path."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and IGNORED_PARTS.isdisjoint(file.relative_to(path).parts):
            yield file


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    r"""sha256 of a file; of a folder: over `<relative path>\0<sha256>\n` of every file, sorted by path.

    Raises: OSError.
    """
    if path.is_file():
        return sha256_of_file(path)
    files = ((file.relative_to(path).as_posix(), sha256_of_file(file)) for file in files_of(path))
    return digest_of_files(files)


def digest_of_files(files: Iterable[tuple[str, str]]) -> str:
    """The same of a folder that is not there yet: path in it and sha256 of each file, sorted by the parts of paths."""
    digest = hashlib.sha256()
    for path, sha256 in files:
        digest.update(f"{path}\0{sha256}\n".encode())
    return digest.hexdigest()
