"""One value put into the text of a recipe; everything else stays as it is, byte for byte.

The new text is read again: it says what the old one said, and this value, or nothing is written.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Final

from ft.recipes.errors import FtError, KeyPath, RecipeError
from ft.recipes.load import Recipe, loads

_STEP: Final = "  "
_VALUE: Final = r"""(?:"[^"]*"|'[^']*'|[^\s#'"][^\s#]*)"""


def put(text: str, source: str, key: KeyPath, value: str) -> str:
    """`text` with `value`, plain YAML in one line, at `key` of nested mappings.

    Raises: RecipeError if `text` is no recipe; FtError if the key cannot be put there safely, as in a mapping in
    brackets, with what to write by hand.
    """
    recipe = loads(text, source=source)
    lines = text.splitlines(keepends=True)
    new = "".join(_edited(lines, recipe, key, value))
    if not _says_the_same(recipe, new, key, value):
        by_hand = "\n".join(_block(key, value, ""))
        raise FtError(
            f"{recipe.mark(key)}: {'.'.join(map(str, key))} cannot be put here safely; write it by hand:\n{by_hand}"
        )
    return new


def _edited(lines: list[str], recipe: Recipe, key: KeyPath, value: str) -> list[str]:
    """The innermost mapping that is there gets the rest of `key` in front of its first line."""
    if key in recipe.marks:
        at = recipe.marks[key].line - 1
        pattern = rf"^(\s*{re.escape(str(key[-1]))}:[ \t]*){_VALUE}"
        return [*lines[:at], re.sub(pattern, rf"\g<1>{value}", lines[at]), *lines[at + 1 :]]
    for end in range(len(key) - 1, 0, -1):
        inner = _at(recipe.values, key[:end])
        first = next((recipe.marks.get((*key[:end], name)) for name in inner or ()), None)
        if first is not None:
            at = first.line - 1
            while at and lines[at - 1].lstrip().startswith("#"):
                at -= 1  # A comment belongs to the line below it.
            own = lines[first.line - 1]
            indent = own[: len(own) - len(own.lstrip(" "))]
            new = [f"{line}\n" for line in _block(key[end:], value, indent)]
            return [*lines[:at], *new, *lines[at:]]
    if lines and not lines[-1].endswith("\n"):
        lines = [*lines[:-1], f"{lines[-1]}\n"]
    return [*lines, *(f"{line}\n" for line in _block(key, value, ""))]


def _block(key: KeyPath, value: str, indent: str) -> list[str]:
    names = [f"{indent}{_STEP * depth}{name}:" for depth, name in enumerate(key)]
    return [*names[:-1], f"{names[-1]} {value}"]


def _says_the_same(old: Recipe, new: str, key: KeyPath, value: str) -> bool:
    expected: dict[str, Any] = copy.deepcopy(dict(old.values))
    inner = expected
    for name in key[:-1]:
        if inner.get(str(name)) is None:
            inner[str(name)] = {}
        inner = inner[str(name)]
        if not isinstance(inner, dict):
            return False
    inner[str(key[-1])] = value
    try:
        found = loads(new, source=old.source)
    except RecipeError:
        return False
    return found.values == expected and len(found.problems) == len(old.problems)


def _at(values: Mapping[str, Any], key: KeyPath) -> Mapping[str, Any] | None:
    found: Any = values
    for name in key:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None
