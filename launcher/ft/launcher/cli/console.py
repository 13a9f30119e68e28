"""How `ft` talks: stdout is data, stderr is progress. Colours only where a person looks. No rich here.

What other people wrote, such as the text of a recipe, is printed here only, and never moves a cursor.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final, TextIO

from ft.launcher.cli.printable import RAW, in_one_line, printable
from ft.recipes.errors import FtError, Problem, RecipeError, Severity

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
Part = tuple[str, tuple[str, ...]]
"""Text and its styles."""
COLOURS: Final = {Severity.ERROR: "red", Severity.PLANNED: "cyan", Severity.WARNING: "yellow"}

_COLOUR: Final = re.compile(r"(\x1b\[[0-9;]*m)")

STDOUT: Final = "standard output"
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
    """Lines of data."""
    _write(sys.stdout, (text, styles))


def out_words(text: str, *, margin: str = "") -> None:
    """A line of data that a terminal wraps between words."""
    _sentence(sys.stdout, (text, ()), margin=margin)


def note(text: str = "", *styles: str) -> None:
    """Lines of progress."""
    _write(sys.stderr, (text, styles))


def out_exactly(text: str, *styles: str) -> None:
    """Text that a program reads, such as a patch: to the letter, but on a terminal."""
    if sys.stdout.isatty():
        out(text.removesuffix("\n"), *styles)
    else:
        _deliver(text, end="")


def _write(stream: TextIO, *parts: Part) -> None:
    text = "".join(
        paint(_writable(printable(text), stream), *styles, stream=stream) for text, styles in parts
    )
    if stream is sys.stdout:
        _deliver(text)
        return
    try:
        print(text, file=stream, flush=True)
    except OSError:  # Progress that nobody can be told of stops no work.
        _drop(stream)


def _deliver(text: str, end: str = "\n") -> None:
    """Print data. Raises: OSError that names standard output."""
    try:
        print(text, end=end, file=sys.stdout, flush=True)
    except OSError as error:
        error.filename = STDOUT
        raise


def undelivered(*, probe: bool = False) -> OSError | None:
    """Why stdout did not take all that was written to it, such as a full disk; None if it did.

    `probe`: what did not get there may be lost already; try with a line end.
    """
    try:
        print(end="\n" if probe else "", file=sys.stdout, flush=True)
    except OSError as error:
        _drop(sys.stdout)
        return error
    return None


def _drop(stream: TextIO) -> None:
    """What is left to be written goes nowhere: Python would try again when it ends, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def out_log(text: str) -> None:
    """A line of a log, or one in colours already; a terminal gets these, and nothing else that it would obey."""
    if not sys.stdout.isatty():
        _deliver(_writable(text, sys.stdout))
        return
    parts = _COLOUR.split(text.rstrip("\r").rpartition("\r")[2])
    # Every second part is a colour.
    shown = [
        part if i % 2 else _writable(printable(part), sys.stdout) for i, part in enumerate(parts)
    ]
    _deliver("".join(shown) + ("\x1b[0m" if len(parts) > 1 else ""))


def log_line(text: str) -> str:
    """What a terminal would show of a line of a log in the end: after the last return, and without colours."""
    return _COLOUR.sub("", text.rstrip("\r").rpartition("\r")[2])


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
    # Such a letter can only stand in a text, where JSON has a spelling for it; line ends are ours.
    text = RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    _deliver(text)


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
    _sentence(sys.stderr, (f"warning: {text}", ("yellow",)))


def show_error(error: FtError) -> None:
    """What, where, what was expected, the way out."""
    for problem in error.problems:
        show(problem, to=sys.stderr)
    message = count(error.problems) if isinstance(error, RecipeError) else error.message
    head = ("error:", ("red", "bold"))
    first, *others = message.split("\n")
    _sentence(sys.stderr, head, (first, ()))
    for line in others:
        _sentence(sys.stderr, (line, ()))
    if error.hint:
        hint(error.hint)


@contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """Around a command that answers with JSON: an error is an answer too, on stdout, and then goes its way."""
    try:
        yield
    except FtError as error:
        if wanted:
            out_json(error_json(error))
        raise


def error_json(error: FtError) -> dict[str, Any]:
    """What programs read where there is an error instead of what they asked for."""
    about = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    return {"error": about, "problems": [problem.to_json() for problem in error.problems]}


def describe(problem: Problem) -> str:
    """`file:line: key: message`; a warning says that it is one."""
    return " ".join(_halves(problem))


def _halves(problem: Problem) -> tuple[str, str]:
    """Where and how bad, and what."""
    where = f"{problem.mark}: {problem.dotted}:" if problem.key else f"{problem.mark}:"
    word = " warning:" if problem.severity is Severity.WARNING else ""
    return f"{where}{word}", str(problem).removeprefix(f"{where} ")


def show(problem: Problem, *, to: TextIO | None = None, margin: str = "") -> None:
    """A problem, in the colour of how bad it is."""
    where, what = _halves(problem)
    _sentence(to or sys.stdout, (where, (COLOURS[problem.severity],)), (what, ()), margin=margin)


def _sentence(stream: TextIO, *parts: Part, margin: str = "") -> None:
    """`parts`, a blank between two. On a terminal wrapped between words; a word is never broken."""
    words = [(word, styles) for text, styles in parts for word in in_one_line(text).split(" ")]
    room = width() if stream.isatty() else None
    line: list[Part] = []
    indent, used = margin, len(margin)
    for word in words:
        if room is not None and line and used + len(word[0]) > room:
            _write_words(stream, indent, line)
            line, indent = [], f"{margin}    "
            used = len(indent)
        line.append(word)
        used += len(word[0]) + 1
    _write_words(stream, indent, line)


def _write_words(stream: TextIO, indent: str, words: Sequence[Part]) -> None:
    parts: list[Part] = [(indent, ())]
    for styles, group in groupby(words, key=lambda word: word[1]):
        blank = " " if len(parts) > 1 else ""
        parts += [(blank, ()), (" ".join(word for word, _ in group), styles)]
    _write(stream, *parts)


def count(problems: Iterable[Problem]) -> str:
    """`3 problems, 1 not runnable yet, 2 warnings`; what there is none of is left out."""
    counts = Counter(problem.severity for problem in problems)
    parts = []
    if counts[Severity.ERROR] or not counts:
        parts.append(plural(counts[Severity.ERROR], "problem") if counts else "no problems")
    if counts[Severity.PLANNED]:
        parts.append(f"{counts[Severity.PLANNED]} not runnable yet")
    if counts[Severity.WARNING]:
        parts.append(plural(counts[Severity.WARNING], "warning"))
    return ", ".join(parts)


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
    start = f"{margin}{label:<{LABEL_WIDTH}}"
    for line in _wrap(text, room):
        yield f"{start}{line}"
        start = " " * (len(margin) + LABEL_WIDTH)


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    shrink: Sequence[int] = (),
    least: int = 4,
) -> list[str]:
    """Left-aligned columns, two spaces apart, one line for each row.

    Columns in `shrink` are cut, the widest first and none below `least`, until all fits.
    """
    cells = [[in_one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > width():
        widest = max(shrink, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= least:
            break
        widths[widest] -= 1
    return [
        "  ".join(
            f"{cut(cell, size):<{size}}" for cell, size in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def listing(header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names, and a sentence about each; on a terminal wrapped between words."""
    lines = [(in_one_line(name), in_one_line(text)) for name, text in (header, *rows)]
    size = max(len(name) for name, _ in lines) + 2
    room = max(20, width() - size) if sys.stdout.isatty() else None
    for name, text in lines:
        start = name
        for part in [text] if room is None else _wrap(text, room):
            yield f"{start:<{size}}{part}".rstrip()
            start = ""


def _wrap(text: str, room: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


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
