"""Older spellings become today's, unset keys disappear. Knows names and arithmetic; types and defaults it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from ft.recipes.errors import KeyPath, Problem, Severity
from ft.recipes.load import Recipe
from ft.recipes.vocabulary import (
    ALIASES,
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    FSDP_PREFIX,
    FSDP_UNPREFIXED,
    RENAMED,
)

DATASET_LISTS: Final = ("datasets", "test_datasets", "pretraining_dataset")
"""Keys that hold data sets: a list of mappings; `pretraining_dataset` may be one, or its path."""
LEGACY: Final = frozenset({*RENAMED, *ATTENTION_FLAGS, "batch_size", "gc_steps"})
"""All older top-level spellings."""


@dataclass(slots=True)
class Spelled:
    """Values under today's names, and how they are named in the file."""

    values: dict[str, Any]
    origin: dict[KeyPath, KeyPath] = field(default_factory=dict)
    """Key of today -> older spelling in the file, where it has one."""
    problems: list[Problem] = field(default_factory=list)


def current_spelling(recipe: Recipe) -> Spelled:
    """`recipe.values` without unset keys and in today's spelling."""
    values = {key: _drop_unset(value) for key, value in recipe.values.items() if _is_set(value)}
    found = Spelled(values)
    for names, is_legacy in ((ALIASES, False), (RENAMED, True)):
        for old, new in names.items():
            if old in values:
                found.problems.extend(
                    _move(recipe, found, old, {new: values[old]}, legacy=is_legacy)
                )
    if "gc_steps" in values:
        every = values["gc_steps"]
        both = {"torch_empty_cache_steps": every, "gc_collect_steps": every}
        found.problems.extend(_move(recipe, found, "gc_steps", both, legacy=True))
    found.problems.extend(_attention(recipe, found))
    found.problems.extend(_batch_size(recipe, found))
    found.problems.extend(_fsdp(recipe, found))
    for key in DATASET_LISTS:
        for path, dataset in _datasets(values, key):
            found.problems.extend(_dataset(recipe, found, path, dataset))
    _words_that_yaml_misreads(values)
    return found


def _is_set(value: object) -> bool:
    """`key:` without a value, and `key: ""` as Axolotl's examples write it, mean that it is not set."""
    return value is not None and value != ""


def _drop_unset(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop_unset(item) for key, item in value.items() if item is not None}
    return [_drop_unset(item) for item in value] if isinstance(value, list) else value


def legacy_warning(recipe: Recipe, old: KeyPath, new: Iterable[str]) -> Problem:
    """What to say about an older spelling: it is read, and `ft migrate` writes today's."""
    names = " and ".join(f"`{name}`" for name in new)
    message = f"older spelling of {names}; ft migrate rewrites it"
    return recipe.problem("", old, message, severity=Severity.WARNING)


def _move(
    recipe: Recipe, found: Spelled, old: str, new: Mapping[str, object], *, legacy: bool
) -> Iterator[Problem]:
    """`old` becomes what `new` says; a value that stands there already and differs is a problem."""
    del found.values[old]
    for key, value in new.items():
        if found.values.setdefault(key, value) != value:
            yield _disagree(recipe, (old,), key, found.values[key])
            return
        found.origin[(key,)] = (old,)
    if legacy:
        yield legacy_warning(recipe, (old,), new)


def _disagree(recipe: Recipe, old: KeyPath, key: str, value: object) -> Problem:
    said = shown(value) if isinstance(value, list | dict) else value
    message = f"is the older spelling of `{key}`, which says {said}. Keep one of the two."
    return recipe.problem("", old, message)


def _attention(recipe: Recipe, found: Spelled) -> Iterator[Problem]:
    """Flags become `attn_implementation`: of several that are true the first in the table counts, as in Axolotl."""
    flags = [flag for flag in ATTENTION_FLAGS if found.values.get(flag) is True]
    for flag in ATTENTION_FLAGS:
        if found.values.get(flag) is False:
            del found.values[flag]
    for position, flag in enumerate(flags):
        new = {"attn_implementation": ATTENTION_FLAGS[flag]}
        if position:
            del found.values[flag]
            message = f"has no effect beside `{flags[0]}`, which goes first. Take it out."
            yield recipe.problem("", (flag,), message, severity=Severity.WARNING)
        else:
            yield from _move(recipe, found, flag, new, legacy=True)


def _batch_size(recipe: Recipe, found: Spelled) -> Iterator[Problem]:
    """batch_size = micro_batch_size · gradient_accumulation_steps, per process, as in Axolotl."""
    values = found.values
    if "batch_size" not in values:
        return
    batch, micro = values.pop("batch_size"), values.get("micro_batch_size", 1)
    found.origin[("gradient_accumulation_steps",)] = ("batch_size",)
    if not isinstance(micro, int) or micro < 1:
        return
    if "gradient_accumulation_steps" in values:
        message = (
            "stands beside `gradient_accumulation_steps`; it decides the same. Keep one of the two."
        )
    elif not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        message = f"expected a whole number of rows, got {shown(batch)}"
    elif batch % micro:
        message = f"{batch} is not a multiple of micro_batch_size {micro}"
    else:
        values["gradient_accumulation_steps"] = batch // micro
        return
    yield recipe.problem("", ("batch_size",), message)


def _fsdp(recipe: Recipe, found: Spelled) -> Iterator[Problem]:
    """`fsdp_offload_params` in `fsdp_config` becomes `offload_params`; `version` there becomes `fsdp_version`."""
    config = found.values.get("fsdp_config")
    if not isinstance(config, dict):
        return
    renamed = {}
    for key in config:
        if key.startswith(FSDP_PREFIX) and key not in FSDP_UNPREFIXED:
            renamed[key] = key.removeprefix(FSDP_PREFIX)
        elif key == "version":
            renamed[key] = "fsdp_version"
    config = found.values["fsdp_config"] = dict(config)
    for old, new in renamed.items():
        value = config.pop(old)
        if config.setdefault(new, value) != value:
            yield _disagree(recipe, ("fsdp_config", old), new, config[new])
        found.origin[("fsdp_config", new)] = ("fsdp_config", old)
    if renamed:
        old = next(iter(renamed))
        yield legacy_warning(recipe, ("fsdp_config", old), [renamed[old]])


def _datasets(values: dict[str, Any], key: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    listed = values.get(key)
    if isinstance(listed, dict):
        yield (key,), listed
    for index, dataset in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(dataset, dict):
            yield (key, index), dataset


def _dataset(
    recipe: Recipe, found: Spelled, path: KeyPath, dataset: dict[str, Any]
) -> Iterator[Problem]:
    for old, (key, sub) in DATASET_RENAMED.items():
        properties = dataset.get(key, {})
        if old not in dataset or not isinstance(properties, dict):
            continue
        value = dataset.pop(old)
        dataset[key] = properties
        if properties.setdefault(sub, value) != value:
            yield _disagree(recipe, (*path, old), f"{key}.{sub}", properties[sub])
            continue
        found.origin[(*path, key, sub)] = (*path, old)
        yield legacy_warning(recipe, (*path, old), [f"{key}.{sub}"])


def _words_that_yaml_misreads(values: dict[str, Any]) -> None:
    """`save_strategy: no` is false to YAML; `DROP` is how Axolotl also takes `drop`."""
    for key in ("save_strategy", "eval_strategy"):
        if values.get(key) is False:
            values[key] = "no"
    strategy = values.get("excess_length_strategy")
    if isinstance(strategy, str):
        values["excess_length_strategy"] = strategy.lower()


def shown(value: object) -> str:
    """A value as a user would know it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"the date {value}" if isinstance(value, date) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
