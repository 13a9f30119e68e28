"""All rows of a run, ready to be trained on: read, tokenized, cut to length, split."""

from __future__ import annotations

import errno
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from ft.recipes import prepared as cache
from ft.recipes.plan import RunPlan
from ft.runtime.data import key, pool
from ft.runtime.data.engine import EngineError
from ft.runtime.data.order import permutation
from ft.runtime.data.row import DataError
from ft.runtime.data.table import Table, opened, renumbered
from ft.runtime.data.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ft.data")

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

CANNOT_KEEP = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS),
}
"""What a disk says that is full, not ours, or knows no locks."""

# Sets the held-out rows apart from the shuffles, whose seeds are [seed, epoch].
HELD_OUT = (1,)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the preparation is."""

    examples: int
    tokens: int
    bytes: int
    """Of the files, that were read."""


Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Columns `input_ids`, `labels` (int32) and `row_id` (int64), in the order of the files.

    `row_id` numbers all kept rows, those of `eval` too, so it names the same row in every run of the plan; those of
    `test_datasets` follow those of `datasets`. `counts`: `read` examples are `bad` ones and those that gave `rows` =
    too_long + too_short + untrained + kept; `truncated` ones are among the kept, unless nothing trained was left of
    them. `tokens` and `trained_tokens` are of the kept rows; trained is what the loss is a mean of, so never a row's
    first token.
    """

    train: datasets.Dataset
    eval: datasets.Dataset | None
    rows: datasets.Dataset
    """Both of them: row `n` is the one whose `row_id` is n."""
    counts: dict[str, int]
    folders: tuple[Path, ...] = ()
    """Where they are kept, and the rows that were skipped: those of `datasets`, then those of `test_datasets`."""
    was_there: bool = False
    """Whether they were found instead of made."""


def prepare(
    plan: RunPlan,
    run_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    watch: Watch | None = None,
    *,
    root: Path | None = None,
    num_processes: int = 1,
) -> PreparedData:
    """Read every data set of the plan and make rows of it, the same ones whoever calls.

    With `root` they are kept there, and found again by any plan that gives the same rows; without it no file is
    written. `watch` is called after every chunk, and while another process makes the same rows; what it raises ends
    the preparation.
    Raises: DataError naming the file and the row, or saying that nothing is left to train or to evaluate on.
    """
    work = Work(plan.data, run_folder, tokenizer, num_processes)
    made = _proved(work, plan, watch, root)
    rows, counts = made.rows, made.counts
    train, held_out = split(len(rows), plan.data.val_set_size, plan.optim.seed)
    if not len(train):
        raise DataError(_paths(work), None, "", _nothing_left(counts, len(held_out)))
    if plan.data.test_datasets:
        work = replace(work, evaluates=True)
        others = _proved(work, plan, _after(made, plan, watch), root)
        if not len(others.rows):
            raise DataError(_paths(work), None, "", _nothing_left(others.counts, 0, "evaluation"))
        return _both(made, others)
    if not len(held_out):
        return made
    return replace(
        made,
        train=rows.select(train, keep_in_memory=True),
        eval=rows.select(held_out, keep_in_memory=True),
    )


def _both(made: PreparedData, others: PreparedData) -> PreparedData:
    """Rows to train on and rows to evaluate on, as one whole."""
    rows = renumbered(others.rows, len(made.rows))
    return PreparedData(
        train=made.rows,
        eval=rows,
        rows=datasets.concatenate_datasets([made.rows, rows]),
        counts={name: made.counts[name] + others.counts[name] for name in COUNTS},
        folders=made.folders + others.folders,
        was_there=made.was_there and others.was_there,
    )


