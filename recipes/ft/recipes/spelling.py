"""Older spellings become today's, unset keys disappear. Knows names and arithmetic; types and defaults it does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from ft.recipes.errors import KeyPath, Problem, Severity
from ft.recipes.load import Recipe
from ft.recipes.meant import is_set, switch, whole
from ft.recipes.vocabulary import (
    ALIASES,
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    HANDED_ON,
    KEEPS_EMPTY,
    NOT_SET,
    RENAMED,
    fsdp_name,
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
    values = {key: _drop_unset(value, key) for key, value in recipe.values.items() if is_set(value)}
    found = Spelled(values)
    _words_that_yaml_misreads(values)
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
    found.problems.extend(_not_set(recipe, values))
    return found


def _drop_unset(value: Any, key: str) -> Any:
    """`value` of `key` without what is not set in it."""
    if isinstance(value, list):
        return [_drop_unset(item, key) for item in value]
    if not isinstance(value, Mapping):
        return value
    if key in HANDED_ON:
        return _drop_null(value)
    return {
        name: _drop_unset(item, name)
        for name, item in value.items()
        if is_set(item) or (item == "" and name in KEEPS_EMPTY)
    }


def _drop_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop_null(item) for key, item in value.items() if item is not None}
    return [_drop_null(item) for item in value] if isinstance(value, list) else value


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
    message = (
        f"is the older spelling of `{key}`, which says {_in_yaml(value)}. Keep one of the two."
    )
    return recipe.problem("", old, message)


def _in_yaml(value: object) -> str:
    """A value as it may stand in a recipe, in at most 60 characters."""
    if isinstance(value, list | dict):
        return _cut(json.dumps(value, default=str))
    return _cut(value) if isinstance(value, str) and value.isprintable() else shown(value)


def _attention(recipe: Recipe, found: Spelled) -> Iterator[Problem]:
    """Flags become `attn_implementation`: of several that are true the first in the table counts, as in Axolotl."""
    given = {flag: found.values[flag] for flag in ATTENTION_FLAGS if flag in found.values}
    flags = [flag for flag, value in given.items() if switch(value)]
    for flag, value in given.items():
        if flag not in flags:
            del found.values[flag]
            if switch(value) is None:
                message = f"expected true or false, got {shown(value)}"
                yield recipe.problem("", (flag,), message)
    for position, flag in enumerate(flags):
        new = {"attn_implementation": ATTENTION_FLAGS[flag]}
        if position:
            del found.values[flag]
            message = f"has no effect beside `{flags[0]}`, which goes first. Take it out."
            yield recipe.problem("", (flag,), message, severity=Severity.WARNING)
        else:
            yield from _move(recipe, found, flag, new, legacy=True)


def _batch_size(recipe: Recipe, found: Spelled) -> Iterator[Problem]:
    """batch_size = micro_batch_size · gradient_accumulation_steps, per process, as in Axolotl.

    Axolotl rounds where it does not divide evenly, and so trains on fewer rows than the recipe says.
    """
    values, key = found.values, "gradient_accumulation_steps"
    if "batch_size" not in values:
        return
    given, micro = values.pop("batch_size"), whole(values.get("micro_batch_size", 1))
    found.origin[(key,)] = ("batch_size",)
    batch = whole(given)
    if micro is None or micro < 1:
        return  # A problem of micro_batch_size, which is found when it is typed.
    if key in values:
        message = f"stands beside `{key}`; it decides the same. Keep one of the two."
    elif batch is None or batch < 1:
        message = f"expected a whole number of rows, got {shown(given)}"
    elif batch % micro:
        fits = max(1, batch // micro) * micro
        message = f"{batch} is not a multiple of micro_batch_size {micro}. Write {fits}"
        message += ", which Axolotl makes of it without a word." if fits < batch else "."
    else:
        values[key] = batch // micro
        yield legacy_warning(recipe, ("batch_size",), [key])
        return
    yield recipe.problem("", ("batch_size",), message)


def _fsdp(recipe: Recipe, found: Spelled) -> Iterator[Problem]:
    """`fsdp_offload_params` in `fsdp_config` becomes `offload_params`; `version` there becomes `fsdp_version`."""
    config = found.values.get("fsdp_config")
    if not isinstance(config, dict):
        return
    renamed = {key: fsdp_name(key) for key in config if fsdp_name(key) != key}
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
    for key in ("save_strategy", "eval_strategy", "evaluation_strategy"):
        if values.get(key) is False:
            values[key] = "no"
    strategy = values.get("excess_length_strategy")
    if isinstance(strategy, str):
        values["excess_length_strategy"] = strategy.lower()


def _not_set(recipe: Recipe, values: dict[str, Any]) -> Iterator[Problem]:
    """Take out numbers that say "not set", as 0 does where Axolotl asks only whether a value is true."""
    for key, (numbers, meaning) in NOT_SET.items():
        number = whole(values.get(key))
        if number in numbers:
            del values[key]
            message = f"{number} means that it is not set: {meaning}."
            yield recipe.problem("", (key,), message, severity=Severity.WARNING)


def shown(value: object) -> str:
    """A value as a user would know it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _cut(f"the date {value}" if isinstance(value, date) else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
