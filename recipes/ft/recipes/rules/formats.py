"""Rules about how a row of a data set becomes tokens: its format, its templates, and which of it is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.nearest import suggestion
from ft.recipes.references import dataset_entries
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import datasets_of, is_on, quoted
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.dataset import DatasetKeys, UserDefinedType
from ft.recipes.vocabulary import DATASET_TYPES

OLD_CONVERSATIONS: Final = "sharegpt"
PAIR_TYPES: Final = frozenset({"chatml", "llama3", "passthrough", "zephyr"})
"""First words of formats whose rows are answers to be compared."""
ANY_METHOD: Final = frozenset({"chat_template", "user_defined"})
"""First words of formats that supervised training and preferences both have."""
SCORED_TYPES: Final = {
    "bradley_terry": ("reward_model", "bradley_terry.chat_template"),
    "stepwise_supervised": ("process_reward_model", "stepwise_supervised"),
}
"""First word of a format -> the switch that it needs, and a format of that kind."""
PAIR_METHODS: Final = frozenset({"dpo", "ipo", "simpo", "orpo", "kto"})
PAIR_FORMATS: Final = {
    "dpo": ("answers to compare", "chat_template.default"),
    "orpo": ("answers to compare", "chat_template.argilla"),
    "kto": ("judged answers", "chatml.intel"),
}
"""Method -> what its rows are, and a format for them; the methods that are not here are like `dpo`."""


def _first_word(name: str) -> str:
    return re.split(r"[.:]", name, maxsplit=1)[0]


def _types_are_known(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`type` names the code that reads a row: one of Axolotl's formats, or a function of one's own.

    A name with a dot that begins like one of Axolotl's, and is none, is often misspelled.
    """
    ours = {_first_word(name) for name in DATASET_TYPES}
    for at, dataset in datasets_of(recipe):
        name, key = dataset.type, (*at, "type")
        if not isinstance(name, str) or name in DATASET_TYPES:
            continue
        if name.startswith(OLD_CONVERSATIONS):
            message = (
                f"`{name}` is gone. Write `type: chat_template`, `field_messages: conversations` and "
                "`message_property_mappings: {role: from, content: value}`."
            )
            yield Finding(key, message)
        elif "." not in name:
            yield Finding(key, f"`{name}` is no format.{suggestion(name, DATASET_TYPES)}")
        elif _first_word(name) in ours and (near := suggestion(name, DATASET_TYPES)):
            message = f"`{name}` is not in Axolotl; it must be a module of yours.{near}"
            yield Finding(key, message, Severity.WARNING)


def _types_fit_the_method(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Supervised training learns from texts, preference methods from answers compared, reward models from scores.

    A format for the one makes columns that the other does not find.
    """
    rl = recipe.method.rl
    if rl is not None and rl not in PAIR_METHODS:
        return
    for at, dataset in dataset_entries(recipe):
        name = dataset.type
        if not isinstance(name, str) or name not in DATASET_TYPES:
            continue
        if _first_word(name) in SCORED_TYPES:
            switch, message = _scores_nobody(recipe, name)
        elif rl is None:
            switch, message = _scored_or_compared(recipe, name)
        else:
            switch, message = "rl", _not_compared(rl, name)
        if message:
            yield Finding((*at, "type"), message, keys=(switch,))


def _scores_nobody(recipe: FlatRecipe, name: str) -> tuple[str, str]:
    """The key that decides, and what is wrong with scored answers."""
    switch, _kind = SCORED_TYPES[_first_word(name)]
    missing = f"`{name}` makes scored answers. Write `{switch}: true`."
    return switch, "" if is_on(recipe, switch) else missing


def _scored_or_compared(recipe: FlatRecipe, name: str) -> tuple[str, str]:
    """The key that decides, and what is wrong with rows that have no scores, without `rl`."""
    for switch, kind in SCORED_TYPES.values():
        if is_on(recipe, switch):
            message = f"`{name}` makes no scored answers, which `{switch}: true` needs. Write `type: {kind}`."
            return switch, message
    if _first_word(name) not in PAIR_TYPES:
        return "rl", ""
    message = f"`{name}` makes answers to compare, and `rl` is not set. "
    return "rl", message + "Write `rl: dpo`, or `type: chat_template` for conversations."


def _not_compared(rl: str, name: str) -> str:
    if _first_word(name) in PAIR_TYPES | ANY_METHOD:
        return ""
    what, kind = PAIR_FORMATS.get(rl, PAIR_FORMATS["dpo"])
    return (
        f"`{name}` makes no {what}, which `rl: {rl}` needs. Write `type: {kind}`, or take out `rl`."
    )


PLACEHOLDERS: Final = {
    "system_format": ("system",),
    "format": ("instruction", "input"),
    "no_input_format": ("instruction",),
    "prompt_format": ("system", "prompt"),
    "chosen_format": ("chosen",),
    "rejected_format": ("rejected",),
    "completion_format": ("completion",),
}
"""Key of a format of one's own -> the names that may stand in braces."""


def _names_in_braces(text: str) -> list[str]:
    """What a format would fill in; ValueError if its braces do not match."""
    from string import Formatter  # Few recipes have a format of their own.

    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]


