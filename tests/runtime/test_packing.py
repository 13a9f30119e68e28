"""Packed training on tiny models: no row knows of another one, and loss and gradients are those without packing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from ft.recipes.errors import PlanError
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.resolve import resolve
from ft.recipes.runstore import ExitCode
from ft.recipes.store import LocalStore
from ft.runtime import train
from ft.runtime.data.collate import collate, collate_packs
from ft.runtime.data.pack import pack
from ft.runtime.events import Events
from ft.runtime.model.isolation import assert_apart
from ft.runtime.node import Rank
from ft.runtime.stop import StopFlag

VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
WINDOW = 4
"""Shorter than most rows, so that a window that ran over the whole pack would be seen."""
SLIDING = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2-window": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, layer_types=SLIDING),
    "gemma3-window": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=WINDOW, layer_types=SLIDING),
}  # fmt: skip
LENGTHS = (9, 3, 7, 2, 5, 1, 6, 4, 8, 1)
LAYOUTS = pytest.mark.parametrize("end_to_end", [False, True], ids=["packs-in-rows", "end-to-end"])
MODELS = pytest.mark.parametrize("name", CONFIGS)
KERNELS = pytest.mark.parametrize("kernel", ["sdpa", "eager"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(config: PretrainedConfig, kernel: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=kernel, dtype=dtype)


def rows_of(seed: int = 0) -> list[dict[str, list[int]]]:
    """Random tokens. The first label is set as well: packed or not, it must not count."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in LENGTHS:
        ids = rng.integers(3, VOCABULARY, length).tolist()
        labels = [token if rng.random() < 0.7 else -100 for token in ids]
        rows.append({"input_ids": ids, "labels": [ids[0], *labels[1:]]})
    return rows


def packs_of(rows: list[dict[str, list[int]]]) -> list[list[dict[str, list[int]]]]:
    packs = pack(np.array(LENGTHS), 16, np.arange(len(rows)))
    return [[rows[index] for index in part] for part in packs]


def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        found: Tensor = model.eval()(**inputs, use_cache=False).logits
    return found


# ----------------------------------------------------------------------------------------- isolation


@MODELS
@KERNELS
@LAYOUTS
def test_other_rows_of_a_pack_change_no_bit(name: str, kernel: str, end_to_end: bool) -> None:
    """Each row is kept in turn while every other token of the batch is another one, padding included."""
    model, rows, others = model_of(CONFIGS[name], kernel), rows_of(0), rows_of(1)
    order = [index for part in pack(np.array(LENGTHS), 16, np.arange(len(rows))) for index in part]
    batch = collate_packs(packs_of(rows), 0, pad_to=18, end_to_end=end_to_end)
    changed = collate_packs(packs_of(others), 5, pad_to=18, end_to_end=end_to_end)
    before = logits_of(model, batch).flatten(0, 1)
    begins = (batch["position_ids"].flatten() == 0).nonzero().flatten().tolist()
    # Paddings begin at 0 too; rows are told from them by what they begin with.
    flat = batch["input_ids"].flatten()
    begins = [begin for begin in begins if flat[begin] != 0]
    assert len(begins) == len(rows)
    for begin, index in zip(begins, order, strict=True):
        kept = slice(begin, begin + LENGTHS[index])
        mixed = changed["input_ids"].flatten().clone()
        mixed[kept] = flat[kept]
        assert mixed[kept].tolist() == rows[index]["input_ids"]
        inputs = {**batch, "input_ids": mixed.reshape(batch["input_ids"].shape)}
        assert torch.equal(logits_of(model, inputs).flatten(0, 1)[kept], before[kept]), index


@MODELS
@KERNELS
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_keeps_rows_apart_is_left_as_it_was(
    name: str, kernel: str, end_to_end: bool, dtype: torch.dtype
) -> None:
    model = model_of(CONFIGS[name], kernel, dtype).train()
    state = torch.random.get_rng_state()
    assert_apart(model, end_to_end=end_to_end)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def ignoring_positions(model: Any) -> Any:
    """As remote code does that was written before packing."""
    forward = model.forward

    def without(position_ids: Tensor | None = None, **inputs: Any) -> Any:
        del position_ids
        return forward(**inputs)

    model.forward = without
    return model


def running_on(model: Any) -> Any:
    """Rows kept apart by a mask, but positions that run on through the pack."""
    forward = model.forward

    def on(position_ids: Tensor | None = None, **inputs: Any) -> Any:
        if position_ids is None:
            return forward(**inputs)
        starts = torch.cumsum(position_ids == 0, dim=1)
        same = starts[:, :, None] == starts[:, None, :]
        mask = (same & torch.ones_like(same).tril())[:, None]
        return forward(attention_mask=mask, **inputs)

    model.forward = on
    return model


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32}
CONV = ["conv", "full_attention"]
MIXING: dict[str, PretrainedConfig] = {
    # Attention that no positions reach, a convolution over neighbours, positions counted over the whole batch.
    "bloom": BloomConfig(**SMALL, n_layer=2, n_head=4),
    "lfm2": Lfm2Config(**SHAPE, layer_types=CONV),
    "opt": OPTConfig(
        **SMALL, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*MIXING, "without positions"])
@LAYOUTS
def test_a_model_that_mixes_rows_is_refused(
    name: str, end_to_end: bool, dtype: torch.dtype
) -> None:
    if name in MIXING:
        model = model_of(MIXING[name], "eager", dtype)
    else:
        name, model = "llama", ignoring_positions(model_of(CONFIGS["llama"], "eager", dtype))
    with pytest.raises(PlanError) as caught:
        assert_apart(model, end_to_end=end_to_end)
    assert caught.value.message == (
        f"sample_packing: with {name} and attn_implementation eager, a row reads other rows of its pack"
    )
    assert caught.value.hint == "Write `sample_packing: false` and `eval_sample_packing: false`"


