"""The supervisor's own work: attempts and what is kept of them, a grace that ends, an end whatever happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ft.launcher.attempts import attempts_of, end_of, note_missing_ends
from ft.launcher.backends.local import LocalBackend, read_outcome
from ft.launcher.runs import RunRecord, Runs
from ft.recipes.runstore import AttemptEnd, Event, RunState
from ft.recipes.store import LocalStore


def test_a_supervisor_that_fails_still_writes_an_end(tmp_path: Path) -> None:
    """Here its submission is damaged; nobody may wait for a run that is not there."""
    runs = Runs(tmp_path / "runs")
    folder = runs.folder("r1")
    folder.mkdir(parents=True)
    record = RunRecord(
        "r1", "r1", "local", "QUEUED", 1.0, "r.yml", "0" * 64, str(tmp_path / "out"), "s"
    )
    (folder / "record.json").write_text(record.to_json())
    (folder / "submission.json").write_text("{}")
    command = [sys.executable, "-P", "-m", "ft.launcher.backends.local_supervisor", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    end = read_outcome(folder)
    assert end is not None
    assert (end.state, end.reason) == (RunState.FAILED, "infra")
    assert end.message.startswith("the supervisor failed: KeyError: 'plan'")
    assert LocalBackend(runs).find("r1") is None


def test_ends_that_nobody_saw_are_written_from_what_the_attempts_told(tmp_path: Path) -> None:
    """Attempt 1 was seen, 2 counts no more, 3 told its end, 4 died without a word after step 12."""
    store = LocalStore(tmp_path)
    for number in (1, 2, 3, 4):
        store.attempt_folder(number).mkdir(parents=True)

    def event(kind: str, attempt: int, **data: object) -> None:
        store.append_event(Event(kind, 1.0, attempt, data))

    store.put_attempt_end(1, AttemptEnd(1, 3, 0, "unclassified"))
    event("step", 3, step=9)
    event("attempt", 3, mark="end", exit_code=75, reason="preempted", message="saved")
    event("resume", 4, step=10)
    event("checkpoint", 4, name="of another version")
    event("progress", 4, step="soon")
    event("progress", 4, step=12, total_steps=20)
    assert note_missing_ends(store, after=2, checkpoint_step=10) == [3, 4]
    assert store.attempt_ends(after=2) == [
        AttemptEnd(75, 9, 10, "preempted"),
        AttemptEnd(137, 12, 10, "killed"),
    ]
    assert end_of(store, 2) is None
    assert note_missing_ends(store, after=2, checkpoint_step=11) == []
    assert [(a.number, a.first_step, a.last_step, a.exit_code) for a in attempts_of(store)] == [
        (1, None, 3, 1),
        (2, None, None, None),
        (3, 1, 9, 75),
        (4, 11, 12, 137),
    ]
