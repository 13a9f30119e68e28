"""Texts become token ids, with the bytes that each token stands for.

Two engines give the same ids. `fastokens` is many times faster and knows no offsets: where tokens are made of
the text's own bytes (byte-level BPE), a token's place is the sum of the lengths before it. It is used only for a
tokenizer of that kind, and only after it has given the same ids as the library on a sample of the real texts. The
library too needs less time where nobody asks it for offsets: see `token_bytes`.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from tokenizers import Tokenizer

from ft.runtime.data.row import RowError
from ft.runtime.data.token_bytes import (
    BLANK,
    byte_lengths,
    contested,
    digits_as_tokens,
    has_other_digits,
    piece_lengths,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ft.data")

FAST, LIBRARY = "fastokens", "tokenizers"

WORTH_CHARACTERS = 1_000_000
"""What the library does in the time in which the fast engine is loaded and proved."""
PROVED_CHARACTERS = 200_000
"""Of the real texts, before the fast engine is trusted with the others."""
MAX_CONTESTED = 16
"""Added tokens for which every text is searched before it goes to the fast engine."""
GROUP = 16
"""Texts that go to the fast engine at once: one that it refuses spoils all of them."""
LOOK_CHARACTERS = 5000
"""Longest text that is encoded a second time now and then."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of several texts, end to end.

    `ids`: int32. `rows`: int64, one more than texts; those of text i are `rows[i]:rows[i + 1]`.
    `begins`, `ends`: int64, bytes of each token in all texts end to end; `texts`: int64, one more than texts, where
    each text begins there. Both rise; a character that is several tokens gives all of them its own bytes.
    """

    ids: np.ndarray
    rows: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    texts: np.ndarray


_Alone = tuple[np.ndarray, np.ndarray, np.ndarray, int]
"""One text: ids, begins and ends in bytes, and the bytes of the text."""


class EngineError(Exception):
    """The fast engine gave other ids than the library, after it had been trusted: what it made is worth nothing."""


class Engine:
    """One tokenizer, as fast as it can be made exactly."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, fast: bool = True) -> None:
        """`tokenizer.is_fast` or not; one that is not has no offsets, and no masks can be made with it.

        `fast=False`: the library alone.
        """
        self._tokenizer = tokenizer
        self._library: Tokenizer | None = None
        if tokenizer.is_fast:
            self._library = tokenizer.backend_tokenizer
            if self._library.truncation is not None or self._library.padding is not None:
                self._library = Tokenizer.from_str(self._library.to_str())
                self._library.no_truncation()
                self._library.no_padding()
        self._fast: Any = None
        self._may_be_fast = fast
        self._by_digits = False
        """Whether the fast one was told about ASCII digits alone, see `digits_as_tokens`."""
        self._lengths: np.ndarray | None = None
        """Bytes of each token, where tokens are the text's own bytes."""
        self._is_nfc = self._has_pieces = False
        self._contested: list[str] = []
        self._characters = self._calls = 0
        # A flag that is no part of the tokenizer's state, and that only the library knows.
        splits = bool(getattr(tokenizer, "split_special_tokens", False))
        if splits and self._library is not None:
            self._library.encode_special_tokens = True
        self._is_decided = self._library is None or splits
        self.before, self.after = self._special()

    def _decide(self, texts: Sequence[str]) -> None:
        """Take the fast engine once there is text enough to make up for its loading, if it gives the same ids."""
        self._characters += sum(map(len, texts))
        if self._characters < WORTH_CHARACTERS:
            return
        self._is_decided = True
        assert self._library is not None
        values = orjson.loads(self._library.to_str())
        self._learn(values)
        if self._may_be_fast and not self._has_pieces:
            self._make_fast(values)
        self.prove(texts)

    def _learn(self, values: dict[str, Any]) -> None:
        """How many bytes each token stands for. `values` is a `tokenizer.json`."""
        self._lengths = byte_lengths(values)
        if self._lengths is None:
            self._lengths = piece_lengths(values)
            self._has_pieces = self._lengths is not None
        self._is_nfc = (values["normalizer"] or {}).get("type") == "NFC"

    def _make_fast(self, values: dict[str, Any]) -> None:
        if self._lengths is None:
            log.info("this tokenizer's tokens are not the bytes of a text: the library is used")
            return
        try:
            import fastokens
        except ImportError:
            log.info("fastokens is not installed: tokenization takes several times as long")
            return
        # Neither truncates nor pads, whatever the tokenizer was saved with.
        values.update(truncation=None, padding=None)
        # Spelled as one text each they are read a fifth faster, and no token of bytes has a blank.
        model = {
            **values["model"],
            "merges": [" ".join(pair) for pair in values["model"]["merges"]],
        }
        values["model"] = model
        by_digits = digits_as_tokens(values)
        rivals = contested((by_digits or values)["added_tokens"])
        if len(rivals) > MAX_CONTESTED:
            log.info("too many added tokens overlap: the library is used")
            return
        try:
            self._fast = fastokens.Tokenizer.from_json_str(
                orjson.dumps(by_digits or values).decode()
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            log.info("fastokens does not know this tokenizer: %s", error)
            return
        self._by_digits = by_digits is not None
        self._contested = rivals

    def _special(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of a text and behind it."""
        plain = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        raise ValueError("the tokenizer writes a text differently when it adds special tokens")

    def around(self, eos: int | None) -> tuple[np.ndarray, np.ndarray]:
        """What the tokenizer puts in front of a text and behind it, int32, but for EOS at the end."""
        after = self.after[:-1] if self.after and self.after[-1] == eos else self.after
        return np.array(self.before, np.int32), np.array(after, np.int32)

    @property
    def name(self) -> str:
        """The engine that is at work."""
        return FAST if self._fast is not None else LIBRARY

    def prove(self, texts: Sequence[str]) -> None:
        """Compare both engines on texts, up to PROVED_CHARACTERS; the fast one is given up if an id differs.

        Without it the library's own offsets are compared with the sums of lengths.
        """
        sample, characters = [], 0
        for text in texts:
            if characters >= PROVED_CHARACTERS:
                break
            sample.append(text)
            characters += len(text)
        if self._fast is not None and not self._agrees(sample):
            log.warning("fastokens gives other ids with this tokenizer: the library is used")
            self._fast = None
        if self._fast is None and self._lengths is not None and not self._has_places(sample):
            log.info("this tokenizer's tokens are not what they stand for: the library is asked")
            self._lengths = None

    def _agrees(self, texts: Sequence[str]) -> bool:
        found = self._encode(texts)
        rows = zip(found.rows[:-1], found.rows[1:], strict=True)
        ours = [found.ids[start:end].tolist() for start, end in rows]
        return ours == [
            self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
        ]

    def _has_places(self, texts: Sequence[str]) -> bool:
        """Whether the sums of lengths are the library's offsets, which are those of whole characters."""
        for text in texts:
            ours, theirs = self._encode([text]), _joined([self._by_library(text)])
            place = byte_places(text)
            begins = place[np.searchsorted(place, ours.begins, "right") - 1]
            ends = place[np.searchsorted(place, ours.ends)]
            if not (
                np.array_equal(ours.ids, theirs.ids)
                and np.array_equal(begins, theirs.begins)
                and np.array_equal(ends, theirs.ends)
            ):
                return False
        return True

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids without special tokens of the tokenizer's own; those that stand in the text are recognized.

        Texts must be valid Unicode, see `utf8`. Never truncated.
        Raises: EngineError.
        """
        if not self._is_decided:
            self._decide(texts)
        if self._lengths is None or not texts:
            return _joined([self._by_library(text) for text in texts])
        if self._fast is not None:
            self._look_again(texts)
        return self._encode(texts)

    def _look_again(self, texts: Sequence[str]) -> None:
        """The beginning of the data may not be like the rest: one short text of each call is encoded twice."""
        text = texts[self._calls % len(texts)]
        self._calls += 1
        if len(text) <= LOOK_CHARACTERS and not self._agrees([text]):
            raise EngineError(f"fastokens and tokenizers disagree about {text!r}")

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """Ids alone by either engine, and places by the tokens' lengths."""
        assert self._lengths is not None
        wrong = set(self._odd(texts))
        if self._fast is None:
            ids, rows = self._ids(texts)
        else:
            ids, rows, unknown = self._fast_ids(texts)
            wrong.update(unknown)
        sizes = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.concatenate([[0], np.cumsum(self._lengths[ids], dtype=np.int64)])
        wrong.update(np.flatnonzero(np.diff(places[rows]) != sizes).tolist())
        if not wrong:
            return Encoded(ids, rows, places[:-1], places[1:], starts)
        others: dict[int, _Alone] = {}
        for i in sorted(wrong):
            own = places[rows[i] : rows[i + 1] + 1] - places[rows[i]]
            if self._has_pieces and own[-1] == sizes[i] + 1 and BLANK not in texts[i]:
                others[i] = ids[rows[i] : rows[i + 1]], *_without_blank(own, texts[i]), sizes[i]
            else:
                # Where tokens are not the text's own bytes, something was normalized or left out. The library knows.
                others[i] = self._by_library(texts[i])
        return _with(others, ids, rows, places, starts)

    def _fast_ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Ids, the rows that they make, and the texts that have none."""
        parts: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        unknown: list[int] = []
        for first in range(0, len(texts), GROUP):
            group = list(texts[first : first + GROUP])
            try:
                found = [self._flat(group)]
            except ValueError:
                found = []
                for i, text in enumerate(group, start=first):
                    try:
                        found.append(self._flat([text]))
                    except ValueError as error:
                        # A byte that no token stands for. The library leaves it out, in silence.
                        log.debug("by the library: %s", error)
                        unknown.append(i)
                        found.append((np.zeros(0, np.int32), np.zeros(1, np.int64)))
            parts += [ids for ids, _ in found]
            lengths += [count for _, count in found]
        rows = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return np.concatenate(parts), rows, unknown

    def _flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, and how many each has. Raises: ValueError."""
        flat, rows = self._fast.encode_batch_flat(texts)
        counts = np.diff(np.frombuffer(rows, np.uint64).astype(np.int64))
        return np.frombuffer(flat, np.uint32).astype(np.int32), counts

    def _ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same, by the library."""
        assert self._library is not None
        rows = [
            encoding.ids
            for encoding in self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.fromiter(chain.from_iterable(rows), np.int32, ends[-1]), ends

    def _odd(self, texts: Sequence[str]) -> Iterator[int]:
        """Texts whose tokens may not stand for their bytes, and those that the fast engine must not see.

        A normalizer would change them, or they have other digits.
        """
        is_fast = self._fast is not None
        for i, text in enumerate(texts):
            if is_fast and any(token in text for token in self._contested):
                yield i
                continue
            if text.isascii():
                continue
            if (
                (self._is_nfc and not _is_nfc(text))
                or (is_fast and self._by_digits and has_other_digits(text))
                or (self._has_pieces and BLANK in text)
            ):
                yield i

    def _by_library(self, text: str) -> _Alone:
        """Ids, begins and ends in bytes, and the bytes of the text."""
        size = len(text) if text.isascii() else len(text.encode())
        if self._library is None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            nowhere = np.zeros(len(ids), np.int64)
            return np.array(ids, np.int32), nowhere, nowhere, size
        found = self._library.encode(text, add_special_tokens=False)
        offsets = np.fromiter(chain.from_iterable(found.offsets), np.int64).reshape(-1, 2)
        begins, ends = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
        if len(ends):
            # Byte-level tokenizers may leave white space out of the offsets of the token that begins with it.
            begins = np.minimum(begins, np.concatenate([[0], ends[:-1]]))
        if not text.isascii():
            place = byte_places(text)
            begins, ends = place[begins], place[ends]
        return np.array(found.ids, np.int32), begins, ends, size


def _without_blank(places: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of a text's tokens where the first one has a blank in front that the text has not.

    A first token that is this blank alone is given the first character, as the library does it.
    """
    begins, ends = np.maximum(places[:-1] - 1, 0), places[1:] - 1
    if len(ends) and not ends[0]:
        ends[0] = len(text[:1].encode())
    return begins, np.maximum.accumulate(ends)


def _joined(parts: Sequence[_Alone]) -> Encoded:
    """Rows of tokens, each with places of its own, as one."""
    texts = np.concatenate([[0], np.cumsum([size for *_, size in parts])]).astype(np.int64)
    rows = np.concatenate([[0], np.cumsum([len(ids) for ids, *_ in parts])]).astype(np.int64)
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Encoded(nothing.astype(np.int32), rows, nothing, nothing, texts)
    ids, begins, ends, _ = zip(*parts, strict=True)
    shift = np.repeat(texts[:-1], np.diff(rows))
    return Encoded(
        np.concatenate(ids),
        rows,
        np.concatenate(begins) + shift,
        np.concatenate(ends) + shift,
        texts,
    )


def _with(
    others: Mapping[int, _Alone],
    ids: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    starts: np.ndarray,
) -> Encoded:
    """Tokens of texts that begin at `starts`, of which `others` are tokenized otherwise; `places` are those before."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    first = 0
    for i in [*sorted(others), len(starts) - 1]:
        # Neighbours stay as they are but for what went wrong before them.
        own = slice(rows[first], rows[i])
        shift = starts[first] - places[rows[first]]
        parts.append((ids[own], places[:-1][own] + shift, places[1:][own] + shift))
        if i in others:
            tokens, begins, ends, _ = others[i]
            parts.append((tokens, begins + starts[i], ends + starts[i]))
        first = i + 1
    counts = np.diff(rows)
    for i, (tokens, *_) in others.items():
        counts[i] = len(tokens)
    all_ids, begins, ends = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Encoded(all_ids, np.concatenate([[0], np.cumsum(counts)]), begins, ends, starts)


def _is_nfc(text: str) -> bool:
    return unicodedata.is_normalized("NFC", text)


def utf8(text: str) -> None:
    """Raises: RowError if the text holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"character {error.start + 1} is half of a surrogate pair, no text."
        raise RowError(reason) from error


def byte_places(text: str) -> np.ndarray:
    """int64, one more than characters: the byte of the UTF-8 text at which each character begins, and its end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])
