"""The collectives that training rests on: timed, then every element compared with the closed form.

Element i of rank r is ((37 i + 101 r + seed) mod 251): small integers, whose sums over ranks are
exact in fp32 in any order. 251 is prime, so that data moved by a power of two elements never looks
right; the seed differs per case, so that data left over from the one before does not either.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from ft.runtime.preflight.table import ROOT, TRAINING_OPS, UNCHECKED_IN_PLACE, Half, Op, count_of

PERIOD = 251
UNWRITTEN = -1.0
"""Fills a receive buffer before the call; no element of a right result has this value."""
PROBE_COUNT = 4
MIN_ITERS = 2
BUFFERS = 5
"""Of the largest size that one test needs at its peak: sent, received, expected, and their making."""

Handles = Sequence[dist.Work | None]
"""Of one call, which may be several transfers."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Ops, sizes and repetitions."""

    ops: tuple[Op, ...]
    sizes_bytes: tuple[int, ...]
    odd_count: int
    """Elements per rank of one more case: odd, so that shares are aligned to one element only."""
    iters: int
    """Timed calls."""
    warmup: int
    """Calls before them."""
    check: bool = True
    """Compare the data."""
    budget_s: float | None = None
    """Fewer timed calls where they would take longer than this; None is never."""

    def up_to(self, limit_bytes: int) -> Sweep:
        """Without the sizes beyond `limit_bytes`; the smallest stays."""
        sizes = tuple(size for size in self.sizes_bytes if size <= limit_bytes)
        return replace(self, sizes_bytes=sizes or self.sizes_bytes[:1])


