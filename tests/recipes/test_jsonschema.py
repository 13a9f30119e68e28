"""The JSON Schema for editors says what pydantic and `ft check` say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ft.recipes import vocabulary
from ft.recipes.errors import Severity
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.reference import entries
from ft.recipes.schema import SECTIONS
from ft.recipes.schema.base import MismatchError
from ft.recipes.schema.jsonschema import DRAFT, recipe_schema
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.spelling import LEGACY

SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
GALLERY = Path(__file__).parents[2] / "recipes/ft/recipes/gallery"
EXAMPLES = Path(__file__).parents[3] / "shared/axolotl/examples"
"""Recipes of Axolotl's repository; they lie beside the checkout of those who have them."""

HOME = {
    key: section
    for section in [*SECTIONS.values(), *PLUGIN_SECTIONS.values()]
    for key in section.model_fields
}


def errors(text: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(loads(text).values)]


def test_it_is_a_schema_of_draft_7() -> None:
    assert SCHEMA["$schema"] == DRAFT == jsonschema.Draft7Validator.META_SCHEMA["$schema"]
    jsonschema.Draft7Validator.check_schema(SCHEMA)


KEYWORDS = set(
    """
    $ref additionalProperties anyOf const default definitions deprecated deprecationMessage description enum
    exclusiveMaximum exclusiveMinimum items maxItems maxLength maximum minItems minLength minimum pattern properties
    propertyNames required title type $schema
    """.split()
)
"""Those of draft-07, and two that editors know."""


