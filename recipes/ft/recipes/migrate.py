"""Rewrite older spellings in the text of a recipe; everything else stays as it is, byte for byte."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from ft.recipes.errors import FtError, KeyPath, Problem, RecipeError, Severity
from ft.recipes.load import EXTENDS, Recipe, loads
from ft.recipes.meant import is_set, switch
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.spelling import DATASET_LISTS, current_spelling
from ft.recipes.vocabulary import (
    ALIASES,
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    RENAMED,
    fsdp_name,
)

_BOM: Final = "\ufeff"
_BREAK: Final = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_PROPERTIES: Final = re.compile(r"(?:[&!]\S*\s+)*")
"""Anchor and tag, which stand before what they are about."""
_REST_OF_LINE: Final = re.compile(r"[ \t]*(?P<comment>#[^\r\n\x85\u2028\u2029]*)?")
_ITEM: Final = re.compile(r" *(?:- +)+")
_STEP: Final = "  "
_SHOWN: Final = 60
"""Characters of a value in a list of changes."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Change:
    """One older spelling: the line where it stood, counted from 1, and what stands for it now."""

    line: int
    old: str
    new: str
    """Empty: today's spelling is there already, or needs none, so it was taken out."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """A text in today's spelling, and what was changed in it, by line."""

    text: str
    changes: tuple[Change, ...]
    left: tuple[Problem, ...] = ()
    """What is wrong with the new text: words that were taken away, which nothing can be written for by itself."""


def migrate(text: str, source: str) -> Migrated:
    """Rewrite what `spelling` reads as older in `text`; `source` is its name in messages.

    Means the same as before, which is checked. Keys that are not set stay as they are. `extends:` is
    not followed. A text without older spellings comes back as it is.
    Raises: RecipeError if `text` is no recipe, or says two things under an old and a new name;
    FtError if an edit would change what the recipe means, or lose a comment.
    """
    body = text.removeprefix(_BOM)
    recipe = loads(body, source=source)
    before = normalize(recipe)
    _refuse(before)
    if not _older(recipe):
        return Migrated(text, (), _errors(before))
    rewriting = _Rewriting(body, recipe)
    rewriting.run()
    new = rewriting.result()
    after = _prove_same(before, new)
    changes = sorted(rewriting.changes, key=lambda change: change.line)
    return Migrated(text[: len(text) - len(body)] + new, tuple(changes), _errors(after))


def _refuse(before: Normalized) -> None:
    """Raises: RecipeError if it is not clear what the recipe says; FtError if another file decides that."""
    recipe = before.recipe
    values = recipe.values
    problems = [*recipe.problems, *current_spelling(recipe).problems]
    if "batch_size" in values:
        problems += [p for p in before.problems if p.key == ("micro_batch_size",)]
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    # Of an older key that stands twice only one would be rewritten.
    errors += [p for p in recipe.problems if p not in errors and p.key in _older(recipe)]
    if errors:
        raise RecipeError(errors)
    if EXTENDS not in values:
        return
    if is_set(values.get("batch_size")) and not is_set(values.get("micro_batch_size")):
        why = "batch_size depends on micro_batch_size, which may stand in the file that this one extends"
        hint = "write micro_batch_size into this file, or gradient_accumulation_steps instead of batch_size"
        raise _unsafe(recipe, ("batch_size",), why, hint)
    on, off = _flags(values)
    for flag in (*off, *on[1:]):
        why = f"{flag} may decide about a flag of the file that this one extends"
        hint = f"take {flag} out, or write `attn_implementation:` without a value instead to turn off that of the other"
        raise _unsafe(recipe, (flag,), why, hint)


