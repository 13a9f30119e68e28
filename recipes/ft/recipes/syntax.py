"""What a person means by an error of YAML: the common slips, each in its own line, with the way out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import yaml

BREAK: Final = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
Said = tuple[int, str]
"""Line, counted from 1, and what to say about it."""

_CONFLICT: Final = re.compile(r"(<{7}|>{7}|\|{7})( |$)|={7}$")
_START: Final = re.compile(
    r"(?P<indent> *)(?P<dashes>(?:- +)*)(?P<key>[A-Za-z_][\w.]*)(?P<rest>.*)"
)
"""A line with a key, or with what should be one."""
_WIDE_COLON: Final = "\uff1a"
_SHOWN: Final = 40
"""Characters of a line in a message."""


@dataclass(frozen=True, slots=True)
class _Slip:
    """Where YAML gave up; lines are counted from 0."""

    error: yaml.MarkedYAMLError
    text: str
    lines: list[str]
    line: int
    column: int

    @property
    def problem(self) -> str:
        return self.error.problem or ""

    @property
    def context(self) -> str:
        return self.error.context or ""

    @property
    def began(self) -> int:
        """Line in which the thing began that is wrong."""
        return self.error.context_mark.line if self.error.context_mark else self.line

    def at(self, number: int) -> str:
        return self.lines[number] if number < len(self.lines) else ""

    def above(self, number: int) -> int | None:
        """The nearest line above `number` that says something."""
        for line in range(number - 1, -1, -1):
            words = self.at(line).strip()
            if words and not words.startswith("#"):
                return line
        return None


def explained(error: yaml.MarkedYAMLError, text: str, loader: Any) -> Said:
    """What went wrong in `text`; in YAML's own words where nobody knows better. `loader` is a class of PyYAML."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    slip = _Slip(error, text, BREAK.split(text), line, column)
    for look in _LOOKS:
        said = look(slip)
        if said is not None:
            return said
    return _quotes(slip, loader) or _indent(slip) or _in_its_own_words(slip)


def _in_its_own_words(slip: _Slip) -> Said:
    since = f" that begins in line {slip.began + 1}" if slip.began != slip.line else ""
    context = f" ({slip.context}{since})" if slip.context else ""
    return slip.line + 1, f"not YAML: {slip.problem or 'cannot be read'}{context}"


def _conflict(slip: _Slip) -> Said | None:
    for number, line in enumerate(slip.lines[: slip.line + 1]):
        found = _CONFLICT.match(line)
        if found is not None:
            mark = found[0].strip()
            return number + 1, (
                f"`{mark}` is from a merge conflict. Keep one side, and take out the lines "
                "with <<<<<<<, ======= and >>>>>>>."
            )
    return None


def _tab(slip: _Slip) -> Said | None:
    line = slip.at(slip.line)
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent or line[slip.column : slip.column + 1] == "\t":
        return slip.line + 1, "a tab; YAML is indented with spaces"
    return None


def _second_document(slip: _Slip) -> Said | None:
    if slip.problem != "but found another document":
        return None
    return slip.line + 1, "a second document begins here (`---`); a recipe is one"


def _first_letter(slip: _Slip) -> Said | None:
    """A value that begins with a letter which means something else to YAML."""
    number, column = slip.line, slip.column
    if "alias" in slip.context or "anchor" in slip.context or "directive" in slip.context:
        mark = slip.error.context_mark
        column = mark.column if mark else column
    elif "cannot start any token" not in slip.problem:
        return None
    letter = slip.at(number)[column : column + 1]
    if letter not in {"@", "`", "%", "*", "&"}:
        return None
    name = "a backtick" if letter == "`" else f"`{letter}`"
    what = "a line" if "directive" in slip.context else "a value"
    return number + 1, f"{what} cannot begin with {name} in YAML. Put quotes around the text."


def _blank(slip: _Slip) -> Said | None:
    """No blank after a colon or a dash, or one that only looks like it; YAML notices a line later."""
    if "simple key" not in slip.context and "mapping values are not" not in slip.problem:
        return None
    numbers = [slip.began if "simple key" in slip.context else None, slip.above(slip.line)]
    for number in numbers:
        if number is not None:
            said = _blank_in(slip.at(number))
            if said:
                return number + 1, said
    if "simple key" not in slip.context:
        return None
    line = slip.at(slip.began).strip()
    return (
        slip.began + 1,
        f"expected `key: value`, got `{_cut(line)}`: no colon with a blank after it",
    )


