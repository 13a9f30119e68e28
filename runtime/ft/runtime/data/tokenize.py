"""A row becomes token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ft.runtime.data.row import RowError, SegmentsRow

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not trained; cross entropy leaves it out."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row: `labels[i]` is `input_ids[i]` or IGNORED. Not shifted; the loss does that."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens that the loss is a mean of. The first one has nothing before it to be predicted from."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORED)


def tokenize_segments(
    row: SegmentsRow,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_len: int,
    train_on_inputs: bool,
) -> list[Tokens]:
    """One row of tokens, or several of at most `sequence_len` if `row.chunks`.

    Each segment is tokenized on its own, so that no token lies across a border between trained and not.
    Raises: RowError if the row must end with EOS and the tokenizer has none.
    """
    eos = tokenizer.eos_token_id
    input_ids: list[int] = []
    labels: list[int] = []
    for index, segment in enumerate(row.segments):
        special = row.special_tokens and index == 0
        ids = _ids(segment.text, tokenizer, special=special)
        input_ids += ids
        labels += ids if segment.train or train_on_inputs else [IGNORED] * len(ids)
    if row.eos:
        if eos is None:
            raise RowError(
                "the tokenizer has no EOS token; set `special_tokens: {eos_token: ...}`."
            )
        if not input_ids or input_ids[-1] != eos:
            input_ids.append(eos)
            labels.append(eos)
    size = sequence_len if row.chunks else max(len(input_ids), 1)
    return [
        Tokens(input_ids[start : start + size], labels[start : start + size])
        for start in range(0, max(len(input_ids), 1), size)
    ]


def encode(
    text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = False, offsets: bool = False
) -> BatchEncoding:
    """`input_ids` of the whole text, however long, and with `offsets` the `offset_mapping`.

    Raises: RowError if the text holds half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"character {error.start + 1} is half of a surrogate pair, no text."
        ) from error
    return tokenizer(
        text,
        add_special_tokens=special,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        truncation=False,
        verbose=False,
    )


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[int]:
    """Ids of `text`; with `special`, what the tokenizer puts in front of a text, but no EOS behind it."""
    ids: list[int] = encode(text, tokenizer, special=special)["input_ids"]
    if special and ids and ids[-1] == tokenizer.eos_token_id:
        return ids[:-1]
    return ids
