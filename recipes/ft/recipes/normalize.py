"""Recipe -> FlatRecipe: current spelling, typed, every problem collected. Decides nothing and reads no file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ft.recipes.errors import KeyPath, Problem, Severity
from ft.recipes.load import Recipe
from ft.recipes.schema import SECTION_OF, SECTIONS, FlatRecipe
from ft.recipes.schema.base import Section
from ft.recipes.vocabulary import (
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    IGNORED,
    NEUTRAL,
    NOT_OFF,
    PLANNED,
    PLANNED_VALUES,
    RENAMED,
)


@dataclass(frozen=True, slots=True)
class Normalized:
    """A typed recipe without its broken keys, and what is wrong with those."""

    recipe: Recipe
    flat: FlatRecipe
    problems: tuple[Problem, ...]
    origin: Mapping[str, str]
    """Key of today -> older spelling in the file, where it has one."""

    def as_written(self, key: KeyPath) -> KeyPath:
        """`key` by the name that stands in the file."""
        return (self.origin.get(str(key[0]), key[0]), *key[1:]) if key else key

    @property
    def broken(self) -> frozenset[str]:
        """Top-level keys that have an error: what a rule would say about them is noise."""
        return frozenset(
            str(p.key[0]) for p in self.problems if p.key and p.severity is not Severity.WARNING
        )


def normalize(recipe: Recipe) -> Normalized:
    """Typed sections of `recipe`; problems are returned, never raised."""
    problems: list[Problem] = []
    values, origin = _current_spelling(recipe, problems)
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        if key in SECTION_OF:
            sections[SECTION_OF[key]][key] = value
        else:
            problems.extend(_foreign(recipe, key, value))
    typed: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        typed[name], found = _typed(section, sections[name], recipe, origin)
        problems.extend(found)
    flat = FlatRecipe(**typed)  # type: ignore[arg-type]  # by section name
    return Normalized(recipe, flat, tuple(problems), origin)


def _current_spelling(
    recipe: Recipe, problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values under today's names, without unset ones; and today's name -> name in the file."""
    values = {key: value for key, value in recipe.values.items() if _is_set(value)}
    origin: dict[str, str] = {}
    for old, new in RENAMED.items():
        if old in values:
            problems.extend(_move(recipe, values, old, new, values[old]))
            origin[new] = old
    for flag, name in ATTENTION_FLAGS.items():
        if flag not in values:
            continue
        if values[flag] is True:
            problems.extend(_move(recipe, values, flag, "attn_implementation", name))
            origin["attn_implementation"] = flag
        elif values[flag] is False:
            del values[flag]
    if "batch_size" in values:
        _apply_batch_size(recipe, values, problems)
        origin["gradient_accumulation_steps"] = "batch_size"
    values = {key: _drop_unset(value) for key, value in values.items()}
    for dataset in values["datasets"] if isinstance(values.get("datasets"), list) else []:
        if isinstance(dataset, dict):
            _current_dataset(dataset)
    return values, origin


def _is_set(value: object) -> bool:
    """`key:` without a value, and `key: ""` as Axolotl's examples write it, mean that it is not set."""
    return value is not None and value != ""


def _drop_unset(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop_unset(item) for key, item in value.items() if item is not None}
    return [_drop_unset(item) for item in value] if isinstance(value, list) else value


def _move(
    recipe: Recipe, values: dict[str, Any], old: str, new: str, value: object
) -> Iterator[Problem]:
    del values[old]
    if values.setdefault(new, value) != value:
        message = (
            f"is the older spelling of `{new}`, which says {values[new]}. Keep one of the two."
        )
        yield recipe.problem("", (old,), message)


def _apply_batch_size(recipe: Recipe, values: dict[str, Any], problems: list[Problem]) -> None:
    """batch_size = micro_batch_size · gradient_accumulation_steps, per process, as in Axolotl."""
    batch = values.pop("batch_size")
    micro = values.get("micro_batch_size", 1)
    if not isinstance(micro, int) or micro < 1:
        return
    if "gradient_accumulation_steps" in values:
        message = (
            "stands beside `gradient_accumulation_steps`; it decides the same. Keep one of the two."
        )
    elif not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        message = f"expected a whole number of rows, got {batch!r}"
    elif batch % micro:
        message = f"{batch} is not a multiple of micro_batch_size {micro}"
    else:
        values["gradient_accumulation_steps"] = batch // micro
        return
    problems.append(recipe.problem("", ("batch_size",), message))


def _current_dataset(dataset: dict[str, Any]) -> None:
    for old, (key, sub) in DATASET_RENAMED.items():
        if old in dataset and isinstance(dataset.get(key, {}), dict):
            dataset.setdefault(key, {}).setdefault(sub, dataset.pop(old))


