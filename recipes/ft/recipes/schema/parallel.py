"""Keys about how the processes share the work. Their product is the number of processes."""

from typing import Any, Final, Literal

from ft.recipes.schema.base import Section, Seq, implemented, planned

MAX_PROCESSES: Final = 1 << 20
"""More have never worked on one model."""

StateDictType = Literal["FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"]


class FsdpConfig(Section):
    """How FSDP shards the model."""

    fsdp_version: int | None = planned(ge=1, le=2)
    """1 or 2, as the top-level `fsdp_version`. Default: that one."""
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP"] | None = planned()
    """What is sharded as one piece: each layer, or each module above `min_num_params`. Default: not set."""
    transformer_layer_cls_to_wrap: str | None = planned()
    """Class of the layers that `TRANSFORMER_BASED_WRAP` shards, such as `LlamaDecoderLayer`; several with
    commas between them. Default: the model's own."""
    min_num_params: int | None = planned(ge=1)
    """Fewest parameters of a module that `SIZE_BASED_WRAP` shards. Required there."""
    sharding_strategy: (
        Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"]
        | None
    ) = planned()
    """FSDP1: what is sharded, and whether within a node only. Axolotl drops it; FSDP2 has
    `reshard_after_forward` and `dp_replicate_size`. Default: not set."""
    reshard_after_forward: bool | None = planned(false_is_off=False)
    """FSDP2: free the gathered weights after the forward pass and gather them again for the backward pass:
    less memory, more traffic. Default: on."""
    activation_checkpointing: bool | None = planned()
    """Forget activations and compute them again in the backward pass, done by FSDP. Default: off."""
    offload_params: bool | None = planned()
    """Keep parameters on the CPU while they are not needed. Default: off."""
    cpu_offload_pin_memory: bool | None = planned(false_is_off=False)
    """FSDP2 with `offload_params`: pin that CPU memory. `false` lets it be swapped out. Default: pinned."""
    cpu_ram_efficient_loading: bool | None = planned()
    """Read the model on one process only and send it to the others. Default: off."""
    sync_module_states: bool | None = planned()
    """FSDP1: send the first process's weights to the others at the start. Default: off."""
    use_orig_params: bool | None = planned()
    """FSDP1: keep the parameters' own names and shapes, as needed where some are frozen. Default: off."""
    mixed_precision_policy: str | None = planned()
    """Number format to compute in, `bf16` or `fp16`. Default: not set."""
    state_dict_type: StateDictType | None = planned()
    """Form of checkpoints: one whole state, or one shard per process. Default: not set."""
    final_state_dict_type: StateDictType | None = planned()
    """Form of the model that is saved at the end. Default: not set."""
    limit_all_gathers: bool | None = planned(false_is_off=False)
    """FSDP1: hold back gathering so that memory stays bounded. Axolotl drops it. Default: not set."""
    backward_prefetch: Literal["BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH"] | None = planned()
    """FSDP1: when the next layer's weights are gathered in the backward pass. Axolotl drops it.
    Default: not set."""
    forward_prefetch: bool | None = planned()
    """FSDP1: gather the next layer's weights early in the forward pass. Axolotl drops it. Default: off."""


class GradientAccumulationConfig(Section):
    """How accelerate accumulates gradients."""

    sync_each_batch: bool | None = planned()
    """Reduce gradients at each forward pass, not only at the last: less memory with FSDP, more traffic.
    Default: off."""
    sync_with_dataloader: bool | None = planned(false_is_off=False)
    """Step at the end of the data even where an accumulation is not full. Default: on."""
    adjust_scheduler: bool | None = planned(false_is_off=False)
    """Count schedule steps with the accumulation in mind. Default: on."""


class AcceleratorConfig(Section):
    """Options of accelerate, which feeds batches to the processes."""

    gradient_accumulation_kwargs: GradientAccumulationConfig | None = planned()
    """How gradients are accumulated. Default: not set."""
    split_batches: bool | None = planned()
    """Cut each batch up between the processes, instead of one whole batch for each. Default: off."""
    dispatch_batches: bool | None = planned(false_is_off=False)
    """Read data in the first process only and send each batch on. Default: on for data that is streamed."""
    even_batches: bool | None = planned(false_is_off=False)
    """Begin again with the first rows where the last batch does not fill all processes. Default: on."""
    use_seedable_sampler: bool | None = planned(false_is_off=False)
    """Shuffle in a way that repeats exactly. Default: on."""
    non_blocking: bool | None = planned()
    """Copy batches to the GPU without waiting; needs pinned memory. Default: off."""
    use_configured_state: bool | None = planned()
    """Use the accelerate state that exists already instead of making one. Default: off."""


