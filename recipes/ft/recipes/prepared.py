"""Prepared rows on disk, found again by what they were made of.

`<root>/<key>/` holds `rows.arrow`, `bad.jsonl` and `meta.json`. A folder is made under another name and renamed, so
one that is there is whole. One process makes it, holding a lock that the kernel takes back when it dies; others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

META: Final = "meta.json"
ROWS: Final = "rows.arrow"
BAD: Final = "bad.jsonl"
LOCK: Final = ".lock"
UNFINISHED: Final = ".tmp"

STAGING: Final = ".staging-"
"""Folders of plans that are being prepared; who made one takes it away, unless it is killed."""
STALE_S: Final = 86400.0

WAIT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of one entry without reading its rows."""

    key: str
    made_at: float
    """Seconds since 1970."""
    seconds: float
    """That it took to make it."""
    counts: dict[str, int]
    made_of: dict[str, Any]
    """What the key is a hash of."""
    size: int
    """Bytes of the file of rows: a part of it reads like a shorter one."""

    @classmethod
    def read(cls, folder: Path) -> Meta:
        """Raises: OSError or ValueError if it cannot be read."""
        try:
            return cls(**json.loads((folder / META).read_text()))
        except TypeError as error:
            raise ValueError(str(error)) from error


def default_root() -> Path:
    """Of this user on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ft" / "prepared"


def entry(
    root: Path,
    key: str,
    build: Callable[[Path], tuple[dict[str, int], dict[str, Any]]],
    *,
    waiting: Callable[[], None] = lambda: None,
) -> tuple[Path, Meta, bool]:
    """The folder of `key`, made by `build(folder)` unless it is there; and whether it was there.

    `build` fills an empty folder and returns counts and what the entry is made of. `waiting` is called again and
    again while another process makes it; what it raises ends the wait, as what `build` raises ends the making.
    """
    folder = root / key
    if found := _whole(folder):
        return folder, found, True
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{key}{LOCK}", waiting):
        if found := _whole(folder):
            return folder, found, True
        for left in root.glob(f"{key}{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)  # Of a process that was killed.
        making = root / f"{key}{UNFINISHED}{os.getpid()}"
        making.mkdir()
        try:
            began = time.time()
            counts, made_of = build(making)
            _to_disk(making / ROWS)
            size = (making / ROWS).stat().st_size
            meta = Meta(key, time.time(), time.time() - began, counts, made_of, size)
            _write(making / META, json.dumps(asdict(meta), indent=1, sort_keys=True))
            shutil.rmtree(folder, ignore_errors=True)  # There, but not whole.
            making.rename(folder)
            _to_disk(root)
        finally:
            shutil.rmtree(
                making, ignore_errors=True
            )  # Whatever ended it; once it is renamed, nothing is left.
    return folder, meta, False


def entries(root: Path) -> Iterator[tuple[Path, Meta]]:
    """Whole entries, the oldest use first."""
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    for folder in sorted(folders, key=lambda path: (last_used(path), path.name)):
        if (found := _whole(folder, touch=False)) and UNFINISHED not in folder.name:
            yield folder, found


def last_used(folder: Path) -> float:
    """Seconds since 1970; 0 if it is not whole."""
    try:
        return (folder / META).stat().st_mtime
    except OSError:
        return 0.0


def remove(folder: Path) -> bool:
    """Take an entry away, unless somebody is making it at this moment; whether it is gone."""
    try:
        with _locked(folder.parent / f"{folder.name}{LOCK}", _refuse):
            # First out of the way: half of an entry must not be found under its name.
            gone = folder.with_name(f"{folder.name}{UNFINISHED}gone")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    except (_BusyError, FileNotFoundError):
        return False
    return True


class _BusyError(Exception):
    """Somebody else holds the lock."""


def _refuse() -> None:
    raise _BusyError


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(WAIT_S)
        # Never unlinked: two processes would then hold locks on two files of one name.
        yield


def _whole(folder: Path, *, touch: bool = True) -> Meta | None:
    try:
        found = Meta.read(folder)
        if (folder / ROWS).stat().st_size != found.size:
            return None
        if touch:
            os.utime(folder / META)
    except (OSError, ValueError):
        return None
    return found


def _to_disk(path: Path) -> None:
    """A file, or the names in a folder, as they are after a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def swept(root: Path) -> list[Path]:
    """Remove what processes left that were killed while they made an entry; returns what is gone."""
    gone = []
    for left in root.glob(f"*{UNFINISHED}*") if root.is_dir() else ():
        key = left.name.partition(UNFINISHED)[0]
        try:
            with _locked(root / f"{key}{LOCK}", _refuse):
                shutil.rmtree(left, ignore_errors=True)
                gone.append(left)
        except _BusyError:
            continue
    for left in root.glob(f"{STAGING}*") if root.is_dir() else ():
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
            gone.append(left)
    return gone


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
