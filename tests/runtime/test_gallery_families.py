"""Every recipe of the gallery really trains: on a tiny model of its family, with rows in its columns.

The full sizes are there too, as shapes without weights: the figures of the headers are computed from them.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)
from trl.trainer.utils import add_fused_lm_head

from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import load, override
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.references import references
from ft.recipes.resolve import resolve
from ft.recipes.rules import check
from ft.recipes.runstore import ExitCode
from ft.recipes.store import LocalStore
from ft.runtime import train
from ft.runtime.events import Events
from ft.runtime.model.load import parameter_counts
from ft.runtime.node import Rank
from ft.runtime.stop import StopFlag

pytestmark = pytest.mark.slow

GALLERY = Path(str(files("ft.recipes") / "gallery"))
RECIPES = [
    path.relative_to(GALLERY).with_suffix("").as_posix() for path in sorted(GALLERY.glob("*/*.yml"))
]
FIRST = "smollm2/135m-lora-sft"

# ------------------------------------------------------------------------------------- families, sizes


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a model, as its public config.json says (checked against litgpt/config.py, Apache-2.0)."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    more: dict[str, Any] = field(default_factory=dict)

    def config(self, family: type[PreTrainedConfig], layers: int | None = None) -> PreTrainedConfig:
        return family(
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            # Phi3Config's own is beyond a small vocabulary.
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            **self.more,
        )


WIDE_HEADS = {"head_dim": 128}
SIZES = {
    "smollm2/360m": (LlamaConfig, Size(960, 2560, 32, 15, 5, 49152, tied=True)),
    "smollm2/1.7b": (LlamaConfig, Size(2048, 8192, 24, 32, 32, 49152, tied=True)),
    "qwen2.5/0.5b": (Qwen2Config, Size(896, 4864, 24, 14, 2, 151936, tied=True)),
    "qwen2.5/1.5b": (Qwen2Config, Size(1536, 8960, 28, 12, 2, 151936, tied=True)),
    "qwen2.5/7b": (Qwen2Config, Size(3584, 18944, 28, 28, 4, 152064, tied=False)),
    "qwen3/0.6b": (Qwen3Config, Size(1024, 3072, 28, 16, 8, 151936, tied=True, more=WIDE_HEADS)),
    "qwen3/4b": (Qwen3Config, Size(2560, 9728, 36, 32, 8, 151936, tied=True, more=WIDE_HEADS)),
    "qwen3/8b": (Qwen3Config, Size(4096, 12288, 36, 32, 8, 151936, tied=False, more=WIDE_HEADS)),
    "llama-3/3.2-1b": (LlamaConfig, Size(2048, 8192, 16, 32, 8, 128256, tied=True)),
    "llama-3/3.2-3b": (LlamaConfig, Size(3072, 8192, 28, 24, 8, 128256, tied=True)),
    "llama-3/3.1-8b": (LlamaConfig, Size(4096, 14336, 32, 32, 8, 128256, tied=False)),
    "mistral/7b-v0.3": (
        MistralConfig,
        Size(4096, 14336, 32, 32, 8, 32768, tied=False, more={"sliding_window": None}),
    ),
    "phi-4/14b": (Phi3Config, Size(5120, 17920, 40, 40, 10, 100352, tied=False)),
}
GIB = 2**30


def size_of(name: str) -> tuple[type[PreTrainedConfig], Size]:
    return SIZES[re.sub(r"-(lora|full)-sft$", "", name)]


def plan_of(name: str) -> RunPlan:
    """As it runs on the GPU that it names; everything is on the hub."""
    flat = normalize(load(GALLERY / f"{name}.yml")).flat
    machine = Machine("cuda", "any", 1, 1, bf16=True, tf32=True)
    nothing_here = dict.fromkeys(reference.key for reference in references(flat))
    return resolve(flat, Facts(files=nothing_here, machine=machine))


def with_adapter(model: PreTrainedModel, plan: RunPlan) -> torch.nn.Module:
    """As `adapters.lora` wraps it; that function is for models that have weights."""
    spec = plan.adapter
    if spec.adapter == "full":
        return model
    config = LoraConfig(
        r=spec.lora_r,
        lora_dropout=spec.lora_dropout,
        target_modules=spec.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# ------------------------------------------------------------------------------ the figures of a header


class Alive(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = size
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return found


def peak_bytes(name: str, plan: RunPlan, layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of one micro batch of full rows, forward and backward, with gradients and AdamW's moments there already.

    Operation by operation on tensors without content. The loss takes the CPU's way, which holds more at a time
    than the GPU's: an upper estimate.
    """
    family, size = size_of(name)
    rows, length = plan.optim.micro_batch_size, plan.data.sequence_len
    dtype = torch.bfloat16 if plan.model.bf16 else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True), monkeypatch.context() as patch:
        model = AutoModelForCausalLM.from_config(
            size.config(family, layers), attn_implementation="sdpa", dtype=dtype
        )
        add_fused_lm_head(model)
        # peft casts an adapter to the model's dtype and back to fp32, which a fake tensor cannot.
        patch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
        wrapped = with_adapter(model, plan)
        patch.undo()
        if plan.model.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        wrapped.train()
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        ids = torch.zeros((rows, length), dtype=torch.int64)
        alive = Alive()
        for tensor in (*wrapped.parameters(), *wrapped.buffers(), *(p.grad for p in trained), ids):
            alive.add(tensor)
        alive.bytes += 8 * sum(p.numel() for p in trained)
        with alive, torch.autocast("cpu", torch.bfloat16, enabled=plan.model.bf16):
            found = wrapped(input_ids=ids, labels=ids, fused_lm_head=True)
            (-found.log_probs.sum()).backward()
        return alive.peak


