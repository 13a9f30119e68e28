"""The examples of a chunk become rows of tokens: formats, templates, masks, then everything at once in arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ft.recipes.plan import DataPlan, DatasetPlan
from ft.runtime import registry
from ft.runtime.data.engine import Encoded, Engine, utf8
from ft.runtime.data.length import Fit
from ft.runtime.data.mask import ChatTokenizer, Crossing, Masked, crossed, label
from ft.runtime.data.row import DataError, MessagesRow, Row, RowError, SegmentsRow, TokensRow
from ft.runtime.data.sources import Chunk, Example
from ft.runtime.data.templates import template_of
from ft.runtime.data.tokenize import IGNORED, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SKIP = "skip"


@dataclass(slots=True)
class Made:
    """Rows of one chunk, in its order. `ids` and `labels`: int32, end to end; `lengths`: int64, tokens of each row.

    `examples`: int64, of each row the number of its example in its file. `bad`: rows that were skipped.
    """

    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    examples: np.ndarray
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[DataError] = field(default_factory=list)


@dataclass(slots=True)
class _Text:
    """A text to be tokenized, and which of it is trained: spans, or all of it, or nothing."""

    text: str
    masked: Masked
    train: bool


@dataclass(slots=True)
class _Item:
    """A row on its way. It is made of `texts[first:last]`, or of `tokens`."""

    example: Example
    row: Row
    first: int
    last: int


class Maker:
    """Makes rows for one data set of a plan. One for each process: it holds the tokenizer's engine."""

    def __init__(
        self,
        spec: DatasetPlan,
        data: DataPlan,
        run_folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine,
    ) -> None:
        """Raises: DataError if these rows cannot be made with this tokenizer at all."""
        self._spec, self._data, self._engine = spec, data, engine
        self._rows_of: Callable[[Mapping[str, Any], DatasetPlan], Row] = registry.target(
            registry.FORMATS, spec.type
        )
        eos = tokenizer.eos_token_id
        self._special = _Special(*engine.around(eos), eos, data.train_on_inputs)
        self._num_tokens = len(tokenizer)
        self._chat = (
            _chat(spec, data, run_folder, tokenizer, engine)
            if spec.type == "chat_template"
            else None
        )

    def make(self, chunk: Chunk) -> Made:
        """Raises: DataError naming the first bad example, unless the plan says that they are skipped."""
        bad: list[DataError] = []
        texts: list[_Text] = []
        items: list[_Item] = []
        for example in chunk.examples():
            if isinstance(example, DataError):
                self._refuse(example, bad)
                continue
            first = len(texts)
            try:
                row = self._rows_of(example.value, self._spec)
                texts += self._texts(row)
            except RowError as error:
                del texts[first:]
                self._refuse(example.error(str(error)), bad, error)
            except Exception as error:
                # A template met something that nobody foresaw: the row's place is what helps.
                raise example.error(f"{type(error).__name__}: {error}") from error
            else:
                items.append(_Item(example, row, first, len(texts)))
        made = self._tokens(items, texts, bad)
        made.counts["read"] += len(chunk)
        made.counts["bad"] += len(bad)
        made.bad = bad
        return made

    def _refuse(
        self, error: DataError, bad: list[DataError], cause: Exception | None = None
    ) -> None:
        if self._data.on_bad_row != SKIP:
            raise error from cause
        bad.append(error)

    def _texts(self, row: Row) -> Iterator[_Text]:
        """The texts that a row is made of. Raises: RowError."""
        if isinstance(row, TokensRow):
            self._check_ids(row)
        elif isinstance(row, MessagesRow):
            assert self._chat is not None, f"{self._spec.type} gave messages"
            masked = self._chat.mask(row, self._spec, train_on_inputs=self._data.train_on_inputs)
            yield _Text(masked.text, masked, train=False)
        elif isinstance(row, SegmentsRow):
            if row.eos and self._special.eos is None:
                reason = "the tokenizer has no EOS token; set `special_tokens: {eos_token: ...}`."
                raise RowError(reason)
            for segment in row.segments:
                utf8(segment.text)
                train = segment.train or self._data.train_on_inputs
                yield _Text(segment.text, Masked(segment.text, []), train)

    def _check_ids(self, row: TokensRow) -> None:
        """Raises: RowError if an id is no token; on a GPU that would be an error that names nothing."""
        for number, token in enumerate(row.input_ids, start=1):
            if not 0 <= token < self._num_tokens:
                raise RowError(
                    f"`input_ids`: number {number} is {token}, and the tokenizer has the ids 0 to "
                    f"{self._num_tokens - 1}."
                )

    def tokens(self, row: Row) -> Tokens:
        """One row on its own, however long, before it is cut into chunks. Raises: RowError."""
        texts = list(self._texts(row))
        encoded, labels, crossing = self._encoded(texts)
        if crossing:
            raise RowError(crossed(texts[crossing[0].text].text, encoded, crossing[0]))
        item = _Item(Example("", 1, "row", {}), row, 0, len(texts))
        made = _assembled([item], encoded, labels, self._special)
        return Tokens(made.ids.tolist(), made.labels.tolist())

    def _encoded(self, texts: Sequence[_Text]) -> tuple[Encoded, np.ndarray, list[Crossing]]:
        encoded = self._engine.encode([one.text for one in texts])
        labels, crossing = label(encoded, [one.masked for one in texts])
        for index, one in enumerate(texts):
            if one.train:
                own = slice(encoded.rows[index], encoded.rows[index + 1])
                labels[own] = encoded.ids[own]
        return encoded, labels, crossing

    def _tokens(self, items: list[_Item], texts: list[_Text], bad: list[DataError]) -> Made:
        encoded, labels, crossing = self._encoded(texts)
        wrong = {cross.text: cross for cross in reversed(crossing)}
        kept = []
        for item in items:
            cross = wrong.get(item.first) if item.first < item.last else None
            if cross is None:
                kept.append(item)
            else:
                reason = crossed(texts[item.first].text, encoded, cross)
                self._refuse(item.example.error(reason), bad)
        return self._fitted(kept, _assembled(kept, encoded, labels, self._special))

    def _fitted(self, items: Sequence[_Item], made: Made) -> Made:
        """Cut into chunks and to length, without the rows that are not for training."""
        size = self._data.sequence_len
        if any(isinstance(item.row, SegmentsRow) and item.row.chunks for item in items):
            cut = [isinstance(item.row, SegmentsRow) and item.row.chunks for item in items]
            made = chunked(made, np.array(cut), size)
        lengths = made.lengths
        too_short = lengths < max(self._data.min_sample_len, 1)
        too_long = lengths > size
        if self._data.excess_length_strategy == "raise" and too_long.any():
            self._too_long(items, made, int(np.flatnonzero(too_long)[0]))
        truncates = self._data.excess_length_strategy == "truncate"
        made.counts.update(
            {
                "rows": len(lengths),
                Fit.TOO_SHORT: int(too_short.sum()),
                Fit.TRUNCATED if truncates else Fit.TOO_LONG: int(too_long.sum()),
            }
        )
        limits = np.where(too_short | (too_long & (not truncates)), 0, np.minimum(lengths, size))
        made = limited(made, limits)
        trained = trained_tokens(made.labels, made.lengths)
        made.counts["untrained"] += int((trained == 0).sum())
        made = limited(made, np.where(trained == 0, 0, made.lengths))
        made.counts["kept"] += len(made.lengths)
        made.counts["tokens"] += len(made.ids)
        made.counts["trained_tokens"] += int(trained.sum())
        return made

    def _too_long(self, items: Sequence[_Item], made: Made, row: int) -> None:
        reason = (
            f"has {made.lengths[row]} tokens, more than `sequence_len` {self._data.sequence_len}. Raise it, or set "
            "`excess_length_strategy` to `drop` or `truncate`."
        )
        number = made.examples[row]
        raise next(item.example for item in items if item.example.row == number).error(reason)


