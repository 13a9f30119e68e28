"""`ft cloud ls` and `ft cloud status` as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, Final

from ft.launcher.cli import console
from ft.launcher.cli.run import Run
from ft.launcher.cli.watch import number
from ft.recipes.errors import StoreError
from ft.recipes.runstore import RunState, Status

SILENT_S: Final = 60.0
"""A heartbeat older than this is worth a word; the agent writes one every few seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """A run in the list."""

    id: str
    name: str
    backend: str
    state: str
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
        step=status.step if status else None,
        total_steps=status.total_steps if status else None,
        loss=status.loss if status else None,
        created_at=run.record.created_at,
        recipe=run.record.recipe,
    )


HEADER: Final = ("ID", "NAME", "STATE", "STEP", "LOSS", "STARTED", "RECIPE")


def listing(runs: Sequence[Run]) -> list[str]:
    """The newest last, where the eye is. Name and recipe are cut to fit."""
    cells = []
    for found in map(row, runs):
        total = f"/{found.total_steps}" if found.total_steps else ""
        cells.append(
            (
                found.id,
                found.name if found.name != found.id else "-",
                found.state,
                "-" if found.step is None else f"{found.step}{total}",
                "-" if found.loss is None else number(found.loss),
                console.ago(found.created_at),
                PurePath(found.recipe).stem,
            )
        )
    return console.table(HEADER, cells, shrink=(1, 6))


def status(run: Run) -> Iterator[str]:
    """What the machines do beside what training says; then what follows from the two."""
    training, state = run.status(), run.state()
    record = run.record
    called = f" ({record.name})" if record.name != record.id else ""
    yield f"run {record.id}{called}, started {console.ago(record.created_at)}"
    yield ""
    half = (console.width() - 4) // 2
    left = _block("machines", _machines(run, state))
    right = _block("training", _training(training))
    for one, two in zip_longest(left, right, fillvalue=""):
        yield f"  {console.cut(one, half):<{half}}  {console.cut(two, half)}".rstrip()
    yield ""
    why, said = run.explain(), (training and training.message) or ""
    for label, text in (
        ("why", why),
        ("message", said if said not in why else ""),
        ("recipe", " ".join([record.recipe, *(f"--set {item}" for item in record.overrides)])),
        ("store", record.store),
        ("output", run.delivered() or f"{record.output_dir} (at the end)"),
    ):
        if text:
            yield from console.labelled(label, text)
    for line in _disagreement(state, training):
        yield ""
        yield line


def _block(title: str, facts: dict[str, str]) -> list[str]:
    return [title, *(f"  {label:<11}{text}" for label, text in facts.items())]


def _machines(run: Run, state: RunState) -> dict[str, str]:
    attempts = len(run.store.attempts()) if run.started else 0
    return {"backend": run.record.backend, "state": str(state), "attempts": str(attempts)}


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
    if status.exit_code is not None:
        facts["ended"] = f"{status.reason or 'unknown'} (exit code {status.exit_code})"
    facts["heartbeat"] = console.ago(status.updated_at)
    return facts


def _disagreement(state: RunState, status: Status | None) -> Iterator[str]:
    """Where machines and training do not fit together, which is a diagnosis."""
    if status is None or state is not RunState.RUNNING:
        return
    age = time.time() - status.updated_at
    if age > SILENT_S:
        yield f"The machines run, but training has said nothing for {console.duration(age)}: it may hang."


def status_json(run: Run) -> dict[str, Any]:
    """The record, the machines and training. `heartbeat_age_s` is null where nothing was heard."""
    training, state = run.status(), run.state()
    record = run.record
    return {
        "id": record.id,
        "name": record.name,
        "created_at": record.created_at,
        "recipe": record.recipe,
        "overrides": record.overrides,
        "plan_sha256": record.plan_sha256,
        "output_dir": record.output_dir,
        "store": record.store,
        "output": run.delivered() or None,
        "machines": {
            "backend": record.backend,
            "state": str(state),
            "message": run.explain() or None,
        },
        "training": asdict(training) if training else None,
        "heartbeat_age_s": round(time.time() - training.updated_at, 3) if training else None,
    }
