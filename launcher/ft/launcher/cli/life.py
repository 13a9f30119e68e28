"""`ft cloud cancel | resume | wait | fetch | adopt | prune`: what becomes of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer.core import TyperCommand

from ft.launcher.cli import complete, console
from ft.launcher.cli.options import JsonOption, RunArgument, check_name
from ft.recipes.errors import UsageError

if TYPE_CHECKING:
    from ft.launcher.cli.run import Run
    from ft.launcher.lifecycle import LimitChanges
    from ft.recipes.runstore import RunState

GRACE_S: Final = 60.0
NEWEST: Final = "newest"
CHECKPOINT: Final = "--checkpoint"


def cancel(
    run: RunArgument,
    *,
    now: Annotated[
        bool, typer.Option("--now", help="Kill it without saving; older checkpoints stay.")
    ] = False,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="SECONDS", min=0, help="Time that it has for saving."),
    ] = GRACE_S,
    json_: JsonOption = False,
) -> None:
    """Save a run and end it. Example: ft cloud cancel @last --grace 120"""
    from ft.launcher import lifecycle
    from ft.launcher.cli import attach as view
    from ft.launcher.cli import ending
    from ft.launcher.cli.run import find_unhealed
    from ft.recipes.runstore import Reason, RunState

    found = find_unhealed(run)
    found.record = lifecycle.withdraw(found.record, found.runs)
    follower = view.Follower(found)
    state = found.state()
    if state.ended and found.record.never_started:
        console.note(f"run {found.record.id} never started: {found.explain()}")
    elif state.ended:
        follower.catch_up()
        console.note(f"run {found.record.id} has ended already")
    else:
        follower.catch_up()
        state = view.stop(follower, reason=Reason.CANCELLED, grace_s=0.0 if now else grace)
    if state is RunState.UNKNOWN:  # The backend could not end it in time; status says more.
        state = found.state()
    ending.show(found, follower.watch, state, as_json=json_, with_curve=False)


def resume(
    run: RunArgument,
    *,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="TIME",
            help="From now on the longest time of an attempt: seconds, or 90m, 6h, 1d.",
            show_default=False,
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            metavar="USD",
            help="From now on the most that all attempts together may cost.",
            show_default=False,
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            metavar="USD",
            help="What an hour of its machines costs.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Go on with another backend; the run has to lie in a bucket.",
            autocompletion=complete.backends,
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Print the id and return; the run goes on.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Go on with a run that ended early, from its newest checkpoint. Example: ft cloud resume @last --max-cost 20"""
    from ft.launcher import dispatch, lifecycle
    from ft.launcher.backends.registry import backend as load_backend
    from ft.launcher.cli import attach as view
    from ft.launcher.cli.run import find
    from ft.recipes.runstore import RunState

    changes = _changes(timeout, max_cost, price_per_hour)
    found = find(run)
    state = found.state()
    if state is RunState.SUCCEEDED:
        _show_result(found, as_json=json_)
        return
    before = _why_it_goes_on(found, state)
    if backend is not None and backend != found.record.backend:
        found.record = lifecycle.move(found.record, found.runs, backend, changes)
    else:
        found.record = lifecycle.resume(found.record, found.runs, changes)
    # One that has not looked yet: what was seen a moment ago is the end that is no more.
    found.backend = load_backend(found.record.backend)
    if found.record.submitting:
        found.record = dispatch.settle(found.record, found.runs)
    if _lives(state) and changes:
        console.warn("its limits stay as they are while it runs: ft cloud cancel it first")
    for line in before:
        console.note(line)
    if not detach:
        view.attach(found, as_json=json_, from_now=True)
    elif json_:
        console.out_json({"id": found.record.id, "name": found.record.name})
    else:
        console.out(found.record.id)
        for command in view.commands(found):
            console.hint(command)


def _changes(
    timeout: str | None, max_cost: float | None, price_per_hour: float | None
) -> LimitChanges:
    from ft.launcher.lifecycle import LimitChanges
    from ft.recipes.schema.cloud import duration_s

    for name, value in (("--max-cost", max_cost), ("--price-per-hour", price_per_hour)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name} {value:g}: expected more than 0 US dollars")
    seconds = None
    if timeout is not None:
        try:
            seconds = duration_s(int(timeout) if timeout.isdecimal() else timeout)
        except ValueError as error:
            raise UsageError(f"--timeout {error}") from error
        if seconds < 1:
            raise UsageError(f"--timeout {timeout}: expected at least a second")
    return LimitChanges(seconds, max_cost, price_per_hour)


def _lives(state: RunState) -> bool:
    from ft.recipes.runstore import RunState

    return not state.ended and state is not RunState.UNKNOWN


def _why_it_goes_on(run: Run, state: RunState) -> list[str]:
    """What there is to know before a resume, put together before it changes."""
    from ft.recipes.runstore import RunState

    name = run.record.id
    if _lives(state):
        return [f"run {name} is {state} already"]
    why = run.explain()
    if state is RunState.UNKNOWN:
        return [f"run {name}: {why}"]
    return [f"run {name} had ended: {state} ({run.reason()}): {why}", "it goes on"]


