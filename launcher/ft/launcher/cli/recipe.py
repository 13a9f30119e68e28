"""`ft resolve`, `ft diff`, `ft plan`, `ft train`: from a recipe to a run on this machine."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import (
    BackendOption,
    CloudOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SimulateOption,
)
from ft.recipes.errors import UsageError, sort_problems

OriginOption = Annotated[
    bool, typer.Option("--origin", help="Show the file and line that decided each value.")
]


def resolve(
    recipe: RecipeArgument,
    *,
    cloud: CloudOption = None,
    set_: SetOption = None,
    origin: OriginOption = False,
    json_: JsonOption = False,
) -> None:
    """Print the recipe in today's spelling, nothing decided yet."""
    import yaml

    from ft.launcher.cli import resolving

    with console.errors_as_json(json_):
        normalized = resolving.read(recipe, set_ or (), cloud=cloud)
    for problem in sort_problems(normalized.problems):
        console.show(problem, to=sys.stderr)
    if origin:
        resolving.show_origin(normalized, as_json=json_)
        return
    flat = normalized.flat.flat()
    if json_:
        console.out_json(flat)
    else:
        console.out_exactly(yaml.safe_dump(flat, sort_keys=False, allow_unicode=True))


def diff(
    one: RecipeArgument,
    other: RecipeArgument,
    *,
    json_: JsonOption = False,
) -> None:
    """Compare what two recipes mean, whatever their spelling. Exit code 1 if they differ."""
    from ft.launcher.cli import checking, gallery, resolving

    with console.errors_as_json(json_):
        checking.once((one, other))
        changes = resolving.differences(resolving.read(one, ()), resolving.read(other, ()))
    if json_:
        console.out_json([change.to_json() for change in changes])
    else:
        for line in resolving.describe(changes, gallery.shown(one), gallery.shown(other)):
            console.out(*line)
    if changes:
        raise typer.Exit(1)


def plan(
    recipe: RecipeArgument,
    *,
    backend: BackendOption = None,
    cloud: CloudOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Print everything that a run would do; start nothing."""
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery, plan_view

    with console.errors_as_json(json_):
        prepared = dispatch.prepare(
            gallery.locate(recipe), set_ or (), cloud=cloud, backend=backend
        )
    if json_:
        console.out_exactly(prepared.plan.to_json())
        plan_view.warn(prepared)
        return
    for line in plan_view.full(prepared):
        console.out(line)
    plan_view.warn(prepared)
    if recipe != "-":
        named = f" --backend {backend}" if backend else ""
        runs = "cloud run" if prepared.image is not None else "train"
        named = named if runs != "train" else ""
        sets = "".join(f" --set {shlex.quote(text)}" for text in set_ or ())
        console.hint(f"ft {runs} {gallery.shown(recipe)}{named}{sets}")


def train(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    simulate: SimulateOption = None,
    cloud: Annotated[str | None, typer.Option("--cloud", hidden=True)] = None,
    json_: JsonOption = False,
) -> None:
    """Train on this machine and watch. Ctrl-C saves and stops the run."""
    from ft.launcher import dispatch
    from ft.launcher.cli import attach, gallery, plan_view

    with console.errors_as_json(json_):
        if cloud is not None:
            # What users of Axolotl type.
            command = shlex.join(["ft", "cloud", "run", gallery.shown(recipe), "--cloud", cloud])
            raise UsageError("--cloud: `ft train` trains on this machine", hint=command)
        prepared = dispatch.prepare(
            gallery.locate(recipe), set_ or (), backend="local", simulate=simulate or ()
        )
    for line in plan_view.short(prepared, why="`ft train` runs here"):
        console.note(line)
    plan_view.warn(prepared)
    run = attach.submit(prepared, name=None)
    attach.attach(run, as_json=json_, stop_on_interrupt=True)