def keywords(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for word, inner in schema.items():
        if word in {"properties", "definitions"}:
            found |= keywords(list(inner.values()))
        elif word not in {"default", "enum", "const"}:
            found |= keywords(inner)
    return found


def test_it_has_no_word_that_an_editor_does_not_know() -> None:
    assert keywords(SCHEMA) - KEYWORDS == set()


def test_it_has_every_word_of_the_vocabulary_and_no_other() -> None:
    older = {*vocabulary.ALIASES, *LEGACY, *vocabulary.IGNORED, *vocabulary.REMOVED}
    assert set(SCHEMA["properties"]) == {"extends", *HOME, *older}
    assert [key for key, prop in SCHEMA["properties"].items() if not prop["description"]] == []


def test_deprecated_is_what_should_be_written_otherwise() -> None:
    older = {*LEGACY, *vocabulary.IGNORED, *vocabulary.REMOVED}
    found = {key for key, prop in SCHEMA["properties"].items() if prop.get("deprecated")}
    assert found == older


def test_some_keys_to_the_letter() -> None:
    properties = SCHEMA["properties"]
    assert properties["lora_dropout"] == {
        "anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "null"}],
        "description": "Dropout before the adapter. Default: `0`.",
        "default": 0,
    }
    assert properties["liger_rope"] == {
        "anyOf": [{"type": "boolean"}, {"type": "null"}],
        "description": (
            "Fused rotary embedding. Default: off. "
            "Needs `axolotl.integrations.liger.LigerPlugin` in `plugins`. "
            "Falls back: the model's own rotary embedding is used."
        ),
    }
    assert properties["fsdp_config"]["description"].endswith(" Not runnable yet.")
    assert properties["adapter"]["description"].endswith(" Runs today: `lora`.")
    text = "Older spelling: write `attn_implementation: flash_attention_2`."
    assert properties["flash_attention"] == {
        "type": ["boolean", "null"],
        "description": text,
        "deprecated": True,
        "deprecationMessage": text,
    }
    assert properties["rope_scaling"]["enum"] == [None, "", False]


def test_defaults_are_valid() -> None:
    wrong = [
        key
        for key, prop in SCHEMA["properties"].items()
        if "default" in prop and not VALIDATOR.is_valid({key: prop["default"]})
    ]
    assert wrong == []


# ----------------------------------------------------------------------------------- whole recipes


@pytest.mark.parametrize("path", sorted(GALLERY.rglob("*.yml")), ids=lambda path: path.stem)
def test_the_gallery_is_valid(path: Path) -> None:
    assert errors(path.read_text(encoding="utf-8")) == []


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason=f"no recipes of Axolotl in {EXAMPLES}")
def test_recipes_of_axolotl_are_valid() -> None:
    paths = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in {".yml", ".yaml"})
    assert len(paths) == 109
    said = {path.name: errors(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: found for name, found in said.items() if found} == {}


# ---------------------------------------------------------------- the same answer as `ft check` gives

GOOD = """
lora_r: 16
lora_r:
learning_rate: 1e-4
learning_rate: 1
optimizer: adamw_torch
bf16: auto
val_set_size: 0.1
lora_target_modules: [q_proj, v_proj]
lora_target_modules: q_proj|v_proj
wandb_project: ""
chat_template: ""
chat_template: tokenizer_default_fallback_chatml
datasets: [{path: x, type: alpaca}]
datasets: [{path: x, type: chat_template, message_field_role: from}]
datasets: [{path: x, type: {format: "{instruction}"}}]
datasets: [{path: x, type: chat_template, roles: {user: [human], tool: }}]
fsdp_config: {offload_params: true, state_dict_type: }
fsdp_config: {fsdp_offload_params: true, version: 2}
peft_layer_replication: [[0, 4], [2, 6]]
lora_rank_pattern: {q_proj: 4, v_proj: }
max_memory: {0: 20GiB, "1": 20GiB, cpu: 8}
cloud: {gpu: "H100:8", timeout: 90m, max_cost: 3}
cloud: {gpu: cpu, timeout: 60}
cloud: {gpu: ""}
cloud: {gpu: ["H100!:8", "B200+:8"], region: [us-east, us-west], cpu: 0.5, memory: 128, disk: 512.5, retries: 0}
cloud: {store_bucket: "s3://my-runs/ft", volumes: [{name: data, mount: /data}], cache_volume: cache}
cloud: {secrets: [HF_TOKEN], env: {NCCL_DEBUG: INFO, EMPTY: ""}, image: {apt: [git], commands: ["RUN make"]}}
cloud: {env: {NCCL_DEBUG: }}
cloud: {modal: {cloud: aws, nested: {a: [1, null, ""]}}, include: [src]}
datasets: [{path: x, type: "", split: ""}]
special_tokens: {pad_token: ""}
save_strategy: no
excess_length_strategy: DROP
flash_attention: true
batch_size: 4
gc_steps: 5
dpo_beta: 0.1
model_type: LlamaForCausalLM
rope_scaling:
s2_attention: false
debug: true
adam_eps: 1e-8
"""
BAD = """
lora_rank: 16
lora_r: 0
lora_r: 1.5
lora_r: [16]
lora_r: many
lora_dropout: 1
lora_dropout: -0.1
learning_rate: 0
optimizer: adamw_torc
bf16: maybe
seed: -1
seed: 4294967296
val_set_size: -1
datasets: []
datasets: alpaca
datasets: [alpaca]
datasets: [{type: alpaca}]
datasets: [{path: , type: alpaca}]
datasets: [{path: x, typ: alpaca}]
datasets: [{path: x, type: {formt: x}}]
datasets: [{path: x, train_on_eos: sometimes}]
datasets: [{path: x, roles: {user: human}}]
special_tokens: {pad_token: 3}
special_tokens: {pad: x}
fsdp_config: {fsdp_offload_parms: true}
fsdp_config: {version: 3}
fsdp_config: true
peft_layer_replication: [[0, 4, 6]]
peft_layer_replication: [[0]]
peft_layer_replication: [[0, four]]
max_memory: {gpu: 20GiB}
lora_rank_pattern: {q_proj: 0}
lora_rank_pattern: [4]
cloud: {gpu: "H100:8x"}
cloud: {gpu: []}
cloud: {gpu: [8]}
cloud: {gpu: "H100?:8"}
cloud: {retries: 11}
cloud: {memory: 0}
cloud: {secrets: {HF_TOKEN: x}}
cloud: {secrets: HF_TOKEN}
cloud: {env: [NCCL_DEBUG]}
cloud: {env: {NCCL-DEBUG: INFO}}
cloud: {env: {NCCL_DEBUG: 1}}
cloud: {store_bucket: my-runs}
cloud: {volumes: [{name: data}]}
cloud: {volumes: [{name: data, mount: data}]}
cloud: {image: {apt: git}}
cloud: {modal: [cloud]}
cloud: {timeout: 0}
cloud: {timeout: 3 hours}
cloud: {max_cost: 0}
flash_attention: sometimes
batch_size: 0
batch_size: four
gc_steps: 0
evaluation_strategy: never
rope_scaling: {type: linear}
max_packed_sequence_len: 1
"""


def is_accepted(text: str) -> bool:
    found = normalize(loads(text)).problems
    return not any(problem.severity is Severity.ERROR for problem in found)


@pytest.mark.parametrize("line", GOOD.strip().splitlines())
def test_what_ft_reads_is_valid(line: str) -> None:
    assert is_accepted(line)
    assert errors(line) == []


@pytest.mark.parametrize("line", BAD.strip().splitlines())
def test_what_ft_refuses_is_not_valid(line: str) -> None:
    assert not is_accepted(line)
    assert errors(line) != []


def test_extends_is_a_file_or_a_list_of_them() -> None:
    assert errors("extends: base.yml") == []
    assert errors("extends: [a.yml, https://example.org/b.yml]") == []
    assert errors("extends:") == []
    assert errors("extends: 3") != []
    assert errors("extends: ['']") != []


@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        ({"sequence_len": "500_000"}, True),
        (
            {"sequence_len": "500000"},
            False,
        ),  # `ft` reads it, but a number is what one should write.
        ({"sequence_len": "500_000.5"}, False),
        ({"max_steps": "1__0"}, False),
        ({"seed": "1_000_"}, False),
        ({"num_epochs": "1_000.5e-3"}, True),
        ({"lora_dropout": "0_0"}, False),  # Nobody writes what is below 1 like that.
        ({"batch_size": "1_024"}, True),
        ({"cloud": {"timeout": "86_400", "nodes": "1_000"}}, True),
        ({"datasets": [{"path": "x", "type": "alpaca", "shards": "1_000"}]}, True),
    ],
)
def test_numbers_with_underscores_are_text_to_an_editor(
    value: dict[str, Any], is_right: bool
) -> None:
    # YAML 1.2 has no underscores in numbers, and editors read that.
    assert VALIDATOR.is_valid(value) is is_right


