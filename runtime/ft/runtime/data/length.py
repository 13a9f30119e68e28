"""What happens to a row that is too long or too short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np

from ft.runtime.data.row import RowError


def drop_long_seq(
    sample: Mapping[str, Any],
    sequence_len: int = 2048,
    min_sequence_len: int | None = 2,
    *,
    batched: bool | None = None,
) -> bool | list[bool]:
    """Whether to keep a row: `min_sequence_len <= len(input_ids) <= sequence_len`; never an empty one.

    For `datasets.Dataset.filter`, with and without `batched=True`. `input_ids` of one row (ids) gives a
    bool, of a batch (rows) one bool for each. Which of the two it is shows in the first element, so an
    empty list says nothing: it is taken for a row and gives False. Where an empty batch can come, say
    `batched=True` and it gives []; for `filter` with `functools.partial`, since its own argument of
    that name does not reach here.
    A `min_sequence_len` of 0 or None means 2.

    Raises: RowError if there are no `input_ids`, or they do not look like `batched` says.
    """
    if "input_ids" not in sample:
        raise RowError("has no `input_ids`; it is not tokenized yet.")
    ids = sample["input_ids"]
    shortest = min_sequence_len or 2
    is_batch = _is_batch(ids)
    if batched is not None and is_batch not in (None, batched):
        raise RowError(
            f"`input_ids` is {'a batch' if is_batch else 'one row'}, but batched={batched}."
        )
    if batched if is_batch is None else is_batch:
        return [shortest <= len(row) <= sequence_len for row in ids]
    return bool(shortest <= len(ids) <= sequence_len)


class Fit(StrEnum):
    """What became of a row; the names are those of the counts."""

    KEPT = "kept"
    TOO_LONG = "too_long"
    TOO_SHORT = "too_short"
    TRUNCATED = "truncated"


def _is_batch(ids: Sequence[Any] | np.ndarray) -> bool | None:
    """Rows (True) or ids (False); None if there is nothing to tell it by."""
    if isinstance(ids, np.ndarray) and (
        ids.ndim > 1 or (ids.dtype != object and ids.dtype.kind in "iu")
    ):
        return ids.ndim > 1
    return hasattr(ids[0], "__len__") and np.ndim(ids[0]) > 0 if len(ids) else None
