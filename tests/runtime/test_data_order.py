"""The order of the rows: numpy only, so these are quick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.runtime.data.order import Order, permutation

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
