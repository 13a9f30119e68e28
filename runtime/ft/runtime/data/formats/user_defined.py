"""A format of the user's own: columns of a row, and how the prompt is put together from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, RowError, optional_text, text_column
from ft.runtime.data.styles import Style, answered


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """System prompt, prompt, then the answer, which is trained.

    The row's own system prompt goes before the recipe's; one that is empty is not written.
    Raises: RowError if a column is missing, or the recipe's text cannot be filled in.
    """
    own = spec.user_defined
    assert own is not None, "a plan with this type has it"
    system = optional_text(example, own.field_system) or own.system_prompt
    instruction = text_column(example, own.field_instruction)
    context = optional_text(example, own.field_input)
    style = Style(own.system_format, own.format, own.no_input_format)
    try:
        prompt = style.prompt(instruction, context, system)
    except (ValueError, LookupError, AttributeError) as error:
        raise RowError(f"the format of the recipe cannot be filled in: {error}.") from error
    return answered(prompt, text_column(example, own.field_output))
