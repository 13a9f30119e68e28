"""Keys that belong to Axolotl's plugins: valid where `plugins:` lists the plugin."""

from typing import Annotated, Any, ClassVar, Final, Literal

from ft.recipes.schema.base import KeyInfo, Section, Seq, Status, accepted, limits, planned

_EXPERTS: Final = "the model's own experts are used"
_WHOLE_LOGITS: Final = "the loss is computed from whole logits, which takes more memory"
_PLANNED: Final = KeyInfo(Status.PLANNED, None, None, "", False)


class PluginKeys(Section):
    """Keys that one plugin brings along.

    `plugins`: spellings in the recipe's list that switch it on, the full path first. The short one is what
    Axolotl looks up below `axolotl.integrations`.
    """

    plugins: ClassVar[tuple[str, ...]] = ()
    listing: ClassVar[KeyInfo | None] = None
    """What becomes of listing the plugin, where that alone changes a run."""
    switch: ClassVar[str] = ""
    """Key whose `false` turns a listed plugin off again."""


class LigerKeys(PluginKeys):
    """Liger's fused Triton kernels."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.liger.LigerPlugin",
        "liger.LigerPlugin",
    )

    liger_rope: bool | None = accepted("the model's own rotary embedding is used")
    """Fused rotary embedding. Default: off."""
    liger_rms_norm: bool | None = accepted("the model's own RMS norm is used")
    """Fused RMS norm. Default: off."""
    liger_rms_norm_gated: bool | None = accepted("the model's own gated RMS norm is used")
    """Fused gated RMS norm, as in hybrid models. Default: off."""
    liger_layer_norm: bool | None = accepted("the model's own layer norm is used")
    """Fused layer norm. Default: off."""
    liger_glu_activation: bool | None = accepted("the model's own MLP is used")
    """Fused gated MLP (SwiGLU, GeGLU). Default: off."""
    liger_cross_entropy: bool | None = accepted("torch's cross-entropy is used")
    """Fused cross-entropy on whole logits. Default: off."""
    liger_fused_linear_cross_entropy: bool | None = accepted(_WHOLE_LOGITS)
    """Output layer and cross-entropy in one, so that the logits never exist as a whole. Default: off."""
    liger_use_token_scaling: bool | None = planned()
    """Multiply the loss of each token by its predicted probability, which is another loss; needs
    `liger_fused_linear_cross_entropy`. Default: off."""


class CutCrossEntropyKeys(PluginKeys):
    """Apple's cut cross-entropy: a loss without whole logits."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
        "cut_cross_entropy.CutCrossEntropyPlugin",
    )
    listing = KeyInfo(Status.ACCEPTED, None, None, _WHOLE_LOGITS, False)
    switch = "cut_cross_entropy"

    cut_cross_entropy: bool | None = accepted(_WHOLE_LOGITS, default=True)
    """Compute the loss without keeping the logits of all tokens. Default: `true`."""


