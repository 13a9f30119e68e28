"""Typing and spelling: every problem at once, with its line."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from ft.recipes.errors import Severity
from ft.recipes.load import loads, override
from ft.recipes.nearest import suggestion
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.reference import fields_below
from ft.recipes.schema import SECTION_OF, SECTIONS
from ft.recipes.schema.base import nested_sections
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.spelling import shown
from ft.recipes.vocabulary import ALIASES, FSDP_KEYS, HANDED_ON, KEEPS_EMPTY

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
save_steps: -5
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
        "r.yml:19: save_steps: expected greater than 0, got -5",
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
     ("optimizer: adamw_bnb_8bit", "optimizer")],
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
        ("batch_size: 8\nmicro_batch_size: 2", {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
         ["batch_size"]),
        ("batch_size: 8", {"gradient_accumulation_steps": 8}, ["batch_size"]),
        ("batch_size: 8.0\nmicro_batch_size: '2'", {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
         ["batch_size"]),
        ("batch_size: '8'\nmicro_batch_size: 2.0", {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
         ["batch_size"]),
        ("flash_attention: 'true'", {"attn_implementation": "flash_attention_2"}, ["flash_attention"]),
        ("sdp_attention: 1\nflash_attention: 'off'", {"attn_implementation": "sdpa"}, ["sdp_attention"]),
        ("model_revision: abc", {"revision_of_model": "abc"}, []),
        ("model_type: AutoModelForCausalLM", {"type_of_model": "AutoModelForCausalLM"}, []),
        ("gc_steps: 5", {"torch_empty_cache_steps": 5, "gc_collect_steps": 5}, ["gc_steps"]),
        ("evaluation_strategy: no", {"eval_strategy": "no"}, ["evaluation_strategy"]),
        ("evaluation_strategy: no\neval_strategy: 'no'", {"eval_strategy": "no"}, ["evaluation_strategy"]),
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
        ("evaluation_strategy: no\neval_strategy: steps",
         "r.yml:1: evaluation_strategy: is the older spelling of `eval_strategy`, which says steps. "
         "Keep one of the two."),
        ("fsdp_config: {fsdp_offload_params: true, offload_params: no}",
         "r.yml:1: fsdp_config.fsdp_offload_params: is the older spelling of `offload_params`, which says false. "
         "Keep one of the two."),
        ("model_config: {a: 1}\noverrides_of_model_config: {a: [true, 2001-01-01]}",
         "r.yml:1: model_config: is the older spelling of `overrides_of_model_config`, which says "
         '{"a": [true, "2001-01-01"]}. Keep one of the two.'),
        ("model_revision: a\nrevision_of_model: \"b\\e\"",
         "r.yml:1: model_revision: is the older spelling of `revision_of_model`, which says 'b\\x1b'. "
         "Keep one of the two."),
        ("batch_size: 7\nmicro_batch_size: 2",
         "r.yml:1: batch_size: 7 is not a multiple of micro_batch_size 2. Write 6, which Axolotl makes of it "
         "without a word."),
        ("batch_size: 3\nmicro_batch_size: 4",
         "r.yml:1: batch_size: 3 is not a multiple of micro_batch_size 4. Write 4."),
        ("batch_size: 2.5", "r.yml:1: batch_size: expected a whole number of rows, got 2.5"),
        ("batch_size: '010'", "r.yml:1: batch_size: expected a whole number of rows, got '010'"),
        ("batch_size: false", "r.yml:1: batch_size: expected a whole number of rows, got false"),
        ("batch_size: 8\ngradient_accumulation_steps: 2",
         "r.yml:1: batch_size: stands beside `gradient_accumulation_steps`; it decides the same. Keep one of the two."),
    ],
)  # fmt: skip
def test_two_spellings_that_disagree(text: str, expected: str) -> None:
    errors = [str(p) for p in of(text).problems if p.severity is Severity.ERROR]
    assert errors == [expected]


@pytest.mark.parametrize(
    "micro", ["two", "2.5", "0", "-1", "true", "false", "[1]", ".inf", "'010'"]
)
def test_a_batch_is_left_out_only_where_the_rows_of_a_pass_are_a_problem(micro: str) -> None:
    normalized = of(f"batch_size: 64\nmicro_batch_size: {micro}")
    [problem] = normalized.problems
    assert (problem.severity, problem.dotted) == (Severity.ERROR, "micro_batch_size")
    assert normalized.flat.flat() == {}


def test_a_flag_that_is_neither_on_nor_off() -> None:
    text = "flash_attention: sometimes\nsdp_attention: 2\nxformers_attention: [true]\n"
    assert said(of(text)) == [
        "r.yml:1: flash_attention: expected true or false, got 'sometimes'",
        "r.yml:2: sdp_attention: expected true or false, got 2",
        "r.yml:3: xformers_attention: expected true or false, got [True]",
    ]


def test_a_removed_key_that_is_off_asks_for_nothing() -> None:
    normalized = of(
        "s2_attention: false\nunsloth_lora_mlp: 'no'\nrope_scaling: false\nrpo_alpha: 1.0"
    )
    assert [(p.severity, str(p)) for p in normalized.problems] == [
        (Severity.WARNING, "r.yml:1: s2_attention: was removed, and this asks for nothing. Take it out."),
        (Severity.WARNING, "r.yml:2: unsloth_lora_mlp: was removed, and this asks for nothing. Take it out."),
        (Severity.WARNING, "r.yml:3: rope_scaling: was removed, and this asks for nothing. Take it out."),
        (
            Severity.ERROR,
            "r.yml:4: rpo_alpha: was removed: TRL has dropped it; write `dpo_loss_type: [sigmoid, sft]` "
            "and `dpo_loss_weights`.",
        ),
    ]  # fmt: skip


def test_an_older_spelling_of_a_key_of_a_plugin_is_named_as_it_stands_in_the_file() -> None:
    assert said(of("seed: 1\n\n\nliger_swiglu: true\n")) == [
        "r.yml:4: liger_swiglu: older spelling of `liger_glu_activation`; ft migrate rewrites it",
        "r.yml:4: liger_swiglu: belongs to a plugin. Add `- axolotl.integrations.liger.LigerPlugin` to `plugins`.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("save_steps: 0", "0 means that it is not set: `saves_per_epoch` decides."),
        (
            "saves_per_epoch: '0'",
            "0 means that it is not set: once per epoch, unless `save_steps` is set.",
        ),
        ("eval_steps: 0.0", "0 means that it is not set: `evals_per_epoch` decides."),
        ("logging_steps: false", "0 means that it is not set: every step."),
        ("max_steps: 0", "0 means that it is not set: no limit."),
        ("max_steps: -1", "-1 means that it is not set: no limit."),
    ],
)
def test_numbers_that_say_not_set(text: str, expected: str) -> None:
    normalized = of(f"seed: 1\n{text}")
    [problem] = normalized.problems
    assert (problem.severity, str(problem)) == (
        Severity.WARNING,
        f"r.yml:2: {text.partition(':')[0]}: {expected}",
    )
    assert normalized.flat.flat() == {"seed": 1}


def test_other_numbers_below_one_are_still_wrong() -> None:
    assert said(of("max_steps: -2\nsaves_per_epoch: -1")) == [
        "r.yml:1: max_steps: expected greater than or equal to 1, got -2",
        "r.yml:2: saves_per_epoch: expected greater than or equal to 1, got -1",
    ]


def test_an_empty_text_in_a_block_is_not_set() -> None:
    text = """\
