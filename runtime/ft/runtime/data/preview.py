"""What rows look like: the texts of their tokens, which of them are trained, and numbers about all of them."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from tokenizers import decoders

from ft.recipes import prepared as cached
from ft.recipes.plan import RunPlan
from ft.runtime.data.batches import row_ids
from ft.runtime.data.pack import pack
from ft.runtime.data.prepare import PreparedData
from ft.runtime.data.token_bytes import byte_letters
from ft.runtime.data.tokenize import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BINS = 20
"""Of the histogram, at most."""

BAD_ROWS = 5
"""That are told at least, as far as there are some."""

WINDOW = 32
"""Most tokens of one character; garbage may look like one that never ends."""

REPLACEMENT = "\ufffd"


def preview(
    plan: RunPlan, data: PreparedData, tokenizer: PreTrainedTokenizerBase, numbers: Sequence[int]
) -> dict[str, Any]:
    """All that `ft preview` shows, for JSON. `data` must be kept in folders.

    `numbers` are row ids; one that no row has is left out.
    """
    assert data.folders
    lengths = row_lengths(data.rows)
    size, counts = plan.data.sequence_len, data.counts
    # Rows to evaluate on are packed apart, and never seen by a step.
    to_train = lengths[row_ids(data.train)]
    packs = len(pack(to_train, size, np.arange(len(to_train))))
    return {
        "counts": counts,
        "train_rows": len(data.train),
        "eval_rows": 0 if data.eval is None else len(data.eval),
        "sequence_len": size,
        "shares": {
            "trained": counts["trained_tokens"] / max(counts["tokens"], 1),
            "kept": counts["kept"] / max(counts["bad"] + counts["rows"], 1),
            "packed": int(to_train.sum()) / max(packs * size, 1),
        },
        "lengths": length_statistics(lengths),
        "histogram": histogram(lengths, size),
        "packs": packs,
        "bad": bad_rows(data.folders, max(len(numbers), BAD_ROWS)),
        "rows": list(_shown(data, tokenizer, numbers)),
    }


def _shown(
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    numbers: Sequence[int],
) -> Iterator[dict[str, Any]]:
    texts_of, special = texts_by(tokenizer), special_ids(tokenizer)
    to_evaluate = set() if data.eval is None else set(row_ids(data.eval).tolist())
    for number in numbers:
        if not 0 <= number < len(data.rows):
            continue
        row = data.rows[number]
        ids = row["input_ids"]
        found = pieces(ids, row["labels"], texts_of(ids), special)
        yield {
            "row_id": row["row_id"],
            "eval": number in to_evaluate,
            "tokens": len(ids),
            "trained_tokens": sum(p["end"] - p["start"] for p in found if p["trained"]),
            "pieces": found,
        }


def bad_rows(folders: Sequence[Path], limit: int) -> list[dict[str, Any]]:
    """The first rows that were skipped: `path`, `unit`, `row`, `reason`, `excerpt`."""
    return [json.loads(line) for line in itertools.islice(_bad_lines(folders), limit)]


def _bad_lines(folders: Sequence[Path]) -> Iterator[str]:
    for folder in folders:
        with (folder / cached.BAD).open(encoding="utf-8") as lines:
            yield from lines


# --------------------------------------------------------------------------------- numbers about all rows


def row_lengths(rows: datasets.Dataset) -> np.ndarray:
    """Tokens of each row, int64."""
    chunks = rows.data.column("input_ids").chunks
    found = [np.diff(chunk.offsets.to_numpy()).astype(np.int64) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.int64), *found])


def length_statistics(lengths: np.ndarray) -> dict[str, int]:
    """Lengths that some row has: at least half of the rows are not longer than `median`, 95 % not than `p95`."""
    shares = {"min": 0, "median": 50, "p95": 95, "max": 100}
    found = np.percentile(lengths, list(shares.values()), method="inverted_cdf")
    return dict(zip(shares, found.astype(int).tolist(), strict=True))


def histogram(lengths: np.ndarray, sequence_len: int) -> dict[str, list[int]]:
    """`rows[i]` are longer than `edges[i]` and not longer than `edges[i + 1]`; the last edge is `sequence_len`."""
    width = -(-sequence_len // BINS)
    bins = -(-sequence_len // width)
    rows = np.bincount((lengths - 1) // width, minlength=bins)
    edges = [min(i * width, sequence_len) for i in range(bins + 1)]
    return {"edges": edges, "rows": rows.tolist()}


def pieces(
    ids: Sequence[int], labels: Sequence[int], texts: Sequence[str], special: frozenset[int]
) -> list[dict[str, Any]]:
    """Runs of tokens `start:end` that are all trained or not, and all special or not, with their `texts`.

    A row's first token is never trained: there is nothing before it to be predicted from.
    """
    flags = [
        (position > 0 and labels[position] != IGNORED, ids[position] in special)
        for position in range(len(ids))
    ]
    found, start = [], 0
    for (trained, is_special), run in itertools.groupby(flags):
        end = start + sum(1 for _ in run)
        found.append(
            {
                "trained": trained,
                "special": is_special,
                "start": start,
                "end": end,
                "texts": list(texts[start:end]),
            }
        )
        start = end
    return found


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that no text is split into: BOS, EOS and the marks of templates."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset({*tokenizer.all_special_ids, *(n for n, token in added if token.special)})


Texts = Callable[[Sequence[int]], list[str]]


def texts_by(tokenizer: PreTrainedTokenizerBase) -> Texts:
    """ids -> the text of each; together they are what the model reads, to the letter.

    A character that is several tokens stands with the last of them, the others have an empty text.
    """
    if tokenizer.is_fast and isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return lambda ids: _by_bytes(tokenizer, ids)

    def decode(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return lambda ids: by_windows(decode, ids)


def _by_bytes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """For tokens that are spelled in the letters of bytes. An added token is its own text."""
    added, byte_of = tokenizer.added_tokens_decoder, byte_letters()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts: list[str] = []
    for number, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if number in added or token is None or any(letter not in byte_of for letter in token):
            _end(decoder, texts)
            whole = added[number].content if number in added else token
            texts.append(REPLACEMENT if whole is None else whole)
        else:
            texts.append(decoder.decode(bytes(byte_of[letter] for letter in token)))
    _end(decoder, texts)
    return texts


def _end(decoder: codecs.IncrementalDecoder, texts: list[str]) -> None:
    """A character that was begun does not go on."""
    rest = decoder.decode(b"", final=True)
    decoder.reset()
    if rest:
        texts[-1] += rest


def by_windows(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[str]:
    """For any tokenizer: what each token adds to the text of the ones before it."""
    texts = [""] * len(ids)
    before, first, told = "", 0, 0
    for end in range(1, len(ids) + 1):
        after = decode(ids[first:end])
        unfinished = after.endswith(REPLACEMENT) or not after.startswith(before)
        if unfinished and end < len(ids) and end - told < WINDOW:
            continue
        texts[end - 1] = after[len(before) :]
        first, told = told, end
        before = decode(ids[first:told])
    return texts
