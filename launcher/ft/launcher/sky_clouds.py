"""What the code of SkyPilot 0.14 says of each cloud, and no catalog does. A test compares it with SkyPilot's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SPOT: Final = "spot"
NODES: Final = "nodes"
NETWORK: Final = "network"
IMAGES: Final = "images"

LACKS: Final[Mapping[str, frozenset[str]]] = {
    "aws": frozenset(),
    "azure": frozenset({NETWORK}),
    "cudo": frozenset({SPOT, NETWORK, IMAGES}),
    "do": frozenset({SPOT, NETWORK}),
    "fluidstack": frozenset({SPOT, NETWORK}),
    "gcp": frozenset(),
    "hyperbolic": frozenset({SPOT, NODES, NETWORK, IMAGES}),
    "lambda": frozenset({SPOT, NETWORK}),
    "mithril": frozenset({NETWORK}),
    "nebius": frozenset({NETWORK}),
    "oci": frozenset({IMAGES}),
    "paperspace": frozenset({SPOT, NETWORK}),
    "primeintellect": frozenset({NODES, NETWORK, IMAGES}),
    "runpod": frozenset({NODES, NETWORK}),
    "scp": frozenset({SPOT, NETWORK, IMAGES}),
    "seeweb": frozenset({SPOT, NODES, NETWORK}),
    "vast": frozenset({NODES, NETWORK}),
    "verda": frozenset({NODES, NETWORK, IMAGES}),
    "yotta": frozenset({SPOT, NODES, NETWORK}),
}
"""Cloud with a catalog -> what SkyPilot refuses there: spot machines, several of them, `network_tier: best`, images of
containers.

IBM's and Shadeform's catalogs are read by other rules, which are not followed here: their prices are unknown.
"""
IMAGES_REFUSED: Final = frozenset(
    {
        "ibm",
        "shadeform",
        "vsphere",
        *(cloud for cloud, missing in LACKS.items() if IMAGES in missing),
    }
)
IMAGES_DROPPED: Final = frozenset({"fluidstack"})
"""Where SkyPilot takes a request with one, and has no lines that would run it."""
NEBIUS_NETWORKED: Final = frozenset({"h100", "h200", "b200", "b300"})
NEBIUS_COUNT: Final = 8
"""With so many of these Nebius has the network after all."""

MEMORY_IGNORED: Final = frozenset({"primeintellect", "runpod", "verda", "yotta"})
"""Beside a GPU, the memory that is asked for does not count there."""
US_FIRST: Final = frozenset({"aws", "lambda"})
"""Of regions with one price those in the United States go first."""


def lacks(cloud: str, accelerator: str | None, count: float) -> frozenset[str]:
    """What SkyPilot refuses on a cloud for machines with `count` of a GPU."""
    missing = LACKS.get(cloud, frozenset())
    joined = (accelerator or "").casefold() in NEBIUS_NETWORKED and count == NEBIUS_COUNT
    return missing - {NETWORK} if cloud == "nebius" and joined else missing


def why_no_image(place: str) -> str | None:
    """Why a container is not asked for at a place, such as `aws/us-east-1`; None where SkyPilot runs one."""
    cloud = place.partition("/")[0].strip().lower()
    if cloud == "slurm":
        return "Slurm runs containers where it has Pyxis, which cannot be known from here"
    if cloud in IMAGES_REFUSED:
        return f"SkyPilot runs no containers on {cloud}"
    if cloud in IMAGES_DROPPED:
        return f"SkyPilot leaves a container out on {cloud}, and does not say so"
    return None


@dataclass(frozen=True, slots=True)
class CpuOnly:
    """Which machines are looked at where no GPU is asked for."""

    pattern: str = ""
    """That the name of the machine begins with; a regular expression."""
    cpus: str | None = None
    """Where neither cores nor memory are asked for."""
    memory: str | None = None
    """Where no memory is asked for; `4x` are so many GiB for each core."""


CPU_ONLY: Final[Mapping[str, CpuOnly]] = {
    "aws": CpuOnly(r"(m6i|m6id|m7i|r6i|r6id|r7i|c6i|c6id|c7i)\.", "8+", "4x"),
    "gcp": CpuOnly(r"n[24]-(standard|highmem|highcpu)-", "8+", "4x"),
    "cudo": CpuOnly("", "8+", "2x"),
    "fluidstack": CpuOnly("", "6+", "4x"),
    "lambda": CpuOnly("", "30+", "4x"),
    **dict.fromkeys(
        (
            "do", "hyperbolic", "mithril", "nebius", "paperspace", "primeintellect", "runpod", "seeweb",
            "vast", "verda",
        ),
        CpuOnly(),
    ),
}  # fmt: skip
"""A cloud that is not here is not judged without a GPU: what SkyPilot would take there is not known."""


def is_cpu_machine(cloud: str, instance_type: str) -> bool:
    """Whether SkyPilot looks at a machine where no GPU is asked for."""
    rule = CPU_ONLY.get(cloud)
    return rule is not None and re.match(rule.pattern, instance_type) is not None


_BY_SIZE: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "a100-80gb": ("a2-ultragpu-{}g", (1, 2, 4, 8)),
    "h100": ("a3-highgpu-{}g", (1, 2, 4, 8)),
    "h100-mega": ("a3-megagpu-{}g", (8,)),
    "h200": ("a3-ultragpu-{}g", (8,)),
    "b200": ("a4-highgpu-{}g", (8,)),
}
_BY_NAME: Final[Mapping[str, Mapping[int, tuple[str, ...]]]] = {
    "a100": {
        **{count: (f"a2-highgpu-{count}g",) for count in (1, 2, 4, 8)},
        16: ("a2-megagpu-16g",),
    },
    "l4": {
        1: tuple(f"g2-standard-{size}" for size in (4, 8, 12, 16, 32)),
        2: ("g2-standard-24",),
        4: ("g2-standard-48",),
        8: ("g2-standard-96",),
    },
    "rtxpro6000": {count: (f"g4-standard-{48 * count}",) for count in (1, 2, 4, 8)},
}
_CPUS: Final[Mapping[str, Mapping[int, int]]] = {
    "k80": {1: 4, 2: 8, 4: 16, 8: 32, 16: 64},
    "v100": {1: 8, 2: 16, 4: 32, 8: 64},
    "t4": {1: 4, 2: 8, 4: 48},
    "p100": {1: 8, 2: 16, 4: 32, 8: 64},
}
_CPUS_OF_OTHERS: Final[Mapping[int, int]] = {1: 8, 2: 16, 4: 32, 8: 64, 16: 128}
N1: Final = ("n1-standard", "n1-highmem", "n1-highcpu")


def gcp_hosts(accelerator: str, count: int) -> tuple[str, ...] | None:
    """Google Cloud sells GPUs and machines apart: the machines that go with one; None where any `n1` does."""
    name = accelerator.casefold()
    if name in _BY_SIZE:
        text, counts = _BY_SIZE[name]
        return (text.format(count),) if count in counts else ()
    return _BY_NAME[name].get(count, ()) if name in _BY_NAME else None


def gcp_cpus(accelerator: str, count: int) -> int | None:
    """Cores of an `n1` where nobody asked for any; None where SkyPilot has no number."""
    return _CPUS.get(accelerator.casefold(), _CPUS_OF_OTHERS).get(count)
