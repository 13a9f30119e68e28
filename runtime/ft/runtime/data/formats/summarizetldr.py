"""`summarizetldr`: an article and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, text_column
from ft.runtime.data.styles import answered

PROMPT = "USER: Summarize the following article as a TL;DR.\n{article}\nASSISTANT:"


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:  # noqa: ARG001  a format's signature
    """The article, then the summary, which is trained. Raises: RowError if one of them is missing."""
    prompt = PROMPT.format(article=text_column(example, "article"))
    return answered(prompt, text_column(example, "summary"))
