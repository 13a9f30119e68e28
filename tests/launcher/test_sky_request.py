"""What SkyPilot would be asked for, as the dry-run has it: pure, and without SkyPilot."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ft.images.inside import check_script
from ft.images.resolve import resolve as resolve_image
from ft.launcher.backends import sky_jobs, sky_request
from ft.launcher.facts import machine_for
from ft.launcher.sky_resources import our_name
from ft.recipes.errors import PlanError, Severity
from ft.recipes.facts import Facts
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve as resolve_plan
from ft.recipes.rules import check
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.cloud import CloudBlock

SOURCE = "0123456789abcdef" * 4
DIGEST = f"sha256:{SOURCE}"
PUSHED = f"reg.example:5000/team/ft:0123@{DIGEST}"
RECOVERY = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75, 76, 77]}


def planned(**cloud: Any) -> tuple[RunPlan, CloudBlock]:
    values = {
        "model": {"base_model": "a/b"},
        "optim": {"learning_rate": 1e-4},
        "cloud": {"cloud": {"backend": "sky", "store_bucket": "s3://my-runs/team/", **cloud}},
    }
    recipe = FlatRecipe.model_validate(values)
    block = recipe.cloud.cloud
    assert block is not None
    return resolve_plan(recipe, Facts(files={}, machine=machine_for(recipe))), block


def asked(here: dict[str, str] | None = None, **cloud: Any) -> dict[str, Any]:
    plan, block = planned(**cloud)
    image = resolve_image(plan, source_sha256=SOURCE, additions=block.image, user="root")
    return sky_request.request(plan, image, block, here or {})


def test_one_gpu_and_nothing_else_said() -> None:
    found = asked(gpu="H100:8")
    setup = found["task"].pop("setup")
    assert found["task"] == {
        "name": "ft-{run}",
        "num_nodes": 1,
        "resources": {"job_recovery": RECOVERY, "accelerators": "H100:8"},
        "file_mounts": {"~/.ft/ft-source.tar": "{folder}/ft-source.tar"},
        "envs": {},
    }
    assert found["store"] == "s3://my-runs/team/{run}"
    assert found["job"] == {
        "run": "{run}", "store": "s3://my-runs/team/{run}", "plan_sha256": planned(gpu="H100:8")[0].sha256,
        "timeout_s": None, "gpus": ["H100"], "nodes": 1, "resumed_after": 0, "segment": 0, "submission": 1,
        "retries": 3,
    }  # fmt: skip
    assert f"source_sha256={SOURCE}" in setup
    assert 'export FT_SOURCE_TAR="$HOME/.ft/ft-source.tar"' in setup


def test_all_that_a_recipe_can_say_of_its_machines() -> None:
    found = asked(
        gpu="H100:8", nodes=2, region=["aws/us-east-1", "gcp"], cpu=32.0, memory=256.5, disk=900.0, spot=True,
        timeout="90m", retries=7, env={"NCCL_DEBUG": "INFO"},
        sky={"resources": {"network_tier": None, "max_hourly_cost": 100}, "config": {"kubernetes": {}}},
    )  # fmt: skip
    assert found["task"]["resources"] == {
        "job_recovery": RECOVERY, "use_spot": True, "cpus": "32+", "memory": "256.5+", "disk_size": 900,
        "accelerators": "H100:8", "any_of": [{"infra": "aws/us-east-1"}, {"infra": "gcp"}], "max_hourly_cost": 100,
    }  # fmt: skip
    assert found["task"]["envs"] == {"NCCL_DEBUG": "INFO"}
    assert found["task"]["config"] == {"kubernetes": {}}
    job = found["job"]
    assert (job["timeout_s"], job["nodes"], job["retries"]) == (5400, 2, 7)


def test_an_order_of_gpus_is_kept_and_places_are_anywhere_within_it() -> None:
    found = asked(gpu=["H100:8", "A100-80GB:8"], region=["aws", "gcp"])["task"]["resources"]
    assert found["ordered"] == [
        {"accelerators": "H100:8", "infra": "aws"},
        {"accelerators": "H100:8", "infra": "gcp"},
        {"accelerators": "A100-80GB:8", "infra": "aws"},
        {"accelerators": "A100-80GB:8", "infra": "gcp"},
    ]
    assert asked(gpu="cpu:2", region="slurm/loop")["task"]["resources"] == {
        "job_recovery": RECOVERY,
        "cpus": "2+",
        "infra": "slurm/loop",
    }
    names = asked(gpu=["A100-40GB:8", "RTX-PRO-6000:8"])["task"]["resources"]["ordered"]
    assert names == [{"accelerators": "A100:8"}, {"accelerators": "RTXPRO6000:8"}], (
        "as SkyPilot spells them"
    )


def test_a_gpu_that_clouds_spell_in_two_ways_is_asked_for_in_both() -> None:
    found = asked(gpu="A6000:2")["task"]["resources"]
    assert found == {
        "job_recovery": RECOVERY,
        "any_of": [{"accelerators": "A6000:2"}, {"accelerators": "RTXA6000:2"}],
    }
    placed = asked(gpu="A6000:2", region=["lambda", "runpod"])["task"]["resources"]["any_of"]
    assert placed == [
        {"accelerators": "A6000:2", "infra": "lambda"},
        {"accelerators": "A6000:2", "infra": "runpod"},
        {"accelerators": "RTXA6000:2", "infra": "lambda"},
        {"accelerators": "RTXA6000:2", "infra": "runpod"},
    ]
    ordered = asked(gpu=["L40S:2", "A6000:2"])["task"]["resources"]["ordered"]
    assert [gpu["accelerators"] for gpu in ordered] == ["L40S:2", "A6000:2", "RTXA6000:2"]
    assert [our_name(name) for name in ("RTXA6000", "A100", "RTXPRO6000", "L4", "H100-MEGA")] == [
        "A6000", "A100-40GB", "RTX-PRO-6000", "L4", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "resources"),
    [
        ("RTX-PRO-6000:1", {"accelerators": "RTXPRO6000:1"}),
        ("RTX4090:1", {"accelerators": "RTX4090:1"}),
        ("A6000:1", {"any_of": [{"accelerators": "A6000:1"}, {"accelerators": "RTXA6000:1"}]}),
    ],
)
def test_a_gpu_that_is_asked_for_is_one_that_the_rules_let_through(
    gpu: str, resources: dict[str, Any]
) -> None:
    recipe = {
        "base_model": "a/b",
        "datasets": [{"path": "a/rows", "type": "alpaca"}],
        "learning_rate": 1e-4,
        "cloud": {"backend": "sky", "store_bucket": "s3://my-runs/team/", "gpu": gpu},
    }
    normalized = normalize(loads(json.dumps(recipe)))
    machine = machine_for(normalized.flat)
    report = check(normalized, Facts(files={}, machine=machine, machine_is_named=True))
    assert [str(p) for p in report.problems if p.severity is Severity.ERROR] == []
    assert machine is not None
    found = asked(gpu=gpu)
    assert found["task"]["resources"] == {"job_recovery": RECOVERY, **resources}
    assert found["job"]["gpus"] == [machine.gpu]


@pytest.mark.parametrize(
    ("autostop", "bound"),
    [
        (None, {"if_new": {"idle_minutes_to_autostop": 30, "down": True}}),
        ("90s", {"idle_minutes_to_autostop": 2, "down": True}),
        (3600, {"idle_minutes_to_autostop": 60, "down": True}),
        ("never", {}),
    ],
)
def test_a_plain_cluster_is_asked_for_with_what_bounds_its_cost(autostop: Any, bound: Any) -> None:
    found = asked(gpu="H100:8", cluster="dev", autostop=autostop, timeout="90m", spot=True)
    assert found["cluster"] == {"cluster_name": "dev", **bound}
    assert found["task"]["resources"] == {"use_spot": True, "accelerators": "H100:8"}
    job = found["job"]
    assert (job["stays"], job["timeout_s"]) == (True, None), (
        "another attempt begins where this one was"
    )
    sent = {**found, "job": {**job, "submission": 3}}
    named = sky_request.task_of(sky_request.filled(sent, "run-1", "/records/run-1"))
    assert named["name"] == "ft-run-1-3", "a cluster that is made anew counts its jobs from 1 again"
    assert "cluster" not in asked(gpu="H100:8")
    assert "stays" not in asked(gpu="H100:8")["job"]


def test_a_task_of_a_cluster_says_which_job_has_claimed_a_run() -> None:
    plain, managed = sky_jobs.runner_of({"cluster_name": "my_dev"}), sky_jobs.runner_of({})
    task = "sky-2026-11-23-17-45-12-345678_my_dev_12"
    assert plain.claimed_by(task) == 12
    assert plain.claimed_by(task.replace("my_dev", "other")) is None
    assert managed.claimed_by(task) is None
    assert (managed.claimed_by("12"), plain.claimed_by("12")) == (12, None)


def test_a_pushed_image_leaves_nothing_to_set_up() -> None:
    image = {"pushed": PUSHED, "pip": ["einops"]}
    plain = asked(gpu="H100:8", region="aws", image={"pip": ["einops"]})
    found = asked(gpu="H100:8", region="aws", image=image)
    named = f"reg.example:5000/team/ft@{DIGEST}"
    plan, block = planned(gpu="H100:8", region="aws", image=image)
    spec = resolve_image(plan, source_sha256=SOURCE, additions=block.image, user="root")
    assert found["task"] == {
        "name": "ft-{run}",
        "num_nodes": 1,
        "resources": {
            "job_recovery": RECOVERY, "image_id": f"docker:{named}", "accelerators": "H100:8", "infra": "aws",
        },
        "envs": {},
        "setup": f"{check_script(spec, named)}[ $? = 0 ] || exit 78\n",
    }  # fmt: skip
    assert found["activation"] == ". /opt/ft-image.sh"
    assert (
        found["environment"]
        == "the pushed image; nothing is installed: SkyPilot runs containers there"
    )
    assert found["content_hash"] == plain["content_hash"] == spec.content_hash, (
        "where it lies decides nothing"
    )
    assert "environment" not in plain
    lines = sky_request.task_of(sky_request.filled(found, "run-1", "/records/run-1"))["run"]
    assert ". /opt/ft-image.sh\nunset OMP_NUM_THREADS\n" in lines


SET_UP = "set up without the pushed image: "


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (None, "the pushed image; nothing is installed: SkyPilot looks where containers run"),
        ("kubernetes", "the pushed image; nothing is installed: SkyPilot runs containers there"),
        (
            ["gcp/us-central1", "runpod"],
            "the pushed image; nothing is installed: SkyPilot runs containers there",
        ),
        (
            "slurm/loop",
            f"{SET_UP}Slurm runs containers where it has Pyxis, which cannot be known from here",
        ),
        (["aws", "Verda/FIN-01"], f"{SET_UP}SkyPilot runs no containers on verda"),
        (
            ["fluidstack", "oci"],
            f"{SET_UP}SkyPilot leaves a container out on fluidstack, and does not say so",
        ),
    ],
)
def test_one_place_without_containers_and_all_machines_are_set_up(region: Any, said: str) -> None:
    found = asked(gpu="H100:8", region=region, image={"pushed": PUSHED})
    assert found["environment"] == said
    assert ("image_id" in found["task"]["resources"]) is not said.startswith(SET_UP)
    if said.startswith(SET_UP):
        plain = asked(gpu="H100:8", region=region)
        assert {**found, "environment": None} == {**plain, "environment": None}


def test_what_is_run_has_the_job_and_no_secret() -> None:
    here = {"HF_TOKEN": "hf_planted_value_1234"}
    found = sky_request.filled(
        asked(here, gpu="H100", secrets=["HF_TOKEN"]), "run-1", "/records/run-1"
    )
    task = sky_request.task_of(found)
    assert task["name"] == "ft-run-1"
    assert task["file_mounts"] == {"~/.ft/ft-source.tar": "/records/run-1/ft-source.tar"}
    *_, last = task["run"].splitlines()
    words = subprocess.run(
        ["bash", "-c", last.replace("exec python", "printf '%s\\n'")],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert words[:3] == ["-P", "-m", "ft.launcher.backends.sky_remote"]
    assert json.loads(words[3]) == found["job"]
    assert found["secrets"] == ["HF_TOKEN"]
    assert "planted" not in json.dumps([found, task])


def test_a_variable_of_the_recipe_stays_where_skypilot_has_one_too() -> None:
    def lines(env: dict[str, str]) -> list[str]:
        run = sky_request.task_of(asked(gpu="H100", env=env))["run"]
        return [line for line in run.splitlines() if "OMP" in line or "PYTHONWARN" in line]

    assert lines({}) == ["unset OMP_NUM_THREADS", "unset PYTHONWARNINGS"]
    own = {"OMP_NUM_THREADS": "8", "PYTHONWARNINGS": "ignore::A B"}
    assert lines(own) == ["export OMP_NUM_THREADS=8", "export PYTHONWARNINGS='ignore::A B'"]


def test_a_run_lies_in_a_folder_that_nodes_mount_or_in_a_bucket() -> None:
    for store in ("/shared/runs", "//shared/./runs/"):
        found = asked(gpu="H100", store_bucket=None, store=store)
        assert found["store"] == found["job"]["store"] == "file:///shared/runs/{run}"
    for store in (None, "runs", "~/runs"):
        with pytest.raises(
            PlanError, match="in a bucket, or in a folder that this machine"
        ) as caught:
            asked(gpu="H100", store_bucket=None, store=store)
        assert caught.value.hint == (
            "--set cloud.store_bucket=s3://BUCKET/PREFIX, or --set cloud.store=/SHARED/FOLDER"
        )


def test_a_secret_that_is_not_here_is_nowhere() -> None:
    with pytest.raises(PlanError, match=r"cloud\.secrets: HF_TOKEN is not set in this machine"):
        asked({}, gpu="H100", secrets=["HF_TOKEN"])


def test_the_same_recipe_the_same_request() -> None:
    assert json.dumps(asked(gpu="H100:8")) == json.dumps(asked(gpu="H100:8"))


def test_no_vendor_is_needed() -> None:
    code = "import sys; from ft.launcher.backends import sky_jobs, sky_remote, sky_request; " \
        "assert {'sky', 'modal', 'torch', 'obstore'}.isdisjoint(sys.modules)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
