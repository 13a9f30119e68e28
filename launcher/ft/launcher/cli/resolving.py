"""What a recipe says once it is read: where each value comes from, and how two recipes differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ft.launcher.cli import console, gallery
from ft.recipes.errors import KeyPath, RecipeError, Severity
from ft.recipes.load import load
from ft.recipes.normalize import Normalized, normalize

UNSET: Final = object()
Line = tuple[str, ...]
"""Text and the styles of `console.out`."""


def read(recipe: str, overrides: Sequence[str], *, cloud: str | None = None) -> Normalized:
    """A recipe in today's spelling. Raises: RecipeError with every problem if it has an error."""
    layer = None
    if cloud is not None:
        from ft.recipes.axolotl_cloud import layer as cloud_layer

        layer = cloud_layer(cloud)
    normalized = normalize(load(gallery.locate(recipe), overrides, cloud=layer))
    if any(problem.severity is Severity.ERROR for problem in normalized.problems):
        raise RecipeError(normalized.problems)
    return normalized


def leaves(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is no mapping, with its key; elements of a list only where they are mappings."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, (*key, name))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, (*key, index))
    else:
        yield key, value


def origin_of(normalized: Normalized, key: KeyPath) -> str:
    """`recipe.yml:12`, `--set`, or `follows from KEY, recipe.yml:3`."""
    for end in range(len(key), 0, -1):
        because = normalized.implied.get(key[:end])
        if because is not None:
            source = normalized.as_written(tuple(_part(part) for part in because.split(".")))
            return f"follows from {because}, {normalized.recipe.mark(source)}"
    written = normalized.as_written(key)
    mark = normalized.recipe.mark(written)
    name = ".".join(map(str, written))
    return f"{mark}" if written == key else f"{mark} as {name}"


def _part(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def show_origin(normalized: Normalized, *, as_json: bool) -> None:
    """Every value with the place that decided it."""
    found = list(leaves(normalized.flat.flat()))
    if as_json:
        console.out_json(
            {
                _dotted(key): {"value": value, "origin": origin_of(normalized, key)}
                for key, value in found
            }
        )
        return
    # Most values are from one file; its name in every line would leave no room for them.
    own = f"{normalized.recipe.source}:"
    rows = [
        (_dotted(key), _shown(value), origin_of(normalized, key).replace(own, "line "))
        for key, value in found
    ]
    shown = normalized.recipe.source.rpartition("/")[2]
    # A key that is cut could be another one. Programs get everything.
    shrink = (1, 2) if sys.stdout.isatty() else ()
    for line in console.table((shown, "VALUE", "FROM"), rows, shrink=shrink, least=12):
        console.out(line)


@dataclass(frozen=True, slots=True)
class Change:
    """A key that two recipes disagree on; UNSET where one does not set it."""

    key: str
    one: Any
    other: Any

    def to_json(self) -> dict[str, Any]:
        sides = {"one": self.one, "other": self.other}
        return {"key": self.key} | {name: v for name, v in sides.items() if v is not UNSET}


def differences(one: Normalized, other: Normalized) -> list[Change]:
    """In the order of the sections, the keys of `one` first."""
    left, right = dict(leaves(one.flat.flat())), dict(leaves(other.flat.flat()))
    keys = [*left, *(key for key in right if key not in left)]
    changes = [Change(_dotted(key), left.get(key, UNSET), right.get(key, UNSET)) for key in keys]
    return [change for change in changes if not _same(change.one, change.other)]


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def describe(changes: Sequence[Change], one: str, other: str) -> Iterator[Line]:
    """`- key: value` of the one, `+ key: value` of the other."""
    if not changes:
        yield (f"{one} and {other} mean the same",)
        return
    yield f"--- {one}", "dim"
    yield f"+++ {other}", "dim"
    for change in changes:
        if change.one is not UNSET:
            yield f"- {change.key}: {_shown(change.one)}", "red"
        if change.other is not UNSET:
            yield f"+ {change.key}: {_shown(change.other)}", "green"


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def _shown(value: Any) -> str:
    """As in YAML, in one line; text that needs more, or that has what nobody sees, in quotes."""
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
