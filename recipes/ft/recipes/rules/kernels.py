"""Rules about kernels that take the place of a model's own code, and the GPUs and layers that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import (
    capability,
    fsdp_key,
    fsdp_version,
    said,
    state_of,
    value_of,
    word,
    world_size,
)
from ft.recipes.schema import FlatRecipe

LEAST_CAPABILITY: Final[tuple[tuple[str, object, int], ...]] = (
    ("fp8", True, 89),
    ("use_sonicmoe", True, 90),
    ("expert_backend", "sonicmoe", 90),
    ("quantize_moe_experts", True, 0),
)


def _kernels_fit_gpu(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Nothing takes over where the GPU lacks what these keys need.

    FP8 matmuls need the tensor cores of Ada or later, SonicMoE those of Hopper or later, and
    experts are quantized by CUDA kernels.
    """
    machine = facts.machine
    if machine is None:
        return
    for key, wanted, least in LEAST_CAPABILITY:
        if value_of(recipe, key) != wanted:
            continue
        if machine.device == "cpu":
            message = (
                f"`{word(wanted)}` needs an NVIDIA GPU, but the run is on the CPU. Take it out, "
                "or use a GPU."
            )
            yield Finding((key,), message, keys=("cloud",))
        elif (has := capability(machine.gpu, otherwise=least)) < least:
            message = (
                f"`{word(wanted)}` needs compute capability {least / 10} or later; {machine.gpu} has "
                f"{has / 10}. Take it out, or use another GPU."
            )
            yield Finding((key,), message, keys=("cloud",))


LORA_KERNELS: Final = (
    "lora_mlp_kernel",
    "lora_qkv_kernel",
    "lora_o_kernel",
    "lora_embedding_kernel",
)