class KernelsKeys(PluginKeys):
    """Kernels for mixtures of experts, among them those for 4-bit weights."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.kernels.KernelsPlugin",
        "kernels.KernelsPlugin",
    )

    use_scattermoe: bool | None = accepted(_EXPERTS)
    """ScatterMoE, Triton kernels for experts. Not together with `use_sonicmoe`. Default: off."""
    use_sonicmoe: bool | None = accepted(_EXPERTS)
    """SonicMoE, kernels for experts on Hopper and later GPUs. Default: off."""
    expert_backend: Literal["scattermoe", "sonicmoe", "eager"] | None = accepted(_EXPERTS)
    """The same choice in one key. Default: not set."""
    use_dsv4_kernels: bool | None = planned()
    """Kernels for DeepSeek V4, which also take over its attention. Default: off."""
    use_glm_dsa_kernels: bool | None = planned()
    """Kernels for GLM models with DeepSeek's sparse attention. Default: off."""
    dsv4_fp4_grouped_mode: str | None = planned(min_length=1)
    """Number format in which 4-bit experts are multiplied, such as `nvfp4`. Default: not set."""
    dsv4_fp8_nonexpert_mode: str | None = planned(min_length=1)
    """Number format for the 8-bit weights outside the experts, such as `bf16`. Default: not set."""
    dsv4_fp8_lora_kernel: bool | None = planned()
    """Fused LoRA kernel for 8-bit attention projections of DeepSeek V4. Default: off."""
    dsv4_bf16_all: bool | None = planned()
    """Cast what DeepSeek V4 keeps in fp32 to the format of the computation too. Default: off."""
    dsv4_shared_mlp_lora_kernel: bool | None = planned()
    """Fused LoRA kernel for the shared experts of DeepSeek V4; `lora_mlp_kernel: true` sets it too.
    Default: not set."""
    nonexpert_quantization: Literal["none", "bf16", "fp8_blockwise", "nf4", "nvfp4"] | None = (
        planned()
    )
    """Number format for weights outside the experts. Default: not set."""
    gemma4_fp8_nonexpert: bool | None = planned()
    """Gemma 4: older way to write `nonexpert_quantization: fp8_blockwise`. Default: off."""
    gemma4_nf4_nonexpert: bool | None = planned()
    """Gemma 4: older way to write `nonexpert_quantization: nf4`. Default: off."""
    moe_bnb_fast: bool | None = planned(default=True)
    """Unpack 4-bit experts in one kernel launch; `false` goes piece by piece, with a lower peak of memory.
    Default: `true`."""
    moe_grouped_backend: Literal["auto", "marlin", "cutlass", "deepgemm"] | None = planned()
    """Library that multiplies 4-bit experts. Default: not set."""
    moe_dequant_chunk_size: int | None = planned(ge=1)
    """Experts that are unpacked at a time. Default: not set."""
    nvfp4_merge_aware: bool | None = planned()
    """Train against the weights as they will be after the merge into a 4-bit base; needs `use_sonicmoe`
    and an adapter. Default: off."""
    nvfp4_merge_aware_start_step: (
        Annotated[int, limits(ge=0)] | Annotated[float, limits(gt=0, lt=1)] | None
    ) = planned()
    """When that begins: an optimizer step, or a share of the run. Default: at once."""


class SwanLabKeys(PluginKeys):
    """The SwanLab tracker."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.swanlab.SwanLabPlugin",
        "swanlab.SwanLabPlugin",
    )

    use_swanlab: bool | None = planned()
    """Send metrics to SwanLab. Default: on where the plugin is listed."""
    swanlab_project: str | None = planned(min_length=1)
    """Project in SwanLab. Required where the tracker is on."""
    swanlab_experiment_name: str | None = planned(min_length=1)
    """Name of the run. Default: not set."""
    swanlab_description: str | None = planned()
    """Words about the run. Default: none."""
    swanlab_mode: Literal["cloud", "local", "offline", "disabled"] | None = planned(default="cloud")
    """Where the metrics go. Default: `cloud`."""
    swanlab_workspace: str | None = planned(min_length=1)
    """Team that the project belongs to. Default: the account's own."""
    swanlab_api_key: str | None = planned(min_length=1)
    """Secret for SwanLab. It is better kept in the environment as `SWANLAB_API_KEY`. Default: not set."""
    swanlab_web_host: str | None = planned(min_length=1)
    """Web address of a SwanLab server of one's own. Default: the public one."""
    swanlab_api_host: str | None = planned(min_length=1)
    """Address of the programming interface of such a server. Default: the public one."""
    swanlab_log_model: bool | None = planned(default=False)
    """Upload checkpoints. Default: `false`."""
    swanlab_lark_webhook_url: str | None = planned(min_length=1)
    """Lark (Feishu) group that is told when the run starts and ends. Default: none."""
    swanlab_lark_secret: str | None = planned(min_length=1)
    """Secret that signs these messages; better kept in the environment. Default: not set."""
    swanlab_log_completions: bool | None = planned(default=True)
    """Preference and reward methods: log a table of completions. Default: `true`."""
    swanlab_completion_log_interval: int | None = planned(default=100, ge=1)
    """Optimizer steps between two such tables. Default: `100`."""
    swanlab_completion_max_buffer: int | None = planned(default=128, ge=1)
    """Most completions that are kept for a table. Default: `128`."""


