"""Which rows share a packed row: best-fit-decreasing over all of them at once, or neighbours only. numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

WORD: Final = 512
"""Bits of a lower word of `_Spaces`: its upper word has as few for all capacities that models have."""


@dataclass(frozen=True, slots=True)
class Packs:
    """Pack `i` is `rows[offsets[i] : offsets[i + 1]]`. Both int64; `offsets` has one element more than packs."""

    rows: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (
            self.rows[start:end]
            for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        )

    def __getitem__(self, part: slice) -> Packs:
        """Neighbouring packs; fewer or none where there are no more, as in a list."""
        start, stop, _ = part.indices(len(self))
        offsets = self.offsets[start : max(start, stop) + 1]
        return Packs(self.rows[offsets[0] : offsets[-1]], offsets - offsets[0])

    def taken(self, chosen: np.ndarray) -> Packs:
        """The packs with these numbers, in this order."""
        sizes = np.diff(self.offsets)[chosen]
        offsets = _offsets(sizes)
        # Where each row lies: its place among the chosen ones, moved by how far its pack was moved.
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], sizes)
        return Packs(self.rows[places], offsets)


def pack(
    lengths: np.ndarray, capacity: int, order: np.ndarray, most_rows: int | None = None
) -> Packs:
    """Best-fit-decreasing: longest rows first, each into the fullest pack that still takes it.

    `lengths`: int64, tokens of every row. `order`: row numbers, those to pack, each once; among equal
    lengths it decides who goes first. `most_rows`: no pack gets more rows. How many packs come out, and
    how full they are, depends on the lengths alone. A pack has its longest row first, and packs come in
    the order in which they were begun.

    O(n log n) for the sort. Rows of one length are placed together: the pack that has just got one is
    still the fullest that takes another, so it takes as many as fit, and all packs with the same space
    are served at once. What is left is one step for each length and each space that it meets.

    Raises: ValueError if a length is not in 1 … `capacity`, or `most_rows` is below 1.
    """
    _check(lengths[order], capacity, most_rows)
    # Stable, so that equal lengths stay in `order`.
    rows = order[np.argsort(-lengths[order], kind="stable")]
    begins = np.flatnonzero(np.diff(lengths[rows], prepend=capacity + 1))
    groups = zip(
        lengths[rows[begins]].tolist(), np.diff(begins, append=len(rows)).tolist(), strict=True
    )
    most = len(rows) if most_rows is None else most_rows
    spaces, num_packs = _Spaces(capacity), 0
    moves: list[Move] = []
    for length, count in groups:
        left = count
        while left:
            found = spaces.best(length)
            if found is None:
                # As many empty packs as these rows need, all the same.
                each = min(capacity // length, most)
                needed = -(-left // each)
                found = (capacity, num_packs, num_packs + needed, 0)
                num_packs += needed
            for move in _fill(found, length, left, most, spaces):
                moves.append(move)
                left -= move[1] * move[2]
    return _carried_out(moves, rows, num_packs)


def pack_sequentially(
    lengths: np.ndarray, capacity: int, order: np.ndarray, most_rows: int | None = None
) -> Packs:
    """Neighbours of `order` share a pack as long as they fit; rows stay in that order. See `pack`."""
    if not len(order):
        return Packs(order, np.zeros(1, dtype=np.int64))
    _check(lengths[order], capacity, most_rows)
    ends = np.cumsum(lengths[order])
    # Behind the last row that fits into a pack which begins at each row.
    limits = np.searchsorted(ends, ends - lengths[order] + capacity, side="right")
    if most_rows is not None:
        limits = np.minimum(limits, np.arange(len(order)) + most_rows)
    following = limits.tolist()
    offsets = [0]
    while offsets[-1] < len(order):
        offsets.append(following[offsets[-1]])
    return Packs(order, np.array(offsets, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows are packed; no field changes what is in a row."""

    capacity: int
    """Tokens of a pack."""
    sequentially: bool = False
    group_size: int | None = None
    """Rows that are packed for themselves, so many neighbours at a time; None: all rows together."""
    most_rows: int | None = None

    def packs(self, lengths: np.ndarray, order: np.ndarray) -> Packs:
        """All rows of `order`. Raises: ValueError, see `pack`."""
        if self.sequentially:
            return pack_sequentially(lengths, self.capacity, order, self.most_rows)
        size = self.group_size or len(order)
        if size >= len(order):
            return pack(lengths, self.capacity, order, self.most_rows)
        return _joined(
            [
                pack(lengths, self.capacity, order[start : start + size], self.most_rows)
                for start in range(0, len(order), size)
            ]
        )

    def keeps_count(self, num_rows: int) -> bool:
        """Whether there are as many packs in any order of the rows."""
        return not self.sequentially and (self.group_size or num_rows) >= num_rows


