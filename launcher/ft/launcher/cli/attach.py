"""The live view of a run: follows its events and its machines until the end, or until Ctrl-C."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, Self

import typer

from ft.launcher import dispatch
from ft.launcher.cli import console, ending, fetching
from ft.launcher.cli.run import Run, open_run
from ft.launcher.cli.watch import Watch
from ft.launcher.dispatch import Prepared
from ft.launcher.runs import Runs
from ft.recipes.errors import FtError, WaitTimeoutError
from ft.recipes.runstore import Reason, RunState

POLL_S: Final = 0.25
PLAIN_EVERY_S: Final = 5.0
"""Between two lines of progress where there is no terminal."""
LOST_POLLS: Final = 4
"""A run is gone when it was UNKNOWN this often in a row: one look may fall into its last moment."""
STOP_GRACE_S: Final = 60.0
ANSWER_S: Final = 20.0
"""After the grace, until a backend that should have killed the run is taken for dead."""
INTERRUPTED: Final = 130


class View(Protocol):
    """Shows what a watch knows. Called after every event and at every look at the machines."""

    def show(self, lines: Sequence[str], watch: Watch, state: RunState) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def submit(prepared: Prepared, *, name: str | None) -> Run:
    """Start the run, or find the one that has this name; says on stderr which."""
    runs = Runs()
    _say_what_travels(prepared)
    try:
        record, fresh = dispatch.submit(prepared, name=name, runs=runs)
    except KeyboardInterrupt:
        console.warn(
            "interrupted while the run was being started; the next command goes on with it"
        )
        console.hint("ft cloud ls")
        raise
    called = f" ({record.name})" if record.name != record.id else ""
    console.note(f"run {record.id}{called} {'started' if fresh else 'is there already'}", "bold")
    run = open_run(record, runs)
    if not fresh:
        _warn_of_limits(run, dispatch.kept_limits(prepared, record, runs))
    return run


def _say_what_travels(prepared: Prepared) -> None:
    """Before an upload that may take its time."""
    uploads = prepared.submission.uploads
    if prepared.image is not None and uploads:
        size = console.size(sum(upload.size for upload in uploads))
        console.note(
            f"sending {console.plural(len(uploads), 'input')}, {size}; what is there is not sent again"
        )


def _warn_of_limits(run: Run, kept: Mapping[str, tuple[Any, Any]]) -> None:
    """Limits are no part of what makes a plan the same: say that those of the recipe count for nothing here."""
    if not kept or run.state() is RunState.SUCCEEDED:
        return
    values = ", ".join(
        f"{name} {_limit(old)}, not {_limit(new)}" for name, (old, new) in kept.items()
    )
    console.warn(f"it keeps the limits that it has: {values}")
    options = [
        f"--{name.removesuffix('_s').replace('_', '-')} {new:g}"
        for name, (_, new) in kept.items()
        if new is not None
    ]
    if options:
        name = run.record.name
        console.hint(f"ft cloud cancel {name}; ft cloud resume {name} {' '.join(options)}")


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def attach(
    run: Run,
    *,
    as_json: bool,
    stop_on_interrupt: bool = False,
    timeout_s: float | None = None,
    from_now: bool = False,
) -> None:
    """Watch to the end, then say how it ended. Ctrl-C lets go of the run, or stops it.

    `from_now`: what has happened so far is taken in without being shown.

    Raises: SubmitError if it never started, RunFailedError, RunCancelledError,
    WaitTimeoutError if it has not ended after `timeout_s` seconds; typer.Exit(130).
    """
    follower = Follower(run, timeout_s)
    with _json_on_errors(follower, as_json=as_json):
        run.must_have_started()
    if from_now:
        follower.catch_up()
    try:
        with _json_on_errors(follower, as_json=as_json):
            state = follower.follow()
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            raise _let_go(run) from None
        console.note()
        state = stop(follower, reason=Reason.USER, grace_s=STOP_GRACE_S)
        ending.show(run, follower.watch, state, as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    if state is RunState.SUCCEEDED:
        fetching.bring(run)
    ending.show(run, follower.watch, state, as_json=as_json)
    ending.check(run, state)


@contextmanager
def _json_on_errors(follower: Follower, *, as_json: bool) -> Iterator[None]:
    """A program gets its object even if the run never started, or takes too long."""
    try:
        yield
    except FtError:
        if as_json:
            run = follower.run
            console.out_json(ending.summary(run, follower.watch, run.state()))
        raise


class Follower:
    """Reads the events of a run once each, however often `follow` is called."""

    def __init__(self, run: Run, timeout_s: float | None = None) -> None:
        self.run = run
        self.watch = Watch()
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._deadline = time.monotonic() + self._timeout_s
        self._offset = 0

    def catch_up(self) -> None:
        """Take in what has happened so far, silently."""
        events, self._offset = self.run.store.events(offset=self._offset)
        for event in events:
            self.watch.apply(event)

    def wait_at_most(self, timeout_s: float) -> None:
        """From now on."""
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def follow(self) -> RunState:
        """Show what happens until the run has ended (its state), or is gone (UNKNOWN).

        Raises: WaitTimeoutError.
        """
        lost = 0
        view: View = LiveView() if console.is_terminal(sys.stderr) else PlainView()
        with view:
            while True:
                # First the state, then the events: none is missed at the end.
                state = self.run.state()
                self._show_events(view, state)
                lost = lost + 1 if state is RunState.UNKNOWN else 0
                if state.ended or lost == LOST_POLLS:
                    return state
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise self._timeout(state)
                time.sleep(min(POLL_S, left))

    def _timeout(self, state: RunState) -> WaitTimeoutError:
        run_id = self.run.record.id
        return WaitTimeoutError(
            f"run {run_id} is {state} after {self._timeout_s:g} s; it goes on",
            hint=f"ft cloud attach {run_id}",
        )

    def _show_events(self, view: View, state: RunState) -> None:
        events, self._offset = self.run.store.events(offset=self._offset)
        for event in events:
            view.show(self.watch.apply(event), self.watch, state)
        view.show((), self.watch, state)


def _let_go(run: Run) -> typer.Exit:
    # From here on there is nothing left to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console.note(f"\nlet go; run {run.record.id} goes on", "bold")
    for command in commands(run):
        console.note(f"  {command}")
    return typer.Exit(INTERRUPTED)


def commands(run: Run) -> list[str]:
    """How to get back to a run."""
    return [f"ft cloud {verb} {run.record.id}" for verb in ("attach", "logs -f", "status")]


def stop(follower: Follower, *, reason: Reason, grace_s: float) -> RunState:
    """Ask the run to save and end, and show how it does. It is killed after `grace_s` seconds.

    A second Ctrl-C does not wait. Raises: typer.Exit(130).
    """
    run, handle = follower.run, follower.run.record.as_handle()
    if grace_s:
        console.note(f"stopping; the run saves first, at most {grace_s:g} s …", "bold")
    else:
        console.note("killing the run; what it did since its last checkpoint is lost", "bold")
    try:
        run.backend.cancel(handle, grace_s=grace_s, reason=reason)
        follower.wait_at_most(grace_s + ANSWER_S)
        try:
            return follower.follow()
        except WaitTimeoutError:
            run.backend.kill(handle, reason=reason)
            return run.state()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.note("\nnot waiting; it was asked to stop, and does so by itself")
        console.note(f"  ft cloud status {run.record.id}")
        raise typer.Exit(INTERRUPTED) from None


class PlainView:
    """Lines on stderr, for files and pipes: one for each thing that is done, some for the steps."""

    def __init__(self) -> None:
        self._seen: object = None
        self._pending = ""
        self._shown_at = float("-inf")

    def show(self, lines: Sequence[str], watch: Watch, state: RunState) -> None:
        del state
        if watch.last_step and watch.last_step is not self._seen:
            self._seen, self._pending = watch.last_step, f"step {_step_text(watch)}"
        if lines or time.monotonic() - self._shown_at >= PLAIN_EVERY_S:
            self._show_step()
        for line in lines:
            console.note(line)

    def _show_step(self) -> None:
        # Emptied first: a Ctrl-C after the line is out must not show it twice.
        text, self._pending = self._pending, ""
        if text:
            self._shown_at = time.monotonic()
            console.note(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._show_step()


class LiveView:
    """A bar at the bottom of the terminal; what is done scrolls by above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("queued", total=None, text="")

    def show(self, lines: Sequence[str], watch: Watch, state: RunState) -> None:
        for line in lines:
            style = next((s for word, s in LINE_STYLES.items() if line.startswith(word)), None)
            self._progress.console.print(line, style=style, markup=False, highlight=False)
        doing = watch.phase if state is RunState.RUNNING and watch.phase else state.lower()
        values: dict[str, Any] = {"description": doing, "text": _step_text(watch)}
        if watch.last_step:
            values |= {"completed": watch.step, "total": watch.total_steps}
        self._progress.update(self._task, **values)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


LINE_STYLES: Final = {"warning:": "yellow", "error:": "red", "attempt ": "yellow"}


def _step_text(watch: Watch) -> str:
    """`20/100  loss …  4.0 s left`; empty before the first step."""
    if not watch.last_step:
        return ""
    left = f"  {console.duration(watch.eta_s)} left" if watch.eta_s else ""
    return f"{watch.progress()}  {watch.step_text()}{left}"
