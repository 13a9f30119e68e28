"""What `ft cloud` promises of a run wherever it trains: one set of tests, which every backend passes.

`test_lifecycle.py` (local), `test_modal_backend.py` and `test_sky_backend.py` derive from `LifeCycle`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import pytest
from laptop import Lab

ENDS = {"SUCCEEDED", "FAILED", "CANCELLED"}
BAD_LINE = 5


class Ground(Protocol):
    """A folder with `data/rows.jsonl` in it, and `ft` with homes of its own."""

    folder: Path
    backend: str

    def recipe(self, **changes: Any) -> Path:
        """A LoRA recipe with dropout for this backend, on one process."""

    def ft(self, *words: str) -> subprocess.CompletedProcess[str]: ...

    def popen(self, *words: str) -> subprocess.Popen[bytes]: ...

    def here(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`ft` where it can train on this machine."""


@dataclass(frozen=True)
class LabGround:
    """A laptop that trains itself too."""

    lab: Lab
    backend: str

    @property
    def folder(self) -> Path:
        return self.lab.folder

    def recipe(self, **changes: Any) -> Path:
        return self.lab.recipe(**changes)

    def ft(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.lab.ft(*words)

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        out = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.lab.command(*words), cwd=self.folder, env=self.lab.env, **out)

    here = ft


class Client:
    """What a user sees of the runs of a ground."""

    STEPS = 20

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def ok(self, *words: str) -> str:
        done = self.ground.ft("cloud", *words)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def words(self, recipe: Path, name: str) -> list[str]:
        backend = self.ground.backend
        return ["run", str(recipe), "--backend", backend, "--name", name, "--yes", "--detach"]

    def start(self, name: str, **changes: Any) -> str:
        """The id of a run that goes on by itself."""
        return self.ok(*self.words(self.recipe(name, **changes), name)).strip()

    def recipe(self, name: str, **changes: Any) -> Path:
        """Saved only at its end, or when it is told to."""
        steps = {"max_steps": self.STEPS, "save_steps": 1000, "gradient_accumulation_steps": 8}
        return self.ground.recipe(**{**steps, "output_dir": f"out-{name}", **changes})

    def status(self, name: str) -> dict[str, Any]:
        return json.loads(self.ok("status", name, "--json"))

    def step(self, name: str) -> int:
        return int((self.status(name)["training"] or {}).get("step") or 0)

    def state(self, name: str) -> str:
        return str(self.status(name)["machines"]["state"])

    def until(self, holds: Callable[[], Any], within_s: float = 420) -> Any:
        """What `holds` says, as soon as it is true. Half of the time is for those who are looked at."""
        end = time.monotonic() + within_s
        while True:
            before = time.monotonic()
            found = holds()
            if found:
                return found
            assert time.monotonic() < end, self.ok("ls")
            time.sleep(time.monotonic() - before)

    def end(self, name: str) -> tuple[int, dict[str, Any]]:
        """Watch to the end: exit code, and what it says."""
        done = self.ground.ft("cloud", "attach", name, "--json")
        return done.returncode, json.loads(done.stdout)

    def fetched(self, name: str) -> tuple[dict[str, str], dict[str, Any]]:
        """File -> sha256 of what is fetched, and what is said of it."""
        folder = self.ground.folder / f"fetched-{name}"
        said = json.loads(self.ok("fetch", name, "--to", str(folder), "--json"))
        return files_of(folder), said


def files_of(folder: Path) -> dict[str, str]:
    found = [p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."]
    return {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() for p in found}


def spoiled(rows: Path) -> Path:
    """The same rows but one, which is wrong, and further on than is looked at on a laptop: the first is that long."""
    lines = rows.read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "note": "x" * (1 << 20)})
    lines[BAD_LINE - 1] = '{"messages": [{"role": "pirate", "content": "arr"}]}'
    path = rows.with_name("spoiled.jsonl")
    path.write_text("\n".join(lines) + "\n")
    return path


def killed_while_sending(client: Client, name: str, file: str, **changes: Any) -> str:
    """The id of a run whose client was killed as soon as a file lay beside its record."""
    recipe = client.recipe(name, **changes)
    process = client.ground.popen("cloud", *client.words(recipe, name))

    def written() -> str:
        for path in client.ground.folder.glob("state/ft/runs/*/record.json"):
            record = json.loads(path.read_text())
            if record["name"] == name and (path.parent / file).exists():
                return str(record["id"])
        assert process.poll() is None
        return ""

    until = time.monotonic() + 120
    while not (run_id := written()):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return run_id


