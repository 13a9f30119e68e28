"""Keys about the model, its tokenizer and its numbers."""

from typing import Annotated, Any, Literal

from ft.recipes.schema.base import Section, Seq, accepted, implemented, limits, planned

Index = Annotated[int, limits(ge=0, is_name=True)]
"""As the name of a value, which YAML may have read as text."""
Whole = Annotated[int, limits(ge=0)]
"""A number as key of a mapping: JSON knows only text there."""


class SpecialTokens(Section):
    """Tokens that replace the tokenizer's own."""

    pad_token: str | None = implemented()
    """Fills rows of a batch up to the longest. Default: the tokenizer's, else its EOS token."""
    eos_token: str | None = implemented()
    """Ends a text. Default: the tokenizer's."""
    bos_token: str | None = implemented()
    """Begins a text. Default: the tokenizer's."""
    unk_token: str | None = implemented()
    """Stands for what the vocabulary lacks. Default: the tokenizer's."""
    additional_special_tokens: Seq[str] | None = planned()
    """More tokens that are never split and that decoding can leave out. Default: the tokenizer's."""


class GradientCheckpointing(Section):
    """How activations are computed again in the backward pass."""

    use_reentrant: bool | None = implemented(default=False)
    """torch's older implementation. Default: `false`."""
    preserve_rng_state: bool | None = planned(default=True)
    """Put the random state back before recomputing, so that dropout drops the same. Default: `true`."""
    determinism_check: Literal["default", "none"] | None = planned(default="default")
    """`default` compares shapes, dtypes and devices of what was recomputed; `none` compares nothing.
    Only without `use_reentrant`. Default: `default`."""
    debug: bool | None = planned(default=False)
    """Name the operators on both sides when the recomputation differs. Slow. Only without
    `use_reentrant`. Default: `false`."""
    early_stop: bool | None = planned(default=True)
    """Stop recomputing as soon as everything needed is there. Only without `use_reentrant`.
    Default: `true`."""


class SelectiveCheckpointing(Section):
    """What a checkpointed layer keeps after all, so that it is not computed again."""

    save: Seq[str] | None = planned(default=("attention",))
    """Operators whose results are kept: `attention`, or a part of the name of a torch operator such as
    `aten::mm`. Default: `["attention"]`."""
    save_sliding_window: bool | None = planned(default=False)
    """Keep attention over a sliding window as well, which is cheap to compute again. Default: `false`."""
    recompute_layer_types: Seq[str] | None = planned(
        default=("sliding_attention", "chunked_attention")
    )
    """Types of layers, as in `layer_types` of the model's configuration, whose attention is computed
    again all the same. Has no effect with `save_sliding_window`.
    Default: `["sliding_attention", "chunked_attention"]`."""
    offload: bool | None = planned(default=False)
    """Keep the results in pinned CPU memory instead of GPU memory. Default: `false`."""


