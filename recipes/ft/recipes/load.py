"""Read a recipe with what it extends, and apply `--set`. Nothing is decided or typed here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, get_args

from ft.recipes.errors import (
    FtError,
    KeyPath,
    Mark,
    Problem,
    RecipeError,
    Severity,
    UsageError,
)
from ft.recipes.layers import give_way, moves, rivals
from ft.recipes.meant import is_set
from ft.recipes.paths import expand
from ft.recipes.reader import MAX_DEPTH, broken, read
from ft.recipes.schema.cloud import CloudBlock
from ft.recipes.shelf import in_gallery
from ft.recipes.sources import STDIN, Source, Sources, is_address
from ft.recipes.syntax import BREAK

EXTENDS: Final = "extends"
MAX_LAYERS: Final = 16
"""Files that may extend each other in one chain; how many there may be in all is `sources.MAX_FILES`."""
SET: Final = Mark("--set", 0)
BACKEND: Final = Mark("--backend", 0)
BACKEND_KEY: Final = ("cloud", "backend")
CLUSTER: Final = Mark("--cluster", 0)
CLUSTER_KEY: Final = ("cloud", "cluster")
_AT_LEAST: Final = "`base_model`, `datasets` and `learning_rate`"
_LOST_PIN: Final = re.compile(r"""["']?[ \t]+#[ \t]*sha256=""")
_INDEX = re.compile(r"[0-9]{1,9}")
_BRACKETS: Final = re.compile(r"\[([0-9]{1,9})\]")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as written, after `extends:` and `--set`. Values are plain YAML."""

    source: str
    """How the user named the file; printed in messages."""
    folder: Path
    """Where relative paths are looked up second."""
    values: Mapping[str, Any]
    """dict, list, str, int, float, bool, date, None."""
    marks: Mapping[KeyPath, Mark]
    """Where each value is written."""
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """Values of `--set` as text, for keys that want text where YAML sees a number."""
    problems: tuple[Problem, ...] = ()
    """What cannot be read of the file, or stands twice; it is left out of `values`."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """File of a mark -> where relative paths of that file are looked up, for files that are extended."""
    options: Mapping[KeyPath, Mark] = field(default_factory=dict)
    """Keys that an option of their own sets, over `--set` as well."""
    cloud_file: str = ""
    """The cloud file that lies over the files, as marks name it; empty without one."""

    def mark(self, key: KeyPath) -> Mark:
        """The line of `key`, or of the nearest key around it."""
        if key in self.options:
            return self.options[key]
        if any(key[: len(path)] == path for path in self.overrides):
            return SET
        for end in range(len(key), 0, -1):
            place = self._place(key[:end])
            if place is not None:
                return place
        return Mark(self.source, 1)

    def _place(self, key: KeyPath) -> Mark | None:
        """Where `key` is written; a block that only the command line made: the first option for a key below."""
        if key in self.marks:
            return self.marks[key]
        if any(path[: len(key)] == key for path in self.overrides):
            return SET
        return next((mark for path, mark in self.options.items() if path[: len(key)] == key), None)

    def folder_of(self, key: KeyPath) -> Path:
        """Folder of the file in which `key` is written: where its relative path is looked up second."""
        return self.folders.get(self.mark(key).file, self.folder)

    def problem(self, rule: str, key: KeyPath, message: str, **more: Any) -> Problem:
        return Problem(rule, key, message, self.mark(key), **more)


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    cloud: Recipe | None = None,
    backend: str | None = None,
    cluster: str | None = None,
) -> Recipe:
    """Read a file, `-` or an https address, and what it extends; put over it what the command line says.

    That is, from below: `cloud`, what a cloud file says; `overrides`, each `key=value`; backend and cluster.
    Raises: NotFoundError if there is no such file, RecipeError if it is not a YAML mapping,
    UsageError if an override is not `key=value`, there is no such backend, or the `~user` of the path does not exist.
    """
    if cloud is not None and cloud.source == "<stdin>" and str(path) == STDIN:
        raise UsageError("standard input can be read once: name - only once")
    sources = Sources()
    source = sources.open(str(path))
    files = _Layers(sources).of(source, ())
    recipe = override(files if cloud is None else _under_cloud(files, cloud), overrides)
    if not files.values and not files.problems and not recipe.overrides:
        what = "there are no keys in this file" if source.text.strip() else "the file is empty"
        raise broken(source.name, 1, f"{what}; a recipe has at least {_AT_LEAST}")
    if backend is not None:
        recipe = on_backend(recipe, backend)
    return recipe if cluster is None else _over_cloud(recipe, CLUSTER_KEY, cluster, CLUSTER)


def _under_cloud(recipe: Recipe, cloud: Recipe) -> Recipe:
    whole = _merged(recipe, cloud)
    return replace(whole, source=recipe.source, folder=recipe.folder, cloud_file=cloud.source)


class _Layers:
    """Puts recipes over what they extend. A file that several of them extend is read and merged once."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._whole: dict[str, Recipe] = {}

    def of(self, source: Source, above: tuple[Source, ...]) -> Recipe:
        """The recipe in `source` over everything that it extends. `above` are the files that extend it."""
        if source.location not in self._whole:
            self._whole[source.location] = self._merged(source, above)
        return self._whole[source.location]

    def _merged(self, source: Source, above: tuple[Source, ...]) -> Recipe:
        recipe = loads(source.text, source=source.name, folder=source.folder)
        if EXTENDS not in recipe.values:
            return recipe
        mark = recipe.mark((EXTENDS,))
        recipe = replace(recipe, problems=(*recipe.problems, *_lost_pins(recipe, source)))
        values = dict(recipe.values)
        names = values.pop(EXTENDS)
        whole = replace(recipe, values=values, folders={source.name: source.folder})
        chain = (*above, source)
        base: Recipe | None = None
        for name in _base_names(names, mark):
            layer = self.of(self._open(name, mark, chain), chain)
            base = layer if base is None else _merged(base, layer)
        return whole if base is None else _merged(base, whole)

    def _open(self, name: str, mark: Mark, chain: tuple[Source, ...]) -> Source:
        """Raises: RecipeError with the line of `extends:` if the file is not there, or extends itself."""
        try:
            above = chain[-1]
            of_ours = None if is_address(above.location) else in_gallery(name, above.folder)
            found = self._sources.open(of_ours or name, beside=above)
        except RecipeError:
            raise
        except FtError as error:
            raise RecipeError([Problem("", (EXTENDS,), error.message, mark)]) from error
        if any(found.location == source.location for source in chain):
            circle = " -> ".join([*(source.name for source in chain), found.name])
            raise RecipeError([Problem("", (EXTENDS,), f"extends itself: {circle}", mark)])
        if len(chain) >= MAX_LAYERS:
            message = f"more than {MAX_LAYERS} files extend each other"
            raise RecipeError([Problem("", (EXTENDS,), message, mark)])
        return found


