"""`explainchoice` and `concisechoice`: a question, choices, and the solution or its explanation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, RowError, is_missing, kind, text_column
from ft.runtime.data.styles import CHAT, INSTRUCT, Style, answered

# The second one has no style of its own for what stands in front.
TYPES: Final[Mapping[str, tuple[Style, str]]] = {
    "explainchoice": (
        INSTRUCT,
        "Choose the answer that best answers the question. Explain your reasoning.\n",
    ),
    "concisechoice": (
        Style("{system}", CHAT.with_input, CHAT.without_input),
        "Choose the answer that best answers the question. Be concise in your response.\n\n",
    ),
}


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """Question and choices, then `solution`, or where there is none `explanation`, which is trained.

    Raises: RowError if a column is missing or holds something else; choices are counted from 1.
    """
    style, preamble = TYPES[spec.type]
    question = text_column(example, "question")
    choices = example.get("choices")
    if not isinstance(choices, list | tuple):
        raise RowError(f"`choices` holds {kind(choices)}, expected a list.")
    for number, choice in enumerate(choices, start=1):
        if not isinstance(choice, str):
            raise RowError(f"`choices`: item {number} is {kind(choice)}, expected text.")
    listed = "\n".join(f'- "{choice}"' for choice in choices)
    answer = "explanation" if is_missing(example.get("solution")) else "solution"
    return answered(style.prompt(question, listed, preamble), text_column(example, answer))