class KDKeys(PluginKeys):
    """Distillation: learning the token probabilities of a teacher model."""

    plugins: ClassVar[tuple[str, ...]] = ("axolotl.integrations.kd.KDPlugin", "kd.KDPlugin")

    kd_trainer: bool | None = planned()
    """Train against the teacher's probabilities in the data. Default: off."""
    kd_alpha: float | None = planned(ge=0)
    """Weight of the teacher in the loss. Default: not set."""
    kd_ce_alpha: float | None = planned(ge=0)
    """Weight of the ordinary cross-entropy in the loss. Default: not set."""
    kd_temperature: float | None = planned(gt=0)
    """Temperature at which student and teacher are compared. Default: not set."""
    kd_beta: float | None = planned(ge=0, le=1)
    """Mix of the two directions of the KL divergence. Default: that of the plugin."""
    kd_normalize_topk: bool | None = planned(false_is_off=False)
    """Make the teacher's kept probabilities sum to one. Default: that of the plugin."""
    kd_temperature_min: float | None = planned(gt=0)
    """With a teacher that is asked while training: temperature at the end of the run. Default: not set."""
    kd_online_server_base_url: str | None = planned(min_length=1)
    """Address of a server with the teacher, which is asked while training. Default: none, the
    probabilities are in the data."""
    kd_online_server: Literal["vllm", "sglang"] | None = planned(default="vllm")
    """Kind of that server. Default: `vllm`."""
    kd_online_topk: int | None = planned(ge=1)
    """Likeliest tokens that the server is asked for. Default: not set."""
    kd_online_timeout: int | None = planned(default=120, ge=1)
    """Seconds to wait for an answer of the server. Default: `120`."""


class SpectrumKeys(PluginKeys):
    """Training only the layers with the most signal (Spectrum)."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.spectrum.SpectrumPlugin",
        "spectrum.SpectrumPlugin",
    )
    listing = _PLANNED

    spectrum_top_fraction: float | None = planned(default=0.5, ge=0, le=1)
    """Share of the layers of each kind that is trained. Default: `0.5`."""
    spectrum_model_name: str | None = planned(min_length=1)
    """Model whose published scan is used, where `base_model` is a copy of it. Default: `base_model`."""


class LLMCompressorBlock(Section):
    """`llmcompressor:`: what keeps a sparse model sparse."""

    recipe: dict[str, Any] | str | None = planned()
    """LLM Compressor's recipe, as a mapping or as its text or file. Required."""
    save_compressed: bool | None = planned(default=False)
    """Save the sparse weights in compressed form. Default: `false`."""


class LLMCompressorKeys(PluginKeys):
    """Fine-tuning of sparse models with LLM Compressor."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.llm_compressor.LLMCompressorPlugin",
        "llm_compressor.LLMCompressorPlugin",
    )

    llmcompressor: LLMCompressorBlock | None = planned()
    """Recipe and form of saving. Required where the plugin is listed."""


class LMEvalKeys(PluginKeys):
    """Benchmarks from EleutherAI's evaluation harness."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.lm_eval.LMEvalPlugin",
        "lm_eval.LMEvalPlugin",
    )

    lm_eval_tasks: Seq[str] | None = planned()
    """Tasks of the harness; `task:N` with N examples in the prompt. Default: none."""
    lm_eval_batch_size: int | None = planned(ge=1)
    """Rows per forward pass while evaluating. Default: that of the plugin."""
    lm_eval_post_train: bool | None = planned(default=True)
    """Evaluate when the training is over, if there are tasks. Default: `true`."""
    lm_eval_model: str | None = planned(min_length=1)
    """Model that is evaluated. Default: `hub_model_id`, else `output_dir`."""