def _after(made: PreparedData, plan: RunPlan, watch: Watch | None) -> Watch | None:
    """Progress that goes on where the rows to train on ended."""
    if watch is None:
        return None
    sizes = {entry.path: entry.size for entry in plan.inputs}
    size = sum(sizes.get(spec.path, 0) for spec in plan.data.datasets)
    read, tokens = made.counts["read"], made.counts["tokens"]

    def go_on(at: Progress) -> None:
        if at.examples:
            at = Progress(at.examples + read, at.tokens + tokens, at.bytes + size)
        watch(at)

    return go_on


def _proved(work: Work, plan: RunPlan, watch: Watch | None, root: Path | None) -> PreparedData:
    """As `_kept`, with the fast engine, unless the rows themselves show that it is not the same."""
    try:
        return _kept(work, plan, watch, root)
    except EngineError as error:
        log.warning("%s; all rows are made again without it", error)
        return _kept(replace(work, fast=False), plan, watch, root)


def _kept(work: Work, plan: RunPlan, watch: Watch | None, root: Path | None) -> PreparedData:
    """As `_rows`; in memory where nothing can be kept, for no training should end because of a cache."""
    try:
        return _rows(work, plan, watch, root)
    except OSError as error:
        if root is None or error.errno not in CANNOT_KEEP:
            raise
        log.warning("prepared rows cannot be kept in %s: %s; they are made in memory", root, error)
        return _rows(work, plan, watch, None)


def _rows(work: Work, plan: RunPlan, watch: Watch | None, root: Path | None) -> PreparedData:
    """All kept rows of `work`, not split yet."""
    if root is None:
        table = Table()
        counts = build(work, table, watch)
        rows = table.dataset()
        return PreparedData(rows, None, rows, counts)
    made_of = key.made_of(plan, work)

    def into(folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
        table = Table(folder / cache.ROWS)
        with (folder / cache.BAD).open("w", encoding="utf-8") as bad:
            counts = build(work, table, watch, lambda error: bad.write(error.to_json() + "\n"))
        table.close()
        return counts, made_of

    def waiting() -> None:
        if watch is not None:
            watch(Progress(0, 0, 0))

    name = key.of(made_of)
    folder, meta, was_there = cache.entry(root, name, into, waiting=waiting)
    rows = opened(folder / cache.ROWS, name[:16])
    assert len(rows) == meta.counts["kept"], "an entry of the cache is not what it says"
    return PreparedData(rows, None, rows, meta.counts, (folder,), was_there)


def build(
    work: Work,
    table: Table,
    watch: Watch | None = None,
    on_bad: Callable[[DataError], object] = lambda _: None,
) -> dict[str, int]:
    """Make all rows into `table`; returns the counts. Raises: DataError."""
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    size = 0
    for chunk, made in pool.made(work):
        table.add(made)
        counts.update(made.counts)
        for error in made.bad:
            on_bad(error)
        size += chunk.size
        if watch is not None:
            watch(Progress(counts["read"], counts["tokens"], size))
    return {name: counts[name] for name in COUNTS}


def split(num_rows: int, val_set_size: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and held-out rows, both ascending. A share up to 1 is rounded up."""
    if val_set_size <= 1:
        # Rounded first: 0.1 + 0.2 of 10 rows are 3, not 4.
        num_held_out = math.ceil(round(val_set_size * num_rows, 9))
    else:
        num_held_out = min(int(val_set_size), num_rows)
    shuffled = permutation(num_rows, np.random.SeedSequence(seed, spawn_key=HELD_OUT))
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


def _paths(work: Work) -> str:
    return ", ".join(spec.path for spec in work.specs)


def _nothing_left(counts: dict[str, int], num_held_out: int, use: str = "training") -> str:
    if num_held_out:
        return f"`val_set_size` holds out all {num_held_out} rows, none are left for training"
    fates = ", ".join(
        f"{counts[fate]} {fate.replace('_', ' ')}"
        for fate in ("bad", "too_long", "too_short", "untrained")
        if counts[fate]
    )
    return f"no row is left for {use}, of {counts['read']} examples read" + (
        f": {fates}" if fates else ""
    )
