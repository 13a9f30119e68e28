"""Rows and numbers for a terminal, or for a file that somebody reads: nothing in the data reaches it raw."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from ft.launcher.cli import console
from ft.launcher.cli.preprocess import counted, made
from ft.launcher.cli.preview_rows import Gap, Piece, Row
from ft.launcher.cli.printable import columns, spelled_out

MARGIN: Final = "  "
MOST_SPANS: Final = 20
"""In the table of a row, unless it is shown alone."""
BAR: Final = 40

Style = tuple[str, ...]
Segment = tuple[str, Style]


@dataclass(frozen=True, slots=True)
class Look:
    """What the reader's screen can show."""

    colour: bool
    utf8: bool
    opening: str = "[["
    closing: str = "]]"
    """Around what is trained, where there are no colours."""

    @classmethod
    def of_stdout(cls, rows: Iterable[Row]) -> Look:
        """The brackets are longer than any in the rows, so that they mean one thing only."""
        texts = [piece.text for row in rows for piece in row.pieces]
        size = 2
        while any("[" * size in text or "]" * size in text for text in texts):
            size += 1
        colour, utf8 = console.has_colours(sys.stdout), console.speaks_utf8(sys.stdout)
        return cls(colour, utf8, "[" * size, "]" * size)

    def text(self, text: str) -> str:
        """As it is printed; ends of lines can be seen."""
        shown = spelled_out(text)
        if not self.utf8:
            return shown.encode("ascii", "backslashreplace").decode()
        return shown.replace("\n", "↵\n")

    def line(self, text: str, room: int) -> str:
        """The beginning of a text, in one line."""
        shown = self.text(text[:room]).replace("\n", "" if self.utf8 else " ")
        kept, at = "", 0
        for char in shown:
            at += columns(char)
            if at > room - 1:
                return f"{kept}{self.dots}"
            kept += char
        return kept + (self.dots if len(text) > room else "")

    @property
    def dots(self) -> str:
        return "…" if self.utf8 else "~"

    @property
    def bar(self) -> str:
        return "█" if self.utf8 else "#"

    def style(self, part: Piece | Gap) -> Style:
        if not self.colour:
            return ()
        tone = "green" if part.trained else "dim"
        return (tone, "reverse") if isinstance(part, Piece) and part.special else (tone,)


def legend(look: Look) -> str:
    if look.colour:
        paint = console.paint
        parts = [
            paint("trained", "green", stream=sys.stdout),
            paint("not trained", "dim", stream=sys.stdout),
            paint("special token", "dim", "reverse", stream=sys.stdout),
        ]
    else:
        parts = [f"{look.opening}trained{look.closing}", "not trained"]
    return "  ".join([*parts, *(["↵ end of line"] if look.utf8 else [])])


# ----------------------------------------------------------------------------------------------- rows


def row_lines(row: Row, look: Look, *, whole: bool) -> Iterator[str]:
    """A row, and the table of what is trained in it."""
    yield console.paint(row.title, "bold", stream=sys.stdout)
    parts = list(row.pieces) if whole else row.abridged()
    yield from wrapped(_segments(parts, look), console.width() - len(MARGIN))
    spans = row.spans()
    shown = spans if whole else spans[:MOST_SPANS]
    room = max(console.width() - 40, 10)
    table = [
        (
            str(number),
            f"{span.start:,}–{span.end - 1:,}",
            f"{span.end - span.start:,}",
            look.line(span.text, room),
        )
        for number, span in enumerate(shown, start=1)
    ]
    for line in console.table(("SPAN", "TOKENS", "TRAINED", "BEGINS"), table, shrink=(3,)):
        yield f"{MARGIN}{line}"
    if len(shown) < len(spans):
        yield f"{MARGIN}{look.dots} {len(spans) - len(shown):,} more"


def _segments(parts: Sequence[Piece | Gap], look: Look) -> Iterator[Segment]:
    inside = False
    for part in parts:
        if part.trained != inside and not look.colour:
            yield (look.opening if part.trained else look.closing), ()
        inside = part.trained
        if isinstance(part, Gap):
            yield f" {look.dots} {part.tokens:,} tokens {look.dots} ", look.style(part)
        else:
            yield look.text(part.text), look.style(part)
    if inside and not look.colour:
        yield look.closing, ()


