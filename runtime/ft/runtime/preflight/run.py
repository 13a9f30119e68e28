"""One preflight: node, then network, then one verdict on which all ranks agree."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from ft.recipes.runstore import ExitCode, write_atomic
from ft.runtime.preflight import node, second_opinion
from ft.runtime.preflight.agreement import (
    GRACE_S,
    LAST_WORDS_S,
    Agreement,
    Placement,
    leave_now,
    on_sigterm,
    time_limit,
)
from ft.runtime.preflight.assess import Assessment, assess, wrong_products
from ft.runtime.preflight.collectives import BUFFERS, Sweep
from ft.runtime.preflight.describe import describe
from ft.runtime.preflight.hardware import Severity, check_health
from ft.runtime.preflight.network import Network, reason
from ft.runtime.preflight.options import Options, parse
from ft.runtime.preflight.report import (
    Finding,
    Kind,
    RankReport,
    Report,
    Setup,
    in_order,
    judge,
)
from ft.runtime.preflight.second_opinion import Opinion

END_S = 10.0
"""For taking the process group down, after the verdict."""
RESERVE_BYTES = 2**30
"""Left alone when the largest size is chosen."""
RDMA = Path("/sys/class/infiniband")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: the exit code, the same on every rank: 0 pass, 77 bad node, 78 configuration.

    torchrun itself ends with 1 whatever its ranks say: who starts it reads `exit_code` in the JSON.
    There is none if a rank met a bug (traceback, 1) or torchrun itself was told to end.
    """
    parser, options = parse(argv)
    try:
        placement = Placement.from_env(os.environ)
    except KeyError as error:
        parser.error(f"{error} is not set: start it with python -m torch.distributed.run")
    return Preflight(options, placement).run()


