"""Rules about families of models, whose code lacks something that others have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import fsdp_key, word
from ft.recipes.schema import FlatRecipe


@dataclass(frozen=True, slots=True)
class Family:
    """How a family shows itself in a recipe. Its descendants with other code are none of it."""

    model_types: frozenset[str]
    """`model_type` of its configuration: where that is known, nothing else counts."""
    model_class: str
    """Class of transformers in `type_of_model`."""
    name: str
    """What the name of such a model has in it, in small letters; a pattern that is compiled when it is first needed."""


FALCON: Final = Family(
    frozenset({"falcon", "RefinedWeb", "RefinedWebModel"}),
    "FalconForCausalLM",
    r"(^|[-_.])falcon-(rw-)?\d+b",
)
MPT: Final = Family(frozenset({"mpt"}), "MptForCausalLM", r"(^|[-_.])mpt-\d+b")
NEMOTRON_H: Final = Family(
    frozenset({"nemotron_h"}),
    "NemotronHForCausalLM",
    r"(^|[-_.])nemotron-(h-\d+b|3-nano-|nano-\d+b-v2)",
)


def is_of(family: Family, recipe: FlatRecipe, facts: Facts) -> bool:
    """Whether the model is certainly one of them; not where it is only likely."""
    model = recipe.model
    known = (facts.model_config or {}).get("model_type")
    if known is not None:
        return isinstance(known, str) and known in family.model_types
    if model.type_of_model == family.model_class:
        return True
    name = (model.base_model or "").rstrip("/").rpartition("/")[2]
    return re.search(family.name, name.lower()) is not None


def _falcon_fsdp(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Axolotl refuses FSDP with the first Falcons, and nobody has shown since that it works.

    Falcon 3, H1, E and Mamba are other models with that name.
    """
    fsdp = fsdp_key(recipe)
    is_falcon = recipe.model.is_falcon_derived_model or is_of(FALCON, recipe, facts)
    if fsdp and is_falcon:
        message = (
            f"does not go with a Falcon, {_name(recipe)}. Write `deepspeed` with ZeRO 3, or take "
            "it out."
        )
        yield Finding((fsdp,), message, keys=("base_model", "is_falcon_derived_model"))


def _mpt_recomputes_nothing(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """The code that came with MPT's weights has no checkpointed layers, and refuses to start with them."""
    if recipe.model.gradient_checkpointing and is_of(MPT, recipe, facts):
        message = f"`true` does not go with an MPT, {_name(recipe)}. Write `false`."
        yield Finding(("gradient_checkpointing",), message, keys=("base_model",))


def _nemotron_h_recomputes_packs(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Nemotron-H mixes attention with layers that carry a state along the row.

    Axolotl has made recomputation work for it on packed rows only, and refuses it on others.
    """
    model = recipe.model
    if recipe.data.sample_packing or not model.gradient_checkpointing:
        return
    if is_of(NEMOTRON_H, recipe, facts):
        message = (
            f"`true` needs packed rows with a Nemotron-H, {_name(recipe)}. Write `sample_packing: "
            "true`, or `false` here."
        )
        yield Finding(("gradient_checkpointing",), message, keys=("base_model", "sample_packing"))


def _name(recipe: FlatRecipe) -> str:
    return f"`{word(recipe.model.base_model)}`" if recipe.model.base_model else "as it says"


RULES: Final = (
    Rule("R170", _falcon_fsdp),
    Rule("R171", _mpt_recomputes_nothing),
    Rule("R172", _nemotron_h_recomputes_packs),
)
