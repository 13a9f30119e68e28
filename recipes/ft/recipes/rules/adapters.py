"""Rules about adapters: what they are put on, what they start from, and what stays untrained beneath them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import BITS, said, value_of, word
from ft.recipes.schema import FlatRecipe


def _adapter_on_parameters(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """PEFT adapts a bare parameter by adding to the weight itself.

    There is no input to drop from and no layer to transpose or to split into direction and
    magnitude, so it refuses these keys.
    """
    if not recipe.adapter.lora_target_parameters:
        return
    for key, other in (
        ("lora_dropout", "0"),
        ("lora_fan_in_fan_out", "false"),
        ("peft_use_dora", "false"),
    ):
        value = value_of(recipe, key)
        if value:
            message = (
                f"`{word(value)}` does not go with `lora_target_parameters`. Write `{key}: "
                f"{other}`."
            )
            yield Finding((key,), message, keys=("lora_target_parameters",))


def _first_weights(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """LoftQ and PiSSA compute the first adapter from the weights.

    LoftQ must be told for which quantization, and PiSSA needs singular values, which quantized
    weights do not give.
    """
    init, peft = recipe.adapter.peft_init_lora_weights, recipe.adapter.peft
    key: KeyPath = ("peft_init_lora_weights",)
    if init == "loftq" and (peft is None or peft.loftq_config is None):
        message = (
            "`loftq` needs `loftq_config` in `peft`, which is not set. Write `peft: "
            "{loftq_config: {loftq_bits: 4}}`."
        )
        yield Finding(key, message, keys=("peft",))
    if isinstance(init, str) and init.startswith("pissa"):
        for bits in BITS:
            if value_of(recipe, bits):
                message = (
                    f"`{word(init)}` needs weights in 16 bits, but `{bits}: true`. Write `true` "
                    f"here, or take `{bits}` out."
                )
                yield Finding(key, message, keys=(bits,))


ROWS: Final = r"(?s)^(?P<pattern>.*)\[(?P<first>\d*):(?P<end>\d*)\]$"
"""Some rows of a weight; a string, so that it is compiled when it is first needed."""


def _patterns(recipe: FlatRecipe) -> Iterator[tuple[KeyPath, str]]:
    """Everything in the recipe that is a regular expression for names of weights."""
    targets = recipe.adapter.lora_target_modules
    if isinstance(targets, str):
        yield ("lora_target_modules",), targets
    for index, name in enumerate(targets if isinstance(targets, tuple) else ()):
        yield ("lora_target_modules", index), name
    for key in ("lora_rank_pattern", "lora_alpha_pattern"):
        for name in value_of(recipe, key) or ():
            yield (key, name), name
    for index, name in enumerate(recipe.model.unfrozen_parameters or ()):
        yield ("unfrozen_parameters", index), name


def _why_no_pattern(text: str) -> str:
    """What is wrong with a regular expression; empty if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(text)
        except re.error as error:
            return str(error)
        except (OverflowError, RecursionError):
            return "it is too large"
    return ""


