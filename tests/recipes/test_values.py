"""What the schema makes of a value is what pydantic makes of it, strict: the same value, or the same complaints."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from datetime import UTC, date, datetime
from types import NoneType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ft.recipes.errors import KeyPath
from ft.recipes.schema import SECTIONS, FlatRecipe
from ft.recipes.schema.base import MismatchError, Section, Seq, limits, planned
from ft.recipes.schema.model import ModelKeys
from ft.recipes.schema.optim import LrGroup, OptimKeys
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.schema.twin import twin
from ft.recipes.schema.values import Limits

ALL = [*SECTIONS.values(), *PLUGIN_SECTIONS.values()]

ODD = st.sampled_from([
    None, True, False, 0, 1, -1, 2, 3, 2**32, 10**400, 0.0, 1.0, -0.5, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "1", "-1", "1.0", " 2 ", "true", "auto", "no", "é", "a.b", "a/b", "x\n", "6h\n", "6h", "H100:8\n",
    "H100:8", [], [1], [1, 2], [1, 2, 3], ["a"], [None], [[1, 2]], [[1]], [["a", 2]], {}, {"a": 1}, {"0": "x"},
    {"-1": "x"}, {"a": None}, [{}], [{"path": "x"}], date(2026, 1, 2), (1, 2), ("a",), {"1": 2},
])  # fmt: skip


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that are nearly of a type, and odd ones."""
    return st.one_of(_of(annotation), _of(annotation), ODD)


