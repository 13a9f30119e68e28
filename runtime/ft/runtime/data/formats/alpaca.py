"""Instruction, input?, output under a preamble: `alpaca` with its styles, and formats that differ in their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, optional_text, text_column
from ft.runtime.data.styles import CHAT, CHATML, INSTRUCT, PHI, Style, answered


@dataclass(frozen=True, slots=True)
class Preamble:
    """What stands in front of every instruction; the two differ in whether there is an input."""

    with_input: str
    without_input: str


TASK: Final = Preamble(
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
)
# The line breaks at the end come in front of the style's own.
CONCISE: Final = Preamble(
    "Below is an instruction from a USER that describes a task, paired with an input that provides further "
    "context. The ASSISTANT writes a response that concisely and appropriately completes the request.\n\n",
    "Below is an instruction from a USER that describes a task. "
    "The ASSISTANT writes a response that appropriately and concisely completes the request.\n\n",
)
NONE: Final = Preamble("", "")


@dataclass(frozen=True, slots=True)
class _Type:
    style: Style
    preamble: Preamble = TASK
    instruction: str = "instruction"
    input: str | None = "input"
    """Column that may be missing; None: there never is one."""
    output: str = "output"
    answer: str = "{output}"


TYPES: Final[Mapping[str, _Type]] = {
    "alpaca": _Type(INSTRUCT),
    "alpaca:instruct": _Type(INSTRUCT),
    "alpaca:chat": _Type(CHAT),
    "alpaca:chatml": _Type(CHATML),
    "alpaca:phi": _Type(PHI),
    "alpaca_instruct": _Type(INSTRUCT),
    "alpaca_instruct.load_no_prompt": _Type(INSTRUCT, NONE),
    "alpaca_chat": _Type(CHAT),
    "alpaca_chat.load_concise": _Type(CHAT, CONCISE),
    "alpaca_chat.load_no_prompt": _Type(CHAT, NONE),
    "alpaca_chat.load_qa": _Type(CHAT, CONCISE, "question", None, "answer"),
    "alpaca_chat.load_camel_ai": _Type(CHAT, CONCISE, "message_1", None, "message_2"),
    "gpteacher": _Type(INSTRUCT, output="response"),
    "oasst": _Type(INSTRUCT, TASK, "INSTRUCTION", None, "RESPONSE"),
    "jeopardy": _Type(INSTRUCT, TASK, "question", "category", "answer", "what is {output}"),
}


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """The prompt, then the response that is trained. An input that is null or "" counts as none.

    Raises: RowError if a column is missing, or holds something else than text.
    """
    type_ = TYPES[spec.type]
    instruction = text_column(example, type_.instruction)
    context = optional_text(example, type_.input) if type_.input else ""
    preamble = type_.preamble.with_input if context else type_.preamble.without_input
    response = type_.answer.format(output=text_column(example, type_.output))
    return answered(type_.style.prompt(instruction, context, preamble), response)
