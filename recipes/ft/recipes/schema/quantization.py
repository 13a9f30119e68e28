"""Keys about number formats of weights with fewer than 16 bits."""

from typing import Any, Literal

from ft.recipes.schema.base import Section, Seq, planned

QuantDtype = Literal["int4", "int8", "fp8", "float8", "float8_e4m3fn", "nvfp4", "mxfp4"]
"""Formats of torchao. `fp8` and `float8` are other names of `float8_e4m3fn`."""


class BitsAndBytes(Section):
    """What is passed on to bitsandbytes, in place of the values that a recipe gets otherwise."""

    load_in_8bit: bool | None = planned()
    """Quantize to 8 bits. Default: as the key of the recipe."""
    load_in_4bit: bool | None = planned()
    """Quantize to 4 bits. Default: as the key of the recipe."""
    llm_int8_threshold: float | None = planned(default=6.0, ge=0)
    """8 bits: activations above this size are computed in 16 bits. Default: `6.0`."""
    llm_int8_skip_modules: Seq[str] | None = planned()
    """Names of modules that are not quantized. Default: the head."""
    llm_int8_enable_fp32_cpu_offload: bool | None = planned(default=False)
    """Allow modules on the CPU, in fp32. Default: `false`."""
    llm_int8_has_fp16_weight: bool | None = planned(default=False)
    """8 bits: keep weights in 16 bits and quantize them on the way. Default: `false`."""
    bnb_4bit_compute_dtype: str | None = planned(min_length=1)
    """4 bits: torch's name of the format that weights have in a matmul, such as `bfloat16`.
    Default: the precision of the run."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] | None = planned(default="nf4")
    """4 bits: the format. Default: `nf4`."""
    bnb_4bit_use_double_quant: bool | None = planned(default=True)
    """4 bits: quantize the scales too, which saves about 0.4 bit per weight. Default: `true`."""
    bnb_4bit_quant_storage: (
        Literal["uint8", "int8", "bfloat16", "float16", "float32", "float64"] | None
    ) = planned()
    """4 bits: type of the tensors that the packed weights are stored in; FSDP needs the type of the other
    weights. Default: Axolotl's choice."""


class QuantizationAwareTraining(Section):
    """Formats that training imitates, so that a model loses less when it is quantized afterwards."""

    activation_dtype: QuantDtype | None = planned()
    """Format to imitate for activations. Default: not set, they are left alone."""
    weight_dtype: QuantDtype | None = planned(default="int8")
    """Format to imitate for weights. Default: `int8`."""
    quantize_embedding: bool | None = planned(default=False)
    """Imitate it for the embeddings too. Default: `false`."""
    group_size: int | None = planned(default=32, ge=1)
    """Number of values that share a scale. Default: `32`."""
    fake_quant_after_n_steps: int | None = planned(ge=0)
    """Train this many steps before the imitation begins. Default: from the start."""


class PostTrainingQuantization(Section):
    """Formats for a model that is quantized after training."""

    weight_dtype: QuantDtype | None = planned(default="int8")
    """Format of the weights. Default: `int8`."""
    activation_dtype: QuantDtype | None = planned()
    """Format of the activations. Default: not set, they are left alone."""
    quantize_embedding: bool | None = planned()
    """Quantize the embeddings too. Default: off."""
    group_size: int | None = planned(default=32, ge=1)
    """Number of values that share a scale. Default: `32`."""


class QuantizationKeys(Section):
    """Weights in fewer bits: while training, as a goal of training, or after it."""

    load_in_8bit: bool | None = planned(default=False)
    """Quantize the model's weights to 8 bits when it is loaded, with bitsandbytes. Needs an adapter.
    Default: `false`."""
    load_in_4bit: bool | None = planned(default=False)
    """Quantize the model's weights to 4 bits when it is loaded, with bitsandbytes. Needs an adapter.
    Default: `false`."""
    bnb_config_kwargs: BitsAndBytes | None = planned()
    """Options of bitsandbytes with `adapter: qlora`. Default: those of its keys."""
    gptq: bool | None = planned()
    """The model's weights are quantized with GPTQ already. Default: off."""
    quantize_moe_experts: bool | None = planned(default=False)
    """Quantize experts, which `load_in_4bit` and `load_in_8bit` alone leave as they are. Needs one of the
    two, `adapter` and an NVIDIA GPU. Default: `false`."""
    model_quantization_config: Literal["Mxfp4Config", "FineGrainedFP8Config"] | None = planned()
    """Class of transformers for a model that comes quantized in MXFP4 or in blocks of FP8. Not with
    bitsandbytes. Default: not set."""
    model_quantization_config_kwargs: dict[str, Any] | None = planned()
    """Arguments of that class, such as `dequantize`. Default: the class's own."""
    qlora_sharded_model_loading: bool | None = planned(default=False)
    """QLoRA with FSDP: quantize and shard weights while they are loaded. Default: `false`."""
    fp8: bool | None = planned()
    """Compute matmuls in FP8 with torchao, with weights in 16 bits. Worth it with `torch_compile`.
    Default: off."""
    fp8_enable_fsdp_float8_all_gather: bool | None = planned()
    """With `fp8` and `fsdp_version: 2`, send weights between GPUs in FP8. Default: off."""
    qat: QuantizationAwareTraining | None = planned()
    """Imitate a format with fewer bits while training. Not with `load_in_4bit` or `load_in_8bit`.
    Default: off."""
    quantization: PostTrainingQuantization | None = planned()
    """How `quantize` makes a smaller copy of the trained model. Default: not set."""
