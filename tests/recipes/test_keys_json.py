"""Every key of `keys.json`, which public recipes set, has a home: typed, with a status, a default and a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft.recipes.errors import Severity
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plugins import PLUGIN_OF
from ft.recipes.reference import Entry, entries
from ft.recipes.schema.base import Status
from ft.recipes.schema.plugins import PLUGIN_SECTIONS

OF_A_CLOUD_FILE = {
    "branch", "dockerfile_commands", "gpu", "gpu_count", "memory", "memory_preprocess", "node_count", "project_name",
    "provider", "secrets", "timeout", "timeout_preprocess", "volumes",
}  # fmt: skip
"""Keys of two files for `--cloud`, which are no recipes; their places here are in `cloud:`."""

MISSPELT = {"context_parapllel_size": "context_parallel_size"}
"""What nobody means as it is written -> what is said."""

REFUSED = {
    ("warmup_steps", 0.1): "Axolotl refuses a share of a step too",
}
"""Value of a public recipe that is an error here -> why."""


@pytest.fixture(scope="module")
def found(axolotl: Path) -> dict[str, Any]:
    keys: dict[str, Any] = json.loads((axolotl / "keys.json").read_text())
    assert (len(keys["per_key"]), len(keys["nested_keys"]), len(keys["dataset_keys"])) == (
        233,
        94,
        30,
    )
    return keys


def problem_of(entry: Entry | None) -> str:
    """What an entry lacks; empty if it lacks nothing."""
    if entry is None:
        return "has no home"
    if not entry.is_key:
        # Renamed, ignored or removed: it says what to write, or that nothing is lost.
        return "" if entry.instead or entry.target else "does not say what to write instead"
    if entry.status not in {Status.IMPLEMENTED, Status.ACCEPTED, Status.PLANNED}:
        return f"is a key with the status {entry.status}"
    if not entry.type:
        return "has no type"
    # A block has the defaults of its keys.
    if not re.search(r"\bDefaults?\b|\bRequired\b", entry.text):
        return "does not tell its default"
    return ""


def test_every_top_level_key_of_axolotl_has_a_home(found: dict[str, Any]) -> None:
    known = found["per_key"].keys() - MISSPELT.keys()
    assert {key for key, _ in found["top_keys"]} == known | MISSPELT.keys() | OF_A_CLOUD_FILE
    said = {key: problem_of(entries().get(key)) for key in known}
    assert {key: text for key, text in said.items() if text} == {}
    # What its schema does not have is no key here either, but for a plugin's block that it merges at run time.
    ignored = {key for key in known if "NOT IN SCHEMA" in found["per_key"][key]["schema"]} - {
        "diffusion"
    }
    assert {entries()[key].status for key in ignored} == {Status.IGNORED}


def test_what_is_misspelt_in_a_public_recipe_is_an_error_that_says_what_was_meant() -> None:
    for word, meant in MISSPELT.items():
        (problem,) = normalize(loads(f"{word}: 2")).problems
        assert (problem.severity, problem.message) == (
            Severity.ERROR,
            f"unknown key. Did you mean `{meant}`?",
        )


def below(keys: dict[str, Any]) -> Iterator[str]:
    """Dotted keys of blocks as public recipes write them."""
    for key, _ in [*keys["nested_keys"], *keys["dataset_keys"]]:
        yield re.sub(r"^(datasets|test_datasets|pretraining_dataset)\.", r"\1[].", key)


FREE = {
    "datasets[].message_property_mappings", "datasets[].roles", "device_map", "flex_attn_compile_kwargs",
    "model_config", "model_quantization_config_kwargs",
}  # fmt: skip
"""Blocks whose names are the user's, the model's or a library's."""
NO_BLOCK = {"tokens": "a list; Axolotl reads the names of a mapping there as tokens"}


def test_every_key_below_another_has_a_home(found: dict[str, Any]) -> None:
    said: dict[str, str] = {}
    for key in set(below(found)):
        block = key.rpartition(".")[0]
        if key not in entries() and block in FREE:
            assert (
                "mapping"
                in entries()[entries()[block].target[0] if entries()[block].target else block].type
            )
        elif block not in NO_BLOCK and (text := problem_of(entries().get(key))):
            said[key] = text
    assert said == {}


def values(keys: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The most frequent values of each key in public recipes; long ones are cut off in the table and left out."""
    for key, about in keys["per_key"].items():
        for text, _ in about["top_values"] if key not in MISSPELT else ():
            try:
                yield key, json.loads(text)
            except ValueError:
                continue


def test_every_value_of_a_public_recipe_is_of_the_key_s_type(found: dict[str, Any]) -> None:
    wrong, count = {}, 0
    for key, value in values(found):
        count += 1
        recipe: dict[str, Any] = {key: value}
        if key in PLUGIN_OF:
            recipe["plugins"] = [PLUGIN_SECTIONS[PLUGIN_OF[key]].plugins[0]]
        problems = normalize(loads(json.dumps(recipe))).problems
        errors = [problem.message for problem in problems if problem.severity is Severity.ERROR]
        is_removed = entries()[key].status is Status.REMOVED
        if is_removed != bool(errors) and (key, value) not in REFUSED:
            wrong[key] = (value, errors)
    assert wrong == {}
    assert count > 380
