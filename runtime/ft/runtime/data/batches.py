"""The run's micro batches in order, as one list: what a DataLoader reads on each rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from ft.runtime.data.collate import Collator
from ft.runtime.data.order import Order, PackedOrder
from ft.runtime.data.pack import Packs
from ft.runtime.data.tokenize import IGNORED
from ft.runtime.marks import Marks, Place

COUNT_ROWS = 1000


class MicroBatches(Dataset[dict[str, torch.Tensor]]):
    """Item `i` is micro batch `i % accumulation` of optimizer step `first_step + i // accumulation`.

    Notes the row ids that it really served, one line per micro batch, so that anybody can see what a step saw;
    where rows are packed, also how many of them each pack has.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        order: Order | PackedOrder,
        *,
        accumulation: int,
        micro_batch_size: int,
        rank: int,
        data_parallel_size: int,
        collator: Collator,
        total_steps: int,
        rows_log: Path,
        left_out: frozenset[int] = frozenset(),
        marks: Marks | None = None,
    ) -> None:
        """`left_out`: steps, counted from 1, that get no rows."""
        self.rows, self.order = rows, order
        self.row_ids = row_ids(rows)
        self.accumulation, self.micro_batch_size = accumulation, micro_batch_size
        self.rank, self.data_parallel_size = rank, data_parallel_size
        self.collator = collator
        self.total_steps = total_steps
        self.left_out, self.marks = left_out, marks or Marks()
        self.first_step = 0
        self._log: IO[str] = rows_log.open("a", buffering=1)

    def __len__(self) -> int:
        return self.total_steps * self.accumulation

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        step = self.first_step + index // self.accumulation
        part = index % self.accumulation
        self.marks.at(Place.BATCH, step + 1)
        chosen = self.order.micro_batch(
            step, part, self.rank, self.micro_batch_size, self.data_parallel_size
        )
        if step + 1 in self.left_out:
            chosen = chosen[:0]
        self._note(step + 1, chosen)
        return batch_of(self.rows, chosen, self.collator)

    def _note(self, step: int, chosen: np.ndarray | Packs) -> None:
        noted: dict[str, object] = {"step": step}
        if isinstance(chosen, Packs):
            noted["rows"] = self.row_ids[chosen.rows].tolist()
            noted["packs"] = np.diff(chosen.offsets).tolist()
        else:
            noted["rows"] = self.row_ids[chosen].tolist()
        self._log.write(json.dumps(noted) + "\n")

    def row_ids_of_step(self, step: int) -> list[int]:
        """Of all ranks together; `step` counts from 1."""
        found: list[int] = self.row_ids[self.order.rows_of_step(step - 1)].tolist()
        return found

    def loader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """One pass over all micro batches that are left."""
        # A generator of its own: drawing the loader's seed must not move the run's RNG, which a resume restores.
        return DataLoader(
            self, batch_size=None, sampler=SequentialSampler(self), generator=torch.Generator()
        )


def batch_of(
    rows: datasets.Dataset, chosen: np.ndarray | Packs, collator: Collator
) -> dict[str, torch.Tensor]:
    """The batch of these rows, or of these packs of them."""
    if isinstance(chosen, Packs):
        return collator.packs([[rows[int(row)] for row in pack] for pack in chosen])
    return collator.rows([rows[int(row)] for row in chosen])


def row_ids(rows: datasets.Dataset) -> np.ndarray:
    """The column `row_id`, int64, by Arrow: the library would make an object of each."""
    column: np.ndarray = rows.data.column("row_id").to_numpy()
    return column if rows._indices is None else column[rows._indices.column(0).to_numpy()]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of each row: all, and those that the loss is a mean of (never a row's first). int64."""

    tokens: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, rows: datasets.Dataset) -> TokenCounts:
        """Counted in Arrow: no Python object per token."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for table in rows.with_format("arrow").iter(batch_size=COUNT_ROWS):
            labels = table["labels"].combine_chunks()
            values, offsets = labels.flatten().to_numpy() != IGNORED, labels.offsets.to_numpy()
            offsets = offsets - offsets[0]
            before = np.concatenate([[0], np.cumsum(values)])
            first = values[offsets[:-1]]
            parts.append((np.diff(offsets), before[offsets[1:]] - before[offsets[:-1]] - first))
        tokens, trained = zip(*parts, strict=True)
        return cls(
            np.concatenate(tokens).astype(np.int64), np.concatenate(trained).astype(np.int64)
        )

    def of_rows(self, rows: np.ndarray) -> tuple[int, int]:
        """(all, trained) tokens of these rows together."""
        return int(self.tokens[rows].sum()), int(self.trained[rows].sum())
