"""Rules about attention: who sees whom in a row, and which GPUs a kernel was compiled for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import capability, state_of, value_of
from ft.recipes.schema import FlatRecipe

ATTENTION_OF: Final = (
    ("scaling_softmax", ("flex_attention",)),
    ("gemma4_hybrid_attn_impl", ("flash_attention_2", None)),
)


def _one_kernel_only(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Some kinds of attention exist in one kernel only.

    SSMax is written as a score function of flex attention, and the hybrid of Gemma 4 is
    FlashAttention 2 with exceptions.
    """
    for key, kernels in ATTENTION_OF:
        if value_of(recipe, key) and recipe.model.attn_implementation not in kernels:
            state = state_of(recipe, "attn_implementation")
            message = (
                f"`true` needs `{kernels[0]}`, but `attn_implementation` {state}. Write "
                f"`attn_implementation: {kernels[0]}`."
            )
            yield Finding((key,), message, keys=("attn_implementation",))


def _batch_flattening(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Flattening lays the rows of a batch end to end without padding.

    That needs a kernel that is told where rows begin, rows that are not packed already, and
    more than one row.
    """
    if recipe.data.batch_flattening is not True:
        return
    key: KeyPath = ("batch_flattening",)
    if recipe.model.attn_implementation in {None, "eager", "sdpa"}:
        state = state_of(recipe, "attn_implementation")
        message = (
            f"`true` needs a kernel that keeps rows apart; `attn_implementation` {state}. Write "
            "`flash_attention_2` there."
        )
        yield Finding(key, message, keys=("attn_implementation",))
    if recipe.data.sample_packing:
        message = "`true` stands beside `sample_packing: true`; both lay rows end to end. Keep one."
        yield Finding(key, message, keys=("sample_packing",))
    if recipe.optim.micro_batch_size == 1:
        message = "`true` has no effect with `micro_batch_size: 1`: a single row. Take it out."
        yield Finding(key, message, Severity.WARNING, keys=("micro_batch_size",))


ATTENTION_CAPABILITIES: Final[Mapping[str, frozenset[int]]] = {
    "flash_attention_2": frozenset({80, 86, 89, 90, 100, 103, 120}),
    "flash_attention_3": frozenset({80, 86, 89, 90}),
    "flash_attention_4": frozenset({80, 86, 89, 90, 100, 103}),
    "flex_attention": frozenset({75, 80, 86, 89, 90, 100, 103, 120}),
    "xformers": frozenset({75, 80, 86, 89, 90, 100}),
    "sage": frozenset({80, 86, 89, 90}),
    "fp8": frozenset({90, 100}),
}
"""Value of `attn_implementation` -> compute capabilities among ours that it has kernels for."""


def _attention_has_kernels(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Attention kernels are compiled for some generations of GPUs; on others the first step fails.

    FlashAttention 2 begins with Ampere, FlashAttention 3 ends with Hopper, FP8 attention begins
    with Hopper.
    """
    name, machine = recipe.model.attn_implementation, facts.machine
    capabilities = ATTENTION_CAPABILITIES.get(name or "")
    if machine is None or capabilities is None:
        return
    if machine.device == "cpu":
        if name != "flash_attention_2":  # R013 says that one.
            message = f"{name} needs a GPU to train. On the CPU use `sdpa`."
            yield Finding(("attn_implementation",), message, keys=("cloud",))
    elif capability(machine.gpu, otherwise=90) not in capabilities:
        message = f"{name} has no kernels for {machine.gpu}. Write `sdpa`, or use another GPU."
        yield Finding(("attn_implementation",), message, keys=("cloud",))


def _sage_trains_adapters(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """SageAttention computes with quantized queries and keys.

    With all weights trained the loss was seen to drop to 0 after some steps; adapters have
    trained with it.
    """
    if recipe.model.attn_implementation == "sage" and recipe.adapter.adapter is None:
        message = (
            "`sage` is known to break training where all weights are trained. Set `adapter`, or "
            "write `sdpa`."
        )
        yield Finding(("attn_implementation",), message, Severity.WARNING, keys=("adapter",))


def _sage_wants_one_length(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """With SageAttention on rows of many lengths the loss was seen to explode after some steps.

    Axolotl recommends packed rows, or rows padded to `sequence_len`.
    """
    data = recipe.data
    is_sage = recipe.model.attn_implementation == "sage"
    if is_sage and not data.sample_packing and not data.pad_to_sequence_len:
        message = (
            "`sage` is known to diverge on rows of many lengths. Write `pad_to_sequence_len: true`, or "
            "`sample_packing: true`."
        )
        keys = ("pad_to_sequence_len", "sample_packing")
        yield Finding(("attn_implementation",), message, Severity.WARNING, keys=keys)


def _fp16_packs_with_flash(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """All weights trained in float16 on packed rows, without flash attention: such runs were seen to end in errors.

    Flash attention needs no mask to keep the documents of a row apart, and an adapter is kept in 32 bits.
    """
    name = recipe.model.attn_implementation or ""
    fp16 = next((key for key in ("fp16", "float16") if value_of(recipe, key)), None)
    bf16 = any(value_of(recipe, key) for key in ("bf16", "bfloat16"))
    if fp16 is None or bf16 or recipe.adapter.adapter is not None or "flash" in name:
        return
    if recipe.data.sample_packing:
        message = (
            "`true` is likely to fail with all weights trained on packed rows. Write "
            "`attn_implementation: flash_attention_2`, or set `adapter`."
        )
        keys = ("adapter", "sample_packing", "attn_implementation")
        yield Finding((fp16,), message, Severity.WARNING, keys=keys)


RULES: Final = (
    Rule("R051", _one_kernel_only),
    Rule("R052", _batch_flattening),
    Rule("R053", _attention_has_kernels, needs=("machine",)),
    Rule("R055", _sage_trains_adapters),
    Rule("R178", _sage_wants_one_length),
    Rule("R179", _fp16_packs_with_flash),
)
