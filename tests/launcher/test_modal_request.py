"""What Modal would be asked for, as the dry-run has it: pure, and without Modal's client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ft.images.resolve import resolve as resolve_image
from ft.launcher.backends import modal_request
from ft.launcher.facts import machine_for
from ft.recipes.errors import PlanError
from ft.recipes.facts import Facts
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve as resolve_plan
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.cloud import CloudBlock

SOURCE = "0123456789abcdef" * 4
ALWAYS = {"startup_timeout": 3600, "single_use_containers": True}
RETRIES = {"max_retries": 3, "backoff_coefficient": 1.0, "initial_delay": 1.0}


def planned(adapter: str | None = None, **cloud: Any) -> tuple[RunPlan, CloudBlock]:
    lora = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
    values = {
        "model": {"base_model": "a/b"},
        "adapter": lora if adapter else {},
        "optim": {"learning_rate": 1e-4},
        "cloud": {"cloud": {"backend": "modal", **cloud}},
    }
    recipe = FlatRecipe.model_validate(values)
    block = recipe.cloud.cloud
    assert block is not None
    return resolve_plan(recipe, Facts(files={}, machine=machine_for(recipe))), block


def asked(here: dict[str, str] | None = None, **cloud: Any) -> dict[str, Any]:
    plan, block = planned(**cloud)
    image = resolve_image(plan, source_sha256=SOURCE, additions=block.image)
    return modal_request.request(plan, image, block, here or {})


def test_one_gpu_and_nothing_else_said() -> None:
    found = asked(gpu="H100:8")
    on_cpu = {"cpu": 4.0, "memory": 16384, "timeout": 86_400, "retries": RETRIES, **ALWAYS}
    train = {"timeout": 86_400, "retries": RETRIES, "gpu": "H100:8", **ALWAYS}
    assert found["functions"] == {"prepare": on_cpu, "train": train, "export": on_cpu}
    assert found["job"]["exports"] is True
    assert found["volumes"] == {
        "/ft/store": {"name": "ft-store", "create": True},
        "/ft/cache": {"name": "ft-cache", "create": True},
    }
    assert found["store"] == "modal://ft-store/{run}"
    assert found["secrets"] == {"from_here": [], "on_modal": []}
    assert (found["env"], found["job"]["gpus"], found["job"]["nodes"]) == ({}, ["H100"], 1)


def test_an_adapter_is_exported_where_it_was_trained() -> None:
    found = asked(gpu="H100:8", adapter="lora")
    assert list(found["functions"]) == ["prepare", "train"]
    assert "exports" not in found["job"]


def test_all_that_a_recipe_can_say_of_its_machines() -> None:
    found = asked(
        gpu=["H100!:8", "B200+:8"], nodes=2, region=["us-east", "eu"], cpu=32.0, memory=256.5, disk=900.0,
        timeout="90m", retries=7, modal={"cloud": "aws", "startup_timeout": 600},
    )  # fmt: skip
    retries = RETRIES | {"max_retries": 7}
    assert found["functions"]["train"] == {
        "gpu": ["H100!:8", "B200+:8"], "nodes": 2, "region": ["us-east", "eu"], "cpu": 32.0, "memory": 262_656,
        "ephemeral_disk": 921_600, "timeout": 5400, "retries": retries, "single_use_containers": True,
        "cloud": "aws", "startup_timeout": 600,
    }  # fmt: skip
    assert found["functions"]["prepare"]["region"] == ["us-east", "eu"]
    assert found["functions"]["prepare"]["timeout"] == 86_400, "rows take what they take"
    assert "cloud" not in found["functions"]["prepare"]
    assert (found["job"]["timeout_s"], found["job"]["nodes"]) == (5400, 2)


def test_a_cpu_is_asked_for_as_cores() -> None:
    found = asked(gpu="cpu:2", timeout="50s")["functions"]
    assert found["train"] == {
        "cpu": 2.0, "timeout": 50, "retries": RETRIES, **ALWAYS,
    }  # fmt: skip


def test_volumes_of_the_users_are_not_made() -> None:
    found = asked(
        gpu="cpu", store_volume="mine", cache_volume="warm",
        volumes=[{"name": "corpus", "mount": "/corpus"}],
    )  # fmt: skip
    assert found["volumes"] == {
        "/ft/store": {"name": "mine", "create": True},
        "/ft/cache": {"name": "warm", "create": True},
        "/corpus": {"name": "corpus", "create": False},
    }
    assert (found["job"]["volume"], found["job"]["cache_volume"]) == ("mine", "warm")


def test_a_run_in_a_bucket_has_no_volume_and_no_dict_of_its_own() -> None:
    """And nothing of what opens the bucket but names."""
    here = {"AWS_ACCESS_KEY_ID": "AKIAPLANTED", "AWS_SECRET_ACCESS_KEY": "planted-s3-secret"}
    found = asked(
        here, gpu="cpu", store_bucket="s3://my-runs/team/", secrets=[*here, "kept"],
        env={"AWS_ENDPOINT_URL": "https://s3.example.com"},
    )  # fmt: skip
    assert found["store"] == "s3://my-runs/team/{run}"
    assert found["volumes"] == {"/ft/cache": {"name": "ft-cache", "create": True}}
    assert found["words"] == ""
    assert found["secrets"] == {"from_here": list(here), "on_modal": ["kept"]}
    assert found["env"] == {"AWS_ENDPOINT_URL": "https://s3.example.com"}
    plan, _ = planned(gpu="cpu")
    assert found["job"] == {
        "run": "{run}", "app": "ft-{run}", "volume": "", "words": "", "bucket": "s3://my-runs/team/{run}",
        "cache_volume": "ft-cache", "plan_sha256": plan.sha256, "timeout_s": 86_400, "gpus": [], "nodes": 1,
        "resumed_after": 0, "segment": 0, "exports": True,
    }  # fmt: skip
    assert not {value for value in here.values() if value in json.dumps(found)}


def test_a_gpu_is_named_by_a_run_that_moves_here() -> None:
    """The rules see to it for a recipe that is sent; the block of a run of backend local may have none."""
    plan, _ = planned(gpu="L4")
    block = planned(store_bucket="s3://my-runs")[1]
    image = resolve_image(plan, source_sha256=SOURCE)
    with pytest.raises(PlanError, match=r"cloud\.gpu is not set, and Modal has to be told"):
        modal_request.request(plan, image, block, {})


def test_secrets_are_names_and_variables_are_values() -> None:
    here = {"HF_TOKEN": "hf_abcdefghijklmnop", "OTHER": "x"}
    found = asked(here, gpu="cpu", secrets=["HF_TOKEN", "WANDB_API_KEY", "kept"], env={"A": "b"})
    assert found["secrets"] == {"from_here": ["HF_TOKEN"], "on_modal": ["WANDB_API_KEY", "kept"]}
    assert found["env"] == {"A": "b"}
    assert "hf_abc" not in json.dumps(found)


@pytest.mark.parametrize("name", ["gpus", "image", "schedule", "min_containers"])
def test_an_argument_that_a_function_does_not_have(name: str) -> None:
    with pytest.raises(PlanError, match=rf"cloud\.modal\.{name} is not an argument"):
        asked(gpu="cpu", modal={name: 1})


def test_every_argument_that_may_be_set_is_one_of_modals() -> None:
    modal = pytest.importorskip("modal", reason="Modal's client is not installed")
    import inspect

    names = set(inspect.signature(modal.App.function).parameters)
    assert names >= modal_request.OPTIONS
    ours = {"gpu", "cpu", "memory", "ephemeral_disk", "timeout", "retries", "region"}
    assert names >= ours | {"single_use_containers"}
    assert not ours & modal_request.OPTIONS


def test_the_run_is_filled_in_everywhere() -> None:
    text = json.dumps(modal_request.filled(asked(gpu="cpu"), "20261129-1"))
    assert "{run}" not in text
    assert text.count("20261129-1") == 7


def test_new_limits_reach_function_and_job() -> None:
    plan, _ = planned(gpu="cpu", timeout="2h")
    changed = modal_request.limited(asked(gpu="cpu"), plan)
    assert (changed["functions"]["train"]["timeout"], changed["job"]["timeout_s"]) == (7200, 7200)
    before = asked(gpu="cpu")
    assert before["job"]["timeout_s"] == 86_400
    assert modal_request.limited(before, planned(gpu="cpu")[0]) == before


def test_the_same_recipe_is_the_same_request(tmp_path: Path) -> None:
    """In another process, where Modal's client cannot be imported."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    recipe = {
        "base_model": "some/model", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "learning_rate": 1e-4, "output_dir": "out", "cloud": {"backend": "modal", "gpu": "L4"},
    }  # fmt: skip
    (tmp_path / "r.yml").write_text(json.dumps(recipe))
    script = (
        "import json, sys\n"
        "sys.modules['modal'] = None\n"
        "from ft.launcher import dispatch\n"
        "print(json.dumps(dispatch.prepare('r.yml').submission.to_json()))\n"
    )
    command = [sys.executable, "-c", script]
    outputs = {
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1
    (text,) = outputs
    assert json.loads(text)["request"]["functions"]["train"]["gpu"] == "L4:1"
