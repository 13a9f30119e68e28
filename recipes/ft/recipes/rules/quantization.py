"""Rules about weights in few bits: in which format they are, and what can be trained on top of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import KeyPath
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import BITS, said, state_of, value_of, word
from ft.recipes.schema import FlatRecipe


def _quantized_needs_adapter(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Weights in 4 or 8 bits have no useful gradient steps: only adapters on top of them can be trained."""
    if recipe.adapter.adapter is not None:
        return
    for key in (*BITS, "gptq"):
        if value_of(recipe, key):
            adapter = "qlora" if key == "load_in_4bit" else "lora"
            message = (
                "`true` needs `adapter`, which is not set: quantized weights cannot be trained. "
                f"Write `adapter: {adapter}`, or take this out."
            )
            yield Finding((key,), message, keys=("adapter",))


def _quantized_once(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Weights are quantized in one way.

    bitsandbytes takes 4 or 8 bits, and refuses weights that come in another format;
    quantization-aware training starts from weights that are not quantized.
    """
    quantization = recipe.quantization
    if quantization.load_in_4bit and quantization.load_in_8bit:
        message = "`true` stands beside `load_in_4bit: true`; weights have one format. Keep one."
        yield Finding(("load_in_8bit",), message, keys=("load_in_4bit",))
    for key in ("model_quantization_config", "gptq", "qat"):
        for bits in BITS:
            if value_of(recipe, key) and value_of(recipe, bits):
                message = (
                    "`true` quantizes with bitsandbytes, which does not go with "
                    f"{said(recipe, key)}. Take it out."
                )
                yield Finding((bits,), message, keys=(key,))


def _qlora_is_4bit(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """QLoRA is LoRA on weights that bitsandbytes quantized to 4 bits.

    Without them the name promises what the run does not do; to merge the adapter, the weights
    are needed unquantized.
    """
    keys, peft = recipe.adapter, recipe.adapter.peft
    if keys.adapter != "qlora" or (peft is not None and peft.backend == "torchao"):
        return
    quantized = [key for key in (*BITS, "gptq") if value_of(recipe, key)]
    if keys.merge_lora:
        for key in quantized:
            message = (
                f"`true` needs the weights of `adapter: qlora` unquantized, but `{key}: true`. "
                "Take one of the two out."
            )
            yield Finding(("merge_lora",), message, keys=("adapter", key))
        return
    for key in quantized:
        # Both BITS at once are for R064.
        if key == "gptq" or (key == "load_in_8bit" and "load_in_4bit" not in quantized):
            message = (
                "`true` does not go with `adapter: qlora`, which means 4 bits of bitsandbytes. "
                "Write `adapter: lora`."
            )
            yield Finding((key,), message, keys=("adapter",))
    if not quantized and (peft is None or peft.weight_dtype not in {"nf4", "int4"}):
        state = state_of(recipe, "load_in_4bit")
        message = (
            f"`qlora` needs `load_in_4bit: true`, which {state}. Write that, or `adapter: lora`."
        )
        yield Finding(("adapter",), message, keys=("load_in_4bit",))


def _peft_block(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`backend` and `weight_dtype` say together how the base model is quantized.

    Each library has formats of its own; weights of torchao know nothing of bitsandbytes' keys,
    and are merged in memory only.
    """
    peft = recipe.adapter.peft
    if peft is None:
        return
    dtype = peft.weight_dtype
    if dtype is not None and peft.backend is None:
        library = "torchao" if dtype == "int4" else "bnb"
        message = f"`{dtype}` needs `backend`, which is not set. Write `backend: {library}`."
        yield Finding(("peft", "weight_dtype"), message)
    if dtype == "int4" and peft.backend == "bnb":
        message = (
            "`int4` is a format of torchao, but `backend: bnb`. Write `nf4`, or `backend: torchao`."
        )
        yield Finding(("peft", "weight_dtype"), message)
    if peft.backend != "torchao":
        return
    if dtype is None:
        message = (
            "`torchao` needs `weight_dtype`, which is not set. Write `weight_dtype: int4`, "
            "`nf4` or `int8`."
        )
        yield Finding(("peft", "backend"), message)
    for key in BITS:
        if value_of(recipe, key):
            message = "`true` is for bitsandbytes, but `peft` has `backend: torchao`. Take it out."
            yield Finding((key,), message, keys=("peft",))
    if recipe.adapter.merge_lora and recipe.export.merge_method != "legacy":
        state = state_of(recipe, "merge_method")
        message = (
            f"`true` with `backend: torchao` needs `merge_method: legacy`, but that {state}. "
            "Write it."
        )
        yield Finding(("merge_lora",), message, keys=("peft", "merge_method"))


def _experts_in_bits(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Experts are quantized on top of what bitsandbytes does for the rest, under an adapter.

    They are no linear layers, so `lora_target_linear` cannot mean them.
    """
    if not recipe.quantization.quantize_moe_experts:
        return
    key: KeyPath = ("quantize_moe_experts",)
    if recipe.adapter.adapter not in {"lora", "qlora"}:
        message = (
            "`true` needs `adapter: lora` or `qlora`, but `adapter` "
            f"{state_of(recipe, 'adapter')}. Write one of them."
        )
        yield Finding(key, message, keys=("adapter",))
    if not any(value_of(recipe, bits) for bits in BITS):
        message = (
            f"`true` needs `load_in_4bit: true`, which {state_of(recipe, 'load_in_4bit')}. Write "
            "that, or `load_in_8bit: true`."
        )
        yield Finding(key, message, keys=BITS)
    if recipe.adapter.lora_target_linear:
        message = (
            "`true` does not go with `lora_target_linear: true`. Write `lora_target_modules` in "
            "its place."
        )
        yield Finding(key, message, keys=("lora_target_linear",))


def _gptq_is_gptq(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """GPTQ weights are made beforehand and come with the model, whose configuration says so.

    The key and the model must agree, or the model is loaded the wrong way.
    """
    quantization = (facts.model_config or {}).get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if recipe.quantization.gptq and method != "gptq":
        has = f"`quant_method: {word(method)}`" if method else "no quantized weights"
        yield Finding(
            ("gptq",), f"`true`, but the model has {has}. Take it out.", keys=("base_model",)
        )
    if method == "gptq" and not recipe.quantization.gptq:
        message = (
            f"is quantized with GPTQ, but `gptq` {state_of(recipe, 'gptq')}. Write `gptq: true`."
        )
        yield Finding(("base_model",), message, keys=("gptq",))


def _gptq_has_no_revision(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Axolotl hands no revision to the library that loads GPTQ weights, and refuses one.

    The branches of such a repository often differ in bits and group size: the main one is another model.
    """
    revision = recipe.model.revision_of_model
    if recipe.quantization.gptq and revision not in {None, "main"}:
        message = (
            f"`{word(revision)}` is not read with `gptq: true`. Download that revision, and write its "
            "folder as `base_model`."
        )
        yield Finding(("revision_of_model",), message, keys=("gptq", "base_model"))


RULES: Final = (
    Rule("R063", _quantized_needs_adapter),
    Rule("R064", _quantized_once),
    Rule("R065", _qlora_is_4bit),
    Rule("R066", _peft_block),
    Rule("R074", _experts_in_bits),
    Rule("R077", _gptq_is_gptq, needs=("model_config",)),
    Rule("R173", _gptq_has_no_revision),
)
