"""The agent: what it refuses before anything is trained, and the status that it makes of events."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ft.recipes.digest import digest_of
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.runstore import Event, ExitCode, Status
from ft.recipes.store import LocalStore
from ft.runtime.agent import ATTEMPT_LOCK, advance, only_writer

RECIPE = """\
base_model: some/model
datasets: [{path: rows.jsonl, type: alpaca}]
learning_rate: 1e-4
"""


def plan_in(store: LocalStore) -> RunPlan:
    """A plan whose only input lies in the store."""
    data = store.root / "inputs" / "111-rows.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text('{"instruction": "a", "output": "b"}\n')
    fact = FileFact("data", data, data.name, digest_of(data), data.stat().st_size)
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    facts = Facts(files={("base_model",): None, ("datasets", 0, "path"): fact}, machine=machine)
    plan = resolve(normalize(loads(RECIPE)).flat, facts)
    store.plan_path.write_text(plan.to_json())
    return plan


def run_agent(store: LocalStore, attempt: int = 1) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "ft.runtime.agent",
        str(store.root),
        "--attempt",
        str(attempt),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def spoil_version(store: LocalStore) -> None:
    values = json.loads(store.plan_path.read_text())
    store.plan_path.write_text(json.dumps({**values, "schema_version": 99}))


def lose_plan(store: LocalStore) -> None:
    store.plan_path.unlink()


def lose_input(store: LocalStore) -> None:
    (store.root / "inputs" / "111-rows.jsonl").unlink()


def change_input(store: LocalStore) -> None:
    (store.root / "inputs" / "111-rows.jsonl").write_text("{}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_version, "plan.json has schema version 99, this runtime reads 1: launcher and runtime are of "
                        "different versions of ft"),
        (lose_plan, "plan.json cannot be read: [Errno 2] No such file or directory"),
        (lose_input, "inputs/111-rows.jsonl is missing"),
        (change_input, "inputs/111-rows.jsonl is not the file that was planned: its sha256 is another"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_78_and_says_why(tmp_path: Path, spoil: Any, message: str) -> None:
    store = LocalStore(tmp_path)
    plan_in(store)
    spoil(store)
    done = run_agent(store)
    assert done.returncode == ExitCode.CONFIG, done.stderr
    assert "Traceback" not in done.stderr
    status = store.get_status()
    assert status is not None
    assert (status.phase, status.exit_code, status.reason) == ("end", 78, "config")
    assert str(status.message).startswith(message)
    last = store.events()[0][-1]
    assert (last.kind, last.data["mark"], last.data["exit_code"]) == ("attempt", "end", 78)


def test_the_agent_imports_no_torch() -> None:
    code = "import sys, ft.runtime.agent; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ft.runtime.agent.LOCK_TIMEOUT_S", 0.2)
    store = LocalStore(tmp_path)
    with (tmp_path / ATTEMPT_LOCK).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with only_writer(store) as alone:
            assert not alone
    with only_writer(store) as alone:
        assert alone


def event(kind: str, **data: Any) -> Event:
    return Event(kind, 5.0, 1, data)


@pytest.mark.parametrize(
    ("happened", "expected"),
    [
        (event("phase", name="load", mark="begin"), Status(1, "load", 1.0)),
        (event("phase", name="load", mark="end", seconds=1), Status(1, "start", 1.0)),
        (
            event(
                "step",
                step=3,
                total_steps=9,
                epoch=0.5,
                loss=1.5,
                tokens_per_s=10.0,
                trained_tokens=7,
            ),
            Status(1, "start", 1.0, 3, 9, 0.5, 1.5, 10.0, 7, last_step_at=5.0),
        ),
        (
            event("resume", step=4, name="step-00000004"),
            Status(1, "start", 1.0, 4, checkpoint_step=4),
        ),
        (
            event("checkpoint", step=6, name="x", bytes=1, seconds=1),
            Status(1, "start", 1.0, checkpoint_step=6),
        ),
        (event("log", level="info", message="x"), Status(1, "start", 1.0)),
    ],
)
def test_status_after_an_event(happened: Event, expected: Status) -> None:
    assert advance(Status(1, "start", 1.0), happened) == expected
