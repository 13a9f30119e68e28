"""Every file that the recipe refers to: found, hashed, and found again as `inputs/<name>`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ft.launcher.backends.base import Part, Upload
from ft.launcher.ftignore import FTIGNORE
from ft.launcher.medium import Listed
from ft.recipes.digest import digest_of, digest_of_files, files_of, sha256_of_file
from ft.recipes.errors import PlanError, SubmitError
from ft.recipes.facts import Facts, FileFact, Included
from ft.recipes.references import Kind
from ft.recipes.runstore import INPUTS

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


def described(included: Included) -> Included:
    """Hash every file, and all of them as one folder. Raises: PlanError if one has gone or cannot be read."""
    files = []
    for file in included.files:
        try:
            sha256, size = sha256_of_file(file.source), file.source.stat().st_size
        except OSError as error:
            raise PlanError(
                f"cloud.include: {file.source} cannot be read: {error.strerror}",
                hint=f"mend that, or leave it out: {FTIGNORE}",
            ) from error
        files.append(replace(file, sha256=sha256, size=size))
    sha256 = digest_of_files((file.path, file.sha256) for file in files)
    return replace(included, files=tuple(files), name=f"{sha256[:12]}-include", sha256=sha256)


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
    included = facts.included
    if included is not None:
        parts = tuple(Part(file.path, file.source, file.sha256) for file in included.files)
        around = Path(os.path.commonpath([part.source.parent for part in parts]))
        found[included.name] = Upload(around, included.name, included.sha256, included.size, parts)
    return tuple(found[name] for name in sorted(found))


def lacking(listed: Iterable[Listed], uploads: Sequence[Upload]) -> list[Upload]:
    """Inputs that a copy does not have in their size: names have the hash, and whoever reads one verifies it."""
    sizes: dict[str, int] = {}
    for file in listed:
        folder, _, rest = file.path.partition("/")
        if folder == INPUTS and rest:
            name = rest.partition("/")[0]
            sizes[name] = sizes.get(name, 0) + file.size
    return [upload for upload in uploads if sizes.get(upload.name) != upload.size]


def stage(upload: Upload, folder: Path) -> None:
    """Put `upload` into `folder` under its name, whole or not at all; what is there already stays.

    Raises: SubmitError if the source is gone or has changed since it was hashed.
    """
    target = folder / upload.name
    if target.exists():
        return
    _must_be_there(upload)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{upload.name}.{os.getpid()}"
    _discard(temporary)
    for source, path in members(upload):
        _link_or_copy(source, temporary / path if path else temporary)
    if digest_of(temporary) != upload.sha256:
        _discard(temporary)
        must_be_as_planned(upload)  # Of several files it knows which one it is.
        raise _changed(upload.source)
    temporary.rename(target)


def members(upload: Upload) -> Iterator[tuple[Path, str]]:
    """Every file of an upload, and its path in it; that is empty where the upload is a file."""
    if upload.parts:
        yield from ((part.source, part.path) for part in upload.parts)
        return
    is_folder = upload.source.is_dir()
    for file in files_of(upload.source):
        yield file, file.relative_to(upload.source).as_posix() if is_folder else ""


def must_be_as_planned(upload: Upload) -> None:
    """Raises: SubmitError if the source is gone or has changed since it was hashed."""
    _must_be_there(upload)
    for part in upload.parts:
        if sha256_of_file(part.source) != part.sha256:
            raise _changed(part.source)
    if not upload.parts and digest_of(upload.source) != upload.sha256:
        raise _changed(upload.source)


def _must_be_there(upload: Upload) -> None:
    sources = [part.source for part in upload.parts] or [upload.source]
    gone = next((source for source in sources if not source.exists()), None)
    if gone is not None:
        raise SubmitError(f"{gone} is gone since the run was planned", hint="submit it again")


def _changed(source: Path) -> SubmitError:
    return SubmitError(f"{source} has changed since the run was planned", hint="submit it again")


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
