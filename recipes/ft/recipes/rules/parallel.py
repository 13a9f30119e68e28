"""Rules about how processes share the work: FSDP, DeepSpeed, DDP, and the sizes of the layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.layout import divisors
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import fsdp_key, fsdp_version, key_of, value_of, world_size
from ft.recipes.schema import FlatRecipe


def _expert_parallel_size(recipe: FlatRecipe) -> int:
    size: int | None = value_of(recipe, "expert_parallel_size")
    return size or 1


def _model_value(recipe: FlatRecipe, facts: Facts, *names: str) -> tuple[str, Any] | None:
    """The first of `names` in the model's configuration, or in the text part of it."""
    config: dict[str, Any] = {
        **(facts.model_config or {}),
        **(recipe.model.overrides_of_model_config or {}),
    }
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for name in names:
            if place.get(name) is not None:
                return name, place[name]
    return None


def _model_count(recipe: FlatRecipe, facts: Facts, *names: str) -> tuple[str, int] | None:
    found = _model_value(recipe, facts, *names)
    return found if found and isinstance(found[1], int) and found[1] > 0 else None


def _one_way_to_shard(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """DeepSpeed and FSDP both own the weights, the gradients and the optimizer; a run has room for one of them.

    Axolotl looks at the old `fsdp` list only and lets `fsdp_config` pass.
    """
    fsdp, deepspeed = fsdp_key(recipe), recipe.parallel.deepspeed
    if fsdp and deepspeed:
        said = f"deepspeed: {deepspeed}" if isinstance(deepspeed, str) else "deepspeed"
        message = f"stands beside `{said}`; both shard the model. Take out one of the two."
        yield Finding((fsdp,), message, keys=("deepspeed",))


def _one_fsdp_version(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`fsdp_version` may stand at the top and in `fsdp_config`; where the two differ, ft asks instead of choosing."""
    config, version = recipe.parallel.fsdp_config, recipe.parallel.fsdp_version
    inner = config.fsdp_version if config else None
    if inner and version and inner != version:
        message = (
            f"is {inner}, but `fsdp_version: {version}` stands at the top. Keep the one at the top."
        )
        yield Finding(("fsdp_config", "fsdp_version"), message, keys=("fsdp_version",))


def _fsdp1_is_old(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """FSDP1 is deprecated; without `fsdp_version` a recipe still means it, as in Axolotl.

    It shards flat buffers, in which frozen, quantized and trained parameters do not mix well.
    """
    fsdp = fsdp_key(recipe)
    if fsdp and fsdp_version(recipe) == 1:
        message = "means FSDP1, which is deprecated. Write `fsdp_version: 2`."
        yield Finding((fsdp,), message, Severity.WARNING, keys=("fsdp_version",))


def _read_by_nobody(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A setting of something that is switched off does nothing, silently; usually the switch was forgotten."""
    parallel = recipe.parallel
    is_ring = (parallel.context_parallel_size or 1) > 1
    switches = (
        ("fsdp_version", "fsdp_config", fsdp_key(recipe) is not None),
        ("fsdp_final_state_dict_type", "fsdp_config", fsdp_key(recipe) is not None),
        ("fp32_norm_classes", "fp32_norms: true", bool(parallel.fp32_norms)),
        ("ring_attn_func", "context_parallel_size", is_ring),
        ("heads_k_stride", "context_parallel_size", is_ring),
    )
    for key, switch, is_on in switches:
        value = getattr(parallel, key)
        if value is not None and not is_on:
            above = " above 1" if switch == "context_parallel_size" else ""
            message = f"has no effect without `{switch}`{above}. Add that, or take this out."
            yield Finding((key,), message, Severity.WARNING, keys=(key_of(switch),))


def _pinned_memory(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Only FSDP2 can leave offloaded weights unpinned, and only offloaded weights lie in CPU memory."""
    config = recipe.parallel.fsdp_config
    if config is None or config.cpu_offload_pin_memory is not False:
        return
    key = ("fsdp_config", "cpu_offload_pin_memory")
    if fsdp_version(recipe) == 1:
        message = "`false` is not possible with `fsdp_version: 1`. Write `fsdp_version: 2`."
        yield Finding(key, message, keys=("fsdp_version",))
    elif not config.offload_params:
        message = "`false` is about weights in CPU memory, and none are there. Write `offload_params: true`, "
        yield Finding(key, f"{message}or take it out.")


def _wrapped_by_size(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """SIZE_BASED_WRAP shards modules above a size; without one accelerate takes 0: each module by itself."""
    config = recipe.parallel.fsdp_config
    if config and config.auto_wrap_policy == "SIZE_BASED_WRAP" and config.min_num_params is None:
        message = "`SIZE_BASED_WRAP` needs `min_num_params`. Write `min_num_params: 100000000`, for example."
        yield Finding(("fsdp_config", "auto_wrap_policy"), message)


FSDP1_KEYS: Final = (
    "limit_all_gathers",
    "backward_prefetch",
    "forward_prefetch",
    "sync_module_states",
)


def _keys_of_other_fsdp(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The two generations of FSDP have different options.

    FSDP2 bounds and prefetches its gathering by itself and needs no sync of the first weights; FSDP1 has no
    `reshard_after_forward`.
    """
    config = recipe.parallel.fsdp_config
    if config is None:
        return
    version = fsdp_version(recipe)
    for key in FSDP1_KEYS if version == 2 else ("reshard_after_forward",):
        if getattr(config, key) is not None:
            message = (
                f"is a key of FSDP{3 - version} and has no effect with `fsdp_version: {version}`."
            )
            yield Finding(
                ("fsdp_config", key), f"{message} Take it out.", Severity.WARNING, ("fsdp_version",)
            )


def _sharding_strategy(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Axolotl drops `sharding_strategy` without a word: every recipe gets FULL_SHARD.

    FSDP2 has no such key. What it said is said by `reshard_after_forward` and by the two sizes of data
    parallelism.
    """
    config = recipe.parallel.fsdp_config
    strategy = config.sharding_strategy if config else None
    if config is None or strategy is None:
        return
    wanted = _instead(recipe, facts, strategy)
    if wanted:
        message = f"`{strategy}` {wanted}"
        keys = ("dp_replicate_size", "dp_shard_size", "fsdp_version", "cloud")
        yield Finding(("fsdp_config", "sharding_strategy"), message, Severity.WARNING, keys)


def _instead(recipe: FlatRecipe, facts: Facts, strategy: str) -> str | None:
    """What to write in place of `strategy`; None where the recipe says the same already."""
    config, parallel = recipe.parallel.fsdp_config, recipe.parallel
    is_kept = config is not None and config.reshard_after_forward is False
    replicas = parallel.dp_replicate_size or 1
    if strategy == "NO_SHARD":
        return "shards nothing, which is plain DDP. Take out `fsdp_config`."
    if strategy == "FULL_SHARD":
        other = "reshard_after_forward: false" if is_kept else f"dp_replicate_size: {replicas}"
        is_other = is_kept or replicas > 1
        return f"contradicts `{other}`, which counts. Take this out." if is_other else None
    wanted = []
    if strategy.startswith("HYBRID_SHARD") and 1 in {replicas, parallel.dp_shard_size}:
        wanted += _hybrid_sizes(facts)
    if strategy != "HYBRID_SHARD" and not is_kept:
        wanted.append("`reshard_after_forward: false`")
    if wanted and fsdp_version(recipe) == 1:
        wanted.insert(0, "`fsdp_version: 2`")
    return f"is not read. Write {', '.join(wanted)} instead." if wanted else None


def _hybrid_sizes(facts: Facts) -> list[str]:
    machine = facts.machine
    if machine and machine.num_nodes > 1:
        replicas, shards = machine.num_nodes, machine.num_processes_per_node
        return [f"`dp_replicate_size: {replicas}`", f"`dp_shard_size: {shards}`"]
    return ["`dp_replicate_size` (machines)", "`dp_shard_size` (GPUs of each)"]


def _mxfp4_loading(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """With `cpu_ram_efficient_loading` one process reads the weights; packed MXFP4 ones cannot be sent on so."""
    config = recipe.parallel.fsdp_config
    is_mxfp4 = recipe.quantization.model_quantization_config == "Mxfp4Config"
    if config and config.cpu_ram_efficient_loading and is_mxfp4:
        message = "`true` does not go with `model_quantization_config: Mxfp4Config`. Write false."
        key = ("fsdp_config", "cpu_ram_efficient_loading")
        yield Finding(key, message, keys=("model_quantization_config",))


def _fp32_norms(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """FSDP2 can give single modules a number format of their own; FSDP1 has one format for a whole buffer."""
    if not recipe.parallel.fp32_norms:
        return
    if fsdp_key(recipe) != "fsdp_config":
        message = "`true` needs FSDP2. Add `fsdp_version: 2` and `fsdp_config`, or take it out."
        yield Finding(("fp32_norms",), message, keys=("fsdp_config",))
    elif fsdp_version(recipe) != 2:
        message = "`true` needs FSDP2, and this recipe means FSDP1. Write `fsdp_version: 2`."
        yield Finding(("fp32_norms",), message, keys=("fsdp_version", "fsdp_config"))


def _deepcompile(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """DeepCompile is a compiler pass within DeepSpeed's engine; nothing else can run it."""
    if recipe.parallel.deepcompile and not recipe.parallel.deepspeed:
        message = "`true` needs `deepspeed`. Add it, or write `torch_compile: true` instead."
        yield Finding(("deepcompile",), message, keys=("deepspeed",))


def _shards_need_fsdp(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`dp_shard_size` says over how many processes FSDP shards; without `fsdp_config` there is no FSDP.

    Every process would hold the whole model.
    """
    size = recipe.parallel.dp_shard_size or 1
    if size > 1 and fsdp_key(recipe) != "fsdp_config":
        message = f"{size} shards nothing without `fsdp_config`. Add it with `fsdp_version: 2`."
        yield Finding(("dp_shard_size",), message, keys=("fsdp_config", "fsdp"))


def _experts_alone(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Expert parallelism does not go with tensor or context parallelism: neither Axolotl nor ft has built that."""
    experts = _expert_parallel_size(recipe)
    for key in ("tensor_parallel_size", "context_parallel_size"):
        size = getattr(recipe.parallel, key) or 1
        if experts > 1 and size > 1:
            message = f"{experts} does not go with `{key}: {size}`. Set one of the two to 1."
            yield Finding(("expert_parallel_size",), message, keys=(key,))


def _experts_and_processes(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Groups of `expert_parallel_size` processes share the experts, so they divide the processes evenly.

    With FSDP the rest of the model is sharded across those groups: groups times shards is the number of
    processes.
    """
    experts = _expert_parallel_size(recipe)
    if facts.machine is None or experts == 1:
        return
    world = world_size(facts.machine)
    shards = recipe.parallel.dp_shard_size or 1
    keys = ("dp_shard_size", "cloud")
    if world % experts:
        message = f"{experts} does not divide the {world} processes. Use one of {divisors(world)}."
        yield Finding(("expert_parallel_size",), message, keys=keys)
    elif shards > 1 and experts * shards != world:
        message = f"{experts} · `dp_shard_size: {shards}` is {experts * shards}, but there are {world} processes."
        more = f" Write `dp_shard_size: {world // experts}`."
        yield Finding(("expert_parallel_size",), message + more, keys=keys)


def _is_torch_tensor_parallel(recipe: FlatRecipe) -> bool:
    """DeepSpeed has a tensor parallelism of its own, with other limits."""
    return (recipe.parallel.tensor_parallel_size or 1) > 1 and not recipe.parallel.deepspeed


def _whole_heads(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Tensor parallelism cuts the matrices of attention between heads; each process gets whole ones.

    With a size that does not divide the heads the model fails when it reshapes its output.
    """
    if not _is_torch_tensor_parallel(recipe):
        return
    size = recipe.parallel.tensor_parallel_size or 1
    names = ("num_attention_heads", "num_key_value_heads")
    counts = [found for name in names if (found := _model_count(recipe, facts, name))]
    for name, count in counts:
        if count % size:
            sizes = divisors(math.gcd(*(number for _, number in counts)))
            message = f"{size} does not divide the model's {name}, {count}."
            yield Finding(("tensor_parallel_size",), f"{message} Use one of {sizes}.")
            return


def _tied_embeddings(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Tied weights are the input embedding and the output layer at once.

    Tensor parallelism lays out each of the two in its own way, so that they would cease to be one. Axolotl
    finds out when the model is loaded.
    """
    found = _model_value(recipe, facts, "tie_word_embeddings")
    if _is_torch_tensor_parallel(recipe) and found and found[1] is True:
        size = recipe.parallel.tensor_parallel_size
        message = f"{size} does not go with the model's `tie_word_embeddings: true`. Write 1, and use FSDP."
        yield Finding(("tensor_parallel_size",), message)


BNB_8BIT: Final = frozenset({"adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"})


def _tensor_parallel_optimizer(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The kernels of bitsandbytes work on plain tensors; tensor parallelism makes weights distributed ones.

    Axolotl has this check, in a class that it never uses.
    """
    name = recipe.optim.optimizer
    if _is_torch_tensor_parallel(recipe) and name in BNB_8BIT:
        size = recipe.parallel.tensor_parallel_size
        message = (
            f"`{name}` does not go with `tensor_parallel_size: {size}`. Write adamw_torch_fused."
        )
        yield Finding(("optimizer",), message, keys=("tensor_parallel_size",))


def _whole_experts(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Every process of an expert-parallel group holds the same number of whole experts.

    A dense model has none to hold.
    """
    size = _expert_parallel_size(recipe)
    found = _model_count(
        recipe, facts, "num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"
    )
    if found and found[1] % size:
        name, count = found
        message = (
            f"{size} does not divide the model's {name}, {count}. Use one of {divisors(count)}."
        )
        yield Finding(("expert_parallel_size",), message)
    elif not found and size > 1 and not _speaks_of_experts(facts.model_config):
        message = f"{size} spreads experts, and the model has none. Take it out, and use FSDP."
        yield Finding(("expert_parallel_size",), message, keys=("base_model",))


def _speaks_of_experts(config: object) -> bool:
    """Whether any key of a model's configuration is about experts, by whatever name it counts them."""
    if not isinstance(config, Mapping):
        return False
    return any(
        "expert" in str(key).lower() or "moe" in str(key).lower() or _speaks_of_experts(value)
        for key, value in config.items()
    )


def _equal_pieces(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Context parallelism cuts every row into pieces of equal length.

    A length that cannot be cut so is padded once more: rows are longer than the recipe says, for nothing.
    """
    size = recipe.parallel.context_parallel_size or 1
    for key in ("sequence_len", "eval_sequence_len", "pad_to_multiple_of"):
        length = getattr(recipe.data, key)
        if length is not None and length % size:
            fits = math.ceil(length / size) * size
            message = f"{length} is no multiple of `context_parallel_size: {size}`, so rows are padded again."
            yield Finding(
                (key,), f"{message} Write {fits}.", Severity.WARNING, ("context_parallel_size",)
            )


def _ring_needs_flash(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Attention across processes is built from the kernels of flash attention.

    They give back the log-sum-exp by which the partial results of the ring are joined.
    """
    size, name = recipe.parallel.context_parallel_size or 1, recipe.model.attn_implementation
    if size == 1 or (name and name.startswith("flash_attention_")):
        return
    if recipe.parallel.context_parallel is not None:
        return  # Its rings have kernels for every attention.
    if name and "/" in name and "flash" in name:
        return
    if name is None:
        message = f"{size} needs flash attention. Add `attn_implementation: flash_attention_2`."
        yield Finding(("context_parallel_size",), message, keys=("attn_implementation",))
    else:
        message = f"{name} cannot pass keys around, as `context_parallel_size: {size}` needs."
        more = " Write flash_attention_2."
        yield Finding(("attn_implementation",), message + more, keys=("context_parallel_size",))


def _ring_of_one_row(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The ring for packed rows finds its documents by their offsets in one long row, and takes one row at a time."""
    size, micro = recipe.parallel.context_parallel_size or 1, recipe.optim.micro_batch_size or 1
    if size == 1 or micro == 1 or recipe.parallel.context_parallel is not None:
        return
    keys = ("context_parallel_size", "sample_packing", "ring_attn_func")
    packed = recipe.data.sample_packing
    if packed or recipe.parallel.ring_attn_func == "varlen_llama3":
        why = "`sample_packing: true`" if packed else "`ring_attn_func: varlen_llama3`"
        message = f"{micro} does not go with {why} and `context_parallel_size: {size}`. Write 1."
        yield Finding(("micro_batch_size",), message, keys=keys)


def _ring_of_documents(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`batch_ring` knows no borders within a row: rows that packing has put into one attend to each other."""
    size = recipe.parallel.context_parallel_size or 1
    if size > 1 and recipe.data.sample_packing and recipe.parallel.ring_attn_func == "batch_ring":
        message = "`batch_ring` lets rows that `sample_packing: true` joins attend to each other."
        more = " Write varlen_llama3."
        yield Finding(("ring_attn_func",), message + more, Severity.WARNING, ("sample_packing",))


def _stride_of_heads(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """`varlen_llama3` gathers so many key heads at a time until all are sent, and has no smaller last round."""
    stride = recipe.parallel.heads_k_stride
    found = _model_count(recipe, facts, "num_key_value_heads", "num_attention_heads")
    is_used = recipe.parallel.ring_attn_func == "varlen_llama3"
    if stride and found and is_used and found[1] % stride:
        name, count = found
        message = (
            f"{stride} does not divide the model's {name}, {count}. Use one of {divisors(count)}."
        )
        yield Finding(("heads_k_stride",), message, keys=("ring_attn_func",))


def _copies_of_pieces(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Tensor and context parallelism are dimensions of FSDP's mesh of processes.

    DDP has no mesh: it takes every process for a whole copy of the model with rows of its own, and would add
    up gradients of pieces that do not belong together. With as many processes as pieces there are no copies.
    """
    parallel, machine = recipe.parallel, facts.machine
    if machine is None or fsdp_key(recipe) or parallel.deepspeed:
        return
    keys = ("tensor_parallel_size", "context_parallel_size")
    sizes = {key: getattr(parallel, key) or 1 for key in keys}
    world, pieces = world_size(machine), math.prod(sizes.values())
    if pieces == 1 or world % pieces or world == pieces:
        return  # Sizes that do not divide are another rule's.
    key = next(key for key, size in sizes.items() if size > 1)
    message = (
        f"{sizes[key]} leaves {world // pieces} copies on {world} processes, which DDP cannot keep. Add "
        f"`fsdp_config` with `fsdp_version: 2`, or use {pieces} processes."
    )
    others = ("fsdp_config", "fsdp", "deepspeed", "cloud", *keys)
    yield Finding((key,), message, keys=others)


DDP_DEFAULTS: Final[Mapping[str, object]] = {
    "ddp": False,
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": None,
    "ddp_broadcast_buffers": True,
}
"""Key of DDP -> value that asks for nothing."""


def _ddp_beside_shards(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """DDP keeps a whole copy of the model in each process; where the model is sharded, nothing reads its options."""
    other = fsdp_key(recipe) or ("deepspeed" if recipe.parallel.deepspeed else None)
    for key, default in DDP_DEFAULTS.items():
        value = getattr(recipe.parallel, key)
        if other and value is not None and value != default:
            said = str(value).lower()
            message = (
                f"`{said}` has no effect beside `{other}`, which shards the model. Take it out."
            )
            yield Finding((key,), message, Severity.WARNING, keys=(other,))


def _unused_and_reentrant(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Reentrant checkpointing hides parameters from the graph in which DDP looks for unused ones.

    They count as ready at once, and again when their gradient comes, which torch refuses in the first step.
    """
    kwargs = recipe.model.gradient_checkpointing_kwargs
    is_reentrant = recipe.model.gradient_checkpointing and kwargs and kwargs.use_reentrant
    shards = fsdp_key(recipe) or recipe.parallel.deepspeed
    if recipe.parallel.ddp_find_unused_parameters and is_reentrant and not shards:
        message = "`true` fails on several processes with `use_reentrant: true`. Write `use_reentrant: false`."
        keys = ("gradient_checkpointing", "gradient_checkpointing_kwargs")
        yield Finding(("ddp_find_unused_parameters",), message, Severity.WARNING, keys)


def _context_parallel_adds_up(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`context_parallel` says how the processes split attention up that `context_parallel_size` counts.

    Heads are split over some of them and pieces of the sequence over the others: the two numbers multiply.
    """
    block = recipe.parallel.context_parallel
    if block is None:
        return
    flat, size = recipe.parallel.context_parallel_size or 1, block.size
    if size is not None and size != flat:
        message = (
            f"{size} stands beside `context_parallel_size: {flat}`; both say the same. Keep one."
        )
        yield Finding(("context_parallel", "size"), message, keys=("context_parallel_size",))
        return
    needed = {"ulysses": ("ring_size", 1), "ring": ("ulysses_size", 1)}.get(block.backend or "")
    for key in ("ulysses_size", "ring_size"):
        part = getattr(block, key)
        if part is None:
            continue
        at, keys = ("context_parallel", key), ("context_parallel_size",)
        fits = flat if needed is None or key != needed[0] else needed[1]
        if needed and part != fits:
            message = (
                f"{part} does not go with `backend: {block.backend}`. Write {fits}, or take it out."
            )
            yield Finding(at, message, keys=keys)
        elif flat % part:
            yield Finding(
                at, f"{part} does not divide {flat}. Use one of {divisors(flat)}.", keys=keys
            )
    ulysses, ring = block.ulysses_size, block.ring_size
    if needed is None and ulysses and ring and ulysses * ring != flat and not flat % ulysses:
        message = f"{ring} by `ulysses_size: {ulysses}` is {ulysses * ring}, not {flat}. Write {flat // ulysses}."
        yield Finding(("context_parallel", "ring_size"), message, keys=("context_parallel_size",))


RULES: Final = (
    Rule("R137", _context_parallel_adds_up),
    Rule("R140", _one_way_to_shard),
    Rule("R141", _one_fsdp_version),
    Rule("R142", _fsdp1_is_old),
    Rule("R143", _read_by_nobody),
    Rule("R144", _pinned_memory),
    Rule("R145", _wrapped_by_size),
    Rule("R146", _keys_of_other_fsdp),
    Rule("R147", _sharding_strategy),
    Rule("R148", _mxfp4_loading),
    Rule("R149", _fp32_norms),
    Rule("R150", _deepcompile),
    Rule("R151", _shards_need_fsdp),
    Rule("R152", _experts_alone),
    Rule("R153", _experts_and_processes, needs=("machine",)),
    Rule("R154", _whole_heads, needs=("model_config",)),
    Rule("R155", _tied_embeddings, needs=("model_config",)),
    Rule("R156", _tensor_parallel_optimizer),
    Rule("R157", _whole_experts, needs=("model_config",)),
    Rule("R158", _equal_pieces),
    Rule("R159", _ring_needs_flash),
    Rule("R160", _ring_of_one_row),
    Rule("R161", _ring_of_documents),
    Rule("R162", _stride_of_heads, needs=("model_config",)),
    Rule("R163", _ddp_beside_shards),
    Rule("R164", _unused_and_reentrant),
    Rule("R181", _copies_of_pieces, needs=("machine",)),
)