class GrokfastKeys(PluginKeys):
    """Amplifying slowly changing gradients (Grokfast)."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.grokfast.GrokfastPlugin",
        "grokfast.GrokfastPlugin",
    )
    listing = _PLANNED

    grokfast_alpha: float | None = planned(ge=0)
    """Decay of the running mean of the gradients. Default: that of the plugin."""
    grokfast_lamb: float | None = planned(ge=0)
    """Weight with which that mean is added to the gradients. Default: that of the plugin."""


class DenseMixerKeys(PluginKeys):
    """Better router gradients for mixtures of experts (DenseMixer)."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.densemixer.DenseMixerPlugin",
        "densemixer.DenseMixerPlugin",
    )
    listing = _PLANNED
    switch = "dense_mixer"

    dense_mixer: bool | None = planned(default=True, false_is_off=True)
    """Use all experts in the forward pass of the router's gradients. Default: `true`."""


class MoraBlock(Section):
    """`mora:`: adapters with a square matrix of higher rank."""

    use_mora: bool | None = planned()
    """Build MoRA instead of LoRA matrices. Default: not set."""
    mora_type: Annotated[int, limits(ge=0)] | str | None = planned()
    """How inputs are folded into the square matrix: a number of PEFT's MoRA, or a name such as `rope`.
    Default: not set."""


class MoraKeys(PluginKeys):
    """`adapter: mora`."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.mora.MoraPlugin",
        "mora.MoraPlugin",
    )

    mora: MoraBlock | None = planned()
    """Options of MoRA. Default: not set."""


class ExpertParallelKeys(PluginKeys):
    """Experts of a mixture spread over processes with DeepEP."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.expert_parallel.ExpertParallelPlugin",
        "expert_parallel.ExpertParallelPlugin",
    )

    expert_parallel_size: int | None = planned(default=1, ge=1)
    """Processes over which the experts are spread; divides the number of experts. Default: `1`."""
    expert_parallel_backend: Literal["auto", "deep_ep", "torch"] | None = planned()
    """What sends tokens to their experts; Axolotl 0.18 has only `deep_ep`.
    Default: `deep_ep` there, `auto` since 0.21."""
    expert_parallel_num_nvl_bytes: int | None = planned(default=268435456, ge=0)
    """Bytes of DeepEP's buffer for exchange over NVLink. Default: `268435456`."""
    expert_parallel_num_rdma_bytes: int | None = planned(default=0, ge=0)
    """Bytes of DeepEP's buffer for exchange between machines. Default: `0`."""
    expert_parallel_fallback_on_unsupported: bool | None = planned(default=True)
    """Go on without DeepEP where the hardware or the model does not allow it. Default: `true`."""
    expert_parallel_token_capacity: int | None = planned(ge=1)
    """Most tokens that a process takes in for its experts. Default: no limit."""


