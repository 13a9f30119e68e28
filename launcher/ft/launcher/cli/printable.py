"""Other people's text, made harmless: what would move a cursor or turn writing around is spelled out."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

RAW: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys, what turns the direction of text around, and halves of letters, which nothing can print."""
_BREAKS: Final = re.compile("[\n\t]")


def printable(text: str) -> str:
    """`text` without what a terminal obeys: it is spelled as in Python. Line ends and tabs stay."""
    return RAW.sub(_in_letters, text)


def in_one_line(text: str) -> str:
    """`printable`, and line ends and tabs in letters too."""
    return _BREAKS.sub(_in_letters, printable(text))


def _in_letters(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


# ------------------------------------------------------------------------------- where every letter counts

JOINERS: Final = "\u200c\u200d"
"""Part of how emoji, Persian and Hindi are written."""


class _Spelled(dict[int, str]):
    """Code point -> how it is shown; found out when it is first met."""

    def __missing__(self, point: int) -> str:
        char = chr(point)
        kind = unicodedata.category(char)
        hidden = kind in {"Cc", "Cf", "Cs", "Zl", "Zp"} or _is_no_character(point)
        spelled = char.encode("unicode_escape").decode() if hidden else char
        self[point] = spelled
        return spelled


def _is_no_character(point: int) -> bool:
    """Unicode never gives these to anything; HTML must not hold them."""
    return point & 0xFFFE == 0xFFFE or 0xFDD0 <= point <= 0xFDEF


_SPELLED: Final = _Spelled({ord(char): char for char in f"\n{JOINERS}"})


def spelled_out(text: str) -> str:
    r"""`text`, with all that does not show written out: `\x1b`, `\t`, `\u202e`, `\xad`. Ends of lines stay."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return text.translate(_SPELLED)


def columns(char: str) -> int:
    """Columns of a terminal that a character takes."""
    if char < "\u0300":
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