@dataclass(frozen=True, slots=True)
class _Special:
    """What the tokenizer puts in front of a text and behind it, int32, and EOS."""

    before: np.ndarray
    after: np.ndarray
    eos: int | None
    train_on_inputs: bool


def _assembled(
    items: Sequence[_Item], encoded: Encoded, labels: np.ndarray, special: _Special
) -> Made:
    """Rows from their texts' tokens, with what the tokenizer puts around a text and EOS where the format says so."""
    examples = np.fromiter((item.example.row for item in items), np.int64, len(items))
    rows = encoded.rows
    if all(isinstance(item.row, MessagesRow) for item in items) and len(items) == len(rows) - 1:
        return Made(encoded.ids, labels, np.diff(rows), examples)
    nothing = np.zeros(0, np.int32)
    parts = [(nothing, nothing)]
    lengths = np.zeros(len(items), np.int64)
    for index, item in enumerate(items):
        if isinstance(item.row, TokensRow):
            ids = np.asarray(item.row.input_ids, np.int32)
            own = [(ids, np.asarray(item.row.labels, np.int32))]
        else:
            place = slice(rows[item.first], rows[item.last])
            own = [(encoded.ids[place], labels[place])]
        if isinstance(item.row, SegmentsRow):
            first = int(rows[item.first + 1] - rows[item.first]) if item.row.segments else 0
            _add_special(item.row, first, special, own)
        parts += own
        lengths[index] = sum(len(ids) for ids, _ in own)
    ids_of, labels_of = zip(*parts, strict=True)
    return Made(np.concatenate(ids_of), np.concatenate(labels_of), lengths, examples)


