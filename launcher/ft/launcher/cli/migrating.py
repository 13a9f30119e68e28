"""`ft migrate`: a recipe file in today's spelling."""

from __future__ import annotations

import codecs
import difflib
import errno
import os
import re
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ft.launcher.cli import complete, console
from ft.recipes.errors import UsageError, sort_problems

if TYPE_CHECKING:
    from ft.recipes.migrate import Migrated


def _files(incomplete: str) -> list[str]:
    """Recipe files without the gallery, which is not there to be changed."""
    gallery_names = complete.gallery_names(incomplete)
    return [name for name in complete.recipes(incomplete) if name not in gallery_names]


FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A recipe file, or - for standard input, whose new text goes to standard output.",
        autocompletion=_files,
        show_default=False,
    ),
]
WriteOption = Annotated[
    bool, typer.Option("-w", "--write", help="Change the file itself; list what was changed.")
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="List what would change; exit with 1 if something would.")
]

_STDIN: Final = "-"
"""As in `ft.recipes.sources`, which takes long to import."""
_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}
_WOULD_CHANGE: Final = 1


def migrate(
    recipe: FileArgument, *, write: WriteOption = False, check: CheckOption = False
) -> None:
    """Rewrite older spellings in a recipe file. Shows the difference; --write changes the file.

    Comments, order and all other lines stay as they are. What the recipe extends, and what extends
    it, is not looked at: migrate every file by itself.
    """
    from ft.recipes.migrate import migrate as migrated
    from ft.recipes.sources import open_source

    _check_usage(recipe, write=write, check=check)
    mark = _byte_order_mark(recipe)
    source = open_source(recipe)
    old = mark + source.text
    new = migrated(old, source.name)
    if check:
        _list(source.name, new)
    elif recipe == _STDIN:
        sys.stdout.buffer.write(new.text.encode())
        sys.stdout.buffer.flush()
    elif not write:
        _show_difference(source.name, old, new.text)
    elif new.changes:
        replace_file(Path(source.location), new.text.encode(), shown=source.name)
        _list(source.name, new)
    _conclude(source.name, new, is_done=write or (recipe == _STDIN and not check))
    if check and new.changes:
        raise typer.Exit(_WOULD_CHANGE)


def _check_usage(recipe: str, *, write: bool, check: bool) -> None:
    """Raises: UsageError if there is nothing that could be written."""
    from ft.launcher.cli import gallery
    from ft.recipes.paths import expand
    from ft.recipes.sources import is_address

    if write and check:
        raise UsageError("--write and --check: expected one of the two")
    if write and recipe == _STDIN:
        raise UsageError(
            "-: standard input cannot be written", hint="ft migrate - <old.yml >new.yml"
        )
    if is_address(recipe):
        hint = "save it first: curl -o recipe.yml ADDRESS; ft migrate recipe.yml"
        message = f"{gallery.shown(recipe)} is an address; ft migrate rewrites files"
        raise UsageError(message, hint=hint)
    if recipe in complete.gallery_names(recipe) and not expand(recipe).exists():
        raise UsageError(
            f"{recipe} is a recipe of the gallery; ft migrate rewrites files of yours",
            hint=f"ft recipes copy {recipe}  puts one here to change",
        )


def _byte_order_mark(recipe: str) -> str:
    """The mark at the front of the file if there is one; who reads a recipe drops it."""
    from ft.recipes.paths import expand

    if recipe == _STDIN:
        start = sys.stdin.buffer.peek(len(codecs.BOM_UTF8))  # type: ignore[union-attr]  # a BufferedReader
    else:
        try:
            with expand(recipe).open("rb") as stream:
                start = stream.read(len(codecs.BOM_UTF8))
        except OSError:  # `open_source` says it better.
            return ""
    return codecs.BOM_UTF8.decode() if start.startswith(codecs.BOM_UTF8) else ""


def _list(name: str, migrated: Migrated) -> None:
    for change in migrated.changes:
        what = f"-> {change.new}" if change.new else "goes away"
        console.out(f"{name}:{change.line}: {change.old} {what}")


def _show_difference(name: str, old: str, new: str) -> None:
    """A unified diff that `patch` takes."""
    # Not `splitlines`: to `patch` only \n ends a line.
    before, after = (re.findall(r".*\n|.+\Z", text) for text in (old, new))
    for number, line in enumerate(difflib.unified_diff(before, after, name, name)):
        style = "bold" if number < 2 else _STYLES.get(line[0])
        end = "" if line.endswith("\n") else "\n\\ No newline at end of file\n"
        console.out_exactly(f"{line}{end}", *([style] if style else []))


def _conclude(name: str, migrated: Migrated, *, is_done: bool) -> None:
    num = len(migrated.changes)
    left = sort_problems(migrated.left)
    for problem in left:
        console.show(problem, to=sys.stderr)
    if left:
        remain = f"{console.plural(len(left), 'problem')} that ft migrate cannot mend"
        console.note(f"{name}: {remain}; after that, ft check {name}")
    if not num and left:
        console.note(f"{name}: nothing to rewrite")
    elif not num:
        console.note(f"{name}: nothing to do, this is today's spelling")
    elif is_done:
        console.note(f"{name}: {console.plural(num, 'older spelling')} rewritten")
    else:
        console.note(f"{name}: {console.plural(num, 'older spelling')} would be rewritten")
        if name != "<stdin>":
            console.hint(f"ft migrate {name} --write")


def replace_file(path: Path, data: bytes, *, shown: str) -> None:
    """Put `data` in the place of a file as a whole; its mode stays, and its owner where that is allowed.

    Raises: UsageError, and the file is as it was, if it cannot be written.
    """
    from ft.recipes.runstore import fsync_folder

    try:
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        before = path.stat()
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".ft-write-")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                with suppress(PermissionError):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                stream.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{shown} cannot be written: {error.strerror}") from error
