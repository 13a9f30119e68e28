"""Bandwidth formulas and the table, in the units and columns of nccl-tests. Imports no torch.

Sizes are bytes, times microseconds, bandwidths GB/s with GB = 1e9 bytes. n is the number of ranks.

| op | size | busbw / algbw |
|---|---|---|
| all_reduce | count · element, the buffer of one rank | 2(n-1)/n |
| all_gather, gather | count · element · n, where a rank sends count | (n-1)/n |
| reduce_scatter, scatter | count · element · n, where a rank receives count | (n-1)/n |
| alltoall | count · element · n, where a rank sends count to each | (n-1)/n |
| broadcast, reduce | count · element, the buffer of one rank | 1 |
| sendrecv | count · element, which each rank sends to the next one | 1 |

algbw is size / time; busbw is what each link had to carry, so that it can be compared across n.
On one rank nothing is carried: there busbw is `n/a`, whatever the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median

ELEMENT_BYTES = 4
"""fp32, the default type of nccl-tests ("float")."""

ALIGNMENT_BYTES = 16
"""The share of a rank in a total is rounded down to this, as nccl-tests does."""

LARGE_BYTES = 256 * 2**20
"""From here on a link of the fast kind shows what it can do."""

PLATEAU_ROWS = 2
"""Sizes that stand for the plateau where none is large."""

ROOT = 0
"""Of the ops that have one."""


class Op(StrEnum):
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALLTOALL = "alltoall"
    BROADCAST = "broadcast"
    REDUCE = "reduce"
    SENDRECV = "sendrecv"
    GATHER = "gather"
    SCATTER = "scatter"


TRAINING_OPS = (Op.ALL_REDUCE, Op.ALL_GATHER, Op.REDUCE_SCATTER)
"""What data parallel and sharded training rests on."""

ONE_BUFFER = {Op.ALL_REDUCE, Op.BROADCAST, Op.REDUCE, Op.SENDRECV}
"""Their size is the buffer of one rank; that of the others is the total of all ranks."""

ROOTED = {Op.BROADCAST, Op.REDUCE, Op.GATHER, Op.SCATTER}

UNCHECKED_IN_PLACE = {Op.ALLTOALL, Op.SENDRECV}
"""In place they overwrite what they still have to send: timed, as nccl-tests does, not checked."""

# nccl-tests passes its default redop on to sendrecv as well.
SUMS = {Op.ALL_REDUCE, Op.REDUCE_SCATTER, Op.REDUCE, Op.SENDRECV}


@dataclass(frozen=True, slots=True)
class Half:
    """One test: an op at one size, out-of-place or in-place."""

    time_us: float
    """Of one call; merged, the mean over the ranks."""
    time_max_us: float
    """Of the slowest rank."""
    num_wrong: int | None
    """Elements that differ from the closed form; None if nobody looked."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, of one rank or merged over all of them."""

    op: Op
    count: int
    """Elements per rank, as the collective gets them."""
    num_ranks: int
    out_of_place: Half
    in_place: Half

    @property
    def size_bytes(self) -> int:
        return size_of(self.op, self.count, self.num_ranks)

    @property
    def halves(self) -> tuple[Half, Half]:
        return (self.out_of_place, self.in_place)

    @property
    def busbw_gbps(self) -> tuple[float, ...]:
        """Of both halves; empty on one rank."""
        values = (
            busbw_gbps(self.op, self.size_bytes, half.time_us, self.num_ranks)
            for half in self.halves
        )
        return tuple(value for value in values if value is not None)


def redop_of(op: Op) -> str:
    return "sum" if op in SUMS else "none"


def root_of(op: Op) -> int:
    """-1 for an op without a root."""
    return ROOT if op in ROOTED else -1


def size_of(op: Op, count: int, num_ranks: int) -> int:
    """Bytes in the `size` column for `count` elements per rank."""
    return count * ELEMENT_BYTES * (1 if op in ONE_BUFFER else num_ranks)


def count_of(op: Op, size_bytes: int, num_ranks: int) -> int:
    """Elements per rank of a test of at most `size_bytes`."""
    if op in ONE_BUFFER:
        return size_bytes // ELEMENT_BYTES
    return size_bytes // num_ranks // ALIGNMENT_BYTES * ALIGNMENT_BYTES // ELEMENT_BYTES


def bus_factor(op: Op, num_ranks: int) -> float:
    """busbw / algbw."""
    if op is Op.ALL_REDUCE:
        return 2 * (num_ranks - 1) / num_ranks
    return 1.0 if op in ONE_BUFFER else (num_ranks - 1) / num_ranks


def algbw_gbps(size_bytes: int, time_us: float) -> float:
    """GB/s that the caller sees."""
    return size_bytes / time_us / 1e3


def busbw_gbps(op: Op, size_bytes: int, time_us: float, num_ranks: int) -> float | None:
    """GB/s that each link carries; None on one rank."""
    if num_ranks == 1:
        return None
    return algbw_gbps(size_bytes, time_us) * bus_factor(op, num_ranks)


