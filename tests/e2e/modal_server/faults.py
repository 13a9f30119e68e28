"""Faults that a test orders: each is armed for a number of times and is gone then."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from grpclib import GRPCError, Status


@dataclass
class Armed:
    kind: str
    target: str
    times: int
    seconds: float = 0.0
    status: str = "FAILED_PRECONDITION"


class Faults:
    """Faults of replies, commits and builds. Those of containers act at once: see `admin.py`."""

    def __init__(self) -> None:
        self.armed: list[Armed] = []

    def arm(
        self,
        kind: str,
        target: str,
        times: int = 1,
        seconds: float = 0.0,
        status: str = "FAILED_PRECONDITION",
    ) -> None:
        if kind not in {"lose_reply", "slow_reply", "fail_commit", "fail_build"}:
            raise ValueError(f"no fault {kind!r}")
        Status[status]  # A wrong name fails here and not in the middle of a run.
        self.armed.append(Armed(kind, target, times, seconds, status))

    def take(self, kind: str, target: str) -> Armed | None:
        """The armed fault for this target, used up by one; a fault with an empty target fits all."""
        for fault in self.armed:
            if fault.kind == kind and fault.times > 0 and fault.target in {"", target}:
                fault.times -= 1
                return fault
        return None

    async def before_reply(self, rpc: str) -> None:
        """Hold the reply of `rpc` back, or lose it: its effect has happened, the client sees UNAVAILABLE."""
        if slow := self.take("slow_reply", rpc):
            await asyncio.sleep(slow.seconds)
        if self.take("lose_reply", rpc):
            raise GRPCError(Status.UNAVAILABLE, f"fault: the reply of {rpc} is lost")

    def before_commit(self, volume: str) -> None:
        """Raises: GRPCError where a commit of the volume of this name was ordered to fail."""
        if fault := self.take("fail_commit", volume):
            raise GRPCError(Status[fault.status], "fault: this commit fails")

    def before_build(self, commands: list[str]) -> str:
        """The error of the build of an image layer; its target is a text in one of its commands."""
        for fault in self.armed:
            if (
                fault.kind == "fail_build"
                and fault.times > 0
                and any(fault.target in c for c in commands)
            ):
                fault.times -= 1
                return f"fault: the build of the layer with {fault.target!r} fails"
        return ""
