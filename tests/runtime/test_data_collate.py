"""Batches, spelled out as whole tensors."""

from __future__ import annotations

import numpy as np
import torch

from ft.runtime.data.collate import collate, collate_packs


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


def test_a_batch_may_be_padded_further_than_its_longest_row() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]
    assert collate(rows, 0, pad_to=5)["input_ids"].tolist() == [[5, 6, 7, 0, 0]]
    assert collate(rows, 0, pad_to=2)["input_ids"].tolist() == [[5, 6, 7]]
    assert collate([], 9, pad_to=3)["attention_mask"].tolist() == [[1, 0, 0]]


def row(*ids: int) -> dict[str, list[int]]:
    return {"input_ids": list(ids), "labels": list(ids)}


def test_a_pack_is_its_rows_end_to_end_with_positions_of_their_own() -> None:
    found = collate_packs([[row(5, 6, 7), row(8, 9)], [row(1)]], 0, pad_to=7)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
        # A row's first token would be predicted from another row; padding trains nothing.
        "labels": [[-100, 6, 7, -100, 9, -100, -100], [-100] * 7],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in found.values())


def test_packs_are_padded_to_the_longest_one_unless_further() -> None:
    packs = [[row(5, 6, 7), row(8, 9)], [row(1)]]
    assert collate_packs(packs, 0)["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert collate_packs(packs, 0, pad_to=2)["input_ids"].shape == (2, 5)


def test_packs_may_follow_each_other_in_one_row() -> None:
    packs = [[row(5, 6, 7)], [row(1), row(2)]]
    found = collate_packs(packs, 0, end_to_end=True)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "input_ids": [[5, 6, 7, 1, 2, 0]],
        "labels": [[-100, 6, 7, -100, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 0, 0]],
    }


def test_no_packs_give_one_inert_row() -> None:
    found = collate_packs([], 9)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "input_ids": [[9]], "labels": [[-100]], "position_ids": [[0]],
    }  # fmt: skip
