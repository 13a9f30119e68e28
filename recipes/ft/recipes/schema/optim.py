"""Keys about steps: batch, optimizer, learning rate, length of the run."""

from typing import Annotated, Any, Final, Literal

from ft.recipes.schema.base import Section, Seq, implemented, limits, planned

MAX_ROWS: Final = 1_000_000
"""Of a batch: with more, one step would take all data that there is."""
MAX_STEPS: Final = 1_000_000_000
MAX_RATE: Final = 100
"""Where rates are scaled by the optimizer itself they are about 1; nowhere are they this high."""

OptimizerName = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_anyprecision",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_8bit",
    "paged_ademamix_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "adafactor",
    "adagrad",
    "sgd",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "stable_adamw",
    "optimi_adamw",
    "ao_adamw_4bit",
    "ao_adamw_8bit",
    "ao_adamw_fp8",
    "adopt_adamw",
    "came_pytorch",
    "muon",
    "dion",
    "sinkgd",
    "flash_adamw",
    "flash_adam",
    "flash_sgd",
    "flash_sgdw",
    "flash_lion",
    "q_galore_adamw8bit",
]

SchedulerName = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "warmup_stable_decay",
    "greedy",
    "one_cycle",
    "rex",
]


class LrGroup(Section):
    """One entry of `lr_groups`: modules with a learning rate of their own."""

    name: str
    """Name of the group. Required."""
    modules: Seq[str]
    """Parts of parameter names; a parameter whose name contains one of them is in the group. Required."""
    lr: Annotated[float, limits(gt=0, le=MAX_RATE)]
    """Highest learning rate of the group. Required."""