def _lost_pins(recipe: Recipe, source: Source) -> Iterator[Problem]:
    """`#sha256=` after a blank is a comment to YAML: the address in front of it is not pinned."""
    names = recipe.values[EXTENDS]
    listed = [
        name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)
    ]
    for number, line in enumerate(BREAK.split(source.text), 1):
        for name in listed:
            before, found, after = line.partition(name)
            if (
                found
                and is_address(name)
                and not before.lstrip().startswith("#")
                and _LOST_PIN.match(after)
            ):
                message = "`#sha256=` after a blank is a comment: this address is not pinned. Take the blank out."
                mark = Mark(source.name, number)
                yield Problem("", (EXTENDS,), message, mark, Severity.WARNING)


def _base_names(names: object, mark: Mark) -> list[str]:
    """Raises: RecipeError if `extends:` is neither a file nor a list of files."""
    if names is None:
        return []
    listed: list[Any] = names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) and name for name in listed):
        message = "expected a recipe file or address, or a list of them"
        raise RecipeError([Problem("", (EXTENDS,), message, mark)])
    return listed


def _merged(base: Recipe, over: Recipe) -> Recipe:
    """`over` on top of `base`: mappings are merged key by key, anything else is replaced as a whole."""
    base = _below(base, over.values)
    both: set[KeyPath] = set()
    replaced: set[KeyPath] = set()
    values = _merge(base.values, over.values, (), both, replaced)
    marks = {at: mark for at, mark in base.marks.items() if not _is_below(at, replaced)}
    marks |= {at: mark for at, mark in over.marks.items() if at in both or _is_below(at, replaced)}
    return Recipe(
        over.source,
        over.folder,
        values,
        marks,
        # A file that both are made of has its problems once.
        problems=tuple(dict.fromkeys((*base.problems, *over.problems))),
        folders={**base.folders, base.source: base.folder, **over.folders},
    )


