"""Every file that the recipe refers to: found, hashed, and found again as `inputs/<name>`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ft.launcher.backends.base import Upload
from ft.recipes.digest import digest_of, files_of
from ft.recipes.errors import SubmitError
from ft.recipes.facts import Facts, FileFact
from ft.recipes.references import Kind

COPY_BELOW_BYTES = 64 << 20
"""Smaller files are copied: a hard link would follow a later edit in place of the original."""


def describe(path: Path, kind: Kind) -> FileFact:
    """Hash a file or folder. The name starts with the digest, so the same bytes have the same name.

    Raises: OSError if it cannot be read.
    """
    sha256 = digest_of(path)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip(".-") or kind
    return FileFact(
        kind=kind,
        path=path,
        name=f"{sha256[:12]}-{safe}",
        sha256=sha256,
        size=sum(file.stat().st_size for file in files_of(path)),
        num_rows=count_rows(path) if kind == "data" else None,
    )


def count_rows(path: Path) -> int | None:
    """Non-blank lines of a JSON Lines file; None for other kinds, which need a reader to count."""
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    with path.open("rb") as stream:
        return sum(1 for line in stream if not line.isspace())


def uploads_of(facts: Facts) -> tuple[Upload, ...]:
    """What travels, each file once, sorted by name."""
    found = {
        fact.name: Upload(fact.path, fact.name, fact.sha256, fact.size)
        for fact in (facts.files or {}).values()
        if fact is not None and fact.path is not None
    }
    return tuple(found[name] for name in sorted(found))


def stage(upload: Upload, folder: Path) -> None:
    """Put `upload` into `folder` under its name, whole or not at all; what is there already stays.

    Raises: SubmitError if the source is gone or has changed since it was hashed.
    """
    target = folder / upload.name
    if target.exists():
        return
    if not upload.source.exists():
        raise SubmitError(
            f"{upload.source} is gone since the run was planned", hint="submit it again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{upload.name}.{os.getpid()}"
    _discard(temporary)
    for file in files_of(upload.source):
        relative = file.relative_to(upload.source) if upload.source.is_dir() else Path()
        _link_or_copy(file, temporary / relative if upload.source.is_dir() else temporary)
    if digest_of(temporary) != upload.sha256:
        _discard(temporary)
        raise SubmitError(
            f"{upload.source} has changed since the run was planned", hint="submit it again"
        )
    temporary.rename(target)


def must_be_as_planned(upload: Upload) -> None:
    """Raises: SubmitError if the source is gone or has changed since it was hashed."""
    if not upload.source.exists():
        raise SubmitError(
            f"{upload.source} is gone since the run was planned", hint="submit it again"
        )
    if digest_of(upload.source) != upload.sha256:
        raise SubmitError(
            f"{upload.source} has changed since the run was planned", hint="submit it again"
        )


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= COPY_BELOW_BYTES:
        try:
            target.hardlink_to(source.resolve())
        except OSError:
            pass  # Another file system, or one without links.
        else:
            return
    shutil.copyfile(source, target)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
