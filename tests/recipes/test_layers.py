"""What is said above goes before what is said below, however each of the two spells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ft.recipes.errors import RecipeError, Severity, UsageError
from ft.recipes.facts import Facts
from ft.recipes.load import load
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.rules import check
from ft.recipes.vocabulary import ALIASES, ATTENTION_FLAGS, EXCLUSIVE, RENAMED, fsdp_name


def over(folder: Path, base: str, child: str, *sets: str) -> Normalized:
    """`child` over `base`, as two files, and `--set` over both."""
    (folder / "base.yml").write_text(base)
    (folder / "child.yml").write_text(f"extends: base.yml\n{child}")
    return normalize(load(folder / "child.yml", sets))


def alone(folder: Path, base: str, *sets: str) -> Normalized:
    (folder / "r.yml").write_text(base)
    return normalize(load(folder / "r.yml", sets))


def errors(normalized: Normalized) -> list[str]:
    found = check(normalized, Facts(files={})).of(Severity.ERROR)
    return [f"{p.dotted}: {p.message}" for p in found if p.rule not in {"R001", "R009"}]


OVER = {
    "today's name over a flag": ("flash_attention: true", "attn_implementation: sdpa", {"attn_implementation": "sdpa"}),
    "a flag over today's name": (
        "attn_implementation: sdpa", "flash_attention: 'true'", {"attn_implementation": "flash_attention_2"},
    ),
    "a flag over another": (
        "xformers_attention: true", "sdp_attention: true", {"attn_implementation": "sdpa"},
    ),
    "a flag that is off, over the same": ("flash_attention: true", "flash_attention: false", {}),
    "a flag that is off, over what it means": ("attn_implementation: flash_attention_2", "flash_attention: no", {}),
    "a flag that is off, over something else": (
        "attn_implementation: sdpa", "flash_attention: false", {"attn_implementation": "sdpa"},
    ),
    "not set any more": ("flash_attention: true", "attn_implementation:", {}),
    "accumulation over a batch": (
        "batch_size: 64\nmicro_batch_size: 2", "gradient_accumulation_steps: 4",
        {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
    ),
    "a batch over accumulation": (
        "gradient_accumulation_steps: 4\nmicro_batch_size: 2", "batch_size: 64",
        {"micro_batch_size": 2, "gradient_accumulation_steps": 32},
    ),
    "rows of a pass below a batch": (
        "batch_size: 64\nmicro_batch_size: 2", "micro_batch_size: 4",
        {"micro_batch_size": 4, "gradient_accumulation_steps": 16},
    ),
    "a batch that is not set": (
        "gradient_accumulation_steps: 4", "batch_size:", {"gradient_accumulation_steps": 4},
    ),
    "one of two that an older key sets": (
        "gc_steps: 3", "gc_collect_steps: 5", {"torch_empty_cache_steps": 3, "gc_collect_steps": 5},
    ),
    "an older key that sets two": (
        "torch_empty_cache_steps: 1\ngc_collect_steps: 2", "gc_steps: 3",
        {"torch_empty_cache_steps": 3, "gc_collect_steps": 3},
    ),
    "no over steps": (
        "evaluation_strategy: steps", "eval_strategy: no", {"eval_strategy": "no"},
    ),
    "within a block": (
        "fsdp_config: {fsdp_offload_params: true, version: 2}", "fsdp_config: {offload_params: false}",
        {"fsdp_version": 2, "fsdp_config": {"fsdp_version": 2, "offload_params": False}},
    ),
    "an older key within a block": (
        "fsdp_config: {offload_params: true, fsdp_version: 2}",
        "fsdp_config: {fsdp_offload_params: false, version: 1}",
        {"fsdp_version": 1, "fsdp_config": {"fsdp_version": 1, "offload_params": False}},
    ),
    "a block under two names is merged": (
        "model_config: {a: 1, b: 1}", "overrides_of_model_config: {b: 2}",
        {"overrides_of_model_config": {"a": 1, "b": 2}},
    ),
    "steps over a number per epoch": ("saves_per_epoch: 2", "save_steps: 5", {"save_steps": 5}),
    "a number per epoch over steps": ("save_steps: 5", "saves_per_epoch: 2", {"saves_per_epoch": 2}),
    "never, over steps": ("eval_steps: 5", "evals_per_epoch: 0", {"evals_per_epoch": 0}),
    "no warm-up": ("warmup_ratio: 0.1", "warmup_steps: 0", {"warmup_steps": 0}),
    "no warm-up by a ratio": ("warmup_steps: 10", "warmup_ratio: 0", {"warmup_ratio": 0}),
    "0 that says not set": ("saves_per_epoch: 2", "save_steps: 0", {"saves_per_epoch": 2}),
    "one that is not set": ("saves_per_epoch: 2", "save_steps:", {"saves_per_epoch": 2}),
}  # fmt: skip


@pytest.mark.parametrize(("base", "child", "expected"), OVER.values(), ids=OVER)
def test_a_file_goes_over_what_it_extends(
    base: str, child: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    normalized = over(tmp_path, base, child)
    assert normalized.flat.flat() == expected
    assert errors(normalized) == []


@pytest.mark.parametrize(("base", "child", "expected"), OVER.values(), ids=OVER)
def test_set_goes_over_the_file(
    base: str, child: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    sets = [
        f"{key}.{inner}={text(item)}" if inner else f"{key}={text(item)}"
        for key, value in yaml.safe_load(child).items()
        for inner, item in (value.items() if isinstance(value, dict) else [("", value)])
    ]
    assert alone(tmp_path, base, *sets).flat.flat() == expected
    assert over(tmp_path, base, "", *sets).flat.flat() == expected


def text(value: object) -> str:
    return "" if value is None else str(value).lower()


@pytest.mark.parametrize(("old", "new"), [*ALIASES.items(), *RENAMED.items()])
def test_every_spelling_goes_over_every_other(old: str, new: str, tmp_path: Path) -> None:
    for below, above in ((old, new), (new, old), (old, old)):
        spelled = over(tmp_path, f"{below}: 1\n", f"seed: 1\n{above}: 2\n")
        assert spelled.recipe.values == {above: 2, "seed": 1}
        assert str(spelled.recipe.mark((above,))).endswith("child.yml:3")
        assert alone(tmp_path, f"{below}: 1\n", f"{above}=2").recipe.values == {above: 2}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("attn_implementation: sdpa\nflash_attention: true",
         "flash_attention: is the older spelling of `attn_implementation`, which says sdpa. Keep one of the two."),
        ("gradient_accumulation_steps: 2\nbatch_size: 4",
         "batch_size: stands beside `gradient_accumulation_steps`; it decides the same. Keep one of the two."),
        ("save_steps: 5\nsaves_per_epoch: 2",
         "save_steps: stands beside `saves_per_epoch`; both decide the same. Keep one."),
        ("eval_strategy: steps\nevaluation_strategy: epoch",
         "evaluation_strategy: is the older spelling of `eval_strategy`, which says steps. Keep one of the two."),
    ],
)  # fmt: skip
def test_two_that_differ_within_one_layer_are_a_problem(
    lines: str, expected: str, tmp_path: Path
) -> None:
    below = "sdp_attention: true\nbatch_size: 2\nwarmup_steps: 3\nsaves_per_epoch: 9\n"
    sets = [line.replace(": ", "=") for line in lines.splitlines()]
    for normalized in (
        over(tmp_path, below, lines),
        alone(tmp_path, lines),
        alone(tmp_path, below, *sets),
        alone(tmp_path, below, *sets[::-1]),
        over(tmp_path, lines, "seed: 1"),
    ):
        found = errors(normalized)
        assert expected in found, found


def test_the_last_of_three_layers_counts_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("seed: 1\nflash_attention: true\nsaves_per_epoch: 2\n")
    (tmp_path / "b.yml").write_text(
        "extends: a.yml\n\n\nattn_implementation: eager\nsave_steps: 7\n"
    )
    (tmp_path / "c.yml").write_text("extends: [a.yml, b.yml]\nsdp_attention: true\n")
    normalized = normalize(load(tmp_path / "c.yml"))
    assert normalized.flat.flat() == {"attn_implementation": "sdpa", "seed": 1, "save_steps": 7}
    marks = [
        str(normalized.mark(normalized.as_written((key,))))
        for key in ("attn_implementation", "save_steps")
    ]
    assert marks == [f"{tmp_path}/c.yml:2", "b.yml:5"]
    again = normalize(load(tmp_path / "c.yml", ["saves_per_epoch=3", "eager_attention=true"]))
    assert again.flat.flat() == {"attn_implementation": "eager", "seed": 1, "saves_per_epoch": 3}
    assert str(again.mark(("saves_per_epoch",))) == str(again.mark(("eager_attention",))) == "--set"


def test_a_block_that_takes_another_name_keeps_its_lines(tmp_path: Path) -> None:
    normalized = over(tmp_path, "model_config:\n  a: 1\n", "overrides_of_model_config:\n  b: 2\n")
    marks = {
        name: str(normalized.recipe.mark(("overrides_of_model_config", name))) for name in "ab"
    }
    assert marks == {"a": "base.yml:2", "b": f"{tmp_path}/child.yml:3"}


def test_set_in_a_list_goes_over_the_other_spelling_there_only(tmp_path: Path) -> None:
    text = (
        "datasets:\n"
        "- {path: a, type: chat_template, message_field_role: from}\n"
        "- {path: b, type: chat_template, message_field_role: from}\n"
        "- {path: c, type: chat_template, message_property_mappings: {role: from, content: value}}\n"
    )
    normalized = alone(
        tmp_path,
        text,
        "datasets.0.message_property_mappings.role=who",
        "datasets.0.path=x",
        "datasets.2.message_field_role=1",
    )
    assert errors(normalized) == []
    found = [
        (dataset.path, dataset.message_property_mappings)
        for dataset in normalized.flat.data.datasets or ()
    ]
    assert found == [
        ("x", {"role": "who", "content": "content"}),
        ("b", {"role": "from", "content": "content"}),
        ("c", {"role": "1", "content": "value"}),
    ]


COUNTS = dict.fromkeys(
    ("batch_size", "gradient_accumulation_steps", "gc_steps", "gc_collect_steps", "torch_empty_cache_steps"), (4, 8)
)  # fmt: skip
WORDS: dict[str, tuple[Any, ...]] = {
    **COUNTS,
    **dict.fromkeys((key for pair in EXCLUSIVE for key in pair), (0, 1)),
    **dict.fromkeys(ATTENTION_FLAGS, (True, False, None)),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy"), ("steps", "epoch", False)),
    **dict.fromkeys(("model_config", "overrides_of_model_config"), ({"a": 1}, {"a": 2, "b": 2})),
    "attn_implementation": ("sdpa", "eager", None),
    "fsdp_config": (
        {"fsdp_offload_params": True, "version": 2}, {"offload_params": False}, {"fsdp_version": 1},
    ),
}  # fmt: skip
LAYERS = st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in WORDS.items()})


def contradictions(normalized: Normalized) -> list[str]:
    return [error for error in errors(normalized) if "Keep one" in error]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=LAYERS, child=LAYERS)
@example(base={"gc_steps": 8}, child={"gc_steps": 4, "gc_collect_steps": 4})
def test_two_layers_without_a_contradiction_have_none_together(
    base: dict[str, Any], child: dict[str, Any], tmp_path: Path
) -> None:
    below, above = (yaml.safe_dump({"seed": 1, **layer}) for layer in (base, child))
    of_child = alone(tmp_path, above)
    if contradictions(of_child) or contradictions(alone(tmp_path, below)):
        return
    sets = [f"{key}={json.dumps(value)}" for key, value in child.items() if key != "fsdp_config"]
    sets += [f"fsdp_config.{k}={json.dumps(v)}" for k, v in child.get("fsdp_config", {}).items()]
    for normalized in (over(tmp_path, below, above), alone(tmp_path, below, *sets)):
        assert contradictions(normalized) == []
        found = normalized.flat.flat()
        for key, value in of_child.flat.flat().items():
            if key == "fsdp_config":
                stated = {fsdp_name(name) for name in child[key]}
                assert {k: found[key][k] for k in stated} == {k: value[k] for k in stated}
            elif isinstance(value, dict):
                assert found[key].items() >= value.items()
            elif key != "fsdp_version":  # Follows from the block.
                assert found[key] == value


# ------------------------------------------------------------------------------------- `--backend`


def on(folder: Path, text: str, name: str, *sets: str) -> Normalized:
    (folder / "r.yml").write_text(text)
    return normalize(load(folder / "r.yml", sets, backend=name))


def where(normalized: Normalized, key: tuple[str, ...] = ("cloud", "backend")) -> str:
    return str(normalized.mark(key)).rpartition("/")[2]


@pytest.mark.parametrize(
    ("text", "sets", "block", "marks"),
    [
        ("seed: 1", [], {"backend": "modal"}, ["--backend", "--backend"]),
        ("cloud:", [], {"backend": "modal"}, ["--backend", "r.yml:1"]),
        ("cloud: ''", [], {"backend": "modal"}, ["--backend", "r.yml:1"]),
        ("cloud: {backend: local, nodes: 2}", [], {"backend": "modal", "nodes": 2}, ["--backend", "r.yml:1"]),
        ("seed: 1", ["cloud.backend=local"], {"backend": "modal"}, ["--backend", "--set"]),
        ("seed: 1", ["cloud={backend: local, nodes: 2}"], {"backend": "modal", "nodes": 2}, ["--backend", "--set"]),
        ("cloud: {backend: 5}", [], {"backend": "modal"}, ["--backend", "r.yml:1"]),
    ],
)  # fmt: skip
def test_a_backend_of_the_command_line_goes_over_all(
    tmp_path: Path, text: str, sets: list[str], block: dict[str, Any], marks: list[str]
) -> None:
    normalized = on(tmp_path, text, "modal", *sets)
    assert normalized.flat.flat()["cloud"] == block
    assert errors(normalized) == [NO_GPU]
    assert [where(normalized), where(normalized, ("cloud",))] == marks


NO_GPU = "cloud.gpu: required with `backend: modal`: H100:8 for eight of them, or cpu"


def test_a_backend_of_the_command_line_is_one_for_the_rules(tmp_path: Path) -> None:
    problems = check(on(tmp_path, "seed: 1", "modal"), Facts(files={})).problems
    cloud = [str(problem) for problem in problems if problem.dotted.startswith("cloud")]
    assert cloud == [
        f"--backend: {NO_GPU.replace('required', 'R185 required')}",
    ]
    # A recipe for elsewhere that is tried here needs nothing of what there is elsewhere.
    here = check(on(tmp_path, "cloud: {backend: modal, timeout: 3d}", "local"), Facts(files={}))
    assert [problem for problem in here.problems if problem.dotted.startswith("cloud")] == []


@pytest.mark.parametrize("block", ["5", "[modal]", "local"])
def test_a_backend_of_the_command_line_hides_no_mistake(tmp_path: Path, block: str) -> None:
    normalized = on(tmp_path, f"cloud: {block}", "modal")
    [said] = errors(normalized)
    assert said.startswith("cloud: expected a mapping of keys")
    assert where(normalized) == "r.yml:1"


def test_an_empty_file_is_no_recipe_on_any_backend(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        on(tmp_path, "# nothing", "modal")
    [problem] = caught.value.problems
    assert problem.message.startswith("there are no keys in this file")


def test_a_backend_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        on(tmp_path, "seed: 1", "mo\non")
    assert caught.value.message == r"backend 'mo\non' is not one of local, modal, sky"