SWEEPS = {
    "gloo": Sweep(
        TRAINING_OPS,
        tuple(2**exponent for exponent in range(10, 23, 2)),
        odd_count=65_537,
        iters=5,
        warmup=1,
    ),
    "nccl": Sweep(
        TRAINING_OPS,
        tuple(2**exponent for exponent in range(20, 29, 2)),
        odd_count=1_000_003,
        iters=10,
        warmup=1,
    ),
}
"""Before each training, by backend: 1 KiB to 4 MiB, and 1 MiB to 256 MiB, in steps of 4."""


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


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one rank saw of one case."""

    half: Half
    launch_us: float
    """Until the call came back, at best; it does not wait for the others, so it shows who is slow."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """One test, ready to run: the call, what it writes and what must stand there, both flat."""

    call: Callable[[], Handles]
    received: Tensor
    expected: Tensor | None
    """None on ranks that receive nothing."""


def cases_of(sweep: Sweep, num_ranks: int) -> Iterator[tuple[Case, Case]]:
    """Out-of-place and in-place case of every line of the table, in its order.

    Sizes too small to give every rank 16 bytes are left out, and those that round to the same one.
    """
    seed = 0
    for op in sweep.ops:
        counts = [count_of(op, size, num_ranks) for size in sweep.sizes_bytes]
        for count in dict.fromkeys([*counts, sweep.odd_count]):
            if count:
                yield Case(op, count, False, seed), Case(op, count, True, seed + 1)
                seed += 2


def why_unsupported(op: Op, device: torch.device) -> str | None:
    """Why this op cannot be tested here; None if it can. Every rank calls it alike.

    Raises: RuntimeError if the op is there and fails.
    """
    if op is Op.SENDRECV and dist.get_world_size() == 1:
        return "it needs 2 ranks"
    try:
        _finish(_prepare(Case(op, PROBE_COUNT, False, 0), device).call())
        _synchronize(device)
    except RuntimeError as error:
        # NotImplementedError is one as well. A rank that is gone must not pass for a missing op.
        if not re.search(r"not (support|implement)|unsupported", str(error), re.IGNORECASE):
            raise
        return f"{dist.get_backend()} of torch {torch.__version__} has no such op"
    return None


def measure(
    case: Case, sweep: Sweep, device: torch.device, agree: Callable[[int], int]
) -> Measurement:
    """Time `case` on the default group, then count wrong elements of this rank.

    Every rank calls it alike; `agree` gives all of them the repetitions that one of them proposes.
    As in nccl-tests the timed calls are queued back to back, and the data are checked in one more.
    Raises: RuntimeError if the collective fails or exceeds the timeout of the group.
    """
    buffers = _prepare(case, device)
    iters = _warm_up(buffers.call, sweep, device, agree)
    dist.barrier()
    _synchronize(device)
    launch_s = float("inf")
    start = time.perf_counter()
    for _ in range(iters):
        before = time.perf_counter()
        handles = buffers.call()
        launch_s = min(launch_s, time.perf_counter() - before)
        _finish(handles)
    _synchronize(device)
    time_us = (time.perf_counter() - start) / iters * 1e6
    del buffers
    num_wrong = _count_wrong(case, device) if _is_checked(case, sweep) else None
    return Measurement(Half(time_us, time_us, num_wrong), launch_s * 1e6)


def _is_checked(case: Case, sweep: Sweep) -> bool:
    return sweep.check and not (case.in_place and case.op in UNCHECKED_IN_PLACE)


def _warm_up(
    call: Callable[[], Handles], sweep: Sweep, device: torch.device, agree: Callable[[int], int]
) -> int:
    """Returns: how often to repeat the call in the timed part."""
    taken_s = 0.0
    for _ in range(max(sweep.warmup, 1 if sweep.budget_s else 0)):
        start = time.perf_counter()
        _finish(call())
        _synchronize(device)
        taken_s = time.perf_counter() - start
    if sweep.budget_s is None:
        return sweep.iters
    fitting = int(sweep.budget_s / taken_s) if taken_s else sweep.iters
    return agree(min(sweep.iters, max(MIN_ITERS, fitting)))


def _count_wrong(case: Case, device: torch.device) -> int:
    buffers = _prepare(case, device)
    _finish(buffers.call())
    if buffers.expected is None:
        return 0
    return int((buffers.received != buffers.expected).sum())


def _finish(handles: Handles) -> None:
    for handle in handles:
        if handle is not None:
            handle.wait()


def _prepare(case: Case, device: torch.device) -> Buffers:
    """Fresh buffers."""
    makers = {
        Op.ALL_REDUCE: _all_reduce,
        Op.ALL_GATHER: _all_gather,
        Op.REDUCE_SCATTER: _reduce_scatter,
        Op.ALLTOALL: _alltoall,
        Op.BROADCAST: _broadcast,
        Op.REDUCE: _reduce,
        Op.SENDRECV: _sendrecv,
        Op.GATHER: _gather,
        Op.SCATTER: _scatter,
    }
    return makers[case.op](Payload(case.count, case.in_place, case.seed, device))


@dataclass(frozen=True, slots=True)
class Payload:
    """What the ranks send in one case, and where this rank sits among them."""

    count: int
    in_place: bool
    seed: int
    device: torch.device

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def num_ranks(self) -> int:
        return dist.get_world_size()

    @property
    def total(self) -> int:
        return self.count * self.num_ranks

    @property
    def share(self) -> slice:
        """Of this rank, in a buffer for all."""
        return slice(self.rank * self.count, (self.rank + 1) * self.count)

    def of(self, ranks: Iterable[int], start: int, count: int) -> Tensor:
        return pattern(ranks, start, count, self.seed, self.device)

    def unwritten(self, count: int) -> Tensor:
        return torch.full((count,), UNWRITTEN, device=self.device)

    def from_all(self) -> Tensor:
        """`count` elements of each rank, one after the other."""
        return torch.cat([self.of([rank], 0, self.count) for rank in range(self.num_ranks)])


def _all_reduce(data: Payload) -> Buffers:
    sent = data.of([data.rank], 0, data.count)
    # torch reduces in place only. Out-of-place is a copy, which is not in the time, and then the
    # same call; so are reduce and broadcast.
    received = sent if data.in_place else sent.clone()
    expected = data.of(range(data.num_ranks), 0, data.count)
    return Buffers(lambda: [dist.all_reduce(received, async_op=True)], received, expected)


def _all_gather(data: Payload) -> Buffers:
    received = data.unwritten(data.total)
    sent = data.of([data.rank], 0, data.count)
    if data.in_place:
        sent = received[data.share].copy_(sent)
    # torch 2.13 renamed all_gather_into_tensor and warns about the old name; 2.8 knows only that.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return Buffers(lambda: [gather(received, sent, async_op=True)], received, data.from_all())


def _reduce_scatter(data: Payload) -> Buffers:
    sent = data.of([data.rank], 0, data.total)
    received = sent[data.share] if data.in_place else data.unwritten(data.count)
    expected = data.of(range(data.num_ranks), data.share.start, data.count)
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return Buffers(lambda: [scatter(received, sent, async_op=True)], received, expected)


def _alltoall(data: Payload) -> Buffers:
    sent = data.of([data.rank], 0, data.total)
    received = sent if data.in_place else data.unwritten(data.total)
    pieces = [data.of([rank], data.share.start, data.count) for rank in range(data.num_ranks)]
    return Buffers(
        lambda: [dist.all_to_all_single(received, sent, async_op=True)],
        received,
        torch.cat(pieces),
    )


def _broadcast(data: Payload) -> Buffers:
    expected = data.of([ROOT], 0, data.count)
    received = expected.clone() if data.rank == ROOT else data.unwritten(data.count)
    return Buffers(lambda: [dist.broadcast(received, ROOT, async_op=True)], received, expected)


def _reduce(data: Payload) -> Buffers:
    received = data.of([data.rank], 0, data.count)
    expected = data.of(range(data.num_ranks), 0, data.count) if data.rank == ROOT else None
    return Buffers(lambda: [dist.reduce(received, ROOT, async_op=True)], received, expected)


def _sendrecv(data: Payload) -> Buffers:
    after, before = (data.rank + 1) % data.num_ranks, (data.rank - 1) % data.num_ranks
    sent = data.of([data.rank], 0, data.count)
    received = sent if data.in_place else data.unwritten(data.count)

    def call() -> Handles:
        both = [dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, received, before)]
        return dist.batch_isend_irecv(both)

    return Buffers(call, received, data.of([before], 0, data.count))


def _gather(data: Payload) -> Buffers:
    sent = data.of([data.rank], 0, data.count)
    if data.rank != ROOT:
        return Buffers(lambda: [dist.gather(sent, None, ROOT, async_op=True)], sent, None)
    received = data.unwritten(data.total)
    if data.in_place:
        sent = received[data.share].copy_(sent)
    parts = list(received.chunk(data.num_ranks))
    return Buffers(
        lambda: [dist.gather(sent, parts, ROOT, async_op=True)], received, data.from_all()
    )


def _scatter(data: Payload) -> Buffers:
    expected = data.of([ROOT], data.share.start, data.count)
    if data.rank != ROOT:
        received = data.unwritten(data.count)
        return Buffers(
            lambda: [dist.scatter(received, None, ROOT, async_op=True)], received, expected
        )
    sent = data.of([ROOT], 0, data.total)
    parts = list(sent.chunk(data.num_ranks))
    own = parts[ROOT] if data.in_place else data.unwritten(data.count)
    return Buffers(lambda: [dist.scatter(own, parts, ROOT, async_op=True)], own, expected)


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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
