"""The gallery: recipes that come with `ft`, to run as they are or to copy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ft.recipes.errors import NotFoundError, UsageError

MODELINE = "# yaml-language-server:"
"""Begins the line that tells an editor where the JSON Schema of recipes is; true inside the gallery only."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe of the gallery; `name` is `<family>/<stem>`."""

    name: str
    path: Path

    @property
    def title(self) -> str:
        """The first line of the comment at the top that is for people."""
        with self.path.open(encoding="utf-8") as stream:
            for line in stream:
                if not line.startswith("#"):
                    return ""
                if line.strip("# \n") and not line.startswith(MODELINE):
                    return line.strip("# \n")
        return ""

    @property
    def text(self) -> str:
        """The recipe as `copy` writes it."""
        return _content(self.path).decode()

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "title": self.title, "path": str(self.path)}


def root() -> Path:
    """The gallery's folder inside the installed package."""
    from importlib.resources import files

    return Path(str(files("ft.recipes") / "gallery"))


def entries(folder: Path | None = None) -> list[Entry]:
    """All recipes below `folder`, by default the gallery, sorted by name."""
    base = folder or root()
    paths = sorted(base.glob("*/*.yml"))
    return [Entry(path.relative_to(base).with_suffix("").as_posix(), path) for path in paths]


def find(name: str) -> Entry:
    """Raises: NotFoundError with the nearest names."""
    known = {entry.name: entry for entry in entries()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f". Did you mean {near[0]}?" if near else ""
    raise NotFoundError(
        f"no recipe {name!r} in the gallery{meant}", hint="ft recipes ls  lists them"
    )


def locate(reference: str) -> str:
    """Path of the recipe that a user named: a file if there is one, else a recipe of the gallery.

    A path that is neither comes back as it is: `load` says what is wrong with it.
    Raises: NotFoundError, UsageError if the `~user` of a path does not exist.
    """
    from ft.recipes.paths import expand
    from ft.recipes.sources import STDIN, is_address

    if reference == STDIN or is_address(reference):
        return reference
    path = expand(reference)
    if path.exists() or path.is_symlink():
        return reference
    looks_like_file = reference.endswith((".yml", ".yaml")) or reference.startswith((".", "/", "~"))
    return reference if looks_like_file else str(find(reference).path)


def shown(reference: str) -> str:
    """`reference` for messages: an address without what may be secret in it."""
    from ft.recipes.sources import is_address

    if not is_address(reference):
        return reference
    from ft.recipes.fetch import without_secrets

    return without_secrets(reference)


def copy(entry: Entry, target: Path, *, force: bool) -> list[Path]:
    """Copy the recipe and the data files that lie beside it. Returns what was written, the recipe first.

    `target` is a folder, or the new file if it ends like a recipe; data files go beside the recipe.
    Raises: UsageError, before anything is written, if a file is there and is another one.
    A file that is there already and the same is left alone.
    """
    recipe = target if target.suffix in {".yml", ".yaml"} else target / entry.path.name
    plan = {recipe: entry.path}
    plan |= {recipe.parent / path: entry.path.parent / path for path in _data_of(entry)}
    taken = [to for to, source in plan.items() if to.exists() and not _same(source, to)]
    if taken and not force:
        names = ", ".join(str(path) for path in taken)
        raise UsageError(f"{names}: there already, and different", hint="--force overwrites")
    for to, source in plan.items():
        if not _same(source, to):
            _write(source, to)
    return list(plan)


def _write(source: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(_content(source))
    except OSError as error:
        raise UsageError(f"{to} cannot be written: {error.strerror}") from error


def _data_of(entry: Entry) -> Iterator[Path]:
    """Relative paths of the files that the recipe refers to and that come with it."""
    from ft.recipes.load import load
    from ft.recipes.normalize import normalize
    from ft.recipes.references import references

    for reference in references(normalize(load(entry.path)).flat):
        path = Path(reference.value)
        if (
            not path.is_absolute()
            and ".." not in path.parts
            and (entry.path.parent / path).is_file()
        ):
            yield path


def _content(source: Path) -> bytes:
    """What a copy holds: all but the line that names a schema, which lies in the gallery only."""
    data = source.read_bytes()
    return data.partition(b"\n")[2] if data.startswith(MODELINE.encode()) else data


def _same(source: Path, target: Path) -> bool:
    return target.is_file() and _content(source) == target.read_bytes()