def _prove_same(before: Normalized, text: str) -> Normalized:
    """`text`, read. Raises: FtError unless `text` says what the recipe said before, in today's spelling only."""
    old = before.recipe
    try:
        new = loads(text, source=old.source)
    except RecipeError as error:
        raise _unsafe(old, (), f"it would no longer be a recipe ({error.problems[0]})") from None
    after = normalize(new)
    is_same = (
        current_spelling(new).values == current_spelling(old).values
        and after.flat == before.flat
        and len(_errors(after)) == len(_errors(before))
    )
    if not is_same:
        raise _unsafe(old, (), "it would mean something else")
    for key in _older(new):
        raise _unsafe(old, key, "the key is written in a way that ft migrate cannot edit")
    return after


def _errors(normalized: Normalized) -> tuple[Problem, ...]:
    return tuple(p for p in normalized.problems if p.severity is Severity.ERROR)


def _unsafe(recipe: Recipe, key: KeyPath, why: str, hint: str | None = None) -> FtError:
    where = f"{recipe.mark(key)}: {'.'.join(map(str, key))}" if key else recipe.source
    by_hand = "rewrite it by hand; ft check says which keys have an older spelling"
    return FtError(f"{where} cannot be rewritten safely: {why}", hint=hint or by_hand)


def _older(recipe: Recipe) -> list[KeyPath]:
    """The keys of `recipe` that `spelling` reads as older, as they stand in the file."""
    origin = current_spelling(recipe).origin.values()
    on, off = _flags(recipe.values)
    renamed = [key for key in origin if key[-1] not in ALIASES]
    return list(dict.fromkeys([*renamed, *((flag,) for flag in (*on, *off))]))


