"""The one true way through all rooms, on the local backend, with real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

KILL_AT = Path(__file__).with_name("kill_at.py")


def sha256s(store: Path) -> dict[str, str]:
    manifest = json.loads((store / "final" / "manifest.json").read_text())
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}


def test_a_run_survives_a_renamed_data_folder_and_three_killed_clis(lab: Any) -> None:
    recipe = lab.recipe()
    arguments = ["cloud", "run", str(recipe), "--backend", "local", "--name", "mine", "--detach"]
    for point in ("record", "spawn", "handle"):
        killed = subprocess.run(
            [sys.executable, str(KILL_AT), point, *arguments],
            cwd=lab.folder, env=lab.env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
    (lab.folder / "data").rename(lab.folder / "renamed")
    listed = lab.ft("cloud", "ls", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [run["name"] for run in json.loads(listed.stdout)] == ["mine"]
    outcome = lab.outcome("mine")
    assert (outcome["state"], outcome["reason"]) == ("SUCCEEDED", "done"), outcome
    stores = list((lab.folder / "share" / "ft" / "store").iterdir())
    assert stores == [lab.store_of("mine")]
    begun = [
        e["attempt"]
        for e in lab.events(stores[0])
        if e["kind"] == "attempt" and e["data"]["mark"] == "begin"
    ]
    assert begun == [1]
    assert (lab.folder / "out" / "adapter_model.safetensors").is_file()
    config = json.loads((lab.folder / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(lab.model)
    again = lab.ft("cloud", "attach", "mine")
    assert again.returncode == 0, again.stderr
    assert "SUCCEEDED" in again.stdout + again.stderr


@pytest.mark.parametrize("adapter", ["lora", None])
def test_a_result_out_of_the_last_checkpoint_is_the_one_that_was_exported(
    lab: Any, adapter: str | None
) -> None:
    """What another machine makes of a run that is trained: no model, no GPU."""
    lora = dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout")) if adapter is None else {}
    recipe = lab.recipe(adapter=adapter, max_steps=3, save_steps=2, **lora)
    store = lab.start(recipe, "whole")
    assert lab.outcome("whole")["state"] == "SUCCEEDED"
    copy = lab.folder / "copy"
    shutil.copytree(store, copy, ignore=shutil.ignore_patterns("final"))
    command = [sys.executable, "-P", "-m", "ft.runtime", "export", str(copy), "--step"]
    run = partial(subprocess.run, env=lab.env, capture_output=True, text=True, check=False)
    done = run([*command, "3"])
    assert done.returncode == 0, done.stdout + done.stderr
    files = [json.loads((s / "final/manifest.json").read_text())["files"] for s in (store, copy)]
    assert files[0] == files[1]
    weights = "model.safetensors" if adapter is None else "adapter_model.safetensors"
    assert weights in {entry["path"] for entry in files[0]}
    shutil.rmtree(copy / "checkpoints/step-00000003")
    done = run([*command, "3"])
    assert done.returncode == 1
    assert "there is no whole checkpoint of step 3 to export" in done.stdout


def kill_worker_at(lab: Any, store: Path, step: int) -> None:
    """SIGKILL rank 0 once it has finished `step`."""
    lab.wait_for(lambda: step in lab.losses(store))
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        # torchrun's own command line names the worker too; the worker is the process that it started with `-u`.
        if (
            b"ft.runtime.worker" in words
            and str(store).encode() in words
            and b"torch.distributed.run" not in words
        ):
            os.kill(int(cmdline.parent.name), signal.SIGKILL)
            return
    pytest.fail("no worker to kill")


def test_a_killed_worker_resumes_and_the_adapter_is_bit_equal(lab: Any) -> None:
    """CPU, fp32, dropout 0.1: data order, RNG, optimizer and schedule all come back."""
    calm = lab.start(lab.recipe(), "calm")
    assert lab.outcome("calm")["state"] == "SUCCEEDED"
    hit = lab.start(lab.recipe(output_dir="out2"), "hit")
    step = random.Random(os.getpid()).randint(3, 9)
    kill_worker_at(lab, hit, step)
    outcome = lab.outcome("hit")
    assert outcome["state"] == "SUCCEEDED", outcome
    resumed = [e["data"]["step"] for e in lab.events(hit) if e["kind"] == "resume"]
    ends = [
        e["data"] for e in lab.events(hit) if e["kind"] == "attempt" and e["data"]["mark"] == "end"
    ]
    assert [(end["exit_code"], end["reason"]) for end in ends] == [(137, "killed"), (0, "done")]
    assert len(resumed) == 1
    assert resumed[0] % 2 == 0
    assert resumed[0] >= step - 2
    assert sha256s(hit) == sha256s(calm)
    assert lab.losses(hit) == lab.losses(calm)
    last = [[e["data"] for e in lab.events(s) if e["kind"] == "step"][-1] for s in (calm, hit)]
    assert last[0]["tokens"] == last[1]["tokens"]
    assert last[0]["trained_tokens"] == last[1]["trained_tokens"]


def rows_per_step(lab: Any, store: Path, ranks: int) -> dict[int, list[int]]:
    """Step -> row ids, put together as the ranks and accumulation steps shared them out."""
    parts = [lab.rows_of(store, 1, rank) for rank in range(ranks)]
    steps: dict[int, list[int]] = {}
    for together in zip(*parts, strict=True):
        for part in together:
            steps.setdefault(part["step"], []).extend(part["rows"])
    return steps


@pytest.mark.parametrize("adapter", ["lora", None])
def test_one_and_two_processes_see_the_same_rows_and_losses(lab: Any, adapter: str | None) -> None:
    """DDP on gloo, the same global batch of 4, no dropout. 38 rows: the last step of an epoch has 2."""
    lines = (lab.folder / "data" / "rows.jsonl").read_text().splitlines()[:38]
    (lab.folder / "data" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    none = dict.fromkeys(("adapter", "lora_r", "lora_alpha", "lora_dropout"))
    lora = {"lora_dropout": 0.0} if adapter else none
    one = lab.start(lab.recipe(**lora, learning_rate=0.001), "one")
    assert lab.outcome("one")["state"] == "SUCCEEDED"
    two = lab.start(
        lab.recipe(
            **lora, learning_rate=0.001, gradient_accumulation_steps=1, cloud={"gpu": "cpu:2"}
        ),
        "two",
    )
    outcome = lab.outcome("two")
    assert outcome["state"] == "SUCCEEDED", outcome
    rows = rows_per_step(lab, one, 1)
    assert rows == rows_per_step(lab, two, 2)
    assert sorted(row for step in range(1, 11) for row in rows[step]) == list(range(38))
    assert [len(rows[step]) for step in (9, 10, 11)] == [4, 2, 4]
    a, b = lab.losses(one), lab.losses(two)
    assert sorted(a) == sorted(b) == list(range(1, 13))
    assert max(abs(a[step] - b[step]) for step in a) < 1e-5


def test_stop_saves_first_and_a_cancelled_run_says_so(lab: Any) -> None:
    recipe = lab.recipe(max_steps=400, num_epochs=100, save_steps=1000)
    process = subprocess.Popen(
        lab.command("train", str(recipe)),
        cwd=lab.folder,
        env=lab.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    runs = lab.folder / "state" / "ft" / "runs"
    folder = lab.wait_for(
        lambda: next(iter(p.parent for p in runs.glob("*/supervisor.json")), None)
    )
    record = json.loads((folder / "record.json").read_text())
    store = Path(record["store"])
    lab.wait_for(lambda: lab.losses(store))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["state"], outcome["reason"]) == ("CANCELLED", "user"), outcome
    saved = [e["data"]["step"] for e in lab.events(store) if e["kind"] == "checkpoint"]
    assert saved == [max(lab.losses(store))]


def test_evaluation_is_the_same_on_one_and_two_processes(lab: Any) -> None:
    changes: dict[str, Any] = {
        "val_set_size": 8,
        "max_steps": 2,
        "lora_dropout": 0.0,
        "save_steps": 100,
    }
    found = []
    for name, more in (
        ("e1", {}),
        ("e2", {"gradient_accumulation_steps": 1, "cloud": {"gpu": "cpu:2"}}),
    ):
        store = lab.start(lab.recipe(**changes, **more), name)
        assert lab.outcome(name)["state"] == "SUCCEEDED"
        found.append([e["data"] for e in lab.events(store) if e["kind"] == "eval"])
    (one,), (two,) = found
    assert one["step"] == two["step"] == 2
    assert one["trained_tokens"] == two["trained_tokens"] > 0
    assert abs(one["loss"] - two["loss"]) < 1e-5


def test_a_killed_supervisor_leaves_nothing_running_and_the_same_name_goes_on(lab: Any) -> None:
    recipe = lab.recipe(max_steps=40, save_steps=5)
    store = lab.start(recipe, "gone")
    lab.wait_for(lambda: 6 in lab.losses(store))
    folder = lab.folder / "state" / "ft" / "runs" / lab.record("gone")["id"]
    os.kill(json.loads((folder / "supervisor.json").read_text())["pid"], signal.SIGKILL)

    def living() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if str(store).encode() in words:
                found.append(path.parent.name)
        return found

    lab.wait_for(lambda: not living())
    status = lab.ft("cloud", "status", "gone", "--json")
    assert "UNKNOWN" in status.stdout
    assert lab.start(recipe, "gone") == store
    assert lab.outcome("gone")["state"] == "SUCCEEDED"
    resumed = [e["data"]["step"] for e in lab.events(store) if e["kind"] == "resume"]
    assert len(resumed) == 1
    assert resumed[0] >= 5
    assert sorted(lab.losses(store)) == list(range(1, 41))
