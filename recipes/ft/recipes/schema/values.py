"""Whether a value of a recipe is of a type of the schema, and what it then is.

Strict: a whole number is no text, and true is no number. What is said is what pydantic says, which reads plans:
to import it and to make its classes of some 700 keys takes longer than all the rest of reading a recipe.
`twin.py` makes pydantic's models of the same sections when somebody asks for the JSON Schema, and a test
compares the two.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from ft.recipes.errors import KeyPath


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of a value beside its type; None: nothing."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    pattern: str | None = None
    is_name: bool = False
    """For the numbers among the names of a mapping, which are text to whoever read them."""

    def given(self) -> dict[str, Any]:
        """The limits that there are, by the names that pydantic has for them too."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: limit for name, limit in named.items() if limit is not None and limit is not False
        }


@dataclass(frozen=True, slots=True)
class Also:
    """A check of a value of the right type. Raises: ValueError with a sentence for the user."""

    check: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A place in a value that is not what the type asks for; several members of a union have one each."""

    kind: str
    """pydantic's name for it: `int_type`, `missing`."""
    at: KeyPath
    """From the value that was checked."""
    message: str
    value: object
    """What stands there; for a key that is missing, the block without it."""


FAILED: Final = object()
Check = Callable[[Any, KeyPath, list[Mismatch]], Any]
"""`check(value, at, found)` is the typed value, or FAILED with what is wrong added to `found`."""


