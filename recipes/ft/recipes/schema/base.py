"""What all sections share: frozen, strict, no unknown key. `None` is "not set" and nothing else."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

Seq = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in YAML, a tuple once it is read, so that a frozen model really is frozen."""


class Section(BaseModel):
    """A group of recipe keys that one room reads. The key is the attribute; the docstring is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
