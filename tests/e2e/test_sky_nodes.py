"""What runs on the nodes of a job of SkyPilot's, without SkyPilot: its variables, real processes, a real bucket.

Or a folder that all of them see. `test_sky_backend.py` does the same through SkyPilot itself; what takes minutes there
takes seconds here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ft.launcher import dispatch
from ft.launcher.backends import sky_request
from ft.launcher.bucket_store import RunBucket
from ft.launcher.copies import open_copy
from ft.launcher.machine import stage, training
from ft.launcher.machine.bucket_words import BucketWords
from ft.launcher.medium import SharedMedium
from ft.launcher.mirror import Replica
from ft.recipes.digest import sha256_of_file
from ft.recipes.runstore import Control
from ft.recipes.store import LocalStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
WITHIN_S = 300


@dataclass
class Job:
    """A run in a bucket or a shared folder, and its nodes: each launch is what SkyPilot would begin."""

    lab: Any
    folder: Path
    nodes: int
    run: str
    asked: dict[str, Any]
    launches: list[list[subprocess.Popen[bytes]]] = field(default_factory=list)

    @property
    def copy(self) -> SharedMedium:
        return open_copy(self.asked["store"])

    def launch(
        self, job: str = "1", *, task: str = "", **changes: Any
    ) -> list[subprocess.Popen[bytes]]:
        """A process for each node, on an address of its own. `task`: on a plain cluster, where jobs have no number."""
        words = json.dumps({**self.asked["job"], **changes})
        number = len(self.launches) + 1
        found = []
        for rank in range(self.nodes):
            home = self.folder / f"machine{number}-{rank}"
            home.mkdir(parents=True)
            variables = {
                "HOME": str(home),
                "SKYPILOT_NODE_RANK": str(rank),
                "SKYPILOT_NODE_IPS": "\n".join(f"127.0.0.{11 + n}" for n in range(self.nodes)),
                "SKYPILOT_TASK_ID": task
                or f"sky-managed-2026-11-23-17-45-12-345678_ft-run_{job}-0",
                **({} if task else {"SKYPILOT_MANAGED_JOB_ID": job}),
                "SKYPILOT_CLUSTER_INFO": '{"cloud": "Slurm", "region": "loop", "cluster_name": "c"}',
            }
            with (home / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "ft.launcher.backends.sky_remote", words],
                    env={**self.lab.env, **variables}, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            found.append(process)
        self.launches.append(found)
        return found

    def end(self, processes: list[subprocess.Popen[bytes]]) -> list[int]:
        """Exit codes of all nodes, node 0 first."""
        try:
            return [process.wait(timeout=WITHIN_S) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def seen(self) -> LocalStore:
        """The run as a laptop sees it."""
        folder = self.folder / "seen"
        RunBucket(self.asked["store"]).refresh(Replica(folder))
        return LocalStore(folder)

    def wait_for_step(self, step: int) -> None:
        def there() -> bool:
            status = self.seen().get_status()
            return status is not None and status.step >= step

        self.lab.wait_for(there, WITHIN_S)

    def outcome(self) -> dict[str, Any]:
        return dict(json.loads(self.copy.read("outcome.json")))

    def final(self) -> dict[str, str]:
        """File -> sha256, of what was exported."""
        target = self.folder / "fetched"
        names = [file.path for file in self.copy.listed("final") if "manifest" not in file.path]
        self.copy.download({name: target / name for name in names})
        return {name: sha256_of_file(target / name) for name in names}

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("machine*/log")))


@pytest.fixture
def job(lab: Any, object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`job(nodes, **recipe)`: a run that was sent to SkyPilot; with `store=FOLDER` in place of a bucket."""
    monkeypatch.chdir(lab.folder)
    lab.env.update(object_store.environment)
    made: list[Job] = []

    def make(nodes: int, run: str = "", store: Path | None = None, **changes: Any) -> Job:
        run = run or f"run-{uuid.uuid4().hex[:8]}"  # Its port goes by its name.
        cloud = {
            "backend": "sky",
            "gpu": "cpu:1",
            "nodes": nodes,
            **({"store": str(store)} if store else {"store_bucket": "s3://bucket-one/team"}),
            **changes.pop("cloud", {}),
        }
        recipe = lab.recipe(cloud=cloud, **changes)
        prepared = dispatch.prepare(str(recipe))
        asked = sky_request.filled(prepared.submission.request, run, str(tmp_path))
        copy = RunBucket(asked["store"])
        copy.upload(prepared.submission.uploads, prepared.submission.plan_json)
        made.append(Job(lab, tmp_path / run, nodes, run, asked))
        return made[-1]

    yield make
    for one in made:
        for process in (process for launch in one.launches for process in launch):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What this machine and all nodes mount under one path."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def test_a_run_with_a_bucket_goes_on_after_its_supervisor_and_on_another_machine(
    job: Any, lab: Any
) -> None:
    """Begun here, killed here, resumed here, cancelled here, and ended on a node: one run, one adapter."""
    calm = job(1, run="calm", max_steps=24)
    assert calm.end(calm.launch()) == [0], calm.logs()
    recipe = lab.recipe(
        cloud={"gpu": "cpu:1", "store_bucket": "s3://bucket-one/team"}, max_steps=24
    )
    lab.start(recipe, "moves")
    run_id = lab.record("moves")["id"]
    moved = Job(lab, calm.folder.parent / run_id, 1, run_id, dict(calm.asked))
    moved.asked["store"] = f"s3://bucket-one/team/{run_id}"
    moved.asked["job"] = {**moved.asked["job"], "run": run_id, "store": moved.asked["store"]}
    moved.wait_for_step(4)
    info = lab.folder / "state" / "ft" / "runs" / run_id / "supervisor.json"
    os.kill(json.loads(info.read_text())["pid"], signal.SIGKILL)
    resumed = lab.ft("cloud", "resume", "moves", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    moved.wait_for_step(12)
    cancelled = lab.ft("cloud", "cancel", "moves")
    assert cancelled.returncode == 0, cancelled.stderr
    assert lab.outcome("moves")["state"] == "CANCELLED"
    assert moved.outcome()["state"] == "CANCELLED"
    refused = lab.ft("cloud", "resume", "moves", "--backend", "sky")
    assert "error: backend sky needs skypilot" in refused.stderr, "it has an environment of its own"
    status = json.loads(lab.ft("cloud", "status", "moves", "--json").stdout)["machines"]
    assert (status["backend"], status["state"]) == ("local", "CANCELLED"), "all is as it was"
    RunBucket(moved.asked["store"]).reopen()
    done = moved.seen().attempts()[
        -1
    ]  # As a resume has it: what failed before it was mended by somebody.
    assert moved.end(moved.launch(resumed_after=done)) == [0], moved.logs()
    assert moved.final() == calm.final()
    steps = [event.data["step"] for event in moved.seen().events()[0] if event.kind == "step"]
    assert sorted(set(steps)) == list(range(1, 25))


def test_a_machine_that_is_taken_back_saves_and_asks_for_another(job: Any) -> None:
    one = job(1, max_steps=400, save_steps=100)
    (node,) = nodes = one.launch()
    one.wait_for_step(5)
    node.send_signal(signal.SIGTERM)
    node.send_signal(signal.SIGTERM)  # SkyPilot on Slurm sends it twice.
    assert one.end(nodes) == [75], one.logs()
    assert [file for file in one.copy.listed() if file.path == "outcome.json"] == []
    saved = [file.path for file in one.copy.listed("checkpoints") if "manifest" in file.path]
    assert len(saved) == 1
    assert one.seen().attempt_ends()[0].exit_code == 75


def test_what_was_saved_is_in_the_bucket_before_other_nodes_are_waited_for(
    job: Any, tmp_path: Path
) -> None:
    """Both machines are taken back, and the other one is gone before it has said how its ranks ended."""
    assert training.WORDS_EVERY_S == stage.WORDS_EVERY_S, "by its value, when it is imported"
    late = "from ft.launcher.machine import stage\nstage.WORDS_EVERY_S = 600.0\n"
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(late)  # Nothing goes up beside an attempt.
    one = job(2, max_steps=400, save_steps=1000)
    paths = [str(tmp_path / "late"), one.lab.env.get("PYTHONPATH", "")]
    one.lab.env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    node, other = one.launch()
    work = one.folder / "machine1-0" / ".ft-run" / one.run / "node0-segment1"
    one.lab.wait_for(lambda: 3 in one.lab.losses(work), WITHIN_S)
    other.send_signal(signal.SIGSTOP)  # Its ranks stop when those of node 0 do.
    node.send_signal(signal.SIGTERM)

    def saved() -> bool:
        return any("manifest" in file.path for file in one.copy.listed("checkpoints"))

    one.lab.wait_for(saved, WITHIN_S)
    assert (work / "attempts" / "1").is_dir()
    assert not (work / "attempts" / "1" / "end.json").exists()


def test_on_a_plain_cluster_two_tasks_of_one_submission_are_one_run(job: Any) -> None:
    """A lost reply has sent it twice."""
    one = job(1, cloud={"cluster": "dev"})
    assert one.asked["cluster"]["cluster_name"] == "dev"
    task, claim = "sky-2026-11-23-17-45-12-345678_dev_", "words/submission-1.json"
    first = one.launch(task=f"{task}1")
    one.lab.wait_for(lambda: claim in [file.path for file in one.copy.listed("words")], WITHIN_S)
    assert one.end(one.launch(task=f"{task}2")) == [0], one.logs()
    assert "another job of SkyPilot's has run" in one.logs()
    script = 'pwd; echo "$SKYPILOT_TASK_ID"; exit 3'
    looked = subprocess.run(
        [sys.executable, "-P", "-m", "ft.launcher.backends.sky_beside", one.run, "0", "sh", "-c", script],
        env={**one.lab.env, "HOME": "/"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert looked.returncode == 3, looked.stderr
    folder, told = looked.stdout.splitlines()
    assert folder.endswith(f"/.ft-run/{one.run}/node0-segment1")
    assert told == f"{task}1"
    assert one.end(first) == [0], one.logs()
    assert one.outcome()["state"] == "SUCCEEDED"
    assert RunBucket(one.asked["store"]).word("submission-1") == f"{task}1"
    segments = [file.path for file in one.copy.listed("words") if "holder-" in file.path]
    assert segments == ["words/holder-1.json"]


def test_a_run_on_a_shared_file_system_is_the_run_that_it_is_here(
    job: Any, lab: Any, shared: Path
) -> None:
    """Taken back, and gone on with by another machine: the adapter is that of backend local, to the byte."""
    lab.start(lab.recipe(cloud={"gpu": "cpu:1"}, max_steps=24), "here")
    one = job(1, store=shared, max_steps=24)
    assert one.asked["store"] == f"file://{shared}/{one.run}"
    (node,) = nodes = one.launch()
    one.wait_for_step(5)
    node.send_signal(signal.SIGTERM)
    assert one.end(nodes) == [75], one.logs()
    assert not (shared / one.run / "outcome.json").exists()
    assert one.end(one.launch()) == [0], one.logs()
    assert one.outcome()["state"] == "SUCCEEDED"
    assert [end.exit_code for end in one.seen().attempt_ends()] == [75, 0]
    assert lab.outcome("here")["state"] == "SUCCEEDED"
    here = lab.store_of("here") / "final"
    assert one.final() == {
        f"final/{path.relative_to(here).as_posix()}": sha256_of_file(path)
        for path in here.rglob("*")
        if path.is_file() and "manifest" not in path.name
    }
    left = [path for path in (shared / one.run).rglob(".*") if path.is_file()]
    assert left == [], "nothing that was on its way"
    adopted = lab.ft("cloud", "adopt", str(shared / one.run))
    assert adopted.returncode == 2
    assert "is the copy of a run that other machines write" in adopted.stderr


def test_a_node_that_does_not_see_the_folder_is_no_reason_to_rent_another(
    job: Any, shared: Path
) -> None:
    one = job(1, store=shared)
    for store in (shared / "no-such-run", shared / "not/mounted"):
        assert one.end(one.launch(store=f"file://{store}")) == [78]
    assert f"there is no folder {shared}/no-such-run on " in one.logs()
    assert f"there is no folder {shared}/not" in one.logs()
    assert "Traceback" not in one.logs()
    assert sorted(path.name for path in shared.iterdir()) == [one.run], "nothing was made there"


def test_a_run_that_is_cancelled_saves_and_ends(job: Any) -> None:
    one = job(2, max_steps=400, save_steps=100)
    nodes = one.launch()
    one.wait_for_step(5)
    stop = Control("stop", time.time(), by="a test", reason="cancelled", grace_s=60.0)
    RunBucket(one.asked["store"]).say("control", stop.to_json())
    assert one.end(nodes) == [0, 0], one.logs()
    assert one.outcome()["state"] == "CANCELLED"
    assert "its checkpoint of step" in one.outcome()["message"]


def test_a_mistake_is_made_once(job: Any) -> None:
    one = job(2)
    name = next(file.path for file in one.copy.listed("inputs") if file.path.endswith("rows.jsonl"))
    one.copy.write(name, b"{}\n")
    assert one.end(one.launch()) == [78, 0], "node 1 goes first, so that 78 is what counts"
    assert (one.outcome()["state"], one.outcome()["exit_code"]) == ("FAILED", 78)
    assert one.end(one.launch()) == [78, 0], "begun anew it says the same"
    assert len(one.seen().attempts()) == 1


def test_of_two_jobs_of_a_submission_one_trains(job: Any) -> None:
    one = job(1)
    nodes = one.launch(job="7")
    one.wait_for_step(1)
    assert one.end(one.launch(job="8")) == [0]
    assert "another job of SkyPilot's has run" in one.logs()
    assert one.end(nodes) == [0]
    assert one.outcome()["state"] == "SUCCEEDED"
    assert one.seen().attempts() == [1]


def test_a_job_that_comes_back_after_another_laptop_has_gone_on_ends(job: Any) -> None:
    one = job(1)
    words = BucketWords(one.asked["store"])
    assert words.claim("submission-1", "1") == "1"
    assert words.claim("submission-2", "1") == "1", "of another server, which counts its own"
    assert one.end(one.launch(job="1")) == [0], one.logs()
    assert "another job of SkyPilot's has run" in one.logs()
    assert one.seen().attempts() == []


def test_machine_after_machine_without_an_attempt_is_an_end(job: Any) -> None:
    one = job(1)
    for number in range(1, 6):
        RunBucket(one.asked["store"]).say(f"holder-{number}", f"lost-{number}")
    RunBucket(one.asked["store"]).say(
        "first-1", "3"
    )  # What was before is of an earlier submission.
    assert one.end(one.launch(retries=2)) == [79], one.logs()
    assert one.outcome()["message"] == (
        "3 machines in a row were lost before an attempt began; see `sky jobs logs`"
    )


def test_a_bucket_that_is_not_there_is_no_reason_to_rent_another_machine(job: Any) -> None:
    one = job(1)
    assert one.end(one.launch(store="s3://nobodys-bucket/run-1")) == [78]
    assert "there is no bucket nobodys-bucket" in one.logs()