class Preflight:
    """The preflight of one rank: what it was asked, where it sits, what it found so far."""

    def __init__(self, options: Options, placement: Placement) -> None:
        self._started = time.monotonic()
        self._options = options
        self._placement = placement
        # One for the main thread, one for those that speak when it is stuck.
        self._agreement: Agreement | None = None
        self._spare: Agreement | None = None
        self._phase = "node"
        self._network: Network | None = None
        # Of the largest buffer; rank 0 takes it from what all of them say about their node.
        self._max_bytes = 0
        self._ending = threading.RLock()
        self._exit_code: int | None = None
        host = socket.gethostname()
        self._setup = Setup(
            options.device,
            options.backend,
            placement.world_size,
            placement.num_nodes,
            host,
            torch.__version__,
        )
        self._mine = RankReport(placement.rank, host, os.getpid(), placement.world_size)

    def run(self) -> int:
        """Returns: the exit code on which all ranks agreed."""
        on_sigterm(self._end_with_torchrun)
        crashed = True
        try:
            exit_code = self._run()
            crashed = False
        finally:
            if crashed and self._agreement:
                error = sys.exc_info()[1]
                with suppress(dist.DistError):
                    self._agreement.tell_crash(f"{type(error).__name__}: {error}")
        return exit_code

    def _run(self) -> int:
        self._print(str(self._setup))
        if self._placement.local_rank == 0:
            # An older verdict must not be taken for this one. `_write` tells if the place is bad.
            with suppress(OSError):
                self._options.json_out.unlink(missing_ok=True)
        try:
            self._agreement, self._spare = Agreement.join(
                self._placement, self._mine.host, timeout_s=self._options.timeout_s
            )
        except (dist.DistError, OSError) as error:
            where = self._placement.store
            return self._end_alone(
                Kind.FAILED, f"the store of torchrun at {where} cannot be reached: {reason(error)}"
            )
        self._agreement.tell("the check of the node")
        with self._step("the check of the node"):
            self._check_node()
        exit_code = self._settle(self._agreement)
        if exit_code == ExitCode.DONE:
            sweep = self._agreed_sweep(self._agreement)
            self._phase = "network"
            self._network = Network(
                self._setup,
                self._placement,
                self._mine,
                self._agreement,
                step=self._step,
                show=self._print,
            )
            self._network.check(sweep, timeout_s=self._options.timeout_s)
            exit_code = self._settle(self._agreement)
            self._destroy_group(exit_code)
        return exit_code

    def _check_node(self) -> None:
        placement, options = self._placement, self._options
        # First: this rank's own use of its GPU would look like somebody else's.
        health = check_health(
            options.device, placement.local_rank, placement.local_world_size, os.environ
        )
        self._mine.health = health.facts
        for finding in health.findings:
            is_failure = finding.severity is Severity.FAIL
            self._mine.add(finding.kind if is_failure else Kind.WARN, finding.message)
        try:
            self._mine.device = node.check_device(
                options.device, placement.local_rank, placement.local_world_size
            )
            self._mine.matmul = node.check_matmul(options.device, placement.local_rank)
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

    def _agreed_sweep(self, agreement: Agreement) -> Sweep:
        """Without the sizes for which the memory of some rank is too small; rank 0 knows all."""
        sweep = self._options.sweep
        limit_bytes = agreement.decide("max bytes", self._max_bytes)
        if limit_bytes < sweep.sizes_bytes[-1]:
            self._print(f"#\n# Reducing maxBytes to {limit_bytes} due to memory limitation")
        return sweep.up_to(limit_bytes)

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
            if self._spare:
                exit_code = self._settle(self._spare)
        finally:
            _leave(exit_code)

    def _settle(self, agreement: Agreement) -> int:
        """End the phase together. Returns: 0 to go on (or, at last, for a pass), 77 or 78."""
        try:
            agreement.post(self._phase, self._mine)
            if self._placement.rank == 0:
                reports = agreement.collect(self._phase)
                absences = agreement.absences(reports, ended=False)
                with self._ending:
                    exit_code = self._judge(agreement, reports, absences)
                    agreement.announce(self._phase, exit_code)
                return exit_code
        except dist.DistError as error:
            return self._end_alone(Kind.FAILED, f"the store of torchrun is gone: {reason(error)}")
        announced = agreement.await_announcement(self._phase)
        if announced is None:
            return self._end_alone(
                Kind.SILENT, f"rank 0 gave no verdict within {2 * agreement.wait_s:g} s"
            )
        if announced or self._phase == "network":
            self._write_copy(agreement)
            self._exit_code = announced
        return announced

    def _judge(
        self,
        agreement: Agreement,
        reports: Sequence[RankReport | None],
        absences: Sequence[Finding | None],
    ) -> int:
        """On one rank: print and write the JSON, all before anybody may end.

        torchrun ends all ranks as soon as one of them fails.
        """
        present = [report for report in reports if report]
        findings = in_order([*judge(reports, absences), *wrong_products(present)])
        failed = any(finding.exit_code for finding in findings)
        if self._phase == "node":
            self._print(describe(present))
            self._max_bytes = largest_buffer(present, self._placement.local_world_size)
            if not failed:
                return int(ExitCode.DONE)
        elif self._network:
            self._network.close_table(agreement)
        assessment, opinion = Assessment(), None
        if self._phase == "network" and not failed:
            assessment, opinion = self._assess(present)
        report = Report(
            self._setup,
            time.monotonic() - self._started,
            present,
            in_order([*findings, *assessment.findings]),
            assessment.expected,
            opinion.to_json() if opinion else None,
        )
        for line in assessment.lines:
            self._print(line)
        self._exit_code = self._publish(report)
        return self._exit_code

    def _assess(self, reports: list[RankReport]) -> tuple[Assessment, Opinion | None]:
        rows = Report(self._setup, 0, reports, []).rows
        rdma = sorted(path.name for path in RDMA.iterdir()) if RDMA.is_dir() else []
        nvlink = all((report.health.get("gpu") or {}).get("nvlinks_active") for report in reports)
        found = assess(self._setup, reports, rows, nvlink=nvlink, rdma=rdma)
        options = self._options
        if not options.second_opinion or options.device != "cuda" or self._setup.num_nodes > 1:
            return found, None
        # All ranks are idle: they wait for the verdict.
        opinion = second_opinion.ask(self._setup.world_size, timeout_s=options.timeout_s)
        if opinion:
            found.findings += second_opinion.findings(opinion, rows, self._setup.host)
            found.lines.append(second_opinion.describe(opinion))
        return found, opinion

    def _publish(self, report: Report) -> int:
        for finding in report.warnings:
            _complain(f"warning: {finding}")
        if report.failures:
            _complain(report.message)
        exit_code = self._write(report)
        # A report that cannot be written fails as well.
        verdict = f"FAIL ({exit_code.name})" if exit_code else report.verdict.upper()
        print_line(f"# Verdict              : {verdict} in {report.seconds:.1f} s")
        return int(exit_code)

    def _write(self, report: Report) -> ExitCode:
        """Returns: the exit code of `report`, or 78 if it passed but cannot be written."""
        if self._spare:
            with suppress(dist.DistError):
                self._spare.publish(report.to_json())
        is_written = self._write_text(report.to_json())
        return report.exit_code if is_written or report.exit_code else ExitCode.CONFIG

    def _write_text(self, report: str) -> bool:
        path = self._options.json_out
        try:
            write_atomic(path, report + "\n")
        except OSError as error:
            _complain(
                f"{self._setup.host}: --json-out {path} cannot be written: {error.strerror}. "
                "Name a file in a folder that exists and can be written to."
            )
            return False
        return True

    def _write_copy(self, agreement: Agreement) -> None:
        """On the first rank of each other node: whoever started it there reads the report there."""
        if self._placement.local_rank == 0 and self._placement.rank != 0:
            report = agreement.published()
            if report is not None:
                self._write_text(report)

    def _end_alone(self, kind: Kind, message: str) -> int:
        """Without the other ranks: the verdict of this one."""
        self._mine.add(kind, message)
        findings = judge([self._mine])
        report = Report(self._setup, time.monotonic() - self._started, [self._mine], findings)
        _complain(report.message)
        self._exit_code = int(
            self._write(report) if self._placement.rank == 0 else report.exit_code
        )
        return self._exit_code

    def _end_with_torchrun(self) -> None:
        """In a thread, at SIGTERM: torchrun saw a rank end, or is told to end itself."""
        exit_code = 128 + signal.SIGTERM
        try:
            # If the main thread is judging, its verdict is the better one.
            with self._ending:
                if self._exit_code is None and self._spare:
                    self._exit_code = self._last_words(self._spare)
                if self._exit_code is not None:
                    exit_code = self._exit_code
        finally:
            _leave(exit_code)

    def _last_words(self, agreement: Agreement) -> int:
        """Find out who has ended: all others still say a word. The first of them judges."""
        announced = agreement.await_announcement(self._phase, within_s=0)
        if announced:
            self._write_copy(agreement)
            return announced
        agreement.post("last words", self._mine)
        reports = agreement.collect("last words", within_s=LAST_WORDS_S)
        present = [report for report in reports if report]
        if len(present) == len(reports):
            return 128 + signal.SIGTERM
        if self._mine.rank != min(report.rank for report in present):
            exit_code = agreement.await_announcement("last words", within_s=LAST_WORDS_S)
            if exit_code is not None:
                self._write_copy(agreement)
            return int(ExitCode.BAD_NODE) if exit_code is None else exit_code
        crashes = agreement.crashes()
        if crashes:
            for rank, error in crashes.items():
                _complain(f"rank {rank} met a bug, not a broken machine: {error}")
            exit_code = int(ExitCode.UNCLASSIFIED)
        else:
            exit_code = self._judge(agreement, reports, agreement.absences(reports, ended=True))
        agreement.announce("last words", exit_code)
        return exit_code

    def _destroy_group(self, exit_code: int) -> None:
        if dist.is_initialized():
            with time_limit(END_S, lambda: leave_now(exit_code)):
                dist.destroy_process_group()

    def _print(self, text: str) -> None:
        """On rank 0 only."""
        if self._placement.rank == 0 and text:
            print_line(text)


def largest_buffer(reports: Sequence[RankReport], local_world_size: int) -> int:
    """Of the largest buffer that a test may have on every rank."""
    limits = []
    for report in reports:
        free = report.device.get("free_bytes")
        if free is None:
            free = (report.memory.get("available_bytes") or 0) // local_world_size
        limits.append(max(0, free - RESERVE_BYTES) // BUFFERS)
    return min(limits, default=0)


def _leave(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    leave_now(exit_code)


def print_line(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # The table on stdout is the product.


def _complain(message: str) -> None:
    """Say why it failed, in one sentence."""
    print(f"preflight: {message}", file=sys.stderr, flush=True)  # noqa: T201  # For people.