def average_busbw_gbps(rows: Sequence[Row]) -> float | None:
    """Mean over all sizes and both halves; None without rows or on one rank.

    It is no verdict: small sizes pull it far below what large ones reach.
    """
    values = [value for row in rows for value in row.busbw_gbps]
    return fmean(values) if values else None


def plateau_busbw_gbps(rows: Sequence[Row]) -> float | None:
    """Median over the sizes from 256 MiB on, else over the two largest, of both halves.

    None without rows or on one rank.
    """
    large = [row for row in rows if row.size_bytes >= LARGE_BYTES]
    if not large:
        large = sorted(rows, key=lambda row: row.size_bytes)[-PLATEAU_ROWS:]
    values = [value for row in large for value in row.busbw_gbps]
    return median(values) if values else None


def merge(per_rank: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows that every rank has, in order: times averaged over the ranks, wrong elements summed."""
    merged = []
    for rows in zip(*per_rank, strict=False):
        out_of_place = _merge_halves([row.out_of_place for row in rows])
        in_place = _merge_halves([row.in_place for row in rows])
        merged.append(Row(rows[0].op, rows[0].count, rows[0].num_ranks, out_of_place, in_place))
    return merged


def _merge_halves(halves: Sequence[Half]) -> Half:
    wrong = [half.num_wrong for half in halves if half.num_wrong is not None]
    return Half(
        fmean(half.time_us for half in halves),
        max(half.time_max_us for half in halves),
        sum(wrong) if wrong else None,
    )


class Stream:
    """The table as it grows: one section per op, each as its nccl-tests binary prints it.

    What it returns is to be printed at once; "" is nothing.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> str:
        """The line of `row`; before it, where another op begins, the end of the last section."""
        if self._rows and self._rows[-1].op is row.op:
            self._rows.append(row)
            return render_row(row)
        end = self.close()
        self._rows = [row]
        return "\n".join(filter(None, [end, _render_header(row.op), render_row(row)]))

    def close(self) -> str:
        """The summary below the last section."""
        rows, self._rows = self._rows, []
        return _render_footer(rows) if rows else ""


def render(rows: Sequence[Row]) -> str:
    """The whole table. No trailing newline."""
    stream = Stream()
    parts = [*map(stream.add, rows), stream.close()]
    return "\n".join(filter(None, parts))


def _render_header(op: Op) -> str:
    lines = [
        f"# {op}",
        "#",
        _columns("", "", "", "", "") + "           out-of-place                       in-place",
        _columns("size", "count", "type", "redop", "root")
        + 2 * "     time   algbw   busbw  #wrong",
        _columns("(B)", "(elements)", "", "", "") + 2 * "     (us)  (GB/s)  (GB/s)        ",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _columns(size: str, count: str, type_: str, redop: str, root: str) -> str:
    return f"# {size:>10}  {count:>12}  {type_:>8}  {redop:>6}  {root:>6}"


def _render_footer(rows: Sequence[Row]) -> str:
    # Tests with a wrong element, not elements.
    num_failed = sum(bool(half.num_wrong) for row in rows for half in row.halves)
    average, plateau = average_busbw_gbps(rows), plateau_busbw_gbps(rows)
    return "\n".join(
        [
            f"# Out of bounds values : {num_failed} {'FAILED' if num_failed else 'OK'}",
            f"# Avg bus bandwidth    : {_shown(average)}",
            f"# Plateau bus bandwidth: {_shown(plateau)}",
            "#",
        ]
    )


def _shown(bandwidth_gbps: float | None) -> str:
    return "n/a" if bandwidth_gbps is None else f"{bandwidth_gbps:g}"


def render_row(row: Row) -> str:
    """One line, without newline."""
    left = (
        f"{row.size_bytes:12}  {row.count:12}  {'float':>8}  "
        f"{redop_of(row.op):>6}  {root_of(row.op):6}"
    )
    return left + "".join(_render_half(row, half) for half in row.halves)


def _render_half(row: Row, half: Half) -> str:
    time = fixed_width(half.time_us, 7)
    algbw = fixed_width(algbw_gbps(row.size_bytes, half.time_us), 6)
    busbw = busbw_gbps(row.op, row.size_bytes, half.time_us, row.num_ranks)
    shown = f"{'n/a':>6}" if busbw is None else fixed_width(busbw, 6)
    wrong = "   N/A" if half.num_wrong is None else f"{half.num_wrong:6g}"
    return f"  {time}  {algbw}  {shown}  {wrong}"


def fixed_width(value: float, width: int) -> str:
    """`value` >= 0 in `width` characters with up to 2 decimals, as nccl-tests prints it."""
    num_digits = len(str(int(value))) if value >= 1 else 0
    if num_digits <= width - 3:
        return f"{value:{width}.2f}"
    if num_digits == width - 2:
        return f"{value:{width}.1f}"
    if num_digits <= width:
        return f"{value:{width}.0f}"
    return f"{value:{width}.1e}" if width >= 7 else f"{value:{width}.0e}"
