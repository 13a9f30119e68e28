"""How the ranks agree on one verdict without a collective: through notes in the store of torchrun.

The store lives in torchrun itself, so a rank that hangs or dies cannot take it along; a rank that is alone, without
torchrun, has one of its own. Every rank
posts its report, rank 0 judges and announces one exit code, every rank ends with it. Nobody waits
for ever.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ft.runtime.preflight.report import Finding, Kind, RankReport, row_from_json
from ft.runtime.preflight.table import Row

GRACE_S = 2.0
"""Between the timeout of a collective, which tells why, and the end of our patience with a step."""
LAST_WORDS_S = 2.0
"""For the ranks that torchrun is about to end, to say that they are there."""
RETRY_S = 0.2
SLICE_S = 5.0
"""torch complains in the log at the end of each."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which process this is, as torchrun tells it."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    store: str = ""
    """host:port of torchrun's store; empty for a rank that is alone."""
    start: str = "0"
    """How often torchrun has started its ranks before: the notes of earlier ones are still there."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Placement:
        """Raises: KeyError naming the variable, if neither torchrun nor an agent started this process."""
        return cls(
            int(env["RANK"]),
            int(env["LOCAL_RANK"]),
            int(env["WORLD_SIZE"]),
            int(env["LOCAL_WORLD_SIZE"]),
            f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}" if env["WORLD_SIZE"] != "1" else "",
            env.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )

    @property
    def num_nodes(self) -> int:
        return max(1, self.world_size // self.local_world_size)


class Agreement:
    """One rank's seat at the table. Methods that wait give up on their own and never raise."""

    def __init__(self, store: Store, placement: Placement, *, timeout_s: float) -> None:
        self._store = store
        self._placement = placement
        # One step of another rank may take this long, and it has to say so afterwards.
        self.wait_s = timeout_s + 2 * GRACE_S

    @classmethod
    def join(
        cls, placement: Placement, host: str, *, timeout_s: float
    ) -> tuple[Agreement, Agreement]:
        """Two seats, for the main thread and for another one; each has a connection of its own.

        Raises: OSError if nobody listens there or the name is unknown; torch.distributed.DistError
        if torchrun's store gives no answer in time.
        """
        store: Store = dist.HashStore()  # type: ignore[attr-defined]  # The stub lacks it.
        if placement.store:
            _reach(placement.store, timeout_s=timeout_s)
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        notes = PrefixStore(f"ft-preflight-{placement.start}", store)
        notes.set(f"who/{placement.rank}", json.dumps({"host": host, "pid": os.getpid()}))
        other = notes.clone()  # type: ignore[attr-defined]  # The stub lacks it.
        return (
            cls(notes, placement, timeout_s=timeout_s),
            cls(other, placement, timeout_s=timeout_s),
        )

    def post(self, phase: str, report: RankReport) -> None:
        """Leave the report of this rank for rank 0."""
        self._store.set(f"{phase}/{report.rank}", report.to_json())

    def collect(self, phase: str, *, within_s: float | None = None) -> list[RankReport | None]:
        """Reports by rank; None for a rank that left none in time, by default `wait_s`."""
        deadline = time.monotonic() + (self.wait_s if within_s is None else within_s)
        reports: list[RankReport | None] = []
        for rank in range(self._placement.world_size):
            text = self._read(f"{phase}/{rank}", deadline - time.monotonic())
            reports.append(None if text is None else RankReport.from_json(text))
        return reports

    def absences(
        self, reports: Sequence[RankReport | None], *, ended: bool
    ) -> list[Finding | None]:
        """By rank, what is known of those without a report. `ended`: torchrun saw a rank end."""
        return [
            None if report else self._absence(rank, ended=ended)
            for rank, report in enumerate(reports)
        ]

    def _absence(self, rank: int, *, ended: bool) -> Finding:
        who = self._note(f"who/{rank}")
        if who is None:
            # torchrun numbers the ranks node by node.
            nodemate = rank // self._placement.local_world_size == (
                self._placement.rank // self._placement.local_world_size
            )
            mine = self._note(f"who/{self._placement.rank}") if nodemate else None
            host = json.loads(mine)["host"] if mine else "unknown host"
            waited = "it never joined" if ended else f"it did not join within {self.wait_s:g} s"
            message = f"{waited}: not started, or it cannot reach {self._placement.store}"
            return Finding(rank, host, Kind.SILENT, message)
        known = json.loads(who)
        doing = self._note(f"doing/{rank}") or "its start"
        message = (
            f"its process {known['pid']} ended without a report during {doing}"
            if ended
            else f"it gave no report within {self.wait_s:g} s, its last step was {doing}"
        )
        return Finding(rank, known["host"], Kind.SILENT, message)

    def tell(self, doing: str) -> None:
        """Leave a note of what this rank is about to do, for the case that it dies of it."""
        self._store.set(f"doing/{self._placement.rank}", doing)

    def tell_crash(self, error: str) -> None:
        """Leave a note that this rank met a bug: its end says nothing about the machine."""
        self._store.set(f"crash/{self._placement.rank}", error)

    def crashes(self) -> dict[int, str]:
        """Errors of the ranks that left such a note."""
        notes = {rank: self._note(f"crash/{rank}") for rank in range(self._placement.world_size)}
        return {rank: note for rank, note in notes.items() if note is not None}

    def announce(self, phase: str, exit_code: int) -> None:
        """Rank 0 tells everybody how `phase` ended."""
        self._store.set(f"{phase}/exit-code", str(exit_code))

    def await_announcement(self, phase: str, *, within_s: float | None = None) -> int | None:
        """The exit code of `phase`; None if nobody told it in time.

        By default rank 0 gets time for its own step and for judging.
        """
        wait_s = 2 * self.wait_s if within_s is None else within_s
        text = self._read(f"{phase}/exit-code", wait_s)
        return None if text is None else int(text)

    def publish(self, report: str) -> None:
        """Leave the whole report for the first ranks of the other nodes."""
        self._store.set("report", report)

    def published(self) -> str | None:
        """What was left; None if there was no report."""
        return self._note("report")

    def decide(self, question: str, answer: int) -> int:
        """The answer of rank 0, on every rank. Raises: RuntimeError if there is none in time."""
        if self._placement.rank == 0:
            self._store.set(question, str(answer))
            return answer
        text = self._read(question, self.wait_s)
        if text is None:
            raise RuntimeError(f"rank 0 did not say {question} within {self.wait_s:g} s")
        return int(text)

    def post_row(self, number: int, row: Row) -> None:
        """Leave a line of the table for rank 0, which shows it at once."""
        self._store.set(f"row/{number}/{self._placement.rank}", json.dumps(asdict(row)))

    def rows(self, number: int) -> list[Row] | None:
        """A line of the table by rank; None if not all ranks have left theirs."""
        keys = [f"row/{number}/{rank}" for rank in range(self._placement.world_size)]
        if not self._store.check(keys):
            return None
        return [row_from_json(json.loads(text)) for text in self._store.multi_get(keys)]

    def store_for_group(self) -> Store:
        """For the process group, over its own connection: a hung start must not block ours."""
        clone = self._store.clone()  # type: ignore[attr-defined]  # The stub lacks it.
        return PrefixStore("group", clone)

    def _note(self, key: str) -> str | None:
        text = self._read(key, 0)
        return None if text is None else text.decode()

    def _read(self, key: str, wait_s: float) -> bytes | None:
        deadline = time.monotonic() + wait_s
        try:
            while not self._store.check([key]):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                with suppress(dist.DistStoreError):
                    # In slices: while one thread waits, no other can use this connection.
                    self._store.wait([key], timedelta(seconds=min(left_s, SLICE_S)))
            return bytes(self._store.get(key))
        except dist.DistError:
            return None