special_tokens: {pad_token: '', eos_token: </s>}
datasets:
- path: x
  type: chat_template
  split: ''
  message_field_role: ''
  message_property_mappings: {role: '', content: value}
fsdp_config: {fsdp_state_dict_type: '', version: 2}
cloud: {gpu: ''}
"""
    normalized = of(text)
    assert normalized.flat.flat() == {
        "special_tokens": {"eos_token": "</s>"},
        "datasets": [
            {
                "path": "x",
                "type": "chat_template",
                "message_property_mappings": {"role": "role", "content": "value"},
                "chat_template": "tokenizer_default",
                "trust_remote_code": False,
            }
        ],
        "fsdp_version": 2,
        "fsdp_config": {"fsdp_version": 2},
        "cloud": {},
    }
    assert [p for p in normalized.problems if p.severity is Severity.ERROR] == []


def test_an_empty_text_is_a_value_where_nothing_is_what_is_written() -> None:
    text = """\
model_config: {rope_type: '', inner: {a: '', b: }}
chat_template_kwargs: {greeting: ''}
eot_tokens: ['']
datasets:
- {path: x, type: {format: '', system_prompt: '', no_input_format: ''}}
- {path: y, type: stepwise_supervised, step_separator: ''}
"""
    assert of(text).flat.flat() == {
        "overrides_of_model_config": {"rope_type": "", "inner": {"a": ""}},
        "chat_template_kwargs": {"greeting": ""},
        "eot_tokens": [""],
        "datasets": [
            {**DATASET, "path": "x", "type": {"format": "", "no_input_format": ""}},
            {**DATASET, "path": "y", "type": "stepwise_supervised", "step_separator": ""},
        ],
    }


def test_blocks_that_others_read_are_those_of_which_the_schema_does_not_know_the_keys() -> None:
    everything = [*SECTIONS.values(), *PLUGIN_SECTIONS.values()]
    fields = [found for section in everything for found in fields_below(section)]
    free = {
        key.rpartition(".")[2] for key, field, *_ in fields
        if "dict[str, typing.Any]" in str(field.annotation)
    }  # fmt: skip
    older = {old for old, new in ALIASES.items() if new in free}
    assert free | older | {"env", "torch_compile_options"} == HANDED_ON
    assert {key.rpartition(".")[2] for key, *_ in fields} >= KEEPS_EMPTY


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("datasets: [{path: a, message_field_rol: x}]", "datasets.0.message_field_rol", "message_field_role"),
        ("test_datasets: [{path: a, message_field_contnt: x}]", "test_datasets.0.message_field_contnt",
         "message_field_content"),
        ("fsdp_config: {fsdp_offload_parms: true}", "fsdp_config.fsdp_offload_parms", "fsdp_offload_params"),
        ("fsdp_config: {fsdp_fsdp_version: 2}", "fsdp_config.fsdp_fsdp_version", "fsdp_version"),
        ("fsdp_config: {offload_parms: true}", "fsdp_config.offload_parms", "offload_params"),
        ("fsdp_config: {versoin: 2}", "fsdp_config.versoin", "version"),
    ],
)  # fmt: skip
def test_a_misspelt_older_word_within_a_block_is_one_problem_and_no_spelling_of_anything(
    text: str, key: str, meant: str
) -> None:
    found = [(p.dotted, p.message) for p in of(text).problems if p.severity is not Severity.PLANNED]
    assert found == [(key, f"unknown key. Did you mean `{meant}`?")]


def test_the_keys_that_an_older_spelling_can_stand_for_are_those_of_the_schema() -> None:
    (config,) = nested_sections(SECTIONS["parallel"].model_fields["fsdp_config"].annotation)
    assert set(config.model_fields) == FSDP_KEYS


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
