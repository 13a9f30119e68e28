"""Which machine an attempt got, and whether that is one that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ft.launcher.backends.sky_remote import Node, SkyHost, SkyJob
from ft.launcher.facts import machine_for
from ft.launcher.machine.cluster import Cluster
from ft.launcher.machine.training import Segment, was_asked_for
from ft.recipes.facts import Facts
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.schema import FlatRecipe


@pytest.mark.parametrize(
    ("gpu", "asked", "expected"),
    [
        ("H100", "H100", True),
        ("H100", "H100!", True),
        ("H200", "H100!", False),
        ("H200", "H100", False),
        ("A100-80GB", "H100! A100-80GB", True),
        ("A100-40GB", "H100! A100-80GB", False),
        ("A100-40GB", "A100", True),
        ("A100-80GB", "A100", True),
        ("A10G", "A10", True),
        ("A10", "A10", True),
        ("A10G", "A10G", True),
        ("A10", "A10G", False),
        ("A100-40GB", "A10", False),
        ("L40S", "L4", False),
        ("B200", "B200+", True),
        ("B300", "B200+", True),
        ("GB300", "B200+", True),
        ("H200", "B200+", False),
        ("H200", "H100+", True),
        ("A100-80GB", "H100+", False),
        ("H100", "H200+", False),
        ("H100", "B300+", False),
        ("H200", "B200+ H200", True),
        ("cpu", "B200+ H100", False),
    ],
)
def test_what_was_asked_for_is_named_by_the_vendor_and_what_came_by_its_driver(
    gpu: str, asked: str, expected: bool
) -> None:
    """The catalog has no GB300: nobody can say that it is worse."""
    assert was_asked_for(gpu, asked.split()) is expected


def plan_for(gpu: str) -> RunPlan:
    values = {
        "model": {"base_model": "a/b"},
        "optim": {"learning_rate": 1e-4},
        "cloud": {"cloud": {"gpu": gpu}},
    }
    recipe = FlatRecipe.model_validate(values)
    return resolve(recipe, Facts(files={}, machine=machine_for(recipe)))


@pytest.mark.parametrize(
    ("asked", "warnings"),
    [(("A10",), []), (("H100!", "A100-80GB"), ["asked for H100! or A100-80GB, got A10G"])],
)
def test_an_attempt_notes_its_machine_and_warns_of_one_that_nobody_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], warnings: list[str]
) -> None:
    """A script says what the driver of a machine with two A10G says."""
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    lines = [f"{n}, GPU-{n}, NVIDIA A10G, 23028, 8.6" for n in range(2)]
    driver.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(driver.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "shared").mkdir()
    job = SkyJob("run-1", "0" * 64, None, asked, 1, 0, 3, f"file://{tmp_path}/shared/run-1", 1, 3)
    variables = {
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n",
        "SKYPILOT_MANAGED_JOB_ID": "7",
    }
    host = SkyHost(job, "call", 3, Node.of(variables))
    segment = Segment(job, Cluster.single(host.words), host)
    folder = segment.store.attempt_folder(1)
    folder.mkdir(parents=True)
    segment._note_machine(folder, plan_for("A100-80GB:2"))
    noted = json.loads((folder / "machine.json").read_text())
    assert {**host.facts(), **noted} == noted
    assert {name: noted[name] for name in ("call", "segment", "gpu", "gpus")} == {
        "call": "call", "segment": 3, "gpu": "A10G", "gpus": 2,
    }  # fmt: skip
    events, _ = segment.store.events()
    assert [(e.data["level"], e.data["message"]) for e in events] == [
        ("warning", message) for message in warnings
    ]
