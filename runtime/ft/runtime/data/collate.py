"""Rows of different length become one batch of tensors, and so do packs of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ft.recipes.plan import RunPlan
from ft.runtime.data.tokenize import IGNORED

TokenRow = Mapping[str, Sequence[int]]
"""`input_ids` and `labels` of one row."""


def collate(
    rows: Sequence[TokenRow], pad_token_id: int, pad_to: int | None = None
) -> dict[str, Tensor]:
    """`input_ids`, `labels`, `attention_mask`: int64, (rows, longest row), padded on the right.

    Padding is `pad_token_id`, IGNORED and 0; with `pad_to`, up to so many tokens. No rows give one inert
    row, a single token without a label, so that a rank whose share of a step is empty still takes part
    in every collective.
    """
    batch = rows or [_inert(pad_token_id)]
    longest = max(len(row["input_ids"]) for row in batch)
    shape = (len(batch), max(longest, pad_to or 0))
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for index, row in enumerate(batch):
        length = len(row["input_ids"])
        input_ids[index, :length] = torch.as_tensor(row["input_ids"], dtype=torch.int64)
        labels[index, :length] = torch.as_tensor(row["labels"], dtype=torch.int64)
        attention_mask[index, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def collate_packs(
    packs: Sequence[Sequence[TokenRow]],
    pad_token_id: int,
    pad_to: int | None = None,
    *,
    end_to_end: bool = False,
) -> dict[str, Tensor]:
    """`input_ids`, `labels`, `position_ids`: int64, (packs, longest pack), a pack's rows end to end.

    Positions begin at 0 with every row, and so does the padding behind the last one: to the model it is
    one more row. That is how it is told who may attend to whom; an `attention_mask` would keep
    transformers from looking. A row's first label is IGNORED: the token before is another row's.
    `end_to_end`: packs follow each other too, as one row of the batch.
    No packs give one inert one, see `collate`.
    """
    batch = packs or [[_inert(pad_token_id)]]
    longest = max(sum(len(row["input_ids"]) for row in pack) for pack in batch)
    width = max(longest, pad_to or 0)
    shape = (len(batch), width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    position_ids = torch.empty(shape, dtype=torch.int64)
    positions = torch.arange(width)
    for index, pack in enumerate(batch):
        start = 0
        for row in pack:
            end = start + len(row["input_ids"])
            input_ids[index, start:end] = torch.as_tensor(row["input_ids"], dtype=torch.int64)
            labels[index, start:end] = torch.as_tensor(row["labels"], dtype=torch.int64)
            labels[index, start] = IGNORED
            position_ids[index, start:end] = positions[: end - start]
            start = end
        position_ids[index, start:] = positions[: width - start]
    tensors = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    if end_to_end:
        return {name: tensor.reshape(1, -1) for name, tensor in tensors.items()}
    return tensors


@dataclass(frozen=True, slots=True)
class Collator:
    """How the batches of a run are laid out."""

    pad_token_id: int
    pad_to: int | None = None
    """Tokens to which each batch is padded; None: its longest row or pack."""
    end_to_end: bool = False
    """See `collate_packs`."""

    def rows(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        return collate(rows, self.pad_token_id, self.pad_to)

    def packs(self, packs: Sequence[Sequence[TokenRow]]) -> dict[str, Tensor]:
        return collate_packs(packs, self.pad_token_id, self.pad_to, end_to_end=self.end_to_end)


def collator_of(plan: RunPlan, pad_token_id: int) -> Collator:
    return Collator(
        pad_token_id=pad_token_id,
        pad_to=plan.data.sequence_len if plan.data.pad_to_sequence_len else None,
        # Flash attention reads the borders of rows from their positions only where a batch has one row.
        end_to_end=plan.model.attn_implementation == "flash_attention_2",
    )


def _inert(pad_token_id: int) -> TokenRow:
    return {"input_ids": [pad_token_id], "labels": [IGNORED]}
