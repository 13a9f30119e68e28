"""Several machines of one segment, each with a folder of the run of its own.

They share no disk; what they tell each other goes through the words of the run. Node 0 decides: which attempt it is,
when it is
over, how it ended. See `runstore.py` for what whoever starts the agents of several nodes owes them.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ft.launcher.machine.words import Words
from ft.recipes.runstore import (
    Adjust,
    JsonRecord,
    RankExit,
    Status,
    combined,
    end_of_node,
    learnt_by_all,
)
from ft.recipes.store import LocalStore

MASTER_PORTS: Final = range(29_500, 32_700, 2)
"""Below those that kernels give to whoever asks; an agent takes the one above its own as well."""
POLL_S: Final = 0.5
MOMENT_S: Final = 10.0
"""Once one agent has ended, until the others are told to: what they wait for is gone, and they find that out."""


def port_of(name: str, ports: range) -> int:
    """One of its own for each name: two runs may have one machine."""
    return ports[zlib.crc32(name.encode()) % len(ports)]


@dataclass(frozen=True, slots=True)
class NodeEnd(JsonRecord):
    """What a node leaves behind of an attempt."""

    exit_code: int
    """Of its agent, 128+n after a signal."""
    status: str
    """Its status.json; empty without one."""
    adjust: str
    """What it learnt, as adjust.json."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """This machine among those of its segment."""

    id: str
    """Of this segment and no other; empty for a single machine."""
    rank: int
    addresses: tuple[str, ...]
    words: Words

    @classmethod
    def single(cls, words: Words) -> Cluster:
        """Of one machine."""
        return cls("", 0, ("127.0.0.1",), words)

    @property
    def size(self) -> int:
        return len(self.addresses)

    @property
    def agent_log(self) -> str:
        """Each node has its own: they lie in one folder of the copy."""
        return f"agent{self.rank or ''}.log"

    def environment(self) -> dict[str, str]:
        """What an agent on this node is told of the others."""
        if self.size == 1:
            return {}
        return {
            "FT_NODE_RANK": str(self.rank),
            "FT_NUM_NODES": str(self.size),
            "FT_MASTER_ADDR": self.addresses[0],
            "FT_MASTER_PORT": str(port_of(self.id, MASTER_PORTS)),
        }

    # Node 0 says, the others hear.

    def begin(self, attempt: int) -> None:
        """All folders can be made: the copy has what the attempt begins with."""
        if self.size > 1:
            self.words.put(self._key("attempt"), attempt)

    def disband(self) -> None:
        """There is no other attempt in this cluster."""
        if self.size > 1:
            self.words.put(self._key("attempt"), 0)

    def next_attempt(self, after: int, *, is_over: Callable[[], bool]) -> int:
        """Wait for the attempt that comes after this one; 0 if there is none, or no time for one."""
        while not is_over():
            number = self.words.get(self._key("attempt"))
            if number == 0 or number not in {None, after}:
                return int(number)
            time.sleep(POLL_S)
        return 0

    # Each says how it ended.

    def tell_end(self, attempt: int, code: int, store: LocalStore) -> None:
        status = store.get_status()
        end = NodeEnd(code, status.to_json() if status else "", store.get_adjust().to_json())
        self.words.put(self._key("end", attempt, self.rank), end.to_json())

    def others_ended(self, attempt: int) -> bool:
        """Whether the agent of another node has ended."""
        others = (rank for rank in range(self.size) if rank != self.rank)
        return any(self.words.peek(self._key("end", attempt, rank)) for rank in others)

    def tell_going(self) -> None:
        """This machine is taken back in a moment."""
        self.words.put(self._key("going"), True)

    def is_going(self) -> bool:
        """Whether one of the others has said so."""
        return self.size > 1 and bool(self.words.peek(self._key("going")))

    def gather(self, attempt: int, limit_s: float) -> list[NodeEnd | None]:
        """The ends of all nodes, by node; None for one that has not said it within the limit."""
        until = time.monotonic() + limit_s
        while True:
            found = [self.words.get(self._key("end", attempt, rank)) for rank in range(self.size)]
            if None not in found or time.monotonic() > until:
                return [None if text is None else NodeEnd.from_json(text) for text in found]
            time.sleep(POLL_S)

    def end(self, attempt: int, store: LocalStore, limit_s: float) -> int:
        """The exit code of the attempt over all nodes; node 0's status and adjust.json then say the same."""
        ends = self.gather(attempt, limit_s)
        whole = combined([_exit_of(end, attempt) for end in ends])
        told = [Adjust.from_json(end.adjust) for end in ends if end is not None]
        learnt = learnt_by_all(
            replace(a, left_out=tuple(a.left_out), rollbacks=tuple(a.rollbacks)) for a in told
        )
        if learnt != Adjust():
            store.put_adjust(learnt)
        status = store.get_status() or Status(attempt, "end", time.time())
        store.put_status(
            replace(
                status,
                attempt=attempt,
                phase="end",
                step=whole.step,
                exit_code=whole.exit_code,
                reason=whole.reason,
                message=whole.message,
                rank=whole.rank,
            )
        )
        return whole.exit_code

    def _key(self, *parts: object) -> str:
        return "/".join(["cluster", self.id, *map(str, parts)])


def _exit_of(end: NodeEnd | None, attempt: int) -> RankExit | None:
    if end is None:
        return None
    status = Status.from_json(end.status) if end.status else None
    return end_of_node(end.exit_code, status, attempt=attempt)


class Company:
    """Notices when agents of other nodes have ended while ours goes on."""

    def __init__(
        self, cluster: Cluster, attempt: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cluster, self.attempt, self._clock = cluster, attempt, clock
        self._alone_since: float | None = None
        self._asked_at = float("-inf")

    def is_over(self) -> bool:
        """Whether ours has had its moment since another one ended."""
        if self.cluster.size == 1:
            return False
        now = self._clock()
        if self._alone_since is None and now - self._asked_at >= 2 * POLL_S:
            self._asked_at = now
            if self.cluster.others_ended(self.attempt):
                self._alone_since = now
        return self._alone_since is not None and now - self._alone_since > MOMENT_S