class DiffusionBlock(Section):
    """`diffusion:`: training by filling in masked tokens."""

    noise_schedule: Literal["linear", "cosine"] | None = planned(default="linear")
    """How the share of masked tokens follows the time step. Default: `linear`."""
    min_mask_ratio: float | None = planned(default=0.1, ge=0, le=1)
    """Smallest share of masked tokens. Default: `0.1`."""
    max_mask_ratio: float | None = planned(default=0.9, ge=0, le=1)
    """Largest share of masked tokens. Default: `0.9`."""
    num_diffusion_steps: int | None = planned(default=128, ge=1)
    """Time steps of the process. Default: `128`."""
    eps: float | None = planned(default=0.001, ge=0, le=1)
    """Smallest probability of masking a token. Default: `0.001`."""
    importance_weighting: bool | None = planned(default=True)
    """Divide the loss of a token by its probability of being masked. Default: `true`."""
    mask_token_id: int | None = planned(ge=0)
    """Id of a token that serves as the mask. Default: that of `mask_token_str`."""
    mask_token_str: str | None = planned(default="<|diffusion_mask|>", min_length=1)
    """Token that serves as the mask; added where the tokenizer lacks it. Default: `<|diffusion_mask|>`."""
    generate_samples: bool | None = planned(default=True)
    """Log samples while training. Default: `true`."""
    generation_interval: int | None = planned(default=100, ge=1)
    """Optimizer steps between two times of sampling. Default: `100`."""
    num_generation_samples: int | None = planned(default=3, ge=1)
    """Samples each time. Default: `3`."""
    generation_steps: int | None = planned(default=128, ge=1)
    """Time steps for a sample. Default: `128`."""
    generation_temperature: float | None = planned(default=0.0, ge=0)
    """Temperature for sampling; 0 takes the likeliest tokens. Default: `0.0`."""
    generation_max_length: int | None = planned(default=100, ge=1)
    """Longest sample, in tokens. Default: `100`."""


class DiffusionKeys(PluginKeys):
    """Diffusion language models."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.diffusion.DiffusionPlugin",
        "diffusion.DiffusionPlugin",
    )
    listing = _PLANNED

    diffusion: DiffusionBlock | None = planned()
    """Masking, loss and samples. Default: the defaults of its keys."""


class HatcheryBlock(Section):
    """`hatchery:`: the service, and what is trained there."""

    backend: Literal["tinker", "hatchery"] | None = planned(default="tinker")
    """Which service. Default: `tinker`."""
    base_url: str | None = planned(min_length=1)
    """Address of the service. Default: the service's own."""
    api_key: str | None = planned(min_length=1)
    """Secret for the service. It is better kept in the environment. Default: not set."""
    project_id: str | None = planned(min_length=1)
    """Project that the run belongs to. Default: not set."""
    lora_rank: int | None = planned(default=32, ge=1, le=256)
    """Rank of the adapter that the service trains; `lora_r` is not read. Default: `32`."""
    train_attn: bool | None = planned(default=True)
    """Train an adapter on attention. Default: `true`."""
    train_mlp: bool | None = planned(default=True)
    """Train an adapter on the MLPs. Default: `true`."""
    train_unembed: bool | None = planned(default=True)
    """Train an adapter on the output layer. Default: `true`."""
    loss_fn: Literal["cross_entropy", "importance_sampling", "ppo", "cispo", "dro"] | None = (
        planned(default="cross_entropy")
    )
    """Loss that the service computes. Default: `cross_entropy`."""
    loss_fn_config: dict[str, Any] | None = planned()
    """Options of that loss. Default: none."""
    pipeline: bool | None = planned(default=True)
    """Send the next batch before the answer to the last one is there. Default: `true`."""
    max_sample_tokens: int | None = planned(default=256, ge=1)
    """Reinforcement learning: longest sample, in tokens. Default: `256`."""
    sample_temperature: float | None = planned(default=1.0, ge=0)
    """Reinforcement learning: temperature for sampling. Default: `1.0`."""
    num_samples: int | None = planned(default=4, ge=1)
    """Reinforcement learning: samples of a prompt. Default: `4`."""
    reward_funcs: Seq[str] | None = planned()
    """Reinforcement learning: dotted paths of reward functions. Default: none."""
    save_steps: int | None = planned(ge=1)
    """Steps between checkpoints on the service. Default: not set."""
    save_name_prefix: str | None = planned(default="checkpoint", min_length=1)
    """Beginning of their names. Default: `checkpoint`."""
    future_timeout: float | None = planned(default=600.0, gt=0)
    """Seconds to wait for one answer. Default: `600.0`."""


