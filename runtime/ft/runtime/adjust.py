"""The plan as an attempt runs it, after what earlier attempts found out. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ft.recipes.plan import RunPlan
from ft.recipes.runstore import Adjust


def adjusted(plan: RunPlan, adjust: Adjust) -> RunPlan:
    """`plan` with the smaller micro batch: the same rows in every step, the same mean over their tokens.

    Its `sha256` is another one: checkpoints belong to the plan as it was made.
    """
    size = adjust.micro_batch_size
    if size is None:
        return plan
    factor = plan.optim.micro_batch_size // size
    optim = plan.optim.model_copy(
        update={
            "micro_batch_size": size,
            "gradient_accumulation_steps": plan.optim.gradient_accumulation_steps * factor,
        }
    )
    evaluation = min(plan.checkpoint.eval_batch_size, size)
    checkpoint = plan.checkpoint.model_copy(update={"eval_batch_size": evaluation})
    return plan.model_copy(update={"optim": optim, "checkpoint": checkpoint})


def after_out_of_memory(plan: RunPlan, adjust: Adjust) -> Adjust | None:
    """What to try next; None if a micro batch of one row did not fit. `adjust` is what did not."""
    size = adjust.micro_batch_size or plan.optim.micro_batch_size
    if size == 1:
        return None
    return replace(adjust, micro_batch_size=largest_proper_divisor(size))


def largest_proper_divisor(number: int) -> int:
    """Half of an even number; so that micro batch times accumulation stays what it was. `number` > 1."""
    return next(number // divisor for divisor in range(2, number + 1) if number % divisor == 0)
