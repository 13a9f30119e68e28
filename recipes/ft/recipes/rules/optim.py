"""Rules about the optimizer, the learning rate over time, and methods that change the steps themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules import reading
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import fsdp_key, fsdp_version, key_of, value_of
from ft.recipes.schema import FlatRecipe

DEFAULT_OPTIMIZER: Final = "adamw_torch_fused"
DEFAULT_SCHEDULER: Final = "cosine"


def _is_whole(optimizer: str) -> bool:
    return optimizer in {"muon", "q_galore_adamw8bit"} or optimizer.startswith("flash_")


def _needs_whole_weights(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`muon`, Q-GaLore and `flash_*` need weights in their own shapes; DeepSpeed and FSDP1 have flat pieces.

    `muon` and `q_galore_adamw8bit` compute with whole matrices, `flash_*` manages the precision of weights
    itself. FSDP2 keeps the shapes.
    """
    name = recipe.optim.optimizer
    if name is None or not _is_whole(name):
        return
    fsdp = fsdp_key(recipe)
    if recipe.parallel.deepspeed:
        message = f"`{name}` does not run with `deepspeed`. Write adamw_torch_fused, or use FSDP2."
        yield Finding(("optimizer",), message, keys=("deepspeed",))
    elif fsdp and fsdp_version(recipe) == 1:
        message = (
            f"`{name}` does not run with FSDP1, which `{fsdp}` means here. Write `fsdp_version: 2`."
        )
        yield Finding(("optimizer",), message, keys=("fsdp_version", fsdp))


