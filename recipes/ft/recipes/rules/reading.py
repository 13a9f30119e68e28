"""How a rule reads a recipe: what a key says or means, and how a message quotes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath
from ft.recipes.facts import Machine
from ft.recipes.plugins import PLUGIN_OF
from ft.recipes.schema import SECTION_OF, SECTIONS, FlatRecipe
from ft.recipes.schema.base import KeyInfo, Section, info_of
from ft.recipes.schema.dataset import DatasetKeys, PretrainingDatasetKeys
from ft.recipes.spelling import DATASET_LISTS

BITS: Final = ("load_in_4bit", "load_in_8bit")
"""Keys by which bitsandbytes quantizes the weights."""


def value_of(recipe: FlatRecipe, key: str) -> Any:
    """The value of a top-level key, wherever it lives; None if it, or its plugin, is not there."""
    if key in SECTION_OF:
        return getattr(getattr(recipe, SECTION_OF[key]), key)
    return getattr(recipe.plugin.get(PLUGIN_OF[key]), key, None)


def effective(recipe: FlatRecipe, key: str) -> Any:
    """The value of a key that is no plugin's, or what it means where it is not set."""
    value = value_of(recipe, key)
    return _info(key).default if value is None else value


def is_on(recipe: FlatRecipe, key: str) -> bool:
    """Whether a key is set, and not to `false`; 0 is on."""
    value = value_of(recipe, key)
    return value is not None and value is not False


def changes_something(recipe: FlatRecipe, key: str) -> bool:
    """Whether a key that is no plugin's is set to anything but what it means unset."""
    value = value_of(recipe, key)
    return value is not None and not _info(key).asks_for_nothing(value)


def _info(key: str) -> KeyInfo:
    return info_of(SECTIONS[SECTION_OF[key]].model_fields[key])


def datasets_of(
    recipe: FlatRecipe,
) -> Iterator[tuple[KeyPath, DatasetKeys | PretrainingDatasetKeys]]:
    """Every data set of the recipe, whichever list it stands in."""
    for key in DATASET_LISTS:
        listed = getattr(recipe.data, key)
        if isinstance(listed, PretrainingDatasetKeys):
            yield (key,), listed
        elif isinstance(listed, tuple):
            for index, dataset in enumerate(listed):
                yield (key, index), dataset


def fsdp_key(recipe: FlatRecipe) -> str | None:
    """The key that switches FSDP on, where one does. An empty `fsdp_config` does not."""
    config = recipe.parallel.fsdp_config
    if config is not None and config.model_fields_set:
        return "fsdp_config"
    return "fsdp" if recipe.parallel.fsdp else None


def fsdp_version(recipe: FlatRecipe) -> int:
    """The generation of FSDP that a recipe with FSDP asks for."""
    config = recipe.parallel.fsdp_config
    return recipe.parallel.fsdp_version or (config and config.fsdp_version) or 1


def world_size(machine: Machine) -> int:
    """Processes on all machines together."""
    return machine.num_nodes * machine.num_processes_per_node


def capability(gpu: str, *, otherwise: int) -> int:
    """CUDA compute capability of a GPU, 89 for 8.9; `otherwise` where the catalog does not have the GPU."""
    return GPUS[gpu].capability if gpu in GPUS else otherwise


def word(value: object) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return text if text.isprintable() else ascii(value)


def short(value: object) -> str:
    """A value as YAML has it, on one line, numbers with six digits at most."""
    return f"{value:g}" if isinstance(value, float) else word(value)


def said(recipe: FlatRecipe, key: str) -> str:
    """`key: value` in backticks, as the recipe has it; only the key where that is a whole block or list."""
    value = value_of(recipe, key)
    block = value is None or isinstance(value, Section | Mapping | tuple)
    return f"`{key}`" if block else f"`{key}: {word(value)}`"


def quoted(key: str, value: object) -> str:
    """`key: value` in backticks, for a value that the recipe may leave unsaid."""
    return f"`{key}: {short(value)}`"


def state_of(recipe: FlatRecipe, key: str) -> str:
    """`is not set`, or `is X`."""
    value = value_of(recipe, key)
    return "is not set" if value is None else f"is {word(value)}"


def key_of(pair: str) -> str:
    """The key of `key: value`; of a key alone, that one."""
    return pair.partition(":")[0]