def _reach(store: str, *, timeout_s: float) -> None:
    """Connect once, to know why if not: torch says only that it gave up, and that late.

    Raises: OSError after `timeout_s`.
    """
    host, _, port = store.rpartition(":")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=timeout_s).close()
        except OSError:
            if time.monotonic() + RETRY_S > deadline:
                raise
            time.sleep(RETRY_S)
        else:
            return


@contextmanager
def time_limit(seconds: float, on_expiry: Callable[[], object]) -> Iterator[None]:
    """Run the body; if it is not done after `seconds`, call `on_expiry` from a thread.

    `on_expiry` must end the process. This reaches a body that is stuck in a driver or a collective,
    where no signal handler would run.
    """
    timer = threading.Timer(seconds, on_expiry)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        # If it has fired, the process ends here; the body must not go on beside it.
        timer.join()


def on_sigterm(callback: Callable[[], object]) -> None:
    """From now on SIGTERM calls `callback` in a thread; it must end the process.

    A handler alone would run in the main thread, which may be stuck. Call it in the main thread.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # The interpreter writes the number of each signal that has a handler, whatever its threads do.
    signal.signal(signal.SIGTERM, _heard)
    signal.siginterrupt(signal.SIGTERM, False)
    signal.set_wakeup_fd(write_end)

    def wait() -> None:
        while os.read(read_end, 1) != bytes([signal.SIGTERM]):
            pass
        callback()

    threading.Thread(target=wait, daemon=True).start()


def _heard(*_: object) -> None:
    """What matters is that there is a handler."""


def leave_now(exit_code: int) -> None:
    """End the process without destructors: those of a stuck communicator may never return."""
    os._exit(exit_code)
