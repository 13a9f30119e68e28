"""The order of the rows: numpy only, so these are quick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.recipes import layout
from ft.runtime.data.order import Order, PackedOrder, permutation
from ft.runtime.data.pack import Packing, Packs

SIZES = st.integers(1, 6)
"""Accumulation, ranks and micro batch of a layout."""


@given(
    rows=st.integers(1, 200),
    accumulation=SIZES,
    ranks=SIZES,
    micro=SIZES,
    seed=st.integers(0, 2**32 - 1),
)
def test_the_parts_of_a_step_are_its_rows_whoever_shares_it_out(
    rows: int, accumulation: int, ranks: int, micro: int, seed: int
) -> None:
    order = Order(rows, accumulation * ranks * micro, seed, shuffle=True)
    for step in range(2 * order.steps_per_epoch):
        parts = [
            order.micro_batch(step, part, rank, micro, ranks)
            for part in range(accumulation)
            for rank in range(ranks)
        ]
        assert all(len(part) <= micro for part in parts)
        assert np.concatenate(parts).tolist() == order.rows_of_step(step).tolist()


@given(
    rows=st.integers(1, 200),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_an_epoch_has_every_row_once(
    rows: int, batch: int, seed: int, epoch: int, shuffle: bool
) -> None:
    order = Order(rows, batch, seed, shuffle)
    first = epoch * order.steps_per_epoch
    steps = [order.rows_of_step(step) for step in range(first, first + order.steps_per_epoch)]
    assert sorted(np.concatenate(steps)) == list(range(rows))
    assert all(len(step) == batch for step in steps[:-1])
    assert len(steps[-1]) == rows - batch * (order.steps_per_epoch - 1)


@given(
    rows=st.integers(1, 100),
    batch=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
    resumed_at=st.integers(0, 30),
)
def test_a_resume_goes_on_with_the_same_rows(
    rows: int, batch: int, seed: int, resumed_at: int
) -> None:
    whole = Order(rows, batch, seed, shuffle=True)
    steps = [whole.rows_of_step(step).tolist() for step in range(resumed_at + 5)]
    resumed = Order(rows, batch, seed, shuffle=True)
    assert [resumed.rows_of_step(s).tolist() for s in range(resumed_at, resumed_at + 5)] == steps[
        resumed_at:
    ]


def test_the_order_is_what_it_was_in_the_first_release() -> None:
    # A change would make resumes see other rows. Rows by ascending random bits, the first byte of each:
    #   epoch 0: c6 70 db b2 18 -> 4 1 3 0 2        epoch 1: cb 3e 67 a1 d0 -> 1 2 3 0 4
    order = Order(num_rows=5, global_batch_size=2, seed=42, shuffle=True)
    steps = [order.rows_of_step(step).tolist() for step in range(6)]
    assert steps == [[4, 1], [3, 0], [2], [1, 2], [3, 0], [4]]


def test_without_shuffle_rows_keep_their_order_in_every_epoch() -> None:
    order = Order(num_rows=5, global_batch_size=2, seed=42, shuffle=False)
    steps = [order.rows_of_step(step).tolist() for step in range(4)]
    assert steps == [[0, 1], [2, 3], [4], [0, 1]]


def test_a_share_of_the_last_step_may_be_short_or_empty() -> None:
    # 5 rows, 2 accumulation · 2 ranks · 2 rows: the second half of the step gets what is left.
    order = Order(num_rows=5, global_batch_size=8, seed=0, shuffle=False)
    parts = [
        order.micro_batch(0, part, rank, micro_batch_size=2, data_parallel_size=2).tolist()
        for part in range(2)
        for rank in range(2)
    ]
    assert parts == [[0, 1], [2, 3], [4], []]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return Order(100, 100, seed, shuffle=True).rows_of_step(number).tolist()

    assert len({tuple(epoch(seed, number)) for seed in (0, 1, 42) for number in (0, 1, 2)}) == 9


def test_a_permutation_is_uniform_enough() -> None:
    # Each of 4 rows is first in about a quarter of 4000 permutations: 1000 ± 5 standard deviations of 27.4.
    firsts = [int(permutation(4, np.random.SeedSequence([seed, 0]))[0]) for seed in range(4000)]
    assert np.abs(np.bincount(firsts, minlength=4) - 1000).max() < 137


@pytest.mark.parametrize(("rows", "batch"), [(0, 4), (4, 0)])
def test_an_order_of_nothing_is_refused(rows: int, batch: int) -> None:
    with pytest.raises(ValueError, match=f"no order of {rows} rows in batches of {batch}"):
        Order(rows, batch, 0, shuffle=True)


# ------------------------------------------------------------------------------------------ packs

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=80)
PACKINGS = st.builds(
    Packing,
    capacity=st.integers(12, 30),
    sequentially=st.booleans(),
    group_size=st.none() | st.integers(1, 40),
    most_rows=st.none() | st.integers(1, 5),
)
SEEDS = st.integers(0, 2**32 - 1)


def packed(
    lengths: list[int], packing: Packing, batch: int, seed: int = 0, shuffle: bool = True
) -> PackedOrder:
    return PackedOrder(np.array(lengths), packing, batch, seed, shuffle)


def lists(packs: Packs) -> list[list[int]]:
    return [part.tolist() for part in packs]


@given(
    lengths=LENGTHS,
    packing=PACKINGS,
    layouts=st.tuples(st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES)),
    seed=SEEDS,
    shuffle=st.booleans(),
)
def test_the_parts_of_a_step_are_its_packs_whoever_shares_it_out(
    lengths: list[int],
    packing: Packing,
    layouts: tuple[tuple[int, int], tuple[int, int]],
    seed: int,
    shuffle: bool,
) -> None:
    """Two layouts of the same global batch: (ranks · micro, accumulation) and the other way round."""
    (a, b), (c, d) = layouts
    batch, found = a * b * c * d, []
    for accumulation, ranks, micro in ((a * b, c, d), (c, a, b * d)):
        order = packed(lengths, packing, batch, seed, shuffle)
        steps = []
        for step in range(order.steps_in_epoch(0) + 1):
            parts = [
                order.micro_batch(step, part, rank, micro, ranks)
                for part in range(accumulation)
                for rank in range(ranks)
            ]
            assert all(len(part) <= micro for part in parts)
            packs = [rows for part in parts for rows in lists(part)]
            assert packs == lists(order.packs_of_step(step))
            assert [row for rows in packs for row in rows] == order.rows_of_step(step).tolist()
            steps.append(packs)
        found.append(steps)
    assert found[0] == found[1]


@given(
    lengths=LENGTHS,
    packing=PACKINGS,
    batch=st.integers(1, 10),
    seed=SEEDS,
    shuffle=st.booleans(),
)
def test_every_epoch_has_every_row_once_in_as_many_steps_as_it_says(
    lengths: list[int], packing: Packing, batch: int, seed: int, shuffle: bool
) -> None:
    order, step = packed(lengths, packing, batch, seed, shuffle), 0
    for epoch in range(3):
        steps = [order.packs_of_step(step + i) for i in range(order.steps_in_epoch(epoch))]
        assert sorted(np.concatenate([one.rows for one in steps])) == list(range(len(lengths)))
        assert [len(one) for one in steps[:-1]] == [batch] * (len(steps) - 1)
        assert 1 <= len(steps[-1]) <= batch
        assert order.epochs_done(step) == epoch
        step += len(steps)
    assert step == layout.steps_of_epochs(order.steps_in_epoch, 3.0, None)


@given(lengths=LENGTHS, capacity=st.integers(12, 30), seed=SEEDS)
def test_best_fit_has_as_many_packs_in_each_epoch(
    lengths: list[int], capacity: int, seed: int
) -> None:
    order = packed(lengths, Packing(capacity), 1, seed)
    assert len({len(order.packs_of_epoch(epoch)) for epoch in range(4)}) == 1


@given(
    lengths=LENGTHS, packing=PACKINGS, batch=st.integers(1, 5), seed=SEEDS, at=st.integers(0, 30)
)
def test_a_resume_goes_on_with_the_same_packs(
    lengths: list[int], packing: Packing, batch: int, seed: int, at: int
) -> None:
    whole = packed(lengths, packing, batch, seed)
    steps = [lists(whole.packs_of_step(step)) for step in range(at + 3)]
    resumed = packed(lengths, packing, batch, seed)
    assert [lists(resumed.packs_of_step(step)) for step in range(at, at + 3)] == steps[at:]
    # Back and forth, as where the next batch is read while the last one is counted.
    assert [lists(whole.packs_of_step(step)) for step in reversed(range(at + 3))] == steps[::-1]


def test_the_packs_are_what_they_were_in_the_first_release() -> None:
    # A change would make resumes see other rows. 4 and 2 tokens in packs of 6: the rows of an epoch in the
    # order of the test above: 4 1 3 0 2, then 1 2 3 0 4. So [4 1] [0 3] [2], then [2 1] [0 3] [4]. The first byte of
    # the bits for each pack: 12 (3c), b5, 12 (61), which changes places, then 75 b9 dc, which does not.
    order = packed([4, 2, 4, 2, 4], Packing(6), 2, seed=42)
    assert [lists(order.packs_of_step(step)) for step in range(4)] == [
        [[4, 1], [2]], [[0, 3]], [[2, 1], [0, 3]], [[4]],
    ]  # fmt: skip


def test_without_shuffle_packs_go_by_their_first_row_in_every_epoch() -> None:
    # 5 3 4 2 4 1 in packs of 8: 5+3, 4+4, 2+1.
    order = packed([4, 5, 2, 3, 4, 1], Packing(8), 2, shuffle=False)
    expected = [[[0, 4], [1, 3]], [[2, 5]]]
    assert [lists(order.packs_of_step(step)) for step in range(4)] == expected * 2


def test_neighbours_are_those_of_the_shuffled_rows() -> None:
    # Order of the rows by seed 42: epoch 0: 4 1 3 0 2, epoch 1: 1 2 3 0 4 (see above), which packs differently:
    # 3+1 tokens, 3, 2+2 and, in the second one, 1+2, 3, 2, 3.
    order = packed([2, 1, 2, 3, 3], Packing(4, sequentially=True), 2, seed=42)
    assert [lists(order.packs_of_step(step)) for step in range(4)] == [
        [[4, 1], [3]], [[0, 2]], [[1, 2], [3]], [[0], [4]],
    ]  # fmt: skip
    order = packed([2, 1, 2, 3, 3], Packing(4, sequentially=True), 2, shuffle=False)
    assert lists(order.packs_of_epoch(7)) == [[0, 1], [2], [3], [4]]


def test_epochs_that_differ_are_counted_one_by_one() -> None:
    # Batches of one: 3 packs in the first epoch, 4 in the second, see above.
    order = packed([2, 1, 2, 3, 3], Packing(4, sequentially=True), 1, seed=42)
    assert [order.steps_in_epoch(epoch) for epoch in (0, 1)] == [3, 4]
    assert [order.epochs_done(step) for step in (0, 2, 3, 4, 7)] == [0, 2 / 3, 1, 1.25, 2]
    for epochs, max_steps, steps in ((1.0, None, 3), (1.5, None, 5), (2.0, None, 7), (2.0, 4, 4)):
        assert layout.steps_of_epochs(order.steps_in_epoch, epochs, max_steps) == steps


@pytest.mark.parametrize(("lengths", "batch"), [([], 4), ([1, 2], 0)])
def test_a_packed_order_of_nothing_is_refused(lengths: list[int], batch: int) -> None:
    with pytest.raises(ValueError, match=f"no order of {len(lengths)} rows in batches of {batch}"):
        packed(lengths, Packing(8), batch)
