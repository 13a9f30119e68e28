"""All rows of a run, ready to be trained on: read, tokenized, cut to length, split."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa

from ft.recipes.plan import DataPlan, DatasetPlan, RunPlan
from ft.runtime import registry
from ft.runtime.data.length import Fit, fit
from ft.runtime.data.mask import ChatTokenizer
from ft.runtime.data.order import permutation
from ft.runtime.data.row import DataError, MessagesRow, Row, RowError, TokensRow
from ft.runtime.data.sources import examples
from ft.runtime.data.templates import template_of
from ft.runtime.data.tokenize import Tokens, tokenize_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS = (
    "read",
    "bad",
    "rows",
    "too_long",
    "too_short",
    "truncated",
    "untrained",
    "kept",
    "tokens",
    "trained_tokens",
)

SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32()), "row_id": pa.int64()}
)

# Rows per Arrow batch: offsets in one are 32 bits wide, so its tokens must stay below 2^31.
BATCH_ROWS = 4096

PROGRESS_ROWS = 256

# Sets the held-out rows apart from the shuffles, whose seeds are [seed, epoch].
HELD_OUT = (1,)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Columns `input_ids`, `labels` (int32) and `row_id` (int64), in the order of the files.

    `row_id` numbers all kept rows, those of `eval` too, so it names the same row in every run of the
    plan. `counts`: `read` examples, without the `bad` ones, gave `rows` = too_long + too_short + untrained
    + kept; `truncated` ones are among the kept, unless nothing trained was left of them. `tokens` and
    `trained_tokens` are of the kept rows; trained is what the loss is a mean of, so never a row's first token.
    """

    train: datasets.Dataset
    eval: datasets.Dataset | None
    counts: dict[str, int]


