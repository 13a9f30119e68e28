"""Arguments that several commands share: one wording, one completion."""

from __future__ import annotations

from typing import Annotated

import typer

from ft.launcher.cli import complete

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
