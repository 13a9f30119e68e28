"""Keys about what is optimised: the training method."""

from typing import Annotated, Any, Literal

from ft.recipes.schema.base import Section, Seq, limits, planned


class TrlBlock(Section):
    """`trl:`: how online methods generate, reward and update. Most keys are for `rl: grpo` and `rl: gdpo`."""

    beta: float | None = planned(ge=0)
    """Weight of the KL term that holds the policy near the reference; must agree with `rl_beta`.
    Default: `rl_beta`."""
    loss_type: str | None = planned(min_length=1)
    """How token losses become one loss: `grpo`, `bnpo`, `dr_grpo`, or another name that TRL knows.
    Default: TRL's."""
    epsilon: float | None = planned(ge=0)
    """How far the probability ratio may fall below 1 before it is clipped. Default: TRL's."""
    epsilon_high: float | None = planned(ge=0)
    """How far the ratio may rise above 1 before it is clipped. Default: `epsilon`."""
    num_iterations: int | None = planned(ge=1)
    """Updates on the same completions. Default: TRL's."""
    importance_sampling_level: Literal["token", "sequence"] | None = planned()
    """Probability ratios per token, or one per sequence (GSPO). Default: per token."""
    scale_rewards: bool | None = planned(default=True)
    """Divide the advantages of a group by the standard deviation of its rewards. Default: `true`."""
    mask_truncated_completions: bool | None = planned(default=False)
    """Leave completions that hit `max_completion_length` out of the loss. Default: `false`."""
    use_liger_loss: bool | None = planned()
    """Liger's fused GRPO loss, which takes less memory. Default: off."""

    reward_funcs: Seq[str] | None = planned(min_length=1)
    """Rewards: `module.function`, importable from the working folder, or a reward model on the hub.
    Default: none; GRPO and GDPO need at least one."""
    reward_weights: Seq[float] | None = planned(min_length=1)
    """Weight of each of `reward_funcs`, in their order. Default: all weigh the same."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] | None = (
        planned()
    )
    """With several rewards: add them and normalize the sum (GRPO), or normalize each first (GDPO).
    Default: that of the method."""
    reward_num_workers: int | None = planned(default=1, ge=1)
    """Processes that compute rewards; read with `use_data_producer` only. Default: `1`."""

    num_generations: int | None = planned(ge=1)
    """Completions per prompt, which are compared with each other; GRPO needs two or more.
    Default: TRL's."""
    generation_batch_size: int | None = planned(ge=1)
    """Completions that are generated at a time, over all processes; a multiple of `num_generations`.
    Default: those of one optimizer step."""
    max_completion_length: int | None = planned(ge=1)
    """Longest completion, in tokens. Default: TRL's."""
    temperature: float | None = planned(ge=0)
    """Temperature for sampling completions. Default: TRL's."""
    top_p: float | None = planned(gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability. Default: TRL's."""
    top_k: int | None = planned(ge=-1)
    """Sample from this many likeliest tokens; 0 or -1: from all. Default: TRL's."""
    min_p: float | None = planned(ge=0, le=1)
    """Never sample a token with less than this share of the likeliest token's probability.
    Default: no such limit."""
    repetition_penalty: float | None = planned(gt=0)
    """Above 1: tokens of the prompt and of the text so far become less likely. Default: TRL's."""
    generation_kwargs: dict[str, Any] | None = planned()
    """More options for sampling, such as `stop_token_ids`, given to vLLM's sampler. Default: none."""
    chat_template_kwargs: dict[str, Any] | None = planned()
    """Variables for the chat template when prompts are rendered, such as `enable_thinking`.
    Default: none."""
    rollout_func: str | None = planned(min_length=1)
    """`module.function`, importable from the working folder, that makes the completions itself.
    Default: the model is sampled."""
    log_completions: bool | None = planned(default=False)
    """Log some of the completions with their rewards. Default: `false`."""
    num_completions_to_print: int | None = planned(ge=0)
    """Completions that `log_completions` prints. Default: all."""

    sync_ref_model: bool | None = planned(default=False)
    """Move the reference model towards the policy now and then. Default: `false`."""
    ref_model_mixup_alpha: float | None = planned(default=0.9, ge=0, le=1)
    """Share of the policy in the mix at such a step; read with `sync_ref_model`. Default: `0.9`."""
    ref_model_sync_steps: int | None = planned(default=64, ge=1)
    """Optimizer steps between two such steps; read with `sync_ref_model`. Default: `64`."""

    use_vllm: bool | None = planned(default=False)
    """Generate with vLLM instead of the training model. Default: `false`."""
    vllm_mode: Literal["server", "colocate"] | None = planned()
    """vLLM as a server of its own, or inside the training processes. Default: `server` with `use_vllm`."""
    vllm_server_host: str | None = planned(default="0.0.0.0", min_length=1)  # noqa: S104
    """Where the vLLM server is reached. Default: `0.0.0.0`."""
    vllm_server_port: int | None = planned(default=8000, ge=1, le=65535)
    """Port of the vLLM server. Default: `8000`."""
    vllm_server_timeout: int | None = planned(ge=0)
    """Seconds to wait for the server to be up. Default: TRL's."""
    vllm_guided_decoding_regex: str | None = planned(min_length=1)
    """Regular expression that completions have to match. Default: no limit on the text."""
    vllm_enable_sleep_mode: bool | None = planned()
    """`vllm_mode: colocate`: free vLLM's GPU memory while training. Default: off."""
    vllm_lora_sync: bool | None = planned(default=False)
    """Give vLLM the adapter through files instead of the merged weights over NCCL. Default: `false`."""

    use_data_producer: bool | None = planned(default=False)
    """The asynchronous trainer, in which generation is a component of its own. Default: `false`."""
    async_prefetch: bool | None = planned(default=False)
    """Generate the next batch while training on this one, with weights that are a bit older.
    Default: `false`."""
    prefetch_depth: int | None = planned(ge=1)
    """Batches that are generated ahead. Default: that of the asynchronous trainer."""
    vllm_sync_interval: int | None = planned(ge=1)
    """Optimizer steps between two copies of the weights to vLLM; asynchronous trainer only.
    Default: that of the asynchronous trainer."""
    streaming_partial_batch: bool | None = planned()
    """Score prompt group by prompt group instead of the whole batch. Default: off."""
    streaming_min_groups: int | None = planned(ge=1)
    """Least prompt groups that are scored together. Default: that of the asynchronous trainer."""
    skip_zero_advantage_batches: bool | None = planned(default=True)
    """Skip forward and backward pass where all advantages are zero. Default: `true`."""
    replay_buffer_size: int | None = planned(default=0, ge=0)
    """Groups with differing rewards that are kept to replace groups without any signal; 0: none.
    Default: `0`."""
    replay_recompute_logps: bool | None = planned(default=True)
    """Compute the old log probabilities of replayed groups with the current weights. Default: `true`."""
    reroll_start_fraction: float | None = planned(default=1.0, ge=0, le=1)
    """Share of the run after which prompts without signal are tried again; 1 turns it off.
    Default: `1.0`."""
    reroll_max_groups: int | None = planned(default=1, ge=1)
    """Most prompt groups of a batch that are such prompts. Default: `1`."""

    vllm_importance_sampling_correction: bool | None = planned()
    """Correct for the difference between vLLM's probabilities and the training model's. Default: TRL's."""
    vllm_importance_sampling_mode: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = planned()
    """Per token or per sequence, and whether ratios over the cap are cut or left out. Default: TRL's."""
    vllm_importance_sampling_cap: float | None = planned(gt=0)
    """Highest ratio for that correction. Default: TRL's."""
    off_policy_mask_threshold: float | None = planned(ge=0)
    """KL divergence from which a sequence is too far off the policy to be used. Default: no limit."""
    use_bias_correction_kl: bool | None = planned()
    """Apply the importance ratio to the KL term as well. Default: off."""


class VllmBlock(Section):
    """`vllm:`: the server that generates completions for online methods."""

    device: str | None = planned(default="auto", min_length=1)
    """Device that the server runs on. Default: `auto`."""
    tensor_parallel_size: int | None = planned(ge=1)
    """GPUs that share each matrix. Default: the server's."""
    data_parallel_size: int | None = planned(ge=1)
    """Copies of the model that serve side by side. Default: the server's."""
    gpu_memory_utilization: float | None = planned(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that the server may take. Default: `0.9`."""
    dtype: str | None = planned(default="auto", min_length=1)
    """Number format of the weights. Default: `auto`."""
    max_model_len: int | None = planned(ge=1)
    """Longest prompt and completion together, in tokens. Default: the model's."""
    enable_prefix_caching: bool | None = planned()
    """Keep the computation of a prefix that several prompts share. Default: the server's."""
    host: str | None = planned(default="0.0.0.0", min_length=1)  # noqa: S104
    """Address that the server listens on. Default: `0.0.0.0`."""
    port: int | None = planned(default=8000, ge=1, le=65535)
    """Port that the server listens on. Default: `8000`."""
    enable_reasoning: bool | None = planned()
    """Separate the reasoning from the answer. Default: off."""
    reasoning_parser: str | None = planned(min_length=1)
    """vLLM's name for how the reasoning is recognized. Default: none."""
    enforce_eager: bool | None = planned()
    """Run without CUDA graphs, which some hybrid models need. Default: the server's."""
    serve_module: str | None = planned(min_length=1)
    """Python module with the server. Default: Axolotl's own."""
    worker_extension_cls: str | None = planned(min_length=1)
    """Class that receives new weights inside vLLM's workers. Default: TRL's."""


class EbftBlock(Section):
    """`ebft:`: energy-based fine-tuning. Rewards are features of a frozen copy of the model."""

    mode: Literal["structured", "strided"] | None = planned(default="structured")
    """Question and answer pairs with vLLM, or running text without it. Default: `structured`."""
    feature_layers: Seq[Annotated[float, limits(ge=0, le=1)]] | None = planned(
        default=[0.25, 0.5, 0.75], min_length=1
    )
    """Depths, as shares of all layers, whose features are compared. Default: `[0.25, 0.5, 0.75]`."""
    embed_method: Literal["last_token", "mean_pooling", "completion_mean", "concat"] | None = (
        planned(default="last_token")
    )
    """How token features become one vector. Default: `last_token`."""
    use_whitening: bool | None = planned(default=False)
    """Whiten the features before they are compared. Default: `false`."""
    alignment_coef: float | None = planned(default=1.0, ge=0)
    """Weight of the similarity to the true completion in the reward. Default: `1.0`."""
    diversity_coef: float | None = planned(default=1.0, ge=0)
    """Weight of the penalty for samples that are alike. Default: `1.0`."""
    rl_coef: float | None = planned(default=1.0, ge=0)
    """Weight of the policy gradient in the loss. Default: `1.0`."""
    ce_coef: float | None = planned(default=0.0, ge=0)
    """Weight of the cross-entropy on the true tokens in the loss. Default: `0.0`."""
    advantage_estimator: Literal["rloo", "group_norm", "reinforce"] | None = planned(default="rloo")
    """What a reward is compared with: the other samples, mean and deviation of the group, or nothing.
    Default: `rloo`."""
    adaptive_max_tokens: bool | None = planned(default=True)
    """Limit the length of completions by the true ones of the batch. Default: `true`."""
    gt_length_multiplier: float | None = planned(default=1.5, ge=0.1)
    """That limit, in lengths of the true completion. Default: `1.5`."""
    stride: int | None = planned(default=8, ge=1)
    """`mode: strided`: tokens between two places where text is generated. Default: `8`."""
    context_length: int | None = planned(default=8, ge=1)
    """`mode: strided`: tokens of context at each of these places. Default: `8`."""
    generate_max_len: int | None = planned(default=8, ge=1)
    """`mode: strided`: tokens that are generated at each place. Default: `8`."""
    n_samples_per_prompt: int | None = planned(default=4, ge=1)
    """`mode: strided`: independent samples per document. Default: `4`."""
    temperature: float | None = planned(default=0.6, ge=0)
    """`mode: strided`: temperature for sampling. Default: `0.6`."""
    top_p: float | None = planned(default=1.0, ge=0, le=1)
    """`mode: strided`: sample from the likeliest tokens that together have this probability.
    Default: `1.0`."""
    min_completion_prefix: int | None = planned(default=0, ge=0)
    """`mode: strided`: tokens of the completion before the first place. Default: `0`."""


class MethodKeys(Section):
    """How the model learns. A recipe without these keys means supervised fine-tuning."""

    rl: Literal["dpo", "ipo", "simpo", "orpo", "kto", "grpo", "gdpo", "ebft"] | None = planned()
    """Method for learning from preferences or rewards. Default: none, supervised fine-tuning."""
    rl_beta: float | None = planned(ge=0)
    """How strongly the model is held near the reference (DPO, IPO, KTO, GRPO), or the scale of the
    rewards (SimPO). Default: that of the method."""
    max_prompt_len: int | None = planned(ge=1)
    """Longest prompt, in tokens, for methods that treat prompt and answer apart. Default: no limit."""
    precompute_ref_log_probs: bool | None = planned()
    """DPO: run the reference model once over all rows before training, not in every step. Default: off."""

    dpo_loss_type: Seq[str] | None = planned(min_length=1)
    """DPO: names of one or several losses that are added, such as `sigmoid`, `hinge`, `ipo`.
    Default: `sigmoid` alone."""
    dpo_loss_weights: Seq[Annotated[float, limits(ge=0)]] | None = planned(min_length=1)
    """DPO: a weight for each of `dpo_loss_type`, which must be set. Default: all weigh the same."""
    dpo_label_smoothing: float | None = planned(ge=0, le=0.5)
    """DPO: assumed share of pairs whose preference is the wrong way round. Default: 0."""
    dpo_use_weighting: bool | None = planned()
    """DPO: weigh pairs by how likely the model finds them (WPO). Default: off."""
    dpo_padding_free: bool | None = planned()
    """DPO: lay the rows of a batch end to end instead of padding them. Default: off."""
    dpo_use_liger_kernel: bool | None = planned()
    """DPO: Liger's fused loss, which takes less memory. Default: off."""
    orpo_alpha: float | None = planned(ge=0)
    """ORPO: weight of the odds ratio beside the ordinary loss. Default: TRL's."""
    simpo_gamma: float | None = planned(ge=0)
    """SimPO: margin by which the chosen answer should win. Default: TRL's."""
    cpo_alpha: float | None = planned(ge=0)
    """SimPO: weight of the ordinary loss on chosen answers beside the preference loss. Default: TRL's."""
    kto_desirable_weight: float | None = planned(default=1.0, ge=0)
    """KTO: weight of rows that are marked as good; raise it where they are the fewer. Default: `1.0`."""
    kto_undesirable_weight: float | None = planned(default=1.0, ge=0)
    """KTO: weight of rows that are marked as bad. Default: `1.0`."""

    reward_model: bool | None = planned()
    """Train a model that scores answers, from pairs of a chosen and a rejected one. Default: off."""
    process_reward_model: bool | None = planned()
    """Train a model that scores each step of an answer. Default: off."""
    center_rewards_coefficient: float | None = planned(ge=0)
    """Reward models: weight of a term that pulls the mean score to zero; 0.01 is usual.
    Default: no such term."""

    trl: TrlBlock | None = planned()
    """Generation, rewards and updates of online methods. Default: the defaults of its keys."""
    vllm: VllmBlock | None = planned()
    """The vLLM server of online methods. Default: the defaults of its keys."""
    ebft: EbftBlock | None = planned()
    """Options of `rl: ebft`, which needs the block. Default: not set."""