def prepare(
    plan: RunPlan,
    run_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> PreparedData:
    """Read every data set of the plan and make rows of it, the same ones whoever calls.

    `on_progress(done, total)` counts examples; the total is None until it is known, at the end. No file
    is written.
    Raises: DataError naming the file and the row, or saying that nothing is left to train on.
    """
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    table = _Table()
    for tokens in _kept(plan.data, run_folder, tokenizer, counts, on_progress):
        table.add(tokens)
        counts["kept"] += 1
        counts["tokens"] += len(tokens.input_ids)
        counts["trained_tokens"] += tokens.trained
    if on_progress:
        on_progress(counts["read"], counts["read"])
    rows = table.dataset()
    train, held_out = split(len(rows), plan.data.val_set_size, plan.optim.seed)
    if not len(train):
        raise DataError(_paths(plan.data), None, "", _nothing_left(counts, len(held_out)))
    if not len(held_out):
        return PreparedData(rows, None, dict(counts))
    return PreparedData(
        rows.select(train, keep_in_memory=True),
        rows.select(held_out, keep_in_memory=True),
        dict(counts),
    )


def split(num_rows: int, val_set_size: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and held-out rows, both ascending. A share up to 1 is rounded up."""
    if val_set_size <= 1:
        # Rounded first: 0.1 + 0.2 of 10 rows are 3, not 4.
        num_held_out = math.ceil(round(val_set_size * num_rows, 9))
    else:
        num_held_out = min(int(val_set_size), num_rows)
    shuffled = permutation(num_rows, np.random.SeedSequence(seed, spawn_key=HELD_OUT))
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


def _kept(
    data: DataPlan,
    run_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[str],
    on_progress: Callable[[int, int | None], None] | None,
) -> Iterator[Tokens]:
    """Rows that fit and have something to train, in the order of the data sets; counts the others."""
    for spec in data.datasets:
        rows_of = registry.target(registry.FORMATS, spec.type)
        to_tokens = _tokenizer_of(spec, data, run_folder, tokenizer)
        for example in examples(spec, run_folder):
            counts["read"] += 1
            if on_progress and counts["read"] % PROGRESS_ROWS == 0:
                on_progress(counts["read"], None)
            try:
                fitted = [_fit(tokens, data) for tokens in to_tokens(rows_of(example.value, spec))]
            except RowError as error:
                if data.on_bad_row == "skip":
                    counts["bad"] += 1
                    continue
                raise example.error(str(error)) from error
            except Exception as error:
                # A tokenizer or a template met something that nobody foresaw: the row's place is what helps.
                reason = f"{type(error).__name__}: {error}"
                raise example.error(reason) from error
            yield from _trainable(fitted, counts)


def _fit(tokens: Tokens, data: DataPlan) -> tuple[Fit, Tokens]:
    return fit(
        tokens,
        sequence_len=data.sequence_len,
        min_sample_len=data.min_sample_len,
        strategy=data.excess_length_strategy,
    )


def _trainable(fitted: list[tuple[Fit, Tokens]], counts: Counter[str]) -> Iterator[Tokens]:
    counts["rows"] += len(fitted)
    for fate, tokens in fitted:
        if fate is not Fit.KEPT:
            counts[fate.value] += 1
        if fate in (Fit.TOO_LONG, Fit.TOO_SHORT):
            continue
        if tokens.trained:
            yield tokens
        else:
            counts["untrained"] += 1


def _tokenizer_of(
    spec: DatasetPlan, data: DataPlan, run_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Row], list[Tokens]]:
    """What makes tokens of the rows of one data set.

    Raises: DataError if they are conversations and the tokenizer cannot render or place them.
    """
    chat = _chat(spec, data, run_folder, tokenizer) if spec.type == "chat_template" else None

    def to_tokens(row: Row) -> list[Tokens]:
        if isinstance(row, MessagesRow):
            assert chat is not None, f"{spec.type} gave messages"
            return [chat.tokens(row, spec, train_on_inputs=data.train_on_inputs)]
        if isinstance(row, TokensRow):
            return [Tokens(list(row.input_ids), list(row.labels))]
        return tokenize_segments(
            row, tokenizer, sequence_len=data.sequence_len, train_on_inputs=data.train_on_inputs
        )

    return to_tokens


def _chat(
    spec: DatasetPlan, data: DataPlan, run_folder: Path, tokenizer: PreTrainedTokenizerBase
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
        tokenizer, template, kwargs=data.chat_template_kwargs, eot_tokens=data.eot_tokens
    )


class _Table:
    """Rows on their way to Arrow: four bytes a token, never a Python list of them all."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._digest = hashlib.sha256()
        self._num_rows = 0
        self._clear()

    def _clear(self) -> None:
        self._ids, self._labels, self._ends = array("i"), array("i"), array("i", [0])

    def add(self, tokens: Tokens) -> None:
        self._ids.extend(tokens.input_ids)
        self._labels.extend(tokens.labels)
        self._ends.append(len(self._ids))
        if len(self._ends) > BATCH_ROWS:
            self._flush()

    def dataset(self) -> datasets.Dataset:
        """In memory, with a fingerprint of the content, so that the same rows are the same data set."""
        self._flush()
        table = datasets.table.InMemoryTable(pa.Table.from_batches(self._batches, SCHEMA))
        return datasets.Dataset(table, fingerprint=self._digest.hexdigest()[:16])

    def _flush(self) -> None:
        count = len(self._ends) - 1
        columns = []
        for values in (self._ends, self._ids, self._labels):
            self._digest.update(values)
            buffer = pa.py_buffer(values)
            columns.append(pa.Array.from_buffers(pa.int32(), len(values), [None, buffer]))
        ends, *texts = columns
        row_ids = pa.array(np.arange(self._num_rows, self._num_rows + count))
        lists = [pa.ListArray.from_arrays(ends, values) for values in texts]
        self._batches.append(pa.record_batch([*lists, row_ids], schema=SCHEMA))
        self._num_rows += count
        self._clear()


def _paths(data: DataPlan) -> str:
    return ", ".join(spec.path for spec in data.datasets)


def _nothing_left(counts: Counter[str], num_held_out: int) -> str:
    if num_held_out:
        return f"`val_set_size` holds out all {num_held_out} rows, none are left for training"
    fates = ", ".join(
        f"{counts[fate]} {fate.replace('_', ' ')}"
        for fate in ("bad", "too_long", "too_short", "untrained")
        if counts[fate]
    )
    return f"no row is left for training, of {counts['read']} examples read" + (
        f": {fates}" if fates else ""
    )
