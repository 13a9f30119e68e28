"""`ft cloud prune`: which runs may go, what that frees, and that nothing else goes with them."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from ft.launcher.cli import console
from ft.launcher.cli.run import Run
from ft.launcher.lifecycle import leftovers, size_of
from ft.launcher.runs import is_locked
from ft.launcher.transfer import delivery_in
from ft.recipes.errors import FtError, StoreError, UsageError
from ft.recipes.runstore import ATTEMPT_LOCK, RunState
from ft.recipes.schema.cloud import duration_s

WRITTEN: Final = "an attempt still writes its store"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for."""

    keep: int = 0
    """Of the newest ended runs, these stay."""
    older_than_s: float = 0.0
    only_failed: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A run that has ended, and what becomes of it."""

    run: Run
    state: RunState
    ended_at: float
    """Unix time in seconds."""
    size: int
    """Bytes that it frees."""
    stays: str
    """Why the run stays; empty if it goes."""
    leftovers: tuple[Path, ...]
    """Of a run that stays: what goes all the same."""

    @property
    def goes(self) -> bool:
        """Whether anything is removed."""
        return not self.stays or bool(self.leftovers)


def age_s(text: str | None) -> float:
    """Seconds of `90m`, `6h`, `7d`; 0 for None. Raises: UsageError."""
    if text is None:
        return 0.0
    try:
        return float(duration_s(text))
    except (ValueError, OverflowError):
        raise UsageError(f"--older-than {text}: expected 90m, 6h, 7d") from None


def look(runs: Sequence[Run], wish: Wish) -> list[Item]:
    """Every run that has ended, the oldest first. Nothing is removed. Runs that go on are not looked at."""
    ended = [(run, state) for run in runs if (state := run.state()).ended]
    chosen = [(run, state) for run, state in ended if _is_meant(state, wish)]
    newest = {run.record.id for run, _ in chosen[max(0, len(chosen) - wish.keep) :]}
    return [_item(run, state, wish, kept=run.record.id in newest) for run, state in ended]


def abandoned(runs: Sequence[Run]) -> list[str]:
    """Ids of runs that may be resumed, and are therefore left alone."""
    return [run.record.id for run in runs if run.state() is RunState.UNKNOWN]


def _is_meant(state: RunState, wish: Wish) -> bool:
    return not wish.only_failed or state is not RunState.SUCCEEDED


def _item(run: Run, state: RunState, wish: Wish, *, kept: bool) -> Item:
    ended_at = _ended_at(run)
    stays = ""
    written = is_written(run)
    if written:
        stays = WRITTEN
    elif not _is_meant(state, wish):
        stays = "it succeeded"
    elif kept:
        stays = "it is one of the newest"
    elif time.time() - ended_at < wish.older_than_s:
        stays = f"it ended {console.ago(ended_at)}"
    elif state is RunState.SUCCEEDED and not wish.force and not is_elsewhere(run):
        stays = "its result lies nowhere else (ft cloud fetch, or --force)"
    over: tuple[Path, ...] = ()
    if stays and not written and run.started and not run.record.adopted:
        over = tuple(leftovers(run.store))
    folders: list[Path] = list(over)
    if not stays:
        folders = [run.runs.folder(run.record.id)]
        if run.started and not run.record.adopted:
            folders.append(run.store.root)
    return Item(run, state, ended_at, size_of(folders), stays, over)


def _ended_at(run: Run) -> float:
    try:
        status = run.status()
    except StoreError:
        status = None
    return status.updated_at if status is not None else run.record.created_at


def is_written(run: Run) -> bool:
    """Whether an attempt that nobody looks after still writes a store that is ours to remove."""
    return run.started and not run.record.adopted and is_locked(run.store.root / ATTEMPT_LOCK)


def is_elsewhere(run: Run) -> bool:
    """Whether the result was delivered or fetched, and is still there, whole. Reads every byte of it."""
    if run.record.adopted:
        return True
    for folder in (run.delivered(), run.record.fetched_to):
        found = delivery_in(Path(folder)) if folder else None
        if found is not None and found.run == run.record.id and found.is_whole(Path(folder)):
            return True
    return False


HEADER: Final = ("ID", "NAME", "STATE", "ENDED", "SIZE", "")


def lines(items: Sequence[Item]) -> Iterator[str]:
    """What goes, what that frees, and what stays for which reason."""
    rows = []
    for item in items:
        record = item.run.record
        size = console.size(item.size) if item.goes else "-"
        name = record.name if record.name != record.id else "-"
        what = f"stays: {item.stays}" if item.stays else "goes"
        if item.stays and item.leftovers:
            names = ", ".join(path.name for path in item.leftovers)
            what = f"goes: {names}; the rest {what}"
        rows.append((record.id, name, str(item.state), console.ago(item.ended_at), size, what))
    if rows:
        yield from console.table(HEADER, rows, shrink=(1, 5))
    total = sum(item.size for item in items if item.goes)
    runs = sum(not item.stays for item in items)
    if total or runs:
        yield f"{console.plural(runs, 'run')}, {console.size(total)}"


def ask(items: Sequence[Item]) -> None:
    """Raises: UsageError where nobody can answer, typer.Abort for a no."""
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to ask", hint="--yes removes what is listed")
    runs = sum(not item.stays for item in items)
    typer.confirm(f"Remove {console.plural(runs, 'run')} for good?", abort=True, err=True)


def remove(items: Sequence[Item]) -> list[Item]:
    """Remove what goes; what cannot is said and left. Returns what is gone."""
    gone = []
    for item in items:
        if item.goes:
            try:
                _remove(item)
            except FtError as error:
                console.warn(f"run {item.run.record.id}: {error.message}")
            else:
                gone.append(item)
    return gone


def _remove(item: Item) -> None:
    """Raises: StoreError, NotFoundError if it is no longer as it was when it was looked at."""
    run, record = item.run, item.run.record
    with run.runs.held(record.id):
        run.record = run.runs.reread(record)
        if not run.state().ended:
            raise StoreError("it was resumed in the meantime")
        if is_written(run):
            raise StoreError(WRITTEN)
        try:
            for path in item.leftovers:
                shutil.rmtree(path)
            if not item.stays:
                if run.started and not record.adopted:
                    run.backend.discard(record.as_handle(), plan_sha256=record.plan_sha256)
                run.runs.remove(record)
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error


def to_json(items: Sequence[Item], gone: Sequence[Item]) -> list[dict[str, Any]]:
    """One object per ended run. `removed` is false for what only would go."""
    return [
        {
            "id": item.run.record.id,
            "name": item.run.record.name,
            "state": str(item.state),
            "ended_at": item.ended_at,
            "bytes": item.size if item.goes else 0,
            "goes": not item.stays,
            "stays": item.stays or None,
            "leftovers": [str(path) for path in item.leftovers],
            "removed": item in gone,
        }
        for item in items
    ]
