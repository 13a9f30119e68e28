"""What is to be prepared: the data sets of a plan, read in chunks, and what makes rows of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ft.recipes.plan import DataPlan, DatasetPlan
from ft.runtime.data.engine import Engine
from ft.runtime.data.rows import Maker
from ft.runtime.data.sources import Chunk, chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Work:
    """In how many processes, and whether with the fast tokenizer."""

    data: DataPlan
    run_folder: Path
    tokenizer: PreTrainedTokenizerBase
    num_processes: int = 1
    fast: bool = True
    """With the fast engine, where it can be proved."""
    evaluates: bool = False
    """Of `test_datasets`, not of `datasets`."""

    @property
    def specs(self) -> Sequence[DatasetPlan]:
        return self.data.test_datasets if self.evaluates else self.data.datasets

    def makers(self) -> Sequence[Maker]:
        """One for each data set. In the process that uses them: their engines start threads, which no fork takes along.

        Raises: DataError if the rows of one cannot be made with this tokenizer at all.
        """
        engine = Engine(self.tokenizer, fast=self.fast)
        return [
            Maker(spec, self.data, self.run_folder, self.tokenizer, engine) for spec in self.specs
        ]

    def chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Of all data sets in their order, with the number of the data set."""
        for index, spec in enumerate(self.specs):
            for chunk in chunks(spec, self.run_folder):
                yield index, chunk
