"""`ft check`, `ft resolve`, `ft plan`, `ft train`: one recipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import (
    BackendOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SimulateOption,
)
from ft.recipes.errors import RecipeError, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ft.recipes.errors import Problem
    from ft.recipes.normalize import Normalized

FACTS = {
    "files": "the files",
    "machine": "the machine",
    "model_config": "the model's config.json, which is not on this machine",
}


def check(recipe: RecipeArgument, *, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Say everything that is wrong with a recipe; start nothing."""
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery

    path = gallery.locate(recipe)
    try:
        report = dispatch.check(path, set_ or ()).report
        problems, deferred = report.problems, report.deferred
    except RecipeError as error:  # No YAML mapping at all; the answer has the same form.
        problems, deferred = tuple(error.problems), ()
    if json_:
        console.out_json(_check_json(path, problems, deferred))
    else:
        _show_check(problems, deferred)
    if any(problem.severity is Severity.ERROR for problem in problems):
        raise typer.Exit(RecipeError.exit_code)
    if not json_:
        console.hint(f"ft plan {recipe}")


def _show_check(problems: Sequence[Problem], deferred: Sequence[str]) -> None:
    for problem in problems:
        console.out(console.describe(problem))
    for rule, needs in _needs(deferred).items():
        facts = " and ".join(FACTS.get(need, need) for need in needs)
        console.out(f"{rule} was not checked: it needs {facts}", "dim")
    console.out(console.count(problems))


def _needs(deferred: Sequence[str]) -> dict[str, list[str]]:
    """Rule -> facts that it would have needed."""
    from ft.recipes.rules import RULES

    return {rule.id: list(rule.needs) for rule in RULES if rule.id in deferred}


def _check_json(path: str, problems: Sequence[Problem], deferred: Sequence[str]) -> dict[str, Any]:
    severities = [problem.severity for problem in problems]
    return {
        "recipe": path,
        "errors": severities.count(Severity.ERROR),
        "planned": severities.count(Severity.PLANNED),
        "warnings": severities.count(Severity.WARNING),
        "problems": [problem.to_json() for problem in problems],
        "deferred": [{"rule": rule, "needs": needs} for rule, needs in _needs(deferred).items()],
    }


def resolve(recipe: RecipeArgument, *, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Print the recipe in today's spelling, nothing decided yet."""
    import yaml

    from ft.launcher.cli import gallery
    from ft.recipes.load import load
    from ft.recipes.normalize import normalize

    normalized = normalize(load(gallery.locate(recipe), set_ or ()))
    if any(problem.severity is Severity.ERROR for problem in normalized.problems):
        raise RecipeError(normalized.problems)
    for problem in RecipeError(normalized.problems).problems:
        console.note(console.describe(problem))
    flat = _with_planned(normalized)
    if json_:
        console.out_json(flat)
    else:
        console.out(yaml.safe_dump(flat, sort_keys=False, allow_unicode=True).rstrip("\n"))


def _with_planned(normalized: Normalized) -> dict[str, Any]:
    """The typed recipe and, behind it, what is not runnable yet, as it stands in the file.

    Without that the printed recipe would run, and do something else.
    """
    flat = normalized.flat.flat()
    for problem in normalized.problems:
        if problem.severity is Severity.PLANNED:
            source: Any = normalized.recipe.values
            target: Any = flat
            for part in problem.key[:-1]:
                source = source[part]
                target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
            target[problem.key[-1]] = source[problem.key[-1]]
    return flat


def plan(
    recipe: RecipeArgument,
    *,
    backend: BackendOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Print everything that a run would do; start nothing."""
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery, plan_view

    prepared = dispatch.prepare(gallery.locate(recipe), set_ or (), backend=backend)
    if json_:
        sys.stdout.write(prepared.plan.to_json())
        plan_view.warn(prepared)
        return
    for line in plan_view.full(prepared):
        console.out(line)
    plan_view.warn(prepared)
    console.hint(f"ft train {recipe}")


def train(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    simulate: SimulateOption = None,
    json_: JsonOption = False,
) -> None:
    """Train on this machine and watch. Ctrl-C saves and stops the run."""
    from ft.launcher import dispatch
    from ft.launcher.cli import attach, gallery, plan_view

    prepared = dispatch.prepare(
        gallery.locate(recipe), set_ or (), backend="local", simulate=simulate or ()
    )
    for line in plan_view.short(prepared, why="`ft train` runs here"):
        console.note(line)
    plan_view.warn(prepared)
    run = attach.submit(prepared, name=None)
    attach.attach(run, as_json=json_, stop_on_interrupt=True)
