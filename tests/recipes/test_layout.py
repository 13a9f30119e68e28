"""Arithmetic of processes, batches and steps."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.recipes import layout
from ft.recipes.layout import Layout, LayoutError, solve


def test_the_known_case() -> None:
    # 8 GPUs, micro batch 2: 8 different batches of 2. Context parallel 4 leaves 2 different batches.
    assert solve(8, {}).global_batch_size(2, 1) == 16
    assert solve(8, {"context_parallel_size": 4}).global_batch_size(2, 1) == 4
    expected = "context_parallel_size 3 does not divide the 8 processes. Use one of 1, 2, 4, 8."
    with pytest.raises(LayoutError, match=expected):
        solve(8, {"context_parallel_size": 3})


@pytest.mark.parametrize(
    ("world", "sizes", "expected"),
    [
        (1, {}, Layout(1, 1, 1, 1, 1)),
        (8, {}, Layout(8, 8, 1, 1, 1)),
        (8, {"dp_shard_size": 8}, Layout(8, 1, 8, 1, 1)),
        (16, {"dp_shard_size": 4, "tensor_parallel_size": 2}, Layout(16, 2, 4, 1, 2)),
        (
            16,
            {"dp_replicate_size": 2, "dp_shard_size": 4, "context_parallel_size": 2},
            Layout(16, 2, 4, 2, 1),
        ),
    ],
)
def test_unset_sizes_are_filled_in(
    world: int, sizes: dict[str, int | None], expected: Layout
) -> None:
    assert solve(world, sizes) == expected


@pytest.mark.parametrize(
    ("world", "sizes", "expected"),
    [
        (8, {}, Layout(8, 1, 8, 1, 1)),
        (8, {"dp_replicate_size": 2}, Layout(8, 2, 4, 1, 1)),
        (8, {"dp_replicate_size": 8}, Layout(8, 8, 1, 1, 1)),
        (8, {"dp_shard_size": 4}, Layout(8, 2, 4, 1, 1)),
        (8, {"dp_shard_size": 1}, Layout(8, 8, 1, 1, 1)),
        (16, {"dp_replicate_size": 2, "context_parallel_size": 2, "tensor_parallel_size": 2}, Layout(16, 2, 2, 2, 2)),
    ],
)  # fmt: skip
def test_fsdp_shards_over_what_is_left(
    world: int, sizes: dict[str, int | None], expected: Layout
) -> None:
    assert solve(world, sizes, is_sharded=True) == expected


@pytest.mark.parametrize(
    "sizes", [{"dp_replicate_size": 3}, {"dp_replicate_size": 2, "dp_shard_size": 2}]
)
def test_fsdp_has_no_room_for_sizes_that_do_not_fit(sizes: dict[str, int | None]) -> None:
    with pytest.raises(LayoutError) as caught:
        solve(8, sizes, is_sharded=True)
    assert caught.value.key == "dp_replicate_size"


@pytest.mark.parametrize(
    ("world", "sizes", "key"),
    [
        (8, {"dp_shard_size": 3}, "dp_shard_size"),
        (8, {"context_parallel_size": 4, "tensor_parallel_size": 4}, "tensor_parallel_size"),
        (8, {"dp_replicate_size": 4}, "dp_replicate_size"),
        (8, {"dp_replicate_size": 3}, "dp_replicate_size"),
        (2, {"dp_shard_size": 4}, "dp_shard_size"),
    ],
)
def test_sizes_that_do_not_fit_name_their_key(
    world: int, sizes: dict[str, int | None], key: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        solve(world, sizes)
    assert caught.value.key == key


def test_one_process_leaves_no_choice() -> None:
    with pytest.raises(LayoutError) as alone:
        solve(1, {"dp_shard_size": 3})
    assert str(alone.value) == "dp_shard_size 3 does not fit 1 process. Use 1."
    with pytest.raises(LayoutError) as left:
        solve(8, {"context_parallel_size": 8, "dp_shard_size": 2})
    assert str(left.value) == "dp_shard_size 2 does not fit the 1 process that is left of 8. Use 1."


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (
            98_760,
            "dp_shard_size 7 does not divide the 98760 processes. Use one of 1, 2, 3, 4, 5, 6, 8, 10, ",
        ),
        (8 * 10**18, "dp_shard_size 7 does not divide the 8000000000000000000 processes."),
    ],
)
def test_sizes_that_fit_are_listed_where_somebody_has_so_many(world: int, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        solve(world, {"dp_shard_size": 7})
    assert str(caught.value).startswith(message)
    assert ("Use one of" in str(caught.value)) == (world < layout.MAX_PROCESSES)


sizes = st.sampled_from([1, 2, 3, 4])


@given(sizes, sizes, sizes, sizes, st.integers(1, 4), st.integers(1, 4))
def test_the_product_is_the_world(
    rep: int, shard: int, cp: int, tp: int, micro: int, accum: int
) -> None:
    world = rep * shard * cp * tp
    found = solve(
        world, {"dp_shard_size": shard, "context_parallel_size": cp, "tensor_parallel_size": tp}
    )
    assert found == Layout(world, rep, shard, cp, tp)
    assert found.global_batch_size(micro, accum) == micro * accum * world // (cp * tp)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "max_steps", "expected"),
    [(600, 8, 1.0, None, 75), (601, 8, 1.0, None, 76), (600, 8, 2.5, None, 188), (600, 8, 2.0, 60, 60),
     (80, 8, 0.3, None, 3), (5, 8, 3.0, None, 3), (600, 8, 1.0, 1000, 75)],
)  # fmt: skip
def test_total_steps(
    rows: int, batch: int, epochs: float, max_steps: int | None, expected: int
) -> None:
    assert layout.total_steps(rows, batch, epochs, max_steps) == expected


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 800), st.none() | st.integers(1, 99))
def test_epochs_that_are_alike_are_counted_as_one_by_one(
    rows: int, batch: int, hundredths: int, max_steps: int | None
) -> None:
    steps = layout.steps_per_epoch(rows, batch)
    found = layout.steps_of_epochs(lambda _: steps, hundredths / 100, max_steps)
    assert found == layout.total_steps(rows, batch, hundredths / 100, max_steps)


def test_no_more_epochs_are_counted_than_needed() -> None:
    asked: list[int] = []

    def steps_in_epoch(epoch: int) -> int:
        asked.append(epoch)
        return 10 + epoch

    # 10 + 11 + half of 12; then until 15 are reached.
    assert layout.steps_of_epochs(steps_in_epoch, 2.5, None) == 27
    assert layout.steps_of_epochs(steps_in_epoch, 1000.0, 15) == 15
    assert asked == [0, 1, 2, 0, 1]


def due(steps: int, times: int) -> list[int]:
    """Steps of an epoch after which it happens."""
    return [step for step in range(1, steps + 1) if layout.is_due(step, times=times, steps=steps)]


def test_times_of_an_epoch_are_spread_evenly() -> None:
    assert due(10, 4) == [3, 5, 8, 10]
    assert due(10, 1) == [10]
    assert due(3, 5) == [1, 2, 3]
    assert due(10, 0) == []


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 5))
def test_an_epoch_has_as_many_times_as_asked(steps: int, times: int, factor: int) -> None:
    found = due(steps, times)
    # The k-th time is after k of `times` equal parts of the epoch, which ends with the last.
    assert found == sorted({math.ceil(k * steps / times) for k in range(1, times + 1)})
    assert len(found) == min(times, steps)
    assert found[-1] == steps
    gaps = [b - a for a, b in itertools.pairwise([0, *found])]
    assert max(gaps) - min(gaps) <= 1
    assert set(found) <= set(due(steps, times * factor))


@pytest.mark.parametrize(
    ("total", "steps", "ratio", "at_most", "expected"),
    [(100, 7, None, None, 7), (100, None, 0.1, None, 10), (60, None, 0.03, 100, 2), (10_000, None, 0.03, 100, 100),
     (100, None, 0.0, None, 0), (100, 0, None, None, 0)],
)  # fmt: skip
def test_warmup_steps(
    total: int, steps: int | None, ratio: float | None, at_most: int | None, expected: int
) -> None:
    assert layout.warmup_steps(total, steps=steps, ratio=ratio, at_most=at_most) == expected
