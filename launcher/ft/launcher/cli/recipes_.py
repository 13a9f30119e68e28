"""`ft recipes`: the gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ft.launcher.cli import complete, console
from ft.launcher.cli.options import JsonOption

app = typer.Typer(no_args_is_help=True, help="Recipes to start from.")

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name that `ft recipes ls` prints.",
        autocompletion=complete.gallery_names,
        show_default=False,
    ),
]


@app.command()
def ls(*, json_: JsonOption = False) -> None:
    """List the recipes that come with ft."""
    from ft.launcher.cli import gallery

    if json_:
        console.out_json([entry.to_json() for entry in gallery.entries()])
        return
    rows = [(entry.name, entry.title) for entry in gallery.entries()]
    for line in console.listing(("RECIPE", "WHAT IT DOES"), rows):
        console.out(line)
    console.hint("ft recipes copy NAME  puts one here; ft train NAME  runs it as it is")


@app.command()
def show(name: NameArgument, *, json_: JsonOption = False) -> None:
    """Print a recipe."""
    from ft.launcher.cli import gallery

    entry = gallery.find(name)
    if json_:
        console.out_json({**entry.to_json(), "text": entry.text})
    else:
        console.out_exactly(entry.text)


@app.command()
def copy(
    name: NameArgument,
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A folder, or the name of the new file.")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
) -> None:
    """Copy a recipe and its data files, to change them."""
    from ft.launcher.cli import gallery

    written = gallery.copy(gallery.find(name), target, force=force)
    for path in written:
        console.out(str(path))
    console.hint(f"ft train {written[0]}")
