"""Every key that the schema calls implemented: flip it, and see what is different. One entry per key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ft.launcher import dispatch
from ft.launcher.facts import machine_for
from ft.recipes import rules
from ft.recipes.errors import Severity
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.schema import SECTIONS
from ft.recipes.schema.base import Section, Status, info_of, nested_sections
from ft.runtime.adapters import lora
from ft.runtime.data.batches import TokenCounts, batch_of
from ft.runtime.data.collate import Collator, collator_of
from ft.runtime.data.order import Order, eval_packs, order_of
from ft.runtime.data.prepare import prepare
from ft.runtime.data.row import DataError
from ft.runtime.data.sources import _hub
from ft.runtime.methods.sft import Schedule, arguments
from ft.runtime.model.load import load_model
from ft.runtime.model.tokenizer import load_tokenizer

CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
H100X4 = Machine("cuda", "H100", 4, 1, bf16=True, tf32=True)
ROWS = 8


@dataclass(frozen=True)
class Bench:
    """A run folder with a tiny model, the real tokenizer and rows of every format, and what to look at in it."""

    folder: Path

    def plan(self, text: str, machine: Machine = CPU) -> RunPlan:
        head = "" if "base_model:" in text else "base_model: inputs/model\n"
        head += "" if "tokenizer_config:" in text else "tokenizer_config: inputs/tokenizer\n"
        head += "" if "learning_rate:" in text else "learning_rate: 0.001\n"
        if not text.startswith("datasets:"):
            head += "datasets: [{path: inputs/chat.jsonl, type: chat_template}]\n"
        facts = Facts(files={}, machine=machine)
        normalized = normalize(loads(head + text))
        report = rules.check(normalized, facts)
        wrong = [str(p) for p in report.problems if p.severity is not Severity.WARNING]
        assert wrong == []
        return resolve(normalized.flat, facts)

    def rows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(input_ids, labels) of every row that is trained on."""
        plan = self.plan(text)
        data = prepare(plan, self.folder, load_tokenizer(plan, self.folder)).train
        return [(row["input_ids"], row["labels"]) for row in data]

    def texts(self, text: str) -> list[str]:
        """The rows as text, with what is not trained in [[brackets]]."""
        tokenizer = load_tokenizer(self.plan(text), self.folder)
        shown = []
        for ids, labels in self.rows(text):
            parts = [
                tokenizer.decode([one]) if label != -100 else f"[[{tokenizer.decode([one])}]]"
                for one, label in zip(ids, labels, strict=True)
            ]
            shown.append("".join(parts).replace("]][[", ""))
        return shown


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Bench:
    folder = tmp_path_factory.mktemp("run")
    inputs = folder / "inputs"
    inputs.mkdir()
    source = repo / ".quickstart" / "SmolLM2-135M-Instruct"
    if not (source / "tokenizer.json").is_file():
        pytest.fail(f"{source} is missing: run `make model`")
    AutoTokenizer.from_pretrained(source).save_pretrained(inputs / "tokenizer")
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(inputs / "model")
    config.rms_norm_eps = 0.5
    config.save_pretrained(inputs / "config")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    more = [*turns, {"role": "user", "content": "And"}, {"role": "assistant", "content": "Bye"}]
    talk = [{"from": "a", "value": "Hi"}, {"from": "b", "value": "Hello"}]
    files: dict[str, list[Any]] = {
        "chat": [
            {"messages": [*turns[:1], {**turns[1], "content": f"Hello {i}"}]} for i in range(ROWS)
        ],
        "long": [{"messages": more}],
        "talk": [{"talk": talk, "messages": turns}],
        "text": [{"text": "one", "other": "two"}],
        "alpaca": [{"instruction": "Add", "input": "", "output": "Done"}],
    }
    for name, rows in files.items():
        (inputs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = inputs / "split"
    split.mkdir()
    for name in ("train", "test"):
        (split / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    hub = inputs / "hub"
    hub.mkdir()
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    )
    for name in ("a", "b"):
        (hub / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    return Bench(folder)


# ------------------------------------------------------------------------------ what is looked at


def argument(name: str, machine: Machine = CPU) -> Callable[[Bench, str], Any]:
    """An argument of the trainer, after 8 rows were prepared."""

    def look(bench: Bench, text: str) -> Any:
        plan = bench.plan(text, machine)
        schedule = Schedule.of(plan, ROWS, evaluates=bool(plan.data.val_set_size))
        return getattr(arguments(plan, schedule, bench.folder / "scratch"), name)

    return look


def scheduled(name: str) -> Callable[[Bench, str], Any]:
    def look(bench: Bench, text: str) -> Any:
        plan = bench.plan(text)
        return getattr(Schedule.of(plan, ROWS, evaluates=bool(plan.data.val_set_size)), name)

    return look


def adapter(name: str) -> Callable[[Bench, str], Any]:
    """A field of PEFT's configuration of the wrapped model."""

    def look(bench: Bench, text: str) -> Any:
        plan = bench.plan(text)
        model = lora.wrap(load_model(plan, bench.folder), plan.adapter)
        value = getattr(model.peft_config["default"], name)
        return (
            sorted({str(name).rpartition(".")[2] for name in value})
            if isinstance(value, set | list)
            else value
        )

    return look


def token(name: str) -> Callable[[Bench, str], Any]:
    return lambda bench, text: getattr(load_tokenizer(bench.plan(text), bench.folder), name)


def planned(path: str, machine: Machine = CPU) -> Callable[[Bench, str], Any]:
    """A value of the plan, for what only a GPU or a cluster would show."""

    def look(bench: Bench, text: str) -> Any:
        value: Any = bench.plan(text, machine)
        for part in path.split("."):
            value = getattr(value, part)
        return value

    return look


def texts(bench: Bench, text: str) -> Any:
    return bench.texts(text)


def num_rows(bench: Bench, text: str) -> Any:
    return len(bench.rows(text))


def rows_or_error(bench: Bench, text: str) -> Any:
    try:
        return [len(ids) for ids, _ in bench.rows(text)]
    except DataError as error:
        return type(error).__name__


def trainable(bench: Bench, text: str) -> Any:
    """Whether the base weights are trained."""
    plan = bench.plan(text)
    model = load_model(plan, bench.folder)
    if plan.adapter.adapter == "lora":
        model = lora.wrap(model, plan.adapter)  # type: ignore[assignment]  # both are modules
    return any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)


def of_model(look: Callable[[Any], Any]) -> Callable[[Bench, str], Any]:
    return lambda bench, text: look(load_model(bench.plan(text), bench.folder))


def first_rows(bench: Bench, text: str) -> Any:
    plan = bench.plan(text)
    order = Order(ROWS, plan.global_batch_size, plan.optim.seed, plan.data.shuffle_merged_datasets)
    return [order.rows_of_step(step).tolist() for step in range(ROWS)] == [[i] for i in range(ROWS)]


def orders(bench: Bench, text: str) -> Any:
    plan = bench.plan(text)
    order = Order(ROWS, plan.global_batch_size, plan.optim.seed, True)
    return [int(order.rows_of_step(step)[0]) for step in range(ROWS)]


def sizes_of_packs(bench: Bench, text: str) -> Any:
    """Rows of each pack of the first epoch, sorted; the order decides what neighbours are, so it is the files'."""
    plan = bench.plan(f"{text}\nshuffle_merged_datasets: false\nmicro_batch_size: 16")
    lengths = np.array([5, 3, 4, 3, 4, 2, 1, 2])
    chosen = order_of(plan, lengths).micro_batch(0, 0, 0, 16, 1)
    return [1] * len(chosen) if isinstance(chosen, np.ndarray) else [len(p) for p in chosen]


def batch_keys(bench: Bench, text: str) -> Any:
    """Tensors of an evaluation's batch: positions tell packed rows apart, a mask tells padding."""
    plan = bench.plan(text)
    rows = prepare(plan, bench.folder, load_tokenizer(plan, bench.folder)).train
    packs = eval_packs(plan.data, TokenCounts.of(rows).tokens)
    return sorted(batch_of(rows, np.arange(2) if packs is None else packs, Collator(0)))


def width(bench: Bench, text: str) -> Any:
    plan = bench.plan(text)
    rows = prepare(plan, bench.folder, load_tokenizer(plan, bench.folder)).train
    return batch_of(rows, np.arange(2), collator_of(plan, pad_token_id=0))["input_ids"].shape[1]


def hub_rows(bench: Bench, text: str) -> Any:
    spec = bench.plan(text).data.datasets[0]
    local = spec.model_copy(update={"path": str(bench.folder / spec.path)})
    return [example.value["text"] for example in _hub(local)]


def of_machine(name: str) -> Callable[[Bench, str], Any]:
    return lambda _, text: getattr(machine_for(normalize(loads(text)).flat), name)


def layout_errors(_: Bench, text: str) -> Any:
    """Rules that refuse the layout on four GPUs."""
    report = rules.check(normalize(loads(text)), Facts(files={}, machine=H100X4))
    return [p.rule for p in report.of(Severity.ERROR) if p.key[0] == "dp_replicate_size"]


def submission(look: Callable[[Any], Any]) -> Callable[[Bench, str], Any]:
    """Of `ft cloud run`: what would be sent, or where the model would be put."""

    def see(bench: Bench, text: str) -> Any:
        folder = bench.folder
        recipe = folder / "recipe.yml"
        recipe.write_text(
            f"base_model: {folder}/inputs/model\ntokenizer_config: {folder}/inputs/tokenizer\n"
            f"datasets: [{{path: {folder}/inputs/chat.jsonl, type: chat_template}}]\n"
            f"learning_rate: 0.001\n{text}"
        )
        return look(dispatch.prepare(str(recipe)))

    return see


def problems(bench: Bench, text: str) -> Any:
    del bench
    return [p.severity.value for p in normalize(loads(text)).problems]


LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\n"
PACK_8 = "sample_packing: true\nsequence_len: 8\n"
ALL_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
HI, HELLO = "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>assistant\n"
USER, AND = "<|im_start|>user\n", "<|im_start|>user\nAnd<|im_end|>\n"
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ONE_TURN = f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n]]"
Effect = tuple[str, str, Callable[[Bench, str], Any], Any, Any]


