"""`cloud:` block -> `resources` of SkyPilot's task: which machines it is asked for. Pure."""

from __future__ import annotations

from typing import Any, Final

from ft.recipes.merging import merged
from ft.recipes.runstore import ExitCode
from ft.recipes.schema.cloud import CloudBlock, gpu_choices

RESTARTED: Final = tuple(int(c) for c in (ExitCode.PREEMPTED, ExitCode.HAND_OFF, ExitCode.BAD_NODE))

NAMES: Final = {"A100-40GB": "A100", "RTX-PRO-6000": "RTXPRO6000"}
"""GPUs that SkyPilot's catalogs spell otherwise."""


def resources_of(cloud: CloudBlock) -> dict[str, Any]:
    """What a recipe asks for, with what it says in SkyPilot's own words put in last; `gpu` has to be set."""
    choices = list(gpu_choices(cloud.gpu))
    found = resources(
        cloud,
        nodes=cloud.nodes or 1,
        processes=max((choice.count for choice in choices), default=1),
        on_cpu=all(choice.name == "cpu" for choice in choices),
    )
    return merged({"resources": found}, cloud.sky or {})["resources"]  # type: ignore[no-any-return]  # JSON


def resources(cloud: CloudBlock, *, nodes: int, processes: int, on_cpu: bool) -> dict[str, Any]:
    """The same of `nodes` machines for so many `processes` each, without what is said in SkyPilot's own words."""
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
    if nodes > 1 and not on_cpu:
        common["network_tier"] = "best"
    cores = cloud.cpu
    if cores is None and on_cpu:
        cores = float(processes)
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
    named = [{"accelerators": f"{NAMES.get(c.name, c.name)}:{c.count}"} for c in gpus] or [{}]
    if len(named) == 1 and len(regions) <= 1:
        return named[0] | ({"infra": regions[0]} if regions else {})
    places = [{"infra": region} for region in regions] or [{}]
    if len(named) == 1:
        return {**named[0], "any_of": places}
    return {"ordered": [gpu | place for gpu in named for place in places]}
