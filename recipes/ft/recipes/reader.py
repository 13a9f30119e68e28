"""YAML text -> plain values, each with its line. What a recipe never needs is refused: tags, depth, bombs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from ft.recipes.errors import KeyPath, Mark, Problem, RecipeError, Severity
from ft.recipes.syntax import BREAK, explained

MAX_NODES: Final = 20_000
"""Values after aliases are expanded: a small file can stand for a huge one."""
MAX_DEPTH: Final = 32
MAX_NUMBER_CHARACTERS: Final = 100
"""Longer ones cost seconds to read, or more."""
MAX_KEY_CHARACTERS: Final = 200

_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = {"str", "merge", "value"}
"""`<<` and `=` where a value stands are text; only as keys do they mean something."""
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "timestamp": "a date",
}
"""Tags of values that are not text -> what they are."""
_OCTAL: Final = re.compile(r"[-+]?0[0-7_]+")
_NO_TEXT: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not allow in a file."""
_BROKEN: Final = object()
"""Stands for a value that has a problem."""

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc]  # the C loader exists only where PyYAML was built with libyaml
    """Safe YAML 1.1 as Axolotl reads it, but `3e-4` is a number, as everybody means it."""


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(slots=True)
class Document:
    """What a text says. A value with a problem is left out of its mapping, and null in its list."""

    values: Any = None
    is_empty: bool = True
    """Nothing but comments and white space."""
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read(text: str, source: str) -> Document:
    """Raises: RecipeError where nothing of the text can be read, or more than a recipe may hold."""
    found = _NO_TEXT.search(text)
    if found:
        line = len(BREAK.findall(text, 0, found.start())) + 1
        message = f"a control character (U+{ord(found[0]):04X}); is this a text file?"
        raise broken(source, line, message)
    try:
        _measure(text, source)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return _Reader(loader, source).document(node) if node is not None else Document()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise broken(source, *explained(error, text, _Loader)) from None
    except yaml.YAMLError as error:
        raise broken(source, 1, f"not YAML: {str(error).partition(chr(10))[0]}") from None


def broken(source: str, line: int, message: str) -> RecipeError:
    """A recipe with this one problem, which is about no key."""
    return RecipeError([Problem("", (), message, Mark(source, line))])


def _measure(text: str, source: str) -> None:
    """Raises: RecipeError if the text nests too deep for a reader that calls itself, or is too long."""
    depth = nodes = 0
    event: Any  # An event always has a mark here; the stubs allow none.
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH:
            raise broken(source, event.start_mark.line + 1, _TOO_DEEP)
        if nodes > MAX_NODES:
            message = f"too much for a recipe: it has more than {MAX_NODES} values"
            raise broken(source, event.start_mark.line + 1, message)


_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"


_Pair = tuple[yaml.Node, yaml.Node]


def _is_same(one: yaml.Node, other: yaml.Node) -> bool:
    """Whether two values are written alike, but for white space and quotes of another kind."""
    left, seen = [(one, other)], set[tuple[int, int]]()
    while left:
        mine, its = left.pop()
        if mine is its or (id(mine), id(its)) in seen:
            continue  # An alias, which may contain itself, is compared once.
        seen.add((id(mine), id(its)))
        if mine.tag != its.tag or type(mine) is not type(its):
            return False
        if isinstance(mine, yaml.ScalarNode):
            if mine.value != its.value:
                return False
            continue
        if len(mine.value) != len(its.value):
            return False
        for pair in zip(mine.value, its.value, strict=True):
            left += zip(*pair, strict=True) if isinstance(mine, yaml.MappingNode) else [pair]
    return True