def _add_special(
    row: SegmentsRow, first: int, special: _Special, parts: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    """What stands around a first segment of `first` tokens, and EOS at the end unless it is there."""
    before, after = special.before, special.after
    if row.special_tokens and row.segments and (len(before) or len(after)):
        ((ids, labels),) = parts
        trained = row.segments[0].train or special.train_on_inputs
        around = [
            (part, part if trained else np.full(len(part), IGNORED, np.int32))
            for part in (before, after)
        ]
        parts[:] = (
            around[0],
            (ids[:first], labels[:first]),
            around[1],
            (ids[first:], labels[first:]),
        )
    last = next((int(ids[-1]) for ids, _ in reversed(parts) if len(ids)), None)
    if row.eos and last != special.eos:
        eos = np.array([special.eos], np.int32)
        parts.append((eos, eos))


def chunked(made: Made, cut: np.ndarray, size: int) -> Made:
    """Rows where `cut` says so in pieces of `size` tokens, the last one shorter. An empty row stays one."""
    pieces = np.where(cut, np.maximum(-(-made.lengths // size), 1), 1)
    of = np.repeat(np.arange(len(pieces)), pieces)
    lengths = np.where(cut[of], size, made.lengths[of])
    last = np.cumsum(pieces) - 1
    lengths[last] = np.where(cut, made.lengths - (pieces - 1) * size, made.lengths)
    return Made(made.ids, made.labels, lengths, made.examples[of], made.counts, made.bad)


def limited(made: Made, limits: np.ndarray) -> Made:
    """The first `limits` tokens of each row; a row of none is left out."""
    if (limits == made.lengths).all() and (limits > 0).all():
        return made
    starts = np.cumsum(made.lengths) - made.lengths
    position = np.arange(len(made.ids)) - np.repeat(starts, made.lengths)
    stays = position < np.repeat(limits, made.lengths)
    rows = limits > 0
    return Made(
        made.ids[stays],
        made.labels[stays],
        limits[rows],
        made.examples[rows],
        made.counts,
        made.bad,
    )


def trained_tokens(labels: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of each row: tokens that the loss is a mean of. The first one has nothing before it to be predicted from."""
    trained = labels != IGNORED
    ends = np.cumsum(lengths)
    before = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
    has = lengths > 0
    firsts = np.zeros(len(lengths), np.int64)
    firsts[has] = trained[(ends - lengths)[has]]
    return before[ends] - before[ends - lengths] - firsts


def _chat(
    spec: DatasetPlan,
    data: DataPlan,
    run_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    engine: Engine,
) -> ChatTokenizer:
    """Raises: DataError if the tokenizer cannot render conversations, or not place them, or has no EOT token."""
    template = template_of(spec, data, run_folder, tokenizer)
    if template is None and not tokenizer.chat_template:
        reason = "the tokenizer has no chat template; set `chat_template: chatml` or `jinja`"
        raise DataError(spec.path, None, "", reason)
    if not tokenizer.is_fast:
        reason = "the tokenizer does not say where its tokens stand in the text, which masks need"
        raise DataError(spec.path, None, "", reason)
    for token in data.eot_tokens:
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
            reason = (
                f"`eot_tokens`: {token!r} is not one token of the vocabulary; "
                "take it out, or add it with `tokens`"
            )
            raise DataError(spec.path, None, "", reason)
    return ChatTokenizer(
        tokenizer,
        template,
        kwargs=data.chat_template_kwargs,
        day=data.date,
        eot_tokens=data.eot_tokens,
        thinking_key=spec.template_thinking_key,
        engine=engine,
    )