def _of(annotation: Any) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    plain = {
        int: st.integers(-2, 5),
        float: st.floats(-2, 3) | st.integers(-1, 3),
        bool: st.booleans(),
        str: st.text(max_size=4) | st.sampled_from(["alpaca", "6h", "H100:8", "some/one"]),
        Any: ODD,
        NoneType: st.none(),
    }
    if annotation in plain:
        return plain[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        names = st.sampled_from([*annotation.model_fields, "no_key"])
        keys = names.flatmap(lambda name: st.tuples(st.just(name), _key(annotation, name)))
        return st.lists(keys, max_size=4).map(dict)
    if origin is typing.Literal:
        return st.sampled_from([*arguments, "no such name"])
    if origin is typing.Annotated:
        return _of(arguments[0])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        names = st.sampled_from(["0", "12", "-1", "1_0", "1.0", "cpu", "x", ""])
        return st.dictionaries(names, values(arguments[1]), max_size=3)
    return st.one_of([_of(argument) for argument in arguments])


def _key(section: type[Section], name: str) -> st.SearchStrategy[Any]:
    key = section.model_fields.get(name)
    return ODD if key is None else values(key.annotation)


@st.composite
def sections(draw: st.DrawFn) -> tuple[type[Section], dict[str, Any]]:
    """A section, and what may stand at a few of its keys; those in blocks are drawn as often as the others."""
    section = draw(st.sampled_from(ALL))
    names = draw(st.lists(st.sampled_from([*section.model_fields, "no_key"]), max_size=4))
    return section, {name: draw(_key(section, name)) for name in names}


def place(given: Any, error: Any) -> KeyPath:
    """Where the error is, without pydantic's names of union members and its word for a name in a mapping."""
    path: list[str | int] = []
    here = given
    for part in error["loc"]:
        if isinstance(here, dict):
            is_there = part in here
        else:
            is_there = isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        if is_there:
            here = here[part]
        is_missing = error["type"] == "missing" and part == error["loc"][-1]
        if is_there or (is_missing and isinstance(here, dict)):
            path.append(part)
    return tuple(path)


Said = set[tuple[KeyPath, str, str]]


def pydantic_says(section: type[Section], given: dict[str, Any]) -> tuple[Any, Said]:
    try:
        return twin(section).model_validate(given), set()
    except ValidationError as error:
        said: Said = set()
        for one in error.errors(include_url=False):
            at, kind, message = place(given, one), one["type"], one["msg"]
            if kind == "missing" and isinstance(one["loc"][-1], int):
                kind, message = "too_few", "Input should be a longer list"
            said.add((at, kind, message.rpartition(" or instance of ")[0] or message))
        # It does not count elements that are wrong; nothing is missing where one of them is.
        around = {at[:end] for at, *_ in said for end in range(len(at))}
        return None, {one for one in said if one[1] != "too_short" or one[0] not in around}


def schema_says(section: type[Section], given: dict[str, Any]) -> tuple[Any, Said]:
    try:
        return section.model_validate(given), set()
    except MismatchError as error:
        return None, {
            (one.at, one.kind, one.message.rpartition(" or instance of ")[0] or one.message)
            for one in error.mismatches
        }


@settings(max_examples=800)
@given(sections())
def test_any_values_are_what_they_are_to_pydantic(drawn: tuple[type[Section], Any]) -> None:
    section, given_values = drawn
    model, theirs = pydantic_says(section, given_values)
    typed, ours = schema_says(section, given_values)
    assert ours == theirs
    if typed is not None:
        assert same(typed.model_dump(), model.model_dump())
        assert typed.model_fields_set == model.model_fields_set
        assert section.model_validate(typed.model_dump()) == typed


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same type all the way down: 1 is not 1.0, and nan is nan."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def test_half_of_a_character_is_no_text() -> None:
    half = {"cls_model_config": "a\udcff", "base_model": "a\udcff"}
    said = schema_says(ModelKeys, half)[1]
    assert said == pydantic_says(ModelKeys, half)[1]
    # Where nothing is asked of a text, nobody looks at its characters.
    assert {(at, kind) for at, kind, _ in said} == {(("cls_model_config",), "string_unicode")}


def test_json_has_plain_values() -> None:
    kept = {
        "day": date(2026, 1, 2),
        "moment": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "list": [1, None, {"a": None}],
    }
    given_values = {"overrides_of_model_config": kept, "max_memory": {"0": "1GiB", "cpu": 3}}
    printed = ModelKeys.model_validate(given_values).model_dump(mode="json", exclude_none=True)
    assert printed == {
        "overrides_of_model_config": {
            "day": "2026-01-02",
            "moment": "2026-01-02T03:00:00Z",
            "list": [1, None, {"a": None}],
        },
        "max_memory": {"0": "1GiB", "cpu": 3},
    }
    assert json.loads(json.dumps(printed)) == printed
    assert printed == twin(ModelKeys).model_validate(given_values).model_dump(
        mode="json", exclude_none=True
    )


def test_a_section_is_never_changed_and_has_no_other_attributes() -> None:
    section = OptimKeys.model_validate({"lr_groups": [{"name": "a", "modules": ["b"], "lr": 1}]})
    assert section.lr_groups == (LrGroup.model_construct(name="a", modules=("b",), lr=1.0),)
    assert section == OptimKeys(lr_groups=[{"name": "a", "modules": ("b",), "lr": 1.0}])
    assert section.model_fields_set == {"lr_groups"}
    with pytest.raises(AttributeError, match="a section is never changed"):
        section.seed = 3  # type: ignore[misc]  # what it is about
    with pytest.raises(AttributeError, match="a section is never changed"):
        del section.seed
    for holder in (section, OptimKeys):
        with pytest.raises(AttributeError):
            holder.no_such_key  # noqa: B018  # type: ignore[attr-defined]  # what it is about
    assert hash(section) == hash(OptimKeys.model_validate(section.model_dump()))


def test_what_is_wrong_is_said_with_its_place() -> None:
    with pytest.raises(MismatchError) as caught:
        OptimKeys.model_validate({"lr_groups": [{"name": "a", "modules": "b", "lr": 0}], "x": 1})
    assert str(caught.value) == (
        "OptimKeys:\n"
        "lr_groups.0.modules: Input should be a valid tuple\n"
        "lr_groups.0.lr: Input should be greater than 0\n"
        "x: Extra inputs are not permitted"
    )
    with pytest.raises(MismatchError, match="no_section: Extra inputs"):
        FlatRecipe.model_validate({"no_section": {}})


class Base(Section):
    first: int | None = planned()


class Derived(Base):
    first: typing.Annotated[int, limits(ge=3)] | None = planned()
    second: Seq[str] | None = planned(min_length=2)
    third: typing.ClassVar[int] = 3


def test_a_section_made_from_another_one_and_annotations_that_are_text() -> None:
    # This file's annotations are text, as those of a user's package may be.
    assert list(Derived.model_fields) == ["first", "second"]
    assert Derived.third == 3
    assert Derived.model_validate({"first": 3, "second": ["a", "b"]}).second == ("a", "b")
    _, said = schema_says(Derived, {"first": 2, "second": ["a"]})
    assert said == pydantic_says(Derived, {"first": 2, "second": ["a"]})[1]
    assert Limits(ge=0, is_name=True).given() == {"ge": 0, "is_name": True}


def test_the_default_of_a_key_is_declared_and_not_a_value() -> None:
    with pytest.raises(
        TypeError, match=r"weight: write `weight: … \| None = planned\(default=…\)`"
    ):
        type("Keys", (Section,), {"__annotations__": {"weight": float}, "weight": 3.0})


def test_reading_a_recipe_imports_neither_pydantic_nor_what_few_recipes_need() -> None:
    code = """
import sys
from ft.recipes.facts import Facts
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.rules import check
check(normalize(loads("base_model: a/b\\nlora_r: 8\\ndatasets: [{path: a, type: alpaca}]")), Facts(files={}))
slow = {"pydantic", "pydantic_core", "difflib", "ft.recipes.fetch", "importlib.metadata", "urllib.request"}
print(sorted(slow & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
