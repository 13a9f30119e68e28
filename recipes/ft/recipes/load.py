"""Read a recipe: YAML with the line of every value. No side effects; nothing is decided or typed here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ft.recipes.errors import KeyPath, Mark, NotFoundError, Problem, RecipeError, UsageError
from ft.recipes.paths import expand

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""Nodes after aliases are expanded: a small file can stand for a huge one."""

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc]  # the C loader exists only where PyYAML was built with libyaml
    """Safe YAML 1.1 as Axolotl reads it, but `3e-4` is a number, as everybody means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as written, after `--set`. Values are plain YAML: dict, list, str, int, float, bool, None."""

    source: str
    """How the user named the file; printed in messages."""
    folder: Path
    """Where relative paths are looked up second."""
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """Values of `--set` as text, for keys that want text where YAML sees a number."""

    def mark(self, key: KeyPath) -> Mark:
        """The line of `key`, or of the nearest key around it."""
        if any(key[: len(path)] == path for path in self.overrides):
            return Mark("--set", 0)
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return Mark(self.source, self.lines[key[:end]])
        return Mark(self.source, 1)

    def problem(self, rule: str, key: KeyPath, message: str, **more: Any) -> Problem:
        return Problem(rule, key, message, self.mark(key), **more)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read `path` and apply `key=value` overrides.

    Raises: NotFoundError if there is no such file, RecipeError if it is not a YAML mapping,
    UsageError if an override is not `key=value`, or the `~user` of the path does not exist.
    """
    file = expand(str(path))
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise NotFoundError(f"{path} {what}", hint="ft recipes ls  lists recipes to start from")
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise _broken(
                str(path), 1, f"{size} bytes are too many for a recipe, at most {MAX_BYTES}"
            )
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _broken(str(path), 1, f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error
    recipe = loads(text, source=str(path), folder=file.resolve().parent)
    return override(recipe, overrides)


def loads(text: str, *, source: str = "<text>", folder: Path | None = None) -> Recipe:
    """Parse YAML text. Raises: RecipeError."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, source)
            values = reader.read(node, ()) if node is not None else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        tab = "\t" in "".join(text.split("\n")[line : line + 1]).partition("#")[0]
        message = "a tab; YAML is indented with spaces" if tab else _explain(error)
        raise _broken(source, line + 1, message) from None
    except yaml.YAMLError as error:
        raise _broken(source, 1, f"not YAML: {error}") from None
    if not isinstance(values, dict):
        raise _broken(source, 1, f"expected `key: value` lines, got {type(values).__name__}")
    if reader.problems:
        raise RecipeError(reader.problems)
    return Recipe(source, folder or Path.cwd(), values, reader.lines)


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A new recipe with `a.b=c` applied; the value is read as YAML. Raises: UsageError."""
    values: Any = _copy(recipe.values)
    texts = dict(recipe.overrides)
    for item in overrides:
        dotted, equals, text = item.partition("=")
        key = tuple(int(part) if part.isdigit() else part for part in dotted.strip().split("."))
        if not equals or "" in key:
            raise UsageError(
                f"--set {item}: expected key=value", hint="ft train r.yml --set learning_rate=1e-4"
            )
        try:
            value = yaml.load(text, _Loader) if text.strip() else None  # noqa: S506  # _Loader is a safe loader
        except yaml.YAMLError:
            value = text
        _assign(values, key, value, item)
        texts[key] = text
    return Recipe(recipe.source, recipe.folder, values, recipe.lines, texts)


def _assign(values: Any, key: KeyPath, value: object, item: str) -> None:
    here = values
    for part, after in pairwise(key):
        if isinstance(here, list):
            here = _element(here, part, item)
            continue
        if not isinstance(here.get(part), dict | list):
            if isinstance(after, int):
                raise UsageError(f"--set {item}: `{part}` is not a list in the recipe")
            here[part] = {}
        here = here[part]
    if isinstance(here, list):
        _element(here, key[-1], item)
        here[int(key[-1])] = value
    else:
        here[key[-1]] = value


def _element(values: list[Any], part: str | int, item: str) -> Any:
    if not isinstance(part, int) or part >= len(values):
        raise UsageError(
            f"--set {item}: {part} is not one of the {len(values)} elements (0 is the first)"
        )
    return values[part]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


class _Reader:
    """Turns nodes into values, noting lines and duplicate keys on the way."""

    def __init__(self, loader: Any, source: str) -> None:
        self.loader = loader
        self.source = source
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > MAX_NODES or id(node) in self._open:
            line = node.start_mark.line + 1
            raise _broken(
                self.source, line, "an alias that contains itself, or expands without end"
            )
        if isinstance(node, yaml.ScalarNode):
            return self.loader.construct_object(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self._read_at(item, (*path, i), item) for i, item in enumerate(node.value)]
            return self._read_mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _read_mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode) or node.tag != "tag:yaml.org,2002:map":
            message = f"tag {node.tag} is not allowed: a recipe is data, it cannot run code"
            raise _broken(self.source, node.start_mark.line + 1, message)
        values: dict[str, Any] = {}
        for key_node, value_node in self._pairs(node):
            key = self.loader.construct_object(key_node)
            name = key if isinstance(key, str) else str(key)
            here = (*path, name)
            line = key_node.start_mark.line + 1
            if name in values and here in self.lines:
                message = f"the key stands twice; first in line {self.lines[here]}. Keep one."
                self.problems.append(Problem("", here, message, Mark(self.source, line)))
                continue
            values[name] = self._read_at(value_node, here, key_node)
        return values

    def _read_at(self, node: yaml.Node, path: KeyPath, at: yaml.Node) -> Any:
        self.lines[path] = at.start_mark.line + 1
        return self.read(node, path)

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes; `<<` is merged, where a key of the mapping's own wins."""
        own = [pair for pair in node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
        names = {pair[0].value for pair in own}
        for key_node, value_node in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge":
                continue
            merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for mapping in merged:
                if not isinstance(mapping, yaml.MappingNode):
                    raise _broken(self.source, key_node.start_mark.line + 1, "`<<` needs a mapping")
                for pair in self._pairs(mapping):
                    if pair[0].value not in names:
                        names.add(pair[0].value)
                        yield pair
        yield from own


def _broken(source: str, line: int, message: str) -> RecipeError:
    return RecipeError([Problem("", (), message, Mark(source, line))])


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    if "could not determine a constructor" in problem:
        tag = problem.rpartition(" ")[2]
        return f"tag {tag} is not allowed: a recipe is data, it cannot run code"
    context = f" ({error.context})" if error.context else ""
    return f"not YAML: {problem}{context}"


def resolve_path(value: str, folder: Path) -> Path | None:
    """Where a relative path of a recipe points: the current folder first, then the recipe's. None if nowhere."""
    try:
        path = expand(value)
        candidates = [path] if path.is_absolute() else [Path.cwd() / path, folder / path]
        return next((Path(os.path.normpath(c)) for c in candidates if c.exists()), None)
    except (UsageError, ValueError):  # No such user; a character that no path can have.
        return None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
