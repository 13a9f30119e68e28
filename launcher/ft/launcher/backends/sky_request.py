"""(plan, image, `cloud:` block) -> what SkyPilot is asked for, as plain JSON: pure, so that a dry-run needs no server.

`{run}` stands for the id of the run, which there is none of yet, and `{folder}` for the folder of its record.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Mapping
from typing import Any, Final

from ft.images import inside
from ft.images.dockerfile import SOURCE_FILE
from ft.images.setup import activation, setup_script
from ft.images.spec import ImageSpec
from ft.launcher.backends import base
from ft.launcher.medium import FOLDER_SCHEME
from ft.launcher.secrets import split
from ft.launcher.sky_resources import image_of, resources
from ft.recipes.errors import PlanError
from ft.recipes.merging import merged
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import ExitCode
from ft.recipes.schema.cloud import CloudBlock, autostop_s, gpu_choices

IF_NEW: Final = "if_new"
"""Of what a plain cluster is asked with: what holds only for one that there is none of yet."""
RUN: Final = "{run}"
FOLDER: Final = "{folder}"
SOURCE: Final = f"~/.ft/{SOURCE_FILE}"
DEFAULT_RETRIES: Final = 3
FOREIGN: Final = ("OMP_NUM_THREADS", "PYTHONWARNINGS")
"""Variables that SkyPilot sets on its nodes, and that are the recipe's to set."""
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
    store = f"{_place(cloud)}/{RUN}"
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
    pushed, why = image_of(cloud)
    task = {
        "name": f"ft-{RUN}",
        "num_nodes": plan.parallel.num_nodes,
        "resources": resources(
            cloud,
            nodes=plan.parallel.num_nodes,
            processes=plan.parallel.num_processes_per_node,
            on_cpu=plan.parallel.device == "cpu",
        ),
        "envs": dict(cloud.env or {}),
        **_set_up(image, pushed),
    }
    return {
        "store": store,
        **({"cluster": cluster} if cluster else {}),
        **_said(cloud, pushed, why),
        "task": merged(task, cloud.sky or {}),
        "secrets": list(from_here),
        "activation": inside.ACTIVATION if pushed else activation(image),
        "source_sha256": image.source_sha256,
        "content_hash": image.content_hash,
        "job": job,
    }


def _set_up(image: ImageSpec, pushed: str | None) -> dict[str, Any]:
    """What a machine does before the run: see that it runs in the image, or make what that would hold."""
    if pushed is not None:
        return {
            "setup": f"{inside.check_script(image, pushed)}[ $? = 0 ] || exit {int(ExitCode.CONFIG)}\n"
        }
    return {
        "file_mounts": {SOURCE: f"{FOLDER}/{SOURCE_FILE}"},
        # Its codes are looked up among those of the run.
        "setup": f'{ROOT}export FT_SOURCE_TAR="$HOME/.ft/{SOURCE_FILE}"\n{setup_script(image)}[ $? = 0 ] || exit 1\n',
    }


def _said(cloud: CloudBlock, pushed: str | None, why: str) -> dict[str, str]:
    """Which of the two it is, where the recipe names an image; for people."""
    if cloud.image is None or cloud.image.pushed is None:
        return {}
    how = "the pushed image; nothing is installed" if pushed else "set up without the pushed image"
    return {"environment": f"{how}: {why}"}


def _place(cloud: CloudBlock) -> str:
    """Where copies of runs lie, as a URI without a slash at its end."""
    if cloud.store_bucket is not None:
        return cloud.store_bucket.rstrip("/")
    if cloud.store is None or not cloud.store.startswith("/"):
        raise PlanError(
            "backend sky keeps a run in a bucket, or in a folder that this machine and the nodes mount alike",
            hint="--set cloud.store_bucket=s3://BUCKET/PREFIX, or --set cloud.store=/SHARED/FOLDER",
        )
    return f"{FOLDER_SCHEME}/{posixpath.normpath(cloud.store).strip('/')}".rstrip("/")


def task_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What SkyPilot is given, but for the values of secrets. A function of the request alone."""
    words = shlex.quote(json.dumps(asked["job"], sort_keys=True))
    run = "\n".join(
        (
            ROOT.rstrip("\n"),
            asked["activation"],
            *(_own(name, asked["task"]["envs"]) for name in FOREIGN),
            f"exec python -P -m ft.launcher.backends.sky_remote {words}",
        )
    )
    task = {**asked["task"], "run": f"{run}\n"}
    if asked.get("cluster"):
        task["name"] = f"{task['name']}-{asked['job']['submission']}"
    return task


def _own(name: str, env: Mapping[str, str]) -> str:
    """In place of what SkyPilot sets on its nodes, over what a task says, too."""
    return f"export {name}={shlex.quote(env[name])}" if name in env else f"unset {name}"


def filled(value: Any, run: str, folder: str) -> Any:
    """The same with the id of the run and the folder of its record in their places."""
    return base.filled(value, {RUN: run, FOLDER: folder})


def _cluster(cloud: CloudBlock) -> dict[str, Any]:
    """How SkyPilot is asked for a plain cluster; empty for a managed job.

    Idle, it is taken down and not stopped: what a run leaves lies in its bucket, and most clouds can do only that.
    One that is there may be somebody's who keeps things on it: it is bounded only if the recipe says so.
    """
    if cloud.cluster is None:
        return {}
    idle_s = autostop_s(cloud.autostop)
    bound = {} if idle_s is None else {"idle_minutes_to_autostop": -(-idle_s // 60), "down": True}
    said = bound if cloud.autostop is not None else {IF_NEW: bound}
    return {"cluster_name": cloud.cluster, **said}
