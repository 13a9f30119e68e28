"""One link at a time, between two ranks: what a collective over all of them would hide."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor

from ft.runtime.preflight.collectives import UNWRITTEN, pattern
from ft.runtime.preflight.outliers import Pair
from ft.runtime.preflight.table import ELEMENT_BYTES

MAX_RANKS = 8
"""The number of pairs grows with the square."""
LATENCY_TRIES = 10
BANDWIDTH_TRIES = 5
LARGE_COUNTS = {"cpu": 2**18, "cuda": 2**24}
"""Elements of a large message: 1 MiB and 64 MiB."""


def pairs_of(num_ranks: int) -> Iterator[tuple[int, int]]:
    """All pairs, or none where they are too many."""
    return combinations(range(num_ranks if num_ranks <= MAX_RANKS else 0), 2)


def measure_pair(first: int, second: int, device: torch.device) -> Pair | None:
    """Every rank calls it alike, after a collective over all of them.

    Returns: on `first` what it measured; None elsewhere.
    Raises: RuntimeError if a transfer fails or exceeds the timeout of the group.
    """
    rank = dist.get_rank()
    pair = None
    if rank in {first, second}:
        peer = second if rank == first else first
        small = torch.zeros(1, device=device)
        latency_us = _round_trip_us(small, small, peer, leads=rank == first, tries=LATENCY_TRIES)
        count = LARGE_COUNTS[device.type]
        sent = pattern([rank], 0, count, 0, device)
        received = torch.full_like(sent, UNWRITTEN)
        time_us = _round_trip_us(sent, received, peer, leads=rank == first, tries=BANDWIDTH_TRIES)
        wrong = (received != pattern([peer], 0, count, 0, device)).sum().float().reshape(1)
        told = _tell_leader(wrong, peer, leads=rank == first)
        if told is not None:
            num_wrong = int(wrong.item() + told)
            pair = Pair(
                first, second, latency_us / 2, time_us / 2, count * ELEMENT_BYTES, num_wrong
            )
    dist.barrier()
    return pair


def _round_trip_us(sent: Tensor, received: Tensor, peer: int, *, leads: bool, tries: int) -> float:
    """There and back, the best of `tries` after one more that makes the connection."""
    best_s = float("inf")
    for _ in range(1 + tries):
        start = time.perf_counter()
        if leads:
            _transfer(dist.P2POp(dist.isend, sent, peer))
            _transfer(dist.P2POp(dist.irecv, received, peer))
        else:
            _transfer(dist.P2POp(dist.irecv, received, peer))
            _transfer(dist.P2POp(dist.isend, sent, peer))
        _synchronize(sent.device)
        best_s = min(best_s, time.perf_counter() - start)
    return best_s * 1e6


def _tell_leader(value: Tensor, peer: int, *, leads: bool) -> float | None:
    """Returns: on the leader, the value of its peer."""
    if not leads:
        _transfer(dist.P2POp(dist.isend, value, peer))
        return None
    told = torch.zeros_like(value)
    _transfer(dist.P2POp(dist.irecv, told, peer))
    return float(told.item())


def _transfer(op: dist.P2POp) -> None:
    # In a batch, so that NCCL takes the communicator of all ranks and makes none for each pair.
    for work in dist.batch_isend_irecv([op]):
        work.wait()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
