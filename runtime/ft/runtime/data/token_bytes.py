"""Which tokenizers have tokens that are the text's own bytes, and how many each stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

BLANK = "\u2581"
"""How SentencePiece spells a blank."""
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def byte_lengths(tokenizer: Mapping[str, Any]) -> np.ndarray | None:
    """id -> bytes of the text that the token stands for, int64; None if tokens are not the text's own bytes.

    `tokenizer` is a `tokenizer.json`: byte-level BPE that neither drops nor adds anything. A normalizer may only be
    NFC, which leaves texts alone that are in that form.
    """
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("byte_fallback"):
        return None
    if any(
        model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token")
    ):
        return None
    normalizer = tokenizer["normalizer"]
    # A sequence of none is what DeepSeek has.
    if normalizer not in (None, {"type": "Sequence", "normalizers": []}, {"type": "NFC"}):
        return None
    steps = list(_steps(tokenizer["pre_tokenizer"]))
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space"):
        return None
    if any(step["type"] not in {"ByteLevel", "Digits", "Split"} for step in steps):
        return None
    added = tokenizer["added_tokens"]
    if _take_white_space(added):
        return None
    if normalizer == {"type": "NFC"} and any(
        token.get("normalized") and not unicodedata.is_normalized("NFC", token["content"])
        for token in added
    ):
        return None  # It stands for fewer bytes than it is spelled with, or for more.
    letters = frozenset(byte_letters())
    vocabulary: Mapping[str, int] = model["vocab"]
    sizes = {
        number: len(token) for token, number in vocabulary.items() if letters.issuperset(token)
    }
    sizes.update({token["id"]: len(token["content"].encode()) for token in added})
    if any(number not in sizes for number in vocabulary.values()):
        return None
    return _by_id(sizes)


def piece_lengths(tokenizer: Mapping[str, Any]) -> np.ndarray | None:
    """As `byte_lengths`, for BPE as SentencePiece makes it: U+2581 is a blank, bytes are `<0x0A>`.

    It holds for texts without U+2581. The tokenizer may put a blank in front of a text, one byte too many.
    """
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("dropout") or not model.get("byte_fallback"):
        return None
    if any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        return None
    if not _blanks_alone_change(tokenizer["normalizer"], tokenizer["pre_tokenizer"]):
        return None
    added = tokenizer["added_tokens"]
    if _take_white_space(added) or any(BLANK in token["content"] for token in added):
        return None
    vocabulary: Mapping[str, int] = model["vocab"]
    if any(token not in vocabulary for token in BYTE_TOKENS):
        return None  # A character could be unknown, and have any length.
    sizes = {
        number: len(token.replace(BLANK, " ").encode()) for token, number in vocabulary.items()
    }
    sizes.update((vocabulary[token], 1) for token in BYTE_TOKENS)
    sizes.update({token["id"]: len(token["content"].encode()) for token in added})
    return _by_id(sizes)


def _blanks_alone_change(
    normalizer: Mapping[str, Any] | None, pre_tokenizer: Mapping[str, Any] | None
) -> bool:
    """Whether all that is done to a text is to spell its blanks, and to put one in front at most."""
    spells = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    if normalizer == spells:
        # What Gemma has: no blank is left to split at.
        splits = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
        return pre_tokenizer is None or pre_tokenizer == {**splits, "invert": False}
    return (
        normalizer is None
        and pre_tokenizer is not None
        and pre_tokenizer["type"] == "Metaspace"
        and pre_tokenizer["replacement"] == BLANK
        and pre_tokenizer["prepend_scheme"] in {"first", "never"}
    )


def _take_white_space(added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a token stands for the blanks next to it too, a different number each time."""
    return any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)


def _by_id(sizes: Mapping[int, int]) -> np.ndarray:
    lengths = np.zeros(max(sizes) + 1, np.int64)
    lengths[np.fromiter(sizes, np.int64, len(sizes))] = np.fromiter(
        sizes.values(), np.int64, len(sizes)
    )
    return lengths


def contested(added: Sequence[Mapping[str, Any]]) -> list[str]:
    """Normalized added tokens that could claim characters of one that is not.

    The library looks for all of the latter first, fastokens for both at once.
    """
    normalized = [token["content"] for token in added if token.get("normalized")]
    others = [token["content"] for token in added if not token.get("normalized")]
    return [one for one in normalized if any(_share(one, other) for other in others)]


def _share(one: str, other: str) -> bool:
    if one in other or other in one:
        return True
    shorter = min(len(one), len(other))
    return any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in range(1, shorter))


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return
    if pre_tokenizer["type"] != "Sequence":
        yield pre_tokenizer
        return
    for step in pre_tokenizer["pretokenizers"]:
        yield from _steps(step)


@cache
def byte_letters() -> dict[str, int]:
    """The 256 letters in which GPT-2 and all after it spell bytes: those that print, then from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def digits_as_tokens(tokenizer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same tokenizer without its step `Digits`: each digit is an added token instead, which splits as well.

    For texts whose only digits are ASCII. fastokens knows the step of GPT-2 alone ten times as fast as both.
    None if there is no such step, or a digit is no token of its own.
    """
    steps = list(_steps(tokenizer["pre_tokenizer"]))
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"] or not steps[0][
        "individual_digits"
    ]:
        return None
    vocabulary = tokenizer["model"]["vocab"]
    if any(digit not in vocabulary for digit in "0123456789"):
        return None
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    digits = [{"id": vocabulary[digit], "content": digit, **flags} for digit in "0123456789"]
    added = [*tokenizer["added_tokens"], *digits]
    return {**tokenizer, "pre_tokenizer": steps[1], "added_tokens": added}


@cache
def _other_digits() -> np.ndarray:
    """Of each character below 0x20000, whether it may be a digit or number to a tokenizer, but is not ASCII.

    One that Python's Unicode does not know yet may be one.
    """
    kinds = (unicodedata.category(chr(point)) for point in range(0x20000))
    found = np.fromiter((kind[0] == "N" or kind == "Cn" for kind in kinds), bool, 0x20000)
    found[:0x80] = False
    return found


def has_other_digits(text: str) -> bool:
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return bool(_other_digits()[points[points < 0x20000]].any())
