"""Digests of files and folders; launcher and runtime must get the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()
