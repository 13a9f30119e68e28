"""Recipe path -> run. Knows no vendor: what differs between backends is behind their protocol."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ft.images import bundle
from ft.images.resolve import resolve as resolve_image
from ft.images.spec import ImageSpec
from ft.launcher.backends.base import (
    Backend,
    Capability,
    Submission,
    Upload,
    user_of_image,
)
from ft.launcher.backends.registry import backend as load_backend
from ft.launcher.facts import gather
from ft.launcher.inputs import uploads_of
from ft.launcher.prices import Price, choice_for, price_for
from ft.launcher.runs import SUBMIT_LOCK, RunRecord, Runs, is_locked, new_id
from ft.recipes import rules
from ft.recipes.axolotl_cloud import layer as cloud_layer
from ft.recipes.errors import (
    FtError,
    NotFoundError,
    PlanError,
    Problem,
    RecipeError,
    Severity,
    UnreachableError,
    UsageError,
)
from ft.recipes.facts import Facts
from ft.recipes.load import BACKEND, BACKEND_KEY, load
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.paths import expand
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import DEFAULT_OUTPUT_DIR, resolve
from ft.recipes.rules import Report
from ft.recipes.runstore import RunState
from ft.recipes.schema.cloud import CloudBlock
from ft.recipes.simulate import parse_simulation

if TYPE_CHECKING:
    from ft.launcher.catalogs import Choice


@dataclass(frozen=True, slots=True)
class Checked:
    """A recipe, what is known beyond it, and what is wrong with it."""

    normalized: Normalized
    facts: Facts
    report: Report


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that will happen, before anything does."""

    checked: Checked
    plan: RunPlan
    image: ImageSpec | None
    """None where the backend runs without one."""
    backend: str
    backend_origin: str
    """Where the choice came from: `--backend`, `--cloud`, `cloud.backend`, or `default`."""
    submission: Submission
    output_dir: Path
    overrides: tuple[str, ...]
    price: Price | None = None
    """What an hour costs by the backend's list; None where the recipe says it, or nobody knows."""
    costs: bool = False
    """Whether an hour costs money at all."""
    choice: Choice | None = None
    """Which machines may come, where the backend chooses among several."""
    cloud_file: str = ""
    """As it was named after `--cloud`."""

    @property
    def num_rows(self) -> int | None:
        """Rows in all data sets to train on; None if one of them cannot be counted here."""
        facts = (self.checked.facts.files or {}).items()
        counts = [
            f.num_rows
            for at, f in facts
            if f is not None and at[0] == "datasets" and f.kind == "data"
        ]
        datasets = self.checked.normalized.flat.data.datasets or ()
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(datasets) else None


def check(
    path: str,
    overrides: Sequence[str] = (),
    *,
    cloud: str | None = None,
    backend: str | None = None,
    cluster: str | None = None,
    hashed: bool = False,
    here: bool = False,
) -> Checked:
    """Everything that can be known to be wrong on this laptop. Problems are in the report, not raised.

    `cloud` is the path of a cloud file of Axolotl's. What this machine cannot do is a warning, unless the recipe names
    a machine or is to run `here`.
    Raises: NotFoundError, UsageError for an unknown backend, and RecipeError only where a file is no YAML mapping at
    all.
    """
    layer = cloud_layer(cloud) if cloud is not None else None
    normalized = normalize(load(path, overrides, cloud=layer, backend=backend, cluster=cluster))
    facts = gather(normalized, hashed=False, here=here)
    report = rules.check(normalized, facts)
    if hashed and not report.of(Severity.ERROR):
        facts = gather(normalized, hashed=True, here=here)
    return Checked(normalized, facts, report)


