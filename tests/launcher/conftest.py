"""A laptop on which real supervisors run an agent that trains nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ft.launcher import dispatch
from ft.launcher.runs import Runs, is_locked
from ft.recipes.runstore import AttemptEnd
from ft.recipes.store import LocalStore

AGENT = Path(__file__).with_name("small_agent.py")
RECIPE = """\
base_model: some/model
datasets: [{path: rows.jsonl, type: alpaca}]
learning_rate: 1e-4
max_steps: %d
output_dir: %s
cloud: {gpu: cpu}
"""


@pytest.fixture(scope="session", autouse=True)
def _no_catalogs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What SkyPilot has fetched for the developer says nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKY_RUNTIME_DIR", str(tmp_path_factory.mktemp("no-catalogs")))
        yield


@dataclass(frozen=True)
class Laptop:
    """A folder with recipe and data, `ft` with homes of its own."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "LC_ALL"}}
        homes = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("STATE", "DATA")}
        return kept | homes | {"COLUMNS": "100", "NO_COLOR": "1"}

    @property
    def runs(self) -> Runs:
        return Runs(self.folder / "state/ft/runs")

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ft.launcher.cli.app", *arguments],
            cwd=self.folder, env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def submit(
        self,
        name: str,
        *,
        steps: int = 1000,
        output: str = "out",
        files: dict[str, Any] | None = None,
    ) -> Started:
        """Start a run of `steps` steps; `files` lie in its store before it begins."""
        (self.folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 5)
        (self.folder / f"{name}.yml").write_text(RECIPE % (steps, output))
        prepared = dispatch.prepare(str(self.folder / f"{name}.yml"))
        command = [sys.executable, "-P", str(AGENT), "{store}", "--attempt", "{attempt}"]
        request = {**prepared.submission.request, "command": command}
        if files:
            # Where the store will be is only known with the id, so the folder is named here.
            request["store"] = str(self.folder / "data/ft/store" / name)
            for file, value in files.items():
                path = Path(request["store"]) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(value if isinstance(value, str) else json.dumps(value))
        submission = replace(prepared.submission, request=request)
        record, _ = dispatch.submit(
            replace(prepared, submission=submission), name=name, runs=self.runs
        )
        return Started(self, record.id, LocalStore(Path(record.store)))


@dataclass(frozen=True)
class Started:
    """A run that real processes work on."""

    laptop: Laptop
    id: str
    store: LocalStore

    @property
    def folder(self) -> Path:
        return self.laptop.runs.folder(self.id)

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 240) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"nothing within {timeout_s} s: {self.log()}"
            time.sleep(0.02)
        return value

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: (status := self.store.get_status()) and status.step >= step)

    def outcome(self) -> dict[str, Any]:
        """Wait for the end."""
        self.wait_for((self.folder / "outcome.json").exists)
        self.wait_for(lambda: not is_locked(self.folder / "supervisor.lock"))
        return json.loads((self.folder / "outcome.json").read_text())

    def supervisor(self) -> int:
        return int(json.loads((self.folder / "supervisor.json").read_text())["pid"])

    def kill_supervisor(self) -> None:
        os.kill(self.supervisor(), signal.SIGKILL)
        self.wait_for(lambda: not is_locked(self.folder / "supervisor.lock"))

    def agent_is_gone(self) -> bool:
        return not is_locked(self.store.root / ".attempt.lock")

    def status(self) -> dict[str, Any]:
        result = self.laptop.ft("cloud", "status", self.id, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def ends(self) -> list[AttemptEnd]:
        return self.store.attempt_ends()

    def steps(self) -> list[int]:
        return [e.data["step"] for e in self.store.events()[0] if e.kind == "step"]

    def log(self) -> str:
        path = self.folder / "supervisor.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    laptop = Laptop(tmp_path)
    yield laptop
    for record in laptop.runs.all():
        folder = laptop.runs.folder(record.id)
        if is_locked(folder / "supervisor.lock"):
            os.kill(json.loads((folder / "supervisor.json").read_text())["pid"], signal.SIGKILL)
