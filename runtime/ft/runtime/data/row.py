"""What a format makes of an example, and the errors that name a bad one. No tokenizer, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXCERPT_CHARACTERS = 200


class RowError(ValueError):
    """An example that cannot become a row; the text is the reason. Who reads the file adds the place."""


class DataError(Exception):
    """Data that cannot be trained on; the same at every attempt.

    `path` is the file below the run folder or the hub id, `row` counts from 1 (the line of a JSONL or
    text file) and is None if no row is to blame, `excerpt` is how the row begins, `reason` says why.
    """

    def __init__(
        self, path: str, row: int | None, excerpt: str, reason: str, *, unit: str = "row"
    ) -> None:
        self.path = path
        self.row = row
        # Half of a surrogate pair, which JSON can spell, would break whoever prints it.
        self.excerpt = excerpt[:EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        self.reason = reason
        self.unit = unit
        super().__init__(str(self))

    def __str__(self) -> str:
        where = self.path if self.row is None else f"{self.path}, {self.unit} {self.row}"
        begins = f" It begins: {self.excerpt}" if self.excerpt else ""
        return f"{where}: {self.reason.rstrip('.')}.{begins}"


@dataclass(frozen=True, slots=True)
class Segment:
    """Text that is tokenized on its own; `train` says whether its tokens have labels."""

    text: str
    train: bool


@dataclass(frozen=True, slots=True)
class SegmentsRow:
    """Segments in their order.

    `special_tokens`: the first segment gets what the tokenizer puts in front of a text (BOS).
    `eos`: the row ends with EOS; it is appended unless it is there.
    `chunks`: a row longer than `sequence_len` becomes several rows, not one long one.
    """

    segments: tuple[Segment, ...]
    special_tokens: bool
    eos: bool
    chunks: bool = False


@dataclass(frozen=True, slots=True)
class MessagesRow:
    """A conversation for a chat template: each message has `role`, `content` and what else was there."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None


Row = SegmentsRow | MessagesRow


def text_column(example: Mapping[str, Any], column: str) -> str:
    """The text in `column`. Raises: RowError if there is no such column or it holds no text."""
    if column not in example:
        columns = ", ".join(f"`{name}`" for name in example) or "none"
        raise RowError(f"has no column `{column}`; its columns: {columns}.")
    value = example[column]
    if not isinstance(value, str):
        raise RowError(f"`{column}` holds {kind(value)}, expected text.")
    return value


def kind(value: object) -> str:
    """The name of a JSON kind, for messages: `[1]` -> "a list"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    return {"str": "text", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
