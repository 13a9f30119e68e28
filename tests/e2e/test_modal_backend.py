"""`ft cloud run --backend modal`, the real client against the loopback control plane: real containers, real training.

What passes here was never run on Modal. See modal_server/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from laptop import make_lab
from life_cycle import LabGround, LifeCycle

from ft.launcher.bucket import Bucket

pytestmark = [pytest.mark.e2e, pytest.mark.modal]

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / ".quickstart" / "SmolLM2-135M-Instruct"
QUICKSTART = ROOT / "recipes" / "gallery" / "smollm2" / "135m-lora-sft.yml"
STOPPED = 5
"""modal_proto's APP_STATE_STOPPED."""
KILL_AT = Path(__file__).with_name("kill_at.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, modal_harness: Any) -> Iterator[Any]:
    found = modal_harness.server(tmp_path_factory.mktemp("modal") / "state")
    yield found
    found.stop()


@dataclass
class Cloud:
    """`ft` of a lab, whose Modal is the loopback server."""

    lab: Any
    server: Any

    def ft(self, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return self.lab.ft(*arguments, timeout_s=timeout_s)

    def run(self, name: str, *arguments: str, recipe: Path | None = None) -> str:
        """Start a run and let go of it; its id."""
        path = recipe or self.lab.folder / "recipe.yml"
        done = self.ft(
            "cloud", "run", str(path), "--backend", "modal", "--yes", "--detach",
            "--name", name, *arguments,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self, name: str) -> dict[str, Any]:
        done = self.ft("cloud", "status", name, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self, name: str, timeout_s: float = 300) -> dict[str, Any]:
        """Watch to the end; what it is."""
        done = self.ft(
            "cloud", "attach", name, "--timeout", f"{timeout_s:g}", "--json", timeout_s=600
        )
        assert done.returncode != 124, (self.status(name), self.log(name, "--source", "supervisor"))
        return json.loads(done.stdout)

    def log(self, name: str, *arguments: str) -> str:
        done = self.ft("cloud", "logs", name, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def volume(self, run_id: str) -> Path:
        """What is committed of a run, on the server's disk."""
        (volume,) = [
            path for path in self.server.state_folder.glob("volumes/*") if (path / run_id).is_dir()
        ]
        return volume / run_id

    def files(self, name: str) -> dict[str, str]:
        """File of the result -> sha256, as its manifest on the volume has it."""
        path, here = (
            f"{self.lab.record(name)['id']}/final/manifest.json",
            self.lab.folder / "m.json",
        )
        got = self.server.modal("volume", "get", "ft-store", path, str(here), "--force")
        assert got.returncode == 0, got.stderr
        return {entry["path"]: entry["sha256"] for entry in json.loads(here.read_text())["files"]}

    def calls(self, run_id: str, function: str = "") -> list[dict[str, Any]]:
        """Calls of a run's app, in their order."""
        state = self.server.state()
        # A stopped app and the one that was deployed after it have the same name.
        apps = {app["id"] for app in state["apps"] if app["name"] == f"ft-{run_id}"}
        return [
            call
            for call in state["calls"]
            if call["app"] in apps and function in {"", call["function"]}
        ]

    def running_call(self, run_id: str, function: str = "train") -> str:
        """The call of a function that a container works on now; empty without one."""
        running = [
            call["id"]
            for call in self.calls(run_id, function)
            if call["inputs"][0]["state"] == "RUNNING"
        ]
        return running[-1] if running else ""

    def step(self, name: str) -> int:
        """The last step that the volume knows of."""
        return (
            self.status(name)["training"].get("step") or 0 if self.status(name)["training"] else 0
        )


@pytest.fixture
def cloud(lab: Any, server: Any) -> Cloud:
    lab.env.update(server.environment)
    return Cloud(lab, server)


CALM = {"max_steps": 60, "save_steps": 10}
"""Changes of the recipe that disturbed runs train."""


@pytest.fixture(scope="module")
def calm_of() -> dict[str, Any]:
    """`files`, and `start_s`: from the beginning of an attempt to its first step, on this machine."""
    return {}


@pytest.fixture
def calm(lab: Any, calm_of: dict[str, Any]) -> dict[str, str]:
    """File -> sha256 of what an undisturbed run on this machine leaves of the recipe, which lies in the lab now."""
    lab.recipe(**CALM)
    if not calm_of:
        store = lab.start(lab.folder / "recipe.yml", "calm")
        assert lab.outcome("calm")["state"] == "SUCCEEDED"
        manifest = json.loads((store / "final" / "manifest.json").read_text())
        calm_of["files"] = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
        steps = [e["time"] for e in lab.events(store) if e["kind"] == "step"]
        begun = next(e["time"] for e in lab.events(store) if e["kind"] == "attempt")
        calm_of["start_s"] = steps[0] - begun
    return calm_of["files"]


def test_the_quickstart_recipe_from_a_laptop_that_is_killed(cloud: Cloud) -> None:
    """Detached, `kill -9` right behind the spawn; another process attaches, streams, fetches; equal to local."""
    lab = cloud.lab
    changes = [f"base_model={SMOLLM2}", "max_steps=3", "save_steps=2", "cloud.gpu=cpu"]
    sets = [word for change in changes for word in ("--set", change)]
    arguments = ["cloud", "run", str(QUICKSTART), *sets]
    killed = subprocess.run(
        [sys.executable, str(KILL_AT), "spawned", *arguments, "--backend", "modal", "--yes", "--name", "q"],
        cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    attached = cloud.ft("cloud", "attach", "q", timeout_s=400)
    assert attached.returncode == 0, attached.stderr
    assert "step 3/3" in attached.stderr
    assert "SUCCEEDED" in attached.stdout
    run_id = lab.record("q")["id"]
    assert "ft.train step 3/3" in cloud.log("q", "--rank", "0")
    fetched = cloud.ft("cloud", "fetch", "q", "--to", "fetched")
    assert fetched.returncode == 0, fetched.stderr
    local = cloud.ft(*arguments, "--backend", "local", "--name", "here", timeout_s=400)
    assert local.returncode == 0, local.stderr
    weights = "adapter_model.safetensors"
    one, two = (
        (lab.folder / f / weights).read_bytes() for f in ("fetched", "outputs/smollm2-dates")
    )
    assert one == two
    config = json.loads((lab.folder / "fetched" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(SMOLLM2)
    pruned = cloud.ft("cloud", "prune", "--yes")
    assert pruned.returncode == 0, pruned.stderr
    left = cloud.server.modal("volume", "ls", "ft-store")
    assert (left.returncode, run_id in left.stdout) == (0, False), left.stderr
    assert [run["name"] for run in json.loads(cloud.ft("cloud", "ls", "--json").stdout)] == []
    (app,) = [app for app in cloud.server.state()["apps"] if app["name"] == f"ft-{run_id}"]
    assert app["state"] == STOPPED
    assert len(cloud.calls(run_id, "train")) == 1, "whatever was spawned twice, one call went on"


def test_three_preemptions_at_random_steps_leave_the_same_adapter(
    cloud: Cloud, calm: dict[str, str]
) -> None:
    lab = cloud.lab
    run_id = cloud.run("shaken")
    rng = random.Random(int(os.environ.get("FT_SEED", "6")))
    steps = [rng.randrange(first, first + 9) for first in (2, 18, 35)]
    for number, step in enumerate(steps, start=1):
        lab.wait_for(lambda step=step, n=number: attempt_at(cloud, run_id, n, step), 200)
        cloud.server.fault("preempt", call=cloud.running_call(run_id))
        lab.wait_for(lambda n=number: ended(cloud, run_id, n), 100)
    end = cloud.end("shaken")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 4), (end, steps)
    assert cloud.files("shaken") == calm
    (call,) = cloud.calls(run_id, "train")
    assert (call["inputs"][0]["restarts"], call["inputs"][0]["retry_count"]) == (3, 0)
    codes = [
        json.loads((cloud.volume(run_id) / "attempts" / str(n) / "end.json").read_text())[
            "exit_code"
        ]
        for n in (1, 2, 3, 4)
    ]
    assert codes == [75, 75, 75, 0]


def test_all_weights_are_exported_on_a_cpu(cloud: Cloud) -> None:
    """Its container is lost once, and the run is the same as one that trains here."""
    lab = cloud.lab
    changes = {"adapter": None, "lora_r": None, "lora_alpha": None, "lora_dropout": None}
    recipe = lab.recipe(**changes, max_steps=4)
    assert (
        lab.ft("cloud", "run", str(recipe), "--backend", "local", "--name", "here").returncode == 0
    )
    run_id = cloud.run("weights")
    running = partial(cloud.running_call, run_id, "export")
    cloud.server.fault("preempt", call=lab.wait_for(running, 200))
    end = cloud.end("weights")
    assert (end["state"], end["step"], end["attempts"]) == ("SUCCEEDED", 4, 1), end
    manifest = json.loads((lab.store_of("here") / "final/manifest.json").read_text())
    assert cloud.files("weights") == {e["path"]: e["sha256"] for e in manifest["files"]}
    calls = cloud.calls(run_id)
    assert [call["function"] for call in calls] == ["prepare", "train", "export"]
    assert calls[-1]["inputs"][0]["restarts"] == 1


def attempt_at(cloud: Cloud, run_id: str, attempt: int, step: int) -> bool:
    """Whether this attempt has come to the step, as the disk of its container says. It must not be over."""
    found = cloud.server.state_folder.glob(f"containers/*/root/ft/run/{run_id}/status.json")
    statuses = [status for path in found if (status := read(path))]
    last = max(statuses, key=lambda status: status["updated_at"], default={"attempt": 0})
    assert last["attempt"] <= attempt, f"attempt {attempt} is over: {last}"
    if last["attempt"] < attempt:
        ends = cloud.server.state_folder.glob(f"volumes/*/{run_id}/outcome.json")
        assert not (end := [path.read_text() for path in ends]), end
        return False
    assert last.get("exit_code") is None, f"attempt {attempt} is over: {last}"
    return last["step"] >= step


def ended(cloud: Cloud, run_id: str, attempt: int) -> bool:
    return (cloud.volume(run_id) / "attempts" / str(attempt) / "end.json").exists()


def read(path: Path) -> dict[str, Any]:
    """Empty if it is not there, or is on its way from the volume."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


BUCKET = "s3://bucket-one/team"


@pytest.fixture
def bucket(cloud: Cloud, object_store: Any) -> dict[str, Any]:
    """A `cloud:` block for a run in a bucket on loopback. What opens it is a secret by name, as it would be."""
    cloud.lab.env.update(object_store.environment)
    names = ("AWS_ENDPOINT_URL", "AWS_REGION")
    return {
        "gpu": "cpu",
        "backend": "modal",
        "store_bucket": BUCKET,
        "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        "env": {name: object_store.environment[name] for name in names},
    }


def files_in_bucket(run_id: str) -> dict[str, str]:
    """File of the result -> sha256, as its manifest has it."""
    manifest = json.loads(Bucket(f"{BUCKET}/{run_id}").read("final/manifest.json"))
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}


def test_a_run_in_a_bucket_outlives_its_client_its_container_and_its_laptop(
    cloud: Cloud, calm: dict[str, str], bucket: dict[str, Any], object_store: Any
) -> None:
    """`kill -9` behind the spawn, a preemption, a cancel; another laptop adopts it, goes on, fetches it; no secret."""
    lab, secret = cloud.lab, object_store.environment["AWS_SECRET_ACCESS_KEY"]
    lab.recipe(**CALM, cloud=bucket)
    dry = cloud.ft("cloud", "run", "recipe.yml", "--dry-run")
    words = ["cloud", "run", "recipe.yml", "--yes", "--name", "far"]
    killed = subprocess.run(
        [sys.executable, str(KILL_AT), "spawned", *words],
        cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id = cloud.run("far")
    there, store = Bucket(f"{BUCKET}/{run_id}"), f"{BUCKET}/{run_id}"
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 12), 200)
    cloud.server.fault("preempt", call=cloud.running_call(run_id))
    lab.wait_for(lambda: attempt_at(cloud, run_id, 2, 30), 200)
    cancelled = cloud.ft("cloud", "cancel", "far")
    assert "its checkpoint of step" in " ".join(cancelled.stdout.split()), cancelled.stderr

    other = another_laptop(lab)
    adopted = other.ft("cloud", "adopt", store, "--name", "theirs")
    assert (adopted.returncode, adopted.stdout) == (0, f"{run_id}\n"), adopted.stderr
    resumed = other.ft("cloud", "resume", "theirs", timeout_s=300)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert re.search(r"resumed from step \d\d", resumed.stderr)
    end = other.end("theirs")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 3), end
    assert other.status("theirs")["store"] == store
    assert files_in_bucket(run_id) == calm
    weights = other.lab.folder / "model-out/theirs/adapter_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == calm[weights.name]
    codes = [json.loads(there.read(f"attempts/{n}/end.json"))["exit_code"] for n in (1, 2, 3)]
    assert codes == [75, 79, 0]
    assert len(cloud.calls(run_id, "train")) == 2, "one for each time it was sent"

    pruned = cloud.ft("cloud", "prune", "--yes")
    assert "it has gone on since this laptop saw its end" in pruned.stderr
    again = cloud.ft("cloud", "adopt", store)
    assert f"run {run_id} (far) is here already" in again.stderr
    assert "ft.train step 60/60" in cloud.log("far", "--rank", "0")
    said = [dry.stdout, dry.stderr, killed.stderr, json.dumps(end), cloud.log("far")]
    said += [cloud.log("far", "--source", source) for source in ("supervisor", "rank0")]
    said += [
        there.read(f.path).decode(errors="replace")
        for f in there.listed()
        if not f.path.endswith((".safetensors", ".pt"))
    ]
    for folder in (lab.folder, cloud.server.state_folder):
        said += [p.read_text(errors="replace") for p in folder.rglob("*") if is_of_text(p)]
    assert '"AWS_SECRET_ACCESS_KEY"' in dry.stdout, "by name"
    assert not [text for text in said if secret in text]
    assert not [line for line in cloud.server.records("FunctionCreate") if line.get("leak")]
    for pruned in (cloud.ft("cloud", "prune", "--force", "--yes"), cloud.ft("cloud", "ls")):
        assert pruned.returncode == 0, pruned.stderr
    assert there.listed() == []
    app = app_id(cloud.server, f"ft-{run_id}")
    made = [r for r in cloud.server.requests("FunctionCreate") if r["appId"] == app]
    assert "/ft/cache" in json.dumps(made)
    assert "/ft/store" not in json.dumps(made)
    assert run_id not in json.dumps(cloud.server.requests("DictGetOrCreate")), "and no Dict"


@pytest.mark.slow
def test_a_run_in_a_bucket_moves_from_modal_to_this_machine_and_back(
    cloud: Cloud, calm: dict[str, str], bucket: dict[str, Any]
) -> None:
    """Cancelled while its rows are made there, cancelled when it trains here, ended there."""
    lab = cloud.lab
    lab.recipe(**CALM, cloud=bucket)
    run_id = cloud.run("moves")
    for backend, step in (("local", 12), ("modal", 13)):
        cancelled = cloud.ft("cloud", "cancel", "moves")
        assert "CANCELLED" in cancelled.stdout, cancelled.stderr
        moved = cloud.ft("cloud", "resume", "moves", "--backend", backend, "--detach")
        assert moved.returncode == 0, moved.stderr
        lab.wait_for(lambda step=step: cloud.step("moves") >= step, 200)
    end = cloud.end("moves")
    assert (end["id"], end["state"], end["attempts"]) == (run_id, "SUCCEEDED", 2), end
    assert cloud.status("moves")["machines"]["backend"] == "modal"
    assert files_in_bucket(run_id) == calm
    functions = [call["function"] for call in cloud.calls(run_id)]
    assert functions == ["prepare", "prepare", "train"], "rows are made on a CPU, there again"


def test_a_bucket_that_containers_cannot_open_is_said_and_not_tried_again(
    cloud: Cloud, bucket: dict[str, Any]
) -> None:
    cloud.lab.recipe(max_steps=2, cloud={**bucket, "secrets": None})
    run_id = cloud.run("shut")
    end = cloud.end("shut")
    assert (end["state"], end["reason"], end["attempts"]) == ("FAILED", "config", 0), end
    assert "none of AWS_ACCESS_KEY_ID, " in end["message"]
    assert "containers open it with what cloud.secrets and cloud.env give them" in end["message"]
    assert [call["inputs"][0]["attempts"] for call in cloud.calls(run_id)] == [1]


def test_a_cancel_while_a_checkpoint_travels_loses_nothing(
    cloud: Cloud, calm: dict[str, str]
) -> None:
    lab = cloud.lab
    run_id = cloud.run("cut")
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 2), 200)
    cloud.server.fault("slow_reply", rpc="VolumeCommit", seconds=1.5, times=6)
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 11), 100)
    cancelled = cloud.ft("cloud", "cancel", "cut")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "CANCELLED" in cancelled.stdout
    saved = re.search(r"its checkpoint of step (\d+) stays", cancelled.stdout.replace("\n", " "))
    assert saved, cancelled.stdout
    status = cloud.status("cut")
    assert int(saved[1]) == status["training"]["step"], "it was saved where it stood"
    resumed = cloud.ft("cloud", "resume", "cut", timeout_s=300)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed from step {saved[1]}" in resumed.stderr
    assert cloud.files("cut") == calm
    assert (lab.folder / "out" / "adapter_model.safetensors").is_file()


def test_a_plan_that_cannot_run_is_not_tried_again(cloud: Cloud) -> None:
    """78: the tokenizer is there, so rows are made on the CPU; the weights are not, which the attempt finds."""
    lab = cloud.lab
    broken = lab.folder / "broken"
    broken.mkdir()
    for path in lab.model.iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    lab.recipe(base_model=str(broken))
    run_id = cloud.run("wrong")
    end = cloud.end("wrong")
    assert (end["state"], end["reason"], end["attempts"]) == ("FAILED", "config", 1), end
    assert str(broken) in end["message"], "the user's own path, not what it became"
    (call,) = cloud.calls(run_id, "train")
    assert (call["inputs"][0]["attempts"], call["inputs"][0]["retry_count"]) == (1, 0)


@pytest.mark.xdist_group("modal-life-cycle")
class TestOnModal(LifeCycle):
    @pytest.fixture(scope="class")
    @classmethod
    def ground(
        cls, server: Any, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
    ) -> LabGround:
        lab = make_lab(tmp_path_factory.mktemp("life-cycle"), tiny_model)
        lab.env.update(server.environment)
        return LabGround(lab, "modal")

    def test_a_bad_row_costs_no_gpu(
        self, ground: LabGround, server: Any, wrong: tuple[int, dict[str, Any]]
    ) -> None:
        assert Cloud(ground.lab, server).calls(wrong[1]["id"], "train") == []


def test_a_lost_machine_and_a_killed_container_are_attempts(
    cloud: Cloud, calm: dict[str, str]
) -> None:
    lab = cloud.lab
    run_id = cloud.run("lost")
    for number, kind in ((1, "lose_machine"), (2, "crash")):
        lab.wait_for(lambda n=number: attempt_at(cloud, run_id, n, 15 * n), 200)
        cloud.server.fault(kind, call=cloud.running_call(run_id))
        lab.wait_for(lambda n=number: ended(cloud, run_id, n), 100)
    end = cloud.end("lost")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 3), end
    assert cloud.files("lost") == calm
    (call,) = cloud.calls(run_id, "train")
    assert (call["inputs"][0]["restarts"], call["inputs"][0]["retry_count"]) == (1, 1)


def test_an_attempt_that_was_told_to_end_is_followed_by_another_in_the_same_container(
    cloud: Cloud, calm: dict[str, str]
) -> None:
    """75 without a preemption: Modal knows of nothing, and the call goes on by itself."""
    lab = cloud.lab
    run_id = cloud.run("told")
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 15), 200)
    os.kill(agent_of(run_id), signal.SIGTERM)
    end = cloud.end("told")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 2), end
    assert cloud.files("told") == calm
    attempts = cloud.volume(run_id) / "attempts"
    first, second = (json.loads((attempts / n / "end.json").read_text()) for n in ("1", "2"))
    assert (first["exit_code"], second["exit_code"]) == (75, 0)
    assert first["step"] == first["checkpoint_step"] >= 15, "it was saved where it stood"
    machines = [json.loads((attempts / n / "machine.json").read_text()) for n in ("1", "2")]
    assert machines[0] == machines[1]
    (call,) = cloud.calls(run_id, "train")
    (work,) = call["inputs"]
    assert (work["attempts"], work["restarts"], work["retry_count"]) == (1, 0, 0)


def test_a_long_run_is_a_chain_under_one_id(
    cloud: Cloud, calm: dict[str, str], calm_of: dict[str, Any]
) -> None:
    """24 hours, shortened: a segment ends before its time, claims the next one, and that goes on."""
    lab = cloud.lab
    # Other tests come and go beside this one. It may begin 10 s later than was measured, or 30 s sooner:
    # neither a segment without a step nor one with half of them.
    seconds = segment_s(calm_of["start_s"] + 10)
    cloud_block = {"gpu": "cpu", "backend": "modal", "timeout": f"{seconds}s"}
    lab.recipe(**CALM, **lab.tiring_model(15, step_s=3), cloud=cloud_block)
    run_id = cloud.run("long")
    end = cloud.end("long", 400)
    assert end["state"] == "SUCCEEDED", (end, cloud.log("long", "--source", "supervisor"))
    calls = cloud.calls(run_id, "train")
    assert len(calls) >= 3, cloud.log("long", "--source", "supervisor")
    assert [call["inputs"][0]["attempts"] for call in calls] == [1] * len(calls)
    steps = re.findall(r"ft\.train step (\d+)/60 ", cloud.log("long", "--rank", "0"))
    assert [int(step) for step in steps] == list(range(1, 61)), "one log, no step twice"
    weights = "adapter_model.safetensors"  # The rest names its base, which is another.
    assert cloud.files("long")[weights] == calm[weights]


def segment_s(attempt_s: float) -> int:
    """The `timeout` of a segment whose attempt is to train for so long.

    Of the segment a fourth stays free for its last upload, of the attempt 22 s for its end, or half of it.
    """
    return round((3 + min(attempt_s + 22, 2 * attempt_s)) / 0.75)


def test_a_cancel_ends_the_chain(cloud: Cloud) -> None:
    lab = cloud.lab
    lab.recipe(max_steps=300, cloud={"gpu": "cpu", "backend": "modal", "timeout": "90s"})
    run_id = cloud.run("chain")
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 1), 200)
    assert cloud.ft("cloud", "cancel", "chain").returncode == 0
    count = len(cloud.calls(run_id))
    time.sleep(3)
    assert len(cloud.calls(run_id)) == count
    assert {c["inputs"][0]["state"] for c in cloud.calls(run_id)} == {"SUCCESS"}


def test_lost_replies_and_failed_commits_never_make_a_second_run(cloud: Cloud) -> None:
    cloud.lab.recipe(max_steps=4)
    for rpc in ("FunctionMap", "AppPublish", "VolumePutFiles2", "DictUpdate"):
        cloud.server.fault("lose_reply", rpc=rpc)
    cloud.server.fault("fail_commit", volume="ft-store", times=3)
    run_id = cloud.run("once")
    again = cloud.run("once")
    assert again == run_id
    assert cloud.end("once")["state"] == "SUCCEEDED"
    assert len(cloud.calls(run_id, "prepare")) == len(cloud.calls(run_id, "train")) == 1


def test_a_killed_cli_its_withdrawal_and_the_same_name_again_is_one_run(cloud: Cloud) -> None:
    lab = cloud.lab
    lab.recipe(max_steps=2)
    words = ["cloud", "run", "recipe.yml", "--backend", "modal", "--yes", "--name", "twice", "-d"]
    killed = subprocess.run(
        [sys.executable, str(KILL_AT), "deployed", *words],
        cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    withdrawn = cloud.ft("cloud", "cancel", "twice")
    assert "cancelled before it was started" in withdrawn.stdout + withdrawn.stderr
    run_id = cloud.run("twice")
    end = cloud.end("twice")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 1)
    assert len(cloud.calls(run_id, "train")) == 1


def test_two_machines_train_what_one_does(cloud: Cloud) -> None:
    """By `modal.clustered` and gloo: two containers that share no disk, against two processes of this machine."""
    lab = cloud.lab
    short = {"max_steps": 12, "save_steps": 3}
    recipe = lab.recipe(**short, cloud={"gpu": "cpu", "nodes": 2})
    submitted = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("two_nodes.py")), str(recipe), "pair"],
        cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    run_id = submitted.stdout.strip()

    def second_machine_has_begun() -> bool:
        done = cloud.ft("cloud", "exec", "pair", "--node", "1", "--", "ls", "attempts/1")
        assert "SUCCEEDED" not in done.stderr
        return "agent1.log" in done.stdout.split()

    lab.wait_for(second_machine_has_begun)
    third = cloud.ft("cloud", "exec", "pair", "--node", "2", "--", "true")
    assert (third.returncode, third.stderr) == (
        2, f"error: --node 2: run {run_id} has 2 of them, counted from 0\n",
    )  # fmt: skip
    end = cloud.end("pair")
    said = cloud.log("pair", "--source", "supervisor")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 1), (end, said)
    assert "step 12/12" in cloud.log("pair", "--rank", "0")
    assert "ft.train" in cloud.log("pair", "--rank", "1"), (
        "what the other machine said is there too"
    )
    assert (cloud.volume(run_id) / "attempts" / "1" / "agent1.log.pieces").is_dir()
    lab.recipe(**short, cloud={"gpu": "cpu:2"})
    store = lab.start(lab.folder / "recipe.yml", "one")
    assert lab.outcome("one")["state"] == "SUCCEEDED"
    manifest = json.loads((store / "final" / "manifest.json").read_text())
    assert cloud.files("pair") == {e["path"]: e["sha256"] for e in manifest["files"]}


def test_a_room_that_was_not_sent_is_named(cloud: Cloud) -> None:
    lab = cloud.lab
    lab.recipe(max_steps=2, cloud={"gpu": "cpu", "backend": "modal", "retries": 0})
    script = str(Path(__file__).with_name("forgetful.py"))
    done = subprocess.run(
        [sys.executable, script, "runtime", "cloud", "run", "recipe.yml", "--yes", "--name", "gap"],
        cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    text = " ".join(done.stdout.split())
    assert "FAILED (infra)" in text
    assert "No module named ft.runtime" in text


PLANTED = "hf_plantedPLANTEDplanted123"
KEPT = "kept-on-modal-0123456789"


def test_no_secret_is_written_anywhere_and_the_run_has_it(cloud: Cloud) -> None:
    lab, server = cloud.lab, cloud.server
    assert server.modal("secret", "create", "kept", f"OTHER_TOKEN={KEPT}").returncode == 0
    block = {
        "gpu": "cpu",
        "backend": "modal",
        "secrets": ["HF_TOKEN", "kept"],
        "env": {"TASTE": "salt"},
    }
    lab.recipe(max_steps=20, cloud=block)
    lab.env["HF_TOKEN"] = PLANTED
    dry = cloud.ft("cloud", "run", "recipe.yml", "--dry-run")
    run_id = cloud.run("secret")
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 1), 200)
    found = environment_of_agent(run_id)
    assert {k: found.get(k) for k in ("HF_TOKEN", "OTHER_TOKEN", "TASTE")} == {
        "HF_TOKEN": PLANTED, "OTHER_TOKEN": KEPT, "TASTE": "salt",
    }  # fmt: skip
    assert cloud.end("secret")["state"] == "SUCCEEDED"
    said = [dry.stdout, dry.stderr, json.dumps(cloud.status("secret")), cloud.log("secret")]
    said += [cloud.log("secret", "--source", source) for source in ("supervisor", "rank0")]
    said += [server.modal("app", "logs", f"ft-{run_id}").stdout]
    assert '"HF_TOKEN"' in dry.stdout, "by name"
    for folder in (lab.folder, server.state_folder):
        said += [p.read_text(errors="replace") for p in folder.rglob("*") if is_of_text(p)]
    assert not [text for text in said if PLANTED in text or KEPT in text]
    assert not [line for line in server.records("FunctionCreate") if line.get("leak")]


def another_laptop(lab: Any) -> Cloud:
    """With homes of its own, the same account, and an ft of another version: its source has a file more."""
    folder = lab.folder / "other"
    room = folder / "launcher"
    shutil.copytree(ROOT / "launcher", room, ignore=shutil.ignore_patterns("__pycache__"))
    (room / "ft" / "launcher" / "of_another_version.py").write_text('"""Nothing."""\n')
    homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CACHE")}
    path = os.pathsep.join([str(room), os.environ.get("PYTHONPATH", "")])
    return Cloud(replace(lab, folder=folder, env={**lab.env, **homes, "PYTHONPATH": path}), None)


def test_another_laptop_adopts_a_run_looks_into_its_container_and_goes_on_with_it(
    cloud: Cloud,
) -> None:
    lab, server = cloud.lab, cloud.server
    block = {"gpu": "cpu", "backend": "modal", "secrets": ["HF_TOKEN"]}
    lab.recipe(max_steps=60, save_steps=20, cloud=block)
    other = another_laptop(lab)
    lab.env["HF_TOKEN"] = PLANTED
    run_id = cloud.run("mine")
    store = f"modal://ft-store/{run_id}"
    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 0), 200)

    adopted = other.ft("cloud", "adopt", store, "--name", "theirs")
    assert (adopted.returncode, adopted.stdout) == (0, f"{run_id}\n"), adopted.stderr
    said = " ".join(adopted.stderr.split())
    assert re.search(
        r"warning: it was sent by ft (\S+) \(source [0-9a-f]{12}\), and here is ft \1 \(source [0-9a-f]{12}\): "
        "a resume from here goes on with the source that is here, in the image that it began with", said,
    ), said  # fmt: skip
    assert f"run {run_id} (theirs) adopted" in said
    script = 'pwd; printf "$HF_TOKEN" | sha256sum >&2; cat; exit 3'
    done = subprocess.run(
        lab.command("cloud", "exec", "theirs", "--", "sh", "-c", script),
        cwd=other.lab.folder, env=other.lab.env, input="in", capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    digest = hashlib.sha256(PLANTED.encode()).hexdigest()
    assert (done.returncode, done.stdout, done.stderr) == (
        3, f"/ft/run/{run_id}\nin", f"{digest}  -\n",
    )  # fmt: skip
    killed = cloud.ft("cloud", "exec", "mine", "--", "sh", "-c", "kill -9 $$")
    assert (killed.returncode, killed.stdout, killed.stderr) == (137, "", "")

    lab.wait_for(lambda: attempt_at(cloud, run_id, 1, 1), 200)
    cancelled = other.ft("cloud", "cancel", "theirs")
    assert "CANCELLED" in cancelled.stdout, cancelled.stderr
    late = cloud.ft("cloud", "exec", "mine", "--", "true")
    assert late.returncode == 8, "the laptop that began it sees the end as well"
    assert f"run {run_id} is CANCELLED, so no machine of it lives" in late.stderr
    resumed = other.ft("cloud", "resume", "theirs", "--detach")
    assert resumed.returncode == 5, "its secret is not here"
    other.lab.env["HF_TOKEN"] = PLANTED
    resumed = other.ft("cloud", "resume", "theirs", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    pruned = cloud.ft("cloud", "prune", "--yes")
    assert "it has gone on since this laptop saw its end" in pruned.stderr
    end = other.end("theirs")
    assert (end["state"], end["attempts"]) == ("SUCCEEDED", 2), end
    assert (other.lab.folder / "model-out/theirs/adapter_model.safetensors").is_file()
    assert len(cloud.calls(run_id, "train")) == 2

    again = cloud.ft("cloud", "adopt", store)
    assert f"run {run_id} (mine) is here already" in again.stderr
    assert cloud.status("mine")["machines"]["state"] == "SUCCEEDED"
    assert cloud.volume(run_id).is_dir()
    texts = [p.read_text(errors="replace") for p in lab.folder.rglob("*") if is_of_text(p)]
    texts += [
        p.read_text(errors="replace") for p in server.state_folder.rglob("*") if is_of_text(p)
    ]
    assert not [text for text in texts if PLANTED in text]


def test_a_run_that_nothing_has_begun_is_adopted_and_cancelled(cloud: Cloud) -> None:
    lab, server = cloud.lab, cloud.server
    other = another_laptop(lab)
    for kind in ("ContainerHello", "FunctionGetInputs"):
        server.fault("slow_reply", rpc=kind, seconds=30)
    lab.recipe(max_steps=2)
    run_id = cloud.run("early")
    for store, error, hint in (
        (
            "modal://nowhere/20261123-174512-3f9a",
            "Modal has no volume nowhere in the default environment of this workspace",
            "modal profile activate NAME changes the workspace, MODAL_ENVIRONMENT=NAME the environment",
        ),
        (
            "modal://ft-store/20261123-174512-3f9a",
            "volume ft-store has no folder 20261123-174512-3f9a",
            "modal volume ls ft-store",
        ),
    ):
        refused = other.ft("cloud", "adopt", store)
        assert refused.returncode == 8
        assert " ".join(refused.stderr.split()) == f"error: {error} hint: {hint}"
    adopted = other.ft("cloud", "adopt", f"modal://ft-store/{run_id}", "--json")
    assert adopted.returncode == 0, adopted.stderr
    assert json.loads(adopted.stdout)["machines"]["state"] == "QUEUED"
    early = other.ft("cloud", "exec", run_id, "--", "true")
    assert early.returncode == 8
    assert early.stderr.splitlines()[-2:] == [
        f"error: run {run_id} is QUEUED, so no machine of it lives",
        f"hint: ft cloud attach {run_id}  shows when it begins",
    ]
    cancelled = other.ft("cloud", "cancel", run_id)
    assert "CANCELLED" in cancelled.stdout, cancelled.stderr
    assert cloud.status("early")["machines"]["state"] == "CANCELLED"
    assert cloud.calls(run_id, "train") == []
    for laptop, is_there in ((other, True), (cloud, False)):
        assert laptop.ft("cloud", "prune", "--yes").returncode == 0
        left = server.modal("volume", "ls", "ft-store")
        assert (left.returncode, run_id in left.stdout) == (0, is_there), left.stderr


def is_of_text(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.suffix not in {".safetensors", ".pt"}


def environment_of_agent(run_id: str) -> dict[str, str]:
    pairs = Path(f"/proc/{agent_of(run_id)}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def agent_of(run_id: str) -> int:
    """Process of the agent in the container of a run, by this machine's number."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "ft.runtime.agent" in words and f"/ft/run/{run_id}" in words:
            return int(folder.name)
    raise AssertionError(f"run {run_id} has no agent")


def test_a_secret_that_is_nowhere_is_said_before_anything_is_sent(cloud: Cloud) -> None:
    cloud.lab.recipe(cloud={"gpu": "cpu", "backend": "modal", "secrets": ["NOWHERE_TOKEN"]})
    before = [
        len(cloud.server.requests(rpc)) for rpc in ("VolumePutFiles2", "AppCreate", "AppPublish")
    ]
    done = cloud.ft("cloud", "run", "recipe.yml", "--yes", "--detach", "--name", "no")
    assert done.returncode == 5
    assert done.stderr.splitlines()[-2:] == [
        "error: cloud.secrets: NOWHERE_TOKEN is neither set in this machine's environment nor a secret on Modal",
        "hint: export NOWHERE_TOKEN=…, or: modal secret create NOWHERE_TOKEN …",
    ]
    after = [
        len(cloud.server.requests(rpc)) for rpc in ("VolumePutFiles2", "AppCreate", "AppPublish")
    ]
    assert after == before


def test_what_modal_gets_is_what_the_dry_run_said(cloud: Cloud) -> None:
    """The dry-run has neither an account nor a network; each field that matters is in the protobuf."""
    lab, server = cloud.lab, cloud.server
    assert server.modal("volume", "create", "corpus").returncode == 0
    assert server.modal("secret", "create", "shelf", f"OTHER_TOKEN={KEPT}").returncode == 0
    lab.env["HF_TOKEN"] = PLANTED
    block = {
        "backend": "modal", "gpu": ["H100!:2", "A100-80GB:2"], "region": ["us-east", "eu-west"],
        "cpu": 16, "memory": 64, "disk": 600, "timeout": "6h", "retries": 5,
        "store_volume": "my-store", "cache_volume": "my-cache",
        "volumes": [{"name": "corpus", "mount": "/corpus"}],
        "image": {"apt": ["ffmpeg"], "pip": ["einops==0.8.1"], "commands": ["RUN echo hello"]},
        "env": {"TASTE": "salt"}, "secrets": ["HF_TOKEN", "shelf"], "modal": {"cloud": "aws", "startup_timeout": 900},
        "include": ["words"],
    }  # fmt: skip
    for name, text in {"one/a.txt": "A", "b.txt": "B", "c.log": "", ".ftignore": "*.log"}.items():
        (lab.folder / "words" / name).parent.mkdir(parents=True, exist_ok=True)
        (lab.folder / "words" / name).write_text(text)
    lab.recipe(cloud=block)
    alone = {k: v for k, v in lab.env.items() if not k.startswith("MODAL_")}
    dry = subprocess.run(
        ["unshare", "--net", *lab.command("cloud", "run", "recipe.yml", "--dry-run")],
        cwd=lab.folder, env=alone, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert dry.returncode == 0, dry.stderr
    printed = json.loads(dry.stdout)
    run_id = cloud.run("exact")
    cancelled = cloud.ft("cloud", "cancel", "exact", "--now")
    assert cancelled.returncode == 0, cancelled.stderr
    folder = lab.folder / "state" / "ft" / "runs" / run_id
    assert json.loads((folder / "submission.json").read_text()) == printed
    request = json.loads(json.dumps(printed["request"]).replace("{run}", run_id))

    prepare, train = (definitions(server, run_id, name) for name in ("prepare", "train"))
    options = request["functions"]["train"]
    assert [f["resources"]["gpuConfig"] for f in train] == [
        {"gpuType": "H100!", "count": 2}, {"gpuType": "A100-80GB", "count": 2},
    ]  # fmt: skip
    assert options["gpu"] == ["H100!:2", "A100-80GB:2"]
    for function in train:
        assert function["resources"]["milliCpu"] == 16_000 == options["cpu"] * 1000
        assert function["resources"]["memoryMb"] == 65_536 == options["memory"]
        assert function["resources"]["ephemeralDiskMb"] == 614_400 == options["ephemeral_disk"]
        assert function["timeoutSecs"] == 21_600 == options["timeout"]
        assert function["startupTimeoutSecs"] == 900 == options["startup_timeout"]
        assert function["cloudProviderStr"] == "aws" == options["cloud"]
    (rows,), options = prepare, request["functions"]["prepare"]
    assert rows["resources"] == {"milliCpu": 4000, "memoryMb": 16_384, "gpuConfig": {}}
    assert (options["cpu"], options["memory"]) == (4, 16_384)
    assert not options.keys() & {"gpu", "ephemeral_disk", "cloud"}
    assert "cloudProviderStr" not in rows
    assert rows["timeoutSecs"] == 86_400 == options["timeout"]
    assert rows["startupTimeoutSecs"] == 3600 == options["startup_timeout"]
    for function in [rows, *train]:
        assert_as_all_functions_are(function, request, server.objects())
    for rpc in ("AppCreate", "ImageGetOrCreate", "FunctionPrecreate", "FunctionCreate"):
        assert not [line for line in server.records(rpc) if line.get("leak")], rpc
    app = next(a for a in server.state()["apps"] if a["name"] == f"ft-{run_id}")
    assert app["tags"] == request["tags"]
    (sent,) = cloud.volume(run_id).glob("inputs/*-include")
    files = [path for path in sent.rglob("*") if path.is_file()]
    assert {path.relative_to(sent).as_posix(): path.read_text() for path in files} == {
        "words/one/a.txt": "A", "words/b.txt": "B",
    }  # fmt: skip


def definitions(server: Any, run_id: str, name: str) -> list[dict[str, Any]]:
    """A function of a run as Modal got it: one definition, or one for each GPU that may be had."""
    (request,) = [
        request
        for request in server.requests("FunctionCreate")
        if request["appId"] == app_id(server, f"ft-{run_id}")
        and function_of(request)["functionName"] == name
    ]
    if "function" in request:
        return [request["function"]]
    return [ranked["function"] for ranked in request["functionData"]["rankedFunctions"]]


def assert_as_all_functions_are(
    function: dict[str, Any], request: dict[str, Any], objects: dict[str, Any]
) -> None:
    """What the request says once for all functions: image, volumes, secrets, variables; and where and how often."""
    assert function["retryPolicy"] == {
        "backoffCoefficient": 1.0, "initialDelayMs": 1000, "maxDelayMs": 60_000, "retries": 5,
    }  # fmt: skip
    assert function["schedulerPlacement"]["regions"] == ["us-east", "eu-west"]
    assert function["singleUseContainers"] is True
    for options in request["functions"].values():
        assert options["retries"] == {
            "max_retries": 5, "backoff_coefficient": 1.0, "initial_delay": 1.0,
        }  # fmt: skip
        assert options["region"] == ["us-east", "eu-west"]
        assert options["single_use_containers"] is True

    mounted = {m["mountPath"]: objects["volumes"][m["volumeId"]] for m in function["volumeMounts"]}
    named = {path: volume["name"] for path, volume in request["volumes"].items()}
    assert mounted == named == {
        "/ft/store": "my-store", "/ft/cache": "my-cache", "/corpus": "corpus",
    }  # fmt: skip

    layers = [["FROM base", layer] for layer in request["image"]["layers"]]
    built = images_of(objects, function["imageId"])
    assert built == [[f"FROM {request['image']['base']}"], ["FROM base", "ENTRYPOINT []"], *layers]
    for words in ("ffmpeg", "einops==0.8.1", "RUN echo hello", "ENV XDG_CACHE_HOME=/ft/cache"):
        assert [words in layer for _, layer in layers].count(True) == 1, words

    found = [objects["secrets"][secret] for secret in function["secretIds"]]
    assert request["secrets"] == {"from_here": ["HF_TOKEN"], "on_modal": ["shelf"]}
    assert request["env"] == {"TASTE": "salt"}
    assert sorted(secret["name"] for secret in found) == ["", "", "shelf"]
    given = {key: value for secret in found for key, value in secret["sha256"].items()}
    wanted = {"HF_TOKEN": PLANTED, "OTHER_TOKEN": KEPT, "TASTE": "salt"}
    assert given == {k: hashlib.sha256(v.encode()).hexdigest() for k, v in wanted.items()}
    assert PLANTED not in json.dumps([function, request])


def images_of(objects: dict[str, Any], image_id: str) -> list[list[str]]:
    """The lines of each image that one is made on, the first one first, and its own."""
    image = objects["images"][image_id]
    return [*(x for base in image["bases"] for x in images_of(objects, base)), image["commands"]]


def test_code_beside_the_recipe_is_found_where_it_is_trained(cloud: Cloud) -> None:
    """The same files, bits and modules as test_include.py sees on this machine, from a volume that keeps no bits."""
    lab = cloud.lab
    lab.coded_recipe(dies_at_first=False, cloud={"gpu": "cpu", "backend": "modal"})
    cloud.run("coded")
    assert cloud.end("coded")["state"] == "SUCCEEDED", cloud.log("coded", "--source", "rank0")
    (line,) = [x for x in cloud.log("coded", "--source", "rank0").splitlines() if "seen {" in x]
    assert json.loads(line[line.index("{") :]) == {
        "files": ["mine/__init__.py", "mine/run.sh", "peft.py", "prompts/x.txt"],
        "prompt": "as planned",
        "word": "from a module of the user's",
        "library": "peft",
        "runs": "it ran",
    }


def app_id(server: Any, name: str) -> str:
    return next(app["id"] for app in server.state()["apps"] if app["name"] == name)


def function_of(request: dict[str, Any]) -> dict[str, Any]:
    return request.get("functionData") or request["function"]


COMMANDS = """
import json, modal, sys
from pathlib import Path

app = modal.App("commands")
volume = modal.Volume.from_name("commands", create_if_missing=True, version=2)
image = None
if modal.is_local():
    from ft.launcher.backends.modal_app import ModalCloud

    image = ModalCloud(json.loads(Path(sys.argv[1]).read_text())["request"]).image()


@app.function(image=image, volumes={"/vol": volume})
def work(cmd):
    from ft.launcher.backends.modal_remote import run_cmd

    return run_cmd(cmd, "/vol", {"/vol": volume})


if __name__ == "__main__":
    with app.run():
        codes = [
            work.remote(["sh", "-c", "echo 'two words' > 'a file'; exit 3"]),
            work.remote("sh -c 'cat \\"a file\\" \\"a file\\" > twice; kill -9 $$'"),
        ]
    print(json.dumps([codes, b"".join(volume.read_file("twice")).decode()]))
"""


def test_run_cmd_keeps_what_its_name_promises(cloud: Cloud) -> None:
    """Reloads before, commits whatever the exit code is, splits as a shell does, keeps the code."""
    lab = cloud.lab
    lab.recipe(cloud={"gpu": "cpu", "backend": "modal"})
    dry = cloud.ft("cloud", "run", "recipe.yml", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    (lab.folder / "request.json").write_text(dry.stdout.replace("{run}", "commands"))
    (lab.folder / "commands.py").write_text(COMMANDS)
    done = subprocess.run(
        [sys.executable, "commands.py", "request.json"],
        cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[3, 137], "two words\ntwo words\n"]


def test_the_commands_of_the_page_on_modal_work(cloud: Cloud) -> None:
    lab = cloud.lab
    page = (ROOT / "docs" / "modal.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", page, flags=re.S)
    lab.recipe(max_steps=3)
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "ft"
        if "--name" in arguments:
            arguments.append("--yes")
        done = cloud.ft(*arguments)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (lab.folder / "my-adapter" / "adapter_model.safetensors").is_file()
    recipe = json.loads((lab.folder / "recipe.yml").read_text())
    del recipe["cloud"]
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items())
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        (lab.folder / "page.yml").write_text(text + block)
        checked = cloud.ft("check", "page.yml")
        assert checked.returncode == 0, checked.stdout
