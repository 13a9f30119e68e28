"""Rules about the number format that a run computes in: one for the whole run, and what FP8 needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import fsdp_key, state_of, value_of
from ft.recipes.schema import FlatRecipe

PRECISIONS: Final = ("bf16", "fp16", "bfloat16", "float16", "float32")
SAME_FORMAT: Final = frozenset({("bf16", "bfloat16"), ("fp16", "float16")})
"""Mixed precision, and everything in that format: weights are loaded in it either way."""


def _one_precision(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Each of these keys decides the precision of the whole run, so only one can be true.

    `bf16: auto` decides too, from the machine, and the 16-bit side of `fp8` is bfloat16.
    """
    on = [key for key in PRECISIONS if value_of(recipe, key) is True]
    for key in on[1:]:
        if (on[0], key) in SAME_FORMAT:
            message = (
                f"`true` has no effect beside `{on[0]}: true`, which is mixed precision. Keep one."
            )
            yield Finding((key,), message, Severity.WARNING, keys=(on[0],))
        else:
            message = f"`true` stands beside `{on[0]}: true`; both decide the precision. Keep one."
            yield Finding((key,), message, keys=(on[0],))
    if recipe.model.bf16 == "auto" and on:
        message = (
            f"`auto` stands beside `{on[0]}: true`; which one counts depends on the machine. "
            "Write `bf16: false`."
        )
        yield Finding(("bf16",), message, Severity.WARNING, keys=(on[0],))
    if recipe.quantization.fp8:
        for key in sorted({"fp16", "float16", "float32"} & set(on)):
            message = (
                f"`true` computes in bfloat16 beside FP8, but `{key}: true` asks for another "
                f"precision. Take out `{key}`."
            )
            yield Finding(("fp8",), message, keys=(key,))


def _fp8_pays(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Casting to FP8 costs time.

    Compiled, it is fused with what comes before; recomputed in the backward pass, it is paid
    twice. Either way FP8 can end up slower than bfloat16.
    """
    if not recipe.quantization.fp8:
        return
    if not recipe.kernels.torch_compile:
        state = state_of(recipe, "torch_compile")
        message = f"`true` gains little while `torch_compile` {state}. Write `torch_compile: true`."
        yield Finding(("fp8",), message, Severity.WARNING, keys=("torch_compile",))
    fsdp = recipe.parallel.fsdp_config
    if fsdp is not None and fsdp.activation_checkpointing:
        message = (
            "`true` repeats the casts of `fp8: true`, which may cost what FP8 gains. Write `false`."
        )
        at = ("fsdp_config", "activation_checkpointing")
        yield Finding(at, message, Severity.WARNING, keys=("fp8",))


def _fp8_gather_is_fsdp2(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """FSDP1 gathers one flat buffer; only FSDP2 keeps single parameters that can be sent in FP8."""
    if recipe.quantization.fp8_enable_fsdp_float8_all_gather and recipe.parallel.fsdp_version != 2:
        message = (
            f"`true` needs FSDP2, but `fsdp_version` {state_of(recipe, 'fsdp_version')}. Write "
            "`fsdp_version: 2`."
        )
        yield Finding(("fp8_enable_fsdp_float8_all_gather",), message, keys=("fsdp_version",))


def _bf16_keeps_small_steps(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """bfloat16 has 8 significant bits: a step smaller than about 1/500 of a weight is rounded away.

    With all weights in bf16 and a usual learning rate that is nearly every step of nearly every weight. Adapters are
    kept in fp32, and sharded training keeps an fp32 copy.
    """
    bf16, machine = recipe.model.bf16, facts.machine
    trains_all = recipe.adapter.adapter is None and fsdp_key(recipe) is None
    is_used = bf16 is True or (bf16 is not False and machine is not None and machine.bf16)
    if trains_all and is_used and recipe.parallel.deepspeed is None:
        message = (
            "all weights are trained in bf16: most steps of a usual learning rate are rounded away. "
            "Write `bf16: false`, or train an adapter."
        )
        yield Finding(("bf16",), message, Severity.WARNING, keys=("adapter",))


RULES: Final = (
    Rule("R056", _one_precision),
    Rule("R057", _fp8_pays),
    Rule("R058", _fp8_gather_is_fsdp2),
    Rule("R165", _bf16_keeps_small_steps),
)
