"""Packing: numpy only, so these are quick. The oracle places one row after the other."""

from __future__ import annotations

from collections import defaultdict

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl import pack_dataset

from ft.runtime.data.pack import Packing, Packs, in_row_order, pack, pack_sequentially

CASES = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(
        st.just(capacity), st.lists(st.integers(1, capacity), min_size=1, max_size=120)
    )
)
"""(capacity, lengths)."""
MOST = st.none() | st.integers(1, 6)
SEEDS = st.integers(0, 2**32 - 1)


def shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def lists(packs: Packs) -> list[list[int]]:
    return [part.tolist() for part in packs]


def one_by_one(lengths: list[int], capacity: int, most: int | None) -> list[list[int]]:
    """Lengths in each pack: best-fit-decreasing as the textbook has it, in O(n · capacity).

    Among packs with the same space, the one that got a row last.
    """
    with_space: dict[int, list[list[int]]] = defaultdict(list)
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in range(length, capacity) if with_space[space]]
        if fitting:
            best = with_space[fitting[0]].pop()
        else:
            best = []
            packs.append(best)
        best.append(length)
        if most is None or len(best) < most:
            with_space[capacity - sum(best)].append(best)
    return packs


def test_the_longest_go_first_each_into_the_fullest_pack_that_takes_it() -> None:
    # 7 6 5 4 3 2 2 1 in packs of 10: 7, 6, 5 begin packs; 4 goes to 6, 3 to 7, 2 2 1 to 5.
    lengths = np.array([2, 6, 1, 3, 5, 4, 7, 2])
    assert lists(pack(lengths, 10, np.arange(8))) == [[6, 3], [1, 5], [4, 0, 7, 2]]
    # Of the two rows of 2 tokens, the one that comes first in the order.
    assert lists(pack(lengths, 10, np.arange(8)[::-1])) == [[6, 3], [1, 5], [4, 7, 0, 2]]
    # At most two rows each: 5 with the first 2, and the rest begins another.
    assert lists(pack(lengths, 10, np.arange(8), 2)) == [[6, 3], [1, 5], [4, 0], [7, 2]]


def test_neighbours_share_a_pack_as_long_as_they_fit() -> None:
    lengths = np.array([2, 6, 1, 3, 5, 4, 7, 2])
    assert lists(pack_sequentially(lengths, 10, np.arange(8))) == [[0, 1, 2], [3, 4], [5], [6, 7]]
    assert lists(pack_sequentially(lengths, 10, np.array([6, 3, 4]))) == [[6, 3], [4]]
    assert lists(pack_sequentially(lengths, 10, np.arange(4), 2)) == [[0, 1], [2, 3]]


@given(case=CASES, most=MOST, seed=SEEDS, sequentially=st.booleans())
def test_every_row_comes_once_and_no_pack_is_too_full(
    case: tuple[int, list[int]], most: int | None, seed: int, sequentially: bool
) -> None:
    capacity, found = case
    lengths, order = np.array(found), shuffled(len(found), seed)
    packs = (pack_sequentially if sequentially else pack)(lengths, capacity, order, most)
    assert packs.rows.dtype == packs.offsets.dtype == np.int64
    assert sorted(packs.rows.tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[part].sum() <= capacity for part in packs)
    assert all(len(part) <= (most or len(lengths)) for part in packs)
    if sequentially:
        assert packs.rows.tolist() == order.tolist()
        # No pack has room for the row that begins the next one.
        for part, following in zip(lists(packs), lists(packs)[1:], strict=False):
            assert len(part) == most or lengths[[*part, following[0]]].sum() > capacity


@given(case=CASES, most=MOST, seed=SEEDS)
def test_many_at_once_is_what_one_by_one_gives(
    case: tuple[int, list[int]], most: int | None, seed: int
) -> None:
    capacity, lengths = case
    packs = pack(np.array(lengths), capacity, shuffled(len(lengths), seed), most)
    by_length = sorted(np.array(lengths)[part].tolist() for part in packs)
    assert by_length == sorted(one_by_one(lengths, capacity, most))


@given(case=CASES, most=MOST, seeds=st.tuples(SEEDS, SEEDS))
def test_the_order_decides_who_but_not_how_many(
    case: tuple[int, list[int]], most: int | None, seeds: tuple[int, int]
) -> None:
    capacity, found = case
    lengths = np.array(found)
    one, other = (pack(lengths, capacity, shuffled(len(found), seed), most) for seed in seeds)
    assert one.offsets.tolist() == other.offsets.tolist()
    assert lengths[one.rows].tolist() == lengths[other.rows].tolist()
    again = pack(lengths, capacity, shuffled(len(found), seeds[0]), most)
    assert again.rows.tolist() == one.rows.tolist()


@given(case=CASES)
def test_as_few_packs_as_trl_needs(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
    theirs = pack_dataset(rows, capacity, "bfd")
    ours = pack(np.array(lengths), capacity, np.arange(len(lengths)))
    assert len(ours) == len(theirs)


@given(case=CASES, seed=SEEDS, group=st.integers(1, 150))
def test_groups_are_packed_for_themselves(
    case: tuple[int, list[int]], seed: int, group: int
) -> None:
    capacity, found = case
    lengths, order = np.array(found), shuffled(len(found), seed)
    packs = Packing(capacity, group_size=group).packs(lengths, order)
    parts = [
        lists(pack(lengths, capacity, order[start : start + group]))
        for start in range(0, len(order), group)
    ]
    assert lists(packs) == [rows for part in parts for rows in part]


@given(case=CASES, seed=SEEDS)
def test_in_row_order_packs_go_by_their_first_row(case: tuple[int, list[int]], seed: int) -> None:
    capacity, found = case
    packs = pack(np.array(found), capacity, shuffled(len(found), seed))
    sorted_packs = lists(in_row_order(packs))
    assert sorted_packs == sorted(sorted(part) for part in lists(packs))


def test_packs_are_cut_out_and_taken_like_elements_of_a_list() -> None:
    packs = Packs(np.array([5, 3, 4, 1, 0, 2]), np.array([0, 2, 3, 6]))
    assert (len(packs), lists(packs)) == (3, [[5, 3], [4], [1, 0, 2]])
    assert lists(packs[1:3]) == lists(packs[1:9]) == [[4], [1, 0, 2]]
    assert lists(packs[:0]) == lists(packs[3:5]) == lists(packs[7:9]) == []
    assert packs[1:3].rows.tolist() == [4, 1, 0, 2]
    assert lists(packs.taken(np.array([2, 0]))) == [[1, 0, 2], [5, 3]]


@pytest.mark.parametrize("how", [pack, pack_sequentially])
def test_what_fits_into_no_pack_is_refused(how: object) -> None:
    assert callable(how)
    for length in (0, 9):
        with pytest.raises(
            ValueError, match=f"a row of {length} tokens does not go into packs of 8"
        ):
            how(np.array([3, length]), 8, np.arange(2))
    with pytest.raises(ValueError, match="no packs of 0 rows"):
        how(np.array([3]), 8, np.arange(1), 0)
    assert lists(how(np.array([9, 3]), 8, np.array([1]))) == [[1]]
    assert lists(how(np.array([9, 3]), 8, np.arange(0))) == []


def test_a_million_rows_are_packed_nearly_full() -> None:
    # All lengths up to the capacity: the most steps among the distributions of tests/bench/pack.py, which times them.
    lengths = np.random.default_rng(0).integers(1, 32769, 1_000_000)
    order = shuffled(len(lengths), 0)
    packs = pack(lengths, 32768, order)
    assert lengths.sum() > 0.99 * 32768 * len(packs)
