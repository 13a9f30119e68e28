"""`ft cache ls | prune`: prepared rows that are kept on this machine."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import JsonOption
from ft.recipes.errors import UsageError

if TYPE_CHECKING:
    from ft.recipes.prepared import Meta

app = typer.Typer(
    no_args_is_help=True, help="Prepared rows that are kept on this machine: list, remove."
)


@dataclass(frozen=True, slots=True)
class Entry:
    folder: Path
    meta: Meta
    used_at: float
    size: int
    """Bytes."""

    def to_json(self) -> dict[str, Any]:
        counts = self.meta.counts
        return {
            "key": self.meta.key,
            "folder": str(self.folder),
            "made_at": self.meta.made_at,
            "used_at": self.used_at,
            "size_bytes": self.size,
            "rows": counts.get("kept", 0),
            "tokens": counts.get("tokens", 0),
            "trained_tokens": counts.get("trained_tokens", 0),
        }


def _entries() -> list[Entry]:
    """The last used one first."""
    from ft.recipes import prepared

    found = [
        Entry(
            folder,
            meta,
            prepared.last_used(folder),
            sum(file.stat().st_size for file in folder.iterdir()),
        )
        for folder, meta in prepared.entries(prepared.default_root())
    ]
    return found[::-1]


@app.command()
def ls(*, json_: JsonOption = False) -> None:
    """List prepared rows, the last used ones first."""
    found = _entries()
    if json_:
        console.out_json([entry.to_json() for entry in found])
        return
    if not found:
        console.note("nothing is kept")
        console.hint("ft preprocess RECIPE  makes the rows of a recipe; so does every run")
        return
    _show(found)
    console.note(f"{_total(found)} in all")


def _total(entries: list[Entry]) -> str:
    return console.size(sum(entry.size for entry in entries))


def _show(entries: list[Entry]) -> None:
    rows = [
        (
            entry.meta.key[:12],
            f"{entry.meta.counts.get('kept', 0):,}",
            f"{entry.meta.counts.get('tokens', 0):,}",
            console.size(entry.size),
            console.ago(entry.used_at),
        )
        for entry in entries
    ]
    for line in console.table(("KEY", "ROWS", "TOKENS", "SIZE", "USED"), rows, shrink=(0,)):
        console.out(line)


@app.command()
def prune(
    *,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Only what was not used for so long: 90m, 6h, 7d.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        int,
        typer.Option("--keep", metavar="N", min=0, help="Leave the N last used ones alone."),
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print JSON on stdout; removes nothing without --yes."),
    ] = False,
) -> None:
    """Remove prepared rows; a run makes them again. Example: ft cache prune --older-than 30d"""
    from ft.launcher.cli import pruning
    from ft.recipes import prepared

    age_s = pruning.age_s(older_than)
    now = time.time()
    goes = [entry for entry in _entries()[keep:] if now - entry.used_at >= age_s]
    if json_:
        gone = [entry for entry in goes if yes and prepared.remove(entry.folder)]
        console.out_json(
            {"would_remove": [e.to_json() for e in goes], "removed": [e.meta.key for e in gone]}
        )
        return
    prepared.swept(prepared.default_root())
    if not goes:
        console.note("nothing to remove")
        return
    _show(goes)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to ask", hint="--yes removes what is listed")
        typer.confirm(f"Remove what is listed ({_total(goes)})?", abort=True, err=True)
    gone = [entry for entry in goes if prepared.remove(entry.folder)]
    console.note(f"removed {_total(gone)}")
    for entry in goes:
        if entry not in gone:
            console.warn(f"{entry.meta.key[:12]} is in use and stays")
