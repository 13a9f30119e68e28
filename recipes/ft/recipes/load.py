"""Read a recipe file, and apply `--set`. No side effects; nothing is decided or typed here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ft.recipes.errors import KeyPath, Mark, NotFoundError, Problem, RecipeError, UsageError
from ft.recipes.paths import expand
from ft.recipes.reader import MAX_DEPTH, broken, read

MAX_BYTES = 1 << 20
_INDEX = re.compile(r"[0-9]{1,9}")


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
    problems: tuple[Problem, ...] = ()
    """What cannot be read of the file, or stands twice; it is left out of `values`."""

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
    # Half of a character, which a file name may have, would break whoever prints it.
    source = str(path).encode("utf-8", "backslashreplace").decode()
    if not file.is_file():
        what = "does not exist"
        if file.exists():
            what = "is a folder" if file.is_dir() else "is no regular file"
        raise NotFoundError(f"{source} {what}", hint="ft recipes ls  lists recipes to start from")
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        size = max(file.stat().st_size, len(data))
    except OSError as error:
        raise NotFoundError(f"{source}: {error.strerror}") from error
    if size > MAX_BYTES:
        raise broken(source, 1, f"{size} bytes are too many for a recipe, at most {MAX_BYTES}")
    recipe = loads(_decoded(data, source), source=source, folder=file.resolve().parent)
    return override(recipe, overrides)


def _decoded(data: bytes, source: str) -> str:
    """UTF-8, with or without a byte order mark. Raises: RecipeError."""
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = ": it looks like UTF-16. Save it as UTF-8." if utf16 else ""
        line = data.count(b"\n", 0, error.start) + 1
        raise broken(source, line, f"not UTF-8 text (byte {error.start}){hint}") from None


def loads(text: str, *, source: str = "<text>", folder: Path | None = None) -> Recipe:
    """Parse YAML text. Raises: RecipeError where it is not a mapping; smaller `problems` are carried."""
    document = read(text, source)
    values = {} if document.values is None else document.values
    if not isinstance(values, dict):
        kind = _KINDS.get(type(values).__name__, type(values).__name__)
        raise broken(source, 1, f"expected `key: value` lines, got {kind}")
    problems = tuple(document.problems)
    return Recipe(source, folder or Path.cwd(), values, document.lines, problems=problems)


_KINDS = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false"}


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A new recipe with `a.b=c` applied; the value is read as YAML. Raises: UsageError."""
    values: Any = _copy(recipe.values)
    texts = dict(recipe.overrides)
    for item in overrides:
        dotted, equals, text = item.partition("=")
        parts = [part.strip() for part in dotted.split(".")]
        if not equals or "" in parts or len(parts) > MAX_DEPTH or not dotted.isprintable():
            raise UsageError(
                f"--set {_printable(item)}: expected key=value",
                hint="ft train r.yml --set learning_rate=1e-4",
            )
        texts[_assign(values, parts, _value(text), item)] = text
    return replace(recipe, values=values, overrides=texts)


def _value(text: str) -> object:
    """What YAML makes of the text after `=`; the text itself where YAML makes nothing of it."""
    if not text.strip():
        return None
    try:
        document = read(text, "--set")
    except RecipeError:
        return text
    return text if document.is_empty or document.problems else document.values


def _assign(values: Any, parts: list[str], value: object, item: str) -> KeyPath:
    """Put `value` where `parts` point; returns that place, list indices as numbers."""
    here: Any = values
    path: list[str | int] = []
    for part, after in zip_longest(parts, parts[1:]):
        step: Any = _index(here, part, item) if isinstance(here, list) else part
        path.append(step)
        if after is None:
            here[step] = value
            break
        inner = here[step] if isinstance(here, list) else here.get(step)
        if not isinstance(inner, dict | list):
            if _INDEX.fullmatch(after):
                raise UsageError(f"--set {_printable(item)}: `{part}` is not a list in the recipe")
            inner = here[step] = {}
        here = inner
    return tuple(path)


def _index(values: list[Any], part: str, item: str) -> int:
    if not _INDEX.fullmatch(part) or int(part) >= len(values):
        raise UsageError(
            f"--set {_printable(item)}: {part} is not one of the {len(values)} elements "
            "(0 is the first)"
        )
    return int(part)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


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
