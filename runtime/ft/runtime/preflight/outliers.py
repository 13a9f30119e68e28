"""Who is slower than the others: ranks and links. Imports no torch.

Nothing absolute is known of a machine, but its ranks are alike, so each is compared with the median
of the others. Every time that goes in is the best of several: a busy machine makes one try slow,
hardly all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Limit:
    """Slower than the others by both is too slow."""

    ratio: float
    excess_us: float


@dataclass(frozen=True, slots=True)
class Limits:
    """By kind of device."""

    launch: Limit
    """Until a collective is on its way: the processor of the rank."""
    matmul: Limit
    """A matrix product: its device."""
    latency: Limit
    bandwidth: Limit


# On a shared CPU ranks take turns: for tens of milliseconds any of them may stand still.
LIMITS = {
    "cpu": Limits(Limit(10, 50e3), Limit(3, 50e3), Limit(10, 50e3), Limit(10, 50e3)),
    # Of a GPU at 0.7 of the others people are usually alarmed.
    "cuda": Limits(Limit(10, 5e3), Limit(1 / 0.7, 100), Limit(5, 100), Limit(2, 100)),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The link between two ranks, there and back."""

    first: int
    second: int
    latency_us: float
    """One way, of the smallest message."""
    time_us: float
    """One way, of a large message."""
    size_bytes: int
    num_wrong: int
    """Elements of the large message that came with another value, in either direction."""

    @property
    def bandwidth_gbps(self) -> float:
        return self.size_bytes / self.time_us / 1e3

    def __str__(self) -> str:
        return f"rank {self.first} - rank {self.second}"


@dataclass(frozen=True, slots=True)
class SlowLinks:
    """Links that are slower than the rest."""

    pairs: Sequence[Pair]
    """The slowest first."""
    latency_ratio: float
    """Of the slowest to the median of all."""
    bandwidth_ratio: float

    @property
    def common_rank(self) -> int | None:
        """The rank that they have in common, if there are several."""
        ranks = set.intersection(*({pair.first, pair.second} for pair in self.pairs))
        return ranks.pop() if len(ranks) == 1 else None


def slow_ranks(times_us: Mapping[int, float], limit: Limit) -> dict[int, float]:
    """Rank -> its time as a multiple of the median of the others; only ranks beyond the limit."""
    slow = {}
    for rank, time_us in times_us.items():
        others = [other_us for other, other_us in times_us.items() if other != rank]
        if others and _is_beyond(time_us, median(others), limit):
            slow[rank] = time_us / median(others)
    return slow


def slow_links(pairs: Sequence[Pair], limits: Limits) -> SlowLinks | None:
    """None if all links are alike, or there are fewer than three ranks: then there is one link."""
    if len(pairs) < 3:
        return None
    latency_us = median(pair.latency_us for pair in pairs)
    time_us = median(pair.time_us for pair in pairs)
    slow = [
        pair
        for pair in pairs
        if _is_beyond(pair.latency_us, latency_us, limits.latency)
        or _is_beyond(pair.time_us, time_us, limits.bandwidth)
    ]
    if not slow:
        return None
    slow.sort(key=lambda pair: pair.time_us, reverse=True)
    worst = slow[0]
    return SlowLinks(slow, worst.latency_us / latency_us, time_us / worst.time_us)


def _is_beyond(time_us: float, usual_us: float, limit: Limit) -> bool:
    return time_us > limit.ratio * usual_us and time_us - usual_us > limit.excess_us
