"""Which rows an optimizer step is made of: a pure function of (rows, batch, seed, step)."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np

from ft.recipes.layout import steps_per_epoch
from ft.recipes.plan import DataPlan, RunPlan
from ft.runtime.data.pack import Packing, Packs, in_row_order

PACKS: Final = (2,)
"""Sets the order of the packs apart from that of the rows: both have the seed [seed, epoch]."""


def permutation(num_rows: int, seed: np.random.SeedSequence) -> np.ndarray:
    """`0 … num_rows - 1` shuffled, int64. The same with every version of numpy.

    Sorted by raw random bits: the bit streams of numpy are stable, what `Generator.permutation` makes
    of them is not promised to be, and a resume may run elsewhere.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(num_rows), kind="stable")


class Order:
    """The order of a whole run. Processes and micro batches only share out a step, they never change it."""

    def __init__(self, num_rows: int, global_batch_size: int, seed: int, shuffle: bool) -> None:
        """Raises: ValueError if there are no rows or `global_batch_size` is below 1."""
        if num_rows < 1 or global_batch_size < 1:
            raise ValueError(f"no order of {num_rows} rows in batches of {global_batch_size}")
        self.num_rows = num_rows
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.steps_per_epoch = steps_per_epoch(num_rows, global_batch_size)
        self._epoch = -1
        self._rows = np.arange(0)

    def steps_in_epoch(self, epoch: int) -> int:
        """The same in all of them."""
        del epoch
        return self.steps_per_epoch

    def epochs_done(self, steps: int) -> float:
        """Passes over the rows that so many steps of the run are."""
        return steps / self.steps_per_epoch

    def rows_of_step(self, step: int) -> np.ndarray:
        """Rows of optimizer step `step`, counted from 0 over the run; the last of an epoch has the rest.

        int64, `global_batch_size` of them or fewer. Every row comes once in an epoch.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.global_batch_size
        return self._rows_of_epoch(epoch)[start : start + self.global_batch_size]

    def micro_batch(
        self,
        step: int,
        accumulation_index: int,
        rank: int,
        micro_batch_size: int,
        data_parallel_size: int,
    ) -> np.ndarray:
        """The part of a step that one data parallel rank reads in one forward pass; it may be empty.

        Together the parts of a step are its rows, each once, if micro batch · accumulation · ranks is
        `global_batch_size`.
        """
        start = (accumulation_index * data_parallel_size + rank) * micro_batch_size
        return self.rows_of_step(step)[start : start + micro_batch_size]

    def _rows_of_epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_rows)
        if epoch != self._epoch:
            self._rows = permutation(self.num_rows, np.random.SeedSequence([self.seed, epoch]))
            self._epoch = epoch
        return self._rows


class PackedOrder:
    """As `Order`, of packs: a global batch is so many of them, and a row is trained on once in an epoch.

    The rows are shuffled by (seed, epoch), then packed, then the packs are shuffled, all rows at once and
    the same on every rank. Packed sequentially, the packs stay in the order of the rows. Without
    `shuffle`, rows are in the order of the files, in a pack too, and packs go by their first row.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        packing: Packing,
        global_batch_size: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        """`lengths`: int64, tokens of every row.

        Raises: ValueError if there are no rows, `global_batch_size` is below 1, or a row fits into no pack.
        """
        if not len(lengths) or global_batch_size < 1:
            raise ValueError(f"no order of {len(lengths)} rows in batches of {global_batch_size}")
        self.lengths, self.packing = lengths, packing
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._always_as_many = not shuffle or packing.keeps_count(len(lengths))
        self._packs: dict[int, Packs] = {}
        """Of the two epochs that were asked for last: around the end of one, both are."""
        self._ends: list[int] = []
        """Steps of the run up to the end of each epoch that was looked at."""

    def packs_of_epoch(self, epoch: int) -> Packs:
        """In the order in which they are trained on."""
        epoch = epoch if self.shuffle else 0
        if epoch not in self._packs:
            self._packs = {**dict(list(self._packs.items())[-1:]), epoch: self._packs_of(epoch)}
        return self._packs[epoch]

    def steps_in_epoch(self, epoch: int) -> int:
        """It may differ between epochs where neighbours or groups are packed, which come anew in each."""
        if self._always_as_many:
            epoch = 0
        while len(self._ends) <= epoch:
            num_packs = len(self.packs_of_epoch(len(self._ends)))
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + steps_per_epoch(num_packs, self.global_batch_size))
        return self._ends[epoch] - (self._ends[epoch - 1] if epoch else 0)

    def epochs_done(self, steps: int) -> float:
        """Passes over the rows that so many steps of the run are."""
        epoch, batch = self._place(steps)
        return epoch + batch / self.steps_in_epoch(epoch)

    def packs_of_step(self, step: int) -> Packs:
        """`global_batch_size` packs or, in the last step of an epoch, fewer; `step` counts from 0."""
        epoch, batch = self._place(step)
        start = batch * self.global_batch_size
        return self.packs_of_epoch(epoch)[start : start + self.global_batch_size]

    def rows_of_step(self, step: int) -> np.ndarray:
        """Those in the packs of the step, int64."""
        return self.packs_of_step(step).rows

    def micro_batch(
        self,
        step: int,
        accumulation_index: int,
        rank: int,
        micro_batch_size: int,
        data_parallel_size: int,
    ) -> Packs:
        """See `Order.micro_batch`."""
        start = (accumulation_index * data_parallel_size + rank) * micro_batch_size
        return self.packs_of_step(step)[start : start + micro_batch_size]

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, step in it), both from 0."""
        if self._always_as_many:
            return divmod(step, self.steps_in_epoch(0))
        while not self._ends or self._ends[-1] <= step:
            self.steps_in_epoch(len(self._ends))
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def _packs_of(self, epoch: int) -> Packs:
        if not self.shuffle:
            return in_row_order(self.packing.packs(self.lengths, np.arange(len(self.lengths))))
        rows = permutation(len(self.lengths), np.random.SeedSequence([self.seed, epoch]))
        packs = self.packing.packs(self.lengths, rows)
        if self.packing.sequentially:
            return packs
        seed = np.random.SeedSequence([self.seed, epoch], spawn_key=PACKS)
        return packs.taken(permutation(len(packs), seed))


def order_of(plan: RunPlan, lengths: np.ndarray) -> Order | PackedOrder:
    """The order of a run over rows with so many tokens, int64."""
    batch, seed, data = plan.global_batch_size, plan.optim.seed, plan.data
    if not data.sample_packing:
        return Order(len(lengths), batch, seed, data.shuffle_merged_datasets)
    return PackedOrder(lengths, packing_of(data), batch, seed, data.shuffle_merged_datasets)


def eval_packs(data: DataPlan, lengths: np.ndarray) -> Packs | None:
    """Packs for an evaluation, always the same ones; None if its rows stay for themselves."""
    if not data.eval_sample_packing:
        return None
    return in_row_order(packing_of(data).packs(lengths, np.arange(len(lengths))))


def packing_of(data: DataPlan) -> Packing:
    return Packing(
        capacity=data.sequence_len,
        sequentially=data.sample_packing_sequentially,
        group_size=data.sample_packing_group_size,
        most_rows=data.sample_packing_bin_size,
    )
