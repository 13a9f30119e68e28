"""Keys about which weights are trained."""

from typing import Annotated, Literal

from ft.recipes.schema.base import Section, Seq, implemented, limits, planned

AtLeastOne = Annotated[int, limits(ge=1)]
Positive = Annotated[float, limits(gt=0)]
Index = Annotated[int, limits(ge=0)]
LayerRange = tuple[Index, AtLeastOne]
"""First layer and the one after the last."""


class LoftQ(Section):
    """How LoftQ makes an adapter's first weights."""

    loftq_bits: int | None = planned(default=4, ge=1)
    """Bits of the quantized weights that the adapter is fitted to. Default: `4`."""


class PeftBlock(Section):
    """Options of peft that have no top-level key."""

    loftq_config: LoftQ | None = planned()
    """Begin with an adapter that makes up for quantization errors. Default: not set."""
    backend: Literal["bnb", "torchao"] | None = planned()
    """Library that quantizes the base model: bitsandbytes or torchao. Required with `weight_dtype`.
    Default: not set."""
    weight_dtype: Literal["int4", "int8", "nf4"] | None = planned()
    """Number format of the base model's weights; `int4` needs `backend: torchao`. Default: not set."""
    group_size: int | None = planned(ge=1)
    """Weights that share one scale. Default: 128 for `int4`, 64 for `nf4`."""


class AdapterKeys(Section):
    """Low-rank adapters, or all weights where `adapter` is not set."""

    adapter: Literal["lora", "qlora", "llama-adapter", "mora"] | None = implemented(runs=("lora",))
    """`lora`; `qlora`: the same on a base model in 4 bits; `llama-adapter`; `mora`, which a plugin of that
    name brings. Default: not set, all weights are trained."""
    lora_r: int | None = implemented(ge=1, le=65_536)
    """Rank of the adapter matrices. Required with `adapter: lora`."""
    lora_alpha: int | None = implemented(ge=1, le=1_000_000)
    """The adapter's output is scaled by `lora_alpha / lora_r`. Required with `adapter: lora`."""
    lora_dropout: float | None = implemented(default=0, ge=0, lt=1)
    """Dropout before the adapter. Default: `0`."""
    lora_target_modules: Seq[str] | str | None = implemented()
    """Names of modules that get an adapter, or one regular expression. Default: every linear layer."""
    lora_target_linear: bool | None = implemented()
    """Every linear layer but the head gets an adapter.
    Default: so, where `lora_target_modules` is not set."""
    lora_modules_to_save: Seq[str] | None = implemented()
    """Modules that are trained in full beside the adapter. Default: none."""
    peft_use_rslora: bool | None = implemented(default=False)
    """Scale by `lora_alpha / sqrt(lora_r)` instead. Default: `false`."""

    lora_target_parameters: Seq[str] | str | None = planned()
    """Names of parameters that get an adapter, for weights that are no module of their own, as the experts of
    a mixture are. Needs `lora_dropout: 0`. Default: none."""
    peft_layers_to_transform: Seq[Index] | None = planned()
    """Numbers of the layers that get an adapter, from 0. Default: all layers."""
    peft_layers_pattern: Seq[str] | None = planned()
    """Name of the list of layers that `peft_layers_to_transform` counts in. Default: the common ones."""
    lora_rank_pattern: dict[str, AtLeastOne] | None = planned()
    """Module name or regular expression -> rank that differs from `lora_r`. Default: none."""
    lora_alpha_pattern: dict[str, Positive] | None = planned()
    """Module name or regular expression -> alpha that differs from `lora_alpha`. Default: none."""
    lora_fan_in_fan_out: bool | None = planned()
    """The base model stores its weights as (in, out), as GPT-2 does. Default: off."""
    peft_use_dora: bool | None = planned()
    """DoRA: learn direction and magnitude of the weights apart. Default: off."""
    peft_init_lora_weights: bool | str | None = planned(default=True)
    """First weights of the adapter: `true` begins as no change; `false` is random, for tests; names such as
    `gaussian`, `pissa`, `olora`, `eva`, `loftq`. Default: `true`."""
    peft_layer_replication: Seq[LayerRange] | None = planned()
    """Build a deeper model from ranges `[first, after_last]` of layers, which share their base weights.
    Default: not set."""
    peft_trainable_token_indices: Seq[Index] | dict[str, Seq[Index]] | None = planned()
    """Ids of tokens whose embeddings are trained beside the adapter, or embedding layer -> ids.
    Default: none."""
    peft_ensure_weight_tying: bool | None = planned()
    """Keep the adapters of tied weights tied too. Default: off."""
    peft_autocast_adapter_dtype: bool | None = planned(default=True)
    """Keep the adapter in fp32 where the model is in half precision. Default: `true`."""
    peft: PeftBlock | None = planned()
    """Options of peft that have no top-level key. Default: not set."""

    lora_model_dir: str | None = planned()
    """Hub id or folder of an adapter to start from. Default: a new adapter."""
    lora_on_cpu: bool | None = planned()
    """Load the adapter on the CPU, for models that fill the GPU. Default: off."""
    merge_lora: bool | None = planned()
    """Merge the adapter into the base model; Axolotl's `merge-lora` sets it. Default: off."""

    loraplus_lr_ratio: float | None = planned(gt=0)
    """LoRA+: learning rate of the B matrices as a multiple of that of the A matrices; 16 is usual.
    Default: not set, the same rate."""
    loraplus_lr_embedding: float | None = planned(default=1e-6, gt=0)
    """LoRA+: learning rate of adapters on embeddings. Default: `1e-06`."""
