"""Checks that need no other rank: the device, the memory, the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ft.runtime.preflight.report import Kind

DISK_TEST_BYTES = 4 * 2**20
MATMUL_SIZE = 64
PRODUCT_SIZE = {"cpu": 512, "cuda": 8192}
PRODUCT_PERIOD = 65_521
"""Prime, so that no two rows of a matrix begin with the same number."""
PRODUCT_SEED = 20_231
PRODUCT_REPEATS = {"cpu": 5, "cuda": 20}
PRODUCT_BUDGET_S = 1.0
"""A GPU that needs longer for all repeats makes fewer."""
SHM = Path("/dev/shm")  # noqa: S108  # Where NCCL shares memory between ranks; read only here.


class UnfitError(Exception):
    """This node cannot train as asked, and why."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def check_device(kind: str, local_rank: int, local_world_size: int) -> dict[str, Any]:
    """Claim the device of this rank ("cpu" or "cuda") and compute something known on it.

    Returns: index, name, count, total_bytes and free_bytes (None for cpu: see `memory`).
    Raises: UnfitError.
    """
    if kind == "cpu":
        _check_arithmetic(torch.device("cpu"))
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return {
            "index": 0,
            "name": _cpu_name(),
            "count": count,
            "total_bytes": None,
            "free_bytes": None,
        }
    count = _count_gpus(local_world_size)
    try:
        torch.cuda.set_device(local_rank)
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        _check_arithmetic(torch.device("cuda", local_rank))
        name = torch.cuda.get_device_name()
    except RuntimeError as error:
        raise UnfitError(
            Kind.FAILED, f"GPU {local_rank} cannot be used: {first_line(error)}"
        ) from error
    return {
        "index": local_rank,
        "name": name,
        "count": count,
        "total_bytes": total_bytes,
        "free_bytes": free_bytes,
    }