def _flags(values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Attention flags that are true, the one that counts first, and those that are false."""
    switches = {flag: switch(values.get(flag)) for flag in ATTENTION_FLAGS}
    on = [flag for flag in ATTENTION_FLAGS if switches[flag] is True]
    return on, [flag for flag in ATTENTION_FLAGS if switches[flag] is False]


# ------------------------------------------------------------------------ what becomes what

_Today = Mapping[str, str | None]
"""Key of today -> its value as text, or None for the value of the older key. Empty: nothing is needed."""


def _top_level(recipe: Recipe) -> dict[str, _Today]:
    """Older key of `recipe` -> what to write today."""
    table: dict[str, _Today] = {old: {new: None} for old, new in RENAMED.items()}
    table["gc_steps"] = {"torch_empty_cache_steps": None, "gc_collect_steps": None}
    accumulation = current_spelling(recipe).values.get("gradient_accumulation_steps")
    table["batch_size"] = {"gradient_accumulation_steps": str(accumulation)}
    on, off = _flags(recipe.values)
    table |= {flag: {} for flag in (*on[1:], *off)}
    table |= {flag: {"attn_implementation": ATTENTION_FLAGS[flag]} for flag in on[:1]}
    return {old: new for old, new in table.items() if is_set(recipe.values.get(old))}


def _in_fsdp(config: Mapping[str, Any]) -> dict[str, _Today]:
    """Older key of `fsdp_config` -> what to write today."""
    names = {key: fsdp_name(key) for key in config if is_set(config[key])}
    return {old: {new: None} for old, new in names.items() if new != old}


# ------------------------------------------------------------------- where everything stands


@dataclass(slots=True, eq=False)
class _Node:
    """A value and its place in the text: `start` is before an anchor or tag, `end` behind the last character."""

    start: int
    end: int
    scalar: str | None = None
    is_plain: bool = False
    is_flow: bool = False
    """A mapping or list in brackets."""
    items: list[_Node] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)
    target: _Node | None = None
    """What an alias stands for."""
    is_mapping: bool = False

    @property
    def real(self) -> _Node:
        return self.target or self

    @property
    def is_empty(self) -> bool:
        return self.start == self.end


@dataclass(slots=True, eq=False)
class _Entry:
    """`key: value` in a mapping."""

    key: _Node
    value: _Node
    mapping: _Node

    @property
    def name(self) -> str:
        """Empty for a key that only an alias writes: what it says stands somewhere else."""
        return self.key.scalar or ""

    @property
    def end(self) -> int:
        return max(self.key.end, self.value.end)


class _Composer:
    """Events -> nodes. PyYAML's own composer forgets where an alias stood."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._events: Iterator[Any] = yaml.parse(text, _Loader)
        self._anchors: dict[Any, _Node] = {}

    def root(self) -> _Node:
        return self._node(next(e for e in self._events if isinstance(e, yaml.NodeEvent)))

    def _node(self, event: Any) -> _Node:
        node = _Node(event.start_mark.index, event.end_mark.index)
        if isinstance(event, yaml.AliasEvent):
            node.target = self._anchors[event.anchor]
            return node
        if event.anchor:
            self._anchors[event.anchor] = node
        if isinstance(event, yaml.ScalarEvent):
            node.scalar = event.value
            node.is_plain = not event.style
            # The end of a block scalar is the beginning of what comes next.
            node.end = node.start + len(self._text[node.start : node.end].rstrip())
            return node
        self._fill(node, event)
        return node

    def _fill(self, node: _Node, event: Any) -> None:
        node.is_flow = bool(event.flow_style)
        node.is_mapping = isinstance(event, yaml.MappingStartEvent)
        inner: Any  # An event always has a mark here; the stubs allow none.
        for inner in self._events:
            end = inner.end_mark.index
            if isinstance(inner, yaml.CollectionEndEvent):
                # The end of a block is the beginning of what comes next.
                node.end = end if node.is_flow else node.end
                return
            child = self._node(inner)
            if node.is_mapping:
                value = self._node(next(self._events))
                node.entries.append(_Entry(child, value, node))
                child = value
            else:
                node.items.append(child)
            node.end = max(node.end, child.end)


def _layers(node: _Node) -> list[_Node]:
    """The mapping and all that it merges with `<<`, the one that wins first."""
    found: dict[int, _Node] = {}
    waiting = [node]
    while waiting:
        mapping = waiting.pop().real
        if not mapping.is_mapping or id(mapping) in found:
            continue
        found[id(mapping)] = mapping
        for entry in reversed(mapping.entries):
            if entry.name == "<<" and entry.key.is_plain:
                waiting.extend(reversed(entry.value.real.items or [entry.value]))
    return list(found.values())


def _value_at(node: _Node, name: str) -> _Node | None:
    """The value that counts of `name` in a mapping."""
    entries = (entry for mapping in _layers(node) for entry in mapping.entries)
    return next((entry.value.real for entry in entries if entry.name == name), None)


# ------------------------------------------------------------------------------------- edits


class _Rewriting:
    """Collects edits of one text; nothing is changed before `result`."""

    def __init__(self, text: str, recipe: Recipe) -> None:
        self.changes: list[Change] = []
        self._text = text
        self._recipe = recipe
        self._line_starts = [0, *(found.end() for found in _BREAK.finditer(text))]
        self._edits: list[tuple[int, int, str]] = []
        self._gone: list[_Entry] = []
        self._done: set[int] = set()

    def run(self) -> None:
        """Look for older spellings where `spelling` does."""
        values = self._recipe.values
        root = _Composer(self._text).root()
        self._mapping(root, values, _top_level(self._recipe))
        config = _value_at(root, "fsdp_config")
        if config and isinstance(values.get("fsdp_config"), dict):
            self._mapping(config, values["fsdp_config"], _in_fsdp(values["fsdp_config"]))
        for key in DATASET_LISTS:
            listed, node = values.get(key), _value_at(root, key)
            if node and isinstance(listed, list):
                for dataset, item in zip(listed, node.items, strict=True):
                    self._dataset(item, dataset)
            elif node:
                self._dataset(node, listed)

    def result(self) -> str:
        """The text with all edits, made from its end so that positions stay true."""
        text, begun = self._text, len(self._text)
        edits = [*self._edits, *((start, end, "") for start, end in self._cuts())]
        for start, end, new in sorted(edits, key=lambda edit: edit[:2])[::-1]:
            if end > begun:
                raise self._unsafe(start, "two older spellings stand too close to each other")
            text, begun = text[:start] + new + text[end:], start
        return text

    def _cuts(self) -> list[tuple[int, int]]:
        """What to take out; cuts that overlap are one."""
        cuts: list[tuple[int, int]] = []
        for start, end in sorted(self._cut(entry) for entry in self._gone):
            if cuts and start <= cuts[-1][1]:
                cuts[-1] = (cuts[-1][0], max(end, cuts[-1][1]))
            else:
                cuts.append((start, end))
        return cuts

    def _mapping(self, node: _Node, values: Mapping[str, Any], table: Mapping[str, _Today]) -> None:
        for mapping in self._new_layers(node):
            siblings = {entry.name: entry for entry in mapping.entries}
            for entry in mapping.entries:
                if entry.name in table:
                    self._replace(entry, table[entry.name], values, siblings)

    def _new_layers(self, node: _Node) -> Iterator[_Node]:
        """What is written once is edited once, however many aliases it has."""
        for mapping in _layers(node):
            if id(mapping) not in self._done:
                self._done.add(id(mapping))
                yield mapping

    def _replace(
        self,
        entry: _Entry,
        today: _Today,
        values: Mapping[str, Any],
        siblings: Mapping[str, _Entry],
    ) -> None:
        """Write `today` where `entry` stands; what says the same already needs nothing."""
        wanted = {new: text for new, text in today.items() if not is_set(values.get(new))}
        self._note(entry, [f"{new}: {text or self._shown(entry)}" for new, text in wanted.items()])
        for new in [new for new in wanted if new in siblings]:
            self._set_empty(siblings[new], wanted.pop(new) or self._copied(entry, siblings[new]))
        if not wanted:
            self._remove(entry)
            return
        *others, last = wanted
        for new in others:
            self._insert_before(entry, f"{self._like(entry, new)}: {self._copied(entry, entry)}")
        self._rename(entry, last)
        text = wanted[last]
        if text is not None:
            self._edit(self._content(entry.value), entry.value.end, text)

    def _dataset(self, node: _Node, values: Any) -> None:
        """Older keys of one data set go below the key of today."""
        if not isinstance(values, dict):
            return
        for mapping in self._new_layers(node):
            entries = [entry for entry in mapping.entries if entry.name in DATASET_RENAMED]
            wanted: list[tuple[_Entry, str]] = []
            for entry in entries:
                key, sub = DATASET_RENAMED[entry.name]
                properties = values.get(key) or {}
                if not is_set(values.get(entry.name)) or not isinstance(properties, dict):
                    continue
                is_there = is_set(properties.get(sub))
                self._note(entry, [] if is_there else [f"{key}.{sub}: {self._shown(entry)}"])
                if is_there:
                    self._remove(entry)
                else:
                    wanted.append((entry, sub))
            if wanted:
                self._below(mapping, DATASET_RENAMED[wanted[0][0].name][0], wanted)

    def _below(self, mapping: _Node, key: str, wanted: list[tuple[_Entry, str]]) -> None:
        """Move the values of `wanted` below `key`, which may be there already."""
        existing = next((entry for entry in mapping.entries if entry.name == key), None)
        if existing is None:
            nest = self._nest_in_flow if mapping.is_flow else self._nest
            nest(key, wanted)
        elif existing.value.is_mapping:
            self._merge_into(existing.value, wanted)
        elif existing.value.target:
            raise self._unsafe(existing.key.start, f"other data sets share its {key}")
        else:
            texts = [f"{sub}: {self._copied(entry, None)}" for entry, sub in wanted]
            self._set_empty(existing, f"{{{', '.join(texts)}}}")
        for entry, _ in wanted if existing else []:
            self._remove(entry)

    def _nest(self, key: str, wanted: list[tuple[_Entry, str]]) -> None:
        """`key:` and, indented below it, the entries: those in one block stay there, others come up."""
        first = wanted[0][0]
        siblings = first.mapping.entries
        at = siblings.index(first)
        num_together = 0
        while siblings[at + num_together : at + num_together + 1] == [
            entry for entry, _ in wanted[num_together : num_together + 1]
        ]:
            num_together += 1
            if num_together == len(wanted):
                break
        self._insert_before(first, f"{self._like(first, key)}:", deeper=True)
        for entry, sub in wanted[num_together:]:
            text = f"{self._like(entry, sub)}: {self._copied(entry, first)}"
            self._insert_before(first, text, deeper=True)
            self._remove(entry)
        for entry, sub in wanted[:num_together]:
            if entry is not first:
                self._indentation(entry)
                self._edit(entry.key.start, entry.key.start, _STEP)
            self._rename(entry, sub)

    def _nest_in_flow(self, key: str, wanted: list[tuple[_Entry, str]]) -> None:
        (first, sub), *others = wanted
        more = [f", {self._like(entry, to)}: {self._copied(entry, first)}" for entry, to in others]
        self._edit(first.key.start, first.key.start, f"{self._like(first, key)}: {{")
        self._rename(first, sub)
        self._edit(first.end, first.end, f"{''.join(more)}}}")
        for entry, _ in others:
            self._remove(entry)

    def _merge_into(self, target: _Node, wanted: list[tuple[_Entry, str]]) -> None:
        """Put the entries of `wanted` before those of a mapping that is there."""
        siblings = {entry.name: entry for entry in target.entries}
        for entry, sub in wanted:
            if sub in siblings:
                self._set_empty(siblings[sub], self._copied(entry, siblings[sub]))
                continue
            text = f"{sub}: {self._copied(entry, None if target.is_flow else entry)}"
            if target.entries:
                self._insert_before(target.entries[0], text)
            else:
                inside = self._content(target) + 1
                separator = ", " if entry is not wanted[-1][0] else ""
                self._edit(inside, inside, text + separator)

    def _set_empty(self, entry: _Entry, text: str) -> None:
        """Give a value to a key that is there but not set."""
        if not entry.value.is_empty:
            self._edit(entry.value.start, entry.value.end, text)
            return
        colon = re.compile(r"\s*:").match(self._text, entry.key.end)
        at = colon.end() if colon else entry.key.end
        self._edit(at, at, f" {text}" if colon else f": {text}")

    def _insert_before(self, entry: _Entry, text: str, *, deeper: bool = False) -> None:
        """A line above `entry`, or a place before it in brackets. `deeper`: `entry` goes below it."""
        start = entry.key.start
        if entry.mapping.is_flow:
            separator = ", "
        else:
            separator = self._break_near(start) + self._indentation(entry)
            separator += _STEP if deeper else ""
        self._edit(start, start, text + separator)

    def _rename(self, entry: _Entry, name: str) -> None:
        self._edit(self._content(entry.key), entry.key.end, self._like(entry, name))

    def _remove(self, entry: _Entry) -> None:
        """Take an entry out later, when it is known which others go."""
        value = entry.value
        between = self._content(value) if value.scalar is not None else entry.end
        if "#" in self._text[entry.key.end : between]:
            raise self._unsafe(entry.key.start, "a comment stands between the key and its value")
        self._gone.append(entry)

    def _cut(self, entry: _Entry) -> tuple[int, int]:
        """What goes with an entry: its whole line, but never a comment, nor what else stands there."""
        start, end = entry.key.start, entry.end
        if entry.mapping.is_flow:
            comma = re.compile(r"\s*,").match(self._text, end)
            end = comma.end() if comma else end
        rest = _REST_OF_LINE.match(self._text, end)
        assert rest is not None  # It matches nothing as well.
        newline = _BREAK.match(self._text, rest.end())
        line_start = self._line_start(start)
        ends_line = newline is not None or rest.end() == len(self._text)
        if ends_line and not self._text[line_start:start].strip():
            if rest["comment"]:
                return start, rest.start("comment")
            return line_start, newline.end() if newline else rest.end()
        if not entry.mapping.is_flow:
            return self._cut_behind_dash(entry, rest)
        if end > entry.end:
            return start, end + len(rest[0]) if not rest["comment"] else end
        before = re.search(r",[ \t]*\Z", self._text[:start])
        return before.start() if before else start, end

    def _cut_behind_dash(self, entry: _Entry, rest: re.Match[str]) -> tuple[int, int]:
        """The first key of a data set goes; the next one that stays takes its place."""
        start = entry.key.start
        self._indentation(entry)
        if rest["comment"]:
            return start, rest.start("comment")
        stay = [
            other.key.start
            for other in entry.mapping.entries
            if other.key.start > start and other not in self._gone
        ]
        between = _BREAK.split(self._text[entry.end : stay[0]]) if stay else []
        if any("#" in line or not line.strip() for line in between[1:-1]) or not stay:
            return len(self._text[:start].rstrip(" ")), entry.end
        return start, stay[0]

    def _copied(self, entry: _Entry, place: _Entry | None) -> str:
        """The value of `entry` as text that can stand at `place`; None: anywhere in brackets."""
        node = entry.value
        text = self._text[self._content(node) : node.end]
        in_flow = place is None or place.mapping.is_flow
        if node.scalar is not None:
            needs_quotes = node.is_plain and in_flow and re.search(r"[][{},]", text)
            if needs_quotes or _BREAK.search(text):
                return json.dumps(node.scalar, ensure_ascii=False)
        elif _BREAK.search(text) or (node.target is None and not node.is_flow):
            raise self._unsafe(entry.key.start, "its value has more than one line")
        return text

    def _note(self, entry: _Entry, today: list[str]) -> None:
        old = f"{entry.name}: {self._shown(entry)}"
        self.changes.append(Change(self._line(entry.key.start), old, ", ".join(today)))

    def _shown(self, entry: _Entry) -> str:
        text = " ".join(self._text[entry.value.start : entry.value.end].split())
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

    def _like(self, entry: _Entry, name: str) -> str:
        """`name` in the quotes that the key of `entry` has."""
        quote = self._text[self._content(entry.key)]
        return f"{quote}{name}{quote}" if quote in {"'", '"'} else name

    def _content(self, node: _Node) -> int:
        """Where a node begins behind its anchor and tag."""
        found = _PROPERTIES.match(self._text, node.start, node.end)
        return found.end() if found else node.start

    def _indentation(self, entry: _Entry) -> str:
        """White space as wide as what stands before a key of a block. Raises: FtError if that is more than dashes."""
        start = entry.key.start
        before = self._text[self._line_start(start) : start]
        if before.strip(" ") and not _ITEM.fullmatch(before):
            raise self._unsafe(start, "something else stands before it in its line")
        return " " * len(before)

    def _line_start(self, position: int) -> int:
        return self._line_starts[self._line(position) - 1]

    def _break_near(self, position: int) -> str:
        """The line end of this line, else of the first one."""
        found = _BREAK.search(self._text, position) or _BREAK.search(self._text)
        return found[0] if found else "\n"

    def _line(self, position: int) -> int:
        return bisect_right(self._line_starts, position)

    def _edit(self, start: int, end: int, new: str) -> None:
        self._edits.append((start, end, new))

    def _unsafe(self, position: int, why: str) -> FtError:
        where = f"{self._recipe.source}:{self._line(position)}"
        hint = "rewrite it by hand; ft check says which keys have an older spelling"
        return FtError(f"{where}: cannot be rewritten safely: {why}", hint=hint)
