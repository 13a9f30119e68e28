"""(plan, image, `cloud:` block) -> what Modal is asked for, as plain JSON: pure, so that a dry-run needs no account.

`{run}` stands for the id of the run, which there is none of yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ft.images.dockerfile import layers
from ft.images.spec import ImageSpec
from ft.launcher.backends import base
from ft.launcher.secrets import split
from ft.recipes.errors import PlanError
from ft.recipes.merging import merged
from ft.recipes.plan import RunPlan
from ft.recipes.schema.cloud import CloudBlock, gpu_choices

RUN: Final = "{run}"
STORE: Final = "/ft/store"
CACHE: Final = "/ft/cache"
PREPARE: Final = 0
"""The segment that makes the rows; training begins with 1."""
UNWRITTEN: Final = "unwritten"
"""In the end that a call returns: its container could not write it where the run lies."""
DEFAULT_STORE_VOLUME: Final = "ft-store"
DEFAULT_CACHE_VOLUME: Final = "ft-cache"
LONGEST_S: Final = 86_400
"""That Modal gives one call. Its client does not check it."""
STARTUP_S: Final = 3600
"""For the image to arrive. Without it Modal takes the timeout, which is of an attempt."""
DEFAULT_RETRIES: Final = 3
PREPARE_CPU: Final = 4.0
PREPARE_MEMORY_MIB: Final = 16 * 1024
MIB_PER_GIB: Final = 1024
ENV: Final = (
    f"ENV XDG_CACHE_HOME={CACHE}",
    f"ENV HF_HOME={CACHE}/huggingface",
)
"""A layer of constants: models, data sets and prepared rows lie on the cache volume."""
OPTIONS: Final = frozenset(
    {
        *("cloud", "experimental_options", "i6pn", "routing_region", "proxy"),
        *("startup_timeout", "nonpreemptible", "block_network"),
    }
)
"""Arguments of a function on Modal that `cloud.modal` may set. The others have keys, or would do harm: containers that
are kept warm go on costing when the run has ended, and a run without access to Modal has no store."""


def request(
    plan: RunPlan, image: ImageSpec, cloud: CloudBlock, env: Mapping[str, str]
) -> dict[str, Any]:
    """The request. Of `env`, this laptop's environment, only names are looked at.

    Raises: PlanError for an option that a function on Modal does not have, and for a GPU that nobody named.
    """
    from_here, on_modal = split(cloud.secrets or (), env)
    seconds, place = _segment_s(plan), _where(cloud)
    return {
        "app": f"ft-{RUN}",
        "tags": {"ft_run": RUN, "ft_plan": plan.sha256[:12]},
        "store": place["bucket"] or f"modal://{place['volume']}/{RUN}",
        "words": place["words"],
        "image": {
            "base": image.base,
            "layers": [*layers(image), "\n".join(ENV)],
            "content_hash": image.content_hash,
            "source_sha256": image.source_sha256,
        },
        "volumes": _volumes(cloud),
        "secrets": {"from_here": list(from_here), "on_modal": list(on_modal)},
        "env": dict(cloud.env or {}),
        "functions": {
            "prepare": _on_cpu(cloud),
            "train": merged(_training(plan, cloud, seconds), _more(cloud)),
            **({"export": _exporting(cloud)} if _is_large(plan) else {}),
        },
        "job": {
            "run": RUN,
            "app": f"ft-{RUN}",
            **place,
            "cache_volume": cloud.cache_volume or DEFAULT_CACHE_VOLUME,
            "plan_sha256": plan.sha256,
            "timeout_s": seconds,
            "gpus": [choice.named for choice in gpu_choices(cloud.gpu) if choice.name != "cpu"],
            "nodes": plan.parallel.num_nodes,
            "resumed_after": 0,
            "segment": PREPARE,
            **({"exports": True} if _is_large(plan) else {}),
        },
    }


def _where(cloud: CloudBlock) -> dict[str, str]:
    """Where a run lies: on a volume beside a Dict with its words, or all of it in a bucket."""
    if cloud.store_bucket is not None:
        uri = f"{cloud.store_bucket.rstrip('/')}/{RUN}"
        return {"volume": "", "words": "", "bucket": uri}
    return {
        "volume": cloud.store_volume or DEFAULT_STORE_VOLUME,
        "words": f"ft-{RUN}",
        "bucket": "",
    }


def _segment_s(plan: RunPlan) -> int:
    return min(plan.limits.timeout_s or LONGEST_S, LONGEST_S)


def limited(request: Mapping[str, Any], plan: RunPlan) -> dict[str, Any]:
    """The request of a run whose limits were changed."""
    seconds = _segment_s(plan)
    train = {"timeout": seconds}
    return merged(request, {"functions": {"train": train}, "job": {"timeout_s": seconds}})


def filled(value: Any, run: str) -> Any:
    """The same with the id of the run in its places."""
    return base.filled(value, {RUN: run})


def _volumes(cloud: CloudBlock) -> dict[str, dict[str, Any]]:
    """Path -> name of the volume, and whether it is made if it is not there."""
    ours = {CACHE: {"name": cloud.cache_volume or DEFAULT_CACHE_VOLUME, "create": True}}
    store = _where(cloud)["volume"]
    if store:
        ours = {STORE: {"name": store, "create": True}, **ours}
    theirs = {v.mount: {"name": v.name, "create": False} for v in cloud.volumes or ()}
    return ours | theirs


def _is_large(plan: RunPlan) -> bool:
    """Whether the result is: an adapter is written in a second, where it was trained; all weights take minutes."""
    return plan.adapter.adapter == "full"


def _exporting(cloud: CloudBlock) -> dict[str, Any]:
    disk = {} if cloud.disk is None else {"ephemeral_disk": round(cloud.disk * MIB_PER_GIB)}
    return {**_on_cpu(cloud), **disk}  # The whole checkpoint lies there, the optimizer's part too.


def _on_cpu(cloud: CloudBlock) -> dict[str, Any]:
    return {
        "cpu": PREPARE_CPU,
        "memory": PREPARE_MEMORY_MIB,
        "timeout": LONGEST_S,
        "startup_timeout": STARTUP_S,
        "retries": _retries(cloud),
        "single_use_containers": True,
        **_place(cloud),
    }


def _training(plan: RunPlan, cloud: CloudBlock, seconds: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "timeout": seconds,
        "startup_timeout": STARTUP_S,
        "retries": _retries(cloud),
        "single_use_containers": True,
        **_place(cloud),
    }
    gpus = [f"{c.named}:{c.count}" for c in gpu_choices(cloud.gpu) if c.name != "cpu"]
    if plan.parallel.device == "cuda" and not gpus:
        # A recipe for Modal is not let through without; a run of backend local that moves here may have none.
        raise PlanError(
            "cloud.gpu is not set, and Modal has to be told which one",
            hint="a run whose recipe says cloud.gpu can go on there",
        )
    if gpus:
        options["gpu"] = gpus[0] if len(gpus) == 1 else gpus
    cores = cloud.cpu
    if cores is None and plan.parallel.device == "cpu":
        cores = float(plan.parallel.num_processes_per_node)
    if cores is not None:
        options["cpu"] = cores
    if cloud.memory is not None:
        options["memory"] = round(cloud.memory * MIB_PER_GIB)
    if cloud.disk is not None:
        options["ephemeral_disk"] = round(cloud.disk * MIB_PER_GIB)
    if plan.parallel.num_nodes > 1:
        options["nodes"] = plan.parallel.num_nodes
    return options


def _retries(cloud: CloudBlock) -> dict[str, Any]:
    """Of a container that broke off without a word; how an attempt is restarted is decided in the container."""
    times = DEFAULT_RETRIES if cloud.retries is None else cloud.retries
    return {"max_retries": times, "backoff_coefficient": 1.0, "initial_delay": 1.0}


def _place(cloud: CloudBlock) -> dict[str, Any]:
    if cloud.region is None:
        return {}
    return {"region": cloud.region if isinstance(cloud.region, str) else list(cloud.region)}


def _more(cloud: CloudBlock) -> Mapping[str, Any]:
    more = cloud.modal or {}
    unknown = [name for name in more if name not in OPTIONS]
    if unknown:
        raise PlanError(
            f"cloud.modal.{unknown[0]} is not an argument that a run's function on Modal can have",
            hint=f"expected one of {', '.join(sorted(OPTIONS))}",
        )
    return more
