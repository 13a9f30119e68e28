"""`type: completion`: plain text, all of it trained; a long text becomes several rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, Segment, SegmentsRow, text_column


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """The whole text of column `field`. Raises: RowError if there is none."""
    text = text_column(example, spec.field)
    return SegmentsRow((Segment(text, train=True),), special_tokens=True, eos=True, chunks=True)
