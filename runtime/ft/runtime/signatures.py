"""What a log says about why it ended: known lines, their cause, the way out. Imports no torch.

`docs/failures.md` is this table for people (`python docs/make_failures.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class Blame(StrEnum):
    """Who has to change something."""

    CONFIG = "config"
    """The user: the recipe, the image, the container, the network. Trying again is wasted money."""
    BAD_NODE = "bad_node"
    """The machine: try elsewhere."""
    OOM = "oom"
    """Memory of the GPU: a smaller micro batch, a shorter sequence."""
    HOST_OOM = "host_oom"
    """Memory of the machine."""
    USER_CODE = "user_code"
    """A bug in training code, ours or the user's: it would fail again, on any machine."""
    UNCLEAR = "unclear"
    """This line alone does not say."""


class Weight(IntEnum):
    """How near to the cause a line is: the nearest one in a log wins, and among equals the first."""

    CAUSE = 0
    SYMPTOM = 1
    """Often a cause, as often what a rank sees of another one's end."""
    CONSEQUENCE = 2
    """Something else happened before, perhaps to another rank."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One row: a line that a log has, why, and what to do."""

    id: str
    shows: str
    """The line as a person would look for it."""
    pattern: re.Pattern[str]
    """Matches within one line."""
    cause: str
    fix: str
    kind: Blame
    weight: Weight = Weight.CAUSE

    @property
    def message(self) -> str:
        return f"{self.cause}. {self.fix}."


def explain(text: str) -> Signature | None:
    """The first cause in a log, not what follows from it; None if nothing in it is known."""
    best: tuple[Weight, int] | None = None
    found = None
    for signature in SIGNATURES:
        match = signature.pattern.search(text)
        if match and (best is None or (signature.weight, match.start()) < best):
            best, found = (signature.weight, match.start()), signature
    return found


_XID = r"NVRM: Xid \([^)\n]*\): (?:%s)\b"

