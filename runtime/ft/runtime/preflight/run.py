"""One preflight: node, then collectives, then one verdict on which all ranks agree."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ft.recipes.runstore import ExitCode
from ft.runtime.preflight import node
from ft.runtime.preflight.agreement import GRACE_S, Agreement, Placement, leave_now, time_limit
from ft.runtime.preflight.collectives import SWEEPS, cases_of, measure
from ft.runtime.preflight.report import Kind, RankReport, Report, Setup, judge
from ft.runtime.preflight.table import Row, render

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
TIMEOUT_S = 60.0
END_S = 10.0
"""For taking the process group down, after the verdict."""
NCCL_EXTRA_S = 600.0
"""The watchdog of NCCL kills the process without a report; ours speaks long before it."""


@dataclass(frozen=True, slots=True)
class Options:
    device: str
    disk: Path
    min_free_bytes: int
    json_out: Path
    timeout_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: the exit code, the same on every rank: 0 pass, 77 bad node, 78 configuration.

    torchrun itself ends with 1 whatever its ranks say: who starts it reads `exit_code` in the JSON.
    There is none if a rank was killed or met a bug (traceback, 1).
    """
    parser, options = _parse(argv)
    try:
        placement = Placement.from_env(os.environ)
    except KeyError as error:
        parser.error(f"{error} is not set: start it with python -m torch.distributed.run")
    return Preflight(options, placement).run()


def _parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Options]:
    parser = argparse.ArgumentParser(prog="ft.runtime.preflight", description=__doc__)
    parser.add_argument("--device", choices=sorted(BACKENDS), required=True)
    parser.add_argument(
        "--disk", type=Path, required=True, help="folder of the run, checkpoints included"
    )
    parser.add_argument(
        "--min-free-bytes", type=int, required=True, help="that the run needs there"
    )
    parser.add_argument("--json-out", type=Path, required=True, help="the report; rank 0 writes it")
    parser.add_argument(
        "--timeout-s", type=float, default=TIMEOUT_S, help="for one step (default: %(default)g)"
    )
    options = Options(**vars(parser.parse_args(argv)))
    if options.timeout_s <= 0:
        parser.error(f"--timeout-s {options.timeout_s:g}: expected more than 0 seconds")
    return parser, options