class LifeCycle:
    """Runs are begun together, since machines take their time; each test looks after one of them."""

    @pytest.fixture(scope="class")
    @classmethod
    def ground(cls) -> Ground:
        """To be had from the backend's tests."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, ground: Ground) -> Client:
        return Client(ground)

    @pytest.fixture(scope="class")
    @classmethod
    def ids(cls, client: Client) -> dict[str, str]:
        """Name -> id."""
        wrong = [
            {
                "path": str(spoiled(client.ground.folder / "data/rows.jsonl")),
                "type": "chat_template",
            }
        ]
        return {
            "cut": client.start("cut"),
            "wrong": client.start("wrong", datasets=wrong),
            "calm": client.start("calm"),
            "killed": killed_while_sending(client, "killed", "submission.json", max_steps=2),
        }

    @pytest.fixture(scope="class")
    @classmethod
    def cancelled(cls, client: Client, ids: dict[str, str]) -> dict[str, Any]:
        """What is said of the run that was cancelled."""
        client.until(lambda: client.step("cut") >= 1)
        told = json.loads(client.ok("cancel", "cut", "--json"))
        assert told["id"] == ids["cut"]
        return told

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, client: Client, cancelled: dict[str, Any]) -> dict[str, str]:
        """What the recipe leaves when it is trained on this machine, by the local backend."""
        del cancelled  # Which would not wait.
        recipe = client.recipe("here")
        done = client.ground.here(
            "cloud", "run", str(recipe), "--backend", "local", "--name", "here"
        )
        assert done.returncode == 0, done.stderr
        return files_of(client.ground.folder / "out-here")

    def test_what_is_cancelled_is_saved(self, client: Client, cancelled: dict[str, Any]) -> None:
        assert (cancelled["state"], cancelled["reason"]) == ("CANCELLED", "cancelled"), cancelled
        assert 1 <= cancelled["step"] < client.STEPS
        assert f"its checkpoint of step {cancelled['step']} stays" in cancelled["message"]
        code, told = client.end("cut")
        assert (code, told["message"]) == (7, cancelled["message"])

    def test_what_was_cancelled_goes_on_as_if_nothing_had_happened(
        self, client: Client, cancelled: dict[str, Any], expected: dict[str, str]
    ) -> None:
        resumed = json.loads(client.ok("resume", "cut", "--json"))
        assert (resumed["state"], resumed["step"], resumed["attempts"]) == (
            "SUCCEEDED",
            client.STEPS,
            2,
        )
        assert resumed["id"] == cancelled["id"]
        assert client.fetched("cut")[0] == expected

    def test_a_mistake_is_made_once_and_named_as_the_user_knows_it(
        self, client: Client, ids: dict[str, str]
    ) -> None:
        code, told = client.end("wrong")
        assert (code, told["state"], told["reason"]) == (6, "FAILED", "data"), told
        assert told["attempts"] <= 1, "where rows are made on a CPU first, no GPU was ever rented"
        path = client.ground.folder / "data/spoiled.jsonl"
        assert f"{path}, line {BAD_LINE}: message 1: unknown role `pirate`." in told["message"]
        assert client.state("wrong") == "FAILED"
        assert ids["wrong"] == told["id"]

    def test_a_run_is_told_of_to_its_end_and_fetched(
        self, client: Client, ids: dict[str, str], expected: dict[str, str]
    ) -> None:
        code, told = client.end("calm")
        assert (code, told["state"], told["step"], told["attempts"]) == (
            0,
            "SUCCEEDED",
            client.STEPS,
            1,
        )
        assert told["id"] == ids["calm"]
        files, said = client.fetched("calm")
        assert files == expected
        assert said["copied_bytes"] == said["bytes"] > 0
        weights = client.ground.folder / "fetched-calm" / "adapter_model.safetensors"
        again = client.fetched("calm")[1]["copied_bytes"]
        assert again < weights.stat().st_size, "only what was adapted to this machine is not there"
        log = client.ok("logs", "calm")
        assert log
        assert client.ok("logs", "calm", "--rank", "0")
        assert client.ok("logs", "calm") == log, "the end of a log does not move"

    def test_the_same_name_is_the_same_run(self, client: Client, ids: dict[str, str]) -> None:
        client.until(lambda: client.state("calm") in ENDS)
        assert client.start("calm") == ids["calm"]
        other = client.ground.ft("cloud", *client.words(client.recipe("calm", max_steps=3), "calm"))
        assert other.returncode == 2
        assert "exists with another plan" in other.stderr

    def test_a_client_that_is_killed_while_it_sends_leaves_one_run(
        self, client: Client, ids: dict[str, str]
    ) -> None:
        assert client.start("killed", max_steps=2) == ids["killed"]
        code, told = client.end("killed")
        assert (code, told["state"], told["step"], told["attempts"]) == (0, "SUCCEEDED", 2, 1)

    def test_what_has_ended_is_listed_and_removed(
        self, client: Client, ids: dict[str, str]
    ) -> None:
        for name in ids:
            client.until(lambda name=name: client.state(name) in ENDS)
        listed = {run["name"]: run for run in json.loads(client.ok("ls", "--json"))}
        assert {name: listed[name]["id"] for name in ids} == ids
        client.ok("prune", "--force", "--yes")
        left = {run["name"] for run in json.loads(client.ok("ls", "--json"))}
        assert not left & set(ids)
        gone = client.ground.ft("cloud", "status", "calm")
        assert gone.returncode == 8
        assert "calm" in gone.stderr
