"""Reading YAML: lines, overrides, and what a recipe must never do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft.recipes.errors import FtError, NotFoundError, RecipeError, UsageError
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import Recipe, expand, load, loads, override, resolve_path
from ft.recipes.normalize import normalize
from ft.recipes.references import references
from ft.recipes.rules import check
from ft.recipes.schema import SECTION_OF, FlatRecipe
from ft.recipes.schema.data import DataKeys
from ft.recipes.schema.dataset import DatasetKeys
from ft.recipes.spelling import LEGACY


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, source="r.yml")
    return [str(problem) for problem in caught.value.problems]


def test_values_and_lines() -> None:
    recipe = loads("a: 3e-4\nb: &x {c: 1}\nd:\n  <<: *x\n  e: [1, {f: yes}]\n")
    assert recipe.values == {"a": 0.0003, "b": {"c": 1}, "d": {"c": 1, "e": [1, {"f": True}]}}
    assert str(recipe.marks[("d", "e", 1, "f")]) == "<text>:5"
    assert str(recipe.mark(("d", "e", 1, "g"))) == "<text>:5"


def test_a_key_of_the_mapping_wins_over_a_merged_one() -> None:
    assert loads("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}").values["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n\t- 1", ["r.yml:2: a tab; YAML is indented with spaces"]),
        ("a:\n  b: 1\n\tc: 2", ["r.yml:3: a tab; YAML is indented with spaces"]),
        ("- 1", ["r.yml:1: expected `key: value` lines, got list"]),
        ("a: &a [*a]", ["r.yml:1: an alias that contains itself"]),
        ("a: 1\nb: &a {<<: *a}", ["r.yml:2: an alias that contains itself"]),
        ("!!python/object/apply:os.system ['true']", [
            "r.yml:1: tag !!python/object/apply:os.system is not allowed: a recipe is data, it cannot run code"
        ]),
        ("a: 1\nb: \x07", ["r.yml:2: a control character (U+0007); is this a text file?"]),
        ("a: 1\r\nb: 2\rc: \x07", ["r.yml:3: a control character (U+0007); is this a text file?"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_explained(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("a: 1\nb: 2\na: 3\nb: 4", {"a": 1, "b": 2}, [
            "r.yml:3: a: the key stands twice; first in line 1. Keep one.",
            "r.yml:4: b: the key stands twice; first in line 2. Keep one.",
        ]),
        ("a: 1\nb: {c: [x, 2]}\na: 1\nb:\n  c: ['x',\n   2]", {"a": 1, "b": {"c": ["x", 2]}}, [
            "r.yml:3: a: the key stands twice and says the same; first in line 1. Take one out.",
            "r.yml:4: b: the key stands twice and says the same; first in line 2. Take one out.",
        ]),
        ("a: {b: 1}\na: {b: 1, c: 2}", {"a": {"b": 1}}, [
            "r.yml:2: a: the key stands twice; first in line 1. Keep one.",
        ]),
        ("a: [1]\na: ['1']", {"a": [1]}, ["r.yml:2: a: the key stands twice; first in line 1. Keep one."]),
        ("a: &x [1]\nb: *x\nb: *x", {"a": [1], "b": [1]}, [
            "r.yml:3: b: the key stands twice and says the same; first in line 2. Take one out.",
        ]),
        ("a: [{b: 1, b: 2}]\nc: 3", {"a": [{"b": 1}], "c": 3}, [
            "r.yml:1: a.0.b: the key stands twice; first in line 1. Keep one.",
        ]),
        ("a: &a {b: 1,\n b: 2}\nc: *a\nd: {<<: *a}", {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1}}, [
            "r.yml:2: a.b: the key stands twice; first in line 1. Keep one.",
        ]),
        ("a: {<<: 3, b: 1}", {"a": {"b": 1}}, ["r.yml:1: a: `<<` needs a mapping"]),
        ("a: [1, !x y, 2001-02-30]\nb: !x [1]\nc: 3", {"a": [1, None, None], "c": 3}, [
            "r.yml:1: a.1: tag !x is not allowed: a recipe is data, it cannot run code",
            "r.yml:1: a.2: '2001-02-30' is not a date. Quotes make it text.",
            "r.yml:2: b: tag !x is not allowed: a recipe is data, it cannot run code",
        ]),
        ("a: 07\nb: -0_10\nc: 0_\nd: '010'\ne: 0", {"a": 7, "c": 0, "d": "010", "e": 0}, [
            "r.yml:2: b: -0_10 is octal in YAML: -8. Write -8, or -10 without the zero in front.",
        ]),
        ("a: =\nb: <<\nc: yes", {"a": "=", "b": "<<", "c": True}, []),
    ],
)  # fmt: skip
def test_a_problem_of_one_key_leaves_the_others(
    text: str, values: dict[str, Any], expected: list[str]
) -> None:
    recipe = loads(text, source="r.yml")
    assert recipe.values == values
    assert [str(problem) for problem in recipe.problems] == expected


def test_a_flow_sequence_that_is_not_closed_names_its_line() -> None:
    assert problems("a: 1\nb: [1\nc: 2\n") == [
        "r.yml:3: not YAML: did not find expected ',' or ']' (while parsing a flow sequence that begins in line 2)"
    ]


def test_aliases_that_expand_without_end_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    # 12 + 112 + 1112 + 11112 values; the next line has 111112.
    assert problems("\n".join(lines)) == [
        "r.yml:5: too much for a recipe: its aliases stand for more than 20000 values"
    ]


def test_merges_are_read_once_however_often_they_are_named() -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 100)]
    assert loads("\n".join(lines)).values == {f"a{i}": {"k": 1} for i in range(100)}


# What YAML is made of, for texts that come near it.
PIECES = [
    "a", "base_model", "datasets", "path", "seed", "cloud", ": ", ":", "- ", "? ", "\n", "\n  ", "\n    ", "[", "]",
    "{", "}", ", ", "&a ", "*a", "<<: *a", "<<", "!!int ", "!!set ", "!x ", "!!python/name:os.system ", "'", '"', "|",
    ">", "#", " #", "%", "---", "...", "\t", "=", "~", "yes", "010", "1:30", "2001-02-30", ".nan", "1e999", "-", "é",
    "\u200b", "\ufeff", "\0", "\r", "\u2028", "null", "9" * 5000,
]  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.text(max_size=8),
    st.sampled_from(["auto", "lora", "H100:8", "cpu:2", "6h", "rows.jsonl", "alpaca", "chatml", "qlora", "x" * 300]),
)  # fmt: skip
WORDS = st.sampled_from(
    [
        *SECTION_OF, *LEGACY, *DataKeys.model_fields, *DatasetKeys.model_fields,
        "gpu", "nodes", "timeout", "max_cost", "role", "batch_size", "sample_packing", "xyzzy", "0",
    ]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
FACTS = Facts(
    files={},
    model_config={"max_position_embeddings": 8},
    machine=Machine("cuda", "T4", 8, 1, False, False),
)


def go(act: Callable[[], Recipe]) -> None:
    """Read, type and rule: an FtError, or problems and a flat recipe. Anything else is a traceback."""
    try:
        recipe = act()
    except FtError as error:
        assert str(error)
        return
    normalized = normalize(recipe)
    assert FlatRecipe.model_validate(normalized.flat.model_dump()) == normalized.flat
    assert [reference.value for reference in references(normalized.flat)].count("") == 0
    report = check(normalized, FACTS)
    assert len(report.problems) >= len(normalized.problems)
    assert all(str(problem) for problem in report.problems)
    assert json.dumps([problem.to_json() for problem in report.problems])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=64)
    | st.lists(st.sampled_from(PIECES), max_size=30).map(lambda p: "".join(p).encode())
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yml").write_bytes(content)
    go(lambda: load(tmp_path / "r.yml"))


@settings(max_examples=150)
@given(st.dictionaries(WORDS, VALUES, max_size=6))
def test_any_mapping_is_typed_or_refused(values: dict[str, Any]) -> None:
    go(lambda: loads(yaml.safe_dump(values, allow_unicode=True)))


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(WORDS | st.text(max_size=6), st.lists(st.sampled_from(PIECES), max_size=6)),
        max_size=3,
    )
)
def test_any_override_is_taken_or_refused(items: list[tuple[str, list[str]]]) -> None:
    recipe = loads("base_model: x\ndatasets: [{path: a, type: alpaca}]\ncloud: {gpu: cpu}\n")
    go(lambda: override(recipe, [f"{key}={''.join(pieces)}" for key, pieces in items]))


def test_overrides_are_typed_and_reach_into_lists() -> None:
    recipe = override(
        loads("datasets: [{path: a}]\nlora_r: 8"),
        ["datasets.0.path=b", "cloud.gpu=cpu:2", "learning_rate=1e-4", "lora_r="],
    )
    assert recipe.values == {
        "datasets": [{"path": "b"}],
        "lora_r": None,
        "cloud": {"gpu": "cpu:2"},
        "learning_rate": 0.0001,
    }
    assert str(recipe.mark(("cloud", "gpu"))) == "--set"


@pytest.mark.parametrize("item", ["lora_r", "=3", "datasets.1.path=x", "a..b=1", "lora_r.0=1"])
def test_an_override_that_fits_nowhere_is_a_usage_error(item: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        override(loads("datasets: [{path: a}]\nlora_r: 8"), [item])


def test_an_override_does_not_change_the_recipe_it_came_from() -> None:
    before = loads("datasets: [{path: a}]")
    override(before, ["datasets.0.path=b"])
    assert before.values == {"datasets": [{"path": "a"}]}


def test_missing_file_folder_and_binary(tmp_path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        load(tmp_path / "no.yml")
    with pytest.raises(NotFoundError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "b.yml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "b.yml")
    assert (
        caught.value.problems[0].message
        == "not UTF-8 text (byte 3): it looks like Latin-1. Save it as UTF-8."
    )
    (tmp_path / "big.yml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "big.yml")
    assert caught.value.problems[0].message == ("too long for a recipe: more than 1048576 bytes")
    (tmp_path / "largest.yml").write_text("seed: 1\n" + "#" * ((1 << 20) - 8))
    assert load(tmp_path / "largest.yml").values == {"seed": 1}


def test_relative_paths_mean_the_current_folder_first(tmp_path, monkeypatch) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    here.mkdir()
    beside.mkdir()
    (beside / "x.jsonl").touch()
    monkeypatch.chdir(here)
    assert resolve_path("x.jsonl", beside) == beside / "x.jsonl"
    (here / "x.jsonl").touch()
    assert resolve_path("./x.jsonl", beside) == here / "x.jsonl"
    assert resolve_path("y.jsonl", beside) is None


def test_a_home_is_looked_up_and_one_that_is_none_is_the_user_s_mistake(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/x.yml") == tmp_path / "x.yml"
    assert expand("a/~b") == Path("a/~b")
    for act in (expand, load):
        with pytest.raises(UsageError) as caught:
            act("~nouser/x.yml")
        assert caught.value.message == "~nouser: no such user; ~ at the front means a home folder"
        assert caught.value.hint == "a file of that name is written ./~nouser/x.yml"


@pytest.mark.parametrize("value", ["~nouser/x", "a\0b", "/a\0b", "x" * 5000])
def test_a_path_that_cannot_be_does_not_exist(tmp_path, value: str) -> None:
    assert resolve_path(value, tmp_path) is None