def in_row_order(packs: Packs) -> Packs:
    """Ascending row numbers in each pack, and packs ascending by their first row."""
    sizes = np.diff(packs.offsets)
    rows = packs.rows[np.lexsort((packs.rows, np.repeat(np.arange(len(packs)), sizes)))]
    return Packs(rows, packs.offsets).taken(np.argsort(rows[packs.offsets[:-1]], kind="stable"))


def _joined(parts: list[Packs]) -> Packs:
    """The packs of all parts, one part after the other."""
    sizes = [np.diff(part.offsets) for part in parts]
    return Packs(np.concatenate([part.rows for part in parts]), _offsets(np.concatenate(sizes)))


Bins = tuple[int, int, int, int]
"""(space left, first pack, pack behind the last, rows in each): packs that are alike but for their rows."""


class _Spaces:
    """Packs that still have space, found by it: a set of spaces in two levels of bits, and who has them."""

    def __init__(self, capacity: int) -> None:
        self._bins: list[list[Bins]] = [[] for _ in range(capacity + 1)]
        self._words = [0] * (capacity // WORD + 1)
        self._upper = 0

    def add(self, bins: Bins) -> None:
        space = bins[0]
        if not self._bins[space]:
            self._words[space // WORD] |= 1 << (space % WORD)
            self._upper |= 1 << (space // WORD)
        self._bins[space].append(bins)

    def best(self, length: int) -> Bins | None:
        """Takes out the packs with the least space that is at least `length`, those that came last."""
        index, shift = divmod(length, WORD)
        word = self._words[index] >> shift << shift
        if not word:
            above = self._upper >> (index + 1) << (index + 1)
            if not above:
                return None
            index = _lowest(above)
            word = self._words[index]
        bit = _lowest(word)
        here = self._bins[index * WORD + bit]
        bins = here.pop()
        if not here:
            self._words[index] &= ~(1 << bit)
            if not self._words[index]:
                self._upper &= ~(1 << index)
        return bins


Move = tuple[int, int, int]
"""(first pack, neighbouring packs, rows that each of them gets); moves use up the sorted rows in their order."""


def _fill(bins: Bins, length: int, left: int, most_rows: int, spaces: _Spaces) -> Iterator[Move]:
    """Put up to `left` rows of `length` into these packs, as many into each as fit; who has space goes back."""
    space, first, stop, rows = bins
    each = min(space // length, most_rows - rows)
    full = min(stop - first, left // each)
    if full:
        yield first, full, each
        if space > each * length and rows + each < most_rows:
            spaces.add((space - each * length, first, first + full, rows + each))
    first, rest = first + full, left - full * each
    if first < stop and rest:
        # The last rows of this length: fewer than this pack takes.
        yield first, 1, rest
        spaces.add((space - rest * length, first, first + 1, rows + rest))
        first += 1
    if first < stop:
        spaces.add((space, first, stop, rows))


def _carried_out(moves: list[Move], rows: np.ndarray, num_packs: int) -> Packs:
    if not moves:
        return Packs(rows, _offsets(rows))
    first, count, each = (np.array(column, dtype=np.int64) for column in zip(*moves, strict=True))
    starts = _offsets(count)
    packs = np.arange(starts[-1]) + np.repeat(first - starts[:-1], count)
    pack_of = np.repeat(packs, np.repeat(each, count))
    sizes = np.bincount(pack_of, minlength=num_packs).astype(np.int64)
    return Packs(rows[np.argsort(pack_of, kind="stable")], _offsets(sizes))


def _lowest(word: int) -> int:
    """The number of the lowest bit that is set."""
    return (word & -word).bit_length() - 1


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def _check(lengths: np.ndarray, capacity: int, most_rows: int | None) -> None:
    if most_rows is not None and most_rows < 1:
        raise ValueError(f"no packs of {most_rows} rows")
    wrong = lengths[(lengths < 1) | (lengths > capacity)]
    if len(wrong):
        raise ValueError(f"a row of {wrong[0]} tokens does not go into packs of {capacity}")
