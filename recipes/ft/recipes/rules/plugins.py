"""Rules about what single plugins need, and what they cannot stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import fsdp_key, fsdp_version, value_of
from ft.recipes.schema import FlatRecipe


def _plugin_is_complete(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Some plugins cannot start without one of their keys, and `adapter: mora` does not exist without its plugin.

    The run would stop when the plugin is set up, on paid machines.
    """
    if recipe.adapter.adapter == "mora" and "mora" not in recipe.plugin:
        message = (
            "`mora` comes with a plugin. Add `- axolotl.integrations.mora.MoraPlugin` to `plugins`."
        )
        yield Finding(("adapter",), message, keys=("plugins",))
    if "swanlab" in recipe.plugin and value_of(recipe, "swanlab_project") is None:
        off = (
            value_of(recipe, "use_swanlab") is False
            or value_of(recipe, "swanlab_mode") == "disabled"
        )
        if not off:
            message = "required where the plugin is listed. Write a name, or `use_swanlab: false`."
            yield Finding(("swanlab_project",), message, keys=("plugins", "use_swanlab"))
    if "llm_compressor" in recipe.plugin:
        block = value_of(recipe, "llmcompressor")
        if block is None:
            message = "required where the plugin is listed. Write it with `recipe`."
            yield Finding(("llmcompressor",), message, keys=("plugins",))
        elif not block.recipe:
            yield Finding(("llmcompressor", "recipe"), "required. Write LLM Compressor's recipe.")


def _is_two_of_four(recipe: object) -> bool:
    """Whether a recipe of LLM Compressor prunes two weights of each four, however deep that is said."""
    if isinstance(recipe, str):
        return "2:4" in recipe
    if isinstance(recipe, Mapping):
        return recipe.get("mask_structure") == "2:4" or any(
            _is_two_of_four(item) for item in recipe.values() if not isinstance(item, str)
        )
    return isinstance(recipe, list | tuple) and any(_is_two_of_four(item) for item in recipe)


KEEPS_ZEROS: Final = "ConstantPruningModifier"
"""Holds the zeros of the weights where they are, in whatever pattern they are there."""


def _keeps_zeros(recipe: object) -> bool:
    """Whether a recipe of LLM Compressor keeps a model as sparse as it is, however deep that is said."""
    if isinstance(recipe, str):
        return KEEPS_ZEROS in recipe
    if isinstance(recipe, Mapping):
        return any(_keeps_zeros(item) for pair in recipe.items() for item in pair)
    return isinstance(recipe, list | tuple) and any(_keeps_zeros(item) for item in recipe)


def _sparse_is_not_served(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """vLLM and LLM Compressor have dropped the compressed form of 2:4 sparse weights.

    A model that is saved in it cannot be served with today's versions; FP8 and W4A16 are what
    they load. Whether a model whose zeros are kept is 2:4 sparse, only its name can tell here.
    """
    block = value_of(recipe, "llmcompressor")
    if block is None or not block.save_compressed:
        return
    base = recipe.model.base_model or ""
    if _is_two_of_four(block.recipe) or "2of4" in base.lower():
        message = (
            "`true` saves 2:4 sparse weights, which vLLM can no longer load. Write `false`, and "
            "quantize to FP8 or W4A16."
        )
    elif _keeps_zeros(block.recipe):
        message = (
            f"`true` saves the zeros that {KEEPS_ZEROS} keeps; where `base_model` is 2:4 sparse, vLLM "
            "can no longer load that. Write `false` unless it is not."
        )
    else:
        return
    at = ("llmcompressor", "save_compressed")
    yield Finding(at, message, Severity.WARNING, keys=("base_model",))


def _spectrum_chooses(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Spectrum trains the weights of chosen layers and freezes the others.

    A list of parameters by hand is overwritten by its choice, and an adapter freezes all
    weights.
    """
    if "spectrum" not in recipe.plugin:
        return
    for key in ("adapter", "unfrozen_parameters"):
        if value_of(recipe, key):
            message = "stands beside the plugin Spectrum; both decide what is trained. Keep one."
            yield Finding((key,), message, Severity.WARNING, keys=("plugins",))


def _masks_are_a_range(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The share of masked tokens goes from the smallest to the largest; unset they are 0.1 and 0.9."""
    block = value_of(recipe, "diffusion")
    if block is None:
        return
    least = 0.1 if block.min_mask_ratio is None else block.min_mask_ratio
    most = 0.9 if block.max_mask_ratio is None else block.max_mask_ratio
    if least > most:
        name, other = ("min", "max") if block.min_mask_ratio is not None else ("max", "min")
        at = ("diffusion", f"{name}_mask_ratio")
        below = {"min": ("above", most, "less"), "max": ("below", least, "more")}[name]
        mine = least if name == "min" else most
        message = f"{mine} is {below[0]} `{other}_mask_ratio` {below[1]}. Write {below[2]}."
        yield Finding(at, message)


def _spectrum_in_flat_buffers(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Spectrum freezes some weights of a layer and trains others.

    FSDP1 puts a layer into one flat buffer, which is trained as a whole or not at all, unless it
    keeps the parameters as they were. FSDP2 always does.
    """
    fsdp, config = fsdp_key(recipe), recipe.parallel.fsdp_config
    if "spectrum" not in recipe.plugin or fsdp is None or fsdp_version(recipe) == 2:
        return
    if config is None or not config.use_orig_params:
        message = (
            "mixes weights that the plugin Spectrum freezes and trains in one buffer. Write "
            "`use_orig_params: true` in `fsdp_config`, or `fsdp_version: 2`."
        )
        yield Finding((fsdp,), message, keys=("plugins", "fsdp_version", "fsdp_config"))


def _gym_is_complete(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """NeMo Gym scores what the model wrote on servers that somebody has to start, for prompts from its own files.

    Without either the run would stop once all machines are up.
    """
    if not value_of(recipe, "nemo_gym_enabled"):
        return
    starts = value_of(recipe, "nemo_gym_auto_start") is not False
    if starts and not value_of(recipe, "nemo_gym_config_paths"):
        message = (
            "required: configurations of the servers to start. Write them, or "
            "`nemo_gym_auto_start: false` where they run already."
        )
        keys = ("nemo_gym_enabled", "nemo_gym_auto_start")
        yield Finding(("nemo_gym_config_paths",), message, keys=keys)
    datasets = value_of(recipe, "nemo_gym_datasets")
    if not datasets:
        message = "required with `nemo_gym_enabled: true`: a list with `path` for each file"
        yield Finding(("nemo_gym_datasets",), message, keys=("nemo_gym_enabled",))
    for index, dataset in enumerate(datasets or ()):
        if not dataset.get("path"):
            message = "required: a JSON Lines file below `nemo_gym_dir`"
            yield Finding(("nemo_gym_datasets", index, "path"), message)


RULES: Final = (
    Rule("R086", _plugin_is_complete),
    Rule("R087", _sparse_is_not_served),
    Rule("R088", _spectrum_chooses),
    Rule("R089", _masks_are_a_range),
    Rule("R176", _spectrum_in_flat_buffers),
    Rule("R177", _gym_is_complete),
)
