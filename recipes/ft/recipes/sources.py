"""Where the text of a recipe comes from: a file, `-` for standard input, or an https address."""

from __future__ import annotations

import errno
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ft.recipes.errors import NotFoundError, UsageError
from ft.recipes.paths import expand
from ft.recipes.reader import broken

if TYPE_CHECKING:
    from ft.recipes.fetch import Fetcher

MAX_BYTES: Final = 1 << 20
MAX_FILES: Final = 64
"""Files that one recipe may be made of: each may be a request to somebody's server."""
STDIN: Final = "-"

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one file and where it was found."""

    text: str
    name: str
    """How the user named it; printed in messages."""
    location: str
    """Absolute path, or the address that its server led to: the same file has the same one, however it was named."""
    folder: Path
    """Where its relative paths are looked up; the current folder for what came over the network."""


def is_address(name: str) -> bool:
    """Whether `name` is something to fetch, and no path."""
    return _ADDRESS.match(name) is not None


def open_source(name: str) -> Source:
    """Read what `name` stands for; raises what `Sources.open` does."""
    return Sources().open(name)


class Sources:
    """Opens the files that one recipe is made of: each place once, and not without end."""

    def __init__(self) -> None:
        self._files: dict[Path, bytes] = {}
        self._fetcher: Fetcher | None = None
        self._count = 0

    def open(self, name: str, *, beside: Source | None = None) -> Source:
        """Read what `name` stands for; `beside` is the file that named it, for relative names.

        What comes over the network names only what lies on the same server.
        Raises: NotFoundError if there is no such file, UsageError if the name cannot be one or may not be fetched,
        RecipeError if it is not UTF-8 text or too long.
        """
        if not name:
            raise UsageError(
                "expected a recipe, got an empty name",
                hint="ft recipes ls  lists recipes to start from",
            )
        # Half of a character, which a file name may have, would break whoever prints it.
        shown = name.encode("utf-8", "backslashreplace").decode()
        server = beside.location if beside is not None and is_address(beside.location) else ""
        if server or is_address(name):
            return self._fetched(name, server)
        if name == STDIN and beside is None:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
            return Source(_decoded(data, "<stdin>"), "<stdin>", STDIN, Path.cwd())
        file = expand(name)
        if beside is not None and name != STDIN and not file.is_absolute():
            file = beside.folder / file
        place, data = self._read(file, shown)
        return Source(_decoded(data, shown), shown, str(place), place.parent)

    def _fetched(self, name: str, server: str) -> Source:
        # Slow to import, and few recipes are fetched.
        from ft.recipes.fetch import Fetcher, beside, public

        self._fetcher = self._fetcher or Fetcher(MAX_BYTES, self._admit)
        address = beside(server, name) if server else name
        location, data = self._fetcher.fetch(address, server=server)
        shown = public(address)
        return Source(_decoded(data, shown), shown, location, Path.cwd())

    def _read(self, file: Path, shown: str) -> tuple[Path, bytes]:
        try:
            if not file.is_file():
                hint = "ft recipes ls  lists recipes to start from"
                raise NotFoundError(f"{shown} {_what_it_is(file)}", hint=hint)
            place = file.resolve()
            if place not in self._files:
                self._admit(shown)
                with file.open("rb") as stream:
                    self._files[place] = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise NotFoundError(f"{shown}: {error.strerror}") from error
        return place, self._files[place]

    def _admit(self, shown: str) -> None:
        """Raises: UsageError if the recipe is made of too many files already."""
        if self._count == MAX_FILES:
            message = f"{shown} is one file too many: a recipe is made of at most {MAX_FILES}"
            raise UsageError(f"{message}. Put what they hold into fewer.")
        self._count += 1


def _what_it_is(file: Path) -> str:
    """What stands where a file was expected."""
    if file.is_symlink() and not file.exists():
        try:
            file.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "is a link that leads back to itself"
        return f"is a link to {file.readlink()}, which does not exist"
    if not file.exists():
        return "does not exist"
    return "is a folder" if file.is_dir() else "is no regular file"


def _encoding(data: bytes) -> str:
    """What text that is no UTF-8 may be; empty for what is no text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return "" if _CONTROL.search(data) else "Latin-1"


def _decoded(data: bytes, shown: str) -> str:
    """UTF-8, with or without a byte order mark. Raises: RecipeError."""
    if len(data) > MAX_BYTES:
        raise broken(shown, 1, f"too long for a recipe: more than {MAX_BYTES} bytes")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        kind = _encoding(data)
        hint = f": it looks like {kind}. Save it as UTF-8." if kind else ""
        line = data.count(b"\n", 0, error.start) + 1
        raise broken(shown, line, f"not UTF-8 text (byte {error.start}){hint}") from None
