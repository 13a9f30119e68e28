"""Reading YAML: lines, overrides, and what a recipe must never do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ft.recipes.errors import NotFoundError, RecipeError, UsageError
from ft.recipes.load import expand, load, loads, override, resolve_path


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, source="r.yml")
    return [str(problem) for problem in caught.value.problems]


def test_values_and_lines() -> None:
    recipe = loads("a: 3e-4\nb: &x {c: 1}\nd:\n  <<: *x\n  e: [1, {f: yes}]\n")
    assert recipe.values == {"a": 0.0003, "b": {"c": 1}, "d": {"c": 1, "e": [1, {"f": True}]}}
    assert recipe.lines[("d", "e", 1, "f")] == 5
    assert str(recipe.mark(("d", "e", 1, "g"))) == "<text>:5"


def test_a_key_of_the_mapping_wins_over_a_merged_one() -> None:
    assert loads("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}").values["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\nb: 4", [
            "r.yml:3: a: the key stands twice; first in line 1. Keep one.",
            "r.yml:4: b: the key stands twice; first in line 2. Keep one.",
        ]),
        ("a:\n\t- 1", ["r.yml:2: a tab; YAML is indented with spaces"]),
        ("- 1", ["r.yml:1: expected `key: value` lines, got list"]),
        ("a: &a [*a]", ["r.yml:1: an alias that contains itself, or expands without end"]),
        ("a: !!python/object/apply:os.system ['true']", [
            "r.yml:1: tag tag:yaml.org,2002:python/object/apply:os.system is not allowed: "
            "a recipe is data, it cannot run code"
        ]),
        ("a: {<<: 3}", ["r.yml:1: `<<` needs a mapping"]),
    ],
)  # fmt: skip
def test_broken_yaml_is_explained(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_a_flow_sequence_that_is_not_closed_names_its_line() -> None:
    (message,) = problems("a: 1\nb: [1\nc: 2\n")
    assert message.startswith("r.yml:3: not YAML:")


def test_aliases_that_expand_without_end_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "expands without end" in problems("\n".join(lines))[0]


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
    assert caught.value.problems[0].message == "not UTF-8 text (byte 3)"
    (tmp_path / "big.yml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "big.yml")
    assert "too many for a recipe" in caught.value.problems[0].message


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
