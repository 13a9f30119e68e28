"""Rules about tokenizers and processors, which make numbers of text, images and sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import quoted, state_of, value_of
from ft.recipes.schema import FlatRecipe


def _media_need_raw_rows(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A processor makes tensors of images and sound batch by batch, from rows that nobody prepared before."""
    name = recipe.model.processor_type
    if name is not None and not recipe.data.skip_prepare_dataset:
        message = (
            f"`{name}` reads images and sound batch by batch. Write `skip_prepare_dataset: true`."
        )
        yield Finding(("processor_type",), message, keys=("skip_prepare_dataset",))


def _raw_rows_stay_raw(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Rows that become tokens batch by batch have no length before, so they cannot be packed.

    Nor can they be compared, and the columns that they come from must stay.
    """
    if recipe.data.skip_prepare_dataset:
        because = "`skip_prepare_dataset: true`"
    elif recipe.model.processor_type is not None:
        because = quoted("processor_type", recipe.model.processor_type)
    else:
        return
    for key, what in (
        ("sample_packing", "rows have no length yet that could be packed"),
        ("dataset_exact_deduplication", "there are no prepared rows to compare"),
        ("remove_unused_columns", "the columns are still needed when a batch is made"),
    ):
        if value_of(recipe, key) is True:
            message = f"`true` cannot go with {because}: {what}. Write `{key}: false`."
            yield Finding((key,), message, keys=("skip_prepare_dataset", "processor_type"))


def _guessed_mistral(recipe: FlatRecipe) -> KeyPath | None:
    """The key by whose name Axolotl takes mistral-common for the tokenizer."""
    if recipe.model.tokenizer_use_mistral_common is None:
        for key in ("base_model", "base_model_config", "tokenizer_config"):
            if "magistral" in (value_of(recipe, key) or "").lower():
                return (key,)
    return None


def _mistral_common_is_fixed(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The tokenizer of `mistral-common` has its own vocabulary, special tokens and chat template.

    None of them can be changed.
    """
    model = recipe.model
    guessed = _guessed_mistral(recipe)
    if not model.tokenizer_use_mistral_common and guessed is None:
        return
    template = "chat_template_jinja" if recipe.data.chat_template_jinja else "chat_template"
    changes = {
        "added_tokens_overrides": bool(model.added_tokens_overrides),
        "special_tokens": bool(
            model.special_tokens and any(model.special_tokens.model_dump().values())
        ),
        "tokens": bool(model.tokens),
        template: bool(value_of(recipe, template)),
        "processor_kwargs": bool(model.processor_kwargs),
    }
    why = f"`{guessed[0]}` is a Magistral" if guessed else "`tokenizer_use_mistral_common: true`"
    for key in [key for key, is_set in changes.items() if is_set]:
        message = f"the tokenizer of mistral-common cannot be changed ({why}). Take it out."
        yield Finding((key,), message, keys=("tokenizer_use_mistral_common",))


def _mistral_common_is_said(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Axolotl takes `mistral-common` for the tokenizer wherever a name has `magistral` in it.

    A copy of the model under another name would then be trained with another tokenizer.
    """
    guessed = _guessed_mistral(recipe)
    if guessed is not None:
        message = (
            "`magistral` in it makes mistral-common the tokenizer. "
            "Write `tokenizer_use_mistral_common: true`, or `false`."
        )
        yield Finding(guessed, message, Severity.WARNING, keys=("tokenizer_use_mistral_common",))


PROCESSOR_KEYS: Final[Mapping[str, str]] = {
    "revision": "revision_of_model",
    "trust_remote_code": "trust_remote_code",
}


def _processor_has_own_keys(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Model, tokenizer and processor come from one revision, and whether their code may run is decided once.

    Hidden in `processor_kwargs` both would escape notice.
    """
    for name, key in PROCESSOR_KEYS.items():
        if name in (recipe.model.processor_kwargs or {}):
            state = state_of(recipe, key)
            message = (
                f"has no place here: the top-level `{key}` {state}, and decides. Write it there."
            )
            yield Finding(("processor_kwargs", name), message, keys=(key,))


RULES: Final = (
    Rule("R041", _media_need_raw_rows),
    Rule("R042", _raw_rows_stay_raw),
    Rule("R043", _mistral_common_is_fixed),
    Rule("R044", _mistral_common_is_said),
    Rule("R085", _processor_has_own_keys),
)