def check_of(annotation: Any, marks: Sequence[object] = ()) -> Check:
    """The check of a type; `marks` are the Limits and Also beside it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *own = arguments
        return check_of(inner, (*own, *marks))
    if origin is Union or origin is UnionType:
        return _union(arguments, marks)
    check: Check
    if origin is Literal:
        check = partial(_literal, arguments, _one_of(arguments))
    elif origin is tuple:
        check = _list(arguments)
    elif origin is dict:
        check = partial(_mapping, check_of(arguments[0]), check_of(arguments[1]))
    elif annotation is Any:
        check = _anything
    elif annotation is int and any(isinstance(mark, Limits) and mark.is_name for mark in marks):
        check = _number_in_text
    elif annotation in _PLAIN:
        check = _PLAIN[annotation]
    else:
        check = annotation.checked  # A section.
    return _with_marks(check, marks, is_one_type=True)


# ------------------------------------------------------------------------------------- one value


def _anything(value: Any, *_: object) -> Any:
    return value


def _whole(value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found.append(Mismatch("int_type", at, "Input should be a valid integer", value))
    return FAILED


_TEXT_OF_A_NUMBER: Final = re.compile(r"\s*[-+]?[0-9]+(_[0-9]+)*(\.0*)?\s*")
_MOST_DIGITS: Final = 4300


def _number_in_text(value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if isinstance(value, str) and len(value) <= _MOST_DIGITS and _TEXT_OF_A_NUMBER.fullmatch(value):
        return int(value.partition(".")[0])
    if isinstance(value, str):
        message = "Input should be a valid integer, unable to parse string as an integer"
        found.append(Mismatch("int_parsing", at, message, value))
        return FAILED
    return _whole(value, at, found)


def _number(value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            typed = float(value)
        except OverflowError:
            pass
        else:
            if typed - typed == 0:
                return typed
            message = "Input should be a finite number"
            found.append(Mismatch("finite_number", at, message, value))
            return FAILED
    found.append(Mismatch("float_type", at, "Input should be a valid number", value))
    return FAILED


def _switch(value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if isinstance(value, bool):
        return value
    found.append(Mismatch("bool_type", at, "Input should be a valid boolean", value))
    return FAILED


def _text(value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if isinstance(value, str):
        return value
    found.append(Mismatch("string_type", at, "Input should be a valid string", value))
    return FAILED


_PLAIN: Final[Mapping[Any, Check]] = {int: _whole, float: _number, bool: _switch, str: _text}


def _literal(
    values: tuple[Any, ...], words: str, value: Any, at: KeyPath, found: list[Mismatch]
) -> Any:
    for one in values:
        if type(one) is type(value) and one == value:
            return one
    for one in values:
        if one == value and not isinstance(one, str):
            return one
    found.append(Mismatch("literal_error", at, f"Input should be {words}", value))
    return FAILED


def _one_of(values: tuple[Any, ...]) -> str:
    *others, last = (repr(value) for value in values)
    return f"{', '.join(others)} or {last}" if others else last


# ------------------------------------------------------------------------- values of several parts


def _list(arguments: tuple[Any, ...]) -> Check:
    if arguments[-1] is Ellipsis:
        return partial(_elements, check_of(arguments[0]))
    return partial(_fixed, [check_of(argument) for argument in arguments])


def _elements(check: Check, value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if not isinstance(value, list | tuple):
        found.append(Mismatch("tuple_type", at, "Input should be a valid tuple", value))
        return FAILED
    before = len(found)
    typed = tuple([check(item, (*at, index), found) for index, item in enumerate(value)])
    return typed if len(found) == before else FAILED


def _fixed(checks: Sequence[Check], value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    if not isinstance(value, list | tuple):
        found.append(Mismatch("tuple_type", at, "Input should be a valid tuple", value))
        return FAILED
    before = len(found)
    if len(value) > len(checks):
        message = (
            f"Tuple should have at most {len(checks)} items after validation, not {len(value)}"
        )
        found.append(Mismatch("too_long", at, message, value))
        return FAILED
    pairs = zip(checks, value, strict=False)
    typed = tuple([check(item, (*at, i), found) for i, (check, item) in enumerate(pairs)])
    if len(value) < len(checks):
        found.append(Mismatch("too_few", at, "Input should be a longer list", value))
    return typed if len(found) == before else FAILED


def _mapping(
    name_check: Check, check: Check, value: Any, at: KeyPath, found: list[Mismatch]
) -> Any:
    if not isinstance(value, dict):
        found.append(Mismatch("dict_type", at, "Input should be a valid dictionary", value))
        return FAILED
    before = len(found)
    typed = {}
    for name, item in value.items():
        here = (*at, name)
        key = name_check(name, here, found)
        inner = check(item, here, found)
        if key is not FAILED and inner is not FAILED:
            typed[key] = inner
    return typed if len(found) == before else FAILED


def _union(arguments: tuple[Any, ...], marks: Sequence[object]) -> Check:
    members = [argument for argument in arguments if argument is not NoneType]
    if len(members) == 1:
        check = check_of(members[0], marks)
    else:
        either = partial(_either, [check_of(member) for member in members])
        check = _with_marks(either, marks, is_one_type=False)
    return partial(_optional, check) if len(members) < len(arguments) else check


def _optional(check: Check, value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    return None if value is None else check(value, at, found)


def _either(checks: Sequence[Check], value: Any, at: KeyPath, found: list[Mismatch]) -> Any:
    """The first member that takes the value as it is, else the first that takes it."""
    wrong: list[Mismatch] = []
    best: Any = FAILED
    for check in checks:
        typed = check(value, at, wrong)
        if typed is not FAILED and (best is FAILED or type(best) is not type(value)):
            if type(typed) is type(value):
                return typed
            best = typed if best is FAILED else best
    if best is FAILED:
        found += wrong
    return best


# ------------------------------------------------------------------------------------------ limits


def _with_marks(check: Check, marks: Sequence[object], *, is_one_type: bool) -> Check:
    for mark in marks:
        if isinstance(mark, Also):
            check = partial(_also, mark.check, check)
        elif isinstance(mark, Limits):
            tests = list(_tests(mark, is_one_type=is_one_type))
            if tests:
                check = partial(_limited, check, tests)
    return check


def _also(
    also: Callable[[Any], Any], check: Check, value: Any, at: KeyPath, found: list[Mismatch]
) -> Any:
    typed = check(value, at, found)
    if typed is FAILED:
        return FAILED
    try:
        return also(typed)
    except ValueError as error:
        found.append(Mismatch("value_error", at, f"Value error, {error}", value))
        return FAILED


Test = Callable[[Any], tuple[str, str] | None]
"""Kind and message of what is wrong with a value of the right type."""


def _limited(
    check: Check, tests: Sequence[Test], value: Any, at: KeyPath, found: list[Mismatch]
) -> Any:
    typed = check(value, at, found)
    if typed is FAILED:
        return FAILED
    for test in tests:
        wrong = test(typed)
        if wrong is not None:
            found.append(Mismatch(wrong[0], at, wrong[1], value))
            return FAILED
    return typed


_ORDER: Final[Mapping[str, tuple[str, str, Callable[[Any, Any], bool]]]] = {
    "le": ("less_than_equal", "less than or equal to", lambda value, limit: value <= limit),
    "lt": ("less_than", "less than", lambda value, limit: value < limit),
    "ge": ("greater_than_equal", "greater than or equal to", lambda value, limit: value >= limit),
    "gt": ("greater_than", "greater than", lambda value, limit: value > limit),
}


def _tests(limits: Limits, *, is_one_type: bool) -> Iterator[Test]:
    for name in _ORDER:
        limit = getattr(limits, name)
        if limit is not None:
            yield partial(_in_order, name, limit)
    if is_one_type and (limits.min_length is not None or limits.pattern is not None):
        yield _whole_characters
    if limits.min_length is not None:
        yield partial(_long_enough, limits.min_length, is_one_type)
    if limits.pattern is not None:
        # As everywhere but in Python, `$` is the end, and not the end before a line break.
        pattern = re.sub(r"\$$", r"\\Z", limits.pattern)
        yield partial(_like, re.compile(pattern), limits.pattern)


def _in_order(name: str, limit: float, value: Any) -> tuple[str, str] | None:
    kind, words, is_right = _ORDER[name]
    shown = int(limit) if limit == int(limit) else limit
    return None if is_right(value, limit) else (kind, f"Input should be {words} {shown}")


def _whole_characters(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # Half of a character, as a command line may have it.
            message = "Input should be a valid string, unable to parse raw data as a unicode string"
            return "string_unicode", message
    return None


def _long_enough(least: int, is_one_type: bool, value: Any) -> tuple[str, str] | None:
    if len(value) >= least:
        return None
    plural = "" if least == 1 else "s"
    if isinstance(value, str) and is_one_type:
        return "string_too_short", f"String should have at least {least} character{plural}"
    what = "Tuple" if is_one_type and isinstance(value, tuple) else "Value"
    message = f"{what} should have at least {least} item{plural} after validation, not {len(value)}"
    return "too_short", message


def _like(pattern: re.Pattern[str], shown: str, value: Any) -> tuple[str, str] | None:
    if pattern.search(value):
        return None
    return "string_pattern_mismatch", f"String should match pattern '{shown}'"


# ------------------------------------------------------------------------------------- free mappings


def _json(value: Any) -> Any:
    """Raises: ValueError if JSON cannot hold it, and a plan therefore not."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise ValueError(f"{value} is neither text nor a number, true or false. Put it into quotes")


JsonMapping = Annotated[dict[str, Any], Also(_json)]
"""A mapping of anything that JSON can hold."""
