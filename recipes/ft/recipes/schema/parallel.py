"""Keys about how the processes share the work. Their product is the number of processes."""

from __future__ import annotations

from pydantic import Field

from ft.recipes.schema.base import Section


class ParallelKeys(Section):
    """world = dp_replicate_size · dp_shard_size · context_parallel_size · tensor_parallel_size."""

    dp_replicate_size: int | None = Field(default=None, ge=1)
    """Copies of the model, each with its own rows. Default: what the other sizes leave over."""
    dp_shard_size: int | None = Field(default=None, ge=1)
    """Processes over which one copy of the model is sharded (FSDP2). Default: 1."""
    context_parallel_size: int | None = Field(default=None, ge=1)
    """Processes that share one sequence. Default: 1. They read the same rows: the global batch shrinks."""
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    """Processes that share each matrix. Default: 1. They read the same rows: the global batch shrinks."""
    ddp_timeout: int | None = Field(default=None, ge=1)
    """Seconds that a process waits for the others in a collective before the attempt ends. Default: 600."""