def _foreign(recipe: Recipe, key: str, value: object) -> Iterator[Problem]:
    """What to say about a key that no section has."""
    path = (key,)
    if key in IGNORED:
        yield recipe.problem("", path, f"ignored: {IGNORED[key]}.", severity=Severity.WARNING)
    elif key in NEUTRAL and value == NEUTRAL[key]:
        return
    elif key in PLANNED:
        if value is not False or key in NOT_OFF:
            message = "not runnable yet: a key of Axolotl that this version of ft cannot do"
            yield recipe.problem("", path, message, severity=Severity.PLANNED)
    else:
        known = [*SECTION_OF, *PLANNED, *RENAMED]
        yield recipe.problem("", path, f"unknown key.{suggestion(key, known)}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` with the nearest names of ours, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    near.sort(key=lambda name: name not in SECTION_OF)
    return f" Did you mean `{near[0]}`?" if near else ""


def _typed(
    section: type[Section], values: dict[str, Any], recipe: Recipe, origin: Mapping[str, str]
) -> tuple[Section, list[Problem]]:
    """Validate; take out what is broken, leaf by leaf, until the rest is whole."""
    problems: list[Problem] = []
    texts = {key: text for key, text in recipe.overrides.items() if key and key[0] in values}
    places = _Places()
    while True:
        try:
            return section.model_validate(values), problems
        except ValidationError as error:
            # Last element first, so that taking one out does not move the others of this round.
            for details in reversed(_one_per_place(error.errors(include_url=False))):
                path = _path_in(values, details["loc"])
                at = places.original(path)
                if details["type"] == "string_type" and at in texts:
                    _set(values, path, texts.pop(at))
                    continue
                if not _follows_from(details, at, problems):
                    problems.append(_problem(section, recipe, origin, at, details))
                places.remove(values, path[:-1] if details["type"] == "missing" else path)


def _follows_from(details: ErrorDetails, at: KeyPath, problems: list[Problem]) -> bool:
    """Whether this is only what taking a broken leaf out left behind."""
    if details["type"] == "missing":
        return any(problem.key == at for problem in problems)
    return details["type"] == "too_short" and any(
        problem.key[: len(at)] == at for problem in problems
    )


class _Places:
    """Takes leaves out of a value and remembers where the others stood in the file."""

    def __init__(self) -> None:
        self._indices: dict[KeyPath, list[int]] = {}

    def original(self, path: KeyPath) -> KeyPath:
        """`path` with the list indices of the file."""
        out: list[str | int] = []
        for position, part in enumerate(path):
            indices = self._indices.get(path[:position])
            out.append(indices[part] if indices is not None and isinstance(part, int) else part)
        return tuple(out)

    def remove(self, values: Any, path: KeyPath) -> None:
        if not path:
            values.clear()
            return
        for part in path[:-1]:
            values = values[part]
        if isinstance(values, list):
            index = int(path[-1])
            self._indices.setdefault(path[:-1], list(range(len(values)))).pop(index)
            values.pop(index)
        else:
            values.pop(path[-1], None)


def _one_per_place(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """One error for each place: a union reports one per member, and the last says what was expected."""
    places: dict[tuple[object, ...], ErrorDetails] = {}
    for error in errors:
        if error["type"] == "too_short" and len(errors) > 1 and error["input"]:
            continue  # The elements are there; what is wrong with each stands beside this.
        loc = tuple(part for part in error["loc"] if isinstance(part, int) or _is_key(part))
        if loc in places and places[loc]["type"] != error["type"]:
            expected = f"{places[loc]['msg']} or {error['msg'][0].lower()}{error['msg'][1:]}"
            places[loc] = {**places[loc], "msg": expected}
        else:
            places.setdefault(loc, {**error, "loc": loc})
    return list(places.values())


def _is_key(part: object) -> bool:
    """pydantic puts names of union members into a location; a key of ours is a plain word."""
    union_members = {"int", "float", "bool", "str", "tuple", "list", "dict", "function-after"}
    return (
        isinstance(part, str) and part not in union_members and not any(c in part for c in "[](),")
    )


def _path_in(values: Any, loc: tuple[Any, ...]) -> KeyPath:
    """The part of `loc` that can be followed in `values`, plus the key that is missing or unknown."""
    path: list[str | int] = []
    here = values
    for part in loc:
        path.append(part)
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            break
    return tuple(path)


def _problem(
    section: type[Section],
    recipe: Recipe,
    origin: Mapping[str, str],
    path: KeyPath,
    details: ErrorDetails,
) -> Problem:
    at = (origin.get(str(path[0]), path[0]), *path[1:])
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        return recipe.problem(
            "", at, f"unknown key.{suggestion(str(path[-1]), _siblings(section, path))}"
        )
    if kind == "missing":
        return recipe.problem("", at, "required, but not there")
    if isinstance(given, str) and given in PLANNED_VALUES.get(str(path[-1]), ()):
        message = f"not runnable yet: {given} is valid, but this version of ft cannot do it"
        return recipe.problem("", at, message, severity=Severity.PLANNED)
    return recipe.problem("", at, f"{_expected(details)}, got {_shown(given)}")


_WORDS = {
    "a valid tuple or input should be a valid string": "a list of names or one name",
    "a valid integer or input should be a valid number": "a number",
    " or input should be ": " or ",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid number": "a number",
    "a valid tuple": "a list",
}
"""pydantic's words -> a user's."""


def _expected(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Input should be ").replace("Input should be ", "")
    if details["type"] == "string_pattern_mismatch" and details["loc"][-1] == "gpu":
        return "expected NAME:COUNT such as H100:8 or cpu:2"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return (
        "expected a mapping of keys" if details["type"] == "model_type" else f"expected {message}"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _siblings(section: type[BaseModel], path: KeyPath) -> list[str]:
    """Keys that may stand where the unknown one stands."""
    model: Any = section
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        model = _model_in(model.model_fields[part].annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = getattr(annotation, "__args__", ())
    return next((found for argument in arguments if (found := _model_in(argument))), None)


def _set(values: Any, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value