def prepare(
    path: str,
    overrides: Sequence[str] = (),
    *,
    cloud: str | None = None,
    backend: str | None = None,
    cluster: str | None = None,
    simulate: Sequence[str] = (),
) -> Prepared:
    """Recipe -> plan -> submission; nothing is started. `simulate` are faults on order.

    Raises: RecipeError (2) with every problem; PlanError (3) if it cannot run as asked, or not yet;
    UsageError (2) if there is no such fault, or the backend takes none.
    """
    faults = tuple(str(parse_simulation(text)) for text in simulate)
    layers = {"cloud": cloud, "backend": backend, "cluster": cluster}
    checked = check(path, overrides, **layers, hashed=True, here=True)
    refused = refusal(checked)
    if refused is not None:
        raise refused
    flat = checked.normalized.flat
    name, origin = backend_of(checked.normalized)
    plan = resolve(flat, checked.facts)
    target = load_backend(name)
    if faults and Capability.SIMULATE not in target.capabilities:
        raise UsageError(
            f"--simulate: backend {name} has real faults only", hint="--backend local takes it"
        )
    block = flat.cloud.cloud or CloudBlock()
    uploads = uploads_of(checked.facts)
    image, submission = submission_of(target, plan, uploads, block, simulate=faults)
    output_dir = _output_dir(flat.checkpoint.output_dir or DEFAULT_OUTPUT_DIR)
    says_its_price = block.price_per_hour is not None
    return Prepared(
        checked,
        plan,
        image,
        name,
        origin,
        submission,
        output_dir,
        tuple(overrides),
        cloud_file=cloud or "",
        price=None if says_its_price else price_for(block, name),
        costs=Capability.COSTS in target.capabilities,
        choice=choice_for(block, name),
    )


def submission_of(
    target: Backend,
    plan: RunPlan,
    uploads: tuple[Upload, ...],
    block: CloudBlock,
    *,
    simulate: tuple[str, ...] = (),
) -> tuple[ImageSpec | None, Submission]:
    """What a backend would be given. Raises: PlanError if it cannot run it."""
    # Built only where it is used: a plan may fit this machine and no image of ours.
    image = None
    if Capability.IMAGE in target.capabilities:
        digest = bundle.source_digest()
        user = user_of_image(target.capabilities)
        image = resolve_image(plan, source_sha256=digest, additions=block.image, user=user)
    made = target.prepare(plan, image, uploads=uploads, cloud=block, simulate=simulate)
    cloud = block.model_dump(mode="json", exclude_none=True)
    return image, replace(made, cloud=cloud)


def refusal(checked: Checked) -> FtError | None:
    """Why a recipe that was checked for a run `here` cannot become one: RecipeError, PlanError, or None.

    What is not runnable yet goes before what this machine cannot do: on no machine would it run.
    """
    report = checked.report
    errors, planned = report.of(Severity.ERROR), report.of(Severity.PLANNED)
    mistakes = [problem for problem in errors if not _is_of_this_machine(problem, checked)]
    if errors and (mistakes or not planned):
        return RecipeError(report.problems)
    if not planned:
        return None
    who = (
        "neither this version of ft nor this machine can" if errors else "this version of ft cannot"
    )
    return PlanError(f"the recipe is right, but {who} run it", problems=report.problems)


def _is_of_this_machine(problem: Problem, checked: Checked) -> bool:
    """Whether another machine would do; the one that a recipe names is the recipe's own choice."""
    block = checked.normalized.flat.cloud.cloud
    is_named = block is not None and block.gpu is not None
    return not is_named and problem.rule in _MACHINE_RULES


_MACHINE_RULES: Final = frozenset(rule.id for rule in rules.RULES if "machine" in rule.needs)


def _output_dir(value: str) -> Path:
    """Raises: PlanError if nothing can be put there; better now than after training."""
    if "\0" in value:
        raise PlanError(f"output_dir {value!r} is no path", hint="--set output_dir=FOLDER")
    path = expand(value).absolute()
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "is not a folder" if not nearest.is_dir() else "cannot be written"
        raise PlanError(f"output_dir {value}: {nearest} {what}", hint="--set output_dir=FOLDER")
    return path


def backend_of(normalized: Normalized) -> tuple[str, str]:
    """The backend, and where the choice came from: `--backend`, `--cloud`, `cloud.backend`, or `default`."""
    block = normalized.flat.cloud.cloud
    if block is None or block.backend is None:
        return "local", "default"
    mark = normalized.mark(BACKEND_KEY)
    if mark == BACKEND:
        return block.backend, BACKEND.file
    from_cloud = mark.file == normalized.recipe.cloud_file
    return block.backend, "--cloud" if from_cloud else "cloud.backend"


def submit(
    prepared: Prepared, *, name: str | None = None, runs: Runs | None = None
) -> tuple[RunRecord, bool]:
    """Start the run, or find the one that has this name already. True if it is a new one.

    Survives a kill at any point: the same call again goes on where the last one stopped, with one run.
    Raises: UsageError if the name is taken by another plan, SubmitError if the backend did not take it.
    """
    runs = runs or Runs()
    heal(runs)
    with runs.naming():
        record = runs.named(name) if name else None
        fresh = record is None or record.never_started
        if record is not None and not fresh and record.plan_sha256 != prepared.plan.sha256:
            raise UsageError(
                f"run {name!r} exists with another plan (made {_date(record.created_at)})",
                hint=f"another --name starts a new run; `ft cloud attach {name}` shows that one",
            )
        if record is not None and not fresh:
            _same_rehearsal(record, prepared, runs)
        if record is None or fresh:
            record = _record(prepared, name, run_id=record.id if record else new_id())
            runs.create(record, prepared.submission)
    record = settle(record, runs)
    return (record if fresh else revive(record, runs)), fresh