SIGNATURES: Final = (
    Signature(
        "shm",
        "`NCCL WARN Error while creating shared memory segment`, `failed to extend /dev/shm/nccl-`",
        re.compile(
            r"Error while creating shared memory segment|failed to extend /dev/shm/"
            r"|NCCL WARN [^\n]*No space left on device"
        ),
        "Shared memory (/dev/shm) is too small: a Docker container has 64 MiB unless told otherwise",
        "Start the container with --shm-size=8g or --ipc=host; NCCL_SHM_DISABLE=1 helps for the moment, and is slow",
        Blame.CONFIG,
    ),
    Signature(
        "bus-error",
        "`Bus error (core dumped)`, `DataLoader worker … killed by signal: Bus error`",
        re.compile(
            r"Bus error \(core dumped\)|killed by signal: Bus error|Unexpected bus error encountered in worker"
            r"|Signal 7 \(SIGBUS\) received by PID"
        ),
        "Shared memory (/dev/shm) is full: what NCCL or data workers share did not fit",
        "Start the container with --shm-size=8g or --ipc=host",
        Blame.CONFIG,
    ),
    Signature(
        "disk-full",
        "`OSError: [Errno 28] No space left on device`",
        re.compile(r"\[Errno 28\] No space left on device|No space left on device \(os error 28\)"),
        "The disk is full",
        "Free space there, take a larger disk, or keep fewer checkpoints (save_total_limit)",
        Blame.CONFIG,
    ),
    Signature(
        "no-interface",
        "`Bootstrap : no socket interface found`",
        re.compile(r"Bootstrap : no (?:NCCL_SOCKET_IFNAME |socket )?interface found"),
        "NCCL finds no network interface: NCCL_SOCKET_IFNAME names none that this machine has",
        "unset NCCL_SOCKET_IFNAME, or name one that `ip address` shows on every machine",
        Blame.CONFIG,
    ),
    Signature(
        "connect",
        "`NCCL WARN … Connect to 10.0.0.2<45763> failed : No route to host`",
        re.compile(
            r"Call to connect[^\n]* failed ?: |[Ss]ocketStartConnect: Connect to [^\n]* failed ?: "
            r"|SocketPollConnect: connect[^\n]* exceeded error retry count",
            re.IGNORECASE,
        ),
        "Ranks cannot reach each other: a firewall between the machines, or NCCL took the wrong interface (docker0)",
        "Let the machines talk on all ports, and set NCCL_SOCKET_IFNAME to the interface that joins them",
        Blame.CONFIG,
        Weight.SYMPTOM,
    ),
    Signature(
        "peer-access",
        "`peer access is not supported between these two devices`",
        re.compile(r"peer access is not supported between these two devices"),
        "GPUs cannot reach each other's memory: PCIe access control (ACS), the IOMMU or the virtual machine forbids it",
        "Take another machine; NCCL_P2P_DISABLE=1 goes around it, slowly",
        Blame.BAD_NODE,
    ),
    Signature(
        "duplicate-gpu",
        "`Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000`",
        re.compile(r"Duplicate GPU detected"),
        "Two ranks share one GPU",
        "Ask for as many GPUs as ranks, and look at CUDA_VISIBLE_DEVICES",
        Blame.CONFIG,
    ),
    Signature(
        "mismatched-collective",
        "`Detected mismatch between collectives on ranks`, `Mismatched collective detected`",
        re.compile(
            r"Detected mismatch between collectives on ranks|Mismatched collective detected"
        ),
        "Ranks call different collectives, or with different shapes",
        "A branch that only some ranks take is a bug: report it with the log of every rank",
        Blame.USER_CODE,
    ),
    Signature(
        "invalid-usage",
        "`ncclInvalidUsage: This usually reflects invalid usage of NCCL library`",
        re.compile(r"ncclInvalidUsage"),
        "NCCL was called wrongly; its `Last error` says how",
        "Look at the line after `Last error`; export NCCL_DEBUG=WARN shows more",
        Blame.USER_CODE,
        Weight.SYMPTOM,
    ),
    Signature(
        "nccl-oom",
        "`NCCL WARN Cuda failure 2 'out of memory'`",
        re.compile(r"Cuda failure (?:2 )?'out of memory'|NCCL WARN Failed to CUDA \w+ \d+ bytes"),
        "NCCL found no room for its buffers on the GPU",
        "Lower micro_batch_size or sequence_len; NCCL_BUFFSIZE and NCCL_MAX_NCHANNELS make the buffers smaller",
        Blame.OOM,
    ),
    Signature(
        "two-nccls",
        "`undefined symbol: ncclCommRegister`, `Mismatched NCCL version detected`",
        re.compile(
            r"undefined symbol: nccl\w+|Mismatched NCCL version detected|NCCL version [^\n]*mismatch"
        ),
        "Another NCCL than torch's is loaded, or the machines have different ones",
        "unset LD_LIBRARY_PATH, keep one nvidia-nccl package, and use the same image on every machine",
        Blame.CONFIG,
    ),
    Signature(
        "old-driver",
        "`CUDA driver version is insufficient`, `forward compatibility was attempted on non supported HW`",
        re.compile(
            r"CUDA driver version is insufficient|NVIDIA driver on your system is too old"
            r"|forward compatibility was attempted on non supported HW"
        ),
        "The image wants a newer CUDA than the driver of the machine offers",
        "Take an image for an older CUDA, or a machine with a newer driver",
        Blame.CONFIG,
    ),
    Signature(
        "no-kernel",
        "`no kernel image is available for execution on the device`",
        re.compile(r"no kernel image is available for execution on the device"),
        "This build of torch has no code for this kind of GPU",
        "Take an image with a torch that was built for it, or another GPU",
        Blame.CONFIG,
    ),
    Signature(
        "fabric-manager",
        "`Error 802: system not yet initialized`",
        re.compile(
            r"system not yet initialized|CUDA_ERROR_SYSTEM_NOT_READY"
            r"|nvlink[^\n]*fabric ?manager[^\n]*(?:fail|error|not running)",
            re.IGNORECASE,
        ),
        "The NVLink switch is not set up: the fabric manager of the machine does not run, or is of another version",
        "Take another machine; its owner has to start nvidia-fabricmanager",
        Blame.BAD_NODE,
    ),
    Signature(
        "gpu-oom",
        "`torch.OutOfMemoryError: CUDA out of memory. Tried to allocate`",
        # After a timeout torch may ask for "more than 1EB": nonsense from a buffer that was never filled.
        re.compile(
            r"CUDA out of memory\.(?! Tried to allocate more than 1EB)|CUDA error: out of memory"
        ),
        "The GPU has too little memory for this batch",
        "Lower micro_batch_size (raise gradient_accumulation_steps as much), lower sequence_len, or set "
        "gradient_checkpointing: true",
        Blame.OOM,
    ),
    Signature(
        "hidden-oom",
        "`CUBLAS_STATUS_NOT_INITIALIZED`, `CUBLAS_STATUS_ALLOC_FAILED`",
        re.compile(r"CUBLAS_STATUS_(?:NOT_INITIALIZED|ALLOC_FAILED)"),
        "cuBLAS found no room for its workspace: nearly always the GPU is full",
        "Lower micro_batch_size or sequence_len",
        Blame.OOM,
    ),
    Signature(
        "host-oom",
        "`Out of memory: Killed process`, `Memory cgroup out of memory`",
        re.compile(
            r"Out of memory: Killed process|Memory cgroup out of memory|oom-kill:constraint="
        ),
        "The machine, or its container, ran out of memory (not of GPU memory), and the kernel killed a process",
        "Take a machine with more memory, or raise the limit of the container",
        Blame.HOST_OOM,
    ),
    Signature(
        "ecc",
        "`CUDA error: uncorrectable ECC error encountered`",
        re.compile(r"uncorrectable ECC error encountered"),
        "Memory of the GPU is broken",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "nvlink-error",
        "`CUDA error: uncorrectable NVLink error detected`",
        re.compile(r"uncorrectable NVLink error detected"),
        "A link between GPUs is broken",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "gpu-lost",
        "`Xid …: 79, GPU has fallen off the bus`",
        re.compile(
            rf"{_XID % '79'}|GPU has fallen off the bus|GPU is lost|Unable to determine the device handle for GPU"
        ),
        "The machine lost a GPU: power, PCIe or the GPU itself",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "xid-memory",
        "Xid 48, 64, 95",
        re.compile(_XID % "48|64|95"),
        "Memory of a GPU is broken and could not be repaired or contained",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "xid-remap",
        "Xid 63, 94",
        re.compile(_XID % "63|94"),
        "A row of GPU memory broke; it was noted down, or only this program was hurt",
        "Start again: it goes on from the last checkpoint; the GPU wants a reset",
        Blame.BAD_NODE,
    ),
    Signature(
        "xid-nvlink",
        "Xid 74",
        re.compile(_XID % "74"),
        "A link between GPUs failed",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "xid-gsp",
        "Xid 119, 120",
        re.compile(_XID % "119|120"),
        "The processor that manages a GPU does not answer",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "xid-hang",
        "Xid 46, 62",
        re.compile(_XID % "46|62"),
        "A GPU hangs",
        "Take another machine",
        Blame.BAD_NODE,
    ),
    Signature(
        "device-assert",
        "`CUDA error: device-side assert triggered`",
        re.compile(r"device-side assert triggered"),
        "An index was out of its range on the GPU: often a token id beyond the vocabulary",
        "Look at the special tokens and the tokenizer; CUDA_LAUNCH_BLOCKING=1 names the operation",
        Blame.USER_CODE,
    ),
    Signature(
        "illegal-access",
        "`an illegal memory access was encountered`; Xid 13, 31",
        re.compile(rf"an illegal memory access was encountered|{_XID % '13|31'}"),
        "A kernel touched memory that it does not own: nearly always a bug of a kernel, not of the machine",
        "CUDA_LAUNCH_BLOCKING=1 names the operation; try attn_implementation: sdpa",
        Blame.USER_CODE,
    ),
    Signature(
        "xid-program",
        "Xid 43, 45",
        re.compile(_XID % "43|45"),
        "The driver took the GPU away from a program that had failed before",
        "Look for the first error in the logs of the ranks; the machine is not to blame",
        Blame.USER_CODE,
        Weight.CONSEQUENCE,
    ),
    Signature(
        "rendezvous",
        "`RendezvousTimeoutError`, `The client socket has timed out after … while trying to connect to`",
        re.compile(r"RendezvousTimeoutError|The client socket has timed out after"),
        "A rank or a machine never came: fewer started than asked for, or the port or name of the first is unreachable",
        "Look whether all machines started, and whether they reach the first one by its name and port",
        Blame.UNCLEAR,
        Weight.SYMPTOM,
    ),
    Signature(
        "watchdog",
        "`Watchdog caught collective operation timeout: WorkNCCL(…)`",
        re.compile(
            r"Watchdog caught collective operation timeout|ProcessGroupNCCL's watchdog got stuck for"
        ),
        "A rank waited in vain for the others: one is dead, out of memory or still busy, or the network is down",
        "Look for the first error in the logs of the other ranks; raise ddp_timeout only if a rank was busy for a "
        "reason that you know",
        Blame.UNCLEAR,
        Weight.SYMPTOM,
    ),
    Signature(
        "sigkill",
        "`Signal 9 (SIGKILL) received by PID`, exit code -9",
        re.compile(r"Signal 9 \(SIGKILL\) received by PID|exitcode *: -9\b"),
        "Something killed a process: most often the machine ran out of memory (not of GPU memory), or a preemption",
        "Look at the memory of the machine; `dmesg` tells whether the kernel did it",
        Blame.UNCLEAR,
        Weight.SYMPTOM,
    ),
    Signature(
        "lost-peer",
        "`Some NCCL operations have failed or timed out`, `gloo/… Connection closed by peer`",
        re.compile(
            r"Some NCCL operations have failed or timed out|ncclRemoteError"
            r"|gloo/[^\n]*(?:Connection (?:closed|reset) by peer|Broken pipe)"
            r"|NCCL WARN [^\n]*Connection closed by remote peer"
        ),
        "Another rank ended before",
        "Look for the first error in the logs of the other ranks",
        Blame.UNCLEAR,
        Weight.CONSEQUENCE,
    ),
)
