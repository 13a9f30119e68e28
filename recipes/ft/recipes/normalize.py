"""Recipe -> FlatRecipe: current spelling, typed, every problem collected. Decides nothing and reads no file."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

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

MAX_SUGGESTIONS: Final = 100
"""A file with more problems than this is not a recipe with typing errors."""
CLOSE_ENOUGH: Final = 0.74
"""Share of letters in common: `lora_rank` and `lora_r` have 0.8, `ds_type` and `type` 0.73."""


@dataclass(frozen=True, slots=True)
class Normalized:
    """A typed recipe without its broken keys, and what is wrong with those."""

    recipe: Recipe
    flat: FlatRecipe
    problems: tuple[Problem, ...]
    origin: Mapping[str, str]
    """Key of today -> older spelling in the file, where it has one."""
    indices: Mapping[KeyPath, Sequence[int]] = field(default_factory=dict)
    """List of which broken elements were taken out -> where in the file those stand that are left."""

    def as_written(self, key: KeyPath) -> KeyPath:
        """`key` by the name that stands in the file, and with the list indices of the file."""
        if not key:
            return key
        key = _original(key, self.indices)
        return (self.origin.get(str(key[0]), key[0]), *key[1:])

    @property
    def broken(self) -> frozenset[str]:
        """Top-level keys that have an error: what a rule would say about them is noise."""
        return frozenset(str(key[0]) for key in self.broken_keys)

    @property
    def broken_keys(self) -> frozenset[KeyPath]:
        """The keys that have an error, as they stand in the file."""
        return frozenset(
            p.key for p in self.problems if p.key and p.severity is not Severity.WARNING
        )


def normalize(recipe: Recipe) -> Normalized:
    """Typed sections of `recipe`; problems are returned, never raised."""
    problems: list[Problem] = list(recipe.problems)
    values, origin = _current_spelling(recipe, problems)
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        if key in SECTION_OF:
            sections[SECTION_OF[key]][key] = value
        else:
            suggest = len(problems) < MAX_SUGGESTIONS
            problems.extend(_foreign(recipe, key, value, suggest=suggest))
    typed: dict[str, Section] = {}
    places = _Places()
    for name, section in SECTIONS.items():
        typed[name], found = _typed(section, sections[name], recipe, origin, places)
        problems.extend(found)
    flat = FlatRecipe(**typed)  # type: ignore[arg-type]  # by section name
    return Normalized(recipe, flat, tuple(problems), origin, places.indices)


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
        said = shown(values[new]) if isinstance(values[new], list | dict) else values[new]
        message = f"is the older spelling of `{new}`, which says {said}. Keep one of the two."
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
        message = f"expected a whole number of rows, got {shown(batch)}"
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


def _foreign(recipe: Recipe, key: str, value: object, *, suggest: bool) -> Iterator[Problem]:
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
        known = [*SECTION_OF, *PLANNED, *RENAMED] if suggest else []
        yield recipe.problem("", path, f"unknown key.{suggestion(key, known)}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` with the nearest name, one of ours first; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=CLOSE_ENOUGH)
    near.sort(key=lambda name: name not in SECTION_OF)
    if not near:
        return ""
    odd = next((letter for letter in word if not letter.isascii()), None)
    name = unicodedata.name(odd, f"U+{ord(odd):04X}") if odd else ""
    looks = f" `{odd}` in it is {name}." if odd else ""
    return f"{looks} Did you mean `{near[0]}`?"


def _value_suggestion(given: object, message: str) -> str:
    """`. Did you mean …?` with the nearest of the values that stand in quotes in `message`."""
    if not isinstance(given, str) or len(given) > 60:
        return ""
    known = {_plain(value): value for value in re.findall(r"'([^']*)'", message)}
    near = difflib.get_close_matches(_plain(given), known, n=1, cutoff=CLOSE_ENOUGH)
    return f". Did you mean `{known[near[0]]}`?" if near else ""


def _plain(text: str) -> str:
    return text.lower().replace("-", "_").replace(" ", "_")


def _typed(
    section: type[Section],
    values: dict[str, Any],
    recipe: Recipe,
    origin: Mapping[str, str],
    places: _Places,
) -> tuple[Section, list[Problem]]:
    """Validate; take out what is broken, leaf by leaf, until the rest is whole."""
    problems: list[Problem] = []
    texts = {key: text for key, text in recipe.overrides.items() if key and key[0] in values}
    left_out = {problem.key for problem in recipe.problems}
    said = set(left_out)
    while True:
        try:
            return section.model_validate(values), problems
        except ValidationError as error:
            gone: set[KeyPath] = set()
            for path, details in _one_per_place(error.errors(include_url=False), values).items():
                at = _original(path, places.indices)
                if details["type"] == "string_type" and at in texts:
                    _set(values, path, texts.pop(at))
                    continue
                # What stands in for a value that could not be read.
                unread = at in left_out and details["input"] in (None, {}, [])
                if not unread and not _follows_from(details, at, said):
                    suggest = len(problems) < MAX_SUGGESTIONS
                    problems.append(_problem(section, recipe, origin, at, details, suggest=suggest))
                said.add(at)
                gone.add(path[:-1] if details["type"] == "missing" else path)
            # Last element first, so that taking one out does not move the others of this round.
            for path in sorted(gone, reverse=True):
                places.remove(values, path)


def _follows_from(details: ErrorDetails, at: KeyPath, said: set[KeyPath]) -> bool:
    """Whether this is only what taking a broken leaf out left behind."""
    if details["type"] == "missing":
        return at in said
    return details["type"] == "too_short" and any(key[: len(at)] == at for key in said)


class _Places:
    """Takes leaves out of a value and remembers where the others stood in the file."""

    def __init__(self) -> None:
        self.indices: dict[KeyPath, list[int]] = {}

    def remove(self, values: Any, path: KeyPath) -> None:
        if not path:
            values.clear()
            return
        for part in path[:-1]:
            values = values[part]
        if isinstance(values, list):
            index = int(path[-1])
            if path[:-1] not in self.indices:
                self.indices[path[:-1]] = list(range(len(values)))
            self.indices[path[:-1]].pop(index)
            values.pop(index)
        else:
            values.pop(path[-1], None)


def _original(path: KeyPath, indices: Mapping[KeyPath, Sequence[int]]) -> KeyPath:
    """`path` with the list indices of the file."""
    out: list[str | int] = []
    for position, part in enumerate(path):
        left = indices.get(path[:position])
        out.append(left[part] if left is not None and isinstance(part, int) else part)
    return tuple(out)


def _one_per_place(errors: list[ErrorDetails], values: Any) -> dict[KeyPath, ErrorDetails]:
    """One error for each place in `values`: a union reports one per member, each says what it expected."""
    places: dict[KeyPath, ErrorDetails] = {}
    for error in errors:
        path = _path_in(values, error)
        if path in places and places[path]["type"] != error["type"]:
            expected = f"{places[path]['msg']} or {error['msg'][0].lower()}{error['msg'][1:]}"
            places[path] = {**places[path], "msg": expected}
        else:
            places.setdefault(path, error)
    # A member of a union that takes a list has said which elements are wrong; the other ones want no list.
    around = {path[:end] for path in places for end in range(len(path))}
    return {path: error for path, error in places.items() if path not in around}


def _path_in(values: Any, error: ErrorDetails) -> KeyPath:
    """Where in `values` the error is, a missing key included. pydantic's names of union members are left out."""
    path: list[str | int] = []
    here = values
    for part in error["loc"]:
        if isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif error["type"] != "missing":
            continue
        path.append(part)
    return tuple(path)


