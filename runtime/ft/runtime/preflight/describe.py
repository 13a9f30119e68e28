"""What is known of the nodes before anything is measured between them, for people."""

from __future__ import annotations

from collections.abc import Sequence

from ft.runtime.preflight.node import gib
from ft.runtime.preflight.report import RankReport


def describe(reports: Sequence[RankReport]) -> str:
    """Devices, memory and disk, as comment lines above the table."""
    lines = ["# Using devices"]
    for report in reports:
        device = report.device
        if not device:
            continue
        free = (
            f", {gib(device['free_bytes'])} of {gib(device['total_bytes'])} free"
            if device["total_bytes"]
            else ""
        )
        lines.append(
            f"#  Rank {report.rank:2} Pid {report.pid:6} on {report.host:>10} "
            f"device {device['index']:2} {device['name']}{free}"
        )
    for report in reports:
        if report.disk:
            lines += _describe_host(report)
    return "\n".join(lines)


def _describe_host(report: RankReport) -> list[str]:
    memory, disk = report.memory, report.disk
    known = {name: "unknown" if value is None else gib(value) for name, value in memory.items()}
    return [
        f"# Memory of {report.host}: {known['available_bytes']} of {known['total_bytes']} "
        f"available, /dev/shm {known['shm_free_bytes']} of {known['shm_total_bytes']} free",
        f"# Disk of {report.host}: {disk['path']} has {gib(disk['free_bytes'])} free; "
        f"{disk['tested_bytes'] // 2**20} MiB written in {disk['write_s']:.3f} s, "
        f"read back in {disk['read_s']:.3f} s",
    ]
