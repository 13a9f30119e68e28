"""Rules about how the model learns: preferences, rewards, and the arithmetic of online methods."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import (
    BITS,
    effective,
    fsdp_key,
    fsdp_version,
    is_on,
    key_of,
    quoted,
    world_size,
)
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.plugins import SECTION_OF_PLUGIN

GROUPED: Final = frozenset({"grpo", "gdpo"})
"""Methods that compare the completions of one prompt with each other."""


def _one_method(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`rl`, `reward_model` and `process_reward_model` each choose a loss and a trainer of their own."""
    method = recipe.method
    said = [f"rl: {method.rl}"] if method.rl else []
    said += [
        f"{key}: true" for key in ("reward_model", "process_reward_model") if getattr(method, key)
    ]
    for other in said[1:]:
        message = f"`true` stands beside `{said[0]}`; each is a method of its own. Keep one."
        yield Finding((key_of(other),), message, keys=(key_of(said[0]),))


def _packing(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Preference and reward methods score whole answers; packing lays several rows into one.

    Their trainers look for one prompt and its answers in a row, and could not tell which score is whose.
    """
    method = recipe.method
    said = f"rl: {method.rl}" if method.rl else "reward_model: true"
    if not (method.rl or method.reward_model):
        return
    for key in ("sample_packing", "eval_sample_packing"):
        if getattr(recipe.data, key):
            message = f"`true` does not go with `{said}`, which scores whole answers. Take it out."
            yield Finding((key,), message, keys=(key_of(said), "sample_packing"))
            return


def _kto_labels(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """KTO reads from a column of its own whether an answer is wanted; the model's forward does not know it.

    Axolotl insists on `false`. ft never removes that column, so it only refuses a recipe that asks for it.
    """
    if recipe.method.rl == "kto" and recipe.data.remove_unused_columns is True:
        message = "`true` takes away the labels that `rl: kto` learns from. Write false."
        yield Finding(("remove_unused_columns",), message, keys=("rl",))


def _liger_in_pieces(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Liger's fused GRPO loss computes logits and loss of whole completions in one kernel.

    Context parallelism leaves each process with a piece, for which there is no such kernel.
    """
    size, trl = recipe.parallel.context_parallel_size or 1, recipe.method.trl
    if recipe.method.rl in GROUPED and trl and trl.use_liger_loss and size > 1:
        message = (
            f"`true` does not go with `context_parallel_size: {size}`. Take out one of the two."
        )
        yield Finding(("trl", "use_liger_loss"), message, keys=("rl", "context_parallel_size"))


def _reentrant_qlora(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """TRL's trainers fail with QLoRA and reentrant checkpointing on several processes; the other kind works."""
    kwargs, machine = recipe.model.gradient_checkpointing_kwargs, facts.machine
    if machine is None or kwargs is None or not kwargs.use_reentrant:
        return
    world = world_size(machine)
    is_qlora = recipe.adapter.adapter == "qlora" and recipe.quantization.load_in_4bit
    if recipe.method.rl and is_qlora and recipe.model.gradient_checkpointing and world > 1:
        message = (
            f"`true` fails with `rl: {recipe.method.rl}` and `adapter: qlora` on {world} processes."
        )
        key = ("gradient_checkpointing_kwargs", "use_reentrant")
        keys = ("rl", "adapter", "load_in_4bit", "gradient_checkpointing", "cloud")
        yield Finding(key, f"{message} Write false.", keys=keys)


def _gdpo_normalizes_first(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """GDPO is GRPO with one difference: each reward is normalized by itself before they are added."""
    trl = recipe.method.trl
    if (
        recipe.method.rl == "gdpo"
        and trl
        and trl.multi_objective_aggregation == "sum_then_normalize"
    ):
        message = (
            "`sum_then_normalize` is what GRPO does. Write `normalize_then_sum`, or `rl: grpo`."
        )
        yield Finding(("trl", "multi_objective_aggregation"), message, keys=("rl",))


def _ipo_is_a_loss(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """IPO is DPO with another loss on the same pairs; Axolotl wants it written that way."""
    if recipe.method.rl == "ipo":
        message = "`ipo` is an old way to say it. Write `rl: dpo` and `dpo_loss_type: [ipo]`."
        yield Finding(("rl",), message, Severity.WARNING)


_DPO: Final = ("dpo", "ipo")
READ_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "dpo_loss_type": ("dpo",),
    "dpo_loss_weights": ("dpo",),
    "dpo_label_smoothing": _DPO,
    "dpo_use_weighting": _DPO,
    "dpo_padding_free": _DPO,
    "dpo_use_liger_kernel": _DPO,
    "precompute_ref_log_probs": (*_DPO, "kto"),
    "orpo_alpha": ("orpo",),
    "simpo_gamma": ("simpo",),
    "cpo_alpha": ("simpo",),
    "kto_desirable_weight": ("kto",),
    "kto_undesirable_weight": ("kto",),
    "ebft": ("ebft",),
    "vllm": ("grpo", "gdpo", "ebft"),
    "rl_beta": (),
    "max_prompt_len": (),
    "trl": (),
}
"""Key -> values of `rl` that read it; (): any."""
REFUSED: Final = frozenset({"dpo_loss_type", "dpo_loss_weights"})
"""Those that Axolotl refuses where they are not read."""


def _method_reads(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A key of one method is not read by another, so that the run would differ from what the recipe says."""
    rl = recipe.method.rl
    has = f"has `rl: {rl}`" if rl else "has no `rl`"
    for key, methods in READ_BY.items():
        if not is_on(recipe, key) or rl in methods or (rl and not methods):
            continue
        if methods:
            message = (
                f"is read with `rl: {' or '.join(methods)}` only; this recipe {has}. Take it out."
            )
        else:
            message = "has no effect without `rl`. Take it out."
        severity = Severity.ERROR if key in REFUSED else Severity.WARNING
        yield Finding((key,), message, severity, keys=("rl",))
    is_reward = recipe.method.reward_model or recipe.method.process_reward_model
    if recipe.method.center_rewards_coefficient is not None and not is_reward:
        message = "has no effect without `reward_model: true`. Take it out."
        others = ("reward_model", "process_reward_model")
        yield Finding(("center_rewards_coefficient",), message, Severity.WARNING, others)


def _weight_for_each(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A list of weights goes with a list of losses or rewards, one for each, in the same order."""
    method, trl = recipe.method, recipe.method.trl
    weights, losses = method.dpo_loss_weights, method.dpo_loss_type
    if method.rl == "dpo" and weights is not None:
        if losses is None:
            message = (
                "weighs losses that nothing names. Write them in `dpo_loss_type`, or take it out."
            )
        else:
            message = _counts(len(weights), "dpo_loss_type", len(losses))
        if losses is None or len(weights) != len(losses):
            yield Finding(("dpo_loss_weights",), message, keys=("rl", "dpo_loss_type"))
    weights, rewards = (trl.reward_weights, trl.reward_funcs) if trl else (None, None)
    if weights is not None and rewards is not None and len(weights) != len(rewards):
        message = _counts(len(weights), "trl.reward_funcs", len(rewards))
        yield Finding(("trl", "reward_weights"), message)


def _counts(weights: int, key: str, names: int) -> str:
    plural = "weight" if weights == 1 else "weights"
    return f"{weights} {plural} for {names} of `{key}`. Write one weight for each."


def _groups_of_two(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The advantage of a completion is its reward less the mean of its group.

    In a group of one that is zero: nothing is learned.
    """
    trl, rl = recipe.method.trl, recipe.method.rl
    if rl in GROUPED and trl and trl.num_generations == 1:
        message = (
            f"1 leaves `rl: {rl}` nothing to compare a completion with. Write 8, or at least 2."
        )
        yield Finding(("trl", "num_generations"), message, keys=("rl",))


def _whole_groups(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """What is generated at a time holds whole groups of completions, so that no prompt's group is cut apart."""
    trl = recipe.method.trl
    if recipe.method.rl not in GROUPED or trl is None:
        return
    size, group = trl.generation_batch_size, trl.num_generations
    if size and group and size % group:
        message = f"{size} is no multiple of `trl.num_generations: {group}`."
        key = ("trl", "generation_batch_size")
        yield Finding(key, f"{message} Write {_up(size, group)}.", keys=("rl",))


def _up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _readers(recipe: FlatRecipe, facts: Facts) -> int | None:
    """Processes with rows of their own; None where the sizes do not fit, which another rule says."""
    if facts.machine is None:
        return None
    world = world_size(facts.machine)
    parallel = recipe.parallel
    peers = (parallel.context_parallel_size or 1) * (parallel.tensor_parallel_size or 1)
    return world // peers if world % peers == 0 else None


ARITHMETIC: Final = (
    "rl",
    "cloud",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "context_parallel_size",
    "tensor_parallel_size",
)


def _completions_of_a_step(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """The completions of an optimizer step, over all processes, are whole groups of `num_generations`.

    TRL counts micro batch, accumulation and processes. Axolotl leaves the processes out, and refuses
    recipes that TRL runs.
    """
    trl, readers = recipe.method.trl, _readers(recipe, facts)
    if recipe.method.rl not in GROUPED or trl is None or readers is None:
        return
    micro = recipe.optim.micro_batch_size or 1
    steps = recipe.optim.gradient_accumulation_steps or 1
    once, size, group = micro * readers, trl.generation_batch_size, trl.num_generations
    if size:
        if size % once:
            fits = _up(size, math.lcm(once, group or 1))
            message = f"{size} is no multiple of {once}, `micro_batch_size: {micro}` · {readers} data-parallel."
            yield Finding(
                ("trl", "generation_batch_size"), f"{message} Write {fits}.", keys=ARITHMETIC
            )
    elif group and once * steps % group:
        fits = _up(steps, group // math.gcd(group, once))
        message = f"{group} does not divide the {once * steps} completions of a step, "
        sum_ = f"{micro} micro · {steps} accumulation · {readers} data-parallel."
        more = f" Write `gradient_accumulation_steps: {fits}`."
        yield Finding(("trl", "num_generations"), message + sum_ + more, keys=ARITHMETIC)


def _completions_of_an_evaluation(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """An evaluation compares completions in groups as well, and does not accumulate.

    So the rows of all processes in one forward pass have to be whole groups.
    """
    trl, readers, checkpoint = recipe.method.trl, _readers(recipe, facts), recipe.checkpoint
    if recipe.method.rl not in GROUPED or trl is None or readers is None:
        return
    is_on = recipe.data.val_set_size or recipe.data.test_datasets
    is_never = checkpoint.evals_per_epoch == 0 and checkpoint.eval_steps is None
    if not is_on or checkpoint.eval_strategy == "no" or is_never:
        return
    rows, group = (
        checkpoint.eval_batch_size or recipe.optim.micro_batch_size or 1,
        trl.num_generations,
    )
    if group and rows * readers % group:
        fits = _up(rows, group // math.gcd(group, readers))
        message = (
            f"{group} does not divide the {rows * readers} completions of an evaluation's batch, "
        )
        sum_ = f"{rows} · {readers} data-parallel. Write `eval_batch_size: {fits}`."
        yield Finding(
            ("trl", "num_generations"), message + sum_, keys=(*ARITHMETIC, "eval_batch_size")
        )


def _rewards(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """GRPO and GDPO learn from rewards alone.

    They come from `trl.reward_funcs`, unless a `rollout_func`, a plugin or a trainer of one's own brings them.
    """
    trl, rl = recipe.method.trl, recipe.method.rl
    brings = recipe.run.trainer_cls or (trl and (trl.reward_funcs or trl.rollout_func))
    plugins = [SECTION_OF_PLUGIN.get(name, "nemo_gym") for name in recipe.run.plugins or ()]
    if rl in GROUPED and not brings and "nemo_gym" not in plugins:
        message = f"required with `rl: {rl}`: a list with `module.function` for each reward"
        yield Finding(("trl", "reward_funcs"), message, keys=("rl",))


TRL_SWITCHES: Final[Mapping[str, str]] = {
    "vllm_mode": "use_vllm",
    "vllm_server_host": "use_vllm",
    "vllm_server_port": "use_vllm",
    "vllm_server_timeout": "use_vllm",
    "vllm_guided_decoding_regex": "use_vllm",
    "vllm_enable_sleep_mode": "use_vllm",
    "vllm_lora_sync": "use_vllm",
    "vllm_importance_sampling_correction": "use_vllm",
    "vllm_importance_sampling_mode": "use_vllm",
    "vllm_importance_sampling_cap": "use_vllm",
    "ref_model_mixup_alpha": "sync_ref_model",
    "ref_model_sync_steps": "sync_ref_model",
    "num_completions_to_print": "log_completions",
}
"""Key of `trl` -> the switch without which nothing reads it."""


def _trl_switches(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """TRL looks at keys about vLLM, the reference model and the log only where their switch is on."""
    trl = recipe.method.trl
    for key, switch in TRL_SWITCHES.items() if trl else ():
        value = getattr(trl, key)
        if value is not None and value is not False and not getattr(trl, switch):
            message = f"has no effect without `trl.{switch}: true`. Add that, or take this out."
            yield Finding(("trl", key), message, Severity.WARNING)


def _quantized_pairs(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """With `dpo`, `ipo`, `kto` and `orpo` FSDP2 cannot yet shard weights of bitsandbytes; FSDP1 and DeepSpeed can."""
    rl = recipe.method.rl
    is_fsdp2 = fsdp_key(recipe) is not None and fsdp_version(recipe) == 2
    if rl not in {"dpo", "ipo", "kto", "orpo"} or not is_fsdp2:
        return
    for key in BITS:
        if getattr(recipe.quantization, key):
            message = f"`true` does not go with `rl: {rl}` and `fsdp_version: 2`. Write `fsdp_version: 1`, "
            keys = ("rl", "fsdp_version", "fsdp_config")
            yield Finding((key,), f"{message}or use `deepspeed`.", keys=keys)


def _one_beta(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`rl_beta` and `trl.beta` are two names of one number."""
    beta, trl = recipe.method.rl_beta, recipe.method.trl
    other = trl.beta if trl else None
    if beta is not None and other is not None and beta != other:
        message = f"is {other:g}, but `rl_beta: {beta:g}` says otherwise. Keep one of the two."
        yield Finding(("trl", "beta"), message, keys=("rl_beta",))


def _ebft_block(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Axolotl starts EBFT only with its block.

    A default would hide the choice between pairs of question and answer (`structured`) and running text
    (`strided`).
    """
    if recipe.method.rl == "ebft" and recipe.method.ebft is None:
        message = "`ebft` needs a block `ebft`. Add `ebft: {mode: structured}`, or `strided` for plain text."
        yield Finding(("rl",), message, keys=("ebft",))


def _ebft_strided(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Strided EBFT makes a new attention mask for every batch.

    Recomputing compiled layers, or offloading what flex attention has saved, then meets another graph;
    Axolotl refuses both.
    """
    ebft, kernels, model = recipe.method.ebft, recipe.kernels, recipe.model
    if recipe.method.rl != "ebft" or ebft is None or ebft.mode != "strided":
        return
    if kernels.torch_compile is True and model.gradient_checkpointing:
        message = "`true` does not go with `ebft.mode: strided` and `gradient_checkpointing: true`. Take one out."
        yield Finding(("torch_compile",), message, keys=("ebft", "gradient_checkpointing", "rl"))
    if model.attn_implementation == "flex_attention" and model.activation_offloading:
        message = "does not go with `ebft.mode: strided` and `attn_implementation: flex_attention`."
        keys = ("ebft", "attn_implementation", "gradient_checkpointing", "rl")
        yield Finding(("activation_offloading",), f"{message} Take it out.", keys=keys)


LONGEST_STRIDED: Final = 32_768
"""Tokens whose mask, a byte for each pair of them, takes 1 GiB."""


def _ebft_strided_size(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Strided EBFT puts what is generated at each place behind the row, under one mask for all of it.

    The mask grows with the square of that length. And a stride that leaves a row no place generates nothing.
    """
    ebft = recipe.method.ebft
    if recipe.method.rl != "ebft" or ebft is None or ebft.mode != "strided":
        return
    row, stride = effective(recipe, "sequence_len"), ebft.stride or 8
    places = max(0, row - (ebft.context_length or 8)) // stride
    length = row + places * (ebft.generate_max_len or 8)
    said = quoted("sequence_len", row)
    at, keys = ("ebft", "stride"), ("rl", "sequence_len")
    if places == 0:
        message = f"{stride} leaves no place in a row of {said}: nothing is generated. Write less."
        yield Finding(at, message, Severity.WARNING, keys)
    elif length > LONGEST_STRIDED:
        gib = length * length / 2**30
        message = (
            f"{stride} makes {places} places of {said}, {length} tokens with what is generated: their "
            f"mask takes {gib:.1f} GiB. Write more."
        )
        yield Finding(at, message, Severity.WARNING, keys)


def _outputs_of_the_head(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A reward model gives one score; a process reward model chooses between right and wrong at each step."""
    method, given = recipe.method, recipe.model.num_labels
    if given is None or (method.reward_model and method.process_reward_model):
        return
    for key, outputs in (("reward_model", 1), ("process_reward_model", 2)):
        if getattr(method, key) and given != outputs:
            message = (
                f"{given} does not go with `{key}: true`, which has {outputs}. Write {outputs}."
            )
            yield Finding(("num_labels",), message, keys=(key,))


RULES: Final = (
    Rule("R090", _one_method),
    Rule("R091", _packing),
    Rule("R092", _kto_labels),
    Rule("R093", _liger_in_pieces),
    Rule("R094", _reentrant_qlora, needs=("machine",)),
    Rule("R095", _gdpo_normalizes_first),
    Rule("R096", _ipo_is_a_loss),
    Rule("R097", _method_reads),
    Rule("R098", _weight_for_each),
    Rule("R099", _groups_of_two),
    Rule("R100", _whole_groups),
    Rule("R101", _completions_of_a_step, needs=("machine",)),
    Rule("R102", _completions_of_an_evaluation, needs=("machine",)),
    Rule("R103", _rewards),
    Rule("R104", _trl_switches),
    Rule("R105", _quantized_pairs),
    Rule("R106", _one_beta),
    Rule("R107", _ebft_block),
    Rule("R108", _ebft_strided),
    Rule("R109", _outputs_of_the_head),
    Rule("R180", _ebft_strided_size),
)