class _Reader:
    """Turns nodes into values, noting lines and problems on the way."""

    def __init__(self, loader: Any, source: str) -> None:
        self.loader = loader
        self.source = source
        self.found = Document(is_empty=False)
        self._open: dict[int, yaml.Node] = {}
        self._merged: dict[int, dict[str, _Pair]] = {}
        self._count = 0

    def document(self, node: yaml.Node) -> Document:
        values = self._read(node, ())
        if values is _BROKEN:
            raise RecipeError(self.found.problems)
        self.found.values = values
        return self.found

    def _read(self, node: yaml.Node, path: KeyPath) -> Any:
        self._spend(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        expected = f"{_TAG}seq" if isinstance(node, yaml.SequenceNode) else f"{_TAG}map"
        if node.tag != expected:
            return self._refuse_tag(node, path)
        with self._inside(node, path):
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            items = [self._read_at(item, (*path, i), item) for i, item in enumerate(node.value)]
            return [None if item is _BROKEN else item for item in items]

    def _read_at(self, node: yaml.Node, path: KeyPath, at: yaml.Node) -> Any:
        self.found.lines[path] = at.start_mark.line + 1
        return self._read(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values = {}
        for name, (key_node, value_node) in self._pairs(node, path).items():
            value = self._read_at(value_node, (*path, name), key_node)
            if value is not _BROKEN:
                values[name] = value
        return values

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, _Pair]:
        """Name -> key and value. `<<` is merged: an own key wins, then the mapping named first."""
        if id(node) in self._merged:
            return self._merged[id(node)]
        own: dict[str, _Pair] = {}
        merged: list[_Pair] = []
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                merged.append((key, value))
                continue
            name = self._name(key, path)
            if name in own:
                self._twice((key, value), own[name], (*path, name))
            elif name is not None:
                own[name] = (key, value)
        pairs: dict[str, _Pair] = {}
        for key, value in merged:
            for base in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                for name, pair in self._base(key, base, path).items():
                    if name not in own:
                        pairs.setdefault(name, pair)
        self._merged[id(node)] = pairs | own
        return self._merged[id(node)]

    def _twice(self, pair: _Pair, first: _Pair, path: KeyPath) -> None:
        """The first one counts; that the other says the same does no harm."""
        line = f"first in line {first[0].start_mark.line + 1}"
        if _is_same(pair[1], first[1]):
            message = f"the key stands twice and says the same; {line}. Take one out."
            self._problem(pair[0], path, message, Severity.WARNING)
        else:
            self._problem(pair[0], path, f"the key stands twice; {line}. Keep one.")

    def _base(self, key: yaml.Node, base: yaml.Node, path: KeyPath) -> dict[str, _Pair]:
        """The pairs of one mapping after `<<`."""
        if not isinstance(base, yaml.MappingNode):
            self._problem(key, path, "`<<` needs a mapping")
            return {}
        with self._inside(base, path):
            pairs = self._pairs(base, path)
        self._spend(key, path, len(pairs))
        return pairs

    def _name(self, key: yaml.Node, path: KeyPath) -> str | None:
        """The key as it is written; None, and a problem, if nobody could have meant it."""
        if not isinstance(key, yaml.ScalarNode):
            message = "a list or mapping as a key; put quotes around text that begins with [ or {"
        elif key.tag.removeprefix(_TAG) not in _TEXT | _WORDS.keys():
            self._refuse_tag(key, path)
            return None
        elif not key.value and not (path and key.style):
            # In quotes and within a block it is one: `device_map: {"": 0}` is the whole model.
            message = "a value without a key"
        elif len(key.value) > MAX_KEY_CHARACTERS:
            message = f"a key of {len(key.value)} characters, at most {MAX_KEY_CHARACTERS}"
        elif not key.value.isprintable():
            message = f"the key {key.value!a} has a character that cannot be seen"
        else:
            return str(key.value)
        self._problem(key, path, message)
        return None

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if kind in _TEXT:
            return text
        if kind not in _WORDS:
            return self._refuse_tag(node, path)
        if len(text) > MAX_NUMBER_CHARACTERS:
            message = f"{len(text)} characters are too many for {_WORDS[kind]}"
            return self._problem(node, path, f"{message}, at most {MAX_NUMBER_CHARACTERS}")
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError):  # What PyYAML does with `2026-13-45`.
            return self._problem(
                node, path, f"{text!r} is not {_WORDS[kind]}. Quotes make it text."
            )
        if kind == "int" and _OCTAL.fullmatch(text) and value != int(text.replace("_", "")):
            meant = f"{value}, or {int(text.replace('_', ''))} without the zero in front"
            return self._problem(node, path, f"{text} is octal in YAML: {value}. Write {meant}.")
        if kind in {"int", "float"} and ":" in text:
            message = f"{text} is a number in base 60 to YAML: {value}"
            return self._problem(node, path, f"{message}. Write {value}, or quotes around text.")
        return value

    def _refuse_tag(self, node: yaml.Node, path: KeyPath) -> object:
        tag = node.tag.replace(_TAG, "!!", 1)
        message = f"tag {tag} is not allowed: a recipe is data, it cannot run code"
        return self._problem(node, path, message)

    def _problem(
        self, node: yaml.Node, path: KeyPath, message: str, severity: Severity = Severity.ERROR
    ) -> object:
        mark = Mark(self.source, node.start_mark.line + 1)
        self.found.problems.append(Problem("", path, message, mark, severity))
        return _BROKEN

    @contextmanager
    def _inside(self, node: yaml.Node, path: KeyPath) -> Iterator[None]:
        if id(node) in self._open:
            raise broken(self.source, self._line(node, path), "an alias that contains itself")
        if len(self._open) > MAX_DEPTH:
            raise broken(self.source, self._line(node, path), _TOO_DEEP)
        self._open[id(node)] = node
        try:
            yield
        finally:
            del self._open[id(node)]

    def _spend(self, node: yaml.Node, path: KeyPath, count: int = 1) -> None:
        self._count += count
        if self._count > MAX_NODES:
            message = f"too much for a recipe: its aliases stand for more than {MAX_NODES} values"
            raise broken(self.source, self._line(node, path), message)

    def _line(self, node: yaml.Node, path: KeyPath) -> int:
        """Of the top-level key: a node that an alias stands for is written somewhere else."""
        return self.found.lines.get(path[:1], node.start_mark.line + 1)
