"""Asks all_reduce_perf of nccl-tests, where it is installed, what it thinks of the same GPUs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ft.runtime.preflight.parse import ParsedTable, ParseError, parse
from ft.runtime.preflight.report import Finding, Kind
from ft.runtime.preflight.table import LARGE_BYTES, Op, Row

PROGRAM = "all_reduce_perf"
ARGUMENTS = ("-b", "8M", "-e", "1G", "-f", "2", "-c", "1", "-n", "20", "-w", "5")
TOLERANCE = 0.1
"""Two honest measurements of large messages differ by less."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the program said, or why it said nothing."""

    command: Sequence[str]
    table: ParsedTable | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "command": " ".join(self.command),
            "error": self.error,
            "table": asdict(self.table) if self.table else None,
        }


def ask(num_gpus: int, *, timeout_s: float) -> Opinion | None:
    """Run it on the GPUs of this machine, which must be idle. None if it is not installed."""
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    command = [program, *ARGUMENTS, "-g", str(num_gpus)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        tables = parse(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ParseError, UnicodeDecodeError) as error:
        return Opinion(command, None, str(error))
    if not tables or not tables[0].is_complete or not tables[0].rows:
        words = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        return Opinion(command, None, f"it ended with {done.returncode} and said: {words[-1]}")
    return Opinion(command, tables[0], None)


def disagreements(rows: Sequence[Row], table: ParsedTable) -> list[str]:
    """A sentence per large size at which the two differ by more than a tenth."""
    theirs = {
        row.size_bytes: fmean(
            half.busbw_gbps for half in (row.out_of_place, row.in_place) if half.busbw_gbps
        )
        for row in table.rows
        if row.out_of_place.busbw_gbps and row.in_place.busbw_gbps
    }
    sentences = []
    for row in rows:
        expected = theirs.get(row.size_bytes)
        if row.op is not Op.ALL_REDUCE or row.size_bytes < LARGE_BYTES or not expected:
            continue
        ours = fmean(row.busbw_gbps) if row.busbw_gbps else 0.0
        if abs(ours - expected) > TOLERANCE * expected:
            sentences.append(
                f"{PROGRAM} of nccl-tests measures {expected:.4g} GB/s of bus bandwidth at "
                f"{row.size_bytes} bytes, this preflight {ours:.4g}"
            )
    return sentences


def findings(opinion: Opinion, rows: Sequence[Row], host: str) -> list[Finding]:
    """What it changes: wrong elements fail, other figures and no answer warn."""
    if opinion.table is None:
        message = f"{PROGRAM} of nccl-tests gave no second opinion: {opinion.error}"
        return [Finding(None, host, Kind.WARN, message)]
    found = []
    if opinion.table.num_failed:
        message = f"{PROGRAM} of nccl-tests found wrong values in {opinion.table.num_failed} tests"
        found.append(Finding(None, host, Kind.WRONG, message))
    sentences = disagreements(rows, opinion.table)
    return [*found, *(Finding(None, host, Kind.WARN, sentence) for sentence in sentences)]


def describe(opinion: Opinion) -> str:
    """One line below the table."""
    said = opinion.error
    if opinion.table:
        large = opinion.table.rows[-1]
        said = (
            f"{large.out_of_place.busbw_gbps:g} GB/s of bus bandwidth at {large.size_bytes} bytes"
        )
    return f"# Second opinion       : {PROGRAM}: {said}"
