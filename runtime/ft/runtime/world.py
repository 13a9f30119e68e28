"""The processes of a run: group, device, and how they agree. One owner of the process group."""

from __future__ import annotations

import datetime
import logging

import torch
from torch import distributed as dist

from ft.recipes.errors import PlanError
from ft.recipes.plan import ParallelPlan
from ft.runtime.marks import Marks
from ft.runtime.node import Rank, forget_torchrun

log = logging.getLogger("ft.world")

WAITING_TIMEOUT_S = 24 * 3600
"""For ranks that wait while one prepares the data or hashes a checkpoint, which takes as long as it is big. A peer
that dies meanwhile closes its connection, and that is noticed at once."""


class World:
    """All ranks. With one process there is no group, and every agreement is one's own word.

    What happens at every step (gradients, agreements) has `plan.ddp_timeout`: a peer later than that is lost.
    """

    def __init__(self, plan: ParallelPlan, rank: Rank, marks: Marks | None = None) -> None:
        if rank.world_size != plan.world_size:
            raise PlanError(
                f"the plan is for {plan.world_size} processes, torchrun started {rank.world_size}"
            )
        self.rank, self.local_rank, self.size = rank.rank, rank.local_rank, rank.world_size
        self.device = (
            torch.device("cpu") if plan.device == "cpu" else torch.device("cuda", rank.local_rank)
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.marks = marks or Marks()
        self._control: dist.ProcessGroup | None = None
        self._waiting: dist.ProcessGroup | None = None
        if self.size == 1:
            forget_torchrun()
        if self.size > 1:
            timeout = datetime.timedelta(seconds=plan.ddp_timeout)
            backend = "gloo" if self.device.type == "cpu" else "nccl"
            dist.init_process_group(backend, timeout=timeout)
            # Agreements are about CPU flags; a collective on the GPU would wait for the kernels before it.
            self._control = dist.new_group(backend="gloo", timeout=timeout)
            self._waiting = dist.new_group(
                backend="gloo", timeout=datetime.timedelta(seconds=WAITING_TIMEOUT_S)
            )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks, for hours if it must be."""
        if self.size > 1:
            dist.barrier(group=self._waiting)

    def any(self, flag: bool) -> bool:
        """True on every rank if it is True on one of them: all stop at the same step or none does."""
        return bool(self.most([int(flag)])[0])

    def most(self, values: list[int]) -> list[int]:
        """Element-wise maxima over all ranks."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control)
        return tensor.tolist()

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._control)
        return tensor.tolist()

    def from_main(self, text: str) -> str:
        """`text` of rank 0, on every rank; waits for it as `barrier` does."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0, group=self._waiting)
        return box[0]
