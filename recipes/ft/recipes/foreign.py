"""Words that are no keys, told by what somebody means who writes them: a typing error, or another tool's word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ft.recipes.nearest import asked, nearest, plain, spelled_like, typing_errors
from ft.recipes.vocabulary import ELSEWHERE, ELSEWHERE_BELOW, VALUES_ELSEWHERE

NOT_WHAT_IS_WRITTEN: Final[Mapping[str, str]] = {
    "load_in_4bit": "Axolotl ignores this one, and trains with 16 bits",
    "load_in_8bit": "Axolotl ignores this one, and trains with 16 bits",
    "sequence_len": "Axolotl ignores this one, and takes 512",
}
"""Key whose other names make a run much different from what is written -> what happens in Axolotl."""


def meant_by(word: str, known: Iterable[str]) -> tuple[str, ...]:
    """The keys that a top-level word stands for; `known` are those that there are."""
    return _meant(word, known, ELSEWHERE)


def meant_below(block: str, word: str, known: Iterable[str]) -> tuple[str, ...]:
    """The same for a word below `block`."""
    block = "datasets" if block == "test_datasets" else block
    return _meant(word, known, ELSEWHERE_BELOW.get(block, {}))


def value_meant(key: str, value: str) -> str | None:
    """The value of `key` that other tools call `value`."""
    return VALUES_ELSEWHERE.get(key, {}).get(plain(value))


def _meant(word: str, known: Iterable[str], table: Mapping[str, str]) -> tuple[str, ...]:
    own, other = nearest(word, known, 1), _in_table(word, table)
    if other and (not own or _errors(word, other) < _errors(word, own[0])):
        return tuple(table[other].split())
    return tuple(own)


def _in_table(word: str, table: Mapping[str, str]) -> str:
    if plain(word) in table:
        return plain(word)
    near = spelled_like(word, [*table], 1)
    # In a short word two typing errors make another one.
    return next((name for name in near if _errors(word, name) <= max(1, len(name) // 6)), "")


def _errors(word: str, name: str) -> int:
    return typing_errors(plain(word), name)


def unknown(word: str, meant: tuple[str, ...]) -> str:
    """What to say about a word that is no key."""
    return f"unknown key.{asked(word, meant) if meant else ''}"
