"""Recipe -> FlatRecipe: current spelling, typed, every problem collected. Reads no file, decides no default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft.recipes.errors import KeyPath, Mark, Problem, Severity
from ft.recipes.foreign import NOT_WHAT_IS_WRITTEN, meant_by, unknown
from ft.recipes.implied import as_lists, imply
from ft.recipes.load import Recipe
from ft.recipes.meant import switch
from ft.recipes.plugins import PLUGIN_OF, Listed, listed
from ft.recipes.runnable import complaints
from ft.recipes.schema import SECTION_OF, SECTIONS, FlatRecipe
from ft.recipes.schema.base import Section, info_of
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.spelling import LEGACY, current_spelling
from ft.recipes.typed import MAX_SUGGESTIONS, Typing, as_in_file, as_written
from ft.recipes.vocabulary import ALIASES, ELSEWHERE, IGNORED, REMOVED


@dataclass(frozen=True, slots=True)
class Normalized:
    """A typed recipe without its broken keys, and what is wrong with those."""

    recipe: Recipe
    flat: FlatRecipe
    problems: tuple[Problem, ...]
    origin: Mapping[KeyPath, KeyPath]
    """Key of today -> older spelling in the file, where it has one."""
    indices: Mapping[KeyPath, Sequence[int]] = field(default_factory=dict)
    """List of which broken elements were taken out -> where in the file those stand that are left."""
    implied: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key that stands nowhere in the file -> key of the file that it follows from."""

    def as_written(self, key: KeyPath) -> KeyPath:
        """`key` by the name that stands in the file, and with the list indices of the file."""
        return as_written(as_in_file(key, self.indices), self.origin)

    def mark(self, key: KeyPath) -> Mark:
        """Where `key`, by the name in the file, is written; a key that was filled in: what it follows from."""
        because = self.implied.get(key)
        return self.recipe.mark(self.as_written((because,)) if because else key)

    def folder_of(self, key: KeyPath) -> Path:
        """Where a relative path that stands at `key` is looked up second."""
        return self.recipe.folder_of(self.as_written(key))

    @property
    def broken(self) -> frozenset[str]:
        """Top-level keys that have an error, or are misspelt: what a rule would say about them is noise."""
        errors = [p for p in self.problems if p.key and p.severity is Severity.ERROR]
        return frozenset(key for p in errors for key in (str(p.key[0]), *p.keys))

    @property
    def broken_keys(self) -> frozenset[KeyPath]:
        """The keys that have an error, as they stand in the file."""
        return frozenset(p.key for p in self.problems if p.key and p.severity is Severity.ERROR)


def normalize(recipe: Recipe) -> Normalized:
    """Typed sections of `recipe`; problems are returned, never raised."""
    spelled = current_spelling(recipe)
    origin = {**spelled.origin, **as_lists(spelled.values)}
    implied = imply(spelled.values)
    plugins = listed(spelled.values.get("plugins"))
    problems = [*recipe.problems, *spelled.problems]
    problems += [recipe.problem("", at, text, severity=how) for at, how, text in plugins.complaints]

    by_section: dict[type[Section], dict[str, Any]] = {
        section: {} for section in [*SECTIONS.values(), *plugins.sections.values()]
    }
    home = {key: section for section in by_section for key in section.model_fields}
    for key, value in spelled.values.items():
        if key in home:
            by_section[home[key]][key] = value
        else:
            suggest = len(problems) < MAX_SUGGESTIONS
            at = as_written((key,), spelled.origin)
            problems.extend(_foreign(recipe, key, spelled.values, plugins, at=at, suggest=suggest))
    typing = Typing(recipe, origin)
    typed = {section: typing.section(section, values) for section, values in by_section.items()}
    # Every section is typed already; to do it again would double the time.
    flat = FlatRecipe.model_construct(
        **{name: typed[section] for name, section in SECTIONS.items()},
        plugin={name: typed[section] for name, section in plugins.sections.items()},
    )
    result = Normalized(
        recipe,
        flat,
        # What is wrong with a value that was filled in is wrong with the key that it came from.
        (*problems, *(p for p in typing.problems if p.key not in implied)),
        origin,
        typing.indices,
        implied,
    )
    return _with_status(result)


def _with_status(normalized: Normalized) -> Normalized:
    """Add what is not runnable yet, and what falls back."""
    found: dict[KeyPath, Problem] = {}
    for key, severity, message in complaints(normalized.flat):
        in_file = as_in_file(key, normalized.indices)
        if in_file not in normalized.implied:
            at = as_written(in_file, normalized.origin)
            found.setdefault(at, normalized.recipe.problem("", at, message, severity=severity))
    return Normalized(
        normalized.recipe,
        normalized.flat,
        (*normalized.problems, *found.values()),
        normalized.origin,
        normalized.indices,
        normalized.implied,
    )


def _foreign(
    recipe: Recipe,
    key: str,
    values: Mapping[str, object],
    plugins: Listed,
    *,
    at: KeyPath,
    suggest: bool,
) -> Iterator[Problem]:
    """What to say about a key that no section of this recipe has; `at` is how it stands in the file."""
    if key in IGNORED:
        yield recipe.problem("", at, f"ignored: {IGNORED[key]}.", severity=Severity.WARNING)
    elif key in REMOVED:
        if switch(values[key]) is False:
            message = "was removed, and this asks for nothing. Take it out."
            yield recipe.problem("", at, message, severity=Severity.WARNING)
        else:
            yield recipe.problem("", at, f"was removed: {REMOVED[key]}.")
    elif key in PLUGIN_OF:
        section = PLUGIN_SECTIONS[PLUGIN_OF[key]]
        if not info_of(section.model_fields[key]).is_off(values[key]):
            message = f"belongs to a plugin. Add `- {section.plugins[0]}` to `plugins`."
            yield recipe.problem("", at, message)
    else:
        known = (
            [*SECTION_OF, *PLUGIN_OF, *ALIASES, *LEGACY, *plugin_keys(plugins)] if suggest else []
        )
        yield _unknown(recipe, key, values, meant_by(key, known) if suggest else (), at=at)


def _unknown(
    recipe: Recipe,
    key: str,
    values: Mapping[str, object],
    meant: tuple[str, ...],
    *,
    at: KeyPath,
) -> Problem:
    """A word that is no key. One of another tool's is harmless where it only says again what our key says."""
    [target] = meant if len(meant) == 1 else [""]
    if key in ELSEWHERE and target in values and values[target] == values[key]:
        message = f"ignored: no key; it says the same as `{target}`. Take it out."
        return recipe.problem("", at, message, severity=Severity.WARNING)
    message = unknown(key, meant)
    if target in NOT_WHAT_IS_WRITTEN and target not in values:
        message = f"{message} {NOT_WHAT_IS_WRITTEN[target]}."
    # What is missing because it is misspelt is one mistake, and one problem.
    keys = (target,) if target and target not in values else ()
    return recipe.problem("", at, message, keys=keys)


def plugin_keys(plugins: Listed) -> list[str]:
    """Keys of the plugins that the recipe lists."""
    return [key for section in plugins.sections.values() for key in section.model_fields]
