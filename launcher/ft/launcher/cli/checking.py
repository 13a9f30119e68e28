"""`ft check`: what is wrong with a recipe, or with many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft.launcher.cli import complete, console
from ft.launcher.cli.options import JsonOption, SetOption
from ft.recipes.errors import FtError, RecipeError, Severity, UsageError

if TYPE_CHECKING:
    from ft.recipes.errors import Problem

FACTS = {
    "files": "the files",
    "machine": "the machine",
    "model_config": "the model's config.json, which is not on this machine",
}

RecipesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE",
        help="Recipe files, names in the gallery, https addresses, or - for standard input.",
        autocompletion=complete.recipes,
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Checked:
    """What there is to say about one recipe."""

    recipe: str
    """Its file, or its address without what may be secret in it."""
    problems: Sequence[Problem]
    deferred: Sequence[str]
    """Rules that could not be asked."""

    def of(self, severity: Severity) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity is severity]

    @property
    def result(self) -> str:
        errors = self.of(Severity.ERROR)
        if errors:
            return console.plural(len(errors), "problem")
        return "not runnable yet" if self.of(Severity.PLANNED) else "runnable"

    def keys(self, severity: Severity) -> list[str]:
        """Top-level keys of these problems, each once."""
        return list(dict.fromkeys(str(p.key[0]) for p in self.of(severity) if p.key))

    @property
    def ignored(self) -> list[str]:
        """Keys that Axolotl ignores too."""
        return [p.dotted for p in self.problems if p.message.startswith("ignored: ")]

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "errors": len(self.of(Severity.ERROR)),
            "planned": len(self.of(Severity.PLANNED)),
            "warnings": len(self.of(Severity.WARNING)),
            "problems": [problem.to_json() for problem in self.problems],
            "deferred": [
                {"rule": rule, "needs": needs} for rule, needs in _needs(self.deferred).items()
            ],
        }


def check(recipes: RecipesArgument, *, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Say everything that is wrong with a recipe; start nothing. Of several, print a table."""
    from ft.launcher.cli import gallery

    several = len(recipes) > 1
    if recipes.count("-") > 1:
        raise UsageError("standard input can be read once: name - only once")
    found = [_check(recipe, set_ or (), several=several) for recipe in recipes]
    if json_:
        answers = [one.to_json() for one in found]
        console.out_json(answers if several else answers[0])
    elif several:
        for line in _overview(found):
            console.out(line)
    else:
        _show(found[0])
    if any(one.of(Severity.ERROR) for one in found):
        raise typer.Exit(RecipeError.exit_code)
    if not json_ and not several and not found[0].of(Severity.PLANNED):
        console.hint(f"ft plan {gallery.shown(recipes[0])}")


def _check(recipe: str, overrides: Sequence[str], *, several: bool) -> Checked:
    """Raises: NotFoundError and such for a recipe that is not there, unless there are `several`."""
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery
    from ft.recipes.errors import Mark, Problem

    path = gallery.shown(recipe)
    try:
        located = gallery.locate(recipe)
        path = gallery.shown(located)
        report = dispatch.check(located, overrides).report
    except RecipeError as error:  # No YAML mapping at all; the answer has the same form.
        return Checked(path, error.problems, ())
    except FtError as error:
        if not several:
            raise
        # The table names the recipe already.
        message = error.message.removeprefix(path).lstrip(": ")
        return Checked(path, [Problem("", (), message, Mark(path, 0))], ())
    return Checked(path, report.problems, report.deferred)


def _show(checked: Checked) -> None:
    for problem in checked.problems:
        console.out(console.describe(problem))
    for rules, facts in _by_facts(_needs(checked.deferred)):
        verb = "was not checked: it needs" if len(rules) == 1 else "were not checked: they need"
        console.out(f"{', '.join(rules)} {verb} {facts}", "dim")
    console.out(console.count(checked.problems))


def _by_facts(needs: dict[str, list[str]]) -> Iterator[tuple[list[str], str]]:
    """Deferred rules and what they would have needed, those with the same needs together."""
    rules: dict[str, list[str]] = {}
    for rule, facts in needs.items():
        rules.setdefault(" and ".join(FACTS.get(fact, fact) for fact in facts), []).append(rule)
    return ((names, facts) for facts, names in rules.items())


def _needs(deferred: Sequence[str]) -> dict[str, list[str]]:
    """Rule -> facts that it would have needed."""
    from ft.recipes.rules import RULES

    return {rule.id: list(rule.needs) for rule in RULES if rule.id in deferred}


def _overview(found: Sequence[Checked]) -> Iterator[str]:
    """A line for each recipe, what is in the way below it, and the sums."""
    for one in found:
        yield f"{one.recipe}: {one.result}"
        for problem in one.of(Severity.ERROR):
            yield f"  {problem}"
        planned = one.keys(Severity.PLANNED)
        for label, keys in (("not yet", planned), ("ignored", one.ignored)):
            if keys:
                yield from console.labelled(label, ", ".join(keys))
    yield ""
    results = Counter("with problems" if one.of(Severity.ERROR) else one.result for one in found)
    kinds = ("runnable", "not runnable yet", "with problems")
    sums = ", ".join(f"{results[kind]} {kind}" for kind in kinds)
    yield f"{len(found)} recipes: {sums}"
    yield from _in_the_way(found)


def _in_the_way(found: Iterable[Checked]) -> Iterator[str]:
    """The keys that keep most recipes from running."""
    keys = Counter(key for one in found for key in one.keys(Severity.PLANNED))
    if keys:
        most = ", ".join(f"{key} {count}" for key, count in keys.most_common(12))
        yield from console.labelled("in the way", most, margin="")