WORDS = st.text("abz_/.0", min_size=1, max_size=6)
SCALARS = st.booleans() | st.integers(-3, 70_000) | st.floats(-2, 3).filter(lambda x: x != int(x))
PLAIN = SCALARS | WORDS
VALUES = (
    PLAIN
    | st.lists(PLAIN, max_size=3)
    | st.lists(st.lists(st.integers(-1, 9), max_size=3), max_size=2)
    | st.dictionaries(WORDS, PLAIN, max_size=2)
)
MENDED = {"save_strategy", "eval_strategy", "jagged_restart_anneal_steps"}
"""`false` there is mended before pydantic sees it."""


@st.composite
def settings_of_one_key(draw: st.DrawFn) -> tuple[str, Any]:
    key = draw(st.sampled_from(sorted(HOME)))
    named = st.sampled_from([*entries()[key].values, "no such name"])
    return key, draw(named | VALUES)


@settings(max_examples=500)
@given(settings_of_one_key())
def test_any_value_of_any_key_is_judged_as_pydantic_does(setting: tuple[str, Any]) -> None:
    key, value = setting
    assume(not re.search("[0-9]_[0-9]", repr(value)))
    try:
        HOME[key].model_validate({key: value})
        is_right = True
    except MismatchError:
        is_right = key in MENDED and value is False
    assert VALIDATOR.is_valid({key: value}) is is_right
