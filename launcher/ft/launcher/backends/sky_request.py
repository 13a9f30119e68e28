"""(plan, image, `cloud:` block) -> what SkyPilot is asked for, as plain JSON: pure, so that a dry-run needs no server.

`{run}` stands for the id of the run, which there is none of yet, and `{folder}` for the folder of its record.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Final

from ft.images.dockerfile import SOURCE_FILE
from ft.images.setup import activation, setup_script
from ft.images.spec import ImageSpec
from ft.launcher.backends import base
from ft.launcher.secrets import split
from ft.recipes.errors import PlanError
from ft.recipes.merging import merged
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import ExitCode
from ft.recipes.schema.cloud import CloudBlock, autostop_s, gpu_choices

RUN: Final = "{run}"
FOLDER: Final = "{folder}"
SOURCE: Final = f"~/.ft/{SOURCE_FILE}"
RESTARTED: Final = tuple(int(c) for c in (ExitCode.PREEMPTED, ExitCode.HAND_OFF, ExitCode.BAD_NODE))
DEFAULT_RETRIES: Final = 3
ROOT: Final = """\
# A home may be one of this cluster only; what is installed once should be found by the next one.
home=$(getent passwd "$(id -un)" | cut -d: -f6)
export FT_SETUP_ROOT="${FT_SETUP_ROOT:-${home:-$HOME}/.cache/ft/environments}"
"""


def request(
    plan: RunPlan, image: ImageSpec, cloud: CloudBlock, env: Mapping[str, str]
) -> dict[str, Any]:
    """The request. Of `env`, this laptop's environment, only names are looked at.

    Raises: PlanError for what SkyPilot cannot be asked for.
    """
    from_here, elsewhere = split(cloud.secrets or (), env)
    if elsewhere:
        raise PlanError(
            f"cloud.secrets: {elsewhere[0]} is not set in this machine's environment, and SkyPilot takes it from there",
            hint=f"export {elsewhere[0]}=…",
        )
    if cloud.store_bucket is None:
        raise PlanError(
            "backend sky keeps a run in a bucket",
            hint="--set cloud.store_bucket=s3://BUCKET/PREFIX",
        )
    store = f"{cloud.store_bucket.rstrip('/')}/{RUN}"
    cluster = _cluster(cloud)
    job = {
        "run": RUN,
        "store": store,
        "plan_sha256": plan.sha256,
        # Attempts end in time by the plan; only where another machine goes on does a segment as well.
        "timeout_s": None if cluster else plan.limits.timeout_s,
        "gpus": [choice.name for choice in gpu_choices(cloud.gpu) if choice.name != "cpu"],
        "nodes": plan.parallel.num_nodes,
        "resumed_after": 0,
        "segment": 0,
        "submission": 1,
        "retries": DEFAULT_RETRIES if cloud.retries is None else cloud.retries,
        **({"stays": True} if cluster else {}),
    }
    task = {
        "name": f"ft-{RUN}",
        "num_nodes": plan.parallel.num_nodes,
        "resources": _resources(plan, cloud),
        "file_mounts": {SOURCE: f"{FOLDER}/{SOURCE_FILE}"},
        "envs": dict(cloud.env or {}),
        # Its codes are looked up among those of the run.
        "setup": f'{ROOT}export FT_SOURCE_TAR="$HOME/.ft/{SOURCE_FILE}"\n{setup_script(image)}[ $? = 0 ] || exit 1\n',
    }
    return {
        "store": store,
        **({"cluster": cluster} if cluster else {}),
        "task": merged(task, cloud.sky or {}),
        "secrets": list(from_here),
        "activation": activation(image),
        "source_sha256": image.source_sha256,
        "content_hash": image.content_hash,
        "job": job,
    }


def task_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What SkyPilot is given, but for the values of secrets. A function of the request alone."""
    words = shlex.quote(json.dumps(asked["job"], sort_keys=True))
    run = "\n".join(
        (
            ROOT.rstrip("\n"),
            asked["activation"],
            "unset OMP_NUM_THREADS PYTHONWARNINGS  # SkyPilot's choices, not the run's",
            f"exec python -P -m ft.launcher.backends.sky_remote {words}",
        )
    )
    task = {**asked["task"], "run": f"{run}\n"}
    if asked.get("cluster"):
        task["name"] = f"{task['name']}-{asked['job']['submission']}"
    return task


def filled(value: Any, run: str, folder: str) -> Any:
    """The same with the id of the run and the folder of its record in their places."""
    return base.filled(value, {RUN: run, FOLDER: folder})


def _cluster(cloud: CloudBlock) -> dict[str, Any]:
    """How SkyPilot is asked for a plain cluster; empty for a managed job.

    Idle, it is taken down and not stopped: what a run leaves lies in its bucket, and most clouds can do only that.
    """
    if cloud.cluster is None:
        return {}
    idle_s = autostop_s(cloud.autostop)
    bound = {} if idle_s is None else {"idle_minutes_to_autostop": -(-idle_s // 60), "down": True}
    return {"cluster_name": cloud.cluster, **bound}


def _resources(plan: RunPlan, cloud: CloudBlock) -> dict[str, Any]:
    common: dict[str, Any] = {}
    if cloud.cluster is None:
        common["job_recovery"] = {
            # What is tried again is for the run's own words to say, machine after machine. These codes are for ever:
            # a death by a signal is none of them, since nobody would count those.
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": list(RESTARTED),
        }
    if cloud.spot is not None:
        common["use_spot"] = cloud.spot
    if plan.parallel.num_nodes > 1 and plan.parallel.device == "cuda":
        common["network_tier"] = "best"
    cores = cloud.cpu
    if cores is None and plan.parallel.device == "cpu":
        cores = float(plan.parallel.num_processes_per_node)
    if cores is not None:
        common["cpus"] = f"{cores:g}+"
    if cloud.memory is not None:
        common["memory"] = f"{cloud.memory:g}+"
    if cloud.disk is not None:
        common["disk_size"] = round(cloud.disk)
    return common | _choices(cloud)


def _choices(cloud: CloudBlock) -> dict[str, Any]:
    """Which GPU where: the first choice first, and of one choice wherever it is cheapest."""
    regions = (cloud.region,) if isinstance(cloud.region, str) else cloud.region or ()
    gpus = [c for c in gpu_choices(cloud.gpu) if c.name != "cpu"]
    named = [{"accelerators": f"{c.name}:{c.count}"} for c in gpus] or [{}]
    if len(named) == 1 and len(regions) <= 1:
        return named[0] | ({"infra": regions[0]} if regions else {})
    places = [{"infra": region} for region in regions] or [{}]
    if len(named) == 1:
        return {**named[0], "any_of": places}
    return {"ordered": [gpu | place for gpu in named for place in places]}
