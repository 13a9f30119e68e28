"""`ft`: puts the commands together, and is the one place where errors are caught."""

from __future__ import annotations

import atexit
import errno
import gc
import signal
import sys
from typing import Annotated, Final

import typer

from ft.launcher.cli import (
    cache_,
    checking,
    cloud,
    console,
    image_,
    migrating,
    preflight,
    preprocess,
    preview,
    recipe,
    recipes_,
    vocabulary,
)
from ft.recipes.errors import FtError

DISK: Final = 5
"""Exit code where a file, or the output, cannot be read or written."""
HELP = "Fine-tune any open model on any GPUs from one recipe."

NOT_OUR_BUG: Final = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENAMETOOLONG),
}
"""What a disk or its permissions do; the message names the file."""
COLLECT_EVERY: Final = 100_000
"""New objects between two searches for garbage. With Python's 700, and one search more at the end, a fourth of what
`ft cloud run` takes on Modal went into searches that find nothing: modules and classes stay."""


def build() -> typer.Typer:
    """The command tree. Help has boxes and colours on a terminal only: importing rich takes as long as all the rest."""
    rich = console.is_terminal(sys.stdout) and console.speaks_utf8(sys.stdout)
    app = typer.Typer(
        help=HELP,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        # Not "rich": that would swallow what stands in [brackets].
        rich_markup_mode="markdown" if rich else None,
    )
    app.callback()(_root)
    for command in (
        *(checking.check, recipe.resolve, recipe.plan, recipe.train),
        *(recipe.diff, migrating.migrate, vocabulary.explain, vocabulary.schema, cloud.doctor),
    ):
        app.command()(command)
    app.command()(preprocess.preprocess)
    app.command()(preview.preview)
    app.command()(preflight.preflight)
    app.add_typer(recipes_.app, name="recipes")
    app.add_typer(cache_.app, name="cache")
    app.add_typer(image_.app, name="image")
    app.add_typer(cloud.app, name="cloud")
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            console.out(f"ft-launcher {version('ft-launcher')}")
        except PackageNotFoundError:  # In an image lies the source alone.
            console.out("ft-launcher, from its source")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "-v", "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
]


def _root(version: VersionOption = False) -> None:
    del version  # Its callback has done it.


def main(argv: list[str] | None = None) -> None:
    """Entry point of `ft`. Always ends in SystemExit; a bug ends in its traceback and exit code 1."""
    if argv is None:  # The process is ours.
        gc.set_threshold(COLLECT_EVERY)
        atexit.register(
            gc.freeze
        )  # Else all that was imported is searched once more, and then it ends.
    # Quiet, as other tools are, when the reader goes: `ft cloud ls | head -1`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    code = _run(argv)
    lost = console.undelivered()
    if lost is not None and code != DISK:
        code = _show(FtError(f"{console.STDOUT}: {lost.strerror}"), DISK)
    sys.exit(code)


def _run(argv: list[str] | None) -> int | str | None:
    """The exit code."""
    try:
        build()(args=argv, prog_name="ft")
    except SystemExit as end:
        return end.code
    except FtError as error:
        return _show(error, error.exit_code)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # Help is printed by typer, which does not say that it was standard output.
        name = error.filename or (console.STDOUT if console.undelivered(probe=True) else None)
        if error.errno not in NOT_OUR_BUG or not name:
            raise
        return _show(FtError(f"{name}: {error.strerror}"), DISK)
    return 0


def _show(error: FtError, code: int) -> int:
    console.show_error(error)
    return code


if __name__ == "__main__":
    main()
