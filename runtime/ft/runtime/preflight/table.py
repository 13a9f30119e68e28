"""Bandwidth formulas and the table, in the units and columns of nccl-tests. Imports no torch.

Sizes are bytes, times microseconds, bandwidths GB/s with GB = 1e9 bytes. n is the number of ranks.

| op | size | busbw / algbw |
|---|---|---|
| all_reduce | count · element, the buffer of one rank | 2(n-1)/n |
| all_gather | count · element · n, where a rank sends count | (n-1)/n |
| reduce_scatter | count · element · n, where a rank receives count | (n-1)/n |

algbw is size / time; busbw is what each link had to carry, so that it can be compared across n.
On one rank nothing is carried: the factor is 0 and busbw is printed as `n/a`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

ELEMENT_BYTES = 4
"""fp32, the default type of nccl-tests ("float")."""

ALIGNMENT_BYTES = 16
"""The share of a rank in a total is rounded down to this, as nccl-tests does."""


class Op(StrEnum):
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"


REDOPS = {Op.ALL_REDUCE: "sum", Op.ALL_GATHER: "none", Op.REDUCE_SCATTER: "sum"}


@dataclass(frozen=True, slots=True)
class Half:
    """One test: an op at one size, out-of-place or in-place."""

    time_us: float
    """Of one call."""
    num_wrong: int
    """Elements that differ from the closed form."""


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


def size_of(op: Op, count: int, num_ranks: int) -> int:
    """Bytes in the `size` column for `count` elements per rank."""
    return count * ELEMENT_BYTES * (1 if op is Op.ALL_REDUCE else num_ranks)


def count_of(op: Op, size_bytes: int, num_ranks: int) -> int:
    """Elements per rank of a test of at most `size_bytes`."""
    if op is Op.ALL_REDUCE:
        return size_bytes // ELEMENT_BYTES
    return size_bytes // num_ranks // ALIGNMENT_BYTES * ALIGNMENT_BYTES // ELEMENT_BYTES


def algbw_gbps(size_bytes: int, time_us: float) -> float:
    """GB/s that the caller sees."""
    return size_bytes / time_us / 1e3


def busbw_gbps(op: Op, size_bytes: int, time_us: float, num_ranks: int) -> float | None:
    """GB/s that each link carries; None on one rank."""
    if num_ranks == 1:
        return None
    steps = 2 * (num_ranks - 1) if op is Op.ALL_REDUCE else num_ranks - 1
    return algbw_gbps(size_bytes, time_us) * steps / num_ranks


def average_busbw_gbps(rows: Sequence[Row]) -> float | None:
    """Mean over all sizes and both halves; None without rows or on one rank.

    It is no verdict: small sizes pull it far below what large ones reach.
    """
    values = [
        busbw_gbps(row.op, row.size_bytes, half.time_us, row.num_ranks)
        for row in rows
        for half in row.halves
    ]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def merge(per_rank: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows that every rank has, in order: times averaged over the ranks, wrong elements summed."""
    merged = []
    for rows in zip(*per_rank, strict=False):
        out_of_place = _merge_halves([row.out_of_place for row in rows])
        in_place = _merge_halves([row.in_place for row in rows])
        merged.append(Row(rows[0].op, rows[0].count, rows[0].num_ranks, out_of_place, in_place))
    return merged


def _merge_halves(halves: Sequence[Half]) -> Half:
    return Half(fmean(half.time_us for half in halves), sum(half.num_wrong for half in halves))


def render(rows: Sequence[Row]) -> str:
    """One section per op, each as its nccl-tests binary prints it. No trailing newline."""
    sections = [[row for row in rows if row.op is op] for op in Op]
    return "\n".join(_render_section(section) for section in sections if section)


def _render_section(rows: Sequence[Row]) -> str:
    num_failed = sum(half.num_wrong > 0 for row in rows for half in row.halves)
    average = average_busbw_gbps(rows)
    lines = [
        f"# {rows[0].op}",
        "#",
        _header("", "", "", "", "") + "           out-of-place                       in-place",
        _header("size", "count", "type", "redop", "root") + 2 * "     time   algbw   busbw  #wrong",
        _header("(B)", "(elements)", "", "", "") + 2 * "     (us)  (GB/s)  (GB/s)        ",
        *map(_render_row, rows),
        f"# Out of bounds values : {num_failed} {'FAILED' if num_failed else 'OK'}",
        f"# Avg bus bandwidth    : {'n/a' if average is None else f'{average:g}'}",
        "#",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _header(size: str, count: str, type_: str, redop: str, root: str) -> str:
    return f"# {size:>10}  {count:>12}  {type_:>8}  {redop:>6}  {root:>6}"


def _render_row(row: Row) -> str:
    left = f"{row.size_bytes:12}  {row.count:12}  {'float':>8}  {REDOPS[row.op]:>6}  {-1:6}"
    return left + "".join(_render_half(row, half) for half in row.halves)


def _render_half(row: Row, half: Half) -> str:
    time = fixed_width(half.time_us, 7)
    algbw = fixed_width(algbw_gbps(row.size_bytes, half.time_us), 6)
    busbw = busbw_gbps(row.op, row.size_bytes, half.time_us, row.num_ranks)
    shown = f"{'n/a':>6}" if busbw is None else fixed_width(busbw, 6)
    return f"  {time}  {algbw}  {shown}  {half.num_wrong:6g}"


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
