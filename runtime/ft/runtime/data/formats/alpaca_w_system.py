"""Instructions with a system prompt in each row: `alpaca_w_system` with its loaders, and `orcamini`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, optional_text, text_column
from ft.runtime.data.styles import CHAT, CHATML, Style, answered

ORCA: Final = Style(
    system="### System:\n{system}\n",
    with_input="### Human:\n{instruction}\n### Additional Context:\n{input}\n### Assistant:\n",
    without_input="### Human:\n{instruction}\n### Assistant:\n",
)
ORCAMINI: Final = Style(
    system="### System:\n{system}\n\n",
    with_input="",
    without_input="### User:\n{instruction}\n\n### Response:\n",
)


@dataclass(frozen=True, slots=True)
class _Type:
    style: Style
    system: str = "system"
    instruction: str = "instruction"
    input: str | None = "input"
    output: str = "output"
    always_system: bool = False
    """Whether an empty system prompt is written too."""


TYPES: Final[Mapping[str, _Type]] = {
    "alpaca_w_system": _Type(CHAT),
    "alpaca_w_system.load_chat": _Type(CHAT),
    "alpaca_w_system.load_open_orca": _Type(ORCA, "system_prompt", "question", None, "response"),
    "alpaca_w_system.load_open_orca_chatml": _Type(
        CHATML, "system_prompt", "question", None, "response"
    ),
    "orcamini": _Type(ORCAMINI, "system_prompt", "question", None, "response", True),
}


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """The system prompt unless it is empty, the prompt, then the response that is trained.

    Raises: RowError if a column is missing, or holds something else than text; the system prompt and the
    input may be missing or null.
    """
    type_ = TYPES[spec.type]
    system = optional_text(example, type_.system)
    instruction = text_column(example, type_.instruction)
    context = optional_text(example, type_.input) if type_.input else ""
    prompt = type_.style.prompt(instruction, context, system)
    if type_.always_system and not system:
        prompt = type_.style.system.format(system="") + prompt
    return answered(prompt, text_column(example, type_.output))
