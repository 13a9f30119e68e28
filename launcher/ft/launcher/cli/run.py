"""A run record together with its backend and its store."""

from __future__ import annotations

from dataclasses import dataclass

from ft.launcher import dispatch
from ft.launcher.backends.base import Backend
from ft.launcher.backends.registry import backend as load_backend
from ft.launcher.cli import console
from ft.launcher.runs import RunRecord, Runs
from ft.recipes.errors import FtError, StoreError, SubmitError
from ft.recipes.runstore import Reason, RunState, Status
from ft.recipes.store import LocalStore


@dataclass(slots=True)
class Run:
    """What the commands on one run need. Made by `find` or `open_run`."""

    record: RunRecord
    runs: Runs
    backend: Backend

    @property
    def started(self) -> bool:
        """False while it is being submitted, and for ever if no backend has taken it."""
        return bool(self.record.handle)

    @property
    def store(self) -> LocalStore:
        return self.backend.store(self.record.as_handle())

    def state(self) -> RunState:
        """The machines now; an end is written into the record."""
        self.record, state = dispatch.refresh(self.record, self.runs, self.backend)
        return state

    def status(self) -> Status | None:
        """What training last said. Raises: StoreError if it cannot be read."""
        if not self.started:
            return None
        try:
            return self.store.get_status()
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.store.uri}: its status cannot be read ({error})") from error

    def explain(self) -> str:
        """One sentence on the state, empty while all is well."""
        if self.started:
            return self.backend.explain(self.record.as_handle())
        if self.record.submitting:
            return "it is being started"
        return self.record.message or "no backend has taken it"

    def reason(self) -> str:
        """Why it ended, a word of `Reason`; empty while it has not."""
        if self.started:
            return self.backend.reason(self.record.as_handle())
        if not self.record.never_started:
            return ""
        cancelled = self.record.state == RunState.CANCELLED
        return Reason.CANCELLED if cancelled else Reason.INFRA

    def delivered(self) -> str:
        """Where the finished adapter or model was put, by the backend or by `ft cloud fetch`; empty until it was."""
        if not self.started:
            return ""
        return self.backend.delivered(self.record.as_handle()) or self.record.fetched_to

    def must_have_started(self) -> Run:
        """This run, once its submission is over. Raises: SubmitError or DependencyError if it never started."""
        if self.record.submitting:
            # Waits for the other `ft` that is at it.
            try:
                self.record = dispatch.settle(self.record, self.runs)
            except FtError:
                self.record = self.runs.get(self.record.id) or self.record
                raise
        if not self.started:
            name = f" --name {self.record.name}" if self.record.name != self.record.id else ""
            why = f": {self.record.message}" if self.record.message else ""
            raise SubmitError(
                f"run {self.record.id} never started{why}",
                hint=f"ft cloud run {self.record.recipe}{name}",
            )
        return self


def all_runs() -> list[Run]:
    """Every run of this laptop, the oldest first, after what was left half done has been finished."""
    runs = _healed()
    opened = []
    for record in runs.all():
        try:
            opened.append(open_run(record, runs))
        except FtError as error:  # A backend that this version does not have, or not installed.
            console.warn(f"run {record.id} is left out: {error.message}")
    return opened


def find(reference: str) -> Run:
    """By id, beginning of an id, name or `@last`. Raises: NotFoundError, UsageError."""
    runs = _healed()
    return open_run(runs.find(reference), runs)


def find_unhealed(reference: str) -> Run:
    """As `find`, but a submission that nobody has finished stays as it is. Raises: NotFoundError, UsageError."""
    runs = Runs()
    return open_run(runs.find(reference), runs)


def open_run(record: RunRecord, runs: Runs) -> Run:
    return Run(record, runs, load_backend(record.backend))


def _healed() -> Runs:
    runs = Runs()
    for error in dispatch.heal(runs):
        console.warn(error.message)
    return runs
