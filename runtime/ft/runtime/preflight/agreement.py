"""How the ranks agree on one verdict without a collective: through notes in the store of torchrun.

The store lives in torchrun itself, so a rank that hangs or dies cannot take it along. Every rank
posts its report, rank 0 judges and announces one exit code, every rank ends with it. Nobody waits
for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ft.runtime.preflight.report import RankReport

GRACE_S = 2.0
"""Between the timeout of a collective, which tells why, and the end of our patience with a step."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which process this is, as torchrun tells it."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Placement:
        """Raises: KeyError naming the variable, if torchrun did not start this process."""
        return cls(
            int(env["RANK"]),
            int(env["LOCAL_RANK"]),
            int(env["WORLD_SIZE"]),
            int(env["LOCAL_WORLD_SIZE"]),
        )


class Agreement:
    """One rank's seat at the table. Methods that wait give up on their own and never raise."""

    def __init__(self, store: Store, placement: Placement, host: str, *, timeout_s: float) -> None:
        self._store = store
        self._placement = placement
        # One step of another rank may take this long, and it has to say so afterwards.
        self.wait_s = timeout_s + 2 * GRACE_S
        store.set(f"host/{placement.rank}", host)

    @classmethod
    def join(cls, placement: Placement, host: str, *, timeout_s: float) -> Agreement:
        """Raises: torch.distributed.DistError if torchrun's store gives no answer in time."""
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        return cls(PrefixStore("ft-preflight", store), placement, host, timeout_s=timeout_s)

    def post(self, phase: str, report: RankReport) -> None:
        """Leave the report of this rank for rank 0."""
        self._store.set(f"{phase}/{report.rank}", report.to_json())

    def collect(self, phase: str) -> list[RankReport | None]:
        """Reports by rank; None for a rank that left none within `wait_s`."""
        deadline = time.monotonic() + self.wait_s
        reports: list[RankReport | None] = []
        for rank in range(self._placement.world_size):
            text = self._read(f"{phase}/{rank}", deadline - time.monotonic())
            reports.append(None if text is None else RankReport.from_json(text))
        return reports

    def hosts(self) -> list[str | None]:
        """Hosts by rank; None for a rank that did not even start."""
        texts = [self._read(f"host/{rank}", 0) for rank in range(self._placement.world_size)]
        return [None if text is None else text.decode() for text in texts]

    def announce(self, phase: str, exit_code: int) -> None:
        """Rank 0 tells everybody how `phase` ended."""
        self._store.set(f"{phase}/exit-code", str(exit_code))

    def await_announcement(self, phase: str) -> int | None:
        """The exit code of `phase`; None if rank 0, given time for its own step, told none."""
        text = self._read(f"{phase}/exit-code", 2 * self.wait_s)
        return None if text is None else int(text)

    def store_for_group(self) -> Store:
        """For the process group, over its own connection: a hung start must not block ours."""
        clone = self._store.clone()  # type: ignore[attr-defined]  # The stub lacks it.
        return PrefixStore("group", clone)

    def _read(self, key: str, wait_s: float) -> bytes | None:
        try:
            if not self._store.check([key]):
                if wait_s <= 0:
                    return None
                self._store.wait([key], timedelta(seconds=wait_s))
            return bytes(self._store.get(key))
        except dist.DistError:
            return None


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


def leave_now(exit_code: int) -> None:
    """End the process without destructors: those of a stuck communicator may never return."""
    os._exit(exit_code)
