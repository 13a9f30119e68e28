"""What may happen to a run after it was submitted: cancelled, resumed, adopted. Knows no vendor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ft.launcher.backends.base import Submission
from ft.launcher.backends.registry import backend as load_backend
from ft.launcher.runs import RunRecord, Runs, new_id
from ft.recipes.errors import FtError, PlanError, UsageError
from ft.recipes.plan import LimitsPlan, RunPlan, read_plan
from ft.recipes.runstore import EVENTS, PLAN, Event, Reason, RunState
from ft.recipes.store import LocalStore

RUN_ID: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
ADOPTED_BY: Final = "local"
"""A store that can be seen as a folder is this machine's to go on with."""


@dataclass(frozen=True, slots=True)
class LimitChanges:
    """Limits that a resume changes; None leaves one as it is."""

    timeout_s: int | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None

    def __bool__(self) -> bool:
        return bool(self._given())

    def apply(self, plan: RunPlan) -> RunPlan:
        """Raises: UsageError if money is to be counted and nobody knows the price."""
        limits = plan.limits.model_copy(update=self._given())
        if limits.max_cost is not None and limits.price_per_hour is None:
            raise UsageError(
                "--max-cost: nobody knows what an hour of this run costs",
                hint="--price-per-hour USD says it",
            )
        return plan.model_copy(update={"limits": limits})

    def _given(self) -> dict[str, float]:
        given = {
            "timeout_s": self.timeout_s,
            "max_cost": self.max_cost,
            "price_per_hour": self.price_per_hour,
        }
        return {name: value for name, value in given.items() if value is not None}


def withdraw(record: RunRecord, runs: Runs) -> RunRecord:
    """End a submission that nobody has finished. A run that a backend has taken comes back with its handle."""
    with runs.held(record.id):
        record = runs.reread(record)
        if not record.submitting:
            return record
        backend = load_backend(record.backend)
        handle = backend.find(record.id)
        if handle is not None:
            return runs.update(record, state=RunState.QUEUED, handle=dict(handle.values))
        backend.abandon(record.id)
        message = "cancelled before it was started"
        return runs.update(record, state=RunState.CANCELLED, message=message)


def resume(record: RunRecord, runs: Runs, changes: LimitChanges) -> RunRecord:
    """Go on with a run that was cancelled, that failed, or that nobody looks after any more.

    One that never started is to be submitted again: it comes back SUBMITTING. One that lives or has succeeded comes
    back as it is. The restart policy begins anew for a run that had ended, since somebody has mended something.
    Raises: NotFoundError if it was removed, PlanError if the store holds another plan, SubmitError if the backend does
    not take it; all is as it was then.
    """
    with runs.held(record.id):
        record = runs.reread(record)
        if not record.handle:
            planned = _planned(runs.submission(record.id))
            runs.put_submission(record.id, _amended(runs, record, changes.apply(planned)))
            return runs.update(record, state=RunState.SUBMITTING, message="")
        backend = load_backend(record.backend)
        handle = record.as_handle()
        state = backend.status(handle)
        living = not state.ended and state is not RunState.UNKNOWN
        if state is RunState.SUCCEEDED or (living and not backend.elsewhere(handle)):
            return record
        store = backend.store(handle)
        plan = read_plan(store.plan_path)
        if plan.sha256 != record.plan_sha256:
            raise PlanError(
                f"{store.plan_path} is not the plan that run {record.id} began with",
                hint="another plan is another run: ft cloud run RECIPE",
            )
        amended = changes.apply(plan)
        _refuse_without_money(amended.limits, store)
        submission, before = _amended(runs, record, amended), record.resumed_after
        if state.ended:
            runs.update(record, resumed_after=max(store.attempts(), default=0))
        try:
            taken = backend.resume(submission, handle=handle)
        except FtError:
            runs.update(record, resumed_after=before)  # All is as it was.
            raise
        runs.put_submission(record.id, submission)
    return runs.update(
        record, state=RunState.QUEUED, handle={**record.handle, **taken.values}, message=""
    )


