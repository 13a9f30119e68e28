"""Rules about rows that are read while training, so that nobody knows all of them before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import datasets_of, value_of
from ft.recipes.schema import FlatRecipe


def _stream(recipe: FlatRecipe) -> str:
    """What makes the recipe read rows while training; empty where nothing does."""
    if recipe.data.pretraining_dataset is not None:
        return "`pretraining_dataset`"
    return "`streaming: true`" if recipe.data.streaming else ""


STREAM_KEYS: Final = ("pretraining_dataset", "streaming")


def _stream_key(recipe: FlatRecipe) -> KeyPath:
    return (STREAM_KEYS[0] if recipe.data.pretraining_dataset is not None else STREAM_KEYS[1],)


def _streams_end(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Nobody knows how many rows a stream has, so epochs do not say how long a run is.

    The learning rate needs to know: it falls to the end of the run.
    """
    if _stream(recipe) and recipe.optim.max_steps is None:
        message = (
            "rows are not counted before training, so the run has no known end. Write `max_steps`."
        )
        yield Finding(_stream_key(recipe), message, keys=("max_steps", *STREAM_KEYS))


NEED_ALL_ROWS: Final = {
    "val_set_size": ("rows cannot be held out", Severity.ERROR, "Write 0, or use `test_datasets`."),
    "dataset_exact_deduplication": ("rows cannot be compared", Severity.ERROR, "Take it out."),
    "include_tokens_per_second": ("tokens cannot be counted", Severity.ERROR, "Take it out."),
    "group_by_length": ("rows cannot be sorted", Severity.WARNING, "Take it out."),
}
"""Key -> why not with a stream, how bad that is, and the way out."""


def _streams_are_not_known(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Rows of a stream come one after the other while training: what needs all of them before, cannot be done."""
    stream = _stream(recipe)
    if not stream:
        return
    for key, (why, severity, way_out) in NEED_ALL_ROWS.items():
        value = value_of(recipe, key)
        if value:
            shown = "`true`" if value is True else f"{value:g}"
            message = f"{shown} beside {stream}: {why} before training. {way_out}"
            yield Finding((key,), message, severity, keys=STREAM_KEYS)
    for at, dataset in datasets_of(recipe):
        if at[0] != "test_datasets" and dataset.split is not None and "[" in dataset.split:
            message = f"`{dataset.split}` beside {stream}: a part cannot be cut out of a stream. Write a whole split."
            yield Finding((*at, "split"), message, keys=STREAM_KEYS)


def _one_stream(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Packing reads ahead in one stream, and of several entries of `pretraining_dataset` only the first is read."""
    texts, data = recipe.data.pretraining_dataset, recipe.data
    if isinstance(texts, tuple):
        key, listed = "pretraining_dataset", len(texts)
    elif texts is None and data.streaming and data.datasets:
        key, listed = "datasets", len(data.datasets)
    else:
        return
    if listed > 1 and data.sample_packing:
        message = f"{listed} data sets cannot be packed while streaming, only one can. Write `sample_packing: false`."
        if key == "pretraining_dataset":
            message = (
                f"of {listed} data sets only the first can be packed while streaming. Keep one."
            )
        yield Finding((key,), message, keys=("sample_packing", "streaming"))
    elif listed > 1 and key == "pretraining_dataset":
        message = f"of {listed} data sets Axolotl reads only the first. Keep one."
        yield Finding((key,), message, Severity.WARNING)


def _streaming_is_said(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Today `pretraining_dataset` streams by itself; Axolotl says that a later version will do so only if told."""
    data = recipe.data
    if data.pretraining_dataset is not None and not data.streaming:
        message = "is a stream, which a later Axolotl will not take for granted. Write `streaming: true` as well."
        yield Finding(("pretraining_dataset",), message, Severity.WARNING, keys=("streaming",))


RULES: Final = (
    Rule("R032", _streams_end),
    Rule("R033", _streams_are_not_known),
    Rule("R034", _one_stream),
    Rule("R035", _streaming_is_said),
)
