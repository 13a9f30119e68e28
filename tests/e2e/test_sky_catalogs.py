"""What is chosen from SkyPilot's catalogs, against SkyPilot's own optimizer. All prices are invented."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft.images.resolve import resolve as resolve_image
from ft.launcher import catalogs, sky_clouds
from ft.launcher.backends import sky_request
from ft.launcher.facts import machine_for
from ft.launcher.sky_resources import resources_of
from ft.recipes.facts import Facts
from ft.recipes.resolve import resolve as resolve_plan
from ft.recipes.schema import FlatRecipe

pytestmark = [pytest.mark.e2e, pytest.mark.sky]

OPTIMIZER = Path(__file__).with_name("sky_optimizer.py")
HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region"
)
# Machine, GPU, count, cores, GiB, then dollars on demand and spot for each region (zones of AWS have spot prices of
# their own). Invented; no two sums are the same.
AWS = [
    ("p9.48xlarge", "H100", 8, 192, 2048,
     {"us-east-1": (90.11, {"a": 31.01, "b": 27.02}), "eu-north-1": (95.12, {"a": 24.03, "b": None})}),
    ("p9en.48xlarge", "H100", 8, 384, 4096, {"us-east-1": (97.13, {"a": 22.04}), "us-west-2": (93.14, {"a": None})}),
    ("p9.4xlarge", "H100", 1, 16, 256, {"us-east-1": (11.15, {"a": 4.05}), "ap-south-1": (10.16, {"a": 5.06})}),
    ("p8de.24xlarge", "A100-80GB", 8, 96, 1152, {"us-east-1": (41.17, {"a": 12.07, "c": 13.08})}),
    ("g9.xlarge", "L4", 1, 4, 16, {"us-east-1": (0.81, {"a": 0.31}), "us-west-2": (0.82, {"a": 0.29})}),
    ("g9.8xlarge", "L4", 1, 32, 128, {"us-east-1": (2.83, {"a": 1.32}), "us-west-2": (2.84, {"a": 1.33})}),
    ("m6i.2xlarge", "", "", 8, 32, {"us-east-1": (0.385, {"a": 0.15}), "eu-north-1": (0.405, {"a": 0.14})}),
    ("c7i.xlarge", "", "", 4, 8, {"us-east-1": (0.186, {"a": 0.08})}),
    ("r7i.xlarge", "", "", 4, 32, {"us-east-1": (0.267, {"a": 0.09}), "us-west-2": (0.268, {"a": None})}),
    ("t9.large", "", "", 64, 512, {"us-east-1": (0.001, {"a": 0.001})}),
]  # fmt: skip
LAMBDA = [
    ("gpu_8x_h100", "H100", 8, 208, 1800, {"us-south-1": 23.92, "us-west-3": 24.93}),
    ("gpu_1x_h100", "H100", 1, 26, 200, {"us-south-1": 3.29, "us-west-3": 3.28}),
    ("gpu_8x_a100_80gb", "A100-80GB", 8, 240, 1800, {"us-south-1": 14.32}),
    ("cpu_4x", "", "", 4, 16, {"us-south-1": 0.201}),
]
RUNPOD = [
    ("8x_H100_SECURE", "H100", 8, 128, 640, {"CA": (21.52, 16.01), "US": (22.53, 15.02)}),
    ("8x_H100_COMMUNITY", "H100", 8, 64, 512, {"CA": (19.54, None)}),
    ("1x_L4_SECURE", "L4", 1, 12, 50, {"US": (0.445, 0.226)}),
    ("1x_A100-80GB_SECURE", "A100-80GB", 1, 8, 117, {"US": (1.646, None)}),
]  # fmt: skip
# Google Cloud: machines and GPUs are sold apart.
GCP_HOSTS = [
    ("a3-highgpu-8g", 208, 1872, {"us-central1": (7.11, 2.12), "europe-west4": (8.13, 1.14)}),
    ("a2-ultragpu-8g", 96, 1360, {"us-central1": (5.15, 1.16), "europe-west4": (4.17, 1.18)}),
    ("g2-standard-4", 4, 16, {"us-central1": (0.191, 0.062)}),
    ("g2-standard-32", 32, 128, {"us-central1": (1.193, 0.464), "europe-west4": (1.095, 0.366)}),
    ("n1-standard-8", 8, 30, {"us-central1": (0.381, 0.082)}),
    ("n1-highmem-8", 8, 52, {"us-central1": (0.473, 0.104), "europe-west4": (0.465, 0.106)}),
    ("n2-standard-8", 8, 32, {"us-central1": (0.387, 0.098)}),
    ("n4-highcpu-4", 4, 8, {"us-central1": (0.149, None)}),
]
GCP_GPUS = [
    ("H100", 8, {"us-central1": (80.21, 20.22), "europe-west4": (78.23, 26.24)}),
    ("A100-80GB", 8, {"us-central1": (26.25, 12.26), "europe-west4": (31.27, None)}),
    ("L4", 1, {"us-central1": (0.568, 0.229), "europe-west4": (0.578, 0.249)}),
    ("T4", 1, {"us-central1": (0.352, 0.113), "europe-west4": (0.353, 0.114)}),
]
# No zones, nor spot prices anywhere but at Azure.
FURTHER = {
    "azure": [("Standard_ND96_v9", "H100", 8, 96, 1900, {"eastus": (98.31, 37.32)})],
    "nebius": [("gpu-h100_8gpu", "H100", 8, 128, 1600, {"eu-north1": (25.93, 17.34)})],
    "do": [
        ("gpu-h100x8", "H100", 8, 160, 1920, {"nyc2": (23.94, None)}),
        ("s-4vcpu-8gb", "", "", 4, 8, {"nyc2": (0.071, None)}),
    ],
    "verda": [("8H100.80S", "H100", 8, 176, 1480, {"FIN-01": (26.95, 18.96)})],
    "paperspace": [("H100x8", "H100", 8, 128, 1638, {"ny2": (47.97, None)})],
    "cudo": [
        ("h100_8", "H100", 8, 96, 768, {"gb-1": (28.98, None)}),
        ("cpu_8", "", "", 8, 16, {"gb-1": (0.199, None)}),
    ],
    "fluidstack": [("H100_PCIE_8", "H100", 8, 252, 1440, {"norway": (29.99, None)})],
}  # fmt: skip
CLOUDS = [
    "AWS",
    "Lambda",
    "RunPod",
    "GCP",
    "Azure",
    "Nebius",
    "DO",
    "Verda",
    "Paperspace",
    "Cudo",
    "Fluidstack",
]
GPUS = ("H100", "A100-80GB", "L4", "T4")
PUSHED = f"reg.example/team/ft:1@sha256:{'ab' * 32}"


def _rows() -> dict[str, list[str]]:
    """Cloud -> lines of its catalog."""

    def line(*values: object) -> str:
        return ",".join("" if value is None else str(value) for value in values)

    found = {
        "aws": [f"{HEADER},AvailabilityZone"],
        "lambda": [HEADER],
        "runpod": [f"{HEADER},AvailabilityZone"],
    }
    for *machine, places in AWS:
        for region, (price, zones) in places.items():
            found["aws"] += [
                line(*machine, None, price, spot, region, region + zone)
                for zone, spot in zones.items()
            ]
    for *machine, places in LAMBDA:
        found["lambda"] += [
            line(*machine, None, price, None, region) for region, price in places.items()
        ]
    for *machine, places in RUNPOD:
        found["runpod"] += [
            line(*machine, None, *prices, region, f"{region}-1")
            for region, prices in places.items()
        ]
    for cloud, machines in FURTHER.items():
        found[cloud] = [HEADER]
        for *machine, places in machines:
            found[cloud] += [
                line(*machine, None, *prices, region) for region, prices in places.items()
            ]
    found["gcp"] = [f"{HEADER},AvailabilityZone"]
    for name, cores, gib, places in GCP_HOSTS:
        found["gcp"] += [
            line(name, None, None, cores, gib, None, *prices, r, f"{r}-a")
            for r, prices in places.items()
        ]
    for name, count, places in GCP_GPUS:
        found["gcp"] += [
            line(None, name, count, None, None, name, *prices, r, f"{r}-a")
            for r, prices in places.items()
        ]
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with catalogs."""
    home = tmp_path_factory.mktemp("home")
    folder = home / ".sky/catalogs/v8"
    for cloud, lines in _rows().items():
        (folder / cloud).mkdir(parents=True)
        (folder / cloud / "vms.csv").write_text("\n".join(lines) + "\n")
    (folder / "common").mkdir()
    names = "".join(f'{gpu},"{CLOUDS}"\n' for gpu in GPUS)
    (folder / "common/accelerators.csv").write_text(f"AcceleratorName,Clouds\n{names}")
    sizes = "".join(f"{gpu},80,NVIDIA\n" for gpu in GPUS)
    (folder / "common/metadata.csv").write_text(f"GPU,MemoryGB,Manufacturer\n{sizes}")
    return home


