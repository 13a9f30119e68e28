"""Which node this is, and what a process owes its parent. The only file of this room that reads the environment."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
SIOCGIFADDR = 0x8915
AGENT_PID = "FT_AGENT_PID"
JOIN_S = 600
"""As long as torchrun waits by itself."""


@dataclass(frozen=True, slots=True)
class Node:
    """This machine's place among the machines of the run. Backends translate their variables into `FT_*`.

    On node 0, `master_port` and the one above it are free: preflight and worker meet there.
    """

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

    @property
    def others(self) -> str:
        """For a sentence: the other nodes."""
        names = [str(number) for number in range(self.num_nodes) if number != self.rank]
        return f"node {names[0]}" if len(names) == 1 else f"one of nodes {', '.join(names)}"

    def torchrun(self, num_processes: int, *, start: int = 0, join_s: int = JOIN_S) -> list[str]:
        """What Python runs before the ranks' module: nothing for a single rank, which has nobody to meet.

        torchrun never restarts: only the backend does (decision 7). `start` counts those of one attempt, each has a
        port of its own: a node that is ahead would else join the store of the one before, which node 0 is about to
        close. A node waits `join_s` for the others.
        """
        if num_processes * self.num_nodes == 1:
            return []
        where = (
            ["--standalone"]
            if self.num_nodes == 1
            else [
                f"--nnodes={self.num_nodes}",
                f"--node-rank={self.rank}",
                f"--master-addr={self.master_addr}",
                f"--master-port={self.master_port + start}",
                f"--rdzv-conf=timeout={join_s}",
            ]
        )
        how = [*where, f"--nproc-per-node={num_processes}", "--max-restarts=0"]
        return ["-m", "torch.distributed.run", *how]


def interface_to(address: str) -> str | None:
    """The network interface over which this machine reaches another one; None if it cannot be told, or is loopback."""
    with contextlib.suppress(OSError):
        family, kind, _, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # Sends nothing.
            mine = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
            if not mine.is_loopback:
                found = (name for _, name in socket.if_nameindex() if mine in _addresses_of(name))
                return next(found, None)
    return None


def _addresses_of(interface: str) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode())
        # The name of the interface fills 16 bytes, the address lies 4 bytes into what follows.
        found.add(ipaddress.IPv4Address(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24]))
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as stream:  # noqa: PTH123  # as below
        lines = [line.split() for line in stream]
        found |= {
            ipaddress.IPv6Address(bytes.fromhex(line[0])) for line in lines if line[-1] == interface
        }
    return found


def child_env(num_processes: int, node: Node | None = None) -> dict[str, str]:
    """Environment of preflight and worker: what the user set, quiet libraries, and the cores shared out.

    gloo takes the address that this machine's own name has, which on many images is 127.0.1.1: useless to other nodes.
    """
    cores = len(os.sched_getaffinity(0))
    defaults = {
        # torchrun would set 1 and warn; sharing the cores out keeps CPU runs fast and their sums in one order.
        "OMP_NUM_THREADS": str(max(1, cores // num_processes)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "warning",
        "PYTHONUNBUFFERED": "1",
        # torchrun starts ranks by `-m`: a file of the user's in the working directory would shadow a library.
        "PYTHONSAFEPATH": "1",
    }
    num_nodes = 1 if node is None else node.num_nodes
    place: dict[str, str] = {}
    if num_processes * num_nodes == 1:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    elif node is not None and num_nodes > 1:
        interface = interface_to(node.master_addr)
        if interface is not None:
            defaults["GLOO_SOCKET_IFNAME"] = interface
    return {**defaults, **os.environ, **place, AGENT_PID: str(os.getpid())}


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among all, as torchrun says, or the agent for it."""

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
    """For a rank: die with its parent, the agent or torchrun, and at once if the agent had gone before."""
    die_with_parent()
    agent = env.get(AGENT_PID)
    if agent is not None and int(agent) not in {os.getppid(), parent_of(os.getppid())}:
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
