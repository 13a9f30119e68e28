"""`ft cloud … --backend sky` through the real SkyPilot, on Slurm on loopback: two nodes, lost machines, killed clients.

This process is in the environment of SkyPilot, which has no torch; what needs it is run by the project's own Python.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.sky, pytest.mark.timeout(900)]

REPO = Path(__file__).resolve().parents[2]
PROJECT = REPO / ".venv" / "bin" / "python"
IN_PROJECT = REPO / "tests" / "e2e" / "sky_lab" / "in_project.py"
SECRET = "planted-s3-secret"


@dataclass
class Ground:
    """A folder with a recipe, `ft` in both environments, a bucket, and SkyPilot."""

    lab: Any
    folder: Path
    s3: dict[str, str]
    env: dict[str, str] = field(default_factory=dict)

    def recipe(self, nodes: int, *, backend: str = "sky", **changes: Any) -> Path:
        """Backend `local` warns of keys that only `sky` reads; they are what a move needs."""
        cloud: dict[str, Any] = {
            "backend": backend,
            "gpu": "cpu:1",
            "store_bucket": "s3://bucket-one/team",
            "region": self.lab.infra,
            "memory": 1,
            "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
            "env": {
                "AWS_ENDPOINT_URL": self.s3["AWS_ENDPOINT_URL"],
                "AWS_REGION": self.s3["AWS_REGION"],
                "FT_SETUP_ROOT": str(self.root),
            },
            **({"nodes": nodes} if nodes > 1 else {}),
        }
        values = {
            "base_model": str(self.folder / "tiny"), "sequence_len": 256,
            "datasets": [{"path": "data/rows.jsonl", "type": "chat_template"}],
            "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1,
            "micro_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 12, "num_epochs": 10,
            "learning_rate": 0.01, "save_steps": 2, "output_dir": "out", "cloud": cloud, **changes,
        }  # fmt: skip
        path = self.folder / f"{backend}-{nodes}.yml"
        path.write_text(json.dumps(values, indent=1))
        self.project(IN_PROJECT, "environment", str(path), str(self.root))
        return path

    @property
    def root(self) -> Path:
        return Path(self.lab.shared) / "environments"

    def project(self, *words: object) -> str:
        """Run the project's own Python."""
        return self._run([str(PROJECT), *map(str, words)])

    def here(self, *words: str) -> str:
        """`ft` in the project's environment, which can train."""
        return self._run([str(PROJECT), "-m", "ft.launcher.cli.app", *words])

    def ft(self, *words: str) -> str:
        return self._run(self.command(*words))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ft.launcher.cli.app", *words]

    def _run(self, words: list[str]) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        assert SECRET not in done.stdout + done.stderr
        return done.stdout

    def folder_of(self, name: str) -> Path:
        for path in (self.folder / "state" / "ft" / "runs").glob("*/record.json"):
            if json.loads(path.read_text())["name"] == name:
                return path.parent
        raise AssertionError(f"no run {name}")

    def status(self, name: str) -> dict[str, Any]:
        """State, reason and message of the machines, step of training."""
        found = json.loads(self.ft("cloud", "status", name, "--json"))
        return {**found["machines"], "step": int((found["training"] or {}).get("step") or 0)}

    def wait(
        self, name: str, holds: Callable[[dict[str, Any]], bool], within_s: float = 420
    ) -> Any:
        """The first status that `holds`; states that were passed on the way are in `states`."""
        until, states = time.monotonic() + within_s, []
        while True:
            found = self.status(name)
            states += [found["state"]] if [found["state"]] != states[-1:] else []
            if holds(found):
                return found | {"states": states}
            assert time.monotonic() < until, (states, found)
            time.sleep(1)

    def fetched(self, name: str) -> dict[str, str]:
        """File -> sha256 of what `ft cloud fetch` brings."""
        target = self.folder / f"fetched-{name}"
        self.ft("cloud", "fetch", name, "--to", str(target))
        files = [path for path in target.rglob("*") if path.is_file() and path.name[0] != "."]
        return {p.relative_to(target).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def ground(sky_lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("ground")
    server = subprocess.Popen(
        [str(PROJECT), str(IN_PROJECT), "serve", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        s3 = json.loads(server.stdout.readline())
        homes = {
            f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CACHE")
        }
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "FT_", "AWS_"))}
        plain = {"HF_HUB_OFFLINE": "1", "COLUMNS": "80", "NO_COLOR": "1"}
        yield Ground(sky_lab, folder, s3, {**keep, **sky_lab.environment, **homes, **s3, **plain})
    finally:
        server.stdin.close()
        server.wait()


def test_what_skypilot_gets_is_what_the_dry_run_said(ground: Ground) -> None:
    import sky

    from ft.launcher.backends import sky_request

    said = json.loads(ground.ft("cloud", "run", str(ground.recipe(2)), "--dry-run"))
    asked = sky_request.filled(said["request"], "run-1", str(ground.folder))
    (ground.folder / "ft-source.tar").touch()
    task = sky.Task.from_yaml_config(sky_request.task_of(asked))
    (resources,) = task.resources
    assert (task.num_nodes, task.name) == (2, "ft-run-1")
    assert (str(resources.cloud), resources.region, resources.cpus) == ("Slurm", "loop", "1+")
    assert resources.job_recovery["recover_on_exit_codes"] == [75, 76, 77]
    assert SECRET not in json.dumps(said)


def test_two_nodes_lose_their_machines_twice_and_a_client_is_killed(ground: Ground) -> None:
    recipe = ground.recipe(2, max_steps=40, save_steps=4)
    client = subprocess.Popen(
        ground.command("cloud", "run", str(recipe), "--name", "stormy", "--yes", "--detach"),
        cwd=ground.folder, env=ground.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    runs = ground.folder / "state" / "ft" / "runs"
    while not list(runs.glob("*/request.json")):
        assert client.poll() is None
        time.sleep(0.02)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert not (ground.folder_of("stormy") / "job.json").exists(), "it was killed before that"

    first = ground.wait("stormy", lambda s: s["step"] >= 5)
    assert first["states"][-1] == "RUNNING"
    run_id = ground.folder_of("stormy").name
    ground.lab.lose_allocation(f"ft-{run_id}")
    recovering = ground.wait("stormy", lambda s: s["state"] == "RECOVERING")
    assert recovering["state"] == "RECOVERING"
    ground.wait("stormy", lambda s: s["state"] == "RUNNING" and s["step"] >= 16)
    ground.lab.lose_allocation(f"ft-{run_id}")
    done = ground.wait("stormy", lambda s: s["state"] in {"SUCCEEDED", "FAILED"})
    assert done["state"] == "SUCCEEDED", done

    import sky

    jobs, *_ = sky.get(sky.jobs.queue_v2(refresh=False, name_match=f"ft-{run_id}", fields=None))
    assert [job["job_name"] for job in jobs] == [f"ft-{run_id}"], "one run, one job"
    assert done["step"] == 40
    assert ground.ft("cloud", "logs", "stormy").count("\n") > 10

    ground.ft("cloud", "run", str(recipe), "--name", "calm", "--yes", "--detach")
    calm = ground.wait("calm", lambda s: s["state"] in {"SUCCEEDED", "FAILED"})
    assert calm["state"] == "SUCCEEDED", calm
    assert ground.fetched("stormy") == ground.fetched("calm")


def test_a_run_moves_from_here_to_skypilot(ground: Ground) -> None:
    """Begun and cancelled on this machine, ended on a node: `ft cloud resume RUN --backend sky`."""
    recipe = ground.recipe(1, backend="local", max_steps=60, save_steps=5)
    ground.here("cloud", "run", str(recipe), "--name", "moves", "--detach")
    ground.wait("moves", lambda s: s["step"] >= 6)
    ground.here("cloud", "cancel", "moves")
    assert ground.status("moves")["state"] == "CANCELLED"
    ground.ft("cloud", "resume", "moves", "--backend", "sky", "--detach")
    done = ground.wait("moves", lambda s: s["state"] in {"SUCCEEDED", "FAILED"})
    assert (done["state"], done["step"]) == ("SUCCEEDED", 60), done
    ground.here(
        "cloud", "run", str(recipe), "--name", "stays", "--detach", "--set", "output_dir=there"
    )
    ground.wait("stays", lambda s: s["state"] == "SUCCEEDED")
    there = ground.folder / "there"
    files = [path for path in there.rglob("*") if path.is_file() and path.name[0] != "."]
    stays = {p.relative_to(there).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}
    assert ground.fetched("moves") == stays


def test_a_mistake_is_made_once(ground: Ground) -> None:
    rows = ground.folder / "data" / "wrong.jsonl"
    rows.write_text('{"messages": [{"role": "user"}]}\n')
    wrong = [{"path": "data/wrong.jsonl", "type": "chat_template"}]
    recipe = ground.recipe(1, datasets=wrong)
    ground.ft("cloud", "run", str(recipe), "--name", "wrong", "--yes", "--detach")
    ended = ground.wait("wrong", lambda s: s["state"] in {"SUCCEEDED", "FAILED"})
    assert (ended["state"], ended["reason"]) == ("FAILED", "data"), ended
    import sky

    name = f"ft-{ground.folder_of('wrong').name}"
    jobs, *_ = sky.get(sky.jobs.queue_v2(refresh=False, name_match=name, fields=None))
    assert [job["recovery_count"] for job in jobs] == [0]


def test_a_run_that_is_cancelled_saves_and_its_machine_is_given_back(ground: Ground) -> None:
    recipe = ground.recipe(1, max_steps=4000, save_steps=1000)
    ground.ft("cloud", "run", str(recipe), "--name", "long", "--yes", "--detach")
    ground.wait("long", lambda s: s["step"] >= 3)
    ground.ft("cloud", "cancel", "long")
    ended = ground.wait("long", lambda s: s["state"] == "CANCELLED")
    assert "its checkpoint of step" in ended["message"], ended
    name = f"ft-{ground.folder_of('long').name}"
    until = time.monotonic() + 180
    while any(name in job for job in ground.lab.cluster.allocations().values()):
        assert time.monotonic() < until
        time.sleep(1)
