"""What may happen to a run after it was submitted: cancelled, resumed, adopted. Knows no vendor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ft.launcher.backends.base import Adopted, Submission
from ft.launcher.backends.bucket_left import left_in, sender
from ft.launcher.backends.registry import backend as load_backend
from ft.launcher.backends.registry import keepers
from ft.launcher.bucket_store import RunBucket
from ft.launcher.dispatch import settle, submission_of
from ft.launcher.ends import OUTCOME
from ft.launcher.runs import RUN_ID, SUBMISSION, RunRecord, Runs, new_id
from ft.recipes.errors import FtError, PlanError, UnreachableError, UsageError
from ft.recipes.plan import LimitsPlan, RunPlan, read_plan
from ft.recipes.runstore import Reason, RunState, write_atomic
from ft.recipes.schema.cloud import CloudBlock
from ft.recipes.store import LocalStore


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


def move(record: RunRecord, runs: Runs, to: str, changes: LimitChanges) -> RunRecord:
    """Let another backend go on with a run whose copy lies in a bucket: the same plan, from its newest checkpoint.

    One that has succeeded comes back as it is. Whatever it raises but UnreachableError, all is as it was.
    Raises: UsageError if it lives, or lies where no other backend sees it; PlanError if `to` cannot run its plan;
    UnreachableError if nobody can say whether it lives.
    """
    with runs.held(record.id):
        record = runs.reread(record)
        state = _state_of(record)
        if state is RunState.SUCCEEDED:
            return record
        before, end = runs.submission(record.id), _read(runs.folder(record.id) / OUTCOME)
        bucket = _must_be_movable(record, state, before, to)
        there = {name: bucket.read(name) for name in (SUBMISSION, OUTCOME)}
        plan = changes.apply(_planned(before))
        block = CloudBlock.model_validate({**before.cloud, "backend": to})
        _, submission = submission_of(load_backend(to), plan, before.uploads, block)
        after, old = record.resumed_after, load_backend(record.backend)
        if record.handle:
            if state.ended:
                after = max(old.store(record.as_handle()).attempts(), default=0)
            old.release(record.as_handle())
        else:
            old.abandon(record.id)
        bucket.reopen()
        runs.put_submission(record.id, submission)
    moved = runs.update(
        record,
        backend=to,
        state=RunState.SUBMITTING,
        handle={},
        store=str(submission.request["store"]).replace("{run}", record.id),
        resumed_after=after,
        message="",
    )
    try:
        return settle(moved, runs)
    except UnreachableError:
        raise  # Nobody knows what has begun: the next command goes on with it.
    except FtError:
        with contextlib.suppress(FtError):  # What was refused is what the user has to know.
            _put_back(bucket, there)
        runs.put_submission(record.id, before)
        if end is not None:
            write_atomic(runs.folder(record.id) / OUTCOME, end)
        same = ("backend", "state", "handle", "store", "resumed_after", "message")
        runs.update(moved, **{name: getattr(record, name) for name in same})
        raise


def _put_back(bucket: RunBucket, there: Mapping[str, bytes | None]) -> None:
    """To whom the run was sent last, and how that ended."""
    for name, content in there.items():
        if content is None:
            bucket.remove(name)
        else:
            bucket.write(name, content.decode())


def _state_of(record: RunRecord) -> RunState:
    """UNKNOWN also for one that no backend has taken."""
    if not record.handle:
        return RunState.UNKNOWN
    return load_backend(record.backend).status(record.as_handle())


def _must_be_movable(
    record: RunRecord, state: RunState, submission: Submission, to: str
) -> RunBucket:
    """Where it lies. Raises: UsageError."""
    if not state.ended and state is not RunState.UNKNOWN:
        raise UsageError(
            f"run {record.id} goes on with backend {record.backend}",
            hint=f"ft cloud cancel {record.id}  saves and ends it; then the same command again",
        )
    place = submission.cloud.get("store_bucket")
    if place is None:
        raise UsageError(
            f"run {record.id} cannot go on with backend {to}: only a run in a bucket moves, and it lies in "
            f"{record.store or 'none'}",
            hint="a run with cloud.store_bucket can move; this one goes on with "
            f"backend {record.backend}",
        )
    bucket = RunBucket(f"{str(place).rstrip('/')}/{record.id}")
    left = (
        left_in(bucket) if record.handle else None
    )  # Else nobody took it: that says who had it before.
    if left is not None and left.backend != record.backend:
        raise UsageError(
            f"run {record.id} has gone on with backend {left.backend}, from another laptop",
            hint="that laptop looks after it: ft cloud ls  there",
        )
    return bucket


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


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


def adopt(store: str, *, name: str | None, runs: Runs) -> tuple[RunRecord, Adopted, bool]:
    """Make a record here for a store that another machine made, by its name. False: there is one already.

    Raises: UsageError if it is no store, or the run's name is taken; NotFoundError if there is no such store;
    PlanError if its plan is of another version.
    """
    place = _one_name(store)
    found_in = keepers(place)
    sent_to = sender(place) if len(found_in) > 1 else None
    keeper_of_it = sent_to if sent_to in found_in else found_in[0]
    known = _known(place, runs)
    if known is not None and sent_to in found_in and known.backend != sent_to:
        raise UsageError(
            f"run {known.id} is here as one of backend {known.backend}, and has gone on with backend {sent_to} "
            "from another laptop",
            hint=f"move {runs.folder(known.id)} away, and the same command again",
        )
    run_id = known.id if known is not None else _free_id(place, runs)
    found = load_backend(keeper_of_it).adopt(place, key=run_id)
    with runs.naming():
        known = _known(place, runs)
        if known is not None:
            return known, found, False
        if name is not None and runs.named(name) is not None:
            raise UsageError(f"there is a run {name!r} already", hint="--name with another name")
        if runs.get(run_id) is not None:
            raise UsageError(
                f"a run {run_id} was made in the meantime", hint="the same command again"
            )
        record = RunRecord(
            id=run_id,
            name=name or run_id,
            backend=keeper_of_it,
            state=RunState.QUEUED,
            created_at=found.began_at,
            recipe="",
            plan_sha256=RunPlan.from_json(found.submission.plan_json).sha256,
            output_dir=str(Path.cwd() / "model-out" / (name or run_id)),
            store=place,
            handle=dict(found.handle.values),
            resumed_after=found.resumed_after,
            adopted=True,
        )
        runs.create(record, found.submission)
    return record, found, True


def _one_name(store: str) -> str:
    """The same text for the same store. Without a scheme it is a folder."""
    return store.rstrip("/") if "://" in store else str(Path(store).resolve())


def _known(place: str, runs: Runs) -> RunRecord | None:
    return next((r for r in runs.all() if r.store and _one_name(r.store) == place), None)


def _free_id(place: str, runs: Runs) -> str:
    """The id that the store is called by, unless another run has it here."""
    called = place.rpartition("/")[2]
    if RUN_ID.fullmatch(called) and not runs.folder(called).exists():
        return called
    return new_id()


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
