"""Keys about steps: batch, optimizer, learning rate, length of the run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ft.recipes.schema.base import Section


class OptimKeys(Section):
    """How the weights move."""

    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per process and forward pass. Default: 1."""
    gradient_accumulation_steps: int | None = Field(default=None, ge=1)
    """Forward passes per optimizer step. Default: 1."""
    num_epochs: float | None = Field(default=None, gt=0, le=10_000)
    """Passes over the data. Default: 1."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most optimizer steps; the run ends at this or at `num_epochs`, whichever comes first."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused"] | None = None
    """Default: `adamw_torch_fused`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Highest learning rate. Required."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] | None = None
    """How the learning rate falls. Default: `cosine`."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps over which the learning rate rises from zero. Not together with `warmup_ratio`."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of all steps over which it rises. Default: 0.03, and at most 100 steps, unless one of the two is set."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled weight decay. Default: 0."""
    adam_beta1: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the first moment. Default: 0.9."""
    adam_beta2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the second moment. Default: 0.999."""
    adam_epsilon: float | None = Field(default=None, gt=0)
    """Added to the denominator. Default: 1e-8."""
    max_grad_norm: float | None = Field(default=None, ge=0)
    """Gradients are scaled down to this norm. Default: 1. 0 turns it off."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Of the data order, the adapter's first weights and dropout. Default: 42."""
