"""Batches, spelled out as whole tensors."""

from __future__ import annotations

import numpy as np
import torch

from ft.runtime.data.collate import collate


def test_rows_are_padded_on_the_right_to_the_longest_of_the_batch() -> None:
    batch = collate(
        [
            {"input_ids": [11, 12, 13], "labels": [-100, 12, 13], "row_id": 0},
            {"input_ids": [21], "labels": [-100], "row_id": 1},
        ],
        pad_token_id=9,
    )
    assert list(batch) == ["input_ids", "labels", "attention_mask"]
    assert batch["input_ids"].tolist() == [
        [11, 12, 13],
        [21, 9, 9],  # two of padding
    ]
    assert batch["labels"].tolist() == [
        [-100, 12, 13],
        [-100, -100, -100],  # padding has no label
    ]
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1],
        [1, 0, 0],
    ]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_pad_token_inside_a_row_is_no_padding() -> None:
    # SmolLM2 pads with its EOS: the one that ends a turn is attended to and trained.
    batch = collate([{"input_ids": [5, 2], "labels": [5, 2]}, {"input_ids": [5], "labels": [5]}], 2)
    assert batch["labels"].tolist() == [[5, 2], [5, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_no_rows_give_one_inert_row() -> None:
    batch = collate([], pad_token_id=9)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[9]],
        "labels": [[-100]],
        "attention_mask": [[1]],
    }


def test_rows_may_be_numpy_arrays() -> None:
    row = {
        "input_ids": np.array([1, 2], dtype=np.int32),
        "labels": np.array([-100, 2], dtype=np.int32),
    }
    assert collate([row], 0)["labels"].tolist() == [[-100, 2]]
