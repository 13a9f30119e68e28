"""`type: alpaca`: instruction, input?, output. The prompt is worded as Axolotl's instruct style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, Segment, SegmentsRow, text_column

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:  # noqa: ARG001  a format's signature
    """The prompt, then the response that is trained. An `input` that is null or "" counts as none.

    Raises: RowError if `instruction` or `output` is missing, or a column holds something else than text.
    """
    instruction = text_column(example, "instruction")
    context = "" if example.get("input") is None else text_column(example, "input")
    template = WITH_INPUT if context else WITHOUT_INPUT
    prompt = template.format(instruction=instruction, input=context)
    response = text_column(example, "output")
    segments = (Segment(prompt, train=False), Segment(response, train=True))
    return SegmentsRow(segments, special_tokens=True, eos=True)
