"""Rules about what single plugins need, and what they cannot stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import value_of
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


def _sparse_is_not_served(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """vLLM and LLM Compressor have dropped the compressed form of 2:4 sparse weights.

    A model that is saved in it cannot be served with today's versions; FP8 and W4A16 are what
    they load.
    """
    block = value_of(recipe, "llmcompressor")
    if block is None or not block.save_compressed:
        return
    if _is_two_of_four(block.recipe) or "2of4" in (recipe.model.base_model or ""):
        message = (
            "`true` saves 2:4 sparse weights, which vLLM can no longer load. Write `false`, and "
            "quantize to FP8 or W4A16."
        )
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


RULES: Final = (
    Rule("R086", _plugin_is_complete),
    Rule("R087", _sparse_is_not_served),
    Rule("R088", _spectrum_chooses),
    Rule("R089", _masks_are_a_range),
)
