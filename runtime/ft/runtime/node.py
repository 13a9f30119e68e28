"""Which node this is, and what a process owes its parent. The only file of this room that reads the environment."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
AGENT_PID = "FT_AGENT_PID"


@dataclass(frozen=True, slots=True)
class Node:
    """This machine's place among the machines of the run. Backends translate their variables into `FT_*`."""

    rank: int
    num_nodes: int
    master_addr: str
    master_port: int
    grace_s: float = 30.0
    """From a signal to the end of the machine: what the shortest-tempered clouds give."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Node:
        """FT_NODE_RANK, FT_NUM_NODES, FT_MASTER_ADDR, FT_MASTER_PORT, FT_GRACE_S; one node without them."""
        return cls(
            rank=int(env.get("FT_NODE_RANK", "0")),
            num_nodes=int(env.get("FT_NUM_NODES", "1")),
            master_addr=env.get("FT_MASTER_ADDR", "127.0.0.1"),
            master_port=int(env.get("FT_MASTER_PORT", "29500")),
            grace_s=float(env.get("FT_GRACE_S", "30")),
        )

    @property
    def hostname(self) -> str:
        return socket.gethostname()

    def torchrun(self, num_processes: int) -> list[str]:
        """Arguments of torchrun up to the module. It never restarts: only the backend does (decision 7)."""
        where = (
            ["--standalone"]
            if self.num_nodes == 1
            else [
                f"--nnodes={self.num_nodes}",
                f"--node-rank={self.rank}",
                f"--master-addr={self.master_addr}",
                f"--master-port={self.master_port}",
            ]
        )
        return [*where, f"--nproc-per-node={num_processes}", "--max-restarts=0"]


def child_env(num_processes: int) -> dict[str, str]:
    """Environment of preflight and worker: what the user set, quiet libraries, and the cores shared out."""
    cores = len(os.sched_getaffinity(0))
    defaults = {
        # torchrun would set 1 and warn; sharing the cores out keeps CPU runs fast and their sums in one order.
        "OMP_NUM_THREADS": str(max(1, cores // num_processes)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "warning",
        "PYTHONUNBUFFERED": "1",
    }
    return {**defaults, **os.environ, AGENT_PID: str(os.getpid())}


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among all, as torchrun says."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Rank:
        return cls(int(env["RANK"]), int(env["LOCAL_RANK"]), int(env["WORLD_SIZE"]))


def forget_torchrun() -> None:
    """Without torchrun's variables a library does not wrap the model of a single process in DDP."""
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        os.environ.pop(name, None)


def die_with_parent(parent: int | None = None, signum: signal.Signals = signal.SIGKILL) -> None:
    """Get `signum` when the parent dies, even by SIGKILL (Linux). Call it first thing in a child.

    `parent` is its process id if the child knows it: then a parent that died before this call is noticed too.
    """
    if parent is None:
        parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)  # The parent died before the request was made.


def die_with_agent(env: Mapping[str, str] = os.environ) -> None:
    """For a rank: die with torchrun, and at once if the agent above it has gone before the request was made."""
    die_with_parent()
    agent = env.get(AGENT_PID)
    if agent is not None and parent_of(os.getppid()) != int(agent):
        os.kill(os.getpid(), signal.SIGKILL)


def parent_of(pid: int) -> int | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123  # as below
            return int(stream.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as stream:  # noqa: PTH123  # not a file to be resolved
            return [int(child) for child in stream.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits for its parent to take note does not."""
    try:
        with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123  # as above
            # The name in brackets may hold anything, so the state stands after the last bracket.
            return stream.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