def _patterns_compile(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Names of weights are matched as regular expressions.

    One that is broken, or a range of rows without rows, would stop the run only after the model
    was loaded.
    """
    for key, text in _patterns(recipe):
        rows = re.match(ROWS, text) if key[0] == "unfrozen_parameters" else None
        if why := _why_no_pattern(rows["pattern"] if rows else text):
            shown = word(text) if len(text) <= 60 else f"{word(text[:57])}..."
            yield Finding(key, f"{shown} is no regular expression: {why}. Mend it.")
        elif rows and rows["end"] and int(rows["end"]) <= int(rows["first"] or 0):
            message = (
                f"[{rows['first']}:{rows['end']}] has no rows. Write the first row and the one "
                "after the last."
            )
            yield Finding(key, message)


def _layers_chosen_once(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Which layers are trained is said once.

    By numbers, by one regular expression over whole names, beside which PEFT refuses numbers,
    or by `unfrozen_parameters`.
    """
    keys, layers = recipe.adapter, recipe.adapter.peft_layers_to_transform
    if not layers or keys.adapter is None:
        return
    at: KeyPath = ("peft_layers_to_transform",)
    if isinstance(keys.lora_target_modules, str):
        message = (
            "does not go with a regular expression in `lora_target_modules`. Write a list of "
            "names there."
        )
        yield Finding(at, message, keys=("lora_target_modules",))
    if recipe.model.unfrozen_parameters:
        message = (
            "stands beside `unfrozen_parameters`; both decide which layers are trained. Keep one."
        )
        yield Finding(at, message, keys=("unfrozen_parameters",))


def _adapter_wraps_plain_layers(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """An adapter wraps linear layers as transformers builds them.

    A fused MLP, 1.58-bit layers of BitNet and the imitating layers of quantization-aware
    training take their place.
    """
    if recipe.adapter.adapter is None:
        return
    for key in ("flash_attn_fuse_mlp", "use_onebitllms", "qat"):
        if value_of(recipe, key):
            message = (
                f"replaces linear layers, so {said(recipe, 'adapter')} has none to wrap. Take "
                "one of the two out."
            )
            yield Finding((key,), message, keys=("adapter",))


EMBEDDINGS: Final[Mapping[str, tuple[str, str]]] = {
    "gpt_neox": ("embed_in", "embed_out"),
    "falcon": ("word_embeddings", "lm_head"),
}
"""`model_type` -> names of its embeddings and its head, where they are not the usual ones."""


def _trains_vocabulary(recipe: FlatRecipe, *, tied: bool) -> bool:
    """Whether an adapter run trains embeddings and head, under whatever names the model has for them."""
    keys = recipe.adapter
    if keys.peft_trainable_token_indices:
        return True
    targets = keys.lora_target_modules or ()
    names = [
        *(keys.lora_modules_to_save or ()),
        *([targets] if isinstance(targets, str) else targets),
    ]
    embeddings = any(re.search("emb|wte", name) for name in names)
    return embeddings and (tied or any(re.search("head|embed_out|output", name) for name in names))


def _new_tokens_are_trained(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """A new token begins with an embedding that means nothing.

    An adapter leaves embeddings and head frozen, so the model could neither read nor write the
    token, unless both are trained as well.
    """
    config = facts.model_config or {}
    tied = bool(config.get("tie_word_embeddings"))
    if recipe.adapter.adapter is None or _trains_vocabulary(recipe, tied=tied):
        return
    special = recipe.model.special_tokens
    added: list[KeyPath] = [
        (key,) for key in ("tokens", "added_tokens_overrides") if value_of(recipe, key)
    ]
    if special is not None and special.additional_special_tokens:
        added.append(("special_tokens", "additional_special_tokens"))
    # Text in any sane file; but somebody else wrote this one.
    usual = EMBEDDINGS.get(str(config.get("model_type")), ("embed_tokens", "lm_head"))
    names = ", ".join(usual[:1] if tied else usual)
    for key in added:
        message = (
            f"new tokens stay untrained with {said(recipe, 'adapter')}. Write "
            f"`lora_modules_to_save: [{names}]`."
        )
        yield Finding(key, message, Severity.WARNING, keys=("adapter", "lora_modules_to_save"))


def _mended_tokens_are_trained(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The mean of all embeddings is only a place to start from.

    A token that is set to it and is not among those that are trained keeps it.
    """
    fixed, trained = recipe.model.fix_untrained_tokens, recipe.adapter.peft_trainable_token_indices
    if fixed is None or not trained:
        return
    lists = trained.values() if isinstance(trained, dict) else [trained]
    known = {index for indices in lists for index in indices}
    missing = sorted({fixed} - known if isinstance(fixed, int) else set(fixed) - known)
    if missing:
        message = (
            f"{missing[0]} is not in `peft_trainable_token_indices`, so it keeps the mean "
            "embedding. Add it there."
        )
        yield Finding(
            ("fix_untrained_tokens",),
            message,
            Severity.WARNING,
            keys=("peft_trainable_token_indices",),
        )


def _random_weights_are_trained(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """An adapter changes a model a little; the random weights below it would stay random."""
    if recipe.model.reinit_weights and recipe.adapter.adapter is not None:
        message = f"`true` leaves only random weights below {said(recipe, 'adapter')}. Take one of the two out."
        yield Finding(("reinit_weights",), message, Severity.WARNING, keys=("adapter",))


SEVERAL: Final = r"[\w.]+(\s*,\s*[\w.]+)+,?"
"""Names with commas between them, and nothing of a regular expression."""


def _names_are_a_list(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """One text is one name, or one regular expression: no module is called `q_proj,v_proj`.

    The run would stop after the model was loaded, or train nothing of what was meant.
    """
    for key in ("lora_target_modules", "lora_modules_to_save", "lora_target_parameters"):
        value = value_of(recipe, key)
        for index, name in enumerate((value,) if isinstance(value, str) else value or ()):
            if not re.fullmatch(SEVERAL, name):
                continue
            at: KeyPath = (key,) if isinstance(value, str) else (key, index)
            names = ", ".join(part.strip() for part in name.split(",") if part.strip())
            yield Finding(
                at, f"`{name}` is one name with a comma in it. Write a list: `[{names}]`."
            )


RULES: Final = (
    Rule("R067", _adapter_on_parameters),
    Rule("R068", _first_weights),
    Rule("R069", _patterns_compile),
    Rule("R070", _layers_chosen_once),
    Rule("R071", _adapter_wraps_plain_layers),
    Rule("R075", _new_tokens_are_trained),
    Rule("R076", _mended_tokens_are_trained),
    Rule("R083", _random_weights_are_trained),
    Rule("R136", _names_are_a_list),
)