class OptimKeys(Section):
    """How the weights move."""

    micro_batch_size: int | None = implemented(default=1, ge=1, le=MAX_ROWS)
    """Rows per process and forward pass. Default: `1`."""
    gradient_accumulation_steps: int | None = implemented(default=1, ge=1, le=MAX_ROWS)
    """Forward passes per optimizer step. Default: `1`."""
    num_epochs: float | None = implemented(default=1, gt=0, le=10_000)
    """Passes over the data. Default: `1`."""
    max_steps: int | None = implemented(ge=1, le=MAX_STEPS)
    """Most optimizer steps; the run ends at this or at `num_epochs`, whichever comes first.
    Default: no limit."""
    optimizer: OptimizerName | None = implemented(
        default="adamw_torch_fused", runs=("adamw_torch", "adamw_torch_fused")
    )
    """How gradients become steps. Names with 8bit, 4bit or fp8 keep a smaller optimizer state, `paged_` ones
    let it move to the CPU. Default: `adamw_torch_fused`."""
    learning_rate: float | None = implemented(gt=0, le=MAX_RATE)
    """Highest learning rate. Required."""
    lr_scheduler: SchedulerName | None = implemented(
        default="cosine", runs=("cosine", "linear", "constant", "constant_with_warmup")
    )
    """How the learning rate falls. Default: `cosine`."""
    warmup_steps: int | None = implemented(ge=0, le=MAX_STEPS)
    """Optimizer steps over which the learning rate rises from zero. Not together with `warmup_ratio`.
    Default: from `warmup_ratio`."""
    warmup_ratio: float | None = implemented(ge=0, le=1)
    """Share of all steps over which it rises.
    Default: 0.03, and at most 100 steps, unless one of the two is set."""
    weight_decay: float | None = implemented(default=0, ge=0, le=100)
    """Decoupled weight decay. Default: `0`."""
    adam_beta1: float | None = implemented(default=0.9, ge=0, lt=1)
    """Decay of the first moment. Default: `0.9`."""
    adam_beta2: float | None = implemented(default=0.999, ge=0, lt=1)
    """Decay of the second moment. Default: `0.999`."""
    adam_epsilon: float | None = implemented(default=1e-8, gt=0)
    """Added to the denominator. Default: `1e-08`."""
    max_grad_norm: float | None = implemented(default=1, ge=0)
    """Gradients are scaled down to this norm; 0 turns it off. Default: `1`."""
    seed: int | None = implemented(default=42, ge=0, lt=2**32)
    """Of the data order, the adapter's first weights and dropout. Default: `42`."""

    auto_find_batch_size: bool | None = planned()
    """Start again with a smaller `micro_batch_size` when the GPU runs out of memory. Default: off."""

    optim_args: dict[str, Any] | str | None = planned()
    """More arguments for the optimizer: a mapping, or text like `rank=64,scale=0.3`. Default: none."""
    optim_target_modules: Seq[str] | Literal["all_linear"] | None = planned()
    """Modules that a low-rank optimizer (`galore_*`, `apollo_*`, `q_galore_adamw8bit`) projects: parts of
    names, or `all_linear`. Default: not set; `attn` and `mlp` for `q_galore_adamw8bit`."""
    adam_beta3: float | None = planned(ge=0, lt=1)
    """Third decay of `came_pytorch`. Default: the optimizer's."""
    adam_epsilon2: float | None = planned(gt=0)
    """Second small constant of `came_pytorch`. Default: the optimizer's."""

    embedding_lr: float | None = planned(gt=0, le=MAX_RATE)
    """Highest learning rate of the embeddings. Default: `learning_rate`."""
    embedding_lr_scale: float | None = planned(gt=0)
    """Learning rate of the embeddings as a multiple of `learning_rate`. Default: not set, the same rate."""
    lr_groups: Seq[LrGroup] | None = planned()
    """Groups of modules with their own learning rate. Not together with `loraplus_lr_ratio`.
    Default: none."""
    lr_scheduler_kwargs: dict[str, Any] | None = planned()
    """More arguments for the schedule that `lr_scheduler` names. Default: none."""
    lr_quadratic_warmup: bool | None = planned()
    """With `cosine`: rise with the square of the step instead of in a line. Default: off."""
    cosine_min_lr_ratio: float | None = planned(ge=0, le=1)
    """With `cosine`: fall to this share of the highest learning rate. Default: not set, to zero."""
    cosine_constant_lr_ratio: float | None = planned(ge=0, le=1)
    """Share of all steps after which the rate stays at `cosine_min_lr_ratio`, which must be set as well.
    Default: not set."""
    lr_div_factor: float | None = planned(gt=0)
    """Divisor of the learning rate; Axolotl accepts the key and does nothing with it. Default: not set."""

    loss_watchdog_threshold: float | None = planned(ge=0)
    """End the run when the training loss stays above this. Default: not set, no watchdog."""
    loss_watchdog_patience: int | None = planned(default=3, ge=1)
    """Steps in a row above `loss_watchdog_threshold` that end the run. Default: `3`."""
    neftune_noise_alpha: float | None = planned(gt=0)
    """Scale of the noise that NEFTune adds to the embeddings while training; 5 is usual.
    Default: no noise."""
    use_eaft: bool | None = planned()
    """EAFT: weigh the loss of each token by the entropy of the model's prediction. Default: off."""
    eaft_alpha: float | None = planned(default=1.0, ge=0)
    """Exponent of the entropy in the weight. Default: `1.0`."""
    eaft_k: int | None = planned(default=20, ge=1)
    """Number of largest logits from which the entropy is estimated. Default: `20`."""
    use_dft: bool | None = planned()
    """DFT: weigh the loss of each token by its own predicted probability. Since Axolotl 0.21. Default: off."""

    dion_lr: float | None = planned(gt=0)
    """Learning rate of the matrices that `dion` moves; `learning_rate` is for the others.
    Default: the optimizer's."""
    dion_momentum: float | None = planned(ge=0, lt=1)
    """Momentum of `dion`. Default: the optimizer's."""
    dion_rank_fraction: float | None = planned(default=1.0, gt=0, le=1)
    """Rank of the approximation in `dion` as a share of the full rank. Default: `1.0`."""
    dion_rank_multiple_of: int | None = planned(default=1, ge=1)
    """That rank is rounded up to a multiple of this, so that it shards evenly. Default: `1`."""

    qgalore_rank: int | None = planned(default=256, ge=1)
    """Rank to which `q_galore_adamw8bit` projects gradients. Default: `256`."""
    qgalore_update_proj_gap: int | None = planned(default=200, ge=1)
    """Most steps between two computations of the projection. Default: `200`."""
    qgalore_scale: float | None = planned(default=0.25, gt=0)
    """Factor on the gradient after it is projected back. Default: `0.25`."""
    qgalore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] | None = planned(
        default="std"
    )
    """Side of the matrix that is projected. Default: `std`."""
    qgalore_proj_quant: bool | None = planned(default=True)
    """Keep the projection as small integers. Default: `true`."""
    qgalore_proj_bits: int | None = planned(default=4, ge=1, le=8)
    """Bits of those integers. Default: `4`."""
    qgalore_proj_group_size: int | None = planned(default=256, ge=-1)
    """Values that share one scale; must divide the projection's last dimension. Default: `256`."""
    qgalore_cos_threshold: float | None = planned(default=0.4, ge=-1, le=1)
    """Cosine similarity of old and new projection above which a layer counts as stable. Default: `0.4`."""
    qgalore_gamma_proj: int | None = planned(default=2, ge=1)
    """Factor by which the gap between two computations grows for a stable layer. Default: `2`."""
    qgalore_queue_size: int | None = planned(default=5, ge=1)
    """Similarities that are averaged to decide whether a layer is stable. Default: `5`."""

    lisa_n_layers: int | None = planned(ge=1)
    """LISA: train only so many layers at a time, chosen at random. Default: not set, all layers."""
    lisa_step_interval: int | None = planned(ge=1)
    """Optimizer steps after which LISA chooses other layers. Default: not set."""
    lisa_layers_attribute: str | None = planned(default="model.layers")
    """Where in the model LISA finds the list of layers. Default: `model.layers`."""

    relora: bool | None = planned()
    """ReLoRA: merge the adapter into the weights at every restart and begin a new one. Needs
    `jagged_restart_steps`. Default: off."""
    relora_prune_method: Literal["magnitude", "random", "reset"] | None = planned(
        default="magnitude"
    )
    """What goes from the optimizer's state at a restart: its smallest values, random ones, or nearly all.
    Default: `magnitude`."""
    relora_prune_ratio: float | None = planned(ge=0, le=1)
    """Share of the optimizer's state that goes.
    Default: 0.999 with `relora_prune_method: reset`, else 0.9."""
    relora_cpu_offload: bool | None = planned()
    """Merge on the CPU, which needs a little less GPU memory. Default: off."""
    jagged_restart_steps: int | None = planned(ge=1)
    """Optimizer steps between two restarts of the learning rate. Default: not set, no restarts."""
    jagged_restart_warmup_steps: int | None = planned(default=10, ge=0)
    """Steps over which the learning rate rises again after a restart; 0 too means 10. Default: `10`."""
    jagged_restart_anneal_steps: int | None = planned(default=1, ge=0)
    """Steps over which it falls before a restart; 0 too means 1. Default: `1`."""
