"""What a layer of a recipe takes out of those below it: a file out of what it extends, `--set` out of all files.

A key goes over each of its spellings, and over the key that decides the same thing. Within one layer both stay:
nobody knows which of the two was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ft.recipes.errors import KeyPath, Mark
from ft.recipes.meant import is_set, switch, whole
from ft.recipes.vocabulary import (
    ALIASES,
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    EXCLUSIVE,
    FSDP_PREFIX,
    NOT_SET,
    RENAMED,
    fsdp_name,
)

Marks = Mapping[KeyPath, Mark]
Moves = dict[KeyPath, KeyPath | None]
"""Key of a lower layer -> its name from now on, so that mappings are merged; None: it goes."""

_SPELLINGS: Final = (*ALIASES.items(), *RENAMED.items())
_OTHER_NAME: Final = {**dict(_SPELLINGS), **{new: old for old, new in _SPELLINGS}}
_PARTNER: Final = {**dict(EXCLUSIVE), **{other: one for one, other in EXCLUSIVE}}
_BATCH: Final = ("gradient_accumulation_steps", "batch_size")
_COLLECT: Final = {
    "torch_empty_cache_steps": "gc_collect_steps",
    "gc_collect_steps": "torch_empty_cache_steps",
}
"""The two keys of which `gc_steps` sets both."""
_FSDP: Final = "fsdp_config"


def moves(lower: Mapping[str, Any], over: Mapping[str, Any]) -> Moves:
    """What a file with the values `over` takes out of `lower`."""
    found: Moves = {}
    for key, value in over.items():
        found |= rivals(lower, (key,), value)
    block = over.get(_FSDP)
    for key, value in block.items() if isinstance(block, Mapping) else ():
        found |= rivals(lower, (_FSDP, key), value)
    if "gc_steps" in over:
        found.pop(("gc_steps",), None)  # It is replaced as it is, whatever else stands beside it.
    return found


def rivals(lower: Mapping[str, Any], path: KeyPath, value: object) -> Moves:
    """What goes out of `lower` when a layer above sets the key at `path`, in a list or block too, to `value`."""
    found: Moves = {}
    if len(path) == 1:
        key = str(path[0])
        for rival in (*_attention(lower, key, value), *_same_decision(key, value)):
            found[(rival,)] = None
        if key in _COLLECT:
            found[("gc_steps",)] = None if _COLLECT[key] in lower else (_COLLECT[key],)
    found |= _other_spellings(lower, path, value)
    found |= dict.fromkeys(_of_data_set(path))
    return {key: new for key, new in found.items() if _is_there(lower, key)}


def give_way(values: dict[str, Any], marks: Marks, moves: Moves) -> Marks:
    """Change `values` as `moves` says; returns the marks that they have then."""
    for old, new in moves.items():
        block = _at(values, old[:-1])
        value = block.pop(old[-1])
        if new is not None:
            block[new[-1]] = value
    moved = ((_moved(key, moves), mark) for key, mark in marks.items())
    return {key: mark for key, mark in moved if key is not None} if moves else marks


def _moved(key: KeyPath, moves: Moves) -> KeyPath | None:
    for end in range(1, len(key) + 1):
        if key[:end] in moves:
            new = moves[key[:end]]
            return new and (*new, *key[end:])
    return key


def _other_spellings(lower: Mapping[str, Any], path: KeyPath, value: object) -> Moves:
    """The same key under another name; it takes the name of the layer above."""
    top = str(path[0])
    if top in _OTHER_NAME:
        other = (_OTHER_NAME[top],)
        if top not in lower:
            return {other: (top,)}
        return {other: None} if len(path) == 1 and not isinstance(value, Mapping) else {}
    block = lower.get(_FSDP)
    if top != _FSDP or len(path) < 2 or not isinstance(block, Mapping):
        return {}
    key, today = str(path[1]), fsdp_name(str(path[1]))
    names = {today, f"{FSDP_PREFIX}{today}", "version"} - {key}
    new = None if key in block else (_FSDP, key)
    return {(_FSDP, name): new for name in names if fsdp_name(name) == today}


def _attention(lower: Mapping[str, Any], key: str, value: object) -> Iterator[str]:
    """`attn_implementation` and the flags that say the same. A flag that is off takes out what it would switch on."""
    today = "attn_implementation"
    is_off = switch(value) is False or not is_set(value)
    if key == today or (key in ATTENTION_FLAGS and switch(value)):
        yield from {today, *ATTENTION_FLAGS} - {key}
    elif is_off and key in ATTENTION_FLAGS and lower.get(today) == ATTENTION_FLAGS[key]:
        yield today


def _same_decision(key: str, value: object) -> Iterator[str]:
    """Other keys that decide what `key` does. A key that is taken back decides nothing, but today's spelling does."""
    today, older = _BATCH
    decides = is_set(value) and not (key in NOT_SET and whole(value) in NOT_SET[key][0])
    if key == today:
        yield older
    elif key == older and decides:
        yield today
    elif key == "gc_steps" and decides:
        yield from _COLLECT
    elif key in _PARTNER and decides:
        yield _PARTNER[key]


def _of_data_set(path: KeyPath) -> Iterator[KeyPath]:
    """Older keys of a data set and what they stand for, wherever the data set is."""
    for old, (block, sub) in DATASET_RENAMED.items():
        if path[-1] == old:
            yield (*path[:-1], block, sub)
        elif path[-1] == block:
            yield (*path[:-1], old)
        elif path[-2:] == (block, sub):
            yield (*path[:-2], old)


def _is_there(values: Mapping[str, Any], path: KeyPath) -> bool:
    block = _at(values, path[:-1])
    return isinstance(block, Mapping) and path[-1] in block


def _at(values: Any, path: KeyPath) -> Any:
    """The value at `path`; None where there is none."""
    for part in path:
        if isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
    return values