class Preflight:
    """The preflight of one rank: what it was asked, where it sits, what it found so far."""

    def __init__(self, options: Options, placement: Placement) -> None:
        self._started = time.monotonic()
        self._options = options
        self._placement = placement
        self._agreement: Agreement | None = None
        self._phase = "node"
        host = socket.gethostname()
        self._setup = Setup(
            options.device, BACKENDS[options.device], placement.world_size, host, torch.__version__
        )
        self._mine = RankReport(placement.rank, host, os.getpid())

    def run(self) -> int:
        """Returns: the exit code on which all ranks agreed."""
        self._print(str(self._setup))
        if self._placement.rank == 0:
            # An older verdict must not be taken for this one. `_write` tells if the place is bad.
            with suppress(OSError):
                self._options.json_out.unlink(missing_ok=True)
        try:
            self._agreement = Agreement.join(
                self._placement, self._mine.host, timeout_s=self._options.timeout_s
            )
        except dist.DistError as error:
            return self._end_alone(
                Kind.FAILED, f"the store of torchrun cannot be reached: {_reason(error)}"
            )
        with self._step("the check of the node"):
            self._check_node()
        exit_code = self._settle(final=False)
        if exit_code == ExitCode.DONE:
            self._phase = "collectives"
            self._check_collectives()
            exit_code = self._settle(final=True)
            self._destroy_group(exit_code)
        return exit_code

    def _check_node(self) -> None:
        placement, options = self._placement, self._options
        try:
            self._mine.device = node.check_device(
                options.device, placement.local_rank, placement.local_world_size
            )
        except node.UnfitError as error:
            self._mine.add(error.kind, error.message)
        self._mine.memory = node.memory()
        if placement.local_rank == 0:
            try:
                self._mine.disk = node.check_disk(
                    options.disk, min_free_bytes=options.min_free_bytes
                )
            except node.UnfitError as error:
                self._mine.add(error.kind, error.message)

    def _check_collectives(self) -> None:
        """Start the group and run the sweep; the first error ends it."""
        sweep = SWEEPS[self._setup.backend]
        doing = f"the start of the {self._setup.backend} process group"
        wrong: list[str] = []
        try:
            with self._step(doing):
                device = self._start_group()
            for pair in cases_of(sweep, self._placement.world_size):
                halves = []
                for case in pair:
                    doing = case.name
                    with self._step(doing):
                        half = measure(case, sweep, device)
                    halves.append(half)
                    if half.num_wrong:
                        wrong.append(
                            f"{_plural(half.num_wrong, 'wrong element')} after {case.name}"
                        )
                self._mine.rows.append(
                    Row(pair[0].op, pair[0].count, self._placement.world_size, *halves)
                )
        except RuntimeError as error:
            self._mine.add(Kind.FAILED, f"{doing} failed: {_reason(error)}")
        if wrong:
            more = (
                f", and some after {_plural(len(wrong) - 1, 'other test')}"
                if len(wrong) > 1
                else ""
            )
            self._mine.add(Kind.WRONG, f"{wrong[0]}{more}")

    def _start_group(self) -> torch.device:
        assert self._agreement is not None
        on_gpu = self._options.device == "cuda"
        device = torch.device("cuda", self._placement.local_rank) if on_gpu else torch.device("cpu")
        dist.init_process_group(
            self._setup.backend,
            store=self._agreement.store_for_group(),
            rank=self._placement.rank,
            world_size=self._placement.world_size,
            timeout=timedelta(seconds=self._options.timeout_s + (NCCL_EXTRA_S if on_gpu else 0)),
            device_id=device if on_gpu else None,
        )
        return device

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        limit_s = self._options.timeout_s + GRACE_S
        with time_limit(limit_s, lambda: self._expire(f"{name} did not end within {limit_s:g} s")):
            yield

    def _expire(self, message: str) -> None:
        """In the thread of the time limit: the main thread is stuck and never comes back."""
        exit_code = int(ExitCode.UNCLASSIFIED)
        try:
            self._mine.add(Kind.STUCK, message)
            exit_code = self._settle(final=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            leave_now(exit_code)

    def _settle(self, *, final: bool) -> int:
        """End the phase together. Returns: 0 to go on (or, if `final`, for a pass), 77 or 78."""
        assert self._agreement is not None
        agreement = self._agreement
        try:
            agreement.post(self._phase, self._mine)
            if self._placement.rank == 0:
                exit_code = self._judge(agreement, final=final)
                agreement.announce(self._phase, exit_code)
                return exit_code
        except dist.DistError as error:
            return self._end_alone(Kind.FAILED, f"the store of torchrun is gone: {_reason(error)}")
        announced = agreement.await_announcement(self._phase)
        if announced is None:
            return self._end_alone(
                Kind.SILENT, f"rank 0 gave no verdict within {2 * agreement.wait_s:g} s"
            )
        return announced

    def _judge(self, agreement: Agreement, *, final: bool) -> int:
        """On rank 0: gather, print, write the JSON, all before anybody may end.

        torchrun ends all ranks as soon as one of them fails.
        """
        reports = agreement.collect(self._phase)
        present = [report for report in reports if report]
        findings = judge(reports, agreement.hosts(), agreement.wait_s)
        report = Report(self._setup, time.monotonic() - self._started, present, findings)
        if not final:
            self._print(_describe(present))
        return self._publish(report) if final or findings else int(ExitCode.DONE)

    def _publish(self, report: Report) -> int:
        rows = report.rows
        if rows:
            self._print(render(rows))
        if report.findings:
            _complain(report.message)
        exit_code = self._write(report)
        verdict = f"FAIL ({exit_code.name})" if exit_code else "PASS"
        self._print(f"# Verdict              : {verdict} in {report.seconds:.1f} s")
        return int(exit_code)

    def _write(self, report: Report) -> ExitCode:
        """Returns: the exit code of `report`, or 78 if it passed but cannot be written."""
        path = self._options.json_out
        try:
            report.write(path)
        except OSError as error:
            _complain(
                f"{self._setup.host}: --json-out {path} cannot be written: {error.strerror}. "
                "Name a file in a folder that exists and can be written to."
            )
            return report.exit_code or ExitCode.CONFIG
        return report.exit_code

    def _end_alone(self, kind: Kind, message: str) -> int:
        """Without the other ranks: the verdict of this one."""
        self._mine.add(kind, message)
        findings = judge([self._mine], [self._mine.host], 0)
        report = Report(self._setup, time.monotonic() - self._started, [self._mine], findings)
        _complain(report.message)
        return int(self._write(report) if self._placement.rank == 0 else report.exit_code)

    def _destroy_group(self, exit_code: int) -> None:
        if dist.is_initialized():
            with time_limit(END_S, lambda: leave_now(exit_code)):
                dist.destroy_process_group()

    def _print(self, text: str) -> None:
        """On rank 0 only."""
        if self._placement.rank == 0:
            print(text, flush=True)  # noqa: T201  # The table on stdout is the product.


def _describe(reports: Sequence[RankReport]) -> str:
    """Devices, memory and disk, as comment lines above the table."""
    lines = ["# Using devices"]
    for report in reports:
        device = report.device
        if not device:
            continue
        free = (
            f", {node.gib(device['free_bytes'])} of {node.gib(device['total_bytes'])} free"
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
    known = {
        name: "unknown" if value is None else node.gib(value) for name, value in memory.items()
    }
    return [
        f"# Memory of {report.host}: {known['available_bytes']} of {known['total_bytes']} "
        f"available, /dev/shm {known['shm_free_bytes']} of {known['shm_total_bytes']} free",
        f"# Disk of {report.host}: {disk['path']} has {node.gib(disk['free_bytes'])} free; "
        f"{disk['tested_bytes'] // 2**20} MiB written in {disk['write_s']:.3f} s, "
        f"read back in {disk['read_s']:.3f} s",
    ]


def _complain(message: str) -> None:
    """Say why it failed, in one sentence."""
    print(f"preflight: {message}", file=sys.stderr, flush=True)  # noqa: T201  # For people.


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _reason(error: BaseException) -> str:
    """The first line without the source location that gloo puts before it."""
    return re.sub(r"^\[[^\]]*\.cc:\d+\]\s*", "", node.first_line(error))
