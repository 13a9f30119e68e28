"""What is left in the environment of these processes that harms training. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from ft.recipes.leftovers import leftovers_in


def harmful(env: Mapping[str, str], *, device: str) -> dict[str, str]:
    """Variable -> what it does and the way out. `device` is cpu or cuda; NCCL is nobody's concern on a CPU."""
    return {
        leftover.name: f"{leftover.describe(env)}. {leftover.way_out}."
        for leftover in leftovers_in(env, device=device)
    }
