"""The collectives that training rests on: timed, then every element compared with the closed form.

Element i of rank r is ((37 i + 101 r + seed) mod 251): small integers, whose sums over ranks are
exact in fp32 in any order. 251 is prime, so that data moved by a power of two elements never looks
right; the seed differs per case, so that data left over from the one before does not either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ft.runtime.preflight.table import Half, Op, count_of

PERIOD = 251
UNWRITTEN = -1.0
"""Fills a receive buffer before the call; no element of a right result has this value."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Sizes and repetitions."""

    sizes_bytes: tuple[int, ...]
    odd_count: int
    """Elements per rank of one more case: odd, so that shares are aligned to one element only."""
    iters: int
    """Timed calls."""
    warmup: int
    """Calls before them."""


SWEEPS = {
    "gloo": Sweep(
        tuple(2**exponent for exponent in range(10, 23, 2)), odd_count=65_537, iters=5, warmup=1
    ),
    "nccl": Sweep(
        tuple(2**exponent for exponent in range(20, 29, 2)), odd_count=1_000_003, iters=10, warmup=1
    ),
}
"""By backend: 1 KiB to 4 MiB, and 1 MiB to 256 MiB, in steps of 4."""


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one size, out-of-place or in-place."""

    op: Op
    count: int
    """Elements per rank."""
    in_place: bool
    seed: int

    @property
    def name(self) -> str:
        place = "in-place" if self.in_place else "out-of-place"
        return f"{self.op} of {self.count} elements ({place})"


def cases_of(sweep: Sweep, num_ranks: int) -> Iterator[tuple[Case, Case]]:
    """Out-of-place and in-place case of every line of the table, in its order."""
    seed = 0
    for op in Op:
        for count in (
            *(count_of(op, size, num_ranks) for size in sweep.sizes_bytes),
            sweep.odd_count,
        ):
            yield Case(op, count, False, seed), Case(op, count, True, seed + 1)
            seed += 2


def measure(case: Case, sweep: Sweep, device: torch.device) -> Half:
    """Time `case` on the default group, then count wrong elements of this rank.

    Every rank calls it alike. As in nccl-tests the timed calls are queued back to back, and the
    data are checked in one more call.
    Raises: RuntimeError if the collective fails or exceeds the timeout of the group.
    """
    call, _, _ = _prepare(case, device)
    for _ in range(sweep.warmup):
        call()
    dist.barrier()
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(sweep.iters):
        call()
    _synchronize(device)
    time_us = (time.perf_counter() - start) / sweep.iters * 1e6
    call, received, expected = _prepare(case, device)
    call()
    return Half(time_us, int((received != expected).sum()))


def _prepare(case: Case, device: torch.device) -> tuple[Callable[[], object], Tensor, Tensor]:
    """Fresh buffers: the call, the tensor that it writes and what must stand there, both flat."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    count, total = case.count, case.count * num_ranks
    share = slice(rank * count, (rank + 1) * count)
    if case.op is Op.ALL_REDUCE:
        sent = pattern([rank], 0, count, case.seed, device)
        # torch reduces in place only. Out-of-place is a copy, which is not in the time, and then
        # the same call.
        received = sent if case.in_place else sent.clone()
        expected = pattern(range(num_ranks), 0, count, case.seed, device)
        return lambda: dist.all_reduce(received), received, expected
    if case.op is Op.ALL_GATHER:
        received = torch.full((total,), UNWRITTEN, device=device)
        sent = pattern([rank], 0, count, case.seed, device)
        if case.in_place:
            sent = received[share].copy_(sent)
        expected = torch.cat([pattern([r], 0, count, case.seed, device) for r in range(num_ranks)])
        return lambda: _all_gather(received, sent), received, expected
    sent = pattern([rank], 0, total, case.seed, device)
    received = sent[share] if case.in_place else torch.full((count,), UNWRITTEN, device=device)
    expected = pattern(range(num_ranks), share.start, count, case.seed, device)
    return lambda: _reduce_scatter(received, sent), received, expected


def pattern(
    ranks: Iterable[int], start: int, count: int, seed: int, device: torch.device
) -> Tensor:
    """Elements start .. start + count of the payload summed over `ranks`, fp32, shape (count,)."""
    period = [
        sum((37 * i + 101 * rank + seed) % PERIOD for rank in ranks)
        for i in range(start, start + PERIOD)
    ]
    tile = torch.tensor(period, dtype=torch.float32, device=device)
    return tile.repeat(-(-count // PERIOD))[:count]


def _all_gather(received: Tensor, sent: Tensor) -> object:
    # torch 2.13 renamed all_gather_into_tensor and warns about the old name; 2.8 knows only that.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(received, sent)


def _reduce_scatter(received: Tensor, sent: Tensor) -> object:
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return scatter(received, sent)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