def _blank_in(line: str) -> str:
    found = _START.fullmatch(line)
    if found is None:
        dash = re.fullmatch(r" *(?:- +)*-(?P<word>\w.*)", line)
        if dash is None or ": " not in line:
            return ""
        return f"no blank after the dash. Write `- {_cut(dash['word'])}`."
    key, rest = found["key"], found["rest"]
    if rest.startswith(_WIDE_COLON):
        return f"`{_WIDE_COLON}` behind `{key}` is a FULLWIDTH COLON. Write `{key}: `."
    value = rest[1:]
    if not rest.startswith(":") or not value or value[0] in " \t" or value.startswith("//"):
        return ""
    if unicodedata.category(value[0]) in {"Zs", "Cf"}:
        name = unicodedata.name(value[0], "a character that cannot be seen")
        which = f"U+{ord(value[0]):04X} ({name})"
        return f"behind `{key}:` stands {which} instead of a blank. Write `{key}: {_cut(value[1:].strip())}`."
    return f"no blank after the colon. Write `{key}: {_cut(value)}`."


def _second_colon(slip: _Slip) -> Said | None:
    found = _START.fullmatch(slip.at(slip.line))
    if "mapping values are not allowed" not in slip.problem or found is None:
        return None
    key, value = found["key"], found["rest"]
    if not value.startswith(": ") or found.end("key") >= slip.column:
        return None
    text = value[2:].strip()
    quoted = f": `{key}: '{text}'`" if len(text) <= _SHOWN and not {"'", "#"} & set(text) else ""
    return slip.line + 1, f"a second `: ` in the value of `{key}`. Put quotes around it{quoted}."


def _escape(slip: _Slip) -> Said | None:
    is_escape = "escape character" in slip.problem or "hexdecimal number" in slip.problem
    if not is_escape or "quoted scalar" not in slip.context:
        return None
    return slip.line + 1, "a backslash begins an escape in \"…\". Write '…' around the text."


_LOOKS: Final[tuple[Callable[[_Slip], Said | None], ...]] = (
    *(_conflict, _tab, _second_document, _first_letter, _blank, _second_colon, _escape),
)


def _quotes(slip: _Slip, loader: Any) -> Said | None:
    """A quote that is closed nowhere, in a later line, or before the end of the text."""
    if slip.context == "while scanning a quoted scalar":
        return slip.began + 1, "a quote opens here that is never closed"
    last: Any = None
    try:
        for token in yaml.scan(slip.text, loader):
            if (token.start_mark.line, token.start_mark.column) >= (slip.line, slip.column):
                break
            last = token
    except yaml.YAMLError:
        return None
    if not isinstance(last, yaml.ScalarToken) or not last.style or last.style not in "'\"":
        return None
    first, end = last.start_mark, last.end_mark
    if end.line != slip.line:
        return None
    if first.line != end.line:
        message = (
            f"a quote opens here that is closed in line {end.line + 1} only. Close it in this line."
        )
        return first.line + 1, message
    rest = slip.at(end.line)[end.column :].strip()
    message = f"text behind the closing quote: `{_cut(rest)}`. Quote all of it"
    how = "; inside '…' a quote is written twice: ''." if last.style == "'" else "."
    return end.line + 1, f"{message}{how}"


def _indent(slip: _Slip) -> Said | None:
    """A key that does not stand below those of its block."""
    line = _START.fullmatch(slip.at(slip.line))
    if line is None or not line["rest"].startswith(":"):
        return None
    starts = {line.start("dashes"), line.start("key")}
    is_deeper = "mapping values are not allowed" in slip.problem
    if not (is_deeper or (slip.column in starts and "did not find expected" in slip.problem)):
        return None
    part = "dashes" if line["dashes"] else "key"
    column = line.start(part)
    best: tuple[int, int, str] | None = None
    number = slip.above(slip.line)
    while number is not None:
        found = _START.fullmatch(slip.at(number))
        if found is not None and found["rest"].startswith(":") and bool(found[part]):
            distance = abs(found.start(part) - column)
            if best is None or distance < abs(best[1] - column):
                best = (number, found.start(part), found["key"])
        number = slip.above(number)
    if best is None or best[1] == column:
        return None
    what = "`- `" if part == "dashes" else f"`{line['key']}`"
    other = "the `- `" if part == "dashes" else f"`{best[2]}`"
    blanks = "1 blank" if column == 1 else f"{column} blanks"
    return slip.line + 1, (
        f"{what} stands behind {blanks}, {other} in line {best[0] + 1} behind {best[1]}. "
        "What belongs together begins in the same column."
    )


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
