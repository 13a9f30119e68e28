"""`ft cloud`: start runs, and look after those that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft.launcher.cli import complete, console, life
from ft.launcher.cli.options import (
    BackendOption,
    CloudOption,
    JsonOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    SimulateOption,
    check_name,
)
from ft.recipes.errors import UsageError

if TYPE_CHECKING:
    from ft.launcher.backends.base import LogLine

app = typer.Typer(no_args_is_help=True, help="Runs: start, watch, look after.")


@app.command()
def run(
    recipe: RecipeArgument,
    *,
    backend: BackendOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="Plain cluster of SkyPilot's, made or used again; goes before `cloud.cluster` of the recipe.",
            show_default=False,
        ),
    ] = None,
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
    cloud: CloudOption = None,
    set_: SetOption = None,
    simulate: SimulateOption = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Print the id and return; the run goes on.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the exact request as JSON and start nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("-y", "--yes", help="Do not ask where the machines cost money.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Start a run and watch it. Ctrl-C lets go of it, the run goes on."""
    from ft.launcher import dispatch
    from ft.launcher.backends.registry import backend as load_backend
    from ft.launcher.cli import attach as view
    from ft.launcher.cli import gallery, plan_view, pricing

    with console.errors_as_json(json_):
        check_name(name)
        prepared = dispatch.prepare(
            gallery.locate(recipe),
            set_ or (),
            cloud=cloud,
            backend=backend,
            cluster=cluster,
            simulate=simulate or (),
        )
    if not (dry_run and json_):
        for line in plan_view.short(prepared):
            console.note(line)
    plan_view.warn(prepared)
    if dry_run:
        choice = prepared.choice
        more = {} if choice is None else {"choice": choice.to_json()}
        console.out_json(prepared.submission.to_json() | more)
        return
    if not dispatch.is_there(name):
        with console.errors_as_json(json_):
            load_backend(prepared.backend).must_be_able_to_send()
            if not yes:
                pricing.ask(prepared)
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
def ls(
    *,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Only the newest N.", show_default=False),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the runs of this machine, the newest last."""
    from ft.launcher.cli import runs_view
    from ft.launcher.cli.run import all_runs
    from ft.recipes.runstore import RunState

    runs = all_runs()
    rows = [runs_view.row(run) for run in runs[-(limit or len(runs)) :]]
    if json_:
        console.out_json([row.to_json() for row in rows])
        return
    if not rows:
        console.note("no run yet")
        console.hint("ft cloud run RECIPE")
        return
    for line in runs_view.listing(rows):
        console.out(line)
    for row in rows:
        if row.state == RunState.UNKNOWN:
            console.note(f"{row.id}: {row.message}")


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
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only newer lines: 10m, 2h, 1d ago, or 2026-11-23T17:45:00.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", min=0, help="Only this process.", show_default=False),
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option(
            "--attempt", metavar="N", min=1, help="Only this attempt.", show_default=False
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Whose lines; may be given again: agent, rank0 … or supervisor. Default: agent and rank0.",
            autocompletion=complete.sources,
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per line: time, attempt, source, text."),
    ] = False,
) -> None:
    """Print the log of a run, of all its attempts. Example: ft cloud logs @last -f --since 10m"""
    from ft.launcher.cli import log_options
    from ft.launcher.cli.run import find

    found = find(run).must_have_started()
    query = log_options.query(
        found,
        follow=follow,
        tail=tail,
        since=since,
        rank=rank,
        attempt=attempt,
        sources=source or [],
    )
    empty = True
    for line in found.backend.logs(found.record.as_handle(), query):
        empty = False
        if json_:
            console.out_json_line(_log_json(line))
        else:
            console.out_log(line.text)
    if empty and tail != 0:
        what = "no log yet" if query.since is None else f"nothing since {since}"
        console.note(f"run {found.record.id}: {what}")


def _log_json(line: LogLine) -> dict[str, Any]:
    """`time` is Unix time in seconds; null where the line has none."""
    return {
        "time": line.time.timestamp() if line.time else None,
        "attempt": line.attempt,
        "source": line.source,
        "text": line.text,
    }


@app.command(name="exec")
def execute(
    run: RunArgument,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="What to run there, with its arguments. `--` before it keeps its options its own.",
            show_default=False,
        ),
    ],
    *,
    node: Annotated[
        int,
        typer.Option("--node", metavar="N", min=0, help="On this one of several, from 0."),
    ] = 0,
    interactive: Annotated[
        bool,
        typer.Option(
            "-i",
            "--interactive",
            help="Pass on what is typed here; what comes from a pipe or a file always is.",
        ),
    ] = False,
) -> None:
    """Run a command where a run trains, beside it; its exit code is ours. Example: ft cloud exec @last -- nvidia-smi"""
    from ft.launcher.cli import beside
    from ft.launcher.cli.run import find

    found = find(run).must_have_started()
    raise typer.Exit(beside.execute(found, command, node=node, interactive=interactive))


life.register(app)


@app.command()
def prices(*, json_: JsonOption = False) -> None:
    """List what machines cost: of which day each price is, and where it is written."""
    from ft.launcher.cli import pricing

    if json_:
        console.out_json(pricing.to_json())
        return
    for line in pricing.lines():
        console.out(line)


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Also say what would stop this recipe: a file, or a name in the gallery (ft recipes ls).",
            autocompletion=complete.recipes,
            show_default=False,
        ),
    ] = None,
    *,
    backend: BackendOption = None,
    cloud: CloudOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Say what would stop a run, and how to mend it."""
    from ft.launcher.cli import doctoring

    for option, value in (("--set", set_), ("--cloud", cloud)):
        if recipe is None and value:
            raise UsageError(f"{option} changes a recipe: name one")
    found = doctoring.examine(recipe, set_ or (), cloud=cloud, backend=backend)
    if json_:
        console.out_json(found.to_json())
    else:
        for line in found.text():
            console.out(line)
    if found.error is not None:
        raise found.error
