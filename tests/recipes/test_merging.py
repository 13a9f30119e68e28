"""One JSON mapping over another."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.recipes.merging import merged


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, {"a": {"b": 1, "c": 3, "d": 4}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [{"b": 1}]}, {"a": [{"c": None}]}, {"a": [{"c": None}]}),
        ({"a": 1, "b": 2}, {"a": None, "c": None}, {"b": 2}),
        ({"a": {"b": 1}}, {"a": {"b": None}}, {"a": {}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 2}, {"a": {"b": 1, "c": None}}, {"a": {"b": 1}}),
        ({"a": None}, {"b": False}, {"a": None, "b": False}),
        ({"a": (1, 2)}, {}, {"a": [1, 2]}),
    ],
)
def test_what_comes_out(
    base: dict[str, Any], over: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merged(base, over) == expected


def test_the_order_is_that_of_the_base_and_then_of_the_other() -> None:
    assert [*merged({"b": 1, "a": 1, "d": 1}, {"c": 1, "a": {"x": 1}, "b": None})] == [
        "a",
        "d",
        "c",
    ]


KEYS = st.sampled_from("abc")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=3)


def without_nulls(value: Any) -> Any:
    """Without the keys that are null, however deep; lists are as they are."""
    if not isinstance(value, dict):
        return value
    return {key: without_nulls(item) for key, item in value.items() if item is not None}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is no mapping, or an empty one, with where it stands."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def at(value: Any, path: tuple[str, ...]) -> Any:
    """`...` where there is nothing."""
    for key in path:
        value = value.get(key, ...) if isinstance(value, dict) else ...
    return value


@given(MAPPINGS, MAPPINGS)
def test_what_is_above_counts_and_what_it_does_not_name_stays(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    found = merged(base, over)
    for path, value in leaves(over):
        if path and value is None:
            assert at(found, path) is ...
        elif path and value != {}:
            assert at(found, path) == value
    for path, value in leaves(base):
        if path and not any(at(over, path[:end]) is not ... and not isinstance(at(over, path[:end]), dict)
                            for end in range(1, len(path) + 1)):  # fmt: skip
            # Nothing above names it, or only as a mapping, into which it goes.
            assert at(found, path) == value or isinstance(at(over, path), dict)


@given(MAPPINGS, MAPPINGS)
def test_again_changes_nothing_and_nothing_changes_nothing(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    once = merged(base, over)
    assert merged(once, over) == once
    assert merged(base, {}) == base
    assert merged({}, over) == without_nulls(over)
    assert merged(base, base) == without_nulls(base)


@given(MAPPINGS, MAPPINGS)
def test_it_shares_nothing_with_what_it_is_made_of(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    before = copy.deepcopy((base, over))
    found = merged(base, over)
    assert json.loads(json.dumps(found)) == found
    spoil(found)
    assert (base, over) == before


def spoil(value: Any) -> None:
    """Change every mapping and list."""
    for item in [*(value.values() if isinstance(value, dict) else value)]:
        if isinstance(item, dict | list):
            spoil(item)
    if isinstance(value, dict):
        value["spoiled"] = True
    else:
        value.append("spoiled")
