"""`cloud:` block -> `resources` of SkyPilot's task: which machines it is asked for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ft.launcher import sky_clouds
from ft.recipes.catalog import GPUS
from ft.recipes.merging import merged
from ft.recipes.runstore import ExitCode
from ft.recipes.schema.cloud import CloudBlock, gpu_choices

RESTARTED: Final = tuple(int(c) for c in (ExitCode.PREEMPTED, ExitCode.HAND_OFF, ExitCode.BAD_NODE))

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "A100-40GB": ("A100",),
    "A6000": ("A6000", "RTXA6000"),
    "RTX-PRO-6000": ("RTXPRO6000",),
    "RTX6000-Ada": ("RTX6000-Ada", "RTX6000Ada"),
}
"""GPUs that SkyPilot's catalogs spell otherwise -> how. Where clouds differ, all are asked for: A6000 at Lambda is
RTXA6000 at RunPod."""
DOCKER: Final = "docker:"
"""Of an `image_id` that is a container's, and no disk of a cloud's."""


def image_of(cloud: CloudBlock) -> tuple[str | None, str]:
    """`NAME@sha256:…` of the pushed image that machines run in, or None, where they are set up; and why.

    One task has one `setup`, so all places of a request have to run containers. Where none is named, SkyPilot looks
    at those only that do. Without the tag: the digest says it all, and Enroot, below Slurm, takes one of the two.
    """
    pushed = cloud.image.pushed if cloud.image else None
    if pushed is None:
        return None, "the recipe names no `cloud.image.pushed`"
    for place in _regions(cloud):
        why = sky_clouds.why_no_image(place)
        if why is not None:
            return None, why
    name, _, digest = pushed.partition("@")
    folder, slash, last = name.rpartition("/")
    where = (
        "SkyPilot runs containers there" if cloud.region else "SkyPilot looks where containers run"
    )
    return f"{folder}{slash}{last.partition(':')[0]}@{digest}", where


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
    image, _ = image_of(cloud)
    if image is not None:
        common["image_id"] = f"{DOCKER}{image}"
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


def _regions(cloud: CloudBlock) -> tuple[str, ...]:
    return (cloud.region,) if isinstance(cloud.region, str) else tuple(cloud.region or ())


def _choices(cloud: CloudBlock) -> dict[str, Any]:
    """Which GPU where: the first choice first, and of one choice wherever it is cheapest."""
    regions = _regions(cloud)
    gpus = [c for c in gpu_choices(cloud.gpu) if c.name != "cpu"]
    named = [
        {"accelerators": f"{name}:{c.count}"} for c in gpus for name in NAMES.get(c.name, (c.name,))
    ] or [{}]
    if len(named) == 1 and len(regions) <= 1:
        return named[0] | ({"infra": regions[0]} if regions else {})
    places = [{"infra": region} for region in regions] or [{}]
    if len(named) == 1:
        return {**named[0], "any_of": places}
    # SkyPilot has no order of groups: behind another GPU, the spellings of one are tried in their order as well.
    how = "ordered" if len(gpus) > 1 else "any_of"
    return {how: [gpu | place for gpu in named for place in places]}


def our_name(sky_name: str) -> str | None:
    """What a recipe calls a GPU of SkyPilot's; None where it cannot ask for it."""
    for name, spellings in NAMES.items():
        if sky_name in spellings:
            return name
    return sky_name if sky_name in GPUS and sky_name not in NAMES else None
