"""Values -> a typed section: every problem with its line, what is broken taken out, the rest kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Final, TypeVar

from ft.recipes.errors import KeyPath, Problem, Severity
from ft.recipes.foreign import meant_below, unknown, value_meant
from ft.recipes.load import Recipe
from ft.recipes.meant import number, switch, whole
from ft.recipes.nearest import nearest
from ft.recipes.schema.base import MismatchError, Section, nested_sections
from ft.recipes.schema.values import Mismatch
from ft.recipes.secrecy import holds_a_secret
from ft.recipes.spelling import DATASET_LISTS, shown
from ft.recipes.vocabulary import older_below

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
        self._unread = {p.key for p in recipe.problems if p.severity is Severity.ERROR}

    def section(self, section: type[S], values: dict[str, Any]) -> S:
        """Validate `values`, which is changed: what is broken is taken out, leaf by leaf, until the rest is whole."""
        if not values:
            return section.model_construct()
        texts = dict(self._recipe.overrides)
        said, mended = set(self._unread), dict[KeyPath, object]()
        while True:
            try:
                return section.model_validate(values)
            except MismatchError as error:
                gone: set[KeyPath] = set()
                for path, found in _by_place(error.mismatches).items():
                    at = as_in_file(path, self.indices)
                    written = as_written(at, self._origin)
                    if written in texts and "string_type" in found.kinds:
                        _set(values, path, texts.pop(written))
                        continue
                    if at not in mended and (meant := _meant(found)) is not None:
                        mended[at] = found.first.value
                        _set(values, path, meant)
                        continue
                    first = found.first
                    # What stands in for a value that could not be read.
                    unread = at in self._unread and first.value in (None, {}, [])
                    if not unread and not _follows_from(found, at, said):
                        given = mended.get(at, first.value)
                        self.problems.append(self._problem(section, at, first, given))
                    said.add(at)
                    gone.add(path[:-1] if first.kind == "missing" else path)
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
        self, section: type[Section], path: KeyPath, wrong: Mismatch, given: object
    ) -> Problem:
        at = as_written(path, self._origin)
        kind = wrong.kind
        if kind == "extra_forbidden":
            known = _siblings(section, path) if len(self.problems) < MAX_SUGGESTIONS else []
            block, word = (
                ".".join(part for part in path[:-1] if isinstance(part, str)),
                str(path[-1]),
            )
            return self._recipe.problem("", at, unknown(word, meant_below(block, word, known)))
        if kind == "missing":
            return self._recipe.problem("", at, "required, but not there")
        if kind == "value_error":
            return self._recipe.problem("", at, wrong.message.removeprefix("Value error, "))
        if at[:2] in _UNSPOKEN:
            return self._recipe.problem("", at, f"expected {_unspoken(path, wrong)}")
        expected = _expected(path, wrong)
        if at[:2] in _UNREPEATED or (at[0] == "cloud" and holds_a_secret(str(given))):
            return self._recipe.problem("", at, expected)
        way_out = _example(path, wrong, given) or _way_out(path, wrong)
        message = f"{expected}, got {shown(given)}{way_out}"
        return self._recipe.problem("", at, message)


def as_written(key: KeyPath, origin: Mapping[KeyPath, KeyPath]) -> KeyPath:
    """`key` by the name that stands in the file."""
    for end in range(len(key), 0, -1):
        if key[:end] in origin:
            return (*origin[key[:end]], *key[end:])
    return key


def _follows_from(found: _Found, at: KeyPath, said: set[KeyPath]) -> bool:
    """Whether this is only what taking a broken leaf out left behind."""
    if "missing" in found.kinds:
        return at in said
    return bool(found.kinds & {"too_short", "too_few"}) and any(
        len(key) > len(at) and key[: len(at)] == at for key in said
    )


def as_in_file(path: KeyPath, indices: Mapping[KeyPath, Sequence[int]]) -> KeyPath:
    """`path` with the list indices of the file."""
    out: list[str | int] = []
    for position, part in enumerate(path):
        left = indices.get(path[:position])
        out.append(left[part] if left is not None and isinstance(part, int) else part)
    return tuple(out)


class _Found:
    """What the members of a union, or the one type, say about one place."""

    def __init__(self, wrong: Mismatch) -> None:
        self.first = wrong
        self.kinds = {wrong.kind}

    def add(self, other: Mismatch) -> None:
        if other.kind not in self.kinds:
            self.kinds.add(other.kind)
            if self.first.kind == "value_error":
                return  # A sentence of its own.
            message = f"{self.first.message} or {other.message[0].lower()}{other.message[1:]}"
            self.first = replace(self.first, message=message)


def _by_place(mismatches: list[Mismatch]) -> dict[KeyPath, _Found]:
    """What is wrong at each place: a union says for each member what that one expected."""
    places: dict[KeyPath, _Found] = {}
    for wrong in mismatches:
        if wrong.at in places:
            places[wrong.at].add(wrong)
        else:
            places[wrong.at] = _Found(wrong)
    # A member of a union that takes a list has said which elements are wrong; the other ones want no list.
    around = {path[:end] for path in places for end in range(len(path))}
    return {path: found for path, found in places.items() if path not in around}


def _meant(found: _Found) -> object | None:
    """The value that a person means who writes a number or switch in another form; else None."""
    given = found.first.value
    if "bool_type" in found.kinds and not isinstance(given, bool):
        on = switch(given)
        if on is not None:
            return on
    if given is False and found.kinds & {"int_type", "float_type"}:
        return 0
    if "int_type" in found.kinds and (value := whole(given)) is not None:
        return value
    if "float_type" in found.kinds and isinstance(given, str):
        return number(given)
    return None


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
    ("cloud", "autostop"): "at least 60 seconds, or 90m, 6h, 1d, or never",
    ("cloud", "cluster"): "a letter, then letters, digits and ._-",
    ("cloud", "timeout"): "seconds, or 90m, 6h, 1d",
    ("cloud", "store_bucket"): (
        "s3://BUCKET/PREFIX, or the same with gs://, az:// or r2://; "
        "a BUCKET has 3 or more of a-z 0-9 . _ -, a letter or digit first and last"
    ),
    ("cloud", "volumes", "mount"): "an absolute path such as /data",
}
"""What a value with a form of its own looks like; elements of a list have that of the list."""
_UNSPOKEN: Final = (("cloud", "secrets"), ("cloud", "env"))
"""Keys whose values no message may repeat: somebody may have put a secret there."""
_UNREPEATED: Final = (("cloud", "image"), ("cloud", "modal"), ("cloud", "store_bucket"))
"""The same; what is expected there has no words of its own."""


def _expected(path: KeyPath, wrong: Mismatch) -> str:
    message = wrong.message.removeprefix("Input should be ").replace("Input should be ", "")
    message = re.sub(r" or instance of \w+", "", message)
    form = _FORMS.get(tuple(part for part in path if isinstance(part, str)))
    if form is not None:
        return f"expected {form}"
    # Beside the names a pattern is for names that somebody knows already.
    message = re.sub(r" or string should match pattern '.*'", "", message, flags=re.IGNORECASE)
    names = len(re.findall(r"'[^']*'", message))
    if names > MAX_NAMES:
        key = ".".join(str(part) for part in path if isinstance(part, str))
        return f"expected one of the {names} values that `ft explain {key}` lists"
    if wrong.kind == "model_type":
        return "expected a mapping of keys"
    if wrong.kind == "too_short":
        return "expected at least one element"
    fixed = re.fullmatch(r"(?:Tuple|List) should have at (\w+) (\d+) items? .*", message)
    if fixed is not None:
        return f"expected a list of at {fixed[1]} {fixed[2]}"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"expected {message}"


def _example(path: KeyPath, wrong: Mismatch, given: object) -> str:
    """What to write instead of the name of a file where a data set is expected, or of `key:value`."""
    if not isinstance(given, str) or len(given) > 60:
        return ""
    if path[0] in DATASET_LISTS and len(path) <= 2 and _FILE.fullmatch(given):
        one = f"{{path: {given}, type: alpaca}}"
        return f". Write `{path[0]}: [{one}]`." if len(path) == 1 else f". Write `{one}`."
    glued = _GLUED.fullmatch(given) if wrong.kind == "model_type" else None
    return f". Write `{glued[1]}: {glued[2]}`, with a blank." if glued else ""


def _way_out(path: KeyPath, wrong: Mismatch) -> str:
    """What to do about a value that YAML reads in its own way, or that is nearly right."""
    kind, given = wrong.kind, wrong.value
    if kind in {"literal_error", "string_type"} and isinstance(given, bool):
        return f", which is how YAML reads {'yes and on' if given else 'no and off'}"
    if kind == "string_type" and isinstance(given, int | float | date):
        return ". Quotes make it text."
    if kind == "tuple_type" and isinstance(given, dict) and given:
        return ". Put `- ` in front of each element."
    return _value_suggestion(path, given, wrong.message) if kind == "literal_error" else ""


def _unspoken(path: KeyPath, wrong: Mismatch) -> str:
    """What belongs where a value stands that must not be repeated."""
    if path[1] == "secrets":
        return "a list of names, never values, such as `[HF_TOKEN]`"
    if len(path) == 2:
        return "a mapping of names to text, such as `{NCCL_DEBUG: INFO}`"
    if wrong.kind == "string_pattern_mismatch":
        return "a name of letters, digits and _ that begins with no digit"
    return "text. Quotes make it text."


def _siblings(section: type[Section], path: KeyPath) -> list[str]:
    """Keys that may stand where the unknown one stands."""
    here: list[type[Section]] = [section]
    for part in path[:-1]:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in here if part in model.model_fields]
            here = [inner for field in fields for inner in nested_sections(field.annotation)]
    known = [key for model in here for key in model.model_fields]
    return [*known, *older_below(path, known)]


def _set(values: Any, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value


def _value_suggestion(path: KeyPath, given: object, message: str) -> str:
    """`. Did you mean …?` with the nearest of the values that stand in quotes in `message`."""
    if not isinstance(given, str) or len(given) > 60:
        return ""
    known = {_plain(value): value for value in re.findall(r"'([^']*)'", message)}
    meant = value_meant(next(part for part in reversed(path) if isinstance(part, str)), given)
    near = [meant] if meant else [known[name] for name in nearest(_plain(given), known)]
    return f". Did you mean `{near[0]}`?" if near else ""


def _plain(text: str) -> str:
    return text.lower().replace("-", "_").replace(" ", "_")