class ContextParallel(Section):
    """How the processes that share a sequence split its attention up, since Axolotl 0.21."""

    size: int | None = planned(default=1, ge=1, le=MAX_PROCESSES)
    """As the key `context_parallel_size`: processes that share one sequence. Default: `1`."""
    backend: Literal["auto", "ulysses", "ring", "usp"] | None = planned(default="auto")
    """By heads (`ulysses`), by pieces of the sequence in a ring (`ring`), or both (`usp`). Default: `auto`."""
    ulysses_size: int | None = planned(ge=1, le=MAX_PROCESSES)
    """Processes over which heads are split. Default: chosen from `backend` and `size`."""
    ring_size: int | None = planned(ge=1, le=MAX_PROCESSES)
    """Processes in a ring; this by `ulysses_size` is `size`. Default: chosen from `backend` and `size`."""
    rotate_method: Literal["allgather", "alltoall"] | None = planned(default="allgather")
    """How pieces move in a ring. Default: `allgather`."""
    load_balance: Literal["auto", "none", "head_tail", "distflash"] | None = planned(default="auto")
    """How a sequence is cut up, so that all have the same work with a causal mask. Default: `auto`."""
    ring_impl: Literal["auto", "torch_native", "hf_kernels"] | None = planned(default="auto")
    """Kernels that compute a piece of a ring. Default: `auto`."""
    shard_in_collator: bool | None = planned(default=True)
    """Cut a sequence up when batches are made, not in the model. Default: `true`."""


class ParallelKeys(Section):
    """world = dp_replicate_size · dp_shard_size · context_parallel_size · tensor_parallel_size."""

    dp_replicate_size: int | None = implemented(ge=1, le=MAX_PROCESSES)
    """Copies of the model, each with its own rows. Default: what the other sizes leave over; 1 with FSDP,
    unless `dp_shard_size` is set."""
    dp_shard_size: int | None = planned(default=1, ge=1, le=MAX_PROCESSES)
    """Processes over which one copy of the model is sharded (FSDP2). Default: `1`; with FSDP what
    the other sizes leave over."""
    context_parallel_size: int | None = planned(default=1, ge=1, le=MAX_PROCESSES)
    """Processes that share one sequence. They read the same rows: the global batch shrinks. Default: `1`."""
    context_parallel: ContextParallel | None = planned()
    """How these processes split attention up, since Axolotl 0.21; its `size` is `context_parallel_size`.
    Default: not set."""
    tensor_parallel_size: int | None = planned(default=1, ge=1, le=MAX_PROCESSES)
    """Processes that share each matrix. They read the same rows: the global batch shrinks. Default: `1`."""
    ddp_timeout: int | None = implemented(default=600, ge=1)
    """Seconds that a process waits for the others in a collective before the attempt ends. Default: `600`."""

    ddp: bool | None = planned()
    """Whether each process has a whole copy of the model. Default: what the sizes say."""
    ddp_find_unused_parameters: bool | None = planned(default=False)
    """Look for parameters without a gradient at each step; needed where a step skips some.
    Default: `false`."""
    ddp_bucket_cap_mb: int | None = planned(ge=1)
    """Megabytes of gradients that are reduced together. Default: torch's, 25."""
    ddp_broadcast_buffers: bool | None = planned(default=True)
    """Send the first process's buffers to the others at each forward pass. Default: `true`."""

    fsdp_version: int | None = planned(ge=1, le=2)
    """Generation of torch's FSDP: 1 shards flat buffers, 2 each parameter. Default: 1 where FSDP is on."""
    fsdp_config: FsdpConfig | None = planned()
    """Shard the model with FSDP, and how. Default: not set, no sharding."""
    fsdp: Seq[str] | None = planned()
    """FSDP1 by words such as `full_shard` and `auto_wrap`, the older way; `fsdp_config` is today's.
    Default: not set."""
    fsdp_final_state_dict_type: StateDictType | None = planned()
    """Form of the model that is saved at the end, the older spelling of `fsdp_config.final_state_dict_type`.
    Default: not set."""
    fp32_norms: bool | None = planned()
    """Keep normalization layers in fp32 while the rest computes in half precision. Needs FSDP2.
    Default: off."""
    fp32_norm_classes: Seq[str] | None = planned()
    """Ends of class names, or whole dotted paths, that `fp32_norms` means. Default: RMSNorm and LayerNorm."""

    deepspeed: str | dict[str, Any] | None = planned()
    """Shard with DeepSpeed: a JSON file with its configuration, or the configuration itself.
    Default: not set."""
    deepcompile: bool | None = planned()
    """Let DeepSpeed compile the model. Needs `deepspeed`. Default: off."""

    ring_attn_func: Literal["varlen_llama3", "batch_ring"] | None = planned()
    """Attention across the processes of `context_parallel_size`.
    Default: `varlen_llama3` with sample packing, else `batch_ring`."""
    heads_k_stride: int | None = planned(default=1, ge=1)
    """Key heads that `varlen_llama3` sends at once; must divide their number. More is faster and needs more
    memory. Default: `1`."""

    accelerator_config: AcceleratorConfig | None = planned()
    """Options of accelerate, which feeds batches to the processes. Default: not set."""
