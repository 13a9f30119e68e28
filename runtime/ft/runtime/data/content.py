"""What a message says: its content in parts, which of them are trained, its thoughts. Pure text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ft.runtime.data.row import Detail, RowError, is_missing, kind

TEXTS: Final = ("text", "content", "value")
"""Properties of a part that may hold its text."""
FLAGS: Final = ("train", "weight")
"""Properties of a part that may say whether it is trained."""

THOUGHTS: Final = (
    ("<think>", "</think>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SOLUTION: Final = ("<|begin_of_solution|>", "<|end_of_solution|>")


class Content(NamedTuple):
    """`details` None: no part of it says whether it is trained."""

    text: str
    details: tuple[Detail, ...] | None


def objects(value: object, what: str) -> list[Mapping[str, Any]]:
    """A list of objects, from one or from its JSON text. Raises: RowError about `what`."""
    if isinstance(value, str):
        value = parsed(value, what)
    if not isinstance(value, list | tuple):
        raise RowError(f"{what} holds {kind(value)}, expected a list.")
    for number, item in enumerate(value, start=1):
        # An isinstance of an abstract class takes long, and nearly every item is a dict.
        if type(item) is not dict and not isinstance(item, Mapping):
            raise RowError(f"{what}: item {number} is {kind(item)}, expected an object.")
    return list(value)


def parsed(text: str, what: str) -> Any:
    """What JSON text says. Raises: RowError about `what`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} holds text that is not JSON: {error}.") from error


def without_nulls(value: Any) -> Any:
    """Arrow fills in every property that any row has; a template would take such a null for a value."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if not is_missing(item)}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def flag(value: object, what: str) -> bool | None:
    """True or false, also as 1 or 0; None if it is missing. Raises: RowError about `what`."""
    if is_missing(value):
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    said = f"{value}" if isinstance(value, int | float) else kind(value)
    raise RowError(f"{what} holds {said}, expected true or false.")


def from_parts(parts: list[Mapping[str, Any]], what: str) -> Content:
    """The texts of the parts, one after the other.

    As soon as one of them says whether it is trained, those that do not are trained.
    Raises: RowError if a part is no text, counted from 1.
    """
    texts, flags = [], []
    for number, part in enumerate(parts, start=1):
        here = f"{what}: part {number}"
        type_ = part.get("type")
        if not is_missing(type_) and type_ != "text":
            raise RowError(f"{here} is of type `{type_}`; only text can be trained on yet.")
        found = [key for key in TEXTS if not is_missing(part.get(key))]
        if not found:
            raise RowError(f"{here} has no text; it may stand in `text`, `content` or `value`.")
        if not isinstance(part[found[0]], str):
            held = kind(part[found[0]])
            raise RowError(f"{here}: `{found[0]}` holds {held}, expected text.")
        texts.append(part[found[0]])
        said = [flag(part.get(key), f"{here}: `{key}`") for key in FLAGS]
        flags.append(next((one for one in said if one is not None), None))
    text = "".join(texts)
    if all(one is None for one in flags):
        return Content(text, None)
    details, begin = [], 0
    for piece, train in zip(texts, flags, strict=True):
        if piece:
            details.append(Detail(begin, begin + len(piece), train is not False))
        begin += len(piece)
    return Content(text, tuple(details))


def from_offsets(listed: list[Mapping[str, Any]], length: int, what: str) -> tuple[Detail, ...]:
    """Details of a content of `length` characters, from `begin_offset`, `end_offset` (inclusive), `train`.

    They cover the content: what nobody names is not trained.
    Raises: RowError if a part lies outside the content, or two of them overlap; counted from 1.
    """
    named = []
    for number, part in enumerate(listed, start=1):
        here = f"{what}: part {number}"
        begin, end = (_offset(part, key, here) for key in ("begin_offset", "end_offset"))
        if begin > end or end >= length:
            raise RowError(
                f"{here} goes from {begin} to {end}, but the content has the characters 0 to {length - 1}."
            )
        train = flag(part.get("train"), f"{here}: `train`")
        if train is None:
            raise RowError(f"{here} has no `train`.")
        named.append(Detail(begin, end + 1, train))
    details: list[Detail] = []
    reached = 0
    for detail in sorted(named):
        if detail.begin < reached:
            raise RowError(f"{what}: two parts overlap at character {detail.begin}.")
        if detail.begin > reached:
            details.append(Detail(reached, detail.begin, False))
        details.append(detail)
        reached = detail.end
    if reached < length:
        details.append(Detail(reached, length, False))
    return tuple(details)


def _offset(part: Mapping[str, Any], key: str, here: str) -> int:
    value = part.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        said = value if isinstance(value, int) and not isinstance(value, bool) else kind(value)
        raise RowError(f"{here}: `{key}` holds {said}, expected a character's number, from 0.")
    return value


def split_thoughts(content: str) -> tuple[str, str] | None:
    """(thoughts, what is said after them), both without white space around; None if it begins with no thoughts.

    Marks that come later are text: what stands before them would be lost.
    """
    begun = content.lstrip()
    for opens, closes in THOUGHTS:
        if begun.startswith(opens):
            thoughts, found, rest = begun[len(opens) :].partition(closes)
            if not found:
                return None
            rest = rest.lstrip()
            if rest.startswith(SOLUTION[0]):
                rest, _, behind = rest[len(SOLUTION[0]) :].partition(SOLUTION[1])
                rest = f"{rest.strip()}{behind.rstrip()}"
            return thoughts.strip(), rest
    return None
