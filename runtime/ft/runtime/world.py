"""The processes of a run: group, device, and how they agree. One owner of the process group."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

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
KEEPALIVE_PROBES = 4
"""Without an answer to as many a connection is lost."""


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
        self.num_nodes, self._per_node = plan.num_nodes, plan.num_processes_per_node
        self.node = self.rank // self._per_node
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
        if self.num_nodes > 1:
            notice_lost_machines(plan.ddp_timeout)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """It does what is done once per folder: nodes share none."""
        return self.local_rank == 0

    @property
    def first_ranks(self) -> range:
        """The first rank of each node, by node."""
        return range(0, self.size, self._per_node)

    def barrier(self) -> None:
        """Wait for all ranks, for hours if it must be."""
        if self.size > 1:
            with self.marks.waiting():
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
        with self.marks.waiting():
            dist.broadcast_object_list(box, src=0, group=self._waiting)
        return box[0]

    def from_nodes(self, text: str) -> list[str]:
        """`text` of the first rank of each node, by node, on every rank; waits as `barrier` does."""
        if self.num_nodes == 1:
            return [self.from_main(text)]
        texts: list[str] = [""] * self.size
        with self.marks.waiting():
            dist.all_gather_object(texts, text, group=self._waiting)
        return [texts[rank] for rank in self.first_ranks]

    def send_to_main(self, data: bytes) -> None:
        """Rank 0 calls `receive` at the same time; no other rank has to do anything."""
        parts = [torch.tensor([len(data)])]
        if data:
            parts.append(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        with self.marks.waiting():
            for part in parts:
                dist.send(part, dst=0, group=self._waiting)

    def receive(self, rank: int) -> bytes:
        """On rank 0, what `rank` sends; waits as `barrier` does."""
        size = torch.zeros(1, dtype=torch.int64)
        with self.marks.waiting():
            dist.recv(size, src=rank, group=self._waiting)
            data = torch.empty(int(size.item()), dtype=torch.uint8)
            if data.numel():
                dist.recv(data, src=rank, group=self._waiting)
        return data.numpy().tobytes()


def notice_lost_machines(within_s: int) -> None:
    """Let the kernel ask whether the machines at the other ends still live; gloo leaves that off.

    A process that dies closes its connections. A machine without power or network does not, and a rank that waits in
    `barrier` would wait for a day.
    """
    every_s = max(1, within_s // (KEEPALIVE_PROBES + 1))
    options = {
        socket.TCP_KEEPIDLE: every_s,
        socket.TCP_KEEPINTVL: every_s,
        socket.TCP_KEEPCNT: KEEPALIVE_PROBES,
    }
    for connection in own_sockets():
        with connection:
            if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in options.items():
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)


def own_sockets() -> Iterator[socket.socket]:
    """Copies of the sockets of this process: closing one leaves the socket as it is, its options belong to both."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # Closed since.
            if stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                yield socket.socket(fileno=os.dup(int(entry.name)))
