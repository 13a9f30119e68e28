"""What others measured on the same hardware, and how far below it is too far. Imports no torch.

There is no table of the vendor; each figure here is one that somebody published, for large messages
(256 MiB and more). What nobody published is not guessed: then nothing is compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ft.runtime.preflight.table import LARGE_BYTES, Op, Row, plateau_busbw_gbps

FAIL_BELOW = 0.5
"""Of the expected plateau: something is broken, such as a link or RDMA."""
WARN_BELOW = 0.85

Fabric = Literal["nvswitch", "nvlink", "pcie", "ib", "efa", "tcp"]
"""What the slowest part of the ring runs over; beyond one node, the network."""

Confidence = Literal["high", "medium", "low"]
"""high: a pass threshold or a careful series; medium: one report; low: a hint, which never fails."""

RING_OPS = (Op.ALL_GATHER, Op.REDUCE_SCATTER, Op.ALLTOALL)
"""NVLink SHARP does not help them: they run at the speed of a ring."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """Plateau of the bus bandwidth of some ops on one kind of machine."""

    gpu: str
    """Regular expression that matches the whole name, as the driver has it."""
    per_node: tuple[int, ...]
    """GPUs on each node."""
    num_nodes: int
    fabric: Fabric
    ops: tuple[Op, ...]
    busbw_gbps: float
    confidence: Confidence
    source: str


H100 = r"NVIDIA H100 80GB HBM3"
H200 = r"NVIDIA H200"
B200 = r"NVIDIA B200"
A100 = r"NVIDIA A100-SXM4-\d+GB"
HOPPER = f"{H100}|{H200}"

TABLE: tuple[Expectation, ...] = (
    # Pass threshold at 16 GiB.
    Expectation(
        H100, (8,), 1, "nvswitch", (Op.ALL_REDUCE,), 460, "high",
        "Azure node health checks, ND H100 v5",
    ),
    # 442 at 256 MiB, 466 at 1 GiB, 482 at 16 GiB, torch and nccl-tests alike; Azure passes at 431.
    Expectation(
        H200, (8,), 1, "nvswitch", (Op.ALL_REDUCE,), 442, "high",
        "ml-engineering, network benchmarks, 8 x H200, 256 MiB",
    ),
    # 450 GB/s line rate less 20 % of protocol.
    Expectation(
        HOPPER, (8,), 1, "nvswitch", RING_OPS, 370, "high",
        "maintainer of NCCL on nccl-tests, ring over NVLink 4",
    ),
    # A ring does not depend on the number of GPUs; that NVLink SHARP adds nothing here is derived.
    Expectation(
        HOPPER, (2, 4), 1, "nvswitch", (Op.ALL_REDUCE, *RING_OPS), 370, "low",
        "derived from 8 GPUs: a ring over NVLink 4",
    ),
    # Pass threshold at 4 GiB; 228 to 250 elsewhere.
    Expectation(
        A100, (8,), 1, "nvswitch", (Op.ALL_REDUCE,), 228, "high",
        "Azure node health checks, ND A100 v4",
    ),
    # Without NVLink SHARP all ops are rings over the same links; not measured.
    Expectation(
        A100, (8,), 1, "nvswitch", RING_OPS, 228, "low",
        "derived from all_reduce: a ring over NVLink 3",
    ),
    Expectation(
        B200, (8,), 1, "nvswitch", (Op.ALL_REDUCE,), 839, "medium",
        "ml-engineering, network benchmarks, 8 x B200",
    ),
    Expectation(
        B200, (8,), 4, "ib", (Op.ALL_REDUCE,), 377, "medium",
        "ml-engineering, network benchmarks, 4 nodes of 8 x B200",
    ),
    # 418 to 445 at 512 MiB to 1 GiB.
    Expectation(
        H100, (8,), 2, "ib", (Op.ALL_REDUCE,), 418, "medium",
        "SkyPilot documentation, 2 nodes of 8 x H100, 3.2 Tb/s InfiniBand",
    ),
    # 340 Gb/s, of the first generation of EFA.
    Expectation(
        A100, (8,), 2, "efa", (Op.ALL_REDUCE,), 42.5, "low",
        "ml-engineering, network, p4d over EFA",
    ),
    # What is left without RDMA.
    Expectation(
        A100, (8,), 2, "tcp", (Op.ALL_REDUCE,), 3.85, "low",
        "SkyPilot example nccl_test.yaml, 2 nodes of 8 x A100 over TCP",
    ),
    Expectation(
        r"NVIDIA H100 (PCIe|NVL)", (2,), 1, "nvlink", (Op.ALL_REDUCE,), 116, "medium",
        "report on nccl-tests, a pair of H100 PCIe with an NVLink bridge",
    ),
    # 35 to 45, no bridge.
    Expectation(
        r"NVIDIA H100 PCIe", (8,), 1, "pcie", (Op.ALL_REDUCE,), 35, "low",
        "a blog, 8 x H100 PCIe",
    ),
    # "Usually determined by CPU and memory", says the maintainer.
    Expectation(
        r"NVIDIA GeForce RTX 5090", (8,), 1, "pcie", (Op.ALL_REDUCE,), 28, "low",
        "report on NCCL, 8 x RTX 5090",
    ),
    Expectation(
        r"NVIDIA GeForce RTX 5090", (4,), 1, "pcie", (Op.ALL_REDUCE,), 35, "low",
        "report on NCCL, 4 x RTX 5090",
    ),
    # An average over small sizes too, so the plateau is higher.
    Expectation(
        r"NVIDIA L20", (8,), 1, "pcie", (Op.ALL_REDUCE,), 6.1, "low",
        "report on NCCL, 8 x L20 through shared memory",
    ),
    # 3 to 8 and 5 to 12: the speed of PCIe Gen3 and of Gen4 x8, not measured.
    Expectation(
        r"Tesla T4", (2, 4, 8), 1, "pcie", (Op.ALL_REDUCE,), 3, "low", "estimate from PCIe Gen3",
    ),
    Expectation(
        r"NVIDIA L4", (2, 4, 8), 1, "pcie", (Op.ALL_REDUCE,), 5, "low", "estimate from PCIe Gen4 x8",
    ),
)  # fmt: skip


def fabric_of(gpu: str, num_nodes: int, *, nvlink: bool, rdma: Sequence[str]) -> Fabric:
    """What the GPUs talk over. `nvlink`: their links are up; `rdma`: names of the RDMA devices."""
    if num_nodes > 1:
        if not rdma:
            return "tcp"
        return "efa" if any(name.startswith(("efa", "rdmap")) for name in rdma) else "ib"
    if re.fullmatch(f"{HOPPER}|{B200}|{A100}", gpu):
        return "nvswitch"
    return "nvlink" if nvlink else "pcie"


def find(gpu: str, per_node: int, num_nodes: int, fabric: Fabric, op: Op) -> Expectation | None:
    """What is known of `op` on this machine; None if nothing is."""
    for row in TABLE:
        where = (row.num_nodes, row.fabric) == (num_nodes, fabric) and per_node in row.per_node
        if where and op in row.ops and re.fullmatch(row.gpu, gpu):
            return row
    return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One op beside what was expected of it."""

    op: Op
    plateau_gbps: float
    expected: Expectation

    @property
    def ratio(self) -> float:
        return self.plateau_gbps / self.expected.busbw_gbps

    @property
    def grade(self) -> Literal["pass", "warn", "fail"]:
        if self.ratio < FAIL_BELOW and self.expected.confidence != "low":
            return "fail"
        return "warn" if self.ratio < WARN_BELOW else "pass"

    def __str__(self) -> str:
        return (
            f"{self.op} reaches {self.plateau_gbps:.4g} GB/s of bus bandwidth, "
            f"{self.ratio:.2f} of the {self.expected.busbw_gbps:g} GB/s expected here "
            f"({self.expected.source}; confidence {self.expected.confidence})"
        )


def compare(
    rows: Sequence[Row], gpu: str, per_node: int, num_nodes: int, fabric: Fabric
) -> list[Comparison]:
    """Ops that were measured with large messages and of which something is known.

    `rows` of several ranks; on one rank there is no bus.
    """
    comparisons = []
    for op in dict.fromkeys(row.op for row in rows):
        of_op = [row for row in rows if row.op is op and row.size_bytes >= LARGE_BYTES]
        plateau = plateau_busbw_gbps(of_op)
        expected = find(gpu, per_node, num_nodes, fabric, op)
        if plateau is not None and expected is not None:
            comparisons.append(Comparison(op, plateau, expected))
    return comparisons