class HatcheryKeys(PluginKeys):
    """Training on a remote Tinker-compatible service."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.hatchery.HatcheryPlugin",
        "hatchery.HatcheryPlugin",
    )
    listing = _PLANNED

    hatchery: HatcheryBlock | None = planned()
    """The service, and what is trained there. Default: the defaults of its keys."""


class NemoGymKeys(PluginKeys):
    """Rewards from environments of NVIDIA's NeMo Gym, for `rl: grpo`."""

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.nemo_gym.NemoGymPlugin",
        "nemo_gym.NemoGymPlugin",
    )
    listing = _PLANNED
    switch = "nemo_gym_enabled"

    nemo_gym_enabled: bool | None = planned(default=True, false_is_off=True)
    """Take rewards from NeMo Gym. Default: `true`."""
    nemo_gym_dir: str | None = planned(default="~/Gym", min_length=1)
    """Folder of the NeMo Gym repository. Default: `~/Gym`."""
    nemo_gym_auto_clone: bool | None = planned(default=True)
    """Clone the repository where it is missing. Default: `true`."""
    nemo_gym_auto_start: bool | None = planned(default=True)
    """Start the environments' servers. Default: `true`."""
    nemo_gym_config_paths: Seq[str] | None = planned()
    """Configurations of the servers, relative to `nemo_gym_dir`. Default: none."""
    nemo_gym_datasets: Seq[dict[str, Any]] | None = planned()
    """Files with prompts: `path`, and `server_name` of the environment. Required with the plugin on."""
    nemo_gym_head_port: int | None = planned(default=11000, ge=1, le=65535)
    """Port of the head server. Default: `11000`."""
    nemo_gym_server_timeout: int | None = planned(default=360, ge=0)
    """Seconds to wait for the servers to start. Default: `360`."""
    nemo_gym_verify_timeout: int | None = planned(default=30, ge=0)
    """Seconds to wait for one reward. Default: `30`."""
    nemo_gym_run_timeout: int | None = planned(default=300, ge=0)
    """Seconds that one conversation may take. Default: `300`."""
    nemo_gym_model_name: str | None = planned(min_length=1)
    """Name by which NeMo Gym knows the model. Default: as `base_model`."""
    nemo_gym_multi_turn: bool | None = planned(default=False)
    """Let NeMo Gym's agents drive conversations of several turns. Default: `false`."""
    nemo_gym_max_turns: int | None = planned(default=10, ge=1)
    """`nemo_gym_multi_turn`: most turns of a conversation. Default: `10`."""


class ContextParallelPluginKeys(PluginKeys):
    """Long sequences over several processes with ringmaster, since Axolotl 0.21.

    It is loaded without being listed too; its block is `context_parallel`.
    """

    plugins: ClassVar[tuple[str, ...]] = (
        "axolotl.integrations.context_parallel.ContextParallelPlugin",
        "context_parallel.ContextParallelPlugin",
    )


PLUGIN_SECTIONS: Final[dict[str, type[PluginKeys]]] = {
    "liger": LigerKeys,
    "cut_cross_entropy": CutCrossEntropyKeys,
    "kernels": KernelsKeys,
    "swanlab": SwanLabKeys,
    "kd": KDKeys,
    "spectrum": SpectrumKeys,
    "llm_compressor": LLMCompressorKeys,
    "lm_eval": LMEvalKeys,
    "grokfast": GrokfastKeys,
    "densemixer": DenseMixerKeys,
    "mora": MoraKeys,
    "expert_parallel": ExpertParallelKeys,
    "diffusion": DiffusionKeys,
    "hatchery": HatcheryKeys,
    "nemo_gym": NemoGymKeys,
    "context_parallel": ContextParallelPluginKeys,
}
"""Name of a plugin -> the section with its keys."""

SECTION_OF_PLUGIN: Final[dict[str, str]] = {
    spelling: name for name, section in PLUGIN_SECTIONS.items() for spelling in section.plugins
}
"""What may stand in `plugins:` -> section."""
