"""The name that somebody meant who wrote one that does not exist."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

CLOSE_ENOUGH: Final = 0.74
"""Share of letters in common: `lora_rank` and `lora_r` have 0.8, `ds_type` and `type` 0.73."""
SHORT: Final = 5
"""In so short a word one typing error is a large share of the letters."""
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
MAX_CHARACTERS: Final = 60
"""Nobody means a key by a longer word."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names like `word`, the one with the fewest typing errors first. Case, `-` and spaces are none."""
    if len(word) > MAX_CHARACTERS:
        return []
    names = list(known)
    word = _plain(word)
    near = difflib.get_close_matches(word, names, n=3 * count, cutoff=CLOSE_ENOUGH)
    if 1 < len(word) <= SHORT:
        near += [name for name in names if name not in near and typing_errors(word, name) <= 1]
    # Stable: of two with as many errors the one with more letters in common stays first.
    return sorted(near, key=lambda name: (typing_errors(word, name), _letters(word, name)))[:count]


def _plain(word: str) -> str:
    """`LoraAlpha`, `lora-alpha` -> `lora_alpha`."""
    words = _HUMP.sub("_", word) if not word.isupper() else word
    return words.lower().replace("-", "_").replace(" ", "_")


def _letters(word: str, name: str) -> bool:
    """False, which sorts first, if only the order of the letters is wrong."""
    return sorted(word) != sorted(name)


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
    if not near:
        return ""
    odd = next((letter for letter in word if not letter.isascii()), None)
    name = unicodedata.name(odd, f"U+{ord(odd):04X}") if odd else ""
    looks = f" `{odd}` in it is {name}." if odd else ""
    return f"{looks} Did you mean `{near[0]}`?"