def _lora_kernels_know_layers(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """These kernels are patched into layers that transformers has, and read weights in 16 or 4 bits.

    8-bit weights and layers that come with the model are unknown to them.
    """
    for key in LORA_KERNELS:
        if not value_of(recipe, key):
            continue
        if recipe.adapter.adapter == "lora" and recipe.quantization.load_in_8bit:
            message = "`true` cannot read 8-bit weights (`load_in_8bit: true`). Take it out."
            yield Finding((key,), message, keys=("load_in_8bit",))
        if recipe.model.trust_remote_code:
            message = "`true` does not know the layers of `trust_remote_code: true`. Take it out."
            yield Finding((key,), message, keys=("trust_remote_code",))


def _lora_kernels_fsdp1(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """FSDP1 shards flat buffers.

    The kernels ask layers for their weights directly, which are then in such a buffer.
    """
    machine = facts.machine
    sharded = fsdp_key(recipe) is not None and fsdp_version(recipe) != 2
    if machine is None or not sharded:
        return
    processes = world_size(machine)
    for key in LORA_KERNELS:
        if value_of(recipe, key) and processes > 1:
            message = (
                f"`true` does not work with FSDP1 over {processes} processes. Write "
                "`fsdp_version: 2`, or take this out."
            )
            yield Finding((key,), message, keys=("fsdp_version", "fsdp_config", "fsdp"))


LOSSES: Final = (
    "cut_cross_entropy",
    "chunked_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "liger_cross_entropy",
)


def _cuts_cross_entropy(recipe: FlatRecipe) -> bool:
    """The plugin is on where it is listed, unless its key says otherwise."""
    listed = "cut_cross_entropy" in recipe.plugin
    return listed and value_of(recipe, "cut_cross_entropy") is not False


def _one_cross_entropy(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Each of these replaces the loss of the model, so the last one to be put in place would win.

    The plugin of cut cross-entropy is on where it is listed.
    """
    listed = _cuts_cross_entropy(recipe)
    on = [key for key in LOSSES if value_of(recipe, key) or (key == LOSSES[0] and listed)]
    for key in on[1:]:
        first = f"`{on[0]}: true`"
        if value_of(recipe, on[0]) is None:
            first = f"the plugin of `{on[0]}`"
        message = f"`true` stands beside {first}; there is one loss. Keep one."
        yield Finding((key,), message, keys=(on[0], "plugins"))


LIGER_SPLIT: Final = ("liger_rms_norm", "liger_cross_entropy", "liger_fused_linear_cross_entropy")


def _liger_takes_whole_layers(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Liger's kernels compute a whole layer at a time.

    They cannot have weights that tensor parallelism split over processes, nor an MLP that
    `tiled_mlp` rewrites to go piece by piece.
    """
    size = recipe.parallel.tensor_parallel_size or 1
    for key in LIGER_SPLIT:
        if value_of(recipe, key) and size > 1:
            message = (
                f"`true` needs whole weights, but `tensor_parallel_size: {size}` splits them. "
                "Take it out."
            )
            yield Finding((key,), message, keys=("tensor_parallel_size",))
    tiled = recipe.kernels.tiled_mlp and recipe.kernels.tiled_mlp_use_original_mlp is False
    if value_of(recipe, "liger_glu_activation") and tiled:
        message = (
            "`true` needs the model's own MLP with `tiled_mlp: true`. Write "
            "`tiled_mlp_use_original_mlp: true`."
        )
        yield Finding(
            ("liger_glu_activation",), message, keys=("tiled_mlp", "tiled_mlp_use_original_mlp")
        )


def _one_expert_kernel(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The experts of a layer are computed by one set of kernels.

    Training against the weights after a merge is built into SonicMoE's alone.
    """
    backend = value_of(recipe, "expert_backend")
    switches = {"scattermoe": "use_scattermoe", "sonicmoe": "use_sonicmoe"}
    on = [name for name, key in switches.items() if value_of(recipe, key)]
    if len(on) > 1:
        message = "`true` stands beside `use_scattermoe: true`; experts have one kernel. Keep one."
        yield Finding(("use_sonicmoe",), message, keys=("use_scattermoe",))
    elif backend is not None and on and on != [backend]:
        message = (
            f"`{backend}` stands beside `{switches[on[0]]}: true`; experts have one kernel. Keep "
            "one."
        )
        yield Finding(("expert_backend",), message, keys=(switches[on[0]],))
    if value_of(recipe, "nvfp4_merge_aware"):
        if "sonicmoe" not in {*on, backend}:
            message = (
                f"`true` needs `use_sonicmoe: true`, which {state_of(recipe, 'use_sonicmoe')}. "
                "Write that."
            )
            yield Finding(("nvfp4_merge_aware",), message, keys=("use_sonicmoe", "expert_backend"))
        if recipe.adapter.adapter is None:
            message = (
                "`true` needs `adapter`, which is not set: there is nothing to merge. Take it out."
            )
            yield Finding(("nvfp4_merge_aware",), message, keys=("adapter",))


def _graphs_need_one_shape(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A CUDA graph is recorded for fixed shapes.

    Packed rows hold another number of documents each time, so graphs are recorded again and
    again, which costs time and memory.
    """
    options = recipe.kernels.torch_compile_options or {}
    if options.get("triton.cudagraphs") and recipe.data.sample_packing:
        message = "`true` records anew for nearly each row of `sample_packing: true`. Take it out."
        at = ("torch_compile_options", "triton.cudagraphs")
        yield Finding(at, message, Severity.WARNING, keys=("sample_packing",))


def _better_transformer_is_plain(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """BetterTransformer's layers refuse to run under autocast, which is how mixed precision casts.

    Everything in one 16-bit format needs no autocast.
    """
    if not recipe.kernels.flash_optimum:
        return
    for key, instead in (("bf16", "bfloat16"), ("fp16", "float16")):
        if value_of(recipe, key):
            message = (
                f"`true` does not go with mixed precision ({said(recipe, key)}). Write `{instead}: "
                f"true` in place of `{key}`, or take this out."
            )
            yield Finding(("flash_optimum",), message, keys=(key,))


SIXTEEN_BITS: Final = ("bf16", "fp16", "bfloat16", "float16")


def _cut_cross_entropy_in_16_bits(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The kernels of cut cross-entropy have a backward pass for 16-bit numbers only.

    `bf16` that is not set is found out from the machine, so only a recipe that turns it off asks for 32 bits.
    """
    if not _cuts_cross_entropy(recipe) or recipe.model.bf16 is not False:
        return
    if not any(value_of(recipe, key) for key in SIXTEEN_BITS):
        message = (
            "`false` leaves 32 bits, which the plugin of `cut_cross_entropy` cannot train in. Write "
            "`true` or `fp16: true`, or `cut_cross_entropy: false`."
        )
        yield Finding(("bf16",), message, keys=("plugins", "cut_cross_entropy", *SIXTEEN_BITS))


def _merge_aware_is_plain(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Training against the weights after a merge happens where the adapter's layers compute.

    Fused kernels compute in their place and know nothing of it.
    """
    if not value_of(recipe, "nvfp4_merge_aware"):
        return
    for key in (*LORA_KERNELS, "dsv4_shared_mlp_lora_kernel"):
        if value_of(recipe, key):
            message = "`true` passes by `nvfp4_merge_aware: true`. Take one of the two out."
            yield Finding((key,), message, keys=("nvfp4_merge_aware",))


RULES: Final = (
    Rule("R054", _kernels_fit_gpu, needs=("machine",)),
    Rule("R072", _lora_kernels_know_layers),
    Rule("R073", _lora_kernels_fsdp1, needs=("machine",)),
    Rule("R078", _one_cross_entropy),
    Rule("R079", _liger_takes_whole_layers),
    Rule("R080", _one_expert_kernel),
    Rule("R082", _graphs_need_one_shape),
    Rule("R174", _better_transformer_is_plain),
    Rule("R175", _cut_cross_entropy_in_16_bits),
    Rule("R182", _merge_aware_is_plain),
)