def _placeholders_are_filled(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A format of one's own is filled in row by row; a name in braces that nobody fills stops the run."""
    for at, dataset in dataset_entries(recipe):
        if not isinstance(dataset.type, UserDefinedType):
            continue
        for key, known in PLACEHOLDERS.items():
            text = getattr(dataset.type, key)
            if text is None:
                continue
            try:
                found = _names_in_braces(text)
            except ValueError:
                message = "has a single brace. Write `{{` or `}}` for a brace that is text."
                yield Finding((*at, "type", key), message)
                continue
            for name in dict.fromkeys(found):
                if re.split(r"[.[]", name, maxsplit=1)[0] not in known:
                    names = " and ".join(f"`{{{one}}}`" for one in known)
                    message = (
                        f"nothing fills in `{{{name}}}`, only {names}. "
                        f"Rename it, or write `{{{{{name}}}}}` for text."
                    )
                    yield Finding((*at, "type", key), message)


def _template_of_a_dataset(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A data set may have a chat template of its own; `jinja` means the text beside it, not the recipe's.

    Under any other name that text is not read.
    """
    for at, dataset in dataset_entries(recipe):
        template, jinja = dataset.chat_template, dataset.chat_template_jinja
        if template == "jinja" and jinja is None:
            message = "`jinja` needs `chat_template_jinja` in the same data set. Write it there."
            yield Finding((*at, "chat_template"), message)
        elif jinja is not None and template not in {None, "jinja"}:
            message = (
                f"has no effect beside `chat_template: {template}`. Write `chat_template: jinja`."
            )
            yield Finding((*at, "chat_template_jinja"), message, Severity.WARNING)


DEFAULT_ROLES: Final = frozenset({"assistant", "gpt", "human", "system", "tool", "user"})


def _roles_can_occur(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Turns are trained by their role, and a role that nobody knows occurs only if rows say it just so.

    Otherwise nothing is trained, and the loss does not show why.
    """
    for at, dataset in dataset_entries(recipe):
        if dataset.roles_to_train is None:
            continue
        key = (*at, "roles_to_train")
        if not dataset.roles_to_train and not _trains_without_roles(recipe, dataset):
            message = (
                "`[]` trains no turn. Name a role, or take it out to train the assistant's turns."
            )
            yield Finding(key, message, keys=("train_on_inputs",))
        roles = dataset.roles or {}
        known = {*DEFAULT_ROLES, *roles, *(name for names in roles.values() for name in names)}
        for role in dataset.roles_to_train:
            if role not in known:
                near = suggestion(role, known) or " Add it to `roles`."
                names = ", ".join(sorted(known))
                message = f"`{role}` is none of {names}: only rows that say just so have it.{near}"
                yield Finding(key, message, Severity.WARNING)


def _trains_without_roles(recipe: FlatRecipe, dataset: DatasetKeys) -> bool:
    flags = (dataset.message_field_training, dataset.message_field_training_detail)
    ends = (dataset.train_on_eos, dataset.train_on_eot)
    return bool(recipe.data.train_on_inputs) or any(flags) or "all" in ends


def _one_choice_for_a_token(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`train_on_eos` decides about the EOS token, `train_on_eot` about `eot_tokens`.

    Where EOS is one of those, or `eot_tokens` is not set and means EOS, both decide about the same token.
    """
    tokens = recipe.model.special_tokens
    eos = tokens.eos_token if tokens else None
    ends = recipe.data.eot_tokens
    if ends is not None and eos not in ends:
        return
    for at, dataset in dataset_entries(recipe):
        eot, on_eos = dataset.train_on_eot, dataset.train_on_eos or "turn"
        if eot is None or eot == on_eos:
            continue
        why = (
            f"about `{eos}`, which is in `eot_tokens`"
            if ends
            else "about EOS, as `eot_tokens` is not set"
        )
        message = f"`{eot}` beside {quoted('train_on_eos', on_eos)}: both are {why}. Write `train_on_eot: {on_eos}`."
        yield Finding((*at, "train_on_eot"), message, keys=("eot_tokens", "special_tokens"))


GIVEN: Final = frozenset(
    """
    add_generation_prompt chat_template continue_final_message conversation max_length messages padding
    return_assistant_tokens_mask return_dict return_tensors tokenize tokenizer_kwargs tools truncation
    """.split()
)
"""What whoever renders a template says himself."""


def _template_values_are_its_own(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`chat_template_kwargs` are values that a template reads beside those that every template is given.

    Two values for one name would end the run at the first row.
    """
    for name in sorted(GIVEN & set(recipe.data.chat_template_kwargs or {})):
        message = "every template is given that already. Take it out."
        yield Finding(("chat_template_kwargs", name), message)


RULES: Final = (
    Rule("R020", _types_are_known),
    Rule("R021", _types_fit_the_method),
    Rule("R022", _placeholders_are_filled),
    Rule("R026", _template_of_a_dataset),
    Rule("R027", _roles_can_occur),
    Rule("R028", _one_choice_for_a_token),
    Rule("R166", _template_values_are_its_own),
)
