"""The name that somebody meant who wrote one that does not exist."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

CLOSE_ENOUGH: Final = 0.74
"""Share of letters in common: `lora_rank` and `lora_r` have 0.8, `ds_type` and `type` 0.73."""
SHORT: Final = 5
"""In so short a word one typing error is a large share of the letters."""
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
MAX_CHARACTERS: Final = 60
"""Nobody means a key by a longer word."""
_LOOK: Final = str.maketrans(
    "\u0430\u0435\u043a\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455\u04bb\u0433\u043f\u0432\u043c\u043d\u03bf"
    "\u03b1\u03bd\u03c1\u03c4\u03b9\u03ba\u03c5\u03c7\u03c9",
    "aekopctyxijshrnbmhoavptikyxw",
)
"""Cyrillic and Greek letters -> the Latin ones that they look like."""
_PARTS: Final = re.compile(r"[^\W\d_]+|\d+")
_OPPOSITES: Final = tuple(
    tuple(frozenset(side.split("|")) for side in sides.split())
    for sides in (
        "train|training eval|evaluation|val|valid|validation|test",
        "load save",
        "min max",
        "first|start|begin last|end",
        "chosen rejected",
    )
)
"""Words of which nobody writes one and means the other."""
MIN_BEGINNING: Final = 3
"""`seq` is short for `sequence`; two letters are short for too much."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names like `word`, best first.

    Where none is spelled like it, those that have all its parts: `sequence_len` for `seq_len`.
    """
    names = list(known)
    if near := spelled_like(word, names, count):
        return near
    return (
        _with_parts(_PARTS.findall(plain(word)), names)[:count]
        if len(word) <= MAX_CHARACTERS
        else []
    )


def spelled_like(word: str, names: Sequence[str], count: int) -> list[str]:
    """Names like `word`, the one with the fewest typing errors first. Case, `-` and spaces are none."""
    if len(word) > MAX_CHARACTERS:
        return []
    # Slow to import, and most recipes have no word that is not known.
    import difflib

    word = plain(word)
    near = difflib.get_close_matches(word, names, n=3 * count, cutoff=CLOSE_ENOUGH)
    if 1 < len(word) <= SHORT:
        lengths = range(len(word) - 1, len(word) + 2)
        others = (name for name in names if len(name) in lengths and name not in near)
        near += [name for name in others if typing_errors(word, name) <= 1]
    parts = _PARTS.findall(word)
    near = [name for name in near if not _is_opposite(parts, _PARTS.findall(name))]
    # Stable: of two with as many errors the one with more letters in common stays first.
    near.sort(key=lambda name: (typing_errors(word, name), _letters(word, name)))
    return near[:count]


def plain(word: str) -> str:
    """`LoraAlpha`, `lora-alpha` -> `lora_alpha`; letters of other alphabets become those that they look like."""
    words = _HUMP.sub("_", word) if not word.isupper() else word
    words = unicodedata.normalize("NFKC", words).lower().translate(_LOOK)
    return words.replace("-", "_").replace(" ", "_")


def _letters(word: str, name: str) -> bool:
    """False, which sorts first, if only the order of the letters is wrong."""
    return sorted(word) != sorted(name)


def _is_opposite(word: list[str], name: list[str]) -> bool:
    """Whether `name` has an `eval` or an 8 where `word` has a `train` or a 4."""
    digits = [{*filter(str.isdigit, "".join(parts))} for parts in (word, name)]
    if all(digits) and not digits[0] & digits[1]:
        return True
    for sides in _OPPOSITES:
        mine, other = ({side for side in sides if side & {*parts}} for parts in (word, name))
        if mine and other and not mine & other:
            return True
    return False


def _with_parts(word: list[str], names: Iterable[str]) -> list[str]:
    """Names that have all parts of `word` in their order, those with the fewest other parts first."""
    found = [(left, name) for name in names if (left := _left_over(word, name)) is not None]
    return [name for _, name in sorted(found, key=lambda one: one[0])]


def _left_over(word: list[str], name: str) -> int | None:
    """How many parts of `name` are not in `word`; None if it lacks one, or has more of its own than of `word`."""
    parts = _PARTS.findall(name)
    left = len(parts) - len(word)
    if not 0 <= left <= len(word):
        return None
    if len(word) == 1 and not _is_part(word[0], parts[0]):
        return None  # One word in the middle of a name says too little.
    rest = iter(parts)
    if not all(any(_is_part(mine, part) for part in rest) for mine in word):
        return None
    return None if _is_opposite(word, parts) else left


def _is_part(one: str, other: str) -> bool:
    """Whether the two are the same word, or one is how the other begins."""
    if one[0] != other[0]:
        return False
    short, long = (one, other) if len(one) < len(other) else (other, one)
    return short == long or (len(short) >= MIN_BEGINNING and long.startswith(short))


def typing_errors(one: str, other: str) -> int:
    """Letters put in, left out, replaced or swapped with their neighbour (optimal string alignment distance)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, target in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == target:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` with the nearest name; nothing where none is near."""
    near = nearest(word, known, 1)
    return asked(word, near) if near else ""


def asked(word: str, names: Iterable[str]) -> str:
    """` Did you mean …?` with these names, after what is odd about `word`."""
    odd = next((letter for letter in word if not letter.isascii()), None)
    name = unicodedata.name(odd, f"U+{ord(odd):04X}") if odd else ""
    looks = f" `{odd}` in it is {name}." if odd else ""
    *others, last = (f"`{name}`" for name in names)
    return f"{looks} Did you mean {' or '.join([', '.join(others), last] if others else [last])}?"