def wrapped(segments: Iterable[Segment], room: int) -> Iterator[str]:
    """Painted lines of at most `room` columns behind the margin, broken at blanks where there are some."""
    line: list[Segment] = []
    used = 0
    for text, style in segments:
        for char in text:
            if char == "\n":
                yield _painted(line)
                line, used = [], 0
                continue
            line.append((char, style))
            used += columns(char)
            if used > room:
                at = _break(line)
                yield _painted(line[:at])
                line = line[at:]
                used = sum(columns(left) for left, _ in line)
    if line:
        yield _painted(line)


def _break(line: Sequence[Segment]) -> int:
    """Characters of a line that is one too long which stay on it."""
    blanks = [i for i, (char, _) in enumerate(line[:-1]) if char == " "]
    return blanks[-1] + 1 if blanks and blanks[-1] >= len(line) // 2 else len(line) - 1


def _painted(line: Sequence[Segment]) -> str:
    runs = groupby(line, key=lambda cell: cell[1])
    return MARGIN + "".join(
        console.paint("".join(char for char, _ in run), *style, stream=sys.stdout)
        for style, run in runs
    )


# -------------------------------------------------------------------------------------------- numbers


def number_lines(said: Mapping[str, Any], look: Look) -> Iterator[str]:
    """What was made, what was left out and why, how long rows are, how well they pack."""
    yield from counted(said)
    for index, bad in enumerate(said["bad"]):
        where = bad["path"] if bad["row"] is None else f"{bad['path']}, {bad['unit']} {bad['row']}"
        label = "" if index else "unreadable"
        yield from console.labelled(label, look.text(f"{where}: {bad['reason']}"), margin="")
    more = said["counts"]["bad"] - len(said["bad"])
    if said["bad"] and more > 0:
        yield from console.labelled("", f"{look.dots} {more:,} more like these", margin="")
    lengths, size = said["lengths"], said["sequence_len"]
    text = (
        f"{lengths['min']:,} to {lengths['max']:,} tokens; half of the rows have at most "
        f"{lengths['median']:,}, 95% at most {lengths['p95']:,}"
    )
    yield from console.labelled("lengths", text, margin="")
    packed = f"{said['shares']['packed']:.1%}"
    text = f"would fill {packed} of {console.plural(said['packs'], 'row')} of {size:,} tokens"
    yield from console.labelled("packing", text, margin="")
    yield from made(said)
    yield ""
    yield from bars(said["histogram"], look)


def bars(histogram: Mapping[str, Sequence[int]], look: Look) -> Iterator[str]:
    """How many rows are how long, a line for each bin. Empty ones at either end are one."""
    lines = list(bins(histogram))
    labels = [f"{low:,}–{high:,}" for low, high, _ in lines]
    label = max(map(len, (*labels, "TOKENS")))
    number = max(len(f"{count:,}") for *_, count in lines)
    number = max(number, len("ROWS"))
    most = max(count for *_, count in lines)
    room = max(min(BAR, console.width() - label - number - 4), 1)
    yield f"{'TOKENS':>{label}}  {'ROWS':>{number}}"
    for name, (*_, count) in zip(labels, lines, strict=True):
        size = max(round(count / most * room), 1) if count else 0
        yield f"{name:>{label}}  {count:>{number},}  {look.bar * size}".rstrip()


def bins(histogram: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int, int]]:
    """(shortest, longest, rows) of each bin. Empty ones at either end are one."""
    edges, rows = histogram["edges"], histogram["rows"]
    filled = [index for index, count in enumerate(rows) if count]
    first, last = filled[0], filled[-1]
    if first:
        yield 1, edges[first], 0
    for index in range(first, last + 1):
        yield edges[index] + 1, edges[index + 1], rows[index]
    if last + 1 < len(rows):
        yield edges[last + 1] + 1, edges[-1], 0