def data(name: str, rest: str = "type: chat_template") -> str:
    return f"datasets: [{{path: inputs/{name}.jsonl, {rest}}}]\n"


EFFECTS: dict[str, Effect] = {
    # model
    "base_model_config": ("", "base_model_config: inputs/config", of_model(lambda m: m.config.rms_norm_eps), 1e-6, 0.5),
    "special_tokens": (
        "", "special_tokens: {pad_token: '<|endoftext|>'}", token("pad_token"), "<|im_end|>", "<|endoftext|>"),
    "special_tokens.pad_token": (
        "special_tokens: {pad_token: '<|im_start|>'}", "special_tokens: {pad_token: '<|endoftext|>'}",
        token("pad_token"), "<|im_start|>", "<|endoftext|>"),
    "special_tokens.eos_token": (
        "", "special_tokens: {eos_token: '<|endoftext|>'}", token("eos_token"), "<|im_end|>", "<|endoftext|>"),
    "special_tokens.bos_token": (
        "", "special_tokens: {bos_token: '<|endoftext|>'}", token("bos_token"), "<|im_start|>", "<|endoftext|>"),
    "special_tokens.unk_token": (
        "", "special_tokens: {unk_token: '<|im_end|>'}", token("unk_token"), "<|endoftext|>", "<|im_end|>"),
    "attn_implementation": (
        "", "attn_implementation: eager", of_model(lambda m: m.config._attn_implementation), "sdpa", "eager"),
    "bf16": ("", "bf16: true", of_model(lambda m: m.dtype), torch.float32, torch.bfloat16),
    "tf32": ("tf32: false", "tf32: true", planned("model.tf32", H100X4), False, True),
    "gradient_checkpointing": ("", "gradient_checkpointing: true", argument("gradient_checkpointing"), False, True),
    "gradient_checkpointing_kwargs": (
        "", "gradient_checkpointing_kwargs: {use_reentrant: true}", argument("gradient_checkpointing_kwargs"),
        {"use_reentrant": False}, {"use_reentrant": True}),
    "gradient_checkpointing_kwargs.use_reentrant": (
        "gradient_checkpointing_kwargs: {use_reentrant: false}", "gradient_checkpointing_kwargs: {use_reentrant: true}",
        argument("gradient_checkpointing_kwargs"), {"use_reentrant": False}, {"use_reentrant": True}),
    # data
    "datasets": (data("text", "type: completion"), data("alpaca", "type: alpaca"), num_rows, 1, 1),
    "datasets.path": (data("chat"), data("long"), num_rows, 8, 1),
    "datasets.type": (
        data("talk"), data("talk", "type: completion, field: x").replace("field: x", "field: y")
        .replace("talk.jsonl", "text.jsonl").replace("field: y", "field: text"), texts, [ONE_TURN], ["one<|im_end|>"]),
    "datasets.split": (
        "datasets: [{path: inputs/split, type: completion}]",
        "datasets: [{path: inputs/split, type: completion, split: test}]",
        texts, ["train<|im_end|>"], ["test<|im_end|>"]),
    "datasets.name": (
        "datasets: [{path: inputs/hub, type: completion, name: a}]",
        "datasets: [{path: inputs/hub, type: completion, name: b}]",
        hub_rows, ["a"], ["b"]),
    "datasets.field": (
        data("text", "type: completion"), data("text", "type: completion, field: other"), texts,
        ["one<|im_end|>"], ["two<|im_end|>"]),
    "datasets.field_messages": (
        data("talk"), data("talk", "type: chat_template, field_messages: talk, roles: {user: [a], assistant: [b]}, "
        "message_property_mappings: {role: from, content: value}"), texts,
        [ONE_TURN], [ONE_TURN.replace("Hello there", "Hello")]),
    "datasets.roles_to_train": (
        data("long"), data("long", "type: chat_template, roles_to_train: [user]"), texts,
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"],
        [f"[[{SYSTEM}<|im_start|>user\n]]Hi<|im_end|>[[\n{HELLO}Hello there<|im_end|>\n{USER}]]And<|im_end|>"
         f"[[\n{HELLO}Bye<|im_end|>\n]]"]),
    "datasets.train_on_eos": (
        data("long"), data("long", "type: chat_template, train_on_eos: last"), texts,
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"],
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there[[<|im_end|>\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"]),
    "sequence_len": (data("long"), data("long") + "sequence_len: 8", rows_or_error, [49], "DataError"),
    "min_sample_len": (data("long"), data("long") + "min_sample_len: 60", rows_or_error, [49], "DataError"),
    "excess_length_strategy": (
        data("long") + "sequence_len: 40", data("long") + "sequence_len: 40\nexcess_length_strategy: truncate",
        rows_or_error, "DataError", [40]),
    "train_on_inputs": (
        data("talk"), data("talk") + "train_on_inputs: true", texts, [ONE_TURN],
        [f"[[{SYSTEM}<|im_start|>user\n]]Hi<|im_end|>[[\n{HELLO}]]Hello there<|im_end|>[[\n]]"]),
    "val_set_size": ("", "val_set_size: 2", num_rows, 8, 6),
    "shuffle_merged_datasets": ("", "shuffle_merged_datasets: false", first_rows, False, True),
    # Of 5 3 4 3 4 2 1 2 tokens in packs of 8: 5+3, 4+4, 3+2+2+1 and, in their order, 5+3, 4+3, 4+2+1, 2.
    "sample_packing": (PACK_8.replace("true", "false"), PACK_8, sizes_of_packs, [1] * 8, [2, 2, 4]),
    "sample_packing_sequentially": (
        PACK_8, PACK_8 + "sample_packing_sequentially: true", sizes_of_packs, [2, 2, 4], [2, 2, 3, 1]),
    # Four rows at a time, in the order of the files: 5+3, 4+3, then 4+2+2 and 1.
    "sample_packing_group_size": (
        PACK_8, PACK_8 + "sample_packing_group_size: 4", sizes_of_packs, [2, 2, 4], [2, 2, 3, 1]),
    "sample_packing_bin_size": (
        PACK_8, PACK_8 + "sample_packing_bin_size: 2", sizes_of_packs, [2, 2, 4], [2, 2, 2, 2]),
    "eval_sample_packing": (
        "val_set_size: 2", "val_set_size: 2\neval_sample_packing: true", batch_keys,
        ["attention_mask", "input_ids", "labels"], ["input_ids", "labels", "position_ids"]),
    "pad_to_sequence_len": ("", "pad_to_sequence_len: true", width, 36, 512),
    "chat_template": (
        data("talk"), data("talk") + "chat_template: chatml", texts, [ONE_TURN], [ONE_TURN.replace(SYSTEM, "")]),
    "chat_template_jinja": (
        data("talk"),
        data("talk") + "chat_template_jinja: \"{% for m in messages %}{{ m.role }}\\n{{ m.content }}\\n{% endfor %}\"",
        texts,
        [ONE_TURN],
        ["[[user\nHi\nassistant\n]]Hello there[[\n]]"],
    ),
    # adapter
    "adapter": ("", LORA, trainable, True, False),
    "lora_r": (LORA, LORA.replace("lora_r: 4", "lora_r: 2"), adapter("r"), 4, 2),
    "lora_alpha": (LORA, LORA.replace("alpha: 8", "alpha: 16"), adapter("lora_alpha"), 8, 16),
    "lora_dropout": (LORA, LORA + "lora_dropout: 0.1", adapter("lora_dropout"), 0.0, 0.1),
    "lora_target_modules": (
        LORA, LORA + "lora_target_modules: [q_proj]", adapter("target_modules"), ALL_LINEAR, ["q_proj"]),
    "lora_target_linear": (
        LORA + "lora_target_linear: true", LORA + "lora_target_modules: [v_proj]\nlora_target_linear: false",
        adapter("target_modules"), ALL_LINEAR, ["v_proj"]),
    "lora_modules_to_save": (
        LORA, LORA + "lora_modules_to_save: [lm_head]", adapter("modules_to_save"), None, ["lm_head"]),
    "peft_use_rslora": (LORA, LORA + "peft_use_rslora: true", adapter("use_rslora"), False, True),
    # parallel
    "dp_replicate_size": ("dp_replicate_size: 4", "dp_replicate_size: 3", layout_errors, [], ["R011"]),
    "ddp_timeout": ("", "ddp_timeout: 60", planned("parallel.ddp_timeout"), 600, 60),
    # optim
    "micro_batch_size": ("", "micro_batch_size: 2", argument("per_device_train_batch_size"), 1, 2),
    "gradient_accumulation_steps": (
        "", "gradient_accumulation_steps: 4", argument("gradient_accumulation_steps"), 1, 4),
    "num_epochs": ("", "num_epochs: 0.5", argument("max_steps"), 8, 4),
    "max_steps": ("", "max_steps: 3", argument("max_steps"), 8, 3),
    "optimizer": ("", "optimizer: adamw_torch", argument("optim"), "adamw_torch_fused", "adamw_torch"),
    "learning_rate": ("", "learning_rate: 0.5", argument("learning_rate"), 0.001, 0.5),
    "lr_scheduler": ("", "lr_scheduler: linear", argument("lr_scheduler_type"), "cosine", "linear"),
    "warmup_steps": ("", "warmup_steps: 5", argument("warmup_steps"), 1, 5),
    "warmup_ratio": ("", "warmup_ratio: 0.5", argument("warmup_steps"), 1, 4),
    "weight_decay": ("", "weight_decay: 0.1", argument("weight_decay"), 0.0, 0.1),
    "adam_beta1": ("", "adam_beta1: 0.8", argument("adam_beta1"), 0.9, 0.8),
    "adam_beta2": ("", "adam_beta2: 0.95", argument("adam_beta2"), 0.999, 0.95),
    "adam_epsilon": ("", "adam_epsilon: 1e-5", argument("adam_epsilon"), 1e-8, 1e-5),
    "max_grad_norm": ("", "max_grad_norm: 0", argument("max_grad_norm"), 1.0, 0.0),
    # checkpoint
    "output_dir": (
        "output_dir: ./one", "output_dir: ./two", submission(lambda p: p.output_dir.name), "one", "two"),
    "save_steps": ("", "save_steps: 3", argument("save_steps"), 8, 3),
    "saves_per_epoch": ("", "saves_per_epoch: 4", argument("save_steps"), 8, 2),
    "save_total_limit": ("", "save_total_limit: 1", planned("checkpoint.save_total_limit"), 4, 1),
    "logging_steps": ("", "logging_steps: 5", argument("logging_steps"), 1, 5),
    "eval_steps": ("val_set_size: 2", "val_set_size: 2\neval_steps: 3", scheduled("eval_steps"), 8, 3),
    "evals_per_epoch": ("val_set_size: 2", "val_set_size: 2\nevals_per_epoch: 0", scheduled("eval_steps"), 8, None),
    "eval_batch_size": ("", "eval_batch_size: 3", argument("per_device_eval_batch_size"), 1, 3),
    # run and cloud
    "plugins": (
        "liger_rope: true", "liger_rope: true\nplugins: [axolotl.integrations.liger.LigerPlugin]", problems,
        ["error"], ["warning"]),
    "cloud.gpu": ("", "cloud: {gpu: 'cpu:2'}", of_machine("num_processes_per_node"), 1, 2),
    "cloud.nodes": ("", "cloud: {nodes: 2}", of_machine("num_nodes"), 1, 2),
    "cloud.timeout": ("", "cloud: {timeout: 2m}", planned("limits.timeout_s"), None, 120),
    "cloud.max_cost": (
        "", "cloud: {max_cost: 5, price_per_hour: 2}", planned("limits.max_cost"), None, 5.0),
    "cloud.price_per_hour": ("", "cloud: {price_per_hour: 2}", planned("limits.price_per_hour"), None, 2.0),
}  # fmt: skip
"""Key -> recipe lines before, after, what to look at, what is seen before, and after."""

ELSEWHERE = {
    "base_model": "the model under test in every test of this file",
    "tokenizer_config": "the tokenizer under test in every test of this file",
    "revision_of_model": "test_two_revisions_and_code_of_a_model",
    "trust_remote_code": "test_two_revisions_and_code_of_a_model",
    "seed": "test_the_seed_decides_the_order",
    "datasets.message_property_mappings": "datasets.field_messages flips it too",
    "datasets.roles": "datasets.field_messages flips it too",
    "cloud": "its keys below",
    "cloud.backend": "one value so far",
    "cloud.store": "test_the_store_is_where_the_recipe_says",
}
"""Implemented keys whose effect another test shows."""


def implemented(section: type[Section], prefix: str = "") -> Iterator[str]:
    for key, field in section.model_fields.items():
        if info_of(field).status is Status.IMPLEMENTED:
            yield f"{prefix}{key}"
            for inner in nested_sections(field.annotation):
                yield from implemented(inner, f"{prefix}{key}.")


def test_every_implemented_key_has_an_effect_in_the_table() -> None:
    keys = [key for section in SECTIONS.values() for key in implemented(section)]
    assert sorted(keys) == sorted([*EFFECTS, *ELSEWHERE])


@pytest.mark.parametrize("key", EFFECTS)
def test_flipping_a_key_is_seen(
    key: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, after, look, expected_before, expected_after = EFFECTS[key]
    assert (look(bench, before), look(bench, after)) == (expected_before, expected_after)
    if expected_before == expected_after:
        assert bench.plan(before) != bench.plan(after)


def test_the_seed_decides_the_order(bench: Bench) -> None:
    assert orders(bench, "") == orders(bench, "seed: 42") != orders(bench, "seed: 7")


def test_the_store_is_where_the_recipe_says(bench: Bench, tmp_path: Path) -> None:
    look = submission(lambda prepared: json.dumps(prepared.submission.to_json()["request"]))
    assert str(tmp_path / "here") in look(bench, f"cloud: {{store: {tmp_path}/here}}")
    assert str(tmp_path / "here") not in look(bench, "")


CODE = """\
import json, sys
from pathlib import Path
from ft.recipes.errors import FtError
from ft.recipes.plan import RunPlan
from ft.runtime.model.load import load_model

for plan in json.load(sys.stdin):
    try:
        print(type(load_model(RunPlan.model_validate(plan), Path("."))).__name__,
              load_model(RunPlan.model_validate(plan), Path(".")).config.rms_norm_eps)
    except FtError as error:
        print("refused")
"""


def test_two_revisions_and_code_of_a_model(bench: Bench, tmp_path: Path) -> None:
    """A hub cache with two revisions, and a model with code of its own; in a process that reads that cache."""
    cache = tmp_path / "hub" / "models--some--tiny"
    for name, eps in (("main", 0.25), ("v2", 0.75)):
        snapshot = cache / "snapshots" / name.ljust(40, "0")
        model = LlamaForCausalLM.from_pretrained(bench.folder / "inputs" / "model")
        model.config.rms_norm_eps = eps
        model.save_pretrained(snapshot)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / name).write_text(snapshot.name)
    own = tmp_path / "own"
    model.save_pretrained(own)
    (own / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    config = json.loads((own / "config.json").read_text())
    auto = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (own / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": auto}))
    recipes = [
        "base_model: some/tiny", "base_model: some/tiny\nrevision_of_model: v2",
        f"base_model: {own}", f"base_model: {own}\ntrust_remote_code: true",
    ]  # fmt: skip
    plans = [bench.plan(recipe + "\n").model_dump(mode="json") for recipe in recipes]
    env = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(plans), env=env, text=True, capture_output=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "LlamaForCausalLM 0.25", "LlamaForCausalLM 0.75", "refused", "Mine 0.75",
    ], done.stderr  # fmt: skip