def header(name: str) -> str:
    """The comment at the top in one line."""
    lines = (GALLERY / f"{name}.yml").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return " ".join(" ".join(line.removeprefix("#") for line in lines).split())


@pytest.mark.parametrize("name", [name for name in RECIPES if name != FIRST])
def test_the_figures_of_a_header_are_those_of_the_models_shape(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, text = plan_of(name), header(name)
    family, size = size_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(size.config(family))
        base = model.num_parameters()
        trained, total = parameter_counts(with_adapter(model, plan))
    if plan.adapter.adapter == "lora":
        assert f"({base:,} x 2 bytes) is {2 * base / GIB:.1f} GiB" in text
        assert f"({trained:,} x 16 bytes) {16 * trained / GIB:.1f} GiB" in text
        assert f"Expect: {100 * trained / total:.2f} % of the weights are trained." in text
        assert f"the adapter has {4 * trained / 1e9:.2f} GB." in text
    else:
        assert trained == total == base
        assert f"({base:,} x 16 bytes) are {16 * base / GIB:.1f} GiB" in text
        assert f"the model has {4 * base / 1e9:.1f} GB, in fp32." in text
    assert f"a checkpoint has {12 * trained / 1e9:.1f} GB" in text
    # Layers are alike, so what one more takes tells what all take.
    few, more = (peak_bytes(name, plan, layers, monkeypatch) for layers in (4, 6))
    peak = more + (more - few) / 2 * (size.layers - 6)
    assert f"Peak {peak / GIB:.0f} GiB" in text


# ------------------------------------------------------------------------------------------ real steps

PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' "
    "+ message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
LLAMA_MARKS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def shipped(template: str) -> str:
    """The template of a family, as TRL ships it."""
    [folder] = importlib.util.find_spec("trl").submodule_search_locations
    return (Path(folder) / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")


def tokenizer_of(name: str, smollm2: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2's, with the chat template of the recipe's model and the marks that it writes."""
    templates: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
        "qwen2.5/1.5b-lora-sft": (lambda: shipped("qwen2_5"), ()),
        "qwen3/4b-lora-sft": (lambda: shipped("qwen3_instruct_2507"), ()),
        "llama-3/3.1-8b-lora-sft": (lambda: shipped("llama3_1"), LLAMA_MARKS),
        "phi-4/14b-lora-sft": (lambda: PHI_4, ("<|im_sep|>",)),
    }
    tokenizer = copy.deepcopy(smollm2)
    if name in templates:
        template, marks = templates[name]
        tokenizer.chat_template = template()
        tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    elif name != FIRST:
        tokenizer.chat_template = None  # Base models have none, and their recipes need none.
    return tokenizer


def tiny_model(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Two layers with random weights, in the architecture of the recipe's model."""
    family, size = (
        (LlamaConfig, Size(0, 0, 0, 0, 0, 0, tied=True)) if name == FIRST else size_of(name)
    )
    tiny = Size(32, 64, 2, 4, 2, len(tokenizer), tied=size.tied)
    torch.manual_seed(0)
    config = tiny.config(family)
    config.eos_token_id = tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows_like(columns: str, count: int = 14) -> Iterator[dict[str, Any]]:
    """Rows in the columns of the public data sets, of different lengths."""
    for n in range(count):
        question, answer = f"Say {n} " + "and again " * (n % 5), " ".join(map(str, range(n + 2)))
        if columns == "messages":
            yield {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        elif columns == "conversations":
            system = [{"from": "system", "value": "Be brief."}] if n % 3 == 0 else []
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            yield {"conversations": [*system, *turns, *turns], "source": "x", "score": 5.0}
        elif columns == "alpaca":
            context = "" if n % 2 else f"Context {n}"
            yield {"instruction": question, "input": context, "output": answer, "text": "unused"}
        else:
            yield {"text": f"{question} {answer}"}


def columns_of(plan: RunPlan) -> str:
    [dataset] = plan.data.datasets
    return {"chat_template": dataset.field_messages, "completion": dataset.field}.get(
        dataset.type, dataset.type
    )


def small_plan(name: str, folder: Path) -> RunPlan:
    """The recipe with the tiny model and rows of `folder`, for two short steps; the rest is as it is."""
    changes = [
        f"base_model={folder / 'model'}",
        f"datasets.0.path={folder / 'rows.jsonl'}",
        "datasets.0.split=train",
        "sequence_len=192",
        "val_set_size=2",
        "micro_batch_size=2",
        "gradient_accumulation_steps=2",
        "max_steps=2",
        "save_steps=2",
        "eval_steps=2",
        "cloud.gpu=cpu",
    ]
    normalized = normalize(override(load(GALLERY / f"{name}.yml"), changes))
    # bf16 as on the GPU that the recipe is for: the adapter of a bf16 model is in fp32.
    machine = Machine("cpu", "cpu", 1, 1, bf16=True, tf32=False)
    found: dict[Any, FileFact | None] = {
        reference.key: FileFact(
            reference.kind, Path(reference.value), Path(reference.value).name, "0" * 64
        )
        for reference in references(normalized.flat)
    }
    facts = Facts(files=found, machine=machine)
    assert check(normalized, facts).problems == ()
    return resolve(normalized.flat, facts)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_tiny_model_of_its_family(
    name: str,
    smollm2: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = tmp_path / "inputs"
    tiny_model(name, tokenizer_of(name, smollm2), inputs / "model")
    lines = (json.dumps(row) + "\n" for row in rows_like(columns_of(plan_of(name))))
    (inputs / "rows.jsonl").write_text("".join(lines))
    plan = small_plan(name, inputs)
    is_lora = plan.adapter.adapter == "lora"
    (tmp_path / "plan.json").write_text(plan.to_json())
    models: list[PreTrainedModel] = []
    load_model = train.load_model

    def remembered(*args: Any) -> PreTrainedModel:
        models.append(load_model(*args))
        return models[-1]

    monkeypatch.setattr(train, "load_model", remembered)
    store = LocalStore(tmp_path)
    store.attempt_folder(1).mkdir(parents=True)
    end = train.train(store, Rank(0, 0, 1), Events(store, 1, speaks=True), StopFlag(), [0])

    assert (end.exit_code, end.step) == (ExitCode.DONE, 2)
    events, _ = store.events()
    losses = [e.data["loss"] for e in events if e.kind in {"step", "eval"}]
    assert len(losses) == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    [counts] = [event.data for event in events if event.kind == "rows"]
    assert counts["kept"] == counts["read"] == 14
    assert (counts["trained_tokens"] < counts["tokens"] - 14) == (columns_of(plan) != "text")

    dtype = torch.bfloat16 if is_lora else torch.float32
    before = AutoModelForCausalLM.from_pretrained(inputs / "model", dtype=dtype).state_dict()
    [model] = models
    for key, value in model.named_parameters():
        if "lora_" in key:
            assert value.dtype == torch.float32
            # B is zero at first.
            assert "lora_A" in key or bool(value.any()), key
        else:
            is_same = torch.equal(value, before[key.replace(".base_layer", "")])
            assert value.dtype == dtype
            assert is_same == is_lora, key

    final = store.final()
    assert final is not None
    if is_lora:
        base = AutoModelForCausalLM.from_pretrained(inputs / "model", dtype=dtype)
        loaded: Any = PeftModel.from_pretrained(base, final).base_model.model
    else:
        loaded = AutoModelForCausalLM.from_pretrained(final)
    trained = {key.replace(".default", ""): value for key, value in model.named_parameters()}
    for key, value in loaded.named_parameters():
        assert torch.equal(value, trained[key.replace(".default", "")]), key
