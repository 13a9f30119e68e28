"""Keys about what is written while training, and when."""

from __future__ import annotations

from pydantic import Field

from ft.recipes.schema.base import Section


class CheckpointKeys(Section):
    """What is saved, measured and printed on the way."""

    output_dir: str | None = None
    """Folder in which the finished adapter or model is put. Default: `./model-out`."""
    save_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints. Not together with `saves_per_epoch`. Default: once per epoch."""
    saves_per_epoch: int | None = Field(default=None, ge=1)
    """Checkpoints per epoch."""
    save_total_limit: int | None = Field(default=None, ge=1)
    """Checkpoints that are kept; the newest valid one always is. Default: 4."""
    logging_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between loss lines. Default: 1."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations. Not together with `evals_per_epoch`. Default: once per epoch."""
    evals_per_epoch: int | None = Field(default=None, ge=1)
    """Evaluations per epoch."""
    eval_batch_size: int | None = Field(default=None, ge=1)
    """Rows per process and forward pass in an evaluation. Default: `micro_batch_size`."""
