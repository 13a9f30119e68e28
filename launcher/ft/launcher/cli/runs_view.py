"""`ft cloud ls` and `ft cloud status` as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, Final

from ft.launcher.attempts import Attempt, attempts_of
from ft.launcher.cli import console
from ft.launcher.cli.run import Run
from ft.launcher.cli.watch import number
from ft.launcher.runs import RunRecord
from ft.recipes.errors import StoreError
from ft.recipes.runstore import Event, RunState, Status

SILENT_S: Final = 60.0
"""A heartbeat older than this is worth a word; the agent writes one every few seconds."""
LONG_S: Final = 600.0
"""A phase without steps that takes longer is worth a word; a large model may need it."""
DOING: Final = {
    "preflight": "checking its machines",
    "load": "loading the model",
    "data": "preparing the data",
    "save": "saving",
    "eval": "evaluating",
    "export": "exporting",
}
SLOW_STEPS: Final = 10
"""A step that takes as long as this many may not come any more."""


@dataclass(frozen=True, slots=True)
class Row:
    """A run in the list."""

    id: str
    name: str
    backend: str
    state: str
    reason: str | None
    """Why it ended; None while it has not."""
    message: str | None
    """One sentence on its state; None while all is well."""
    step: int | None
    total_steps: int | None
    loss: float | None
    created_at: float
    recipe: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def row(run: Run) -> Row:
    """One broken store must not hide the other runs: what cannot be read is None."""
    try:
        status = run.status()
    except StoreError as error:
        console.warn(error.message)
        status = None
    state = run.state()
    return Row(
        id=run.record.id,
        name=run.record.name,
        backend=run.record.backend,
        state=str(state),
        reason=run.reason() or None,
        message=run.explain() or None,
        step=status.step if status else None,
        total_steps=status.total_steps if status else None,
        loss=status.loss if status else None,
        created_at=run.record.created_at,
        recipe=run.record.recipe,
    )


HEADER: Final = ("ID", "NAME", "STATE", "STEP", "LOSS", "STARTED", "RECIPE")


def listing(rows: Sequence[Row]) -> list[str]:
    """The newest last, where the eye is. Name and recipe are cut to fit."""
    cells = []
    for found in rows:
        total = f"/{found.total_steps}" if found.total_steps else ""
        cells.append(
            (
                found.id,
                found.name if found.name != found.id else "-",
                found.state,
                "-" if found.step is None else f"{found.step}{total}",
                "-" if found.loss is None else number(found.loss),
                console.ago(found.created_at),
                PurePath(found.recipe).stem or "-",
            )
        )
    return console.table(HEADER, cells, shrink=(1, 6))


def status(run: Run) -> Iterator[str]:
    """What the machines do beside what training says; then what follows from the two."""
    state, training, attempts = run.state(), run.status(), _attempts(run)
    record = run.record
    called = f" ({record.name})" if record.name != record.id else ""
    yield f"run {record.id}{called}, started {console.ago(record.created_at)}"
    yield ""
    half = (console.width() - 4) // 2
    left = _block("machines", _machines(run, state, len(attempts)))
    right = _block("training", _training(training))
    for one, two in zip_longest(left, right, fillvalue=""):
        yield f"  {console.cut(one, half):<{half}}  {console.cut(two, half)}".rstrip()
    yield ""
    why, said = run.explain(), (training and training.message) or ""
    for label, text in (
        ("why", why),
        ("message", said if said not in why else ""),
        ("recipe", _recipe(record)),
        ("store", record.store),
        ("output", run.delivered() or f"{record.output_dir} (at the end)"),
    ):
        if text:
            yield from console.labelled(label, text)
    ended = [attempt for attempt in attempts if attempt.exit_code is not None]
    if len(ended) > 1 or (ended and not state.ended):
        yield ""
        yield from _attempt_lines(attempts)
    for line in disagreement(state, training, pace=_pace(run, training), now=time.time()):
        yield ""
        yield from console.labelled("note", line)


def _recipe(record: RunRecord) -> str:
    """The recipe with what went over it, as it was typed."""
    cloud = [f"--cloud {record.cloud_file}"] if record.cloud_file else []
    return " ".join(
        [record.recipe, *cloud, *(f"--set {item}" for item in record.overrides)]
    ).strip()


def _block(title: str, facts: dict[str, str]) -> list[str]:
    return [title, *(f"  {label:<11}{text}" for label, text in facts.items())]


def _machines(run: Run, state: RunState, attempts: int) -> dict[str, str]:
    facts = {"backend": run.record.backend, "state": str(state)}
    if run.reason():
        facts["reason"] = run.reason()
    return {**facts, "attempts": str(attempts)}


def _attempts(run: Run) -> list[Attempt]:
    """Raises: StoreError."""
    if not run.started:
        return []
    try:
        return attempts_of(run.store)
    except (OSError, ValueError) as error:
        raise StoreError(f"{run.store.uri}: its attempts cannot be read ({error})") from error


def _attempt_lines(attempts: Sequence[Attempt]) -> Iterator[str]:
    """How each attempt went: number, steps from and to, reason, and what it said."""
    rows = []
    for attempt in attempts:
        steps = "-"
        if attempt.first_step is not None and attempt.last_step is not None:
            steps = f"{attempt.first_step}-{attempt.last_step}"
            if attempt.last_step < attempt.first_step:
                steps = "none"
        end, said = "goes on", ""
        if attempt.exit_code is not None:
            end = f"{attempt.reason or 'unknown'} ({attempt.exit_code})"
            said = "" if attempt.message in {None, attempt.reason} else str(attempt.message)
        rows.append((f"  {attempt.number}", steps, end, said))
    yield from console.table(("  ATTEMPT", "STEPS", "END", "WHY"), rows, shrink=(3,))


@dataclass(frozen=True, slots=True)
class Pace:
    """What the events say of how long things take."""

    step_time_s: float | None = None
    """Of the newest step that was logged; None before the first."""
    phase_since: float | None = None
    """Unix time when the current phase began; None if no event says it."""


def _pace(run: Run, status: Status | None) -> Pace:
    if not run.started:
        return Pace()
    events, _ = run.store.events()
    return pace(events, status)


def pace(events: Sequence[Event], status: Status | None) -> Pace:
    """From all events of a run, and what training said last. Pure."""
    times = [event.data.get("step_time_s") for event in events if event.kind == "step"]
    now = (status.attempt, status.phase) if status else None
    marks = [e for e in events if e.kind == "phase" and (e.attempt, e.data.get("name")) == now]
    is_in_it = marks and marks[-1].data.get("mark") == "begin"
    return Pace(
        step_time_s=float(times[-1]) if times and times[-1] else None,
        phase_since=marks[-1].time if is_in_it else None,
    )


def _training(status: Status | None) -> dict[str, str]:
    if status is None:
        return {"phase": "not begun"}
    total = f" of {status.total_steps}" if status.total_steps else ""
    facts = {"phase": status.phase, "attempt": str(status.attempt), "step": f"{status.step}{total}"}
    if status.loss is not None:
        facts["loss"] = number(status.loss)
    if status.tokens_per_s is not None:
        facts["speed"] = f"{status.tokens_per_s:.0f} tokens/s"
    if status.checkpoint_step is not None:
        facts["saved"] = f"step {status.checkpoint_step}"
    if status.cost is not None:
        facts["cost"] = f"{status.cost:.2f} USD"
    if status.exit_code is not None:
        facts["ended"] = f"{status.reason or 'unknown'} (exit code {status.exit_code})"
    facts["heartbeat"] = console.ago(status.updated_at)
    return facts


def disagreement(
    state: RunState, status: Status | None, *, pace: Pace, now: float
) -> Iterator[str]:
    """Where machines and training do not fit together, which is a diagnosis. Pure; `now` is Unix time."""
    if status is None:
        return
    silent_s = now - status.updated_at
    running = status.exit_code is None
    if state is RunState.UNKNOWN and running:
        yield (
            f"The machines are gone, while training said that it was in phase {status.phase} at step "
            f"{status.step} when it was last heard, {console.duration(silent_s)} ago."
        )
    elif state is RunState.RUNNING and silent_s > SILENT_S:
        yield (
            f"The machines run, but training has said nothing for {console.duration(silent_s)}: "
            "it may hang."
        )
    elif state is RunState.RUNNING and status.phase == "train" and status.last_step_at:
        stuck_s, usual_s = now - status.last_step_at, pace.step_time_s
        if stuck_s > max(SILENT_S, SLOW_STEPS * (usual_s or 0.0)):
            usual = f", a step took {console.duration(usual_s)}" if usual_s else ""
            yield (
                f"The worker is alive, but there was no step for {console.duration(stuck_s)}{usual}: "
                "it may hang."
            )
    elif state is RunState.RUNNING and status.phase in DOING and pace.phase_since:
        doing_s = now - pace.phase_since
        if doing_s > LONG_S:
            yield (
                f"The worker is alive, but it has been {DOING[status.phase]} for "
                f"{console.duration(doing_s)}."
            )
    elif state.ended and running:
        yield (
            f"The run has ended, while training last said that it was in phase {status.phase} at "
            f"step {status.step}: it was killed there."
        )


def status_json(run: Run) -> dict[str, Any]:
    """The record, the machines, training and its attempts. `heartbeat_age_s` is null where nothing was heard."""
    # The state first: what is said before an end is read after it.
    state, training, now = run.state(), run.status(), time.time()
    record = run.record
    return {
        "id": record.id,
        "name": record.name,
        "created_at": record.created_at,
        "recipe": record.recipe,
        "overrides": record.overrides,
        "cloud_file": record.cloud_file or None,
        "plan_sha256": record.plan_sha256,
        "output_dir": record.output_dir,
        "store": record.store,
        "output": run.delivered() or None,
        "machines": {
            "backend": record.backend,
            "state": str(state),
            "reason": run.reason() or None,
            "message": run.explain() or None,
        },
        "training": asdict(training) if training else None,
        "heartbeat_age_s": round(now - training.updated_at, 3) if training else None,
        "attempts": [attempt.to_json() for attempt in _attempts(run)],
        "notes": list(disagreement(state, training, pace=_pace(run, training), now=now)),
    }
