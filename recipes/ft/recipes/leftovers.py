"""Variables of the environment that somebody set while looking for a fault and forgot: they slow a run, or hang it.

Doctor and preflight read one table. Settings of a system (NCCL_SOCKET_IFNAME, NCCL_IB_HCA and such) are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SHOWN: Final = 40
"""Characters of a value that are repeated in a message."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A variable that does harm if its whole value matches `value`, whatever the case of its letters."""

    name: str
    does: str
    way_out: str
    value: str = r".+"
    on_cpu: bool = False
    """Whether it matters to a run on the CPU as well."""

    def is_set(self, env: Mapping[str, str]) -> bool:
        return re.fullmatch(self.value, env.get(self.name, "").strip(), re.IGNORECASE) is not None

    def describe(self, env: Mapping[str, str]) -> str:
        """What is set and what it does; without the way out."""
        value = env[self.name].strip()
        shown = value if len(value) <= SHOWN else f"{value[: SHOWN - 1]}…"
        return f"{self.name}={shown} {self.does}"


ON: Final = r"(?!0+$).+"
"""NCCL reads a number: anything but 0 switches it on."""


def _unset(name: str) -> str:
    return f"unset {name}"


def _renamed(name: str) -> Leftover:
    does = "is the old name, which torch still reads and warns about"
    return Leftover(name, does, f"unset {name}, or set TORCH_{name} if it is wanted")


LEFTOVERS: Final = (
    Leftover(
        "NCCL_P2P_DISABLE",
        "keeps GPUs from talking to each other directly, over NVLink or PCIe: all goes through memory of the host",
        _unset("NCCL_P2P_DISABLE"),
        ON,
    ),
    Leftover(
        "NCCL_SHM_DISABLE",
        "sends data between GPUs of one machine over the network where they cannot reach each other directly",
        "unset NCCL_SHM_DISABLE, and make /dev/shm larger if it was set for that (docker run --shm-size=8g)",
        ON,
    ),
    Leftover(
        "NCCL_IB_DISABLE",
        "takes InfiniBand and RoCE away: machines talk over plain TCP",
        _unset("NCCL_IB_DISABLE"),
        ON,
    ),
    Leftover(
        "NCCL_ALGO",
        "takes the choice of the algorithm away from NCCL, for every size and collective",
        _unset("NCCL_ALGO"),
    ),
    Leftover(
        "NCCL_PROTO",
        "takes the choice of the protocol away from NCCL; LL128 gives wrong data where the hardware cannot do it",
        _unset("NCCL_PROTO"),
    ),
    Leftover(
        "NCCL_LAUNCH_MODE",
        "changes how NCCL launches its kernels, which is for finding faults",
        _unset("NCCL_LAUNCH_MODE"),
    ),
    Leftover(
        "CUDA_LAUNCH_BLOCKING",
        "makes the CPU wait for every kernel: training is much slower",
        _unset("CUDA_LAUNCH_BLOCKING"),
        ON,
    ),
    Leftover(
        "NCCL_DEBUG",
        "writes a line for every call of NCCL: slow, and it fills the disk",
        "export NCCL_DEBUG=WARN",
        r"TRACE",
    ),
    Leftover(
        "TORCH_DISTRIBUTED_DEBUG",
        "makes all ranks compare notes before every collective",
        _unset("TORCH_DISTRIBUTED_DEBUG"),
        r"DETAIL",
        on_cpu=True,
    ),
    Leftover(
        "NCCL_TIMEOUT",
        "is read by nobody: NCCL has no such variable",
        "unset NCCL_TIMEOUT; `ddp_timeout` in the recipe is the time that a rank waits for the others",
    ),
    *map(
        _renamed,
        (
            "NCCL_ASYNC_ERROR_HANDLING",
            "NCCL_BLOCKING_WAIT",
            "NCCL_DESYNC_DEBUG",
            "NCCL_ENABLE_TIMING",
        ),
    ),
)


def leftovers_in(env: Mapping[str, str], *, device: str = "cuda") -> list[Leftover]:
    """Those that are set and do harm, in the order of the table. On `cpu` there is no NCCL to disturb."""
    return [
        leftover
        for leftover in LEFTOVERS
        if (leftover.on_cpu or device != "cpu") and leftover.is_set(env)
    ]
