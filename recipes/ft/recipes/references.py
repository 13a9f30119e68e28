"""Which values of a recipe name files. Pure: whether they exist is a fact, not looked up here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ft.recipes.catalog import LOCAL_SUFFIXES
from ft.recipes.errors import KeyPath
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.dataset import DatasetKeys

Kind = Literal["data", "model", "template"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that may be a local file or folder."""

    key: KeyPath
    value: str
    kind: Kind

    @property
    def must_be_local(self) -> bool:
        """Whether the spelling alone says that it is a path: `./x`, `/x`, `~`, a known suffix, or no hub id."""
        looks = self.value.startswith((".", "/", "~")) or self.value.lower().endswith(
            LOCAL_SUFFIXES
        )
        return looks or not _HUB_ID.match(self.value)


def references(recipe: FlatRecipe) -> Iterator[Reference]:
    """Every value that may name a file, in the order of the sections."""
    model, data = recipe.model, recipe.data
    for key in ("base_model", "base_model_config", "tokenizer_config"):
        value = getattr(model, key)
        if value is not None:
            yield Reference((key,), value, "model")
    for at, dataset in dataset_entries(recipe):
        yield Reference((*at, "path"), dataset.path, "data")
        jinja = dataset.chat_template_jinja
        if jinja is not None and not is_inline_template(jinja):
            yield Reference((*at, "chat_template_jinja"), jinja, "template")
    if data.chat_template_jinja is not None and not is_inline_template(data.chat_template_jinja):
        yield Reference(("chat_template_jinja",), data.chat_template_jinja, "template")


def dataset_entries(recipe: FlatRecipe) -> Iterator[tuple[KeyPath, DatasetKeys]]:
    """The data sets that rows are made of: those that are trained on, then those that are evaluated on."""
    for key in ("datasets", "test_datasets"):
        for index, dataset in enumerate(getattr(recipe.data, key) or ()):
            yield (key, index), dataset


def is_inline_template(text: str) -> bool:
    """A template has braces or lines; a path has neither."""
    return "{" in text or "\n" in text
