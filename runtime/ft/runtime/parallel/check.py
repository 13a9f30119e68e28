"""What was built is what was asked for: libraries fall back to plain DDP without a word."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from ft.runtime.world import World


def assert_parallel(model: torch.nn.Module, world: World) -> None:
    """Raises: RuntimeError if several processes trained without averaging their gradients."""
    wrapped = isinstance(model, DistributedDataParallel)
    if (world.size > 1) != wrapped:
        raise RuntimeError(f"{world.size} processes, but the model is a {type(model).__name__}")
