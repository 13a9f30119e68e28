"""Arguments that several commands share: one wording, one completion."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from ft.launcher.cli import complete
from ft.recipes.errors import UsageError

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of one in the gallery (ft recipes ls).",
        autocompletion=complete.recipes,
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe; may be given again. Inner keys: cloud.gpu=cpu:2, datasets.0.path=x.jsonl",
        show_default=False,
    ),
]
CloudOption = Annotated[
    str | None,
    typer.Option(
        "--cloud",
        metavar="FILE",
        help="Axolotl's cloud file for Modal; goes over the `cloud:` block of the recipe, below --set.",
        autocompletion=complete.yaml_files,
        show_default=False,
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Where it runs; goes before `cloud.backend` of the recipe. Default: local.",
        autocompletion=complete.backends,
        show_default=False,
    ),
]
SimulateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--simulate",
        metavar="FAULT",
        help="Rehearse a fault; may be given again: preempt@30s, kill@30s, oom@step:7, nan@step:7, disk-full@save:2",
        autocompletion=complete.faults,
        show_default=False,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of a run, the beginning of one, its name, or @last.",
        autocompletion=complete.runs,
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]


def check_name(name: str | None) -> None:
    """Raises: UsageError if a run cannot be called that."""
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: expected letters, digits and ._- after a letter")
