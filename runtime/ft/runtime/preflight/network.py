"""The part of preflight that needs all ranks: the process group, every op, every link."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import torch
import torch.distributed as dist

from ft.runtime.preflight import node, pairwise
from ft.runtime.preflight.agreement import Agreement, Placement
from ft.runtime.preflight.collectives import Case, Sweep, cases_of, measure, why_unsupported
from ft.runtime.preflight.report import Kind, RankReport, Setup
from ft.runtime.preflight.table import Half, Op, Row, Stream, merge

NCCL_EXTRA_S = 600.0
"""The watchdog of NCCL kills the process without a report; ours speaks long before it."""

Step = Callable[[str], AbstractContextManager[None]]
"""A named piece of work with a time limit."""


class Network:
    """The check of one rank; what it finds goes into its report, line by line to rank 0 as well."""

    def __init__(
        self,
        setup: Setup,
        placement: Placement,
        mine: RankReport,
        agreement: Agreement,
        *,
        step: Step,
        show: Callable[[str], None],
    ) -> None:
        """`step` limits a piece of work, `show` prints a part of the table, on rank 0 only."""
        self._setup, self._placement = setup, placement
        self._mine, self._agreement = mine, agreement
        self._step, self._show = step, show
        self._doing = ""
        self._stream = Stream()
        self._num_rows = 0
        self._num_shown = 0
        self._wrong: list[str] = []

    def check(self, sweep: Sweep, *, timeout_s: float) -> None:
        """Everything; the first error ends it. Every rank calls it alike."""
        try:
            self._begin(f"the start of the {self._setup.backend} process group")
            with self._step(self._doing):
                device = self._start_group(timeout_s)
            self._measure_ops(sweep, device)
            self._measure_links(device)
            if device.type == "cuda":
                # For the second opinion, which is another process.
                torch.cuda.empty_cache()
        except RuntimeError as error:
            self._mine.add(Kind.FAILED, f"{self._doing} failed: {reason(error)}")
        if self._wrong:
            more = (
                f", and some after {_plural(len(self._wrong) - 1, 'other test')}"
                if len(self._wrong) > 1
                else ""
            )
            self._mine.add(Kind.WRONG, f"{self._wrong[0]}{more}")

    def _show_rows(self, agreement: Agreement) -> None:
        """On rank 0: print the lines that all ranks have left, in order."""
        while self._num_shown < self._num_rows:
            rows = agreement.rows(self._num_shown)
            if rows is None:
                return
            self._show(self._stream.add(merge([[row] for row in rows])[0]))
            self._num_shown += 1

    def close_table(self, agreement: Agreement) -> None:
        """On rank 0, when all ranks are done or stuck: print what is left.

        `agreement`: the seat of the thread that calls, which may not be the one that measured.
        """
        self._show_rows(agreement)
        self._show(self._stream.close())
        for op, why in self._mine.unsupported.items():
            self._show(f"# {op}: unsupported: {why}")

    def _begin(self, doing: str) -> None:
        self._doing = doing
        self._agreement.tell(doing)

    def _start_group(self, timeout_s: float) -> torch.device:
        on_gpu = self._setup.device == "cuda"
        device = torch.device("cuda", self._placement.local_rank) if on_gpu else torch.device("cpu")
        dist.init_process_group(
            self._setup.backend,
            store=self._agreement.store_for_group(),
            rank=self._placement.rank,
            world_size=self._placement.world_size,
            timeout=timedelta(seconds=timeout_s + (NCCL_EXTRA_S if on_gpu else 0)),
            device_id=device if on_gpu else None,
        )
        # NCCL connects all ranks with the first collective; point to point would do so pair by pair.
        dist.barrier()
        return device

    def _measure_ops(self, sweep: Sweep, device: torch.device) -> None:
        num_ranks = self._placement.world_size
        probed: dict[Op, str | None] = {}
        for pair in cases_of(sweep, num_ranks):
            op = pair[0].op
            if op not in probed:
                probed[op] = self._probe(op, device)
            if probed[op] is None:
                halves = [self._measure(case, sweep, device) for case in pair]
                self._leave(Row(op, pair[0].count, num_ranks, *halves))

    def _probe(self, op: Op, device: torch.device) -> str | None:
        self._begin(f"{op} of a few elements")
        with self._step(self._doing):
            why = why_unsupported(op, device)
        if why is not None:
            self._mine.unsupported[str(op)] = why
        return why

    def _measure(self, case: Case, sweep: Sweep, device: torch.device) -> Half:
        self._begin(case.name)
        question = f"iterations of {case.seed}"
        with self._step(case.name):
            measured = measure(
                case, sweep, device, lambda iters: self._agreement.decide(question, iters)
            )
        self._mine.launch_us.setdefault(str(case.op), []).append(measured.launch_us)
        num_wrong = measured.half.num_wrong
        if num_wrong:
            self._wrong.append(f"{_plural(num_wrong, 'wrong element')} after {case.name}")
        return measured.half

    def _leave(self, row: Row) -> None:
        self._mine.rows.append(row)
        self._agreement.post_row(self._num_rows, row)
        self._num_rows += 1
        if self._placement.rank == 0:
            self._show_rows(self._agreement)

    def _measure_links(self, device: torch.device) -> None:
        for first, second in pairwise.pairs_of(self._placement.world_size):
            self._begin(f"the transfer between rank {first} and rank {second}")
            with self._step(self._doing):
                pair = pairwise.measure_pair(first, second, device)
            if pair:
                self._mine.pairs.append(pair)


def reason(error: BaseException) -> str:
    """The first line without the source location that gloo puts before it."""
    return re.sub(r"^\[[^\]]*\.cc:\d+\]\s*", "", node.first_line(error))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
