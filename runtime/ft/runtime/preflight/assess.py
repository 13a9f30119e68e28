"""What the figures of all ranks mean: too slow for the hardware, a slow rank, a slow link.

Pure: from the reports of the ranks to findings and to what is printed. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ft.runtime.preflight.expected import Comparison, compare, fabric_of
from ft.runtime.preflight.hardware import RankMatmul, Severity
from ft.runtime.preflight.hardware import compare as compare_products
from ft.runtime.preflight.outliers import LIMITS, Limits, Pair, slow_links, slow_ranks
from ft.runtime.preflight.report import Finding, Kind, RankReport, Setup
from ft.runtime.preflight.table import LARGE_BYTES, Row


@dataclass(slots=True)
class Assessment:
    """Of one node, or of all of them together."""

    findings: list[Finding] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """For below the table."""
    expected: list[dict[str, Any]] = field(default_factory=list)
    """For the JSON."""


def assess(
    setup: Setup,
    reports: Sequence[RankReport],
    rows: Sequence[Row],
    *,
    nvlink: bool = False,
    rdma: Sequence[str] = (),
) -> Assessment:
    """`reports` by rank, none missing; `rows` merged; the rest as `fabric_of` wants it."""
    found = Assessment()
    hosts = {report.rank: report.host for report in reports}
    limits = LIMITS[setup.device]
    found.findings += _slow_ranks(reports, hosts, limits)
    pairs = [pair for report in reports for pair in report.pairs]
    if pairs:
        _assess_links(found, pairs, hosts, limits)
    if setup.device == "cuda" and setup.world_size > 1:
        _compare(found, setup, reports, rows, nvlink=nvlink, rdma=rdma)
    return found


def wrong_products(reports: Sequence[RankReport]) -> list[Finding]:
    """Ranks whose device multiplies the same two matrices to something else."""
    products = [
        RankMatmul(
            report.rank,
            report.host,
            report.device["name"],
            report.matmul["checksum"],
            report.matmul["tflops"],
        )
        for report in reports
        if report.matmul
    ]
    # Who is slow is told with the other times.
    return [
        Finding(found.rank, found.host, found.kind, found.message)
        for found in compare_products(products)
        if found.severity is Severity.FAIL
    ]


def _slow_ranks(
    reports: Sequence[RankReport], hosts: Mapping[int, str], limits: Limits
) -> Iterator[Finding]:
    """One finding per slow rank and cause."""
    by_device: dict[str, dict[int, float]] = {}
    for report in reports:
        if report.matmul:
            of_device = by_device.setdefault(report.device["name"], {})
            of_device[report.rank] = report.matmul["time_us"]
    for times_us in by_device.values():
        for rank, ratio in slow_ranks(times_us, limits.matmul).items():
            yield Finding(
                rank,
                hosts[rank],
                Kind.WARN,
                f"it is a straggler: a matrix product takes it {times_us[rank] / 1e3:.3g} ms, "
                f"{ratio:.3g} times as long as the other ranks",
            )
    worst: dict[int, tuple[float, str, float]] = {}
    for op in dict.fromkeys(op for report in reports for op in report.launch_us):
        launch_us = {
            report.rank: median(report.launch_us[op])
            for report in reports
            if report.launch_us.get(op)
        }
        for rank, ratio in slow_ranks(launch_us, limits.launch).items():
            worst[rank] = max(worst.get(rank, (0.0, "", 0.0)), (ratio, op, launch_us[rank]))
    for rank, (ratio, op, time_us) in worst.items():
        yield Finding(
            rank,
            hosts[rank],
            Kind.WARN,
            f"it is a straggler: {op} takes it {time_us / 1e3:.3g} ms to start, "
            f"{ratio:.3g} times as long as the other ranks",
        )


def _assess_links(
    found: Assessment, pairs: Sequence[Pair], hosts: Mapping[int, str], limits: Limits
) -> None:
    for pair in pairs:
        if pair.num_wrong:
            found.findings.append(
                Finding(
                    pair.first,
                    hosts[pair.first],
                    Kind.WRONG,
                    f"{pair.num_wrong} wrong elements between it and rank {pair.second} on "
                    f"{hosts[pair.second]}, sent there and back",
                )
            )
    worst = max(pairs, key=lambda pair: pair.time_us)
    latency_us = median(pair.latency_us for pair in pairs)
    bandwidth = median(pair.bandwidth_gbps for pair in pairs)
    line = (
        f"# Links                : {len(pairs)}, median latency {latency_us:.4g} us, "
        f"median bandwidth {bandwidth:.4g} GB/s"
    )
    if len(pairs) > 1:
        line += (
            f"; worst {worst}: {worst.latency_us:.4g} us, {worst.bandwidth_gbps:.4g} GB/s "
            f"({worst.bandwidth_gbps / bandwidth:.2f} of the median)"
        )
    found.lines.append(line)
    slow = slow_links(pairs, limits)
    if slow is None:
        return
    worst, common = slow.pairs[0], slow.common_rank
    which = (
        f"its links to {len(slow.pairs)} ranks are slow, the worst is {worst}"
        if common is not None and len(slow.pairs) > 1
        else f"the link {worst} is slow"
    )
    rank = worst.first if common is None else common
    found.findings.append(
        Finding(
            rank,
            hosts[rank],
            Kind.WARN,
            f"{which}: {slow.bandwidth_ratio:.2g} of the median bandwidth, "
            f"{slow.latency_ratio:.3g} times the median latency",
        )
    )


def _compare(
    found: Assessment,
    setup: Setup,
    reports: Sequence[RankReport],
    rows: Sequence[Row],
    *,
    nvlink: bool,
    rdma: Sequence[str],
) -> None:
    """Against what is published for this hardware."""
    names = sorted({str(report.device.get("name")) for report in reports})
    per_node = setup.world_size // setup.num_nodes
    fabric = fabric_of(names[0], setup.num_nodes, nvlink=nvlink, rdma=rdma)
    where = f"{per_node} x {' and '.join(names)} over {fabric}"
    if setup.num_nodes > 1:
        where += f", {setup.num_nodes} nodes"
    if len(names) > 1:
        comparisons: list[Comparison] = []
    else:
        comparisons = compare(rows, names[0], per_node, setup.num_nodes, fabric)
    if not comparisons:
        large = any(row.size_bytes >= LARGE_BYTES for row in rows)
        why = "nothing is published" if large else "no size of 256 MiB or more was measured"
        found.lines.append(f"# Expected             : {why} for {where}; not compared")
    for comparison in comparisons:
        found.lines.append(f"# Expected             : {comparison}")
        found.expected.append(
            {
                "op": str(comparison.op),
                "busbw_gbps": comparison.expected.busbw_gbps,
                "measured_gbps": comparison.plateau_gbps,
                "ratio": comparison.ratio,
                "grade": comparison.grade,
                "confidence": comparison.expected.confidence,
                "source": comparison.expected.source,
                "where": where,
            }
        )
        if comparison.grade != "pass":
            kind = Kind.SLOW if comparison.grade == "fail" else Kind.WARN
            found.findings.append(Finding(None, setup.host, kind, str(comparison)))