def _refuse_without_money(limits: LimitsPlan, store: LocalStore) -> None:
    """An attempt that must end before it trains costs something all the same. Raises: UsageError."""
    status = store.get_status()
    if limits.max_cost is None or status is None or status.cost is None:
        return
    # Without a control it was its own limit that ended it.
    ended_for_it = status.reason == Reason.USER and store.get_control() is None
    if ended_for_it and status.cost >= limits.max_cost / 2:
        raise UsageError(
            f"{status.cost:.4g} of max_cost {limits.max_cost:g} USD are spent, and its last attempt "
            "ended for that",
            hint="--max-cost with more",
        )


def _planned(submission: Submission) -> RunPlan:
    return RunPlan.from_json(submission.plan_json)


def _amended(runs: Runs, record: RunRecord, plan: RunPlan) -> Submission:
    """The run's submission with this plan."""
    return replace(runs.submission(record.id), plan_json=plan.to_json())


def adopt(folder: Path, *, name: str | None, runs: Runs) -> tuple[RunRecord, bool]:
    """Make a record here for a store that another machine made. False: there is one already.

    Raises: UsageError if it is no store, or the name is taken; PlanError if its plan is of another version.
    """
    store = LocalStore(folder.resolve())
    plan = _plan_of(store)
    with runs.naming():
        known = next((r for r in runs.all() if r.store and _is_same(r.store, store.root)), None)
        if known is not None:
            return known, False
        run_id = _free_id(store.root.name, runs)
        if name is not None and runs.named(name) is not None:
            raise UsageError(f"there is a run {name!r} already", hint="--name with another name")
        submission, handle = load_backend(ADOPTED_BY).adopt(store.root, plan, key=run_id)
        record = RunRecord(
            id=run_id,
            name=name or run_id,
            backend=ADOPTED_BY,
            state=RunState.QUEUED,
            created_at=_begun(store),
            recipe="",
            plan_sha256=plan.sha256,
            output_dir=str(Path.cwd() / "model-out" / (name or run_id)),
            store=store.uri,
            handle=dict(handle.values),
            adopted=True,
        )
        runs.create(record, submission)
    return record, True


def _plan_of(store: LocalStore) -> RunPlan:
    if not store.plan_path.is_file():
        what = f"it has no {PLAN}" if store.root.is_dir() else "it is no folder"
        raise UsageError(
            f"{store.root} is no store of a run: {what}",
            hint="a store is a folder with plan.json, inputs/, status.json and events.jsonl",
        )
    return read_plan(store.plan_path)


def missing_inputs(store: LocalStore) -> list[str]:
    """Inputs of the plan that the store does not have; without them it cannot be resumed. Raises: PlanError."""
    plan = read_plan(store.plan_path)
    return [item.path for item in plan.inputs if not (store.root / item.path).exists()]


def _is_same(store: str, root: Path) -> bool:
    return Path(store).resolve() == root


def _free_id(folder_name: str, runs: Runs) -> str:
    """The id that the folder is called by, unless another run has it here."""
    if RUN_ID.fullmatch(folder_name) and not runs.folder(folder_name).exists():
        return folder_name
    return new_id()


def _begun(store: LocalStore) -> float:
    """Unix time of the first event, or of the plan where there is none."""
    try:
        with (store.root / EVENTS).open("rb") as stream:
            return Event.from_json(stream.readline()).time
    except (OSError, ValueError):
        return store.plan_path.stat().st_mtime


def leftovers(store: LocalStore) -> list[Path]:
    """What a killed attempt left behind and nobody will read again. Only of a run that has ended."""
    patterns = (
        (store.root, (".staging-*", ".old-*")),
        (store.checkpoints, (".old-*", "broken-*")),
    )
    return sorted(
        path
        for folder, names in patterns
        for name in names
        for path in folder.glob(name)
        if path.is_dir() and not path.is_symlink()
    )


def size_of(paths: Sequence[Path]) -> int:
    """Bytes of all files at or below `paths`; links count as nothing."""
    total = 0
    for path in paths:
        for file in (path, *path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
    return total
