"""name -> "module:attr" for everything heavy. The light facts stand in `ft.recipes.catalog`, under the same names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

FORMATS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "alpaca",
            "alpaca:chat",
            "alpaca:chatml",
            "alpaca:instruct",
            "alpaca:phi",
            "alpaca_chat",
            "alpaca_chat.load_camel_ai",
            "alpaca_chat.load_concise",
            "alpaca_chat.load_no_prompt",
            "alpaca_chat.load_qa",
            "alpaca_instruct",
            "alpaca_instruct.load_no_prompt",
            "gpteacher",
            "jeopardy",
            "oasst",
        ),
        "ft.runtime.data.formats.alpaca:rows",
    ),
    **dict.fromkeys(
        (
            "alpaca_w_system",
            "alpaca_w_system.load_chat",
            "alpaca_w_system.load_open_orca",
            "alpaca_w_system.load_open_orca_chatml",
            "orcamini",
        ),
        "ft.runtime.data.formats.alpaca_w_system:rows",
    ),
    **dict.fromkeys(
        (
            "concisechoice",
            "explainchoice",
        ),
        "ft.runtime.data.formats.choices:rows",
    ),
    **dict.fromkeys(
        (
            "context_qa",
            "context_qa.load_404",
            "context_qa.load_v2",
        ),
        "ft.runtime.data.formats.context_qa:rows",
    ),
    "chat_template": "ft.runtime.data.formats.chat_template:rows",
    "completion": "ft.runtime.data.formats.completion:rows",
    "input_output": "ft.runtime.data.formats.input_output:rows",
    "pretokenized": "ft.runtime.data.formats.pretokenized:rows",
    "summarizetldr": "ft.runtime.data.formats.summarizetldr:rows",
    "user_defined": "ft.runtime.data.formats.user_defined:rows",
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
