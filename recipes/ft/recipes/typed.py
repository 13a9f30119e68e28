"""Values -> a typed section: every problem with its line, what is broken taken out, the rest kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ft.recipes.errors import KeyPath, Problem
from ft.recipes.load import Recipe
from ft.recipes.nearest import nearest, suggestion
from ft.recipes.schema.base import Section, built, nested_sections
from ft.recipes.spelling import DATASET_LISTS, shown

MAX_NAMES: Final = 8
"""More are not read in the middle of a sentence."""
MAX_SUGGESTIONS: Final = 100
"""A file with more problems than this is not a recipe with typing errors."""

S = TypeVar("S", bound=Section)


class Typing:
    """Types the sections of one recipe, and keeps what is wrong with them.

    `origin` is key of today -> older spelling in the file; `indices` is list of which broken elements were
    taken out -> where in the file those stand that are left.
    """

    def __init__(self, recipe: Recipe, origin: Mapping[KeyPath, KeyPath]) -> None:
        self.problems: list[Problem] = []
        self.indices: dict[KeyPath, list[int]] = {}
        self._recipe = recipe
        self._origin = origin
        self._unread = {problem.key for problem in recipe.problems}

    def section(self, section: type[S], values: dict[str, Any]) -> S:
        """Validate `values`, which is changed: what is broken is taken out, leaf by leaf, until the rest is whole."""
        if not values:
            # Most sections of most recipes: no need to build them.
            return cast("S", section.model_construct())
        built(section)
        texts = {
            key: text for key, text in self._recipe.overrides.items() if key and key[0] in values
        }
        said, mended = set(self._unread), dict[KeyPath, object]()
        while True:
            try:
                typed: S = section.model_validate(values)
                return typed
            except ValidationError as error:
                gone: set[KeyPath] = set()
                for path, found in _by_place(error.errors(include_url=False), values).items():
                    at = as_in_file(path, self.indices)
                    if at in texts and "string_type" in found.kinds:
                        _set(values, path, texts.pop(at))
                        continue
                    if at not in mended and (meant := _meant(found)) is not None:
                        mended[at] = found.details["input"]
                        _set(values, path, meant)
                        continue
                    details = found.details
                    # What stands in for a value that could not be read.
                    unread = at in self._unread and details["input"] in (None, {}, [])
                    if not unread and not _follows_from(details, at, said):
                        written = mended.get(at, details["input"])
                        self.problems.append(self._problem(section, at, details, written))
                    said.add(at)
                    gone.add(path[:-1] if details["type"] == "missing" else path)
                # Last element first, so that taking one out does not move the others of this round.
                for path in sorted(gone, reverse=True):
                    self._remove(values, path)

    def _remove(self, values: Any, path: KeyPath) -> None:
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

    def _problem(
        self, section: type[Section], path: KeyPath, details: ErrorDetails, given: object
    ) -> Problem:
        at = as_written(path, self._origin)
        kind = details["type"]
        if kind == "extra_forbidden":
            known = _siblings(section, path) if len(self.problems) < MAX_SUGGESTIONS else []
            return self._recipe.problem("", at, f"unknown key.{suggestion(str(path[-1]), known)}")
        if kind == "missing":
            return self._recipe.problem("", at, "required, but not there")
        if kind == "value_error":
            return self._recipe.problem("", at, details["msg"].removeprefix("Value error, "))
        expected = _expected(path, details)
        message = (
            f"{expected}, got {shown(given)}{_example(path, details, given) or _way_out(details)}"
        )
        return self._recipe.problem("", at, message)


def as_written(key: KeyPath, origin: Mapping[KeyPath, KeyPath]) -> KeyPath:
    """`key` by the name that stands in the file."""
    for end in range(len(key), 0, -1):
        if key[:end] in origin:
            return (*origin[key[:end]], *key[end:])
    return key


def _follows_from(details: ErrorDetails, at: KeyPath, said: set[KeyPath]) -> bool:
    """Whether this is only what taking a broken leaf out left behind."""
    if details["type"] == "missing":
        return at in said
    return details["type"] == "too_short" and any(key[: len(at)] == at for key in said)


def as_in_file(path: KeyPath, indices: Mapping[KeyPath, Sequence[int]]) -> KeyPath:
    """`path` with the list indices of the file."""
    out: list[str | int] = []
    for position, part in enumerate(path):
        left = indices.get(path[:position])
        out.append(left[part] if left is not None and isinstance(part, int) else part)
    return tuple(out)


class _Found:
    """What the members of a union, or the one type, say about one place."""

    def __init__(self, details: ErrorDetails) -> None:
        self.details = details
        self.kinds = {details["type"]}

    def add(self, error: ErrorDetails) -> None:
        if error["type"] not in self.kinds:
            self.kinds.add(error["type"])
            if self.details["type"] == "value_error":
                return  # A sentence of its own.
            message = f"{self.details['msg']} or {error['msg'][0].lower()}{error['msg'][1:]}"
            self.details = {**self.details, "msg": message}


def _by_place(errors: list[ErrorDetails], values: Any) -> dict[KeyPath, _Found]:
    """Errors by their place in `values`: a union reports one per member, each says what it expected."""
    places: dict[KeyPath, _Found] = {}
    for error in errors:
        path, details = _path_in(values, error), error
        if error["type"] == "missing" and path[-1:] != error["loc"][-1:]:
            # An element that a list of fixed length lacks: there is no key to name.
            details = {**error, "type": "too_few", "msg": "Input should be a longer list"}
        if path in places:
            places[path].add(details)
        else:
            places[path] = _Found(details)
    # A member of a union that takes a list has said which elements are wrong; the other ones want no list.
    around = {path[:end] for path in places for end in range(len(path))}
    return {path: found for path, found in places.items() if path not in around}


_WHOLE: Final = re.compile(r"[-+]?[0-9][0-9_]*")
_EXACT: Final = 2**53
"""Up to here a float names one whole number."""
_NUMBER: Final = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?")
_SWITCH: Final = {
    **dict.fromkeys(("true", "yes", "on", "1", 1), True),
    **dict.fromkeys(("false", "no", "off", "0", 0), False),
}


def _meant(found: _Found) -> object | None:
    """The value that a person means who writes a number or switch in another form: "16", 16.0, "true"; else None."""
    given = found.details["input"]
    if isinstance(given, str) and len(given) > 40:
        return None
    if "bool_type" in found.kinds and not isinstance(given, bool):
        plain = given.lower() if isinstance(given, str) else given
        if isinstance(plain, str | int) and plain in _SWITCH:
            return _SWITCH[plain]
    if given is False and found.kinds & {"int_type", "float_type"}:
        return 0  # "Off", as Axolotl reads it too.
    if "int_type" in found.kinds:
        if isinstance(given, str) and _WHOLE.fullmatch(given):
            return _whole(given.replace("_", ""))
        if isinstance(given, float) and abs(given) < _EXACT and given == int(given):
            return int(given)
    if "float_type" in found.kinds and isinstance(given, str) and _NUMBER.fullmatch(given):
        return float(given.replace("_", ""))
    return None


def _whole(digits: str) -> int | None:
    """None for `010`, which is 8 to one reader and 10 to another."""
    value = int(digits)
    octal = digits.lstrip("+-").startswith("0") and not {"8", "9"} & set(digits)
    return None if octal and int(digits, 8) != value else value


def _path_in(values: Any, error: ErrorDetails) -> KeyPath:
    """Where in `values` the error is, a missing key included. pydantic's names of union members are left out."""
    path: list[str | int] = []
    here = values
    for part in error["loc"]:
        if isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif error["type"] != "missing" or part != error["loc"][-1] or not isinstance(here, dict):
            continue  # A member of a union; or an element that a list of fixed length lacks.
        path.append(part)
    return tuple(path)


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
    "a whole number or a finite number": "a finite number",
}
"""pydantic's words -> a user's."""