def is_there(name: str | None, runs: Runs | None = None) -> bool:
    """Whether a run has this name already, so that `submit` finds it and begins none."""
    record = (runs or Runs()).named(name) if name else None
    return record is not None and not record.never_started


def _same_rehearsal(record: RunRecord, prepared: Prepared, runs: Runs) -> None:
    """A rehearsal and the real run are two things, although their plan is one. Raises: UsageError."""
    was = runs.submission(record.id).request.get("simulate", [])
    if list(was) != list(prepared.submission.request.get("simulate", [])):
        raise UsageError(
            f"run {record.name!r} exists {'with --simulate ' + ' '.join(was) if was else 'without --simulate'}",
            hint=f"another --name starts a new run; `ft cloud attach {record.name}` shows that one",
        )


def revive(record: RunRecord, runs: Runs) -> RunRecord:
    """Start a run again whose supervisor died with the machine: same plan, same store, newest checkpoint."""
    backend = load_backend(record.backend)
    with runs.held(record.id):
        if not record.handle or backend.status(record.as_handle()) is not RunState.UNKNOWN:
            return record
        handle = backend.resume(runs.submission(record.id), handle=record.as_handle())
    return runs.update(record, state=RunState.QUEUED, handle={**record.handle, **handle.values})


def kept_limits(prepared: Prepared, record: RunRecord, runs: Runs) -> dict[str, tuple[Any, Any]]:
    """Limits that a run which was there already keeps, although the recipe has others: name -> (kept, asked for)."""
    asked = prepared.plan.limits
    kept = RunPlan.from_json(runs.submission(record.id).plan_json).limits
    return {
        name: (getattr(kept, name), getattr(asked, name))
        for name in type(asked).model_fields
        if getattr(kept, name) != getattr(asked, name)
    }


def _record(prepared: Prepared, name: str | None, *, run_id: str) -> RunRecord:
    return RunRecord(
        id=run_id,
        name=name or run_id,
        backend=prepared.backend,
        state=RunState.SUBMITTING,
        created_at=time.time(),
        recipe=prepared.checked.normalized.recipe.source,
        plan_sha256=prepared.plan.sha256,
        output_dir=str(prepared.output_dir),
        store=str(prepared.submission.request.get("store", "")).replace("{run}", run_id),
        overrides=list(prepared.overrides),
        cloud_file=prepared.cloud_file,
    )


def settle(record: RunRecord, runs: Runs) -> RunRecord:
    """Take a SUBMITTING record to its end: adopt what was started, or start it now.

    Raises: SubmitError, DependencyError; the record then says FAILED and the same name may be used again.
    """
    with runs.held(record.id):
        record = runs.reread(record)
        if not record.submitting:
            return record
        backend = load_backend(record.backend)
        try:
            handle = backend.find(record.id) or backend.submit(
                runs.submission(record.id), key=record.id
            )
        except UnreachableError:
            raise  # Nobody knows what has begun: the record stays open for the next command.
        except FtError as error:
            # Not only SubmitError: with a missing extra the record would stay open, and `heal` would
            # start the run at some later command, once somebody has installed it.
            runs.update(record, state=RunState.FAILED, message=error.message)
            raise
        return runs.update(record, state=RunState.QUEUED, handle=dict(handle.values))


def heal(runs: Runs) -> list[FtError]:
    """Finish submissions whose CLI was killed. Returns what could not be mended."""
    errors: list[FtError] = []
    for record in runs.all():
        if record.submitting and not is_locked(runs.folder(record.id) / SUBMIT_LOCK):
            try:
                settle(record, runs)
            except FtError as error:
                errors.append(error)
    return errors


def refresh(record: RunRecord, runs: Runs, backend: Backend) -> tuple[RunRecord, RunState]:
    """The state of the machines now; the record remembers an end."""
    if record.submitting or record.never_started:
        return record, RunState(record.state)
    state = backend.status(record.as_handle())
    if state.ended and record.state != state:
        with contextlib.suppress(NotFoundError):  # It was removed: nothing is left to remember it.
            record = runs.update(record, state=state)
    return record, state


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
