"""What a log says about why it ended: a line for every row, the first cause of several, and logs that say nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ft.runtime.signatures import SIGNATURES, Blame, Weight, explain

NCCL_ERROR = (
    "[rank1]: torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94,"
    " {what} (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n[rank1]: {why}\n[rank1]: Last error:\n"
)
SYSTEM_ERROR = NCCL_ERROR.format(
    what="unhandled system error",
    why="ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
)
INVALID_USAGE = NCCL_ERROR.format(
    what="invalid usage",
    why="ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
)
CUDA_ERROR = "[rank0]: torch.AcceleratorError: CUDA error: {}\n[rank0]: CUDA kernel errors might be asynchronously …\n"
TORCHRUN = (
    "  time      : 2026-11-23_09:59:18\n  host      : node-0\n  rank      : 0 (local_rank: 0)\n"
    "  exitcode  : -{} (pid: 1798)\n  error_file: <N/A>\n  traceback : Signal {} received by PID 1798\n"
)
WATCHDOG = (
    "[rank0]:[E1123 20:27:21.426415540 ProcessGroupNCCL.cpp:629] [Rank 0] Watchdog caught collective operation "
    "timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST, NumelIn=131072000, NumelOut=131072000, Timeout(ms)=600000) ran for "
    "600081 milliseconds before timing out.\n"
)
CONSEQUENCE = (
    "[rank0]:[E1123 20:27:21.433063423 ProcessGroupNCCL.cpp:683] [Rank 0] Some NCCL operations have failed or timed "
    "out. Due to the asynchronous nature of CUDA kernels, subsequent GPU operations might run on corrupted data.\n"
)
GPU_OOM = (
    "[rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 2 has a total capacity of "
    "79.10 GiB of which 1.27 GiB is free.\n"
)
SHM = (
    "node-0:202016:202235 [0] misc/shmutils.cc:132 NCCL WARN Error while creating shared memory segment "
    "/dev/shm/nccl-WU88OE (size 9637888), error: No space left on device (28)\n"
)
XID = "[52113.901] NVRM: Xid (PCI:0000:3b:00): {}, pid=1798, name=python3, {}\n"

LINES: dict[str, list[str]] = {
    "shm": [
        SHM,
        SYSTEM_ERROR + "[rank1]: Error while creating shared memory segment /dev/shm/nccl-CsYXMW (size 9637888)\n",
        "node-0:7:8 [3] misc/shmutils.cc:71 NCCL WARN Error: failed to extend /dev/shm/nccl-KWfVyt to 5967876 bytes\n",
        "node-0:71:88 [1] include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device\n",
    ],
    "bus-error": [
        "Bus error (core dumped)\n",
        "RuntimeError: DataLoader worker (pid 1234) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory.\n",
        TORCHRUN.format(7, "7 (SIGBUS)"),
    ],
    "disk-full": [
        "OSError: [Errno 28] No space left on device: '/data/checkpoints/step-00000100/optimizer.pt'\n",
        "safetensors_rust.SafetensorError: I/O error: No space left on device (os error 28)\n",
    ],
    "no-interface": [
        "node-0:22841:22841 [0] bootstrap.cc:37 NCCL WARN Bootstrap : no socket interface found\n",
        "ncclInternalError: Internal check failed.\nLast error:\nBootstrap : no socket interface found\n",
    ],
    "connect": [
        "node-0 [0] include/socket.h:185 NCCL WARN Call to connect failed : Connection refused\n",
        "node-0:39964:40075 [0] misc/socket.cc:483 NCCL WARN socketStartConnect: Connect to 10.0.0.2<45763> failed : "
        "Software caused connection abort\n",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
        "Last error:\nsocketPollConnect: connect to 10.0.0.2<36085> returned Connection refused, exceeded error retry "
        "count after 35 attempts\n",
    ],
    "peer-access": [
        "node-0:909608:910337 [0] transport/p2p.cc:238 NCCL WARN failed to open CUDA IPC handle : 217 peer access is "
        "not supported between these two devices\n",
        CUDA_ERROR.format("peer access is not supported between these two devices"),
    ],
    "duplicate-gpu": [
        INVALID_USAGE + "[rank1]: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000\n"
    ],
    "mismatched-collective": [
        "[rank1]: RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: "
        "CollectiveFingerPrint(SequenceNumber=3104, OpType=ALLREDUCE, TensorShape=[195812480])\n",
        "init.cc:1247 NCCL WARN Mismatched collective detected, please check your collective calls at rank 39.\n",
    ],
    "invalid-usage": [INVALID_USAGE + "[rank1]: Invalid config blocking attribute value -5\n"],
    "nccl-oom": [
        "node-0:3063028:3066152 [3] include/alloc.h:178 NCCL WARN Cuda failure 'out of memory'\n",
        "node-0:3063028:3066152 [3] enqueue.cc:43 NCCL WARN Cuda failure 2 'out of memory'\n",
        "node-0:3063028:3066152 [3] include/alloc.h:185 NCCL WARN Failed to CUDA calloc 6291456 bytes\n",
    ],
    "two-nccls": [
        "ImportError: /venv/lib/python3.11/site-packages/torch/lib/libtorch_cuda.so: "
        "undefined symbol: ncclCommRegister\n",
        "init.cc:809 NCCL WARN Mismatched NCCL version detected : rank 0 version 22705 rank 1 version 21903\n",
    ],
    "old-driver": [
        "RuntimeError: CUDA driver version is insufficient for CUDA runtime version\n",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).\n",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on "
        "non supported HW\n",
    ],
    "no-kernel": [CUDA_ERROR.format("no kernel image is available for execution on the device")],
    "fabric-manager": [
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized\n",
        "RuntimeError: cuda runtime error (802) : system not yet initialized at THCGeneral.cpp:50\n",
    ],
    "gpu-oom": [GPU_OOM, CUDA_ERROR.format("out of memory")],
    "hidden-oom": [
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`\n",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`\n",
    ],
    "host-oom": [
        "[81234.5] Out of memory: Killed process 1798 (python3) total-vm:91234567kB, anon-rss:61234567kB\n",
        "[81234.5] Memory cgroup out of memory: Killed process 1798 (python3) total-vm:91234567kB\n",
    ],
    "ecc": [CUDA_ERROR.format("uncorrectable ECC error encountered")],
    "nvlink-error": [
        CUDA_ERROR.format("uncorrectable NVLink error detected during the execution")
    ],
    "gpu-lost": [
        XID.format(79, "GPU has fallen off the bus."),
        "Unable to determine the device handle for GPU0000:44:00.0: Unknown Error\n",
    ],
    "xid-memory": [
        XID.format(48, "An uncorrectable double bit error (DBE) has been detected"),
        XID.format(64, "Row Remapper: Row remapping failed"),
        XID.format(95, "Uncontained: LTC. RST: Yes, D-RST: No"),
    ],
    "xid-remap": [
        XID.format(63, "Row Remapper: New row marked for remapping, reset gpu to activate."),
        XID.format(94, "Contained: SM (0x1). RST: No, D-RST: No"),
    ],
    "xid-nvlink": [XID.format(74, "NVLink: fatal error detected on link 3")],
    "xid-gsp": [
        XID.format(119, "Timeout after 6s of waiting for RPC response from GPU0 GSP!"),
        XID.format(120, "GSP task exception"),
    ],
    "xid-hang": [
        XID.format(46, "GPU stopped processing"),
        XID.format(62, "internal micro-controller halt"),
    ],
    "device-assert": [CUDA_ERROR.format("device-side assert triggered")],
    "illegal-access": [
        CUDA_ERROR.format("an illegal memory access was encountered"),
        XID.format(31, "Ch 0000000b, intr 10000000. MMU Fault"),
        XID.format(13, "Graphics Exception: ESR 0x505648=0x100"),
    ],
    "xid-program": [
        XID.format(43, "Ch 00000010"),
        XID.format(45, "Ch 00000010"),
    ],
    "rendezvous": [
        "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError\n",
        "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms while trying to connect "
        "to (172.17.0.9, 46229).\n",
        "TimeoutError: The client socket has timed out after 1800s while trying to connect to (node-0, 29500).\n",
    ],
    "watchdog": [
        WATCHDOG,
        "[rank1]:[F1111 17:10:53] ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress in "
        "monitoring enqueued collectives.\n",
    ],
    "sigkill": [TORCHRUN.format(9, "9 (SIGKILL)")],
    "lost-peer": [
        CONSEQUENCE,
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
        "[127.0.0.1]:3029\n",
        "node-0:3063025:3066048 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer "
        "node-1<51159>\n",
    ],
}  # fmt: skip


@pytest.mark.parametrize("expected", LINES)
def test_every_line_tells_its_cause(expected: str) -> None:
    told = [explain(f"step 10 loss 1.25\n{line}step 11") for line in LINES[expected]]
    assert [signature and signature.id for signature in told] == [expected] * len(LINES[expected])


def test_every_signature_has_a_line() -> None:
    assert list(LINES) == [signature.id for signature in SIGNATURES]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        # The rank that ran out of memory ended last in the file, but was the first to fail.
        (WATCHDOG + CONSEQUENCE + GPU_OOM, "gpu-oom"),
        (CONSEQUENCE + WATCHDOG, "watchdog"),
        # Of two causes the first.
        (SHM + GPU_OOM, "shm"),
        (GPU_OOM + SHM, "gpu-oom"),
        (TORCHRUN.format(9, "9 (SIGKILL)") + LINES["host-oom"][0], "host-oom"),
        (LINES["xid-program"][0] + LINES["gpu-lost"][0], "gpu-lost"),
        (LINES["connect"][2], "connect"),
        # After a timeout torch asked for nonsense: a report to the NCCL developers has this one.
        (
            WATCHDOG + "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate more than 1EB memory.\n",
            "watchdog",
        ),
    ],
)  # fmt: skip
def test_the_first_cause_is_told_and_not_what_follows_from_it(log: str, expected: str) -> None:
    found = explain(log)
    assert found is not None
    assert found.id == expected


def test_whom_to_blame_and_what_to_do() -> None:
    found = explain(LINES["peer-access"][0])
    assert found is not None
    assert (found.kind, found.weight) == (Blame.BAD_NODE, Weight.CAUSE)
    assert found.message == (
        "GPUs cannot reach each other's memory: PCIe access control (ACS), the IOMMU or the virtual machine forbids "
        "it. Take another machine; NCCL_P2P_DISABLE=1 goes around it, slowly."
    )


ORDINARY = """\
2026-11-23T17:45:12Z ft.agent attempt 1 begins on node-0: preflight passed in 12.3 s
# NCCL version 2.27.5+cuda12.8
node-0:9621:9688 [3] NCCL INFO Bootstrap : Using eth0:172.17.0.3<0>
node-0:9621:9688 [3] NCCL INFO NET/Plugin: No plugin found (libnccl-net.so)
node-0:9621:9688 [3] NCCL INFO NET/IB : No device found.
node-0:9621:9688 [3] NCCL INFO Channel 00 : 2[3d000] -> 3[3e000] via SHM/direct/direct
node-0:9621:9688 [3] NCCL INFO Could not enable P2P between dev 1(=2000) and dev 0(=1000)
[W1123 17:45:13 socket.cpp:752] [c10d] The client socket cannot be initialized to connect to [node-0]:29500
[rank0]:[W1123 ProcessGroupNCCL.cpp:4843] using GPU 0 to perform barrier as devices used by this process are unknown.
Setting OMP_NUM_THREADS environment variable for each process to be 1 in default, to avoid your system being overloaded
`use_cache=True` is incompatible with gradient checkpointing. If you run out of memory, lower micro_batch_size.
step 79 loss 0.48 lr 1.3e-05 grad_norm 0.95 tokens_per_s 64.0 peak_memory 63.94 GiB of 79.1 GiB
{"kind": "step", "data": {"step": 119, "loss": 0.63, "note": "timeout 1800 s, 802 rows"}}
[52113.901] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.86.15
ConnectionResetError: [Errno 104] Connection reset by peer: retrying in 1 s (1 of 5)
saved checkpoint step-00000048 (3 files, 1.2 GB in 4.1 s); Signal handlers for SIGTERM installed
user: my laptop says it is out of memory, and the disk is nearly full. Is the GPU lost?
"""


def test_an_ordinary_log_tells_nothing() -> None:
    assert [line for line in ORDINARY.splitlines() if explain(line)] == []
    assert explain(ORDINARY) is None
    assert explain("") is None


def test_a_traceback_of_somebody_else_tells_nothing() -> None:
    text = "Traceback (most recent call last):\n  File \"train.py\", line 3\nKeyError: 'messages'\n"
    assert explain(text) is None


def test_the_docs_have_the_same_table(repo: Path) -> None:
    command = [sys.executable, "docs/make_failures.py", "--check"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (repo / "docs/failures.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    # Two tables, each with a heading.
    assert len(rows) == len(SIGNATURES) + 4


def test_agent_and_ranks_can_import_it_without_torch() -> None:
    code = "import sys, ft.runtime.signatures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
