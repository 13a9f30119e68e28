"""What preflight found: a report per rank, one verdict, one JSON file. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

from ft.recipes.runstore import ExitCode, Reason
from ft.runtime.preflight.outliers import Pair
from ft.runtime.preflight.table import (
    Half,
    Op,
    Row,
    algbw_gbps,
    average_busbw_gbps,
    busbw_gbps,
    merge,
    plateau_busbw_gbps,
    redop_of,
    root_of,
)


class Kind(StrEnum):
    """What sort of finding, the most telling first: one rank's trouble makes others fail too."""

    CONFIG = "config"
    """Change what was asked for; said of the whole host."""
    SILENT = "silent"
    """A rank gave no report, or rank 0 no verdict."""
    STUCK = "stuck"
    """A step did not even fail in time."""
    WRONG = "wrong"
    """Data came back with other values."""
    FAILED = "failed"
    """A device, a disk or a collective raised an error."""
    SLOW = "slow"
    """So far below what this hardware does elsewhere that something must be broken."""
    WARN = "warn"
    """Somebody should look; training may go on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that speaks against training here, or (WARN) that somebody should know."""

    rank: int | None
    """None if it is about all of them."""
    host: str
    kind: Kind
    message: str

    @property
    def exit_code(self) -> ExitCode:
        if self.kind is Kind.WARN:
            return ExitCode.DONE
        return ExitCode.CONFIG if self.kind is Kind.CONFIG else ExitCode.BAD_NODE

    def __str__(self) -> str:
        of_host = self.kind is Kind.CONFIG or self.rank is None
        who = self.host if of_host else f"rank {self.rank} on {self.host}"
        return f"{who}: {self.message}"


@dataclass(slots=True)
class RankReport:
    """What one rank found so far. It grows; a step that hangs leaves what came before it."""

    rank: int
    host: str
    pid: int
    world_size: int = 0
    """Ranks that this one was told of; 0 in the report of a rank that nobody asked."""
    device: dict[str, Any] = field(default_factory=dict)
    """index, name, count, total_bytes, free_bytes."""
    memory: dict[str, Any] = field(default_factory=dict)
    """total_bytes, available_bytes, shm_total_bytes, shm_free_bytes; None if unknown."""
    disk: dict[str, Any] = field(default_factory=dict)
    """path, free_bytes, tested_bytes, write_s, read_s; only on the first rank of a host."""
    health: dict[str, Any] = field(default_factory=dict)
    """What the driver and the machine say of themselves."""
    matmul: dict[str, Any] = field(default_factory=dict)
    """checksum, tflops, time_us, size, dtype, repeats of a matrix product on this rank alone."""
    launch_us: dict[str, list[float]] = field(default_factory=dict)
    """By op, a value per test: until the call was on its way, at best."""
    unsupported: dict[str, str] = field(default_factory=dict)
    """Op -> why it was not tested."""
    rows: list[Row] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    """Links to ranks above this one."""
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: Kind, message: str) -> None:
        self.findings.append(Finding(self.rank, self.host, kind, message))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> RankReport:
        data = json.loads(text)
        data["findings"] = [
            Finding(f["rank"], f["host"], Kind(f["kind"]), f["message"]) for f in data["findings"]
        ]
        data["rows"] = [row_from_json(row) for row in data["rows"]]
        data["pairs"] = [Pair(**pair) for pair in data["pairs"]]
        return cls(**data)


def row_from_json(row: Mapping[str, Any]) -> Row:
    """From what `asdict` made of it."""
    return Row(
        op=Op(row["op"]),
        count=row["count"],
        num_ranks=row["num_ranks"],
        out_of_place=Half(**row["out_of_place"]),
        in_place=Half(**row["in_place"]),
    )


