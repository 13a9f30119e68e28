"""Integer arithmetic of a layout: processes, batches, steps. Wrong here costs 0.2 s; on 8×H100 it costs minutes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class LayoutError(ValueError):
    """The sizes do not fit the number of processes. `key` is the recipe key to change."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Layout:
    """How `world_size` processes share the work: world = dp_replicate · dp_shard · cp · tp."""

    world_size: int
    dp_replicate_size: int
    dp_shard_size: int
    context_parallel_size: int
    tensor_parallel_size: int

    @property
    def data_parallel_size(self) -> int:
        """Processes that read different rows: context and tensor parallel peers read the same ones."""
        return self.dp_replicate_size * self.dp_shard_size

    def global_batch_size(self, micro_batch_size: int, gradient_accumulation_steps: int) -> int:
        """Rows per optimizer step: micro · accumulation · (world / (cp · tp))."""
        return micro_batch_size * gradient_accumulation_steps * self.data_parallel_size


MAX_PROCESSES = 100_000
"""More than anybody has; beyond it no sizes that fit are listed, which would take for ever."""

SIZES = ("dp_replicate_size", "dp_shard_size", "context_parallel_size", "tensor_parallel_size")


def solve(world_size: int, sizes: Mapping[str, int | None], *, is_sharded: bool = False) -> Layout:
    """Fill in the size that is not set so that the product is `world_size`.

    Unset context, tensor and shard sizes are 1; an unset `dp_replicate_size` takes what is left. With FSDP
    (`is_sharded`) an unset `dp_shard_size` takes it, and an unset `dp_replicate_size` is 1.
    Raises: LayoutError naming the key and the sizes that would fit.
    """
    rest = world_size
    for key in (
        "context_parallel_size",
        "tensor_parallel_size",
        "dp_shard_size",
        "dp_replicate_size",
    ):
        size = sizes.get(key) or 1
        if rest % size:
            raise LayoutError(key, _does_not_divide(key, size, rest, world_size))
        rest //= size
    replicate, shard = sizes.get("dp_replicate_size"), sizes.get("dp_shard_size")
    if is_sharded and not shard:
        replicate, shard, rest = replicate or 1, rest, 1
    if replicate and rest != 1:
        product = world_size // rest
        raise LayoutError(
            "dp_replicate_size",
            f"the sizes multiply to {product}, but there are {world_size} processes. "
            f"Use dp_replicate_size {replicate * rest}, or leave it out.",
        )
    return Layout(
        world_size,
        replicate or rest,
        shard or 1,
        sizes.get("context_parallel_size") or 1,
        sizes.get("tensor_parallel_size") or 1,
    )


def _does_not_divide(key: str, size: int, rest: int, world_size: int) -> str:
    left = "" if rest == world_size else f" that are left of {world_size}"
    message = f"{key} {size} does not divide the {rest} processes{left}."
    if rest == 1:
        one = "1 process" if world_size == 1 else f"the 1 process that is left of {world_size}"
        return f"{key} {size} does not fit {one}. Use 1."
    return f"{message} Use one of {divisors(rest)}." if rest <= MAX_PROCESSES else message


def divisors(number: int) -> str:
    """`8` -> "1, 2, 4, 8"."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def steps_per_epoch(num_rows: int, global_batch_size: int) -> int:
    """Optimizer steps per pass; the last one may have fewer rows."""
    return math.ceil(num_rows / global_batch_size)


def total_steps(
    num_rows: int, global_batch_size: int, num_epochs: float, max_steps: int | None
) -> int:
    """Optimizer steps of the run. A fraction of an epoch is rounded up to a step."""
    # Rounded first: 0.1 + 0.2 epochs of 10 steps are 3 steps, not 4.
    steps = math.ceil(round(num_epochs * steps_per_epoch(num_rows, global_batch_size), 9))
    return min(steps, max_steps) if max_steps else steps


def steps_of_epochs(
    steps_in_epoch: Callable[[int], int], num_epochs: float, max_steps: int | None
) -> int:
    """As `total_steps`, where epochs differ: `steps_in_epoch` counts them from 0 and is asked no more than needed."""
    whole, steps = math.floor(num_epochs), 0
    for epoch in range(whole):
        steps += steps_in_epoch(epoch)
        if max_steps and steps >= max_steps:
            return max_steps
    if num_epochs > whole:
        steps += math.ceil(round((num_epochs - whole) * steps_in_epoch(whole), 9))
    return min(steps, max_steps) if max_steps else steps


def is_due(step: int, *, times: int, steps: int) -> bool:
    """Whether what happens `times` in an epoch of so many steps happens after its `step`-th one, from 1.

    Spread evenly, the last time at the end of the epoch; after each step where there are no more of them.
    What happens N times falls on a time of whatever happens twice, or three times, as often.
    """
    return step * times // steps > (step - 1) * times // steps


def warmup_steps(total: int, *, steps: int | None, ratio: float | None, at_most: int | None) -> int:
    """Steps of the warm-up: `steps`, else `ratio` of all steps rounded up, and not more than `at_most`."""
    if steps is not None:
        return steps
    from_ratio = math.ceil(round((ratio or 0.0) * total, 9))
    return from_ratio if at_most is None else min(from_ratio, at_most)
