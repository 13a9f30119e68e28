"""The supervisor's own work: delivery, and an end whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ft.launcher.backends.base import DELIVERED
from ft.launcher.backends.local import LocalBackend, read_outcome
from ft.launcher.backends.local_supervisor import deliver
from ft.launcher.runs import RunRecord, Runs
from ft.recipes.runstore import RunState


def final(folder: Path, *names: str) -> Path:
    for name in (*names, "manifest.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{folder.name} {name}")
    return folder


def test_a_delivery_replaces_the_one_before_and_leaves_what_is_the_users(tmp_path: Path) -> None:
    """An old adapter beside a new model would be loaded with it."""
    out = tmp_path / "out"
    deliver(
        final(tmp_path / "lora", "adapter_config.json", "adapter_model.safetensors"),
        out,
        run_id="1",
    )
    (out / "notes.txt").write_text("mine")
    deliver(final(tmp_path / "full", "config.json", "sub/model.safetensors"), out, run_id="2")
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {"config.json", "sub/model.safetensors", "notes.txt", DELIVERED}
    assert (out / "config.json").read_text() == "full config.json"
    assert json.loads((out / DELIVERED).read_text()) == {
        "run": "2",
        "files": ["config.json", "sub/model.safetensors"],
    }


def test_a_list_that_points_outside_takes_nothing_away_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").touch()
    (out / DELIVERED).write_text(
        json.dumps({"files": ["../precious", str(tmp_path / "precious"), 3]})
    )
    deliver(final(tmp_path / "new", "a"), out, run_id="1")
    assert (tmp_path / "precious").exists()


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