_FILE: Final = re.compile(r"[\w./~-]+")
_GLUED: Final = re.compile(r"(\w+):(\w[^ ]*)")
_FORMS: Final[Mapping[KeyPath, str]] = {
    ("cloud", "gpu"): "NAME:COUNT such as H100:8 or cpu:2",
    ("cloud", "timeout"): "seconds, or 90m, 6h, 1d",
}
"""What a value with a form of its own looks like."""


def _expected(path: KeyPath, details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Input should be ").replace("Input should be ", "")
    message = re.sub(r" or instance of \w+", "", message)
    if path in _FORMS:
        return f"expected {_FORMS[path]}"
    # Beside the names a pattern is for names that somebody knows already.
    message = re.sub(r" or string should match pattern '.*'", "", message, flags=re.IGNORECASE)
    names = len(re.findall(r"'[^']*'", message))
    if names > MAX_NAMES:
        key = ".".join(str(part) for part in path if isinstance(part, str))
        return f"expected one of the {names} values that `ft explain {key}` lists"
    if details["type"] == "model_type":
        return "expected a mapping of keys"
    if details["type"] == "too_short":
        return "expected at least one element"
    fixed = re.fullmatch(r"(?:Tuple|List) should have at (\w+) (\d+) items? .*", message)
    if fixed is not None:
        return f"expected a list of at {fixed[1]} {fixed[2]}"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"expected {message}"


def _example(path: KeyPath, details: ErrorDetails, given: object) -> str:
    """What to write instead of the name of a file where a data set is expected, or of `key:value`."""
    if not isinstance(given, str) or len(given) > 60:
        return ""
    if path[0] in DATASET_LISTS and len(path) <= 2 and _FILE.fullmatch(given):
        one = f"{{path: {given}, type: alpaca}}"
        return f". Write `{path[0]}: [{one}]`." if len(path) == 1 else f". Write `{one}`."
    glued = _GLUED.fullmatch(given) if details["type"] == "model_type" else None
    return f". Write `{glued[1]}: {glued[2]}`, with a blank." if glued else ""


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


def _siblings(section: type[Section], path: KeyPath) -> list[str]:
    """Keys that may stand where the unknown one stands."""
    here: list[type[Section]] = [section]
    for part in path[:-1]:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in here if part in model.model_fields]
            here = [inner for field in fields for inner in nested_sections(field.annotation)]
    return [key for model in here for key in model.model_fields]


def _set(values: Any, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value


def _value_suggestion(given: object, message: str) -> str:
    """`. Did you mean …?` with the nearest of the values that stand in quotes in `message`."""
    if not isinstance(given, str) or len(given) > 60:
        return ""
    known = {_plain(value): value for value in re.findall(r"'([^']*)'", message)}
    near = nearest(_plain(given), known)
    return f". Did you mean `{known[near[0]]}`?" if near else ""


def _plain(text: str) -> str:
    return text.lower().replace("-", "_").replace(" ", "_")
