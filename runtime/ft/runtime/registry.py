"""name -> "module:attr" for everything heavy. The light facts stand in `ft.recipes.catalog`, under the same names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

FORMATS: Final[Mapping[str, str]] = {
    "alpaca": "ft.runtime.data.formats.alpaca:rows",
    "chat_template": "ft.runtime.data.formats.chat_template:rows",
    "completion": "ft.runtime.data.formats.completion:rows",
    "input_output": "ft.runtime.data.formats.input_output:rows",
}
METHODS: Final[Mapping[str, str]] = {"sft": "ft.runtime.methods.sft:build"}
ADAPTERS: Final[Mapping[str, str]] = {
    "full": "ft.runtime.adapters.full:wrap",
    "lora": "ft.runtime.adapters.lora:wrap",
}


def target(table: Mapping[str, str], name: str) -> Any:
    """Import what `name` stands for. A missing dependency is an ImportError, never an unknown name."""
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