def test_positions_that_run_on_are_refused() -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)
    assert_apart(model_of(config, "sdpa"), end_to_end=False)
    with pytest.raises(PlanError, match="a row is not computed as if it were alone"):
        assert_apart(running_on(model_of(config, "sdpa")), end_to_end=False)


# --------------------------------------------------------------------------------- loss and gradients


def loss_and_gradients(
    model: Any, batches: list[dict[str, Tensor]]
) -> tuple[float, dict[str, Tensor]]:
    """Of the mean over all trained tokens of the batches, one backward pass each."""
    model.zero_grad()
    count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / count).backward()
        total += float(loss.detach()) / count
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def layouts_of(rows: list[dict[str, list[int]]]) -> Iterator[list[dict[str, Tensor]]]:
    """All packs in one micro batch, with more padding, one after the other, end to end."""
    packs = packs_of(rows)
    yield [collate_packs(packs, 0)]
    yield [collate_packs(packs, 0, pad_to=20)]
    yield [collate_packs([one], 0) for one in packs]
    yield [
        collate_packs(packs[:2], 0, end_to_end=True),
        collate_packs(packs[2:], 0, end_to_end=True),
    ]


@MODELS
@KERNELS
def test_loss_and_gradients_are_those_without_packing(name: str, kernel: str) -> None:
    """The same numbers are added up in another order: some hundred terms, each rounded at 2^-24.

    So what differs is below 2e-5 of the largest gradient of a weight. One row that saw another, one label
    too many or a position that runs on are a thousand times that.
    """
    model, rows = model_of(CONFIGS[name], kernel).train(), rows_of()
    loss, gradients = loss_and_gradients(model, [collate(rows, 0)])
    for batches in layouts_of(rows):
        packed_loss, packed = loss_and_gradients(model, batches)
        assert packed_loss == pytest.approx(loss, rel=1e-6)
        for key, gradient in gradients.items():
            apart = (packed[key] - gradient).abs().max() / gradient.abs().max()
            assert apart < 2e-5, key


# -------------------------------------------------------------------------------------- a whole run


RECIPE = """\
base_model: inputs/model
datasets: [{path: inputs/rows.jsonl, type: completion}]
sequence_len: 64
val_set_size: 6
learning_rate: 0.01
num_epochs: 2
warmup_steps: 0
logging_steps: 1
eval_steps: 1
"""
PLAIN = "micro_batch_size: 32\n"
PACKED = "sample_packing: true\nmicro_batch_size: 3\ngradient_accumulation_steps: 4\n"


def run(folder: Path, text: str) -> list[dict[str, Any]]:
    """Events of a run in this process, `{kind: …, **data}`."""
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    plan = resolve(normalize(loads(RECIPE + text)).flat, Facts(files={}, machine=machine))
    (folder / "plan.json").write_text(plan.to_json())
    store = LocalStore(folder)
    store.attempt_folder(1).mkdir(parents=True)
    end = train.train(store, Rank(0, 0, 1), Events(store, 1, speaks=True), StopFlag(), [0])
    assert end.exit_code == ExitCode.DONE, end
    return [{"kind": event.kind, **event.data} for event in store.events()[0]]


def tiny_run(folder: Path) -> Path:
    """A model, a tokenizer of whole words, and 30 texts of 2 to 40 words."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder / "inputs" / "model")
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = {f"w{number}": number for number in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel({**special, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder / "inputs" / "model")  # fmt: skip
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list(words), 2 + (n * 7) % 39)) for n in range(30)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "inputs" / "rows.jsonl").write_text(lines)
    return folder


def test_a_packed_run_tells_the_losses_and_tokens_of_one_that_is_not(tmp_path: Path) -> None:
    """24 rows in one step an epoch, as a micro batch of rows or as packs over four micro batches.

    The losses of the second step hold the update of the first, so they say that the gradients agree.
    """
    plain = run(tiny_run(tmp_path / "plain"), PLAIN)
    packed = run(tiny_run(tmp_path / "packed"), PACKED)
    for kind, count in (("step", 2), ("eval", 2)):
        a, b = ([e for e in events if e["kind"] == kind] for events in (plain, packed))
        assert len(a) == len(b) == count
        for one, other in zip(a, b, strict=True):
            for key in ("step", "trained_tokens", *(("tokens", "epoch") if kind == "step" else ())):
                assert one[key] == other[key]
            assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
            if kind == "step":
                assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    noted = [
        json.loads(line)
        for line in (tmp_path / "packed/attempts/1/rank0.rows.jsonl").read_text().splitlines()
    ]
    by_step = {step: [n for n in noted if n["step"] == step] for step in (1, 2)}
    for parts in by_step.values():
        assert len(parts) == 4
        assert len({row for part in parts for row in part["rows"]}) == 24
        packs = [size for part in parts for size in part["packs"]]
        assert sum(packs) == 24
        assert max(packs) > 1


def test_a_run_with_a_model_that_mixes_rows_does_not_begin(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path)
    AutoModelForCausalLM.from_config(MIXING["bloom"]).save_pretrained(folder / "inputs" / "model")
    for text in (PACKED, f"{PLAIN}eval_sample_packing: true\n"):
        with pytest.raises(PlanError, match=r"with bloom .* a row reads other rows of its pack"):
            run(folder, f"attn_implementation: eager\n{text}")
        shutil.rmtree(folder / "attempts")