def _below(base: Recipe, over: Mapping[str, Any]) -> Recipe:
    """`base` without what `over` says in another spelling, or by a key that decides the same."""
    found = moves(base.values, over)
    if not found:
        return base
    values = _copy(base.values)
    return replace(base, values=values, marks=give_way(values, base.marks, found))


def _merge(
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    path: KeyPath,
    both: set[KeyPath],
    replaced: set[KeyPath],
) -> dict[str, Any]:
    """Adds to `both` the mappings that were merged, to `replaced` the keys whose value is that of `over`."""
    values = dict(base)
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key] = _merge(values[key], value, here, both, replaced)
            both.add(here)
        else:
            values[key] = value
            replaced.add(here)
    return values


def _is_below(key: KeyPath, places: set[KeyPath]) -> bool:
    return any(key[:end] in places for end in range(1, len(key) + 1))


def loads(text: str, *, source: str = "<text>", folder: Path | None = None) -> Recipe:
    """Parse YAML text of one file; `extends:` stays a key.

    Raises: RecipeError where it is not a mapping; smaller `problems` are carried.
    """
    document = read(text, source)
    values = {} if document.values is None else document.values
    if not isinstance(values, dict):
        kind = _KINDS.get(type(values).__name__, type(values).__name__)
        raise broken(source, 1, f"expected `key: value` lines, got {kind}")
    marks = {path: Mark(source, line) for path, line in document.lines.items()}
    problems = tuple(document.problems)
    return Recipe(source, folder or Path.cwd(), values, marks, problems=problems)


_KINDS = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false"}


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A new recipe with `a.b=c` applied; the value is read as YAML. Raises: UsageError.

    All of them together are one layer over the recipe.
    """
    values: Any = _copy(recipe.values)
    marks, texts = dict(recipe.marks), dict[KeyPath, str]()
    for item in overrides:
        dotted, equals, text = item.partition("=")
        if dotted.strip() == EXTENDS:
            message = "--set extends: a file says what it extends"
            raise UsageError(
                message, hint="write a file with `extends:` and what you want to change"
            )
        if _BRACKETS.search(dotted) and equals:
            meant = _BRACKETS.sub(r".\1", dotted)
            raise UsageError(
                f"--set {_printable(item)}: an element of a list is named with a dot",
                hint=f"--set {_printable(f'{meant}={text}')}",
            )
        parts = [part.strip() for part in dotted.split(".")]
        if not equals or "" in parts or len(parts) > MAX_DEPTH or not dotted.isprintable():
            raise UsageError(
                f"--set {_printable(item)}: expected key=value",
                hint="ft train r.yml --set learning_rate=1e-4",
            )
        value = _value(text)
        path = tuple(int(part) if _INDEX.fullmatch(part) else part for part in parts)
        found = rivals(values, path, value)
        below = {key: new for key, new in found.items() if not _touches(key, texts)}
        marks = dict(give_way(values, marks, below))
        path = _assign(values, parts, value, item)
        texts[path] = text
        for end in range(1, len(path)):
            if not isinstance(_at(recipe.values, path[:end]), Mapping | list):
                marks.pop(path[:end], None)  # What stood there is no more.
    return replace(recipe, values=values, marks=marks, overrides={**recipe.overrides, **texts})


def on_backend(recipe: Recipe, name: str) -> Recipe:
    """A new recipe with `--backend NAME` over everything. Raises: UsageError if there is no such backend."""
    known = get_args(get_args(CloudBlock.model_fields["backend"].annotation)[0])
    if name not in known:
        raise UsageError(f"backend {name!r} is not one of {', '.join(known)}")
    return _over_cloud(recipe, BACKEND_KEY, name, BACKEND)


def _over_cloud(recipe: Recipe, key: tuple[str, str], value: str, mark: Mark) -> Recipe:
    """A new recipe with a key of its `cloud:` block over everything."""
    block = recipe.values.get("cloud")
    if is_set(block) and not isinstance(block, Mapping):
        return recipe  # An error anyway, which would be hidden.
    values = {**recipe.values, "cloud": {**(block or {}), key[1]: value}}
    return replace(recipe, values=values, options={**recipe.options, key: mark})


def _touches(key: KeyPath, paths: Iterable[KeyPath]) -> bool:
    """Whether one of `paths` is `key`, or lies around or below it."""
    return any(path[: len(key)] == key[: len(path)] for path in paths)


def _at(values: Any, path: KeyPath) -> Any:
    """What stands at `path`; None where nothing does."""
    for part in path:
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


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
