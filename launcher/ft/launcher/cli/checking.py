"""`ft check`: what is wrong with a recipe, or with many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ft.launcher.cli import complete, console
from ft.launcher.cli.options import CloudOption, SetOption
from ft.recipes.errors import FtError, RecipeError, Severity, UsageError

if TYPE_CHECKING:
    from ft.recipes.errors import KeyPath, Problem

FACTS: Final = {
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
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Also name the rules that could not be checked, and why.")
]
AnswersOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help='Print {"recipes": [...]} on stdout, an element for each recipe, also of a single one.',
    ),
]


@dataclass(frozen=True, slots=True)
class Checked:
    """What there is to say about one recipe."""

    recipe: str
    """Its file, or its address without what may be secret in it."""
    problems: Sequence[Problem]
    deferred: Sequence[str] = ()
    """Rules that could not be asked."""
    error: FtError | None = None
    """Why there is no recipe at all."""

    def of(self, severity: Severity) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity is severity]

    @property
    def exit_code(self) -> int:
        if self.error is not None:
            return self.error.exit_code
        return RecipeError.exit_code if self.of(Severity.ERROR) else 0

    @property
    def result(self) -> str:
        errors, warnings = self.of(Severity.ERROR), self.of(Severity.WARNING)
        if errors:
            result = console.plural(len(errors), "problem")
        else:
            result = "not runnable yet" if self.of(Severity.PLANNED) else "runnable"
        also = console.plural(len(warnings), "warning")
        return f"{result}, {also}" if warnings else result

    @property
    def kind(self) -> str:
        """Which of the sums it counts for."""
        if self.of(Severity.ERROR):
            return "with problems"
        return "not runnable yet" if self.of(Severity.PLANNED) else "runnable"

    @property
    def planned(self) -> dict[KeyPath, Problem]:
        """Top-level key that is not runnable yet -> the first place where."""
        found: dict[KeyPath, Problem] = {}
        for problem in self.of(Severity.PLANNED):
            if problem.key:
                found.setdefault(problem.key[:1], problem)
        return found

    def place(self, problem: Problem) -> str:
        """The line of a problem, with its file where it is another one."""
        mark = problem.mark
        return str(mark.line) if mark.line and mark.file == self.source else str(mark)

    @property
    def source(self) -> str:
        """The recipe as marks name it."""
        return "<stdin>" if self.recipe == "-" else self.recipe

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


def check(
    recipes: RecipesArgument,
    *,
    cloud: CloudOption = None,
    set_: SetOption = None,
    verbose: VerboseOption = False,
    json_: AnswersOption = False,
) -> None:
    """Say everything that is wrong with a recipe; start nothing. Of several, print a table.

    Exit code 0: no problems; what is not runnable yet is none. 2: a recipe has problems. 8: none has,
    but one is not there.
    """
    from ft.launcher.cli import gallery

    with console.errors_as_json(json_):
        once([*recipes, cloud] if cloud is not None else recipes)
        if cloud == "-" and len(recipes) > 1:
            raise UsageError("--cloud -: standard input can be read once, for one recipe")
    several = len(recipes) > 1
    found = [_check(recipe, set_ or (), cloud) for recipe in recipes]
    code = min((one.exit_code for one in found if one.exit_code), default=0)
    if json_:
        console.out_json({"recipes": [one.to_json() for one in found]})
    elif several:
        _show_overview(found, verbose=verbose)
    elif found[0].error is None:
        _show(found[0], verbose=verbose)
    if not several and found[0].error is not None:
        raise found[0].error
    if code:
        raise typer.Exit(code)
    if not json_ and not several and not found[0].of(Severity.PLANNED) and recipes[0] != "-":
        console.hint(f"ft plan {gallery.shown(recipes[0])}")


def once(recipes: Sequence[str]) -> None:
    """Raises: UsageError if standard input is named twice: the second time it would be empty."""
    if recipes.count("-") > 1:
        raise UsageError("standard input can be read once: name - only once")


def _check(recipe: str, overrides: Sequence[str], cloud: str | None) -> Checked:
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery
    from ft.recipes.errors import Mark, Problem

    path = gallery.shown(recipe)
    try:
        located = gallery.locate(recipe)
        path = gallery.shown(located)
        report = dispatch.check(located, overrides, cloud=cloud).report
    except RecipeError as error:  # No YAML mapping at all; the answer has the same form.
        return Checked(gallery.shown(path), error.problems)
    except FtError as error:
        shown = gallery.shown(path)
        # The table names the recipe already.
        message = error.message.removeprefix(shown).lstrip(": ")
        return Checked(shown, [Problem("", (), message, Mark(shown, 0))], error=error)
    return Checked(gallery.shown(path), report.problems, report.deferred)


def _show(checked: Checked, *, verbose: bool) -> None:
    for problem in checked.problems:
        console.show(problem)
    _show_deferred(checked.deferred, verbose=verbose)
    console.out(console.count(checked.problems))


def _show_deferred(deferred: Sequence[str], *, verbose: bool) -> None:
    """One short line, which nearly every recipe has; the rules only where somebody asks."""
    needs = _needs(deferred)
    if verbose:
        for rules, facts in _by_facts(needs):
            verb = "was not checked: it needs" if len(rules) == 1 else "were not checked: they need"
            console.out(f"{', '.join(rules)} {verb} {facts}", "dim")
    elif needs:
        number = console.plural(len(needs), "rule")
        console.out(f"{number} could not be checked here; --verbose says which", "dim")


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


def _show_overview(found: Sequence[Checked], *, verbose: bool) -> None:
    """A line for each recipe, what is in the way below it, and the sums."""
    for one in found:
        console.out(f"{one.recipe}: {one.result}")
        for problem in one.of(Severity.ERROR):
            console.show(problem, margin="  ")
        planned = [f"{key[0]} ({one.place(problem)})" for key, problem in one.planned.items()]
        for label, keys in (("not runnable yet", planned), ("ignored", one.ignored)):
            if keys:
                console.out_words(f"{label}: {', '.join(keys)}", margin="  ")
    console.out()
    if verbose:
        _show_deferred(sorted({rule for one in found for rule in one.deferred}), verbose=True)
    kinds = ("runnable", "not runnable yet", "with problems")
    results = Counter(one.kind for one in found)
    sums = ", ".join(f"{results[kind]} {kind}" for kind in kinds)
    num_warnings = sum(len(one.of(Severity.WARNING)) for one in found)
    also = f", {console.plural(num_warnings, 'warning')}" if num_warnings else ""
    console.out(f"{len(found)} recipes: {sums}{also}")
    for line in _in_the_way(found):
        console.out(line)


def _in_the_way(found: Iterable[Checked]) -> Iterator[str]:
    """The keys that keep most recipes from running."""
    keys = Counter(key[0] for one in found for key in one.planned)
    if keys:
        most = ", ".join(f"{key} {count}" for key, count in keys.most_common(12))
        yield from console.labelled("in the way", most, margin="")
