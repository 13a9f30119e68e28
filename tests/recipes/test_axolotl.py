"""109 public recipes: each is read without an error, and as Axolotl's own schema reads it, but for what is listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.load import load
from ft.recipes.normalize import normalize
from ft.recipes.rules import check
from ft.recipes.schema import SECTIONS
from ft.recipes.schema.base import info_of, nested_sections
from ft.recipes.schema.plugins import PLUGIN_SECTIONS

MACHINE = "Axolotl writes what its own machine has; a recipe says the same on every machine"
KERNELS = "Axolotl turns its kernels on by itself; the plain path computes the same"
DROPPED = "Axolotl drops it without a word; here it is kept, and refused until it runs"
DPO_DROPPED = "Axolotl rebuilds data sets of DPO and drops the mappings; here they are honoured"
MOE_KERNELS = "Axolotl's kernels plugin chooses by itself; here what the recipe says stays"

SEARCH = "bounds Axolotl's search, which is first fit; here all rows are looked at, and a pack has what fits"

DELIBERATE: dict[str, tuple[int, str]] = {
    "dataloader_num_workers": (109, MACHINE),
    "dataloader_pin_memory": (109, "a constant of Axolotl that its schema only fills in where all three are unset"),
    "dataloader_prefetch_factor": (109, "as for dataloader_pin_memory"),
    "dataset_num_proc": (109, MACHINE),
    "sample_packing_group_size": (109, SEARCH),
    "sample_packing_bin_size": (109, SEARCH),
    "tf32": (4, "`auto` stays `auto`; Axolotl looks at its own GPU"),
    "lora_mlp_kernel": (35, KERNELS),
    "lora_qkv_kernel": (34, KERNELS),
    "lora_o_kernel": (34, KERNELS),
    "lora_embedding_kernel": (34, KERNELS),
    "use_kernels": (2, MOE_KERNELS),
    "experts_implementation": (3, MOE_KERNELS),
    "dsv4_shared_mlp_lora_kernel": (1, MOE_KERNELS),
    "fsdp_config.sharding_strategy": (16, DROPPED),
    "fsdp_config.limit_all_gathers": (6, DROPPED),
    "fsdp_config.backward_prefetch": (1, DROPPED),
    "fsdp_config.forward_prefetch": (1, DROPPED),
    "datasets.message_property_mappings": (4, DPO_DROPPED),
    "datasets.roles": (3, DPO_DROPPED),
    "datasets.step_separator": (1, "Axolotl takes the data set of a PRM for one of SFT and drops it; honoured here"),
    "datasets.train_on_last_step_only": (1, "as for step_separator"),
    "pretraining_dataset.message_property_mappings": (3, "a column of text has no messages"),
    "batch_size": (1, "becomes gradient_accumulation_steps at once; both together would be refused"),
    "gradient_accumulation_steps": (1, "batch_size // micro_batch_size; Axolotl divides later, in its trainer"),
}  # fmt: skip
"""Key that differs -> in how many of the 109 recipes, and why."""

COMPUTED = {
    "attn_decontaminates_packing",
    "attn_needs_dtype_cast",
    "attn_supports_packing",
    "attn_uses_flash_lib",
}
"""What Axolotl computes from `attn_implementation` and nobody can write: no keys."""

OF_THE_MACHINE = {
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataset_num_proc",
    "sample_packing_group_size", "sample_packing_bin_size",
}  # fmt: skip

FIELDS = {
    key: field
    for section in [*SECTIONS.values(), *PLUGIN_SECTIONS.values()]
    for key, field in section.model_fields.items()
}


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], fields: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[str]:
    """Dotted keys whose values differ. A key that we leave unset must have Axolotl's value as its declared default."""
    for key in sorted(ours.keys() | theirs.keys()):
        field = fields.get(key)
        default = info_of(field).default if field is not None else None
        mine, other = ours.get(key, default), theirs.get(key)
        inner = {
            name: info
            for section in (nested_sections(field.annotation) if field is not None else ())
            for name, info in section.model_fields.items()
        }
        if same(mine, other):
            continue
        if isinstance(other, dict) and inner and (key not in ours or isinstance(mine, dict)):
            yield from differences(mine or {}, other, inner, (*path, key))
        elif (
            isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other) and inner
        ):
            for one, two in zip(mine, other, strict=True):
                yield from differences(one, two, inner, (*path, key))
        else:
            yield ".".join((*path, key))


def same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def test_every_recipe_is_read_without_an_error(axolotl: Path) -> None:
    recipes = sorted(path for path in (axolotl / "examples").rglob("*") if path.is_file())
    assert len(recipes) == 109
    wrong = [
        str(problem)
        for path in recipes
        for problem in check(normalize(load(path)), Facts(files={})).problems
        if problem.severity is Severity.ERROR
    ]
    assert wrong == []


def test_every_recipe_means_what_axolotl_s_schema_makes_of_it(axolotl: Path) -> None:
    normalized = json.loads((axolotl / "normalized.json").read_text())
    assert len(normalized) == 109
    found: Counter[str] = Counter()
    # Recipes by the reasons of their differences; one counts where its worst reason does.
    recipes: Counter[str] = Counter()
    for name, theirs in normalized.items():
        ours = json.loads(json.dumps(normalize(load(axolotl / "examples" / name)).flat.flat()))
        keys = {*differences(ours, theirs, FIELDS)} - COMPUTED
        found.update(keys)
        recipes["equal in every key"] += not keys
        recipes["equal but for four keys of the machine"] += bool(keys) and keys <= OF_THE_MACHINE
        recipes["with a listed difference beside those"] += not keys <= OF_THE_MACHINE
        recipes["with a difference that is not listed"] += not keys <= DELIBERATE.keys()
    assert dict(found) == {key: count for key, (count, _) in DELIBERATE.items()}
    assert recipes == {
        "equal in every key": 0,
        "equal but for four keys of the machine": 42,
        "with a listed difference beside those": 67,
        "with a difference that is not listed": 0,
    }
    assert all(reason for _, reason in DELIBERATE.values())
