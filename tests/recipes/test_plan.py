"""RunPlan: whole, round-trips, and decided by `resolve` alone."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.recipes.errors import PlanError
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import (
    AdapterPlan,
    CheckpointPlan,
    DataPlan,
    MethodPlan,
    ModelPlan,
    OptimPlan,
    ParallelPlan,
    RunPlan,
    read_plan,
)
from ft.recipes.resolve import resolve
from ft.recipes.schema import SECTION_OF

CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
H100X8 = Machine("cuda", "H100", 8, 1, bf16=True, tf32=True)
SHA = "0" * 64


def plan_of(
    text: str, machine: Machine = CPU, files: dict[Any, FileFact | None] | None = None
) -> RunPlan:
    return resolve(normalize(loads(text)).flat, Facts(files=files or {}, machine=machine))


SMALL = "base_model: some/model\ndatasets: [{path: some/data, type: chat_template}]\nlearning_rate: 2e-4\n"


def test_every_default_is_decided() -> None:
    assert json.loads(plan_of(SMALL).to_json()) == {
        "schema_version": 5,
        "model": {
            "base_model": "some/model",
            "base_model_config": "some/model",
            "tokenizer_config": "some/model",
            "revision_of_model": "main",
            "trust_remote_code": False,
            "special_tokens": {},
            "attn_implementation": "sdpa",
            "bf16": False,
            "tf32": False,
            "gradient_checkpointing": False,
            "gradient_checkpointing_use_reentrant": False,
        },
        "data": {
            "datasets": [
                {
                    "path": "some/data",
                    "type": "chat_template",
                    "user_defined": None,
                    "split": "train",
                    "name": None,
                    "field": "text",
                    "field_messages": "messages",
                    "message_property_mappings": {"role": "role", "content": "content"},
                    "roles": {
                        "user": "user",
                        "human": "user",
                        "assistant": "assistant",
                        "gpt": "assistant",
                        "system": "system",
                        "tool": "tool",
                    },
                    "roles_to_train": ["assistant"],
                    "train_on_eos": "turn",
                    "train_on_eot": "turn",
                    "message_field_training": None,
                    "message_field_training_detail": None,
                    "field_system": "system",
                    "field_tools": "tools",
                    "field_thinking": "reasoning_content",
                    "template_thinking_key": "reasoning_content",
                    "split_thinking": False,
                    "drop_system_message": False,
                    "chat_template": "tokenizer_default",
                    "chat_template_jinja": None,
                }
            ],
            "test_datasets": [],
            "sequence_len": 512,
            "min_sample_len": 2,
            "excess_length_strategy": "drop",
            "train_on_inputs": False,
            "val_set_size": 0,
            "shuffle_merged_datasets": True,
            "chat_template": "tokenizer_default",
            "chat_template_jinja": None,
            "chat_template_kwargs": {},
            "default_system_message": None,
            "eot_tokens": [],
            "date": date.today().isoformat(),
            "on_bad_row": "stop",
            "sample_packing": False,
            "eval_sample_packing": False,
            "sample_packing_sequentially": False,
            "sample_packing_group_size": None,
            "sample_packing_bin_size": None,
            "pad_to_sequence_len": False,
        },
        "method": {"method": "sft"},
        "adapter": {
            "adapter": "full",
            "lora_r": 0,
            "lora_alpha": 0,
            "lora_dropout": 0.0,
            "lora_target_modules": [],
            "lora_modules_to_save": [],
            "peft_use_rslora": False,
        },
        "parallel": {
            "device": "cpu",
            "gpu": "cpu",
            "num_nodes": 1,
            "num_processes_per_node": 1,
            "dp_replicate_size": 1,
            "dp_shard_size": 1,
            "context_parallel_size": 1,
            "tensor_parallel_size": 1,
            "ddp_timeout": 600,
        },
        "optim": {
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1.0,
            "max_steps": None,
            "optimizer": "adamw_torch_fused",
            "learning_rate": 0.0002,
            "lr_scheduler": "cosine",
            "warmup_steps": None,
            "warmup_ratio": 0.03,
            "warmup_at_most_steps": 100,
            "weight_decay": 0.0,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-08,
            "max_grad_norm": 1.0,
            "seed": 42,
        },
        "checkpoint": {
            "save_steps": None,
            "saves_per_epoch": 1,
            "save_total_limit": 4,
            "logging_steps": 1,
            "eval_steps": None,
            "evals_per_epoch": 0,
            "eval_batch_size": 1,
        },
        "limits": {"timeout_s": None, "max_cost": None, "price_per_hour": None},
        "inputs": [],
    }


@pytest.mark.parametrize(
    ("line", "machine", "section", "expected"),
    [
        ("bf16: auto", H100X8, "model", {"bf16": True}),
        ("bf16: auto", CPU, "model", {"bf16": False}),
        ("bf16: true", CPU, "model", {"bf16": True}),
        ("bf16: false", H100X8, "model", {"bf16": False}),
        ("tf32: true", CPU, "model", {"tf32": False}),
        ("gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: true}", CPU, "model",
         {"gradient_checkpointing": True, "gradient_checkpointing_use_reentrant": True}),
        ("adapter: lora\nlora_r: 8\nlora_alpha: 16", CPU, "adapter",
         {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": "all-linear"}),
        ("adapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_modules: [q_proj, v_proj]", CPU, "adapter",
         {"lora_target_modules": ("q_proj", "v_proj")}),
        ("warmup_ratio: 0.1", CPU, "optim", {"warmup_ratio": 0.1, "warmup_steps": None, "warmup_at_most_steps": None}),
        ("warmup_steps: 0", CPU, "optim", {"warmup_steps": 0, "warmup_ratio": None, "warmup_at_most_steps": None}),
        ("warmup_steps: 0\nwarmup_ratio: 0.1", CPU, "optim",
         {"warmup_ratio": 0.1, "warmup_steps": None, "warmup_at_most_steps": None}),
        ("warmup_steps: 10\nwarmup_ratio: 0.0", CPU, "optim",
         {"warmup_ratio": None, "warmup_steps": 10, "warmup_at_most_steps": None}),
        ("warmup_steps: 0\nwarmup_ratio: 0", CPU, "optim",
         {"warmup_ratio": None, "warmup_steps": 0, "warmup_at_most_steps": None}),
        ("val_set_size: 0.1\nevals_per_epoch: 0\neval_steps: 10", CPU, "checkpoint",
         {"evals_per_epoch": 0, "eval_steps": 10}),
        ("save_steps: 0\nsaves_per_epoch: 2\nlogging_steps: 0", CPU, "checkpoint",
         {"save_steps": None, "saves_per_epoch": 2, "logging_steps": 1}),
        ("max_steps: -1", CPU, "optim", {"max_steps": None}),
        ("max_grad_norm: 0", CPU, "optim", {"max_grad_norm": 0.0}),
        ("seed: 0", CPU, "optim", {"seed": 0}),
        ("shuffle_merged_datasets: false", CPU, "data", {"shuffle_merged_datasets": False}),
        ("val_set_size: 0.1\nmicro_batch_size: 4", CPU, "checkpoint", {"evals_per_epoch": 1, "eval_batch_size": 4}),
        ("sample_packing: true", CPU, "data",
         {"sample_packing": True, "eval_sample_packing": True, "pad_to_sequence_len": True}),
        ("sample_packing: true\neval_sample_packing: false\npad_to_sequence_len: false", CPU, "data",
         {"sample_packing": True, "eval_sample_packing": False, "pad_to_sequence_len": False}),
        ("eval_sample_packing: true", CPU, "data",
         {"sample_packing": False, "eval_sample_packing": True, "pad_to_sequence_len": False}),
        ("chat_template_jinja: '{{ messages }}'", CPU, "data",
         {"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"}),
        ("dp_replicate_size: 8", H100X8, "parallel", {"dp_replicate_size": 8, "num_processes_per_node": 8}),
    ],
)  # fmt: skip
def test_a_key_decides_its_field(
    line: str, machine: Machine, section: str, expected: dict[str, Any]
) -> None:
    found = getattr(plan_of(SMALL + line, machine), section)
    assert {key: getattr(found, key) for key in expected} == expected


def test_files_become_inputs_by_name_and_each_travels_once() -> None:
    text = "base_model: ./m\nlearning_rate: 1e-4\n"
    text += "datasets: [{path: a.jsonl, type: alpaca}, {path: ./a.jsonl, type: alpaca}]\n"
    data = FileFact("data", Path("/x/a.jsonl"), "111-a.jsonl", SHA, 3)
    model = FileFact("model", Path("/x/m"), "000-m", SHA, 4)
    plan = plan_of(
        text,
        files={
            ("base_model",): model,
            ("datasets", 0, "path"): data,
            ("datasets", 1, "path"): data,
        },
    )
    assert [(i.path, i.kind, i.size) for i in plan.inputs] == [
        ("inputs/000-m", "model", 4),
        ("inputs/111-a.jsonl", "data", 3),
    ]
    assert plan.model.base_model == plan.model.tokenizer_config == "inputs/000-m"
    assert [d.path for d in plan.data.datasets] == ["inputs/111-a.jsonl"] * 2
    assert "/x/" not in plan.to_json()


def test_a_plan_needs_files_and_machine() -> None:
    with pytest.raises(PlanError, match="must be known"):
        resolve(normalize(loads(SMALL)).flat, Facts())


def test_every_field_of_a_plan_is_a_recipe_key_or_says_what_else_it_is() -> None:
    ours = {
        "method", "device", "gpu", "num_nodes", "num_processes_per_node",
        "gradient_checkpointing_use_reentrant", "warmup_at_most_steps", "date",
    }  # fmt: skip
    for section in (
        ModelPlan,
        DataPlan,
        MethodPlan,
        AdapterPlan,
        ParallelPlan,
        OptimPlan,
        CheckpointPlan,
    ):
        assert set(section.model_fields) - set(SECTION_OF) - ours == set(), section.__name__


texts = st.text(max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
OF_TYPE: dict[type, st.SearchStrategy[Any]] = {
    str: texts,
    int: st.integers(),
    float: floats,
    bool: st.booleans(),
}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def plans(draw: st.DrawFn) -> RunPlan:
    """A plan in which every plain text, number and flag, and every list, is anything that JSON can hold."""
    values = json.loads(plan_of(SMALL).to_json())
    for section in values.values():
        for key, value in section.items() if isinstance(section, dict) else ():
            free = key not in LITERALS and type(value) in OF_TYPE
            section[key] = draw(OF_TYPE[type(value)]) if free else value
    values["model"]["special_tokens"] = draw(st.dictionaries(texts, texts, max_size=3))
    values["data"]["chat_template_kwargs"] = draw(st.dictionaries(texts, json_values, max_size=3))
    values["adapter"]["lora_target_modules"] = draw(st.one_of(texts, st.lists(texts, max_size=3)))
    values["data"]["val_set_size"] = draw(st.one_of(st.integers(), floats))
    values["inputs"] = [
        {
            "name": name,
            "kind": draw(st.sampled_from(["data", "include"])),
            "sha256": SHA,
            "size": draw(st.integers()),
            "executables": draw(st.lists(texts, max_size=3)),
        }
        for name in draw(st.lists(names, max_size=3))
    ]
    return RunPlan.from_json(json.dumps(values))


LITERALS = {
    "attn_implementation", "excess_length_strategy", "chat_template", "method", "adapter", "device", "optimizer",
    "lr_scheduler", "on_bad_row", "date",
}  # fmt: skip


@given(plans())
def test_a_plan_round_trips_through_json(plan: RunPlan) -> None:
    again = RunPlan.from_json(plan.to_json())
    assert again == plan
    assert again.sha256 == plan.sha256
    assert again.to_json() == plan.to_json()


def test_neither_key_order_nor_comments_change_the_plan() -> None:
    lines = [
        line
        for line in (SMALL + "seed: 1\nlora_r: 4\nadapter: lora\nlora_alpha: 8\n").splitlines()
        if line
    ]
    shuffled = "# a comment\n" + "\n".join(reversed(lines)) + "\n"
    assert plan_of(shuffled).sha256 == plan_of("\n".join(lines)).sha256


def test_a_mapping_in_another_order_is_the_same_plan() -> None:
    data = (
        "datasets: [{path: some/data, type: chat_template, roles: {user: [a], assistant: [b]}}]\n"
    )
    text = SMALL.replace("datasets: [{path: some/data, type: chat_template}]\n", data)
    other = text.replace("{user: [a], assistant: [b]}", "{assistant: [b], user: [a]}")
    assert other != text != SMALL
    assert plan_of(other).sha256 == plan_of(text).sha256
    swapped = text.replace("{user: [a], assistant: [b]}", "{user: [b], assistant: [a]}")
    assert plan_of(swapped).sha256 != plan_of(text).sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "plan.json cannot be read: .*"),
        ("[]", "plan.json cannot be read: .*"),
        ("{", "plan.json cannot be read: .*"),
        ({"schema_version": 99}, "plan.json has schema version 99, this runtime reads 5: .*"),
        ({"optim": 3}, r"plan.json: optim: .*"),
    ],
)
def test_a_plan_that_cannot_be_read_says_why(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "plan.json"
    if isinstance(change, str):
        path.write_text(change)
    elif isinstance(change, dict):
        path.write_text(json.dumps({**json.loads(plan_of(SMALL).to_json()), **change}))
    with pytest.raises(PlanError, match=message):
        read_plan(path)