def _problem(
    section: type[Section],
    recipe: Recipe,
    origin: Mapping[str, str],
    path: KeyPath,
    details: ErrorDetails,
    *,
    suggest: bool,
) -> Problem:
    at = (origin.get(str(path[0]), path[0]), *path[1:])
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        known = _siblings(section, path) if suggest else []
        return recipe.problem("", at, f"unknown key.{suggestion(str(path[-1]), known)}")
    if kind == "missing":
        return recipe.problem("", at, "required, but not there")
    if isinstance(given, str) and given in PLANNED_VALUES.get(str(path[-1]), ()):
        message = f"not runnable yet: {given} is valid, but this version of ft cannot do it"
        return recipe.problem("", at, message, severity=Severity.PLANNED)
    expected = _expected(path, details)
    return recipe.problem("", at, f"{expected}, got {shown(given)}{_way_out(details)}")


_WORDS = {
    "a valid tuple or input should be a valid string": "a list of names or one name",
    "a valid integer or input should be a valid number": "a number",
    " or input should be ": " or ",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid number": "a number",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping of keys",
}
"""pydantic's words -> a user's."""

_FORMS: Final[Mapping[KeyPath, str]] = {
    ("cloud", "gpu"): "NAME:COUNT such as H100:8 or cpu:2",
    ("cloud", "timeout"): "seconds, or 90m, 6h, 1d",
}
"""What a value with a form of its own looks like."""


def _expected(path: KeyPath, details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Input should be ").replace("Input should be ", "")
    if path in _FORMS:
        return f"expected {_FORMS[path]}"
    if details["type"] == "model_type":
        return "expected a mapping of keys"
    if details["type"] == "too_short":
        return "expected at least one element"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"expected {message}"


def _way_out(details: ErrorDetails) -> str:
    """What to do about a value that YAML reads in its own way, or that is nearly right."""
    kind, given = details["type"], details["input"]
    if kind in {"literal_error", "string_type"} and isinstance(given, bool):
        return f", which is how YAML reads {'yes and on' if given else 'no and off'}"
    if kind == "string_type" and isinstance(given, int | float | date):
        return ". Quotes make it text."
    if kind == "tuple_type" and isinstance(given, dict) and given:
        return ". Put `- ` in front of each element."
    return _value_suggestion(given, details["msg"]) if kind == "literal_error" else ""


def shown(value: object) -> str:
    """A value as a user would know it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"the date {value}" if isinstance(value, date) else repr(value)
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