class ModelKeys(Section):
    """What is trained."""

    base_model: str | None = implemented()
    """Hub id or local folder of the model to start from. Required."""
    base_model_config: str | None = implemented()
    """Hub id or folder of the model's configuration, where it is not the model's own.
    Default: the same as `base_model`."""
    tokenizer_config: str | None = implemented()
    """Hub id or folder of the tokenizer. Default: the same as `base_model`."""
    revision_of_model: str | None = implemented(default="main")
    """Branch, tag or commit on the hub. Matters for a run that somebody should be able to repeat.
    Default: `main`."""
    trust_remote_code: bool | None = implemented(default=False)
    """Run Python code that comes with the model. It runs on your machines with your secrets.
    Default: `false`."""
    special_tokens: SpecialTokens | None = implemented()
    """Tokens that replace the tokenizer's own. They must be in the vocabulary. Default: the tokenizer's."""
    attn_implementation: (
        Literal[
            "eager",
            "sdpa",
            "flash_attention_2",
            "flash_attention_3",
            "flash_attention_4",
            "flex_attention",
            "xformers",
            "sage",
            "fp8",
        ]
        | Annotated[str, limits(pattern=r"^[^\s/]+/\S+$")]
        | None
    ) = implemented(default="sdpa", runs=("eager", "sdpa", "flash_attention_2"))
    """Attention kernel, or a kernel on the hub as `org/name`. All but `eager` and `sdpa` need a GPU.
    Default: `sdpa`."""
    bf16: bool | Literal["auto"] | None = implemented(default="auto")
    """Compute in bfloat16; `auto`: where the GPU can. Default: `auto`."""
    tf32: bool | Literal["auto"] | None = implemented(default="auto")
    """Let fp32 matmuls use TF32 on NVIDIA GPUs; `auto`: where the GPU can. Default: `auto`."""
    gradient_checkpointing: bool | Literal["offload", "offload_disk"] | None = implemented(
        default=False, runs=(True, False)
    )
    """Forget activations and compute them again: about a third more time, far less memory. `offload` and
    `offload_disk` also set `activation_offloading`, to `true` and to `disk`. Default: `false`."""
    gradient_checkpointing_kwargs: GradientCheckpointing | None = implemented()
    """Options for `gradient_checkpointing`. Default: those of its keys."""

    selective_checkpointing: SelectiveCheckpointing | bool | None = planned()
    """Keep the results of some operators within checkpointed layers; `true` keeps attention's. Needs
    `gradient_checkpointing` without `use_reentrant`. Default: off."""
    activation_offloading: bool | Literal["legacy", "disk", "hidden_states"] | None = planned(
        default=False
    )
    """Move activations away from the GPU until the backward pass needs them: to CPU memory beside the
    computation (`true`) or in step with it (`legacy`), to disk, or only what enters each checkpointed
    layer (`hidden_states`). Needs `gradient_checkpointing`. Default: `false`."""
    layer_offloading: bool | None = planned(default=False)
    """Hold the frozen weights of the decoder layers in CPU memory and fetch each layer when it is its
    turn. Saves most with an adapter. Default: `false`."""

    type_of_model: str | None = planned(default="AutoModelForCausalLM", min_length=1)
    """Class of transformers that loads the model. `model_type` is another name of this key.
    Default: `AutoModelForCausalLM`."""
    cls_model_config: str | None = planned(min_length=1)
    """Class of transformers that reads the model's configuration, such as `Gemma3TextConfig`.
    Default: `AutoConfig`'s choice."""
    overrides_of_model_config: dict[str, Any] | None = planned()
    """Values to change in the model's configuration before it is built. `model_config` is another name
    of this key. Default: none."""
    overrides_of_model_kwargs: dict[str, Any] | None = planned()
    """More arguments for `from_pretrained` of the model. `model_kwargs` is another name of this key.
    Default: none."""
    num_labels: int | None = planned(ge=1)
    """Number of outputs of a classification head. Default: 1 for a reward model, 2 for a process reward
    model, else the model's own."""
    reinit_weights: bool | None = planned()
    """Start from random weights instead of trained ones. Default: off."""
    freeze_mm_modules: bool | None = planned()
    """Do not train encoders of images and sound and their projectors, to train a multimodal model on text.
    Default: off."""
    unfrozen_parameters: Seq[str] | None = planned()
    """Regular expressions for the names of parameters that are trained; all others are frozen. A range of
    rows may follow, as in `embed_tokens.weight$[:32000]`. Default: all parameters are trained."""
    llama4_linearized_experts: bool | None = planned()
    """The model is a Llama 4 whose experts were rewritten as separate linear layers. Default: off."""
    use_onebitllms: bool | None = planned()
    """Train a BitNet model with 1.58-bit weights, with the package `onebitllms`. Not with LoRA.
    Default: off."""

    tokenizer_type: str | None = planned(default="AutoTokenizer", min_length=1)
    """Class of transformers that loads the tokenizer. Default: `AutoTokenizer`."""
    tokenizer_use_fast: bool | None = planned(default=True)
    """Load the tokenizer that is written in Rust, where there is one. Default: `true`."""
    tokenizer_legacy: bool | None = planned(false_is_off=False)
    """Whether a SentencePiece tokenizer keeps its old treatment of spaces after special tokens.
    Default: the tokenizer's own."""
    tokenizer_use_mistral_common: bool | None = planned()
    """Use the package `mistral-common` as tokenizer and chat template. Default: off, but on where a name
    in the recipe contains `magistral`."""
    tokenizer_save_jinja_files: bool | None = planned(default=True)
    """Save the chat template as a file of its own, not within `tokenizer_config.json`. Default: `true`."""
    processor_type: str | None = planned(min_length=1)
    """Class of transformers that prepares images and sound for a multimodal model, such as
    `AutoProcessor`. Default: none, the model reads text."""
    processor_kwargs: dict[str, Any] | None = planned()
    """More arguments for `from_pretrained` of the processor; `revision` and `trust_remote_code` have keys
    of their own. Default: none."""
    tokens: Seq[str] | None = planned()
    """Tokens to add to the vocabulary. Tokens in `special_tokens` need not be here. Default: none."""
    added_tokens_overrides: dict[Index, str] | None = planned()
    """Id of a reserved token of the tokenizer -> the text it shall stand for. Default: none."""
    resize_token_embeddings_to_32x: bool | None = planned()
    """Grow the embeddings to a multiple of 32 rows. Default: off, as many rows as there are tokens."""
    mean_resizing_embeddings: bool | None = planned(default=False)
    """Draw new rows of the embeddings around the mean of the old ones. Default: `false`."""
    shrink_embeddings: bool | None = planned()
    """Cut embeddings that have more rows than the tokenizer has tokens. Default: off."""
    embeddings_skip_upcast: bool | None = planned()
    """With an adapter, leave the embeddings in their own precision instead of fp32, to save memory.
    Default: off."""
    fix_untrained_tokens: Whole | Seq[Whole] | None = planned()
    """Ids of tokens that were never trained; their embeddings are set to the mean of the others.
    Default: none."""

    fp16: bool | None = planned()
    """Compute in float16 with loss scaling, for GPUs without bfloat16. Default: off."""
    bfloat16: bool | None = planned()
    """Hold and compute everything in bfloat16, without mixed precision. Default: off."""
    float16: bool | None = planned()
    """Hold and compute everything in float16, without mixed precision or loss scaling. Default: off."""
    float32: bool | None = planned()
    """Hold and compute everything in float32, which `bf16: false` does as well. Default: off."""

    device_map: Whole | str | dict[str, Whole | str] | None = planned()
    """Which device gets which module: a strategy such as `auto` or `sequential`, one device, or a mapping
    of module names to devices. Default: each process has its model on its own GPU."""
    max_memory: dict[Index | Literal["cpu", "disk"], Whole | str] | None = planned()
    """Device (number of a GPU, `cpu`, `disk`) -> memory for weights, in bytes or as text with a unit such
    as `20GiB`. Not with `gpu_memory_limit`. Default: no limit."""
    gpu_memory_limit: Annotated[int, limits(ge=1)] | str | None = planned()
    """Memory for weights on every GPU: GiB, or text with a unit. Not with `max_memory`.
    Default: no limit."""
    low_cpu_mem_usage: bool | None = accepted("transformers loads weights one by one anyway")
    """Load weights without a second copy in CPU memory. Default: off."""
    experimental_skip_move_to_device: bool | None = accepted(
        "ft decides when weights reach the GPU", default=True
    )
    """Do not move the model to the GPU before it is sharded. Default: `true`."""
    torchdistx_path: str | None = planned(min_length=1)
    """Folder of the package torchdistx, for the optimizer `adamw_anyprecision`. Default: none."""
    hf_use_auth_token: bool | None = planned()
    """Send the Hugging Face token when datasets are loaded or pushed. Default: off."""

    is_llama_derived_model: bool | None = planned()
    """Treat the model as a Llama. Default: found out from its configuration and name."""
    is_mistral_derived_model: bool | None = planned()
    """Treat the model as a Mistral, which may pad on the left. Default: found out from its configuration
    and name."""
    is_falcon_derived_model: bool | None = planned()
    """Treat the model as a Falcon. Default: found out from its configuration and name."""
    is_qwen_derived_model: bool | None = planned()
    """Treat the model as one of the first Qwen, whose tokenizer has a single special token.
    Default: found out from its configuration."""