def _projects_full_gradients(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Q-GaLore projects the gradients of whole weight matrices to a low rank.

    With an adapter those matrices are frozen, and the adapter's own have a low rank already.
    """
    name, adapter = recipe.optim.optimizer, recipe.adapter.adapter
    if name == "q_galore_adamw8bit" and adapter:
        message = (
            f"`{name}` is for training all weights, not for `adapter: {adapter}`. Write adamw_8bit."
        )
        yield Finding(("optimizer",), message, keys=("adapter",))


def _eight_bits_offloaded(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """With FSDP1 and `offload_params` the optimizer steps on the CPU; 8-bit optimizers are made for the GPU."""
    config, name = recipe.parallel.fsdp_config, recipe.optim.optimizer
    if config and config.offload_params and fsdp_version(recipe) == 1 and "8bit" in (name or ""):
        message = (
            f"`{name}` does not run on the CPU, where `fsdp_config.offload_params: true` steps."
        )
        more = " Write adamw_torch_fused."
        yield Finding(("optimizer",), message + more, keys=("fsdp_config", "fsdp_version"))


def _eight_bits_sharded(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """FSDP2 makes weights distributed tensors, which the kernels of bitsandbytes do not take; torchao's do."""
    name = recipe.optim.optimizer
    is_fsdp2 = fsdp_key(recipe) == "fsdp_config" and fsdp_version(recipe) == 2
    if is_fsdp2 and name in {"adamw_8bit", "adamw_bnb_8bit"}:
        message = f"`{name}` does not run with `fsdp_version: 2`. Write adamw_torch_8bit."
        yield Finding(("optimizer",), message, keys=("fsdp_version", "fsdp_config"))


def _is_low_rank(optimizer: str) -> bool:
    return optimizer.startswith(("galore_", "apollo_"))


def _low_rank_targets(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """GaLore and APOLLO project the gradients of the modules that a recipe names; they have no default."""
    name = recipe.optim.optimizer
    if name and _is_low_rank(name) and recipe.optim.optim_target_modules is None:
        message = (
            f"`{name}` needs `optim_target_modules`. Write `optim_target_modules: [attn, mlp]`."
        )
        yield Finding(("optimizer",), message, keys=("optim_target_modules",))


def _layerwise_steps(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A layerwise optimizer steps each layer within the backward pass and forgets the gradient at once.

    So there is nothing that several forward passes could add up.
    """
    name, accumulation = recipe.optim.optimizer, recipe.optim.gradient_accumulation_steps or 1
    if name and name.endswith("_layerwise") and accumulation > 1:
        message = f"{accumulation} does not go with `optimizer: {name}`. Write 1, and a larger `micro_batch_size`."
        yield Finding(("gradient_accumulation_steps",), message, keys=("optimizer",))


NO_BETAS: Final = frozenset(
    """
    adafactor adagrad sgd rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit lomo adalomo grokadamw
    schedule_free_sgd flash_sgd flash_sgdw sinkgd galore_adafactor galore_adafactor_layerwise
    galore_adamw galore_adamw_8bit galore_adamw_layerwise galore_adamw_8bit_layerwise
    """.split()
)
"""Optimizers to which neither transformers nor Axolotl hands the three numbers of Adam."""
NO_EPSILON: Final = NO_BETAS | {
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "flash_lion",
}
OWN_KEYS: Final[Mapping[str, str]] = {
    "adam_beta3": "came_pytorch",
    "adam_epsilon2": "came_pytorch",
    "dion_": "dion",
    "qgalore_": "q_galore_adamw8bit",
}
"""Key, or how keys begin -> the one optimizer that reads them."""


def _optimizer_reads(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Every optimizer has numbers of its own; those of another one are not handed to it.

    Axolotl warns about the numbers of Adam where the name lacks `adamw`, also where they are read, as by
    `lion_8bit`, and where the default optimizer is meant.
    """
    name = recipe.optim.optimizer or DEFAULT_OPTIMIZER
    for key in type(recipe.optim).model_fields:
        if getattr(recipe.optim, key) is None:
            continue
        if not _is_read(key, name):
            message = f"is not read by the optimizer, {name}. Take it out."
            yield Finding((key,), message, Severity.WARNING, keys=("optimizer",))


def _is_read(key: str, optimizer: str) -> bool:
    if key in {"adam_beta1", "adam_beta2"}:
        return optimizer not in NO_BETAS
    if key == "adam_epsilon":
        return optimizer not in NO_EPSILON
    if key == "optim_target_modules":
        return _is_low_rank(optimizer) or optimizer == "q_galore_adamw8bit"
    return all(optimizer == owner for begin, owner in OWN_KEYS.items() if key.startswith(begin))


def _one_owner_of_groups(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`lr_groups` and LoRA+ both split the weights into groups with a learning rate each; only one can."""
    ratio = recipe.adapter.loraplus_lr_ratio
    if ratio is not None and recipe.optim.lr_groups:
        message = f"stands beside `loraplus_lr_ratio: {ratio:g}`; both set learning rates by group. Keep one."
        yield Finding(("lr_groups",), message, keys=("loraplus_lr_ratio",))


def _cosine_only(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The three keys bend the cosine schedule; Axolotl looks at them for no other one."""
    name = recipe.optim.lr_scheduler or DEFAULT_SCHEDULER
    for key in ("cosine_min_lr_ratio", "cosine_constant_lr_ratio", "lr_quadratic_warmup"):
        if name != "cosine" and getattr(recipe.optim, key):
            message = (
                f"has no effect with `lr_scheduler: {name}`. Write cosine there, or take this out."
            )
            yield Finding((key,), message, Severity.WARNING, keys=("lr_scheduler",))


def _constant_at_what(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`cosine_constant_lr_ratio` says from where on the rate stays at `cosine_min_lr_ratio` times the highest.

    Without that one Axolotl takes the plain cosine.
    """
    share = recipe.optim.cosine_constant_lr_ratio
    name = recipe.optim.lr_scheduler or DEFAULT_SCHEDULER
    if share and name == "cosine" and not recipe.optim.cosine_min_lr_ratio:
        message = (
            f"{share:g} has no effect without `cosine_min_lr_ratio`. Add it: 0.1, for example."
        )
        yield Finding(
            ("cosine_constant_lr_ratio",), message, Severity.WARNING, ("cosine_min_lr_ratio",)
        )


WARMUP_OF: Final[Mapping[str, str]] = {
    "constant": "Write constant_with_warmup there, or take this out.",
    "reduce_lr_on_plateau": "Take it out.",
}
"""Schedule without a warm-up -> the way out."""


def _warmup_is_read(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`constant` and `reduce_lr_on_plateau` begin at the full learning rate, whatever the warm-up says."""
    name = recipe.optim.lr_scheduler or DEFAULT_SCHEDULER
    for key in ("warmup_steps", "warmup_ratio"):
        value = getattr(recipe.optim, key)
        if value and name in WARMUP_OF:
            value = f"{value:g}" if isinstance(value, float) else value
            message = f"{value} has no effect with `lr_scheduler: {name}`. {WARMUP_OF[name]}"
            yield Finding((key,), message, Severity.WARNING, keys=("lr_scheduler",))


def _relora_needs(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """ReLoRA merges a low-rank adapter at every restart, so it needs an adapter and a number of steps."""
    if not recipe.optim.relora:
        return
    if recipe.optim.jagged_restart_steps is None:
        message = "needs `jagged_restart_steps`. Write `jagged_restart_steps: 150`, for example."
        yield Finding(("relora",), message, keys=("jagged_restart_steps",))
    adapter = recipe.adapter.adapter
    if adapter not in {"lora", "qlora"}:
        said = f"not `adapter: {adapter}`" if adapter else "and `adapter` is not set"
        message = f"needs a low-rank adapter, {said}. Write `adapter: lora`."
        yield Finding(("relora",), message, keys=("adapter",))


def _relora_alone(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A restart of ReLoRA changes the base weights and clears the optimizer's state in place.

    Sharded weights and states cannot be changed so, and a schedule of one cycle has no restarts.
    """
    if not recipe.optim.relora:
        return
    fsdp = fsdp_key(recipe)
    reasons = (
        (fsdp, fsdp is not None),
        ("deepspeed", bool(recipe.parallel.deepspeed)),
        ("lr_scheduler: one_cycle", recipe.optim.lr_scheduler == "one_cycle"),
    )
    for said, is_there in reasons:
        if said and is_there:
            message = f"`true` does not go with `{said}`. Take out one of the two."
            yield Finding(("relora",), message, keys=(key_of(said),))


SWITCHES: Final[Mapping[str, str]] = {
    "relora_prune_method": "relora",
    "relora_prune_ratio": "relora",
    "relora_cpu_offload": "relora",
    "jagged_restart_warmup_steps": "jagged_restart_steps",
    "jagged_restart_anneal_steps": "jagged_restart_steps",
    "loss_watchdog_patience": "loss_watchdog_threshold",
    "eaft_alpha": "use_eaft",
    "eaft_k": "use_eaft",
    "lisa_n_layers": "lisa_step_interval",
    "lisa_step_interval": "lisa_n_layers",
    "lisa_layers_attribute": "lisa_n_layers",
    "loraplus_lr_embedding": "loraplus_lr_ratio",
}
"""Key -> key without which nothing reads it."""


def _switched_off(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A setting of something that is switched off does nothing; usually the switch was forgotten."""
    for key, switch in SWITCHES.items():
        if value_of(recipe, key) and not value_of(recipe, switch):
            other = f"`{switch}: true`" if switch in {"relora", "use_eaft"} else f"`{switch}`"
            message = f"has no effect without {other}. Add that, or take this out."
            yield Finding((key,), message, Severity.WARNING, keys=(switch,))


def _restarts_too_soon(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Between two restarts the learning rate rises, stays and falls.

    Where rise and fall take longer than there is time, it never reaches its full height.
    """
    optim = recipe.optim
    every = optim.jagged_restart_steps
    # 0 and false are read as the defaults, in Axolotl too.
    rise, fall = optim.jagged_restart_warmup_steps or 10, optim.jagged_restart_anneal_steps or 1
    if every and rise + fall > every:
        message = (
            f"{every} is shorter than {rise} steps up and {fall} down. Write {rise + fall} or more."
        )
        keys = ("jagged_restart_warmup_steps", "jagged_restart_anneal_steps")
        yield Finding(("jagged_restart_steps",), message, Severity.WARNING, keys)


HIGH_RATE: Final = 1


def _rate_is_a_rate(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A rate above 1 moves weights further than they are large; usually the minus of `2e-4` was forgotten.

    Only optimizers that find the rate themselves are given one of 1.
    """
    for key in ("learning_rate", "embedding_lr"):
        rate = value_of(recipe, key)
        if rate is not None and rate > HIGH_RATE:
            message = f"{rate:g} is more than any training stands. Write 2e-4, which is usual for LoRA, or less."
            yield Finding((key,), message, Severity.WARNING)


def _dft_alone(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """DFT weighs the loss of SFT anew for each token; another loss, or one that never has single tokens, cannot be."""
    if not recipe.optim.use_dft:
        return
    losses: tuple[str, ...] = (
        "use_eaft",
        "rl",
        "reward_model",
        "process_reward_model",
        "cut_cross_entropy",
    )
    losses += ("liger_fused_linear_cross_entropy", "chunked_cross_entropy")
    others = [key for key in losses if value_of(recipe, key)]
    if (recipe.parallel.context_parallel_size or 1) > 1:
        others.append("context_parallel_size")
    for key in others:
        message = f"`true` does not go with {reading.said(recipe, key)}. Keep one."
        yield Finding(("use_dft",), message, keys=(key,))


RULES: Final = (
    Rule("R120", _needs_whole_weights),
    Rule("R121", _projects_full_gradients),
    Rule("R122", _eight_bits_offloaded),
    Rule("R123", _eight_bits_sharded),
    Rule("R124", _low_rank_targets),
    Rule("R125", _layerwise_steps),
    Rule("R126", _optimizer_reads),
    Rule("R127", _one_owner_of_groups),
    Rule("R128", _cosine_only),
    Rule("R129", _constant_at_what),
    Rule("R130", _warmup_is_read),
    Rule("R131", _relora_needs),
    Rule("R132", _relora_alone),
    Rule("R133", _switched_off),
    Rule("R134", _restarts_too_soon),
    Rule("R135", _rate_is_a_rate),
    Rule("R138", _dft_alone),
)
