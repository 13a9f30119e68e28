"""The plan as an attempt runs it, after what earlier attempts found out. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from ft.recipes.plan import RunPlan
from ft.recipes.runstore import Adjust


def adjusted(plan: RunPlan, adjust: Adjust) -> RunPlan:
    """`plan` with the smaller micro batch: the same rows in every step, the same mean over their tokens.

    Its `sha256` is another one: checkpoints belong to the plan as it was made.
    """
    optim = plan.optim
    size = adjust.micro_batch_size or optim.micro_batch_size
    accumulation = optim.gradient_accumulation_steps * (optim.micro_batch_size // size)
    optim = optim.model_copy(
        update={"micro_batch_size": size, "gradient_accumulation_steps": accumulation}
    )
    rows = adjust.eval_batch_size or plan.checkpoint.eval_batch_size
    checkpoint = plan.checkpoint.model_copy(update={"eval_batch_size": rows})
    return plan.model_copy(update={"optim": optim, "checkpoint": checkpoint})


def after_out_of_memory(plan: RunPlan, adjust: Adjust, *, evaluating: bool) -> Adjust | None:
    """What to try next; None if a batch of one row did not fit. `adjust` is what did not."""
    now = adjusted(plan, adjust)
    size = now.checkpoint.eval_batch_size if evaluating else now.optim.micro_batch_size
    if size == 1:
        return None
    if evaluating:
        return replace(adjust, eval_batch_size=size // 2)
    return replace(adjust, micro_batch_size=largest_proper_divisor(size))


def described(plan: RunPlan) -> str:
    """What a smaller batch means, for a sentence."""
    optim = plan.optim
    return (
        f"micro_batch_size {optim.micro_batch_size} and gradient_accumulation_steps "
        f"{optim.gradient_accumulation_steps}, the same global batch, and eval_batch_size "
        f"{plan.checkpoint.eval_batch_size}"
    )


def largest_proper_divisor(number: int) -> int:
    """Half of an even number; so that micro batch times accumulation stays what it was. `number` > 1."""
    return next(number // divisor for divisor in range(2, number + 1) if number % divisor == 0)
