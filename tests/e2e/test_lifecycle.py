"""Cancel, resume, fetch and adopt with real training: what was stopped goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from laptop import make_lab
from life_cycle import LabGround, LifeCycle

from ft.recipes.runstore import why_invalid

pytestmark = pytest.mark.e2e


def machines(lab: Any, name: str) -> dict[str, Any]:
    shown = lab.ft("cloud", "status", name, "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["machines"]


@pytest.mark.xdist_group("local-life-cycle")
class TestOnThisMachine(LifeCycle):
    @pytest.fixture(scope="class")
    @classmethod
    def ground(cls, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> LabGround:
        return LabGround(make_lab(tmp_path_factory.mktemp("local"), tiny_model), "local")


def test_a_cut_off_fetch_of_a_checkpoint_goes_on_where_it_stopped(lab: Any) -> None:
    hit = lab.start(lab.recipe(max_steps=4, save_steps=2), "hit")
    assert lab.outcome("hit")["state"] == "SUCCEEDED"
    source = hit / "checkpoints" / "step-00000002"
    target = lab.folder / "checkpoint"
    target.mkdir()
    largest = max((p for p in source.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)
    half = largest.stat().st_size // 2
    (target / f"{largest.name}.part").write_bytes(largest.read_bytes()[:half])
    fetched = lab.ft("cloud", "fetch", "hit", "--checkpoint", "2", "--to", str(target), "--json")
    assert fetched.returncode == 0, fetched.stderr
    told = json.loads(fetched.stdout)
    assert told["bytes"] - told["copied_bytes"] == half
    assert why_invalid(target, plan_sha256=lab.record("hit")["plan_sha256"]) is None


def test_a_killed_supervisor_is_told_of_and_its_run_resumed(lab: Any) -> None:
    store = lab.start(lab.recipe(max_steps=60, save_steps=1000), "gone")
    lab.wait_for(lambda: 4 in lab.losses(store), timeout_s=240)
    run_id = lab.record("gone")["id"]
    folder = lab.folder / "state" / "ft" / "runs" / run_id
    os.kill(json.loads((folder / "supervisor.json").read_text())["pid"], signal.SIGKILL)

    def ended() -> dict[str, Any] | None:
        found = machines(lab, "gone")
        return None if "training is saving" in found["message"] else found

    found = lab.wait_for(ended)
    (saved,) = [e["data"]["step"] for e in lab.events(store) if e["kind"] == "checkpoint"]
    assert (found["state"], found["message"]) == (
        "UNKNOWN",
        "the supervisor was killed, or the machine restarted; training saved at step "
        f"{saved} and stopped; `ft cloud resume {run_id}` goes on",
    )
    resumed = lab.ft("cloud", "resume", "gone")
    assert resumed.returncode == 0, resumed.stderr
    assert sorted(lab.losses(store)) == list(range(1, 61))
    ends = [json.loads(p.read_text()) for p in sorted(store.glob("attempts/*/end.json"))]
    assert [(end["exit_code"], end["reason"]) for end in ends] == [(75, "preempted"), (0, "done")]


def test_a_copied_store_is_adopted_and_resumed_on_another_machine(lab: Any) -> None:
    store = lab.start(lab.recipe(max_steps=40, save_steps=1000), "here")
    lab.wait_for(lambda: 3 in lab.losses(store), timeout_s=240)
    assert lab.ft("cloud", "cancel", "here", "--grace", "200").returncode == 0
    run_id = lab.record("here")["id"]
    elsewhere = lab.folder / "elsewhere"
    shutil.copytree(store, elsewhere / run_id)
    homes = {f"XDG_{kind}_HOME": str(elsewhere / kind.lower()) for kind in ("STATE", "DATA")}
    other = replace(lab, folder=elsewhere, env={**lab.env, **homes})
    adopted = other.ft("cloud", "adopt", run_id, "--name", "there")
    assert (adopted.returncode, adopted.stdout) == (0, f"{run_id}\n"), adopted.stderr
    assert machines(other, "there")["state"] == "CANCELLED"
    resumed = other.ft("cloud", "resume", "there", "--json")
    assert resumed.returncode == 0, resumed.stderr
    told = json.loads(resumed.stdout)
    assert (told["state"], told["step"], told["attempts"]) == ("SUCCEEDED", 40, 2)
    output = elsewhere / "model-out" / "there"
    assert told["output"] == str(output)
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"].startswith(str(elsewhere / run_id / "inputs"))
    assert (store / "final").exists() is False


def test_a_rehearsed_out_of_memory_is_told_with_what_the_next_attempt_does(lab: Any) -> None:
    recipe = lab.recipe(max_steps=6, save_steps=2)
    done = lab.ft("cloud", "run", str(recipe), "--name", "oom", "--simulate", "oom@step:3")
    assert done.returncode == 0, done.stderr
    assert "  simulated     oom@step:3" in done.stderr.splitlines()
    folder = lab.folder / "state" / "ft" / "runs" / lab.record("oom")["id"]
    (line,) = [
        line
        for line in (folder / "supervisor.log").read_text().splitlines()
        if "attempt 1 ended" in line
    ]
    assert "out of memory" in line
    assert "the next attempt uses micro_batch_size 1" in line
    assert sorted(lab.losses(lab.store_of("oom"))) == list(range(1, 7))
