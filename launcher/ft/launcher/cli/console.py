"""How `ft` talks: stdout is data, stderr is progress. Colours only where a person looks. No rich here."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from ft.launcher.cli.printable import printable
from ft.recipes.errors import Problem, RecipeError, Severity

if TYPE_CHECKING:
    from ft.recipes.errors import FtError

STYLES: Final = {
    "bold": "1",
    "dim": "2",
    "reverse": "7",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
TO_ASCII: Final = str.maketrans({"×": "x", "·": "*", "…": "~", "–": "-", "✓": "+", "✗": "!"})
"""For terminals that are not UTF-8."""

LABEL_WIDTH: Final = 14


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at `stream`, on a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def speaks_utf8(stream: TextIO) -> bool:
    """Whether `stream` can show what is not ASCII. Python writes UTF-8 under `LC_ALL=C`; who sets it wants none."""
    encoding = (stream.encoding or "").lower().replace("-", "")
    return encoding == "utf8" and os.environ.get("LC_ALL") not in {"C", "POSIX"}


def has_colours(stream: TextIO) -> bool:
    """Whether a person looks at `stream` and wants colours."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, *styles: str, stream: TextIO) -> str:
    """`text` in colour, or as it is where colours are not wanted (no terminal, NO_COLOR)."""
    if not styles or not has_colours(stream):
        return text
    return f"\033[{';'.join(STYLES[style] for style in styles)}m{text}\033[0m"


def out(text: str = "", *styles: str) -> None:
    """A line of data."""
    _write(sys.stdout, text, styles)


def note(text: str = "", *styles: str) -> None:
    """A line of progress."""
    _write(sys.stderr, text, styles)


def _write(stream: TextIO, text: str, styles: tuple[str, ...]) -> None:
    print(paint(_writable(text, stream), *styles, stream=stream), file=stream, flush=True)


def _writable(text: str, stream: TextIO) -> str:
    """`text` in what `stream` can take: ours has a spelling in ASCII, other people's letters are escaped."""
    if speaks_utf8(stream):
        return text
    encoding = stream.encoding or "ascii"
    return text.translate(TO_ASCII).encode(encoding, "backslashreplace").decode(encoding)


def out_json(value: Any) -> None:
    """One JSON value on stdout. NaN becomes null, and what else JSON does not know, such as a date, its text."""
    _print_json(value, indent=2)


def out_json_line(value: Any) -> None:
    """One JSON value in one line on stdout, for values that come one after the other."""
    _print_json(value, indent=None)


def _print_json(value: Any, *, indent: int | None) -> None:
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(
        _finite(value), indent=indent, ensure_ascii=not unicode, allow_nan=False, default=str
    )
    print(text, file=sys.stdout, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def hint(text: str) -> None:
    """The way out, or the next command."""
    note(f"hint: {text}", "dim")


def warn(text: str) -> None:
    note(f"warning: {text}", "yellow")


def show_error(error: FtError) -> None:
    """What, where, what was expected, the way out."""
    message = error.message
    if isinstance(error, RecipeError):
        for problem in error.problems:
            note(describe(problem))
        message = count(error.problems)
    # A message may quote data, and data may hold what moves the cursor.
    note(f"{paint('error:', 'red', 'bold', stream=sys.stderr)} {printable(message)}")
    if error.hint:
        hint(error.hint)


def describe(problem: Problem) -> str:
    """`file:line: key: message`; a warning says that it is one."""
    if problem.severity is not Severity.WARNING:
        return str(problem)
    where = f"{problem.mark}: {problem.dotted}: " if problem.key else f"{problem.mark}: "
    return f"{where}warning: {str(problem).removeprefix(where)}"


def count(problems: Iterable[Problem]) -> str:
    """`3 problems, 1 not runnable yet, 2 warnings`; what there is none of is left out."""
    counts = Counter(problem.severity for problem in problems)
    parts = []
    if counts[Severity.ERROR] or not counts:
        parts.append(plural(counts[Severity.ERROR], "problem"))
    if counts[Severity.PLANNED]:
        parts.append(f"{counts[Severity.PLANNED]} not runnable yet")
    if counts[Severity.WARNING]:
        parts.append(plural(counts[Severity.WARNING], "warning"))
    return ", ".join(parts).replace("0 problems", "no problems")


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def width() -> int:
    """Columns to fill: those of the terminal or of COLUMNS, else 80."""
    return shutil.get_terminal_size((80, 24)).columns


def labelled(label: str, text: str, *, margin: str = "  ") -> Iterator[str]:
    """`label         text`, wrapped between words so that it fits; a word is never broken.

    `margin` stands before the first line, as many spaces before the others.
    """
    room = max(20, width() - LABEL_WIDTH - len(margin))
    start, line = f"{margin}{label:<{LABEL_WIDTH}}", ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > room:
            yield f"{start}{line}"
            start, line = " " * (len(margin) + LABEL_WIDTH), word
        else:
            line = f"{line} {word}" if line else word
    yield f"{start}{line}"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, shrink: Sequence[int] = ()
) -> list[str]:
    """Left-aligned columns, two spaces apart. Columns in `shrink` are cut, the widest first, until all fits."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > width():
        widest = max(shrink, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= 4:
            break
        widths[widest] -= 1
    return [
        "  ".join(
            f"{cut(cell, size):<{size}}" for cell, size in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `2 min 05 s`, `3 h 07 min`."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def ago(then: float) -> str:
    """How long ago, in one unit: `40 s ago`, `5 min ago`, `3 h ago`, `12 d ago`."""
    seconds = max(0.0, time.time() - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago"


def size(num_bytes: float) -> str:
    """`812 B`, `1.2 MB`: powers of 1000, as disks are sold."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 999.95:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} TB"
