"""What preflight found: a report per rank, one verdict, one JSON file. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ft.recipes.runstore import ExitCode, Reason, write_atomic
from ft.runtime.preflight.table import (
    REDOPS,
    Half,
    Op,
    Row,
    algbw_gbps,
    average_busbw_gbps,
    busbw_gbps,
    merge,
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


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that speaks against training here."""

    rank: int
    host: str
    kind: Kind
    message: str

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.CONFIG if self.kind is Kind.CONFIG else ExitCode.BAD_NODE

    def __str__(self) -> str:
        who = self.host if self.kind is Kind.CONFIG else f"rank {self.rank} on {self.host}"
        return f"{who}: {self.message}"


@dataclass(slots=True)
class RankReport:
    """What one rank found so far. It grows; a step that hangs leaves what came before it."""

    rank: int
    host: str
    pid: int
    device: dict[str, Any] = field(default_factory=dict)
    """index, name, count, total_bytes, free_bytes."""
    memory: dict[str, Any] = field(default_factory=dict)
    """total_bytes, available_bytes, shm_total_bytes, shm_free_bytes; None if unknown."""
    disk: dict[str, Any] = field(default_factory=dict)
    """path, free_bytes, tested_bytes, write_s, read_s; only on the first rank of a host."""
    rows: list[Row] = field(default_factory=list)
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
        data["rows"] = [
            Row(
                op=Op(row["op"]),
                count=row["count"],
                num_ranks=row["num_ranks"],
                out_of_place=Half(**row["out_of_place"]),
                in_place=Half(**row["in_place"]),
            )
            for row in data["rows"]
        ]
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Setup:
    """What was asked for."""

    device: str
    """cpu or cuda."""
    backend: str
    world_size: int
    host: str
    """Of rank 0."""
    torch: str
    """Version."""

    def __str__(self) -> str:
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return (
            f"# ft preflight: device {self.device}, backend {self.backend}, {ranks}, "
            f"host {self.host}, torch {self.torch}"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a node, and everything that it rests on."""

    setup: Setup
    seconds: float
    ranks: Sequence[RankReport]
    findings: Sequence[Finding]
    """As `judge` puts them; none is a pass."""

    @property
    def exit_code(self) -> ExitCode:
        return self.findings[0].exit_code if self.findings else ExitCode.DONE

    @property
    def rows(self) -> list[Row]:
        """Merged over all ranks; empty if one of them is missing."""
        return (
            merge([report.rows for report in self.ranks])
            if len(self.ranks) == self.setup.world_size
            else []
        )

    @property
    def message(self) -> str:
        if not self.findings:
            return "passed"
        others = len(self.findings) - 1
        more = f" ({others} more finding{'s' if others > 1 else ''})" if others else ""
        return f"{self.findings[0]}{more}"

    def to_json(self) -> str:
        reasons = {ExitCode.BAD_NODE: Reason.BAD_NODE, ExitCode.CONFIG: Reason.CONFIG}
        rows = self.rows
        return json.dumps(
            {
                "verdict": "fail" if self.findings else "pass",
                "exit_code": int(self.exit_code),
                "reason": str(reasons.get(self.exit_code, Reason.DONE)),
                "message": self.message,
                "findings": [asdict(finding) for finding in self.findings],
                **asdict(self.setup),
                "seconds": round(self.seconds, 3),
                "ranks": [_rank_to_json(report) for report in self.ranks],
                "rows": [_row_to_json(row) for row in rows],
                "average_busbw_gbps": {
                    str(op): average_busbw_gbps([row for row in rows if row.op is op]) for op in Op
                },
            },
            indent=1,
        )

    def write(self, path: Path) -> None:
        """Raises: OSError if the folder of `path` cannot be written."""
        write_atomic(path, self.to_json() + "\n")


def judge(
    reports: Sequence[RankReport | None], hosts: Sequence[str | None], wait_s: float
) -> list[Finding]:
    """Findings of all ranks, each once, by kind and then by rank.

    `reports` and `hosts` are by rank; None is a rank that gave none within `wait_s` seconds.
    """
    findings = [finding for report in reports if report for finding in report.findings]
    for rank, report in enumerate(reports):
        if report is None:
            did_not = "give a report" if hosts[rank] else "start"
            message = f"it did not {did_not} within {wait_s:g} s"
            findings.append(Finding(rank, hosts[rank] or "unknown host", Kind.SILENT, message))
    kinds = list(Kind)
    findings.sort(key=lambda finding: (kinds.index(finding.kind), finding.rank))
    distinct: dict[str, Finding] = {}
    for finding in findings:
        # All ranks of a host say the same about its configuration.
        distinct.setdefault(str(finding), finding)
    return list(distinct.values())


def _rank_to_json(report: RankReport) -> dict[str, Any]:
    values = asdict(report)
    del values["rows"], values["findings"]
    return values


def _row_to_json(row: Row) -> dict[str, Any]:
    return {
        "op": str(row.op),
        "size_bytes": row.size_bytes,
        "count": row.count,
        "type": "float",
        "redop": REDOPS[row.op],
        "root": -1,
        "out_of_place": _half_to_json(row, row.out_of_place),
        "in_place": _half_to_json(row, row.in_place),
    }


def _half_to_json(row: Row, half: Half) -> dict[str, Any]:
    return {
        "time_us": half.time_us,
        "algbw_gbps": algbw_gbps(row.size_bytes, half.time_us),
        "busbw_gbps": busbw_gbps(row.op, row.size_bytes, half.time_us, row.num_ranks),
        "num_wrong": half.num_wrong,
    }
