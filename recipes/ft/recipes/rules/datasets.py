"""Rules about which rows of the data sets are used: splits, shards and lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.references import dataset_entries
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import datasets_of, effective, is_on, quoted
from ft.recipes.schema import FlatRecipe

SLICE: Final = (
    r"\w+(\.\w+)*"
    r"(\[(?P<start>-?\d[\d_]*)?(?P<start_pct>%)?:(?P<stop>-?\d[\d_]*)?(?P<stop_pct>%)?\])?"
    r"(\([^)]*\))?"
)
"""One part of a split; a string, so that it is compiled when it is first needed."""


def _splits_can_be(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The `datasets` library reads `split` as NAME, NAME[START:STOP] or several of them with `+`.

    Bounds are rows, or with % shares up to 100. Anything else is found out only when the data is loaded.
    """
    for at, dataset in datasets_of(recipe):
        if dataset.split is None:
            continue
        for part in re.split(r"\s*\+\s*", dataset.split):
            wrong = _wrong_with(part)
            if wrong:
                yield Finding((*at, "split"), wrong)
                break


def _wrong_with(part: str) -> str:
    found = re.fullmatch(SLICE, part)
    if (
        not found
        or (found["start_pct"] and not found["start"])
        or (found["stop_pct"] and not found["stop"])
    ):
        return f"`{part}` is no split. Write it like `train`, `train[:1000]` or `train[10%:20%]`."
    start, stop = (int(text) if text else None for text in (found["start"], found["stop"]))
    if found["start_pct"] or found["stop_pct"]:
        for bound in (start, stop):
            if bound is not None and abs(bound) > 100:
                return f"`{part}`: {bound} % is more than there is. Write 100 % at most."
    start = start or 0
    if stop is not None and (start < 0) == (stop < 0) and start >= stop:
        return f"`{part}` has no rows: it ends before it begins. Write the smaller bound first."
    return ""


def _shards_are_there(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Shards are counted from 0, so the number of one is smaller than how many there are."""
    data = recipe.data
    places: list[tuple[KeyPath, int | None, str, int | None]] = [
        (
            ("dataset_shard_idx",),
            data.dataset_shard_idx,
            "dataset_shard_num",
            data.dataset_shard_num,
        )
    ]
    for at, dataset in dataset_entries(recipe):
        places.append(((*at, "shards_idx"), dataset.shards_idx, "shards", dataset.shards))
    for key, index, count, number in places:
        if index is not None and number is not None and index >= number:
            message = f"{index} is none of `{count}: {number}`, counted from 0. Write {number - 1} at most."
            yield Finding(key, message, keys=(count,) if len(key) == 1 else ())


def _lengths_leave_rows(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Rows outside the lengths are dropped; where the shortest is longer than the longest, none is left.

    PoSE leaves gaps only up to a length beyond `sequence_len`.
    """
    data = recipe.data
    longest = effective(recipe, "sequence_len")
    shortest = effective(recipe, "min_sample_len")
    if shortest > longest:
        message = f"{shortest} is more than {quoted('sequence_len', longest)}: every row is dropped. Write less."
        yield Finding(("min_sample_len",), message, keys=("sequence_len",))
    if data.eval_sequence_len is not None and shortest > data.eval_sequence_len:
        message = (
            f"{data.eval_sequence_len} is less than {quoted('min_sample_len', shortest)}: no row is left to "
            "evaluate on. Write more."
        )
        yield Finding(("eval_sequence_len",), message, keys=("min_sample_len",))
    if data.use_pose:
        if data.pose_max_context_len is None:
            message = "needs to know for which length. Write `pose_max_context_len`."
            yield Finding(("use_pose",), message, keys=("pose_max_context_len",))
        elif data.pose_max_context_len <= longest:
            message = (
                f"{data.pose_max_context_len} is not more than {quoted('sequence_len', longest)}: "
                "there is no room for gaps. Write more."
            )
            yield Finding(("pose_max_context_len",), message, keys=("sequence_len",))


def _pushing_needs_a_token(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Prepared rows go to a private data set on the hub, which only somebody who is logged in can write."""
    target = recipe.data.push_dataset_to_hub
    if target is not None and recipe.model.hf_use_auth_token is not True:
        message = f"`{target}` can be written only with a token. Write `hf_use_auth_token: true`."
        yield Finding(("push_dataset_to_hub",), message, keys=("hf_use_auth_token",))


def _padding_keeps_one_shape(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Padded to `sequence_len`, all batches have one shape, and GPU memory does not fragment.

    Packed rows are nearly that long anyway.
    """
    if recipe.data.pad_to_sequence_len is not False:
        return
    for key in ("sample_packing", "reward_model"):
        if is_on(recipe, key):
            message = f"`false` beside `{key}: true`: batches differ in shape, which fragments GPU memory. Take it out."
            yield Finding(("pad_to_sequence_len",), message, Severity.WARNING, keys=(key,))
            return


RULES: Final = (
    Rule("R023", _splits_can_be),
    Rule("R024", _shards_are_there),
    Rule("R025", _lengths_leave_rows),
    Rule("R030", _pushing_needs_a_token),
    Rule("R045", _padding_keeps_one_shape),
)