def _cpu_name() -> str:
    """As the processor calls itself; else the architecture."""
    info = _lines("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _count_gpus(num_ranks: int) -> int:
    """GPUs that torch sees, at least `num_ranks`. Raises: UnfitError."""
    count = torch.cuda.device_count()
    if count >= num_ranks:
        return count
    if torch.version.cuda is None and torch.version.hip is None:
        raise UnfitError(
            Kind.CONFIG,
            f"{_gpus(num_ranks)} asked for, but this torch {torch.__version__} is built without "
            "CUDA. Use an image with a CUDA build of torch.",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    num_device_files = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if visible is None and num_device_files >= num_ranks:
        # The driver lists them, yet CUDA does not: a GPU fell off the bus, or the driver is broken.
        raise UnfitError(
            Kind.FAILED,
            f"the machine lists {_gpus(num_device_files)}, but CUDA can use only {count}",
        )
    because = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    way_out = f"Ask for {count}, or take" if count else "Take"
    raise UnfitError(
        Kind.CONFIG,
        f"{_gpus(num_ranks)} asked for, one per rank, but this machine has {count}{because}. "
        f"{way_out} a machine with {num_ranks}.",
    )


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _check_arithmetic(device: torch.device) -> None:
    """Raises: UnfitError if a product of integers, exact in every fp32 mode, comes out wrong."""
    index = torch.arange(MATMUL_SIZE)
    left = (3 * index[:, None] + 5 * index[None, :]) % 7
    right = (2 * index[:, None] + index[None, :]) % 11
    product = (left.to(device, torch.float32) @ right.to(device, torch.float32)).cpu()
    num_wrong = int((product != (left @ right).float()).sum())
    if num_wrong:
        raise UnfitError(
            Kind.WRONG,
            f"{device} got {num_wrong} of {product.numel()} elements of a matrix product wrong",
        )


def check_matmul(kind: str, local_rank: int) -> dict[str, Any]:
    """Multiply two large matrices, the same ones on every rank, for a checksum and the speed.

    The elements are small integers whose sums are exact in fp32 in any order, so that the result depends neither on
    the kernel nor on the device: ranks with another checksum compute wrong (`hardware.compare`).
    Returns: checksum (sha256 of the result), tflops, time_us (of one product), size, dtype, repeats.
    Raises: UnfitError if the device fails, or if its last result is not its first.
    """
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", local_rank)
    size = PRODUCT_SIZE[kind]
    try:
        with _exact_products():
            return _multiply(device, size)
    except RuntimeError as error:
        message = f"{device} failed a product of {size} x {size} matrices: {first_line(error)}"
        raise UnfitError(Kind.FAILED, message) from error


def _multiply(device: torch.device, size: int) -> dict[str, Any]:
    dtype, bound = _number_format(device)
    left, right = (_matrix(size, bound, PRODUCT_SEED + i, device, dtype) for i in range(2))
    first = left @ right
    _wait_for(device)
    budget_s, times_s = PRODUCT_BUDGET_S, list[float]()
    last = first
    while len(times_s) < PRODUCT_REPEATS[device.type] and sum(times_s) < budget_s:
        start = time.perf_counter()
        last = left @ right
        _wait_for(device)
        times_s.append(time.perf_counter() - start)
    if not torch.equal(first, last):
        num_wrong = int((first != last).sum())
        raise UnfitError(
            Kind.WRONG,
            f"{device} got {num_wrong} of {first.numel()} elements of a matrix product otherwise the second time",
        )
    # Of a GPU the mean, which throttling lowers; ranks on a CPU take turns, which is no fault of any.
    seconds = min(times_s) if device.type == "cpu" else sum(times_s) / len(times_s)
    return {
        "checksum": hashlib.sha256(last.float().cpu().numpy().tobytes()).hexdigest(),
        "tflops": 2 * size**3 / seconds / 1e12,
        "time_us": seconds * 1e6,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": len(times_s),
    }


def _number_format(device: torch.device) -> tuple[torch.dtype, int]:
    """What to compute in, and the largest element: `PRODUCT_SIZE` squares of it stay below 2**24."""
    if device.type == "cpu":
        return torch.float32, 45
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, 45
    return torch.float16, 2  # The result too has to fit: 8192 * 2 * 2 is below 65504.


def _matrix(size: int, bound: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Integers from -bound to bound, the same on every device, shape (size, size)."""
    generator = torch.Generator().manual_seed(seed)
    period = torch.randint(-bound, bound + 1, (PRODUCT_PERIOD,), generator=generator)
    tile = period.to(device, dtype)
    return tile.repeat(-(-size * size // PRODUCT_PERIOD))[: size * size].view(size, size)


@contextmanager
def _exact_products() -> Iterator[None]:
    """No sums in half precision, which would round them as the kernel likes."""
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        (
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_fp16_reduced_precision_reduction,
        ) = before


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory() -> dict[str, int | None]:
    """Bytes of the host (at most what the container may use) and of /dev/shm; None if unknown."""
    host = _meminfo()
    total, available = host.get("MemTotal"), host.get("MemAvailable")
    limit = _cgroup_limit()
    if limit is not None and total is not None and available is not None:
        total, available = min(total, limit), min(available, limit)
    shm = shutil.disk_usage(SHM) if SHM.is_dir() else None
    return {
        "total_bytes": total,
        "available_bytes": available,
        "shm_total_bytes": shm.total if shm else None,
        "shm_free_bytes": shm.free if shm else None,
    }


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    fields = (line.replace(":", " ").split() for line in _lines("/proc/meminfo"))
    return {field[0]: int(field[1]) * 1024 for field in fields if field[-1] == "kB"}


def _cgroup_limit() -> int | None:
    """Bytes that the container may use; None without a limit ("max")."""
    lines = _lines("/sys/fs/cgroup/memory.max")
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: str) -> list[str]:
    """Of a file that the kernel provides; none where it does not."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def check_disk(folder: Path, *, min_free_bytes: int) -> dict[str, Any]:
    """Free space, and a file written, synced and read back.

    Returns: path, free_bytes, tested_bytes, write_s (with fsync), read_s. Raises: UnfitError.
    """
    try:
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < min_free_bytes:
            raise UnfitError(
                Kind.CONFIG,
                f"{folder} has {gib(free_bytes)} free, but this run needs {gib(min_free_bytes)}. "
                f"Free {gib(min_free_bytes - free_bytes)} there, take a larger disk, or keep fewer "
                "checkpoints (save_total_limit).",
            )
        return {"path": str(folder), "free_bytes": free_bytes, **_write_and_read_back(folder)}
    except OSError as error:
        broken = error.errno in {
            errno.EIO,
            errno.ENXIO,
            errno.ENODEV,
            errno.ESTALE,
            errno.EREMOTEIO,
        }
        kind = Kind.FAILED if broken else Kind.CONFIG
        way_out = "" if broken else " Name a folder that exists and can be written to."
        raise UnfitError(kind, f"the disk cannot be used: {error}.{way_out}") from error


def _write_and_read_back(folder: Path) -> dict[str, Any]:
    payload = os.urandom(DISK_TEST_BYTES)
    path = folder / f".ft-preflight-{os.getpid()}"
    try:
        start = time.perf_counter()
        with path.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                # Out of the page cache, so that the disk is read and not the memory.
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter()
        read_back = path.read_bytes()
        end = time.perf_counter()
    finally:
        path.unlink(missing_ok=True)
    if hashlib.sha256(read_back).digest() != hashlib.sha256(payload).digest():
        raise UnfitError(
            Kind.WRONG,
            f"{DISK_TEST_BYTES} bytes written to {folder} came back with another sha256",
        )
    return {
        "tested_bytes": DISK_TEST_BYTES,
        "write_s": round(written - start, 6),
        "read_s": round(end - written, 6),
    }


def gib(num_bytes: int) -> str:
    """Bytes for people: `139.1 GiB`."""
    return f"{num_bytes / 2**30:.1f} GiB"


def first_line(error: BaseException) -> str:
    """What an error of torch says before it explains how to debug it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