def _show_result(run: Run, *, as_json: bool) -> None:
    from ft.launcher.cli import attach as view
    from ft.launcher.cli import ending
    from ft.recipes.runstore import RunState

    if as_json:
        follower = view.Follower(run)
        follower.catch_up()
        console.out_json(ending.summary(run, follower.watch, RunState.SUCCEEDED))
    else:
        console.out(f"run {run.record.id} has succeeded; its result is in {run.delivered()}")


def wait(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Ids, beginnings of ids, names, or @last.",
            autocompletion=complete.runs,
            show_default=False,
        ),
    ],
    *,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            help="Wait no longer than this: exit code 124.",
            show_default=False,
        ),
    ] = None,
    any_: Annotated[bool, typer.Option("--any", help="Return when the first one ends.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per end, in a line.")
    ] = False,
) -> None:
    """Block until runs have ended; the exit code is the worst end's. Example: ft cloud wait one two --timeout 3600"""
    from ft.launcher.cli import waiting
    from ft.launcher.cli.run import find

    found = {run.record.id: run for run in map(find, runs)}
    code = waiting.wait(list(found.values()), timeout_s=timeout, first=any_, as_json=json_)
    raise typer.Exit(code)


class OptionalStep(TyperCommand):
    """`--checkpoint` alone means the newest one; typer has no option whose value may be left out."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's own
        given: list[str] = []
        for number, word in enumerate(args):
            given.append(word)
            after = args[number + 1] if number + 1 < len(args) else ""
            if word == CHECKPOINT and not (after.isdecimal() or after == NEWEST):
                given.append(NEWEST)
        return super().parse_args(ctx, given)


def fetch(
    run: RunArgument,
    *,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FOLDER",
            help="Where to. Default: output_dir of the recipe; for a checkpoint a folder in it.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            CHECKPOINT,
            metavar="[STEP|newest]",
            help="A checkpoint instead of the result: of this step, or the newest.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite other files of the same name.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Copy the adapter or model of a run, every byte verified. Example: ft cloud fetch @last --to my-adapter"""
    from ft.launcher.cli import fetching
    from ft.launcher.cli.run import find

    step = None if checkpoint in {None, NEWEST} else checkpoint
    if step is not None and not step.isdecimal():
        raise UsageError(f"{CHECKPOINT} {step}: expected a step or newest")
    result = fetching.fetch(
        find(run).must_have_started(),
        to=to,
        step=None if step is None else int(step),
        wants_checkpoint=checkpoint is not None,
        force=force,
    )
    if json_:
        console.out_json(result.to_json())
    else:
        console.out(result.sentence())


def adopt(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help="Of a run that another machine started: a folder, modal://VOLUME/RUN or s3://BUCKET/…/RUN.",
            autocompletion=complete.stores,
            show_default=False,
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the run here.", show_default=False),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make a store from another machine a run of this one. Example: ft cloud adopt /mnt/store/20261123-174512-3f9a"""
    from ft.launcher import lifecycle
    from ft.launcher.cli import runs_view
    from ft.launcher.cli.run import open_run
    from ft.launcher.runs import Runs

    check_name(name)
    runs = Runs()
    record, seen, fresh = lifecycle.adopt(store, name=name, runs=runs)
    found = open_run(record, runs)
    for note in seen.notes:
        console.warn(note)
    if json_:
        console.out_json(runs_view.status_json(found))
        return
    called = f" ({record.name})" if record.name != record.id else ""
    console.note(f"run {record.id}{called} {'adopted' if fresh else 'is here already'}", "bold")
    console.out(record.id)
    console.hint(f"ft cloud status {record.id}")


def prune(
    *,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=0, help="Leave the newest N alone.", show_default=False
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Only what ended longer ago: 90m, 6h, 7d.",
            show_default=False,
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only runs that failed or were cancelled.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also results that lie nowhere else.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print JSON on stdout; removes nothing without --yes."),
    ] = False,
) -> None:
    """Remove runs that have ended, with their stores. Example: ft cloud prune --older-than 7d --keep 5"""
    from ft.launcher.cli import pruning
    from ft.launcher.cli.run import all_runs

    wish = pruning.Wish(keep or 0, pruning.age_s(older_than), failed, force)
    runs = all_runs()
    listed = pruning.look(runs, wish)
    if json_:
        gone = pruning.remove(listed) if yes else []
        console.out_json(pruning.to_json(listed, gone))
        return
    for line in pruning.lines(listed):
        console.out(line)
    for name in pruning.abandoned(runs):
        console.note(
            f"run {name} has not ended, though nobody looks after it: ft cloud cancel {name}"
        )
    if not any(item.goes for item in listed):
        console.note("nothing to remove")
        return
    if not yes:
        pruning.ask(listed)
    gone = pruning.remove(listed)
    console.note(f"removed {console.size(sum(item.size for item in gone))}")


def register(app: typer.Typer) -> None:
    """Put these commands into `ft cloud`."""
    for command in (cancel, resume, wait, adopt, prune):
        app.command()(command)
    app.command(cls=OptionalStep)(fetch)
