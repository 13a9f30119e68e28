"""Other people's text, made harmless: what would move a cursor or turn writing around is spelled out."""

from __future__ import annotations

import unicodedata
from typing import Final

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


def printable(text: str) -> str:
    r"""`text`, with `\x1b`, `\t`, `\u202e` and the like written out. Ends of lines stay."""
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
