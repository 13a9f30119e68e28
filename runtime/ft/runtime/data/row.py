"""What a format makes of an example, and the errors that name a bad one. No tokenizer, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    def to_json(self) -> str:
        """One line: where, what and how the row begins."""
        names = ("path", "unit", "row", "reason", "excerpt")
        return json.dumps({name: getattr(self, name) for name in names}, ensure_ascii=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that prepares rows sends it to the one that asked.
        return _data_error, (self.path, self.row, self.excerpt, self.reason, self.unit)

    def __str__(self) -> str:
        where = self.path if self.row is None else f"{self.path}, {self.unit} {self.row}"
        begins = f" It begins: {self.excerpt}" if self.excerpt else ""
        return f"{where}: {self.reason.rstrip('.')}.{begins}"


def _data_error(path: str, row: int | None, excerpt: str, reason: str, unit: str) -> DataError:
    return DataError(path, row, excerpt, reason, unit=unit)


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


class Detail(NamedTuple):
    """A part of a message's content and whether it is trained. In characters, `end` exclusive."""

    begin: int
    end: int
    train: bool


@dataclass(frozen=True, slots=True)
class MessagesRow:
    """A conversation for a chat template: each message has `role`, `content` and what else was there.

    `train`, by message: whether its turn is trained; None, or no tuple at all: its role decides.
    `details`, by message: its content from start to end, in parts; None, or no tuple: the whole content.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None
    train: tuple[bool | None, ...] = ()
    details: tuple[tuple[Detail, ...] | None, ...] = ()


@dataclass(frozen=True, slots=True)
class TokensRow:
    """Tokens that the data came with; `labels[i]` is `input_ids[i]` or -100."""

    input_ids: Sequence[int]
    labels: Sequence[int]


Row = SegmentsRow | MessagesRow | TokensRow


def optional_text(example: Mapping[str, Any], column: str) -> str:
    """The text in `column`; "" where there is no such column, or it holds null.

    Raises: RowError if it holds something else.
    """
    return "" if is_missing(example.get(column)) else text_column(example, column)


def is_missing(value: object) -> bool:
    """Null, or the NaN that tables have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


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
