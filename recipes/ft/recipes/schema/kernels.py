"""Keys about how layers and losses are computed: speed and memory, and two kinds of attention."""

from typing import Any, Final, Literal

from ft.recipes.schema.base import Section, accepted, planned

_UNCOMPILED: Final = "the model runs uncompiled"
_PEFT: Final = "PEFT's plain layers are used"
_WHOLE_LOGITS: Final = "the loss comes from whole logits, which takes more memory"
_WHOLE_MLP: Final = "the MLP computes the whole sequence at once, which takes more memory"

InductorOption = Literal[
    "assume_aligned_inputs",
    "comprehensive_padding",
    "coordinate_descent_check_all_directions",
    "coordinate_descent_tuning",
    "decompose_mem_bound_mm",
    "epilogue_fusion",
    "fx_graph_cache",
    "max_autotune_gemm",
    "shape_padding",
    "triton.cudagraphs",
]
"""Settings of `torch._inductor.config` that Axolotl lets a recipe change."""


class KernelKeys(Section):
    """Faster or smaller ways to compute the same, and attention that computes something else."""

    torch_compile: bool | Literal["auto"] | None = accepted(_UNCOMPILED)
    """Compile the model with `torch.compile`; `auto`: where torch is new enough. Default: off."""
    torch_compile_backend: str | None = accepted(_UNCOMPILED, min_length=1)
    """Backend of `torch.compile`. Default: torch's own, `inductor`."""
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = accepted(
        _UNCOMPILED
    )
    """What `torch.compile` optimizes for. Default: torch's own, the value called default."""
    torch_compile_options: dict[InductorOption, bool | int | float | str] | None = accepted(
        _UNCOMPILED
    )
    """Settings of torch's compiler inductor. Needs `torch_compile`. Default: torch's own."""
    use_kernels: bool | None = accepted("the model's own layers are used")
    """Replace layers by kernels from the hub that transformers knows for the model. Default: off."""
    fused_attn_kernel: bool | None = accepted("the model's own norm and rotary embedding are used")
    """Compute the norms and the rotary embedding of queries and keys in one Triton kernel. For models
    such as Qwen 3 and Gemma 4. Default: off."""
    flash_attn_cross_entropy: bool | None = accepted("torch's cross-entropy is used")
    """Compute the loss with flash-attention's kernel. Default: off."""
    flash_attn_fuse_mlp: bool | None = accepted("the model's own MLP is used")
    """Compute part of the MLP in one operation. Not with LoRA. Default: off."""
    flash_optimum: bool | None = accepted("the model's own layers are used")
    """Convert the model to BetterTransformer of the package optimum. Default: off."""
    experts_implementation: str | None = accepted(
        "transformers chooses how experts are computed", min_length=1
    )
    """How a mixture of experts computes its experts: `eager`, `batched_mm`, `grouped_mm`, or one that a
    plugin adds, such as `scattermoe`. Default: transformers' choice."""

    lora_mlp_kernel: bool | None = accepted(_PEFT)
    """Triton kernels with their own backward pass for LoRA in the MLP. Default: off."""
    lora_qkv_kernel: bool | None = accepted(_PEFT)
    """One backward pass for LoRA on queries, keys and values. Default: off."""
    lora_o_kernel: bool | None = accepted(_PEFT)
    """A backward pass of its own for LoRA on attention's output projection. Default: off."""
    lora_embedding_kernel: bool | None = accepted(_PEFT)
    """A backward pass of its own for LoRA on embeddings. Default: off."""

    chunked_cross_entropy: bool | None = accepted(_WHOLE_LOGITS)
    """Compute the loss from one piece of the sequence after the other, to save memory. Default: off."""
    chunked_cross_entropy_num_chunks: int | None = accepted(_WHOLE_LOGITS, default=8, ge=1)
    """Number of pieces for `chunked_cross_entropy`. Default: `8`."""
    tiled_mlp: bool | None = accepted(_WHOLE_MLP)
    """Compute MLPs on one piece of the sequence after the other, for long contexts. Default: off."""
    tiled_mlp_num_shards: int | None = accepted(_WHOLE_MLP, ge=1)
    """Number of pieces for `tiled_mlp`. Default: from the length of the sequence and the hidden size."""
    tiled_mlp_use_original_mlp: bool | None = accepted("the model's own MLP is used", default=True)
    """`tiled_mlp` calls the model's own MLP, not a general one made for Llama. Default: `true`."""

    flex_attn_compile_kwargs: dict[str, Any] | None = accepted(
        "transformers compiles flex attention with its own options"
    )
    """Arguments of `torch.compile` for `attn_implementation: flex_attention`. Default: Axolotl's choice."""
    sdpa_varlen: bool | None = accepted("torch's SDPA gets a mask")
    """With `sample_packing` and `attn_implementation: sdpa`, compute attention per document instead of
    under a mask over the whole row. Default: off."""
    large_head_attention: Literal["sdpa", "auto", "triton_flash"] | None = accepted(
        "torch's SDPA is used", default="sdpa"
    )
    """Attention where heads have more than 256 dimensions: torch's SDPA, a Triton kernel
    (`triton_flash`), or that kernel for packed rows only (`auto`). Default: `sdpa`."""
    gemma4_hybrid_attn_impl: bool | None = planned()
    """Gemma 4: FlashAttention 2 in layers with a sliding window, SDPA in the others, whose heads are too
    large for it. Needs `attn_implementation: flash_attention_2`, which it also sets. Default: off."""
    scaling_softmax: bool | None = planned()
    """Scale attention's logits with the logarithm of the length (SSMax), so that attention does not fade
    in long contexts. Needs `attn_implementation: flex_attention`. Default: off."""
    scaling_softmax_factor: float | None = planned(default=0.43, gt=0)
    """Factor before the logarithm for `scaling_softmax`. Default: `0.43`."""
    scaling_softmax_bias: float | None = planned(default=0.0)
    """Added to the scale for `scaling_softmax`. Default: `0.0`."""

    torch_empty_cache_steps: int | None = accepted("torch keeps its cache of GPU memory", ge=1)
    """Give torch's cached GPU memory back every so many steps. Default: never."""
    gc_collect_steps: int | None = accepted("Python collects garbage by itself", ge=-1)
    """Collect Python's garbage every so many steps; -1: only at the end of an epoch and before an
    evaluation. Default: never."""
