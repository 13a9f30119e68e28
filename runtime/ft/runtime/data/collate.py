"""Rows of different length become one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ft.runtime.data.tokenize import IGNORED


def collate(rows: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `labels`, `attention_mask`: int64, (rows, longest row), padded on the right.

    Padding is `pad_token_id`, IGNORED and 0. No rows give one inert row, a single token without a
    label, so that a rank whose share of a step is empty still takes part in every collective.
    """
    inert = {"input_ids": [pad_token_id], "labels": [IGNORED]}
    batch = rows or [inert]
    longest = max(len(row["input_ids"]) for row in batch)
    shape = (len(batch), longest)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for index, row in enumerate(batch):
        length = len(row["input_ids"])
        input_ids[index, :length] = torch.as_tensor(row["input_ids"], dtype=torch.int64)
        labels[index, :length] = torch.as_tensor(row["labels"], dtype=torch.int64)
        attention_mask[index, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
