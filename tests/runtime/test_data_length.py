"""Length limits, and the function that filters with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import datasets
import numpy as np
import pytest

from ft.runtime.data.length import drop_long_seq
from ft.runtime.data.row import RowError

LIMITS = {"sequence_len": 4, "min_sequence_len": 2}


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([], False),
        ([7], False),
        ([7, 7], True),  # Both limits are inclusive.
        ([7, 7, 7, 7], True),
        ([7, 7, 7, 7, 7], False),
    ],
)
def test_one_row_gives_a_bool(ids: list[int], kept: bool) -> None:
    for row in (ids, tuple(ids), np.array(ids, dtype=np.int64), [np.int64(token) for token in ids]):
        result = drop_long_seq({"input_ids": row}, **LIMITS)
        assert result is kept, row


@pytest.mark.parametrize(
    ("batch", "kept"),
    [
        ([[]], [False]),
        ([[], [7, 7]], [False, True]),
        ([[7], [7, 7], [7] * 4, [7] * 5], [False, True, True, False]),
        ([np.array([7]), np.array([7, 7])], [False, True]),
        (np.array([[7, 7], [7, 7]]), [True, True]),
        (np.zeros((0, 3), dtype=np.int64), []),
    ],
)
def test_a_batch_gives_a_bool_for_each_row(batch: Any, kept: list[bool]) -> None:
    result = drop_long_seq({"input_ids": batch}, **LIMITS)
    assert result == kept
    assert isinstance(result, list)
    assert all(type(keep) is bool for keep in result)
    assert drop_long_seq({"input_ids": batch}, **LIMITS, batched=True) == kept


def test_an_empty_list_is_a_row_unless_it_is_said_to_be_a_batch() -> None:
    assert drop_long_seq({"input_ids": []}) is False
    assert drop_long_seq({"input_ids": []}, batched=False) is False
    assert drop_long_seq({"input_ids": []}, batched=True) == []
    assert drop_long_seq({"input_ids": np.array([], dtype=np.int64)}) is False


def test_the_limits_have_the_defaults_of_axolotl() -> None:
    lengths = [1, 2, 2048, 2049]
    batch = {"input_ids": [[7] * length for length in lengths]}
    assert drop_long_seq(batch) == [False, True, True, False]
    assert drop_long_seq(batch, 2048, 0) == [False, True, True, False]
    assert drop_long_seq(batch, 2048, None) == [False, True, True, False]
    assert drop_long_seq(batch, 2048, 1) == [True, True, True, False]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("said", [None, True])
def test_datasets_filter_with_it(batched: bool, said: bool | None) -> None:
    rows = datasets.Dataset.from_dict(
        {"input_ids": [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5]]}
    )
    function = partial(drop_long_seq, batched=said and batched)
    kept = rows.filter(function, batched=batched, batch_size=2, fn_kwargs=LIMITS)
    assert kept["input_ids"][:] == [[1, 2], [1, 2, 3, 4]]


def test_a_sample_that_is_not_what_it_is_said_to_be_is_refused() -> None:
    with pytest.raises(RowError, match="`input_ids` is one row, but batched=True"):
        drop_long_seq({"input_ids": [1, 2]}, batched=True)
    with pytest.raises(RowError, match="`input_ids` is a batch, but batched=False"):
        drop_long_seq({"input_ids": [[1, 2]]}, batched=False)
    with pytest.raises(RowError, match="has no `input_ids`; it is not tokenized yet"):
        drop_long_seq({"text": "Hi"})
