"""`ft cloud`: start runs, and look after those that there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft.launcher.cli import complete, console
from ft.launcher.cli.options import (
    BackendOption,
    JsonOption,
    RecipeArgument,
    RunArgument,
    SetOption,
)
from ft.recipes.errors import DependencyError, UsageError

if TYPE_CHECKING:
    from ft.launcher.backends.base import LogLine

app = typer.Typer(no_args_is_help=True, help="Runs: start, watch, look after.")

NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")


@app.command()
def run(
    recipe: RecipeArgument,
    *,
    backend: BackendOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the run. The same name again watches the same run, it starts no second one.",
            autocompletion=complete.runs,
            show_default=False,
        ),
    ] = None,
    set_: SetOption = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Print the id and return; the run goes on.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the exact request as JSON and start nothing.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Start a run and watch it. Ctrl-C lets go of it, the run goes on."""
    from ft.launcher import dispatch
    from ft.launcher.cli import attach as view
    from ft.launcher.cli import gallery, plan_view

    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: expected letters, digits and ._- after a letter")
    prepared = dispatch.prepare(gallery.locate(recipe), set_ or (), backend=backend)
    if not (dry_run and json_):
        for line in plan_view.short(prepared):
            console.note(line)
    plan_view.warn(prepared)
    if dry_run:
        console.out_json(prepared.submission.to_json())
        return
    started = view.submit(prepared, name=name)
    if not detach:
        view.attach(started, as_json=json_)
        return
    if json_:
        console.out_json({"id": started.record.id, "name": started.record.name})
    else:
        console.out(started.record.id)
        for command in view.commands(started):
            console.hint(command)


@app.command()
def attach(
    run: RunArgument,
    *,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            help="Watch no longer than this: exit code 124 if the run goes on, which it does.",
            show_default=False,
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Watch a run until it ends. Ctrl-C lets go of it."""
    from ft.launcher.cli import attach as view
    from ft.launcher.cli.run import find

    view.attach(find(run), as_json=json_, timeout_s=timeout)


@app.command()
def ls(*, json_: JsonOption = False) -> None:
    """List the runs of this machine."""
    from ft.launcher.cli import runs_view
    from ft.launcher.cli.run import all_runs

    runs = all_runs()
    if json_:
        console.out_json([runs_view.row(run).to_json() for run in runs])
        return
    if not runs:
        console.note("no run yet")
        console.hint("ft cloud run RECIPE")
        return
    for line in runs_view.listing(runs):
        console.out(line)


@app.command()
def status(run: RunArgument, *, json_: JsonOption = False) -> None:
    """Show a run: what its machines do, and what training says."""
    from ft.launcher.cli import runs_view
    from ft.launcher.cli.run import find

    found = find(run)
    if json_:
        console.out_json(runs_view.status_json(found))
        return
    for line in runs_view.status(found):
        console.out(line)


@app.command()
def logs(
    run: RunArgument,
    *,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the run ends.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            "--tail", metavar="N", min=0, help="Only the last N lines.", show_default=False
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", min=0, help="Only this process.", show_default=False),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per line: time, attempt, source, text."),
    ] = False,
) -> None:
    """Print the log of a run, of all its attempts."""
    from ft.launcher.cli.run import find

    found = find(run).must_have_started()
    empty = True
    handle = found.record.as_handle()
    for line in found.backend.logs(handle, follow=follow, tail=tail, since=None, rank=rank):
        empty = False
        if json_:
            console.out_json_line(_log_json(line))
        else:
            console.out(line.text)
    if empty and tail != 0:
        what = "no log yet" if rank is None else f"no log of rank {rank}"
        console.note(f"run {found.record.id}: {what}")


def _log_json(line: LogLine) -> dict[str, Any]:
    """`time` is Unix time in seconds; null where the line has none."""
    return {
        "time": line.time.timestamp() if line.time else None,
        "attempt": line.attempt,
        "source": line.source,
        "text": line.text,
    }


@app.command()
def doctor(
    *,
    backend: BackendOption = None,
    json_: JsonOption = False,
) -> None:
    """Check that this machine can start runs. Changes nothing."""
    from ft.launcher.cli import doctoring

    name = backend or "local"
    checks = doctoring.checks(name)
    if json_:
        console.out_json(doctoring.to_json(name, checks))
    else:
        for line in doctoring.lines(checks):
            console.out(line)
    failed = [check.name for check in checks if not check.ok]
    if failed:
        raise DependencyError(f"backend {name} is not ready: {', '.join(failed)}")
