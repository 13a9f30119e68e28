"""Keys about which weights are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ft.recipes.schema.base import Section, Seq


class AdapterKeys(Section):
    """Low-rank adapters, or all weights where `adapter` is not set."""

    adapter: Literal["lora"] | None = None
    """`lora`, or left out: all weights are trained."""
    lora_r: int | None = Field(default=None, ge=1)
    """Rank of the adapter matrices. Required with `adapter: lora`."""
    lora_alpha: int | None = Field(default=None, ge=1)
    """The adapter's output is scaled by `lora_alpha / lora_r`. Required with `adapter: lora`."""
    lora_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before the adapter. Default: 0."""
    lora_target_modules: Seq[str] | str | None = None
    """Names of modules that get an adapter, or one regular expression. Default: every linear layer."""
    lora_target_linear: bool | None = None
    """Every linear layer but the head gets an adapter."""
    lora_modules_to_save: Seq[str] | None = None
    """Modules that are trained in full beside the adapter."""
    peft_use_rslora: bool | None = None
    """Scale by `lora_alpha / sqrt(lora_r)` instead. Default: false."""
