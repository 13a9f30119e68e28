"""Faults that somebody ordered with `--simulate`, where they happen in a rank. Without an order all of it is idle."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ft.recipes.simulate import Simulation


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one rank in one attempt."""

    ordered: tuple[Simulation, ...] = ()
    attempt: int = 1
    hits_this_rank: bool = True
    """One rank has the fault, the last one: the others must find out."""
    as_planned: bool = True
    """The micro batch is still the plan's."""

    def before_step(self, step: int) -> None:
        """Raises: torch.OutOfMemoryError."""
        if self.as_planned and self._is_due("oom", step):
            raise torch.OutOfMemoryError(f"simulated at step {step}")

    def loss(self, step: int, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, or NaN with a gradient."""
        return loss * float("nan") if self._is_due("nan", step) else loss

    def before_save(self, number: int) -> None:
        """Raises: OSError, in the first attempt."""
        if self.attempt == 1 and self._is_due("disk-full", number):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (simulated)")

    def _is_due(self, fault: str, at: int) -> bool:
        return self.hits_this_rank and any(
            order.fault == fault and order.at == at for order in self.ordered
        )


def faults_of(
    ordered: Iterable[Simulation], *, attempt: int, rank: int, world_size: int, as_planned: bool
) -> Faults:
    return Faults(tuple(ordered), attempt, rank == world_size - 1, as_planned)
