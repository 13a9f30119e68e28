"""Reads the tables that nccl-tests prints, of old and new versions, and our own. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HALF_COLUMNS = ("time", "algbw", "busbw", "#wrong")
NOT_THERE = {"N/A", "n/a"}


class ParseError(Exception):
    """A line of the table does not fit its header."""


@dataclass(frozen=True, slots=True)
class ParsedHalf:
    """One test, to the digits that were printed."""

    time_us: float
    algbw_gbps: float
    busbw_gbps: float | None
    """None where it is n/a: our own table on one rank. nccl-tests prints 0 there."""
    num_wrong: int | None
    """None where it is N/A: nobody looked."""


@dataclass(frozen=True, slots=True)
class ParsedRow:
    size_bytes: int
    count: int
    type: str
    redop: str
    """Empty where an old version printed none."""
    root: int | None
    """None where an old version has no such column; -1 for an op without a root."""
    out_of_place: ParsedHalf
    in_place: ParsedHalf


@dataclass(slots=True)
class ParsedTable:
    """One op, as far as it was printed."""

    op: str | None = None
    """None if the output does not say, as old versions do not."""
    rows: list[ParsedRow] = field(default_factory=list)
    num_failed: int | None = None
    """Tests with any wrong element; None if the output ends before."""
    average_busbw_gbps: float | None = None
    plateau_busbw_gbps: float | None = None
    """Only in our own."""
    reduced_max_bytes: int | None = None
    """The largest size, if the memory was too small for the one that was asked for."""

    @property
    def is_complete(self) -> bool:
        return self.num_failed is not None


def parse(text: str) -> list[ParsedTable]:
    """All tables in `text`, which may hold other lines as well. Raises: ParseError."""
    reader = _Reader()
    for line in text.splitlines():
        reader.read(line)
    return reader.tables


class _Reader:
    def __init__(self) -> None:
        self.tables: list[ParsedTable] = []
        self._columns: list[str] | None = None
        self._op: str | None = None
        self._reduced: int | None = None

    def read(self, line: str) -> None:
        if not line.startswith("#"):
            if self._columns and re.match(r" *\d", line):
                self.tables[-1].rows.append(_row(self._columns, line))
            return
        words = line.lstrip("# ").split()
        if words[:2] == ["size", "count"]:
            self._columns = words
            self.tables.append(ParsedTable(op=self._op, reduced_max_bytes=self._reduced))
        elif found := re.match(r"# Reducing maxBytes to (\d+)", line):
            self._reduced = int(found[1])
        elif found := re.match(r"# Collective test starting: (\w+?)(?:_perf)?$", line.rstrip()):
            self._op = found[1]
        elif len(words) == 1 and re.fullmatch(r"# [a-z]\w*", line):
            # The head of a section of our own.
            self._op = words[0]
        elif self.tables:
            _read_summary(self.tables[-1], line)


def _read_summary(table: ParsedTable, line: str) -> None:
    name, _, rest = line.lstrip("# ").partition(":")
    values = rest.split()
    if not values:
        return
    if name.strip() == "Out of bounds values":
        table.num_failed = int(values[0])
    elif name.strip() == "Avg bus bandwidth":
        table.average_busbw_gbps = _number(values[0])
    elif name.strip() == "Plateau bus bandwidth":
        table.plateau_busbw_gbps = _number(values[0])


def _row(columns: Sequence[str], line: str) -> ParsedRow:
    names, values = list(columns), line.split()
    if names[-1] == "timestamp":
        # A date and a time, behind everything else.
        names, values = names[:-1], values[:-2]
    if len(values) == len(names) - 1 and "redop" in names:
        values.insert(names.index("redop"), "")
    if len(values) != len(names):
        raise ParseError(f"expected {' '.join(names)}, got: {line.strip()}")
    first = names.index("time") if "time" in names else names.index("cputime")
    width = (len(names) - first) // 2
    left: dict[str, Any] = dict(zip(names[:first], values[:first], strict=True))
    try:
        return ParsedRow(
            int(left["size"]),
            int(left["count"]),
            left["type"],
            left.get("redop", ""),
            int(left["root"]) if "root" in left else None,
            _half(values[first : first + width]),
            _half(values[first + width :]),
        )
    except ValueError as error:
        raise ParseError(f"expected {' '.join(names)}, got: {line.strip()}") from error


def _half(values: Sequence[str]) -> ParsedHalf:
    """The first four columns; those of -I come behind them."""
    time, algbw, busbw, wrong = values[: len(HALF_COLUMNS)]
    num_wrong = _number(wrong)
    return ParsedHalf(
        float(time), float(algbw), _number(busbw), None if num_wrong is None else int(num_wrong)
    )


def _number(text: str) -> float | None:
    return None if text in NOT_THERE else float(text)
