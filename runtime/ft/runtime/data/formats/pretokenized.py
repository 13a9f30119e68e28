"""Rows that are tokens already: columns `input_ids`, `labels` and, if they are padded, `attention_mask`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, RowError, TokensRow, is_missing, kind

IGNORED = -100


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:  # noqa: ARG001  a format's signature
    """The tokens as they are, without the padding that `attention_mask` shows at the ends.

    Raises: RowError if lengths differ, something is no whole number, or a label is neither -100 nor its token.
    """
    ids, labels = _numbers(example, "input_ids"), _numbers(example, "labels")
    _same_length(ids, labels, "labels")
    for position, (token, label) in enumerate(zip(ids, labels, strict=True), start=1):
        if token < 0:
            raise RowError(f"`input_ids`: item {position} is {token}, no token.")
        if label not in (token, IGNORED):
            raise RowError(
                f"`labels`: item {position} is {label}, expected {IGNORED} or its token, {token}."
            )
    if is_missing(example.get("attention_mask")):
        return TokensRow(ids, labels)
    mask = _numbers(example, "attention_mask")
    _same_length(ids, mask, "attention_mask")
    begin, end = _unpadded(mask)
    if any(label != IGNORED for label in (*labels[:begin], *labels[end:])):
        raise RowError("`attention_mask` is 0 where `labels` has a token to train on.")
    return TokensRow(ids[begin:end], labels[begin:end])


def _numbers(example: Mapping[str, Any], column: str) -> list[int]:
    if column not in example:
        columns = ", ".join(f"`{name}`" for name in example) or "none"
        raise RowError(f"has no column `{column}`; its columns: {columns}. `type:` is not set.")
    values = example[column]
    if not isinstance(values, list | tuple):
        raise RowError(f"`{column}` holds {kind(values)}, expected a list of numbers.")
    for number, value in enumerate(values, start=1):
        if isinstance(value, bool) or not isinstance(value, int):
            said = str(value) if isinstance(value, float) else kind(value)
            raise RowError(f"`{column}`: item {number} is {said}, expected a whole number.")
    return list(values)


def _same_length(ids: Sequence[int], others: Sequence[int], column: str) -> None:
    if len(ids) != len(others):
        raise RowError(f"`input_ids` has {len(ids)} items, `{column}` has {len(others)}.")


def _unpadded(mask: list[int]) -> tuple[int, int]:
    """Where the ones begin and end. Raises: RowError if there are others, or zeros between them."""
    if not set(mask) <= {0, 1}:
        raise RowError("`attention_mask` holds something else than 0 and 1.")
    if 1 not in mask:
        return 0, 0
    begin, end = mask.index(1), len(mask) - mask[::-1].index(1)
    if 0 in mask[begin:end]:
        raise RowError(
            "`attention_mask` has zeros between ones; only padding at the ends can be left out."
        )
    return begin, end
