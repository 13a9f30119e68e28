"""Typing and spelling: every problem at once, with its line."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from ft.recipes.errors import Severity
from ft.recipes.load import loads, override
from ft.recipes.nearest import suggestion
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.schema import SECTION_OF
from ft.recipes.spelling import shown

DATASET = {
    "message_property_mappings": {"role": "role", "content": "content"},
    "trust_remote_code": False,
}
"""What a data set of SFT means where it says nothing."""


def of(text: str, *overrides: str) -> Normalized:
    return normalize(override(loads(text, source="r.yml"), overrides))


def said(normalized: Normalized) -> list[str]:
    return [str(p) for p in sorted(normalized.problems, key=lambda p: p.mark.line)]


def test_all_problems_at_once_with_their_lines() -> None:
    text = """\
base_model: x
lora_rank: 16
micro_batch_size: two
datasets:
  - path: a.jsonl
    type: alpca
    pth: 3
  - type: alpaca
  - path: b.jsonl
    type: chat_template
    message_property_mappings: 3
  - 3
lora_target_modules: 3
val_set_size: x
gradient_checkpointing_kwargs: {use_reentrnt: true}
bf16: maybe
special_tokens: {pad_token: 3}
seed: -1
save_steps: 0
max_grad_norm: .nan
cloud: {gpu: "H100:8x"}
context_parapllel_size: 2
xyzzyq: 1
"""
    assert said(of(text)) == [
        "r.yml:2: lora_rank: unknown key. Did you mean `lora_r`?",
        "r.yml:3: micro_batch_size: expected a whole number, got 'two'",
        "r.yml:6: datasets.0.type: 'alpca' is no format. Did you mean `alpaca`?",
        "r.yml:7: datasets.0.pth: unknown key. Did you mean `path`?",
        "r.yml:8: datasets.1.path: required, but not there",
        "r.yml:11: datasets.2.message_property_mappings: expected a mapping of keys, got 3",
        "r.yml:12: datasets.3: expected a mapping of keys, got 3",
        "r.yml:13: lora_target_modules: expected a list of names or one name, got 3",
        "r.yml:14: val_set_size: expected a number, got 'x'",
        "r.yml:15: gradient_checkpointing_kwargs.use_reentrnt: unknown key. Did you mean `use_reentrant`?",
        "r.yml:16: bf16: expected true or false or 'auto', got 'maybe'",
        "r.yml:17: special_tokens.pad_token: expected text, got 3. Quotes make it text.",
        "r.yml:18: seed: expected greater than or equal to 0, got -1",
        "r.yml:19: save_steps: expected greater than 0, got 0",
        "r.yml:20: max_grad_norm: expected a finite number, got nan",
        "r.yml:21: cloud.gpu: expected NAME:COUNT such as H100:8 or cpu:2, got 'H100:8x'",
        "r.yml:22: context_parapllel_size: unknown key. Did you mean `context_parallel_size`?",
        "r.yml:23: xyzzyq: unknown key.",
    ]


def test_what_is_missing_in_several_elements_is_said_of_each() -> None:
    assert said(
        of("datasets:\n- {}\n- {path: a, type: alpaca}\n-\n- {type: 3}\n- {path: b}\n")
    ) == [
        "r.yml:2: datasets.0.path: required, but not there",
        "r.yml:4: datasets.2: expected a mapping of keys, got null",
        "r.yml:5: datasets.3.path: required, but not there",
        "r.yml:5: datasets.3.type: expected text or a mapping of keys, got 3. Quotes make it text.",
    ]


def test_problems_of_the_file_are_among_the_problems_and_break_their_keys() -> None:
    normalized = of(
        "seed: !x 1\nseed: 2\nbase_model: 2001-02-30\nlora_r: 8\nlora_r: x\nlora_alpha: x\nlora_alpha: 8"
    )
    assert said(normalized) == [
        "r.yml:1: seed: tag !x is not allowed: a recipe is data, it cannot run code",
        "r.yml:2: seed: the key stands twice; first in line 1. Keep one.",
        "r.yml:3: base_model: '2001-02-30' is not a date. Quotes make it text.",
        "r.yml:5: lora_r: the key stands twice; first in line 4. Keep one.",
        "r.yml:6: lora_alpha: expected a whole number, got 'x'",
        "r.yml:7: lora_alpha: the key stands twice; first in line 6. Keep one.",
    ]
    assert normalized.flat.flat() == {"lora_r": 8}
    assert normalized.broken == {"seed", "base_model", "lora_r", "lora_alpha"}


def test_what_stands_in_for_an_unreadable_value_is_no_second_problem() -> None:
    text = "datasets:\n- {path: !x a, type: alpaca}\n- !x b\nchat_template_jinja: {{ messages }}\n"
    assert said(of(text)) == [
        "r.yml:2: datasets.0.path: tag !x is not allowed: a recipe is data, it cannot run code",
        "r.yml:3: datasets.1: tag !x is not allowed: a recipe is data, it cannot run code",
        "r.yml:4: chat_template_jinja: a list or mapping as a key; put quotes around text that begins with [ or {",
    ]


def test_a_union_says_what_is_wrong_with_an_element() -> None:
    assert said(of("lora_target_modules: [q_proj, 3, {a: b}]")) == [
        "r.yml:1: lora_target_modules.1: expected text, got 3. Quotes make it text.",
        "r.yml:1: lora_target_modules.2: expected text, got {'a': 'b'}",
    ]
    assert said(of("cloud: {timeout: 0}\n")) == [
        "r.yml:1: cloud.timeout: expected seconds, or 90m, 6h, 1d, got 0"
    ]
    assert said(of("cloud: {timeout: [6h]}\n")) == [
        "r.yml:1: cloud.timeout: expected seconds, or 90m, 6h, 1d, got ['6h']"
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lora_rnk", " Did you mean `lora_r`?"), ("ds_type", ""), ("num_epoch", " Did you mean `num_epochs`?"),
        ("output", " Did you mean `output_dir`?"), ("dataset", " Did you mean `datasets`?"),
        ("lr", " Did you mean `rl`?"), ("model", ""),
        ("learning rate", " Did you mean `learning_rate`?"), ("", ""), ("é", ""),
        ("s\u0435ed", " `\u0435` in it is CYRILLIC SMALL LETTER IE. Did you mean `seed`?"),
        ("seed\ue000", " `\ue000` in it is U+E000. Did you mean `seed`?"),
    ],
)  # fmt: skip
def test_a_suggestion_is_near_or_none(word: str, expected: str) -> None:
    assert suggestion(word, SECTION_OF) == expected


def test_a_file_full_of_unknown_keys_gets_suggestions_for_the_first_ones_only() -> None:
    found = of("".join(f"logging_stepz{i}: 1\n" for i in range(200))).problems
    assert [p.message for p in found] == [
        *["unknown key. Did you mean `logging_steps`?"] * 100,
        *["unknown key."] * 100,
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"), (True, "true"), (False, "false"), (1, "1"), (1.5, "1.5"), ("a\x1b", "'a\\x1b'"), ([], "[]"),
        (date(2026, 11, 23), "the date 2026-11-23"), ("x" * 100, f"'{'x' * 56}..."),
    ],
)  # fmt: skip
def test_values_are_shown_as_they_are_written(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_what_is_not_broken_is_still_there() -> None:
    normalized = of(
        "lora_r: 8\nlora_alpha: x\ndatasets: [{path: [a], type: alpaca}, {path: b, type: alpaca}]"
    )
    assert normalized.flat.flat() == {
        "datasets": [{**DATASET, "path": "b", "type": "alpaca"}],
        "lora_r": 8,
    }
    assert normalized.broken == {"lora_alpha", "datasets"}


def test_null_and_empty_are_unset() -> None:
    assert of("lora_r:\nwandb_project:\nadapter: ''\nlora_dropout: null").flat.flat() == {}


def test_off_and_neutral_keys_of_axolotl_are_fine() -> None:
    text = "sample_packing: false\nload_in_8bit: false\nstrict:\nflash_attention: false\n"
    text += "model_type: AutoModelForCausalLM\n"
    assert said(of(text)) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [("save_first_step: true", "save_first_step"), ("adapter: qlora", "adapter"), ("rl: dpo", "rl"),
     ("save_strategy: no", "save_strategy"), ("tokenizer_use_fast: false", "tokenizer_use_fast"),
     ("optimizer: adamw_bnb_8bit", "optimizer"), ("cloud: {backend: modal}", "cloud.backend")],
)  # fmt: skip
def test_valid_vocabulary_that_does_not_run_yet_is_planned(text: str, key: str) -> None:
    (problem,) = of(text).problems
    assert (problem.severity, problem.dotted) == (Severity.PLANNED, key)
    assert problem.message.startswith("not runnable yet")


def test_ignored_keys_are_a_warning_that_names_the_real_key() -> None:
    (problem,) = of("adam_eps: 1e-8").problems
    assert problem.severity is Severity.WARNING
    assert "adam_epsilon" in problem.message


@pytest.mark.parametrize(
    ("text", "expected", "older"),
    [
        ("flash_attention: true", {"attn_implementation": "flash_attention_2"}, ["flash_attention"]),
        ("sdp_attention: true", {"attn_implementation": "sdpa"}, ["sdp_attention"]),
        ("xformers_attention: true\nsdp_attention: true", {"attn_implementation": "xformers"},
         ["xformers_attention", "sdp_attention"]),
        ("flash_attention: false", {}, []),
        ("sequence_parallel_degree: 2", {"context_parallel_size": 2, "ring_attn_func": "batch_ring"},
         ["sequence_parallel_degree"]),
        ("batch_size: 8\nmicro_batch_size: 2", {"micro_batch_size": 2, "gradient_accumulation_steps": 4}, []),
        ("model_revision: abc", {"revision_of_model": "abc"}, []),
        ("model_type: AutoModelForCausalLM", {"type_of_model": "AutoModelForCausalLM"}, []),
        ("gc_steps: 5", {"torch_empty_cache_steps": 5, "gc_collect_steps": 5}, ["gc_steps"]),
        ("evaluation_strategy: no", {"eval_strategy": "no"}, ["evaluation_strategy"]),
        ("save_strategy: off", {"save_strategy": "no"}, []),
        ("excess_length_strategy: TRUNCATE", {"excess_length_strategy": "truncate"}, []),
        ("fsdp_config: {fsdp_offload_params: true, version: 2}",
         {"fsdp_config": {"offload_params": True, "fsdp_version": 2}, "fsdp_version": 2},
         ["fsdp_config.fsdp_offload_params"]),
        ("fsdp_config: {}\nfsdp:", {"fsdp_config": {}}, []),
        ("datasets: [{path: a, type: chat_template, message_field_role: from}]",
         {"datasets": [{"path": "a", "type": "chat_template", "trust_remote_code": False,
                        "chat_template": "tokenizer_default",
                        "message_property_mappings": {"role": "from", "content": "content"}}]},
         ["datasets.0.message_field_role"]),
    ],
)  # fmt: skip
def test_legacy_spellings_become_current_ones(
    text: str, expected: dict[str, Any], older: list[str]
) -> None:
    normalized = of(text)
    assert normalized.flat.flat() == expected
    warned = [p.dotted for p in normalized.problems if p.severity is Severity.WARNING]
    assert [key for key in warned if key not in {"gc_steps.x"}][: len(older)] == older


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flash_attention: true\nattn_implementation: sdpa",
         "r.yml:1: flash_attention: is the older spelling of `attn_implementation`, which says sdpa. "
         "Keep one of the two."),
        ("batch_size: 7\nmicro_batch_size: 2", "r.yml:1: batch_size: 7 is not a multiple of micro_batch_size 2"),
        ("batch_size: 8\ngradient_accumulation_steps: 2",
         "r.yml:1: batch_size: stands beside `gradient_accumulation_steps`; it decides the same. Keep one of the two."),
    ],
)  # fmt: skip
def test_two_spellings_that_disagree(text: str, expected: str) -> None:
    assert said(of(text)) == [expected]


def test_a_problem_behind_a_legacy_key_names_the_key_in_the_file() -> None:
    assert said(of("a: 1", "sequence_parallel_degree=x")) == [
        "--set: sequence_parallel_degree: older spelling of `context_parallel_size`; ft migrate rewrites it",
        "--set: sequence_parallel_degree: expected a whole number, got 'x'",
        "r.yml:1: a: unknown key.",
    ]


def test_set_gives_text_where_the_schema_wants_text() -> None:
    normalized = of("", "base_model=123", "special_tokens.pad_token=0")
    assert normalized.flat.flat() == {"base_model": "123", "special_tokens": {"pad_token": "0"}}
    assert normalized.problems == ()


def test_numbers_as_people_write_them() -> None:
    assert of("learning_rate: 3e-4\nnum_epochs: 2").flat.flat() == {
        "num_epochs": 2.0,
        "learning_rate": 0.0003,
    }
