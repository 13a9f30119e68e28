"""Rules about GPU memory: which activations are kept, recomputed or moved, and how much the weights may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import said, word
from ft.recipes.schema import FlatRecipe


def _reentrant_cannot(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """torch's older checkpointing gives no gradients to a layer whose input needs none.

    That is so behind frozen embeddings. Nor can it keep single results or report what differs.
    """
    options = recipe.model.gradient_checkpointing_kwargs
    if options is None or not options.use_reentrant:
        return
    key: KeyPath = ("gradient_checkpointing_kwargs", "use_reentrant")
    if recipe.model.unfrozen_parameters:
        message = (
            "`true` loses the gradients of layers that follow frozen ones "
            "(`unfrozen_parameters`). Write `false`."
        )
        yield Finding(key, message, keys=("unfrozen_parameters",))
    if recipe.model.selective_checkpointing:
        message = (
            "`true` cannot keep single results, as `selective_checkpointing` asks. Write `false`."
        )
        yield Finding(key, message, keys=("selective_checkpointing",))
    if options.debug:
        yield Finding(key, "`true` is refused by torch beside `debug: true`. Write `false`.")


MATMULS: Final = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "_scaled_mm", "_grouped_mm"}
)


def _selective_checkpointing(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """What is kept on purpose must not be moved away by another mechanism.

    Only `hidden_states` works with it: that moves what enters a layer, and leaves what is kept
    inside. An adapter adds matmuls of its own under the same operator names, so that keeping
    matmuls would keep nearly everything.
    """
    block, model = recipe.model.selective_checkpointing, recipe.model
    if not block:
        return
    if model.activation_offloading not in {None, False, "hidden_states"}:
        message = (
            f"stands beside {said(recipe, 'activation_offloading')}; both decide where "
            "activations are kept. Keep one, or write `activation_offloading: hidden_states`."
        )
        yield Finding(("selective_checkpointing",), message, keys=("activation_offloading",))
    if block is True or recipe.adapter.adapter is None:
        return
    for index, name in enumerate(block.save or ()):
        if name.rpartition("::")[2].partition(".")[0] in MATMULS:
            message = (
                f"{word(name)} is a matmul too with {said(recipe, 'adapter')}: nearly all "
                "would be kept. Take it out."
            )
            yield Finding(("selective_checkpointing", "save", index), message, keys=("adapter",))


def _shards_all(deepspeed: str | Mapping[str, Any] | None) -> bool:
    """Whether the configuration is ZeRO stage 3, as far as it or its name says."""
    if isinstance(deepspeed, str):
        return "zero3" in deepspeed
    zero = (deepspeed or {}).get("zero_optimization")
    return isinstance(zero, Mapping) and zero.get("stage") == 3


def _qlora_zero3(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """ZeRO 3 gathers weights anew for the recomputation.

    With 4-bit weights the recomputed tensors may then have other shapes, which the newer
    checkpointing checks and refuses (CheckpointError).
    """
    model, options = recipe.model, recipe.model.gradient_checkpointing_kwargs
    reentrant = options.use_reentrant if options else None
    if recipe.adapter.adapter != "qlora" or not model.gradient_checkpointing or reentrant:
        return
    if _shards_all(recipe.parallel.deepspeed):
        key: KeyPath = ("gradient_checkpointing",)
        if reentrant is False:
            key = ("gradient_checkpointing_kwargs", "use_reentrant")
        message = (
            "may fail when layers are recomputed with `adapter: qlora` and ZeRO 3. Write "
            "`use_reentrant: true`."
        )
        yield Finding(key, message, Severity.WARNING, keys=("adapter", "deepspeed"))


def _one_memory_limit(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`gpu_memory_limit` is `max_memory` with the same number for each GPU; with both, neither is meant."""
    limit, table = recipe.model.gpu_memory_limit, recipe.model.max_memory
    if limit is not None and table is not None:
        message = (
            f"{word(limit)} stands beside `max_memory`; both limit memory for weights. Keep one."
        )
        yield Finding(("gpu_memory_limit",), message, keys=("max_memory",))


RULES: Final = (
    Rule("R060", _reentrant_cannot),
    Rule("R061", _selective_checkpointing),
    Rule("R062", _qlora_zero3),
    Rule("R084", _one_memory_limit),
)