def skypilot(home: Path, *arguments: str, asked: object = None) -> list[Any]:
    """What SkyPilot answers, line by line; one process for all, since it takes seconds to start."""
    env = os.environ | {
        "HOME": str(home),
        "SKY_RUNTIME_DIR": str(home),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    process = subprocess.run(
        [sys.executable, "-P", str(OPTIMIZER), *arguments],
        input=json.dumps(asked), env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-4000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def task_of(cloud: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task that SkyPilot would be sent, and its resources as they are priced before there is a plan."""
    values = {
        "model": {"base_model": "a/b"},
        "optim": {"learning_rate": 1e-4},
        "cloud": {"cloud": {"backend": "sky", "store_bucket": "s3://my-runs/team", **cloud}},
    }
    recipe = FlatRecipe.model_validate(values)
    block = recipe.cloud.cloud
    assert block is not None
    plan = resolve_plan(recipe, Facts(files={}, machine=machine_for(recipe)))
    image = resolve_image(plan, source_sha256="0" * 64, additions=block.image)
    asked = sky_request.request(plan, image, block, {})
    task = sky_request.task_of(asked) | {"name": "ft-1", "file_mounts": {}}
    return task, resources_of(block)


def drawn(number: int) -> Iterator[dict[str, Any]]:
    """Blocks of all kinds, the same ones each time."""
    chance = random.Random(20261130)
    places = [
        "aws", "lambda", "runpod", "gcp", "aws/us-east-1", "aws/eu-north-1", "aws/us-east-1/us-east-1b", "runpod/US",
        "lambda/us-west-3", "azure", "nebius", "do", "verda", "paperspace", "cudo", "fluidstack",
        "gcp/europe-west4", "gcp/us-central1/us-central1-a", "aws/us-west-2", "aws/US-EAST-1",
    ]  # fmt: skip
    for _ in range(number):
        count = chance.choice([1, 1, 8, 8, 8, 3])
        names = chance.sample(GPUS, chance.choice([1, 1, 1, 2]))
        gpus = [f"{name}:{count}" for name in names]
        block: dict[str, Any] = {"gpu": gpus if len(gpus) > 1 else gpus[0]}
        if chance.random() < 0.15:
            block["gpu"] = f"cpu:{chance.choice([1, 4, 8, 100])}"
        if chance.random() < 0.6:
            block["region"] = chance.choice([chance.choice(places), chance.sample(places, 2)])
        if chance.random() < 0.4:
            block["spot"] = True
        if chance.random() < 0.25:
            block["nodes"] = 2
        if chance.random() < 0.2:
            block["cpu"] = chance.choice([4, 8, 64, 200, 1000])
        if chance.random() < 0.2:
            block["memory"] = chance.choice([16, 51, 1000, 1900, 9000])
        resources: dict[str, Any] = {}
        if chance.random() < 0.25:
            resources["max_hourly_cost"] = chance.choice([0.3, 2, 14, 23, 27, 92, 500])
        if block.get("nodes") and chance.random() < 0.5:
            resources["network_tier"] = "standard"
        yield block | ({"sky": {"resources": resources}} if resources else {})


def in_images(blocks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A third of them in a container."""
    chance = random.Random(20261201)
    for block in blocks:
        # With an image SkyPilot knows a region only as its catalog spells it.
        is_spelled = "aws/US-EAST-1" not in str(block.get("region"))
        in_one = chance.random() < 0.3 and is_spelled
        yield block | ({"image": {"pushed": PUSHED}} if in_one else {})


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """What is read from the catalogs, in the optimizer's words."""
    choice = catalogs.choice_for(task["resources"], task["num_nodes"])
    if not choice.picks:
        return {"infeasible": True}
    first, dearest = choice.picks[0], choice.dearest
    assert dearest is not None
    return {
        "cloud": first.offer.cloud,
        "region": first.offer.region,
        "zone": first.offer.zone if first.spot else None,
        "machine": first.offer.instance_type,
        "spot": first.spot,
        "usd_per_hour": pytest.approx(float(first.usd_per_hour), rel=1e-9),
        "dearest": pytest.approx(float(dearest.usd_per_hour), rel=1e-9),
        "num_machines": choice.num_machines,
    }


CHOSEN: list[tuple[dict[str, Any], str | None]] = [
    ({"gpu": "H100:8"}, "runpod CA 8x_H100_COMMUNITY"),
    ({"gpu": "H100:8", "spot": True}, "runpod US-1 8x_H100_SECURE"),
    ({"gpu": "H100:8", "nodes": 2}, "nebius eu-north1 gpu-h100_8gpu"),
    ({"gpu": "H100:8", "nodes": 2, "sky": {"resources": {"network_tier": "standard"}}},
     "lambda us-south-1 gpu_8x_h100"),
    ({"gpu": ["T4:1", "L4:1"], "region": ["runpod", "aws"]}, "runpod US 1x_L4_SECURE"),
    ({"gpu": "H100:8", "region": ["aws", "lambda"]}, "lambda us-south-1 gpu_8x_h100"),
    ({"gpu": "H100:8", "cpu": 200}, "lambda us-south-1 gpu_8x_h100"),
    ({"gpu": "H100:8", "memory": 2000, "region": "aws"}, "aws us-east-1 p9.48xlarge"),
    ({"gpu": "H100:8", "region": "aws", "spot": True}, "aws us-east-1a p9en.48xlarge"),
    ({"gpu": "H100:8", "region": "aws", "sky": {"resources": {"max_hourly_cost": 50}}}, None),
    ({"gpu": "H100:8", "region": "lambda", "spot": True}, None),
    ({"gpu": "H100:3"}, None),
    ({"gpu": "cpu:4", "region": "aws"}, "aws us-east-1 r7i.xlarge"),
    ({"gpu": "cpu:4"}, "do nyc2 s-4vcpu-8gb"),
    ({"gpu": "cpu:8"}, "cudo gb-1 cpu_8"),
    ({"gpu": "cpu:8", "image": {"pushed": PUSHED}}, "aws us-east-1 m6i.2xlarge"),
]  # fmt: skip


def test_the_choice_is_that_of_skypilot(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(home))
    blocks = [block for block, _ in CHOSEN] + list(in_images(drawn(120)))
    tasks = []
    for block in blocks:
        task, priced = task_of(block)
        assert task["resources"] == priced
        tasks.append(task)
    answers = skypilot(home, asked={"clouds": CLOUDS, "tasks": tasks})
    assert len(answers) == len(tasks)
    differ = [
        (block, answer, mine)
        for block, answer, task in zip(blocks, answers, tasks, strict=True)
        if answer != (mine := ours(task))
    ]
    assert differ == []
    for (block, expected), task in zip(CHOSEN, tasks, strict=False):
        mine = ours(task)
        named = (
            None
            if "machine" not in mine
            else f"{mine['cloud']} {mine['zone'] or mine['region']} {mine['machine']}"
        )
        assert (block, named) == (block, expected)
    # Enough of either kind, so that equality says something.
    infeasible = sum("infeasible" in answer for answer in answers)
    assert 30 <= infeasible <= len(answers) - 50


def test_a_place_that_a_catalog_does_not_have_is_refused_by_both(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(home))
    regions = ["lambda/mars-1", ["aws/us-east-9", "lambda"]]
    tasks = [task_of({"gpu": "H100:8", "region": region})[0] for region in regions]
    for answer, task in zip(
        skypilot(home, asked={"clouds": CLOUDS, "tasks": tasks}), tasks, strict=True
    ):
        assert "Invalid region" in answer["invalid"]
        assert catalogs.choice_for(task["resources"], 1).is_refused


def test_what_clouds_lack_is_what_skypilot_says(home: Path) -> None:
    found, images = skypilot(home, "lacks")
    assert set(images["refused"]) == sky_clouds.IMAGES_REFUSED
    assert set(images["dropped"]) == sky_clouds.IMAGES_DROPPED
    for cloud in sky_clouds.LACKS:
        for gpus, lacking in found[cloud].items():
            name, _, count = gpus.partition(":")
            assert (cloud, gpus, sorted(sky_clouds.lacks(cloud, name, int(count)))) == (
                cloud,
                gpus,
                lacking,
            )
    # Those that are never judged.
    assert set(found) - set(sky_clouds.LACKS) == {
        "ibm",
        "kubernetes",
        "shadeform",
        "slurm",
        "ssh",
        "vsphere",
    }