@dataclass(frozen=True, slots=True)
class Setup:
    """What was asked for."""

    device: str
    """cpu or cuda."""
    backend: str
    world_size: int
    num_nodes: int
    host: str
    """Of rank 0."""
    torch: str
    """Version."""

    def __str__(self) -> str:
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        nodes = "" if self.num_nodes == 1 else f" on {self.num_nodes} nodes"
        return (
            f"# ft preflight: device {self.device}, backend {self.backend}, {ranks}{nodes}, "
            f"host {self.host}, torch {self.torch}"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a node, and everything that it rests on."""

    setup: Setup
    seconds: float
    ranks: Sequence[RankReport]
    findings: Sequence[Finding]
    """As `judge` puts them, warnings last; none is a pass."""
    expected: Sequence[Mapping[str, Any]] = ()
    """Ops beside what was expected of them."""
    second_opinion: Mapping[str, Any] | None = None
    """What all_reduce_perf of nccl-tests says; None if it was not asked."""

    @property
    def exit_code(self) -> ExitCode:
        return self.findings[0].exit_code if self.findings else ExitCode.DONE

    @property
    def verdict(self) -> str:
        """pass, warn or fail."""
        if self.exit_code:
            return "fail"
        return "warn" if self.findings else "pass"

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.exit_code]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.exit_code]

    @property
    def is_complete(self) -> bool:
        """Every rank is there."""
        return len(self.ranks) == self.setup.world_size

    @property
    def rows(self) -> list[Row]:
        """Merged over all ranks; empty if one of them is missing."""
        return merge([report.rows for report in self.ranks]) if self.is_complete else []

    @property
    def pairs(self) -> list[Pair]:
        return [pair for report in self.ranks for pair in report.pairs]

    @property
    def message(self) -> str:
        if self.failures:
            others = len(self.failures) - 1
            more = f" ({others} more finding{'s' if others > 1 else ''})" if others else ""
            return f"{self.failures[0]}{more}"
        if self.warnings:
            others = len(self.warnings) - 1
            more = f" ({others} more warning{'s' if others > 1 else ''})" if others else ""
            return f"passed, but {self.warnings[0]}{more}"
        return "passed"

    def to_json(self) -> str:
        reasons = {ExitCode.BAD_NODE: Reason.BAD_NODE, ExitCode.CONFIG: Reason.CONFIG}
        rows = self.rows
        by_op = {op: [row for row in rows if row.op is op] for op in Op}
        return json.dumps(
            {
                "verdict": self.verdict,
                "exit_code": int(self.exit_code),
                "reason": str(reasons.get(self.exit_code, Reason.DONE)),
                "message": self.message,
                "findings": [asdict(finding) for finding in self.failures],
                "warnings": [asdict(finding) for finding in self.warnings],
                **asdict(self.setup),
                "seconds": round(self.seconds, 3),
                "ranks": [_rank_to_json(report) for report in self.ranks],
                "rows": [_row_to_json(row) for row in rows],
                "unsupported": {
                    op: reason for report in self.ranks for op, reason in report.unsupported.items()
                },
                "average_busbw_gbps": {
                    str(op): average_busbw_gbps(rows) for op, rows in by_op.items() if rows
                },
                "plateau_busbw_gbps": {
                    str(op): plateau_busbw_gbps(rows) for op, rows in by_op.items() if rows
                },
                "links": [
                    {**asdict(pair), "bandwidth_gbps": pair.bandwidth_gbps} for pair in self.pairs
                ],
                "expected": list(self.expected),
                "second_opinion": self.second_opinion,
            },
            indent=1,
        )


def judge(
    reports: Sequence[RankReport | None], absences: Sequence[Finding | None] = ()
) -> list[Finding]:
    """Findings of all ranks, each once, by kind and then by rank.

    `reports` are by rank; of each that is None, `absences` says what became of it.
    """
    findings = [finding for report in reports if report for finding in report.findings]
    findings += [absence for absence in absences if absence]
    findings += _disagreements([report for report in reports if report])
    return in_order(findings)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Each once, by kind and then by rank."""
    kinds = list(Kind)
    ordered = sorted(
        findings,
        key=lambda finding: (
            kinds.index(finding.kind),
            -1 if finding.rank is None else finding.rank,
        ),
    )
    distinct: dict[str, Finding] = {}
    for finding in ordered:
        # All ranks of a host say the same about its configuration.
        distinct.setdefault(str(finding), finding)
    return list(distinct.values())


def _disagreements(reports: Sequence[RankReport]) -> list[Finding]:
    """Ranks that were told of another number of ranks than the first one."""
    first = reports[0] if reports else None
    return [
        Finding(
            report.rank,
            report.host,
            Kind.CONFIG,
            f"rank {report.rank} was started with WORLD_SIZE {report.world_size}, "
            f"rank {first.rank} on {first.host} with {first.world_size}. "
            "Start all ranks with the same one.",
        )
        for report in reports
        if first and report.world_size != first.world_size
    ]


def _rank_to_json(report: RankReport) -> dict[str, Any]:
    values = asdict(report)
    for name in ("world_size", "rows", "pairs", "unsupported", "findings"):
        del values[name]
    values["launch_us"] = {op: median(times_us) for op, times_us in report.launch_us.items()}
    return values


def _row_to_json(row: Row) -> dict[str, Any]:
    return {
        "op": str(row.op),
        "size_bytes": row.size_bytes,
        "count": row.count,
        "type": "float",
        "redop": redop_of(row.op),
        "root": root_of(row.op),
        "out_of_place": _half_to_json(row, row.out_of_place),
        "in_place": _half_to_json(row, row.in_place),
    }


def _half_to_json(row: Row, half: Half) -> dict[str, Any]:
    return {
        "time_us": half.time_us,
        "time_max_us": half.time_max_us,
        "algbw_gbps": algbw_gbps(row.size_bytes, half.time_us),
        "busbw_gbps": busbw_gbps(row.op, row.size_bytes, half.time_us, row.num_ranks),
        "num_wrong": half.num_wrong,
    }
