"""`ft preview`: what the rows of a recipe look like, which of their tokens are trained, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import JsonOption, RecipeArgument, SetOption
from ft.launcher.cli.preprocess import ProcessesOption, watched
from ft.recipes.errors import FtError, UsageError

if TYPE_CHECKING:
    from ft.launcher.cli.preview_rows import Row

FIRST_ROWS: Final = 5

GATES: Final = {
    "trained": "the tokens are trained",
    "kept": "the rows are kept",
    "packed": "packed rows would be filled",
}
"""Share -> what it is a share of."""


def _complete_gates(incomplete: str) -> list[str]:
    """What Tab offers: the shares that can be held against a number."""
    return [f"{name}=" for name in GATES if name.startswith(incomplete)]


def preview(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--rows",
            "-n",
            metavar="N",
            min=0,
            help=f"Show the first N rows. Default: {FIRST_ROWS}.",
            show_default=False,
        ),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(
            "--row",
            metavar="K",
            min=0,
            help="Show row K alone, from start to end. The first one is 0.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the rows and all numbers into FILE, one page for a browser.",
            show_default=False,
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="NAME=SHARE",
            help="Exit with 1 if a share is smaller; may be given again: trained=0.05, kept=0.9, packed=0.8",
            autocompletion=_complete_gates,
            show_default=False,
        ),
    ] = None,
    processes: ProcessesOption = None,
    json_: JsonOption = False,
) -> None:
    """Show which tokens are trained, and what is left out.

    Rows with their special tokens, how long they are, how well they pack. The rows are kept, as by ft preprocess.
    """
    from ft.launcher import preparing
    from ft.launcher.cli import gallery
    from ft.launcher.cli.preview_rows import Row

    gates = _gates(fail_under or ())
    chosen = _chosen(count, row)
    if html is not None:
        _check_file(html)
    rows = preparing.look(gallery.locate(recipe), set_ or ())
    more = () if processes is None else ("--processes", str(processes))
    said = dict(watched(preparing.ask("preview", rows, "--rows", chosen, *more)))
    said.pop("event")
    if row is not None and not said["rows"]:
        kept = said["counts"]["kept"]
        raise UsageError(f"--row {row}: there are {kept:,} rows, 0 to {kept - 1:,}")
    shown = [Row.told(one) for one in said["rows"]]
    if html is not None:
        from ft.launcher.cli.preview_html import page

        html.write_text(page(recipe, said, shown), encoding="utf-8")
    if json_:
        console.out_json({**said, "gates": _judged(gates, said["shares"])})
    else:
        _show(said, [] if html else shown, whole=row is not None)
        if html is not None:
            console.note(f"the rows are in {html}")
    _hold(gates, said["shares"])


def _show(said: Mapping[str, Any], rows: Sequence[Row], *, whole: bool) -> None:
    from ft.launcher.cli import preview_text as text

    look = text.Look.of_stdout(rows)
    if rows:
        console.out_log(text.legend(look))
        console.out()
    for row in rows:
        for line in text.row_lines(row, look, whole=whole):
            console.out_log(line)
        console.out()
    for line in text.number_lines(said, look):
        console.out_log(line)


def _chosen(count: int | None, row: int | None) -> str:
    """In the words of the runtime."""
    if count is not None and row is not None:
        raise UsageError("--rows and --row: choose one of them")
    return f"0:{FIRST_ROWS if count is None else count}" if row is None else str(row)


def _check_file(path: Path) -> None:
    """Before anything is made. Raises: UsageError."""
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder, expected a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--html {path}: there is no folder {path.parent}")


def _gates(wanted: Sequence[str]) -> dict[str, float]:
    """Name -> the smallest share that is good enough. Raises: UsageError."""
    found = {}
    for gate in wanted:
        name, equals, number = gate.partition("=")
        if name not in GATES or not equals:
            raise UsageError(
                f"--fail-under {gate!r}: expected NAME=SHARE, NAME one of {', '.join(GATES)}"
            )
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise UsageError(f"--fail-under {gate!r}: expected a share from 0 to 1")
        found[name] = share
    return found


def _judged(gates: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, Any]:
    return {
        name: {"at_least": least, "found": shares[name], "passed": shares[name] >= least}
        for name, least in gates.items()
    }


def _hold(gates: Mapping[str, float], shares: Mapping[str, float]) -> None:
    """Raises: FtError with each share that is too small."""
    failed = list(_failed(gates, shares))
    if failed:
        raise FtError("\n".join(failed))


def _failed(gates: Mapping[str, float], shares: Mapping[str, float]) -> Iterator[str]:
    for name, least in gates.items():
        if shares[name] < least:
            # Rounded down, so that it never looks like what was asked for.
            found = math.floor(shares[name] * 1e6) / 1e6
            yield f"--fail-under {name}={least:g}: {found:g} of {GATES[name]}"
