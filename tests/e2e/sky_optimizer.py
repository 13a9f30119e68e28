"""Run by test_sky_catalogs.py: what SkyPilot's own optimizer takes. No server, no account, no network.

Reads requests from standard input, `{"clouds": [...], "tasks": [...]}`, writes one answer a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sky
import sky.check
import sky.optimizer
from sky import clouds, exceptions, global_user_state
from sky.utils import registry


def main() -> None:
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr
    for capability in clouds.CloudCapability:
        global_user_state.set_enabled_clouds(asked["clouds"], capability, "default")
    allowed = sky.check._get_workspace_allowed_clouds("default")
    global_user_state.set_allowed_clouds(allowed, "default")
    for config in asked["tasks"]:
        print(json.dumps(answer(config)), file=answers, flush=True)


def answer(config: Mapping[str, Any]) -> dict[str, Any]:
    """What it takes and all that it may take; `infeasible`, or `invalid` if the task itself is refused."""
    try:
        task = sky.Task.from_yaml_config(dict(config))
        task.validate()
    except ValueError as error:
        return {"invalid": str(error)}
    dag = sky.Dag()
    dag.add(task)
    wanted = list(task.resources)
    try:
        sky.optimizer.Optimizer.optimize(dag, quiet=True)
    except exceptions.ResourcesUnavailableError:
        return {"infeasible": True}
    best = task.best_resources
    task.set_resources(wanted if "ordered" in config["resources"] else set(wanted))
    launchable, *_ = sky.optimizer._fill_in_launchable_resources(task, None, quiet=True)
    costs = [machine.get_cost(3600) for machines in launchable.values() for machine in machines]
    return {
        "cloud": str(best.cloud).lower(),
        "region": best.region,
        "zone": best.zone if best.use_spot else None,
        "machine": best.instance_type,
        "spot": best.use_spot,
        "usd_per_hour": best.get_cost(3600),
        "dearest": max(costs),
        "num_machines": len(costs),
    }


def lacks() -> dict[str, dict[str, list[str]]]:
    """Cloud -> GPUs -> what is refused there."""
    words = {
        "SPOT_INSTANCE": "spot",
        "MULTI_NODE": "nodes",
        "CUSTOM_NETWORK_TIER": "network",
        "DOCKER_IMAGE": "images",
    }
    found = {}
    for name, cloud in registry.CLOUD_REGISTRY.items():
        found[name] = {}
        if name in {"kubernetes", "slurm", "ssh"}:
            continue  # They look for clusters.
        for gpus in ("H100:8", "H100:1", "A100:8"):
            resources = sky.Resources(accelerators=gpus)
            refused = cloud._unsupported_features_for_resources(resources)
            found[name][gpus] = sorted(words[f.name] for f in refused if f.name in words)
    return found


def images() -> dict[str, list[str]]:
    """Clouds that refuse containers, and those that take a request with one and have no lines to run it."""
    refused, dropped = [], []
    for name, cloud in registry.CLOUD_REGISTRY.items():
        if name in {"kubernetes", "slurm", "ssh"}:
            continue  # They look for clusters.
        resources = sky.Resources(image_id="docker:ubuntu:24.04")
        unsupported = cloud._unsupported_features_for_resources(resources)
        if clouds.CloudImplementationFeatures.DOCKER_IMAGE in unsupported:
            refused.append(name)
            continue
        text = (Path(sky.__file__).parent / f"templates/{name}-ray.yml.j2").read_text()
        if not re.search(r"^docker:|ImageId: {{image_id}}", text, re.MULTILINE):
            dropped.append(name)
    return {"refused": refused, "dropped": dropped}


if __name__ == "__main__":
    if sys.argv[1:] == ["lacks"]:
        print(json.dumps(lacks()))
        print(json.dumps(images()))
    else:
        main()
