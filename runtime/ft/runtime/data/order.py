"""Which rows an optimizer step is made of: a pure function of (rows, batch, seed, step)."""

from __future__ import annotations

import numpy as np

from ft.recipes.layout import steps_per_epoch


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
