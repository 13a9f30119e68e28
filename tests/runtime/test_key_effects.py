"""Every key that the schema calls implemented: flip it, and see what is different. One entry per key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

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
from ft.recipes.store import LocalStore
from ft.runtime.adapters import lora
from ft.runtime.data.batches import TokenCounts, batch_of
from ft.runtime.data.collate import Collator, collator_of
from ft.runtime.data.order import Order, eval_packs, order_of
from ft.runtime.data.prepare import prepare
from ft.runtime.data.row import DataError
from ft.runtime.data.sources import _hub
from ft.runtime.events import Events
from ft.runtime.limits import Limits
from ft.runtime.methods.sft import Schedule, arguments
from ft.runtime.model.load import load_model
from ft.runtime.model.tokenizer import load_tokenizer
from ft.runtime.node import Rank
from ft.runtime.simulate import Faults
from ft.runtime.stop import StopFlag
from ft.runtime.train import Job, micro_batches, train
from ft.runtime.world import World

CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
CPUX4 = Machine("cpu", "cpu", 4, 1, bf16=False, tf32=False)
H100 = Machine("cuda", "H100", 1, 1, bf16=True, tf32=True)
ROWS = 8


class RefusedError(Exception):
    """There is no plan; its text is why."""


@dataclass(frozen=True)
class Ran:
    """A whole run that is over."""

    store: LocalStore
    evaluated: list[int]
    """Rows of each forward pass of an evaluation."""


@dataclass(frozen=True)
class Bench:
    """A run folder with a tiny model, the real tokenizer and rows of every format, and what to look at in it."""

    folder: Path
    _runs: dict[str, Ran] = dataclass_field(default_factory=dict)
    _tokenizers: dict[str, PreTrainedTokenizerBase] = dataclass_field(default_factory=dict)

    def plan(self, text: str, machine: Machine = CPU) -> RunPlan:
        head = "" if "base_model:" in text else "base_model: inputs/model\n"
        head += "" if "tokenizer_config:" in text else "tokenizer_config: inputs/tokenizer\n"
        head += "" if "learning_rate:" in text else "learning_rate: 0.001\n"
        if not text.startswith("datasets:"):
            head += "datasets: [{path: inputs/chat.jsonl, type: chat_template}]\n"
        facts = Facts(files={}, machine=machine)
        normalized = normalize(loads(head + text))
        report = rules.check(normalized, facts)
        wrong = [p.message for p in report.problems if p.severity is not Severity.WARNING]
        if wrong:
            raise RefusedError("; ".join(wrong))
        return resolve(normalized.flat, facts)

    def tokenizer(self, plan: RunPlan) -> PreTrainedTokenizerBase:
        """Read once for each of the ways to read it: that takes longer than the rest of most looks."""
        how = plan.model.model_dump_json()
        if how not in self._tokenizers:
            self._tokenizers[how] = load_tokenizer(plan, self.folder)
        return self._tokenizers[how]

    def rows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(input_ids, labels) of every row that is trained on; with `test_datasets`, that is evaluated on."""
        plan = self.plan(text)
        data = prepare(plan, self.folder, self.tokenizer(plan))
        rows = data.eval if plan.data.test_datasets else data.train
        return [(row["input_ids"], row["labels"]) for row in rows or ()]

    def texts(self, text: str) -> list[str]:
        """The rows as text, with what is not trained in [[brackets]]."""
        tokenizer = self.tokenizer(self.plan(text))
        shown = []
        for ids, labels in self.rows(text):
            parts = [
                tokenizer.decode([one]) if label != -100 else f"[[{tokenizer.decode([one])}]]"
                for one, label in zip(ids, labels, strict=True)
            ]
            shown.append("".join(parts).replace("]][[", ""))
        return shown

    def store(self, text: str, machine: Machine = CPU) -> LocalStore:
        """With the plan, the inputs and the folder of a first attempt."""
        root = self.folder / "runs" / str(len(list(self.folder.glob("runs/*"))))
        root.mkdir(parents=True)
        (root / "inputs").symlink_to(self.folder / "inputs")
        store = LocalStore(root)
        store.plan_path.write_text(self.plan(text, machine).to_json())
        store.attempt_folder(1).mkdir(parents=True)
        return store

    def run(self, text: str) -> Ran:
        """A whole run on this process; each recipe runs once."""
        if text not in self._runs:
            ran = self._runs[text] = Ran(self.store(text), [])

            def see(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
                if isinstance(module, torch.nn.Embedding) and not module.training:
                    ran.evaluated.append(len(inputs[0]))

            hook = torch.nn.modules.module.register_module_forward_pre_hook(see)
            events = Events(ran.store, 1, speaks=True)
            end = train(ran.store, Rank(0, 0, 1), events, StopFlag(), [0])
            hook.remove()
            assert (end.exit_code, end.message) == (0, "done")
        return self._runs[text]


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
    [user, said] = turns
    part = {"begin_offset": 0, "end_offset": 4, "train": True}
    call = {"type": "function", "function": {"name": "f"}}
    doubled = [{**turn, "said": f"{turn['content']}!"} for turn in turns]
    gpt = [{**turns[0], "role": "human"}, {**turns[1], "role": "gpt"}]
    files: dict[str, list[Any]] = {
        "chat": [
            {"messages": [*turns[:1], {**turns[1], "content": f"Hello {i}"}]} for i in range(ROWS)
        ],
        "long": [{"messages": more}],
        "talk": [{"talk": talk, "messages": turns}],
        "said": [{"messages": doubled, "chat": more, "text": "one"}],
        "gpt": [{"messages": gpt}],
        "text": [{"text": "one", "other": "two"}],
        "alpaca": [{"instruction": "Add", "input": "", "output": "Done"}],
        "own": [{"i": "Add", "instruction": "Sub", "x": "1", "input": "2", "o": "Done", "output": "Did", "s": "Be",
                 "system": "Go"}],
        "flags": [{"messages": [{**user, "flag": True}, {**said, "flag": False, "parts": [part]}]}],
        "persona": [{"messages": turns, "persona": "Be", "system": "Go", "functions": [call], "tools": [call, call]}],
        "thought": [{"messages": [user, {**said, "reasoning_content": "Hm", "why": "Oh"}]}],
        "think": [{"messages": [user, {**said, "content": "<think>Hm</think>Hello there"}]}],
        "bad": [{"messages": turns}, {"messages": [user, {"role": "bot", "content": "Hi"}]}, {"messages": turns}],
    }  # fmt: skip
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


def tf32(bench: Bench, text: str) -> Any:
    """Whether transformers was asked for it, on a run for an H100; a machine without one is told that it has none."""
    plan, before = bench.plan(text, H100), torch.backends.fp32_precision
    schedule = Schedule.of(plan, ROWS, evaluates=False)
    try:
        return bool(arguments(plan, schedule, bench.folder / "scratch").tf32)
    except ValueError as error:
        assert not torch.cuda.is_available()
        return str(error).startswith("--tf32 requires Ampere")
    finally:
        torch.backends.fp32_precision = before


def steps_of(kind: str) -> Callable[[Bench, str], Any]:
    """Steps of the events of this kind in a whole run."""
    return lambda bench, text: [
        event.data["step"] for event in bench.run(text).store.events()[0] if event.kind == kind
    ]


def left_on_disk(bench: Bench, text: str) -> Any:
    """Checkpoints that a whole run has kept."""
    return sorted(path.name for path in bench.run(text).store.checkpoints.iterdir())


@contextmanager
def world_of(plan: RunPlan, rank: int) -> Iterator[World]:
    """`rank` of the plan's processes as it sees itself; its groups are real ones, with nobody else in them."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in alone.items():
            patch.setenv(key, value)
        world = World(plan.parallel, Rank(rank, rank, plan.parallel.world_size))
    try:
        yield world
    finally:
        dist.destroy_process_group()


def timeouts(bench: Bench, text: str) -> Any:
    """Seconds that gloo was told to wait: in the group for gradients, and in that for agreements."""
    with world_of(bench.plan(text, CPUX4), 0) as world:
        groups = [dist.group.WORLD, world._control]
        return [
            group._get_backend(world.device).options._timeout.total_seconds() for group in groups
        ]


def shares(bench: Bench, text: str) -> Any:
    """Rows of each micro batch of the first step, for each of four processes; or why there is no run."""
    try:
        store = bench.store(text, CPUX4)
    except RefusedError as refused:
        return str(refused)
    plan = RunPlan.from_json(store.plan_path.read_bytes())
    events = Events(store, 1, speaks=False)
    data = prepare(plan, bench.folder, bench.tokenizer(plan))
    found = []
    for rank in range(CPUX4.num_processes_per_node):
        with world_of(plan, rank) as world:
            job = Job(
                plan, plan.sha256, frozenset(), store, world, events, StopFlag(), [0], store.root, Faults()
            )  # fmt: skip
            order = order_of(plan, TokenCounts.of(data.train).tokens)
            batches = micro_batches(job, data, order, pad_token_id=0, total_steps=1)
        assert [len(batch["input_ids"]) for batch in batches.loader()] == [1, 1]
        batches._log.close()
        log = store.attempt_folder(1) / f"rank{rank}.rows.jsonl"
        found.append([json.loads(line)["rows"] for line in log.read_text().splitlines()])
    return found


def limit(bench: Bench, text: str) -> Any:
    """Second of an attempt at which it has to be over, and the one in which it is told so."""
    limits = Limits(bench.plan(text).limits, began_at=0.0, billed_before_s=0.0)
    told = next((now for now in range(20_000) if limits.request(now, save_s=0.0)), None)
    request = limits.request(20_000, save_s=0.0)
    return (request.until, told) if request else None


def cost_of_two_hours(bench: Bench, text: str) -> Any:
    return Limits(bench.plan(text).limits, began_at=0.0, billed_before_s=3600.0).cost(3600.0)


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


def texts(bench: Bench, text: str) -> Any:
    return bench.texts(text)


def rendered(bench: Bench, text: str) -> Any:
    """The text of the only row, whatever of it is trained."""
    [(ids, _)] = bench.rows(text)
    return load_tokenizer(bench.plan(text), bench.folder).decode(ids)


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
    data = bench.plan(text).data
    spec = (data.test_datasets or data.datasets)[0]
    local = spec.model_copy(update={"path": str(bench.folder / spec.path)})
    return [value["text"] for chunk in _hub(local) for value in chunk.values]


def of_machine(name: str) -> Callable[[Bench, str], Any]:
    return lambda _, text: getattr(machine_for(normalize(loads(text)).flat), name)


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


def plugin_keys(bench: Bench, text: str) -> Any:
    """The keys of plugins in a recipe that there is a plan for; or why there is none."""
    try:
        bench.plan(text)
    except RefusedError as refused:
        return str(refused)
    plugins = normalize(loads(text)).flat.plugin
    return {name: keys.model_dump(exclude_none=True) for name, keys in plugins.items()}


LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\n"
PACK_8 = "sample_packing: true\nsequence_len: 8\n"
ALL_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
HI, HELLO = "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>assistant\n"
USER, AND = "<|im_start|>user\n", "<|im_start|>user\nAnd<|im_end|>\n"
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ONE_TURN = f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n]]"
ONCE = "val_set_size: 2\nmicro_batch_size: 2\n"
"""Three steps, saved and evaluated after the last."""
RUN = ONCE + "save_steps: 1\n"
Effect = tuple[str, str, Callable[[Bench, str], Any], Any, Any]


def own(**changes: str) -> str:
    """A format of one's own, with some of its keys."""
    keys = {
        "field_instruction": "i",
        "field_input": "x",
        "field_output": "o",
        "field_system": "s",
        **changes,
    }
    return data("own", f"type: {json.dumps(keys)}")


def shown(what: str) -> str:
    """A template that shows `what` of each message."""
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ "
        + what
        + " }}|{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return f"chat_template_jinja: {json.dumps(text)}\n"


def showing(user: str, assistant: str, said: str = "Hello there") -> str:
    """What `shown` writes of two messages."""
    return (
        f"<|im_start|>user\n{user}|Hi<|im_end|><|im_start|>assistant\n{assistant}|{said}<|im_end|>"
    )


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
    "tf32": ("bf16: false\ntf32: false", "bf16: false\ntf32: true", tf32, False, True),
    "gradient_checkpointing": ("", "gradient_checkpointing: true", argument("gradient_checkpointing"), False, True),
    "gradient_checkpointing_kwargs": (
        "", "gradient_checkpointing_kwargs: {use_reentrant: true}", argument("gradient_checkpointing_kwargs"),
        {"use_reentrant": False}, {"use_reentrant": True}),
    "gradient_checkpointing_kwargs.use_reentrant": (
        "gradient_checkpointing_kwargs: {use_reentrant: false}", "gradient_checkpointing_kwargs: {use_reentrant: true}",
        argument("gradient_checkpointing_kwargs"), {"use_reentrant": False}, {"use_reentrant": True}),
    # data
    "datasets": (
        data("text", "type: completion"), data("alpaca", "type: alpaca"), texts, ["one<|im_end|>"],
        ["[[Below is an instruction that describes a task. Write a response that appropriately completes the "
         "request.\n\n### Instruction:\nAdd\n\n### Response:\n]]Done<|im_end|>"]),
    "datasets.path": (data("chat"), data("long"), num_rows, 8, 1),
    "datasets.type": (
        data("said"), data("said", "type: completion"), texts, [ONE_TURN], ["one<|im_end|>"]),
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
        data("said"), data("said", "type: chat_template, field_messages: chat"), texts, [ONE_TURN],
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"]),
    "datasets.message_property_mappings": (
        data("said"), data("said", "type: chat_template, message_property_mappings: {content: said}"), texts,
        [ONE_TURN], [ONE_TURN.replace("Hi", "Hi!").replace("there", "there!")]),
    "datasets.roles": (
        data("gpt"), data("gpt", "type: chat_template, roles: {user: [gpt], assistant: [human]}"), texts,
        [ONE_TURN], [f"[[{SYSTEM}{HELLO}]]Hi<|im_end|>[[\n{USER}Hello there<|im_end|>\n]]"]),
    "datasets.roles_to_train": (
        data("long"), data("long", "type: chat_template, roles_to_train: [user]"), texts,
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"],
        [f"[[{SYSTEM}<|im_start|>user\n]]Hi<|im_end|>[[\n{HELLO}Hello there<|im_end|>\n{USER}]]And<|im_end|>"
         f"[[\n{HELLO}Bye<|im_end|>\n]]"]),
    "datasets.train_on_eos": (
        data("long"), data("long", "type: chat_template, train_on_eos: last"), texts,
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"],
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there[[<|im_end|>\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"]),
    "datasets.train_on_eot": (
        data("long") + "eot_tokens: ['<|im_end|>']\nspecial_tokens: {eos_token: '<|endoftext|>'}",
        data("long", "type: chat_template, train_on_eot: all")
        + "eot_tokens: ['<|im_end|>']\nspecial_tokens: {eos_token: '<|endoftext|>'}",
        texts,
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"],
        [f"[[{SYSTEM}{USER}Hi]]<|im_end|>[[\n{HELLO}]]Hello there<|im_end|>[[\n{USER}And]]<|im_end|>"
         f"[[\n{HELLO}]]Bye<|im_end|>[[\n]]"]),
    "eot_tokens": (
        data("long", "type: chat_template, train_on_eos: none"),
        data("long", "type: chat_template, train_on_eos: none, train_on_eot: turn") + "eot_tokens: ['<|im_end|>']\n"
        "special_tokens: {eos_token: '<|endoftext|>'}",
        texts,
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there[[<|im_end|>\n{AND}{HELLO}]]Bye[[<|im_end|>\n]]"],
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello there<|im_end|>[[\n{AND}{HELLO}]]Bye<|im_end|>[[\n]]"]),
    "datasets.message_field_training": (
        data("flags"), data("flags", "type: chat_template, message_field_training: flag"), texts, [ONE_TURN],
        [f"[[{SYSTEM}{USER}]]Hi<|im_end|>[[\n{HELLO}Hello there<|im_end|>\n]]"]),
    "datasets.message_field_training_detail": (
        data("flags"), data("flags", "type: chat_template, message_field_training_detail: parts"), texts, [ONE_TURN],
        [f"[[{SYSTEM}{HI}{HELLO}]]Hello[[ there]]<|im_end|>[[\n]]"]),
    "datasets.chat_template": (
        data("talk"), data("talk", "type: chat_template, chat_template: chatml"), texts,
        [ONE_TURN], [ONE_TURN.replace(SYSTEM, "")]),
    "datasets.chat_template_jinja": (
        data("talk"), data("talk", "type: chat_template, chat_template_jinja: '{% for m in messages %}{{ m.content }}"
        "<|im_end|>{% endfor %}'"), texts, [ONE_TURN], ["[[Hi<|im_end|>]]Hello there<|im_end|>"]),
    "datasets.drop_system_message": (
        data("persona"), data("persona", "type: chat_template, drop_system_message: true"), texts,
        [ONE_TURN.replace(SYSTEM, "<|im_start|>system\nGo<|im_end|>\n")], [ONE_TURN]),
    "datasets.field_system": (
        data("persona"), data("persona", "type: chat_template, field_system: persona"), texts,
        [ONE_TURN.replace(SYSTEM, "<|im_start|>system\nGo<|im_end|>\n")],
        [ONE_TURN.replace(SYSTEM, "<|im_start|>system\nBe<|im_end|>\n")]),
    "datasets.field_tools": (
        data("persona", "type: chat_template, field_system: none") + shown("tools | length"),
        data("persona", "type: chat_template, field_system: none, field_tools: functions") + shown("tools | length"),
        rendered, showing("2", "2"), showing("1", "1")),
    "datasets.field_thinking": (
        data("thought") + shown("m.reasoning_content | length"),
        data("thought", "type: chat_template, field_thinking: why") + shown("m.reasoning_content | upper"),
        rendered, showing("0", "2"), showing("", "OH")),
    "datasets.template_thinking_key": (
        data("thought") + shown("m.thoughts"),
        data("thought", "type: chat_template, template_thinking_key: thoughts") + shown("m.thoughts"),
        rendered, showing("", ""), showing("", "Hm")),
    "datasets.split_thinking": (
        data("think") + shown("m.reasoning_content"),
        data("think", "type: chat_template, split_thinking: true") + shown("m.reasoning_content"),
        rendered, showing("", "", "<think>Hm</think>Hello there"), showing("", "Hm")),
    "datasets.type.system_prompt": (
        own(field_system="none"), own(field_system="none", system_prompt="Do it. "), texts,
        ["[[Add 1 ]]Done<|im_end|>"], ["[[Do it. Add 1 ]]Done<|im_end|>"]),
    "datasets.type.system_format": (
        own(), own(system_format="<{system}> "), texts,
        ["[[BeAdd 1 ]]Done<|im_end|>"], ["[[<Be> Add 1 ]]Done<|im_end|>"]),
    "datasets.type.format": (
        own(), own(format="{input}: {instruction}\n"), texts,
        ["[[BeAdd 1 ]]Done<|im_end|>"], ["[[Be1: Add\n]]Done<|im_end|>"]),
    "datasets.type.no_input_format": (
        own(field_input="none"), own(field_input="none", no_input_format="{instruction}!\n"), texts,
        ["[[BeAdd ]]Done<|im_end|>"], ["[[BeAdd!\n]]Done<|im_end|>"]),
    "datasets.type.field_instruction": (
        own(), own(field_instruction="instruction"), texts,
        ["[[BeAdd 1 ]]Done<|im_end|>"], ["[[BeSub 1 ]]Done<|im_end|>"]),
    "datasets.type.field_input": (
        own(), own(field_input="input"), texts, ["[[BeAdd 1 ]]Done<|im_end|>"], ["[[BeAdd 2 ]]Done<|im_end|>"]),
    "datasets.type.field_output": (
        own(), own(field_output="output"), texts, ["[[BeAdd 1 ]]Done<|im_end|>"], ["[[BeAdd 1 ]]Did<|im_end|>"]),
    "datasets.type.field_system": (
        own(), own(field_system="system"), texts, ["[[BeAdd 1 ]]Done<|im_end|>"], ["[[GoAdd 1 ]]Done<|im_end|>"]),
    "chat_template_kwargs": (
        data("talk") + shown("mood"), data("talk") + shown("mood") + "chat_template_kwargs: {mood: glad}\n",
        rendered, showing("", ""), showing("glad", "glad")),
    "default_system_message": (
        data("talk") + "chat_template: chatml",
        data("talk") + "chat_template: chatml\ndefault_system_message: Be", texts,
        [ONE_TURN.replace(SYSTEM, "")], [ONE_TURN.replace(SYSTEM, "<|im_start|>system\nBe<|im_end|>\n")]),
    "on_bad_row": (data("bad"), data("bad") + "on_bad_row: skip", rows_or_error, "DataError", [35, 35]),
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
    "dp_replicate_size": (
        "shuffle_merged_datasets: false\ngradient_accumulation_steps: 2\ndp_replicate_size: 4",
        "shuffle_merged_datasets: false\ngradient_accumulation_steps: 2\ndp_replicate_size: 2",
        shares, [[[0], [4]], [[1], [5]], [[2], [6]], [[3], [7]]],
        "the sizes multiply to 2, but there are 4 processes. Use dp_replicate_size 4, or leave it out."),
    "ddp_timeout": ("", "ddp_timeout: 60", timeouts, [600.0, 600.0], [60.0, 60.0]),
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
    "save_steps": (ONCE, ONCE + "save_steps: 2", steps_of("checkpoint"), [3], [2, 3]),
    "saves_per_epoch": (ONCE, ONCE + "saves_per_epoch: 2", steps_of("checkpoint"), [3], [2, 3]),
    "save_total_limit": (
        RUN, RUN + "save_total_limit: 1", left_on_disk,
        ["step-00000001", "step-00000002", "step-00000003"], ["step-00000003"]),
    "logging_steps": ("", "logging_steps: 5", argument("logging_steps"), 1, 5),
    "eval_steps": (ONCE, ONCE + "eval_steps: 2", steps_of("eval"), [3], [2, 3]),
    "evals_per_epoch": (ONCE, ONCE + "evals_per_epoch: 0", steps_of("eval"), [3], []),
    "eval_batch_size": (ONCE, ONCE + "eval_batch_size: 1", lambda b, text: b.run(text).evaluated, [2], [1, 1]),
    # run and cloud
    "plugins": (
        "liger_rope: true", "liger_rope: true\nplugins: [axolotl.integrations.liger.LigerPlugin]", plugin_keys,
        "belongs to a plugin. Add `- axolotl.integrations.liger.LigerPlugin` to `plugins`.",
        {"liger": {"liger_rope": True}}),
    "cloud.include": (
        "", "cloud: {include: ['inputs/ch*.jsonl']}", submission(lambda prepared: [
            [part.path for part in upload.parts] for upload in prepared.submission.uploads if upload.parts
        ]), [], [["inputs/chat.jsonl"]]),
    "cloud.gpu": ("", "cloud: {gpu: 'cpu:2'}", of_machine("num_processes_per_node"), 1, 2),
    "cloud.nodes": ("", "cloud: {nodes: 2}", of_machine("num_nodes"), 1, 2),
    "cloud.timeout": ("", "cloud: {timeout: 2m}", limit, None, (120.0, 105)),
    "cloud.max_cost": (
        "cloud: {price_per_hour: 2}", "cloud: {max_cost: 5, price_per_hour: 2}", limit, None, (9000.0, 8985)),
    "cloud.price_per_hour": ("", "cloud: {price_per_hour: 2}", cost_of_two_hours, None, 4.0),
}  # fmt: skip
"""Key -> recipe lines before, after, what to look at, what is seen before, and after."""

ELSEWHERE = {
    "base_model": "the model under test in every test of this file",
    "tokenizer_config": "the tokenizer under test in every test of this file",
    "revision_of_model": "test_two_revisions_and_code_of_a_model",
    "trust_remote_code": "test_two_revisions_and_code_of_a_model",
    "seed": "test_the_seed_decides_the_order",
    "cloud": "its keys below",
    "extends": "test_cli.py: a recipe goes over those that it extends",
    "cloud.backend": "test_modal_backend.py, test_sky_backend.py: the same recipe there and here",
    **dict.fromkeys(
        ("cloud.autostop", "cloud.cluster", "cloud.sky", "cloud.spot"),
        "test_sky_request.py, and test_sky_backend.py: what SkyPilot gets is what the dry run said",
    ),
    "cloud.store_bucket": "test_sky_request.py, test_modal_request.py, and test_modal_backend.py: a run moves",
    **dict.fromkeys(
        (
            *(
                "cloud.region",
                "cloud.cpu",
                "cloud.memory",
                "cloud.disk",
                "cloud.retries",
                "cloud.modal",
            ),
            *("cloud.store_volume", "cloud.cache_volume", "cloud.secrets", "cloud.env"),
            *("cloud.volumes", "cloud.volumes.name", "cloud.volumes.mount"),
        ),
        "test_modal_request.py, and test_modal_backend.py: what modal gets is what the dry run said",
    ),
    **dict.fromkeys(
        (
            "cloud.image",
            "cloud.image.base",
            "cloud.image.pushed",
            "cloud.image.apt",
            "cloud.image.pip",
            "cloud.image.commands",
        ),
        "test_spec.py: additions of a recipe come behind what all runs share",
    ),
    "cloud.store": "test_the_store_is_where_the_recipe_says",
}
"""Implemented keys whose effect another test shows."""


TRAINED = data("text", "type: completion")
EFFECTS |= {
    f"test_{key}": (f"{TRAINED}test_{before}", f"{TRAINED}test_{after}", *seen)
    for key, (before, after, *seen) in EFFECTS.items()
    if key.partition(".")[0] == "datasets"
}
"""What is evaluated on has the same keys, with the same effects on its rows."""


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
    assert expected_before != expected_after


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
        model = load_model(RunPlan.from_json(json.dumps(plan)), Path("."))
        print(type(model).__name__, model.config.rms_norm_eps)
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
