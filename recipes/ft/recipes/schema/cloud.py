"""The one block that is ours: where the run goes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ft.recipes.schema.base import Section


class CloudBlock(Section):
    """`cloud:` in a recipe."""

    backend: Literal["local"] | None = None
    """Where the run goes. Default: `local`."""
    gpu: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+(:[1-9][0-9]{0,3})?$")
    """Accelerators per machine, `NAME:COUNT`: `H100:8`, or `cpu:2` for two processes on the CPU.
    Default on `local`: what the machine has."""
    nodes: int | None = Field(default=None, ge=1)
    """Machines. Default: 1."""
    store: str | None = None
    """Folder that holds the run: plan, inputs, checkpoints, status. Default: the user's data folder."""


class CloudKeys(Section):
    """Where the run goes."""

    cloud: CloudBlock | None = None
    """Backend, machines and store of the run."""
