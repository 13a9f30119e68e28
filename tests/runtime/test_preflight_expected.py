"""What is expected of which hardware, who is an outlier, and what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ft.runtime.preflight.assess import Assessment, assess
from ft.runtime.preflight.expected import TABLE, Comparison, compare, fabric_of, find
from ft.runtime.preflight.outliers import LIMITS, Limit, Pair, slow_links, slow_ranks
from ft.runtime.preflight.report import Finding, Kind, RankReport, Setup
from ft.runtime.preflight.table import Half, Op, Row

H200, H100, A10G = "NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A10G"


def row(op: Op, size_bytes: int, busbw: float, num_ranks: int = 8) -> Row:
    """A test of `op` that reached `busbw` GB/s."""
    count = size_bytes // 4 // (1 if op is Op.ALL_REDUCE else num_ranks)
    steps = (2 if op is Op.ALL_REDUCE else 1) * (num_ranks - 1)
    half = Half(size_bytes * steps / num_ranks / busbw / 1e3, 0.0, 0)
    return Row(op, count, num_ranks, half, half)


# ------------------------------------------------------------------------------------------ expected


@pytest.mark.parametrize(
    ("gpu", "num_nodes", "nvlink", "rdma", "expected"),
    [
        (H200, 1, True, [], "nvswitch"),
        ("NVIDIA A100-SXM4-80GB", 1, False, [], "nvswitch"),
        ("NVIDIA H200 NVL", 1, False, [], "pcie"),
        ("NVIDIA H100 PCIe", 1, True, [], "nvlink"),
        (A10G, 1, False, ["mlx5_0"], "pcie"),
        (H200, 2, True, ["mlx5_0", "mlx5_1"], "ib"),
        (H200, 2, True, ["rdmap16s27"], "efa"),
        (H200, 2, True, ["efa_0"], "efa"),
        (H200, 2, True, [], "tcp"),
    ],
)
def test_fabric(gpu: str, num_nodes: int, nvlink: bool, rdma: list[str], expected: str) -> None:
    assert fabric_of(gpu, num_nodes, nvlink=nvlink, rdma=rdma) == expected


def test_hardware_that_is_known() -> None:
    known = {
        (H200, 8, 1, "nvswitch", Op.ALL_REDUCE): (442, "high"),
        (H100, 8, 1, "nvswitch", Op.ALL_REDUCE): (460, "high"),
        (H100, 8, 1, "nvswitch", Op.ALL_GATHER): (370, "high"),
        (H200, 4, 1, "nvswitch", Op.ALL_REDUCE): (370, "low"),
        ("NVIDIA A100-SXM4-40GB", 8, 1, "nvswitch", Op.ALL_REDUCE): (228, "high"),
        ("NVIDIA B200", 8, 4, "ib", Op.ALL_REDUCE): (377, "medium"),
        (H100, 8, 2, "ib", Op.ALL_REDUCE): (418, "medium"),
        ("NVIDIA L4", 2, 1, "pcie", Op.ALL_REDUCE): (5, "low"),
    }
    got = {key: find(*key) for key in known}  # type: ignore[arg-type]  # The key is the arguments.
    assert {key: (e.busbw_gbps, e.confidence) for key, e in got.items() if e} == known


@pytest.mark.parametrize(
    ("gpu", "per_node", "num_nodes", "fabric", "op"),
    [
        (A10G, 8, 1, "pcie", Op.ALL_REDUCE),
        # Another number of GPUs, of nodes, another network, another op, another card of the name.
        (H200, 3, 1, "nvswitch", Op.ALL_REDUCE),
        (H100, 8, 3, "ib", Op.ALL_REDUCE),
        (H100, 8, 2, "tcp", Op.ALL_REDUCE),
        (H100, 8, 1, "nvswitch", Op.GATHER),
        ("NVIDIA H200 NVL", 8, 1, "nvswitch", Op.ALL_REDUCE),
        ("NVIDIA L40S", 8, 1, "pcie", Op.ALL_REDUCE),
    ],
)
def test_nothing_is_guessed_of_other_hardware(
    gpu: str, per_node: int, num_nodes: int, fabric: str, op: Op
) -> None:
    assert find(gpu, per_node, num_nodes, fabric, op) is None  # type: ignore[arg-type]  # Plain text.


def test_every_line_of_the_table_is_whole_and_only_the_first_that_fits() -> None:
    seen = set()
    for line in TABLE:
        re.compile(line.gpu)
        assert line.busbw_gbps > 0
        assert line.source
        for per_node in line.per_node:
            for op in line.ops:
                key = (line.gpu, per_node, line.num_nodes, line.fabric, op)
                assert key not in seen
                seen.add(key)


def test_only_large_messages_are_compared() -> None:
    rows = [row(Op.ALL_REDUCE, 2**27, 5.0), row(Op.ALL_REDUCE, 2**20, 1.0)]
    assert compare(rows, H200, 8, 1, "nvswitch") == []
    [found] = compare([*rows, row(Op.ALL_REDUCE, 2**28, 442.0)], H200, 8, 1, "nvswitch")
    assert found.ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gpu", "busbw", "grade"),
    [
        # 442 expected: 375.7 is 0.85 of it, 221 is 0.5.
        (H200, 376.0, "pass"),
        (H200, 375.0, "warn"),
        (H200, 222.0, "warn"),
        (H200, 220.0, "fail"),
        # 28 expected, but nobody knows it well.
        ("NVIDIA GeForce RTX 5090", 1.0, "warn"),
    ],
)
def test_grade(gpu: str, busbw: float, grade: str) -> None:
    fabric = fabric_of(gpu, 1, nvlink=False, rdma=[])
    [found] = compare([row(Op.ALL_REDUCE, 2**28, busbw)], gpu, 8, 1, fabric)
    assert found.grade == grade


# ------------------------------------------------------------------------------------------ outliers


def test_a_slow_rank_is_compared_with_the_median_of_the_others() -> None:
    limit = Limit(ratio=3, excess_us=50)
    assert slow_ranks({0: 10.0, 1: 10.0, 2: 12.0, 3: 100.0}, limit) == {3: 10.0}
    # Two ranks: the other one is the median.
    assert slow_ranks({0: 10.0, 1: 100.0}, limit) == {1: 10.0}
    # Three times as long, yet not by much; by much, yet not three times as long.
    assert slow_ranks({0: 10.0, 1: 40.0}, limit) == {}
    assert slow_ranks({0: 1000.0, 1: 2000.0}, limit) == {}
    assert slow_ranks({0: 1000.0}, limit) == {}


def links(*, slow: dict[tuple[int, int], float], num_ranks: int = 4) -> list[Pair]:
    """All pairs, 100 us each; those in `slow` take so many us."""
    pairs = [(i, j) for i in range(num_ranks) for j in range(i + 1, num_ranks)]
    return [Pair(*pair, 10.0, slow.get(pair, 100.0), 2**20, 0) for pair in pairs]


def test_a_slow_link_is_found_among_others_alike() -> None:
    limits = LIMITS["cuda"]
    assert slow_links(links(slow={}), limits) is None
    assert slow_links(links(slow={(1, 2): 190.0}), limits) is None
    found = slow_links(links(slow={(1, 2): 400.0}), limits)
    assert found is not None
    assert ([str(pair) for pair in found.pairs], found.common_rank) == (["rank 1 - rank 2"], None)
    assert (found.bandwidth_ratio, found.latency_ratio) == (0.25, 1.0)
    # A single link has nothing to be compared with.
    assert slow_links([Pair(0, 1, 1e6, 1e9, 1, 0)], limits) is None


def test_a_rank_whose_links_are_all_slow_is_named() -> None:
    slow = {(0, 3): 900.0, (1, 3): 500.0, (2, 3): 700.0}
    found = slow_links(links(slow=slow, num_ranks=5), LIMITS["cuda"])
    assert found is not None
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 3), (2, 3), (1, 3)]
    assert found.common_rank == 3


# -------------------------------------------------------------------------------------------- assess


def assessed(
    rows: list[Row],
    *,
    gpu: str = H200,
    num_ranks: int = 8,
    device: str = "cuda",
    pairs: tuple[Pair, ...] = (),
    matmul_us: tuple[float, ...] = (),
    launch_us: tuple[float, ...] = (),
) -> Assessment:
    reports = [
        RankReport(rank, "h", 100 + rank, num_ranks, device={"name": gpu})
        for rank in range(num_ranks)
    ]
    reports[0].pairs.extend(pairs)
    for report, time_us in zip(reports, matmul_us, strict=False):
        report.matmul = {"time_us": time_us}
    for report, time_us in zip(reports, launch_us, strict=False):
        report.launch_us = {"all_reduce": [time_us, time_us, 9e9]}
    return assess(Setup(device, "nccl", num_ranks, 1, "h", "2.13.0"), reports, rows)


SLOW_TEXT = (
    "all_reduce reaches 100 GB/s of bus bandwidth, 0.23 of the 442 GB/s expected here "
    "(ml-engineering, network benchmarks, 8 x H200, 256 MiB; confidence high)"
)


def test_known_hardware_that_is_far_too_slow_fails() -> None:
    found = assessed([row(Op.ALL_REDUCE, 2**28, 100.0)])
    assert found.findings == [Finding(None, "h", Kind.SLOW, SLOW_TEXT)]
    assert found.findings[0].exit_code == 77
    assert found.lines == [f"# Expected             : {SLOW_TEXT}"]
    assert [(e["op"], e["grade"], e["where"]) for e in found.expected] == [
        ("all_reduce", "fail", "8 x NVIDIA H200 over nvswitch")
    ]


def test_known_hardware_that_is_somewhat_slow_warns_and_that_is_fast_passes() -> None:
    rows = [row(Op.ALL_REDUCE, 2**28, 300.0), row(Op.ALL_GATHER, 2**28, 365.0)]
    [finding] = assessed(rows).findings
    assert (finding.kind, finding.message[:44]) == (
        Kind.WARN,
        "all_reduce reaches 300 GB/s of bus bandwidth",
    )


def test_unknown_hardware_is_said_and_is_no_finding() -> None:
    found = assessed([row(Op.ALL_REDUCE, 2**28, 1.0)], gpu=A10G)
    assert found.findings == []
    assert found.lines == [
        "# Expected             : nothing is published for 8 x NVIDIA A10G over pcie; not compared"
    ]


@pytest.mark.parametrize(("device", "num_ranks"), [("cpu", 8), ("cuda", 1)])
def test_a_cpu_and_a_single_gpu_are_not_compared(device: str, num_ranks: int) -> None:
    found = assessed(
        [row(Op.ALL_REDUCE, 2**28, 1.0, num_ranks=8)], device=device, num_ranks=num_ranks
    )
    assert found == Assessment()


def test_stragglers_are_named_with_what_they_are_slow_at() -> None:
    found = assessed(
        [], num_ranks=4, device="cpu",
        matmul_us=(6e3, 5e3, 200e3, 7e3), launch_us=(100.0, 260e3, 100.0, 100.0),
    )  # fmt: skip
    assert [str(finding) for finding in found.findings] == [
        "rank 2 on h: it is a straggler: a matrix product takes it 200 ms, 33.3 times as long as "
        "the other ranks",
        "rank 1 on h: it is a straggler: all_reduce takes it 260 ms to start, 2.6e+03 times as "
        "long as the other ranks",
    ]
    assert {finding.kind for finding in found.findings} == {Kind.WARN}


def test_ranks_with_different_gpus_are_compared_with_their_like() -> None:
    reports = [
        RankReport(rank, "h", rank, 4, device={"name": name}, matmul={"time_us": time_us})
        for rank, (name, time_us) in enumerate(
            [(H200, 1e3), (H200, 1e3), ("Tesla T4", 50e3), ("Tesla T4", 50e3)]
        )
    ]
    found = assess(Setup("cuda", "nccl", 4, 1, "h", "2"), reports, [row(Op.ALL_REDUCE, 2**28, 3)])
    assert found.findings == []
    assert found.lines == [
        "# Expected             : nothing is published for 4 x NVIDIA H200 and Tesla T4 over "
        "nvswitch; not compared"
    ]


def test_links_are_told_and_a_slow_one_is_named() -> None:
    pairs = tuple(links(slow={(1, 2): 400.0}))
    found = assessed([row(Op.ALL_REDUCE, 2**28, 1.0)], gpu=A10G, pairs=pairs)
    assert found.lines[0] == (
        "# Links                : 6, median latency 10 us, median bandwidth 10.49 GB/s; worst "
        "rank 1 - rank 2: 10 us, 2.621 GB/s (0.25 of the median)"
    )
    assert [str(finding) for finding in found.findings] == [
        "rank 1 on h: the link rank 1 - rank 2 is slow: 0.25 of the median bandwidth, "
        "1 times the median latency"
    ]


def test_comparison_says_all_that_it_rests_on() -> None:
    expected = find(H200, 8, 1, "nvswitch", Op.ALL_REDUCE)
    assert expected is not None
    assert str(Comparison(Op.ALL_REDUCE, 100.0, expected)) == SLOW_TEXT


def test_the_documentation_has_every_line_of_the_table(repo: Path) -> None:
    text = (repo / "docs/preflight.md").read_text(encoding="utf-8")
    documented = re.findall(r"\| ([\d.]+) \| (high|medium|low) \| (.+) \|$", text, re.MULTILINE)
    assert documented == [(f"{line.busbw_gbps:g}", line.confidence, line.source) for line in TABLE]
