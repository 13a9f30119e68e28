"""What the driver, the kernel and a matrix product say about the health of a node. Imports no torch."""

from __future__ import annotations

import re
import resource
import shutil
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ft.runtime.preflight.environment import harmful
from ft.runtime.preflight.report import Kind

SMI_TIMEOUT_S = 4.0
"""For all questions to nvidia-smi together."""

USED_BY_OTHERS_MIB = 500
MIN_SHM_BYTES = 2**30
MIN_MEMLOCK_BYTES = 2**30
MIN_FILES = 1024
MIN_THREADS_PER_RANK = 512
"""A rank has threads of torch, of NCCL, of the tokenizer; each counts as a process."""
SLOW = 0.7
"""Of the median of the ranks with the same device."""

SHM = Path("/dev/shm")  # noqa: S108  # Where NCCL shares memory between ranks; read only here.
RDMA = Path("/sys/class/infiniband")
PIDS = Path("/sys/fs/cgroup")


class Severity(StrEnum):
    """Whether a finding ends the attempt or is only said."""

    FAIL = "fail"
    WARN = "warn"


class HealthFinding(NamedTuple):
    severity: Severity
    kind: Kind
    message: str


@dataclass(slots=True)
class Health:
    """What one rank's node and GPU are like."""

    findings: list[HealthFinding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain JSON, for the report. `nvidia_smi` says `ok`, or why nothing is known about the GPU."""


def check_health(
    device: str, local_rank: int, local_world_size: int, env: Mapping[str, str]
) -> Health:
    """Everything that can be known without computing, in at most 5 s.

    Call it before this rank touches its GPU: its own CUDA context would look like somebody else's memory. The first
    rank of a node speaks for the node, each one for its GPU. What cannot be found out is a fact ("unknown").
    """
    health = Health()
    if local_rank == 0:
        _check_host(health, device, local_world_size, env)
    if device == "cuda":
        _check_gpu(health, local_rank, local_world_size, env)
    return health


# --------------------------------------------------------------------------------------------- host


@dataclass(frozen=True, slots=True)
class Limits:
    """What this process may have; None is no limit, or unknown."""

    memlock_bytes: int | None
    files: int | None
    threads: int | None
    """More that may be started: by the user's limit or the container's, whichever is nearer."""


def _check_host(health: Health, device: str, local_world_size: int, env: Mapping[str, str]) -> None:
    leftovers = harmful(env, device=device)
    limits = read_limits()
    shm_bytes = shutil.disk_usage(SHM).total if SHM.is_dir() else None
    num_nics = len(list(RDMA.iterdir())) if RDMA.is_dir() else 0
    health.facts["host"] = {
        **asdict(limits),
        "shm_total_bytes": shm_bytes,
        "rdma_devices": num_nics,
        "leftovers": sorted(leftovers),
    }
    health.findings += [
        HealthFinding(Severity.WARN, Kind.CONFIG, message) for message in leftovers.values()
    ]
    if device == "cuda":
        # Over gloo the ranks share no memory.
        health.findings += judge_shm(shm_bytes, local_world_size)
    several_nodes = int(env.get("WORLD_SIZE", local_world_size)) > local_world_size
    health.findings += judge_limits(limits, local_world_size, rdma=several_nodes and num_nics > 0)


def judge_shm(total_bytes: int | None, local_world_size: int) -> list[HealthFinding]:
    """Pure. NCCL wants about 10 MiB per pair of ranks and channel; 64 MiB, Docker's default, do not last."""
    if total_bytes is None or local_world_size < 2 or total_bytes >= MIN_SHM_BYTES:
        return []
    message = (
        f"{SHM} has {total_bytes / 2**20:.0f} MiB for {local_world_size} ranks that share memory there. Start the "
        "container with --shm-size=8g or --ipc=host (Kubernetes: an emptyDir with medium: Memory)."
    )
    return [HealthFinding(Severity.WARN, Kind.CONFIG, message)]


def judge_limits(limits: Limits, local_world_size: int, *, rdma: bool) -> list[HealthFinding]:
    """Pure. `rdma`: other machines are reached over InfiniBand or RoCE, which locks memory."""
    found = []
    if rdma and limits.memlock_bytes is not None and limits.memlock_bytes < MIN_MEMLOCK_BYTES:
        found.append(
            f"only {limits.memlock_bytes // 1024} KiB of memory may be locked (ulimit -l), too little for RDMA. "
            "Start the container with --ulimit memlock=-1, or raise memlock in /etc/security/limits.conf."
        )
    if limits.files is not None and limits.files < MIN_FILES:
        found.append(
            f"only {limits.files} files may be open at a time (ulimit -n). "
            "Say ulimit -n 65536 first, or start the container with --ulimit nofile=65536."
        )
    needed = MIN_THREADS_PER_RANK * local_world_size
    if limits.threads is not None and limits.threads < needed:
        found.append(
            f"only {limits.threads} more processes and threads may be started, and the ranks may need {needed} "
            "(ulimit -u, pids.max). Start the container with --pids-limit=-1, or say ulimit -u unlimited first."
        )
    return [HealthFinding(Severity.WARN, Kind.CONFIG, message) for message in found]


def read_limits() -> Limits:
    """Of this process. The user's limit of processes is taken whole: who counts against it is not known."""
    per_user = _soft(resource.RLIMIT_NPROC)
    in_container = None
    pids_max, pids_now = _first_number(PIDS / "pids.max"), _first_number(PIDS / "pids.current")
    if pids_max is not None and pids_now is not None:
        in_container = max(0, pids_max - pids_now)
    known = [limit for limit in (per_user, in_container) if limit is not None]
    return Limits(
        _soft(resource.RLIMIT_MEMLOCK), _soft(resource.RLIMIT_NOFILE), min(known, default=None)
    )


def _soft(which: int) -> int | None:
    limit = resource.getrlimit(which)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _first_number(path: Path) -> int | None:
    """Of a file that the kernel provides; None for `max`, or without the file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


# ---------------------------------------------------------------------------------------------- GPU

FIELDS = (
    "index", "uuid", "name", "driver_version", "pstate", "memory.used",
    "ecc.errors.uncorrected.volatile.total", "clocks_event_reasons.active",
    "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max",
)  # fmt: skip
OLD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
"""For drivers before 535."""
UNKNOWN_FIELD = re.compile(r'Field "([\w.]+)" is not a valid field to query')
LOST_GPU = re.compile(
    r"GPU is lost|fallen off the bus|Unable to determine the device handle", re.IGNORECASE
)

THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of the reasons for low clocks that tell of trouble. Idle (1), set clocks (2) and power cap (4) do not."""

NVLINKS = (
    (re.compile(r"\bH[12]00\b(?!.*(NVL|PCIe))"), 18),
    (re.compile(r"\bA100-SXM"), 12),
)
"""NVLinks that a GPU with this name has to the switch; a card with a bridge is not among them."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of `nvidia-smi --query-gpu`; None is what the driver does not say."""

    index: int
    uuid: str
    name: str
    driver: str
    pstate: str
    memory_used_mib: int | None
    ecc_uncorrected: int | None
    """Since the driver was loaded."""
    throttle: int | None
    """Bits, see `THROTTLED`."""
    pcie_gen: int | None
    pcie_gen_max: int | None
    """With this GPU in this machine."""
    pcie_width: int | None
    pcie_width_max: int | None


@dataclass(frozen=True, slots=True)
class Remap:
    """Rows of memory that were replaced; None where the GPU cannot."""

    pending: bool | None
    failed: bool | None


@dataclass(frozen=True, slots=True)
class Links:
    """NVLinks of one GPU."""

    active: int
    total: int


def parse_gpu(text: str, fields: Sequence[str] = FIELDS) -> Gpu | None:
    """Pure: the first line of `--format=csv,noheader,nounits`. None if it is not such a line."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(fields) or not cells[0].isdigit():
            continue
        values = dict(zip(fields, cells, strict=True))
        number = {name: _number(value) for name, value in values.items()}
        reasons = "clocks_event_reasons.active"
        return Gpu(
            index=int(cells[0]),
            uuid=values.get("uuid", ""),
            name=values.get("name", ""),
            driver=values.get("driver_version", ""),
            pstate=values.get("pstate", ""),
            memory_used_mib=number.get("memory.used"),
            ecc_uncorrected=number.get("ecc.errors.uncorrected.volatile.total"),
            throttle=number.get(reasons, number.get(OLD_NAMES[reasons])),
            pcie_gen=number.get("pcie.link.gen.current"),
            pcie_gen_max=number.get("pcie.link.gen.max"),
            pcie_width=number.get("pcie.link.width.current"),
            pcie_width_max=number.get("pcie.link.width.max"),
        )
    return None


def _number(text: str) -> int | None:
    """`12`, `0x0000000000000004`; None for `[N/A]` and its like."""
    try:
        return int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        return None


def parse_remap(text: str) -> Remap:
    """Pure: `uuid, pending, failure` of `--query-remapped-rows`; drivers write 0 and 1, or No and Yes."""
    words = {"0": False, "no": False, "1": True, "yes": True}
    for line in text.splitlines():
        cells = [cell.strip().lower() for cell in line.split(",")]
        if len(cells) == 3 and cells[0].startswith("gpu-"):
            return Remap(words.get(cells[1]), words.get(cells[2]))
    return Remap(None, None)


def parse_nvlink(text: str) -> dict[int, Links]:
    """Pure: `nvidia-smi nvlink -s`, GPU -> its links. A GPU without NVLink is not in it."""
    found: dict[int, list[bool]] = {}
    gpu: int | None = None
    for line in text.splitlines():
        header = re.match(r"GPU (\d+):", line)
        if header:
            gpu = int(header[1])
        if gpu is None:
            continue
        if re.search(r"all links are inactive", line, re.IGNORECASE):
            found.setdefault(gpu, [])
        link = re.match(r"\s*Link \d+: *(?:(\d[\d.]* *GB/s)|<inactive>)", line)
        if link:
            found.setdefault(gpu, []).append(link[1] is not None)
    return {gpu: Links(sum(links), len(links)) for gpu, links in found.items()}


def judge_gpu(
    gpu: Gpu, remap: Remap, links: Links | None, local_world_size: int
) -> list[HealthFinding]:
    """Pure. Only memory that gives wrong data fails a node; what is slow is measured by the collectives."""
    who = f"GPU {gpu.index} ({gpu.name}, {gpu.uuid})"
    fail = []
    if gpu.ecc_uncorrected:
        fail.append(
            f"{who} has counted {gpu.ecc_uncorrected} uncorrectable ECC errors since its driver was loaded: "
            "its memory is broken"
        )
    if remap.failed:
        fail.append(f"{who} could not replace a broken row of its memory: it has to be exchanged")
    warn = [*_judge_state(gpu, remap), *_judge_links(gpu, links, local_world_size)]
    return [
        *(HealthFinding(Severity.FAIL, Kind.FAILED, message) for message in fail),
        *(HealthFinding(Severity.WARN, Kind.FAILED, f"{who} {message}") for message in warn),
    ]


def _judge_state(gpu: Gpu, remap: Remap) -> list[str]:
    found = []
    if remap.pending and not remap.failed:
        found.append("has a broken row of memory to replace: reset it (nvidia-smi -r), or reboot")
    reasons = [text for bit, text in THROTTLED.items() if gpu.throttle and gpu.throttle & bit]
    if reasons:
        found.append(
            f"runs slower than it could: {', '.join(reasons)}. Cooling or power is at fault"
        )
    # An idle GPU may take its PCIe link down to save power; P0 to P2 are the states of a busy one.
    awake = gpu.pstate in {"P0", "P1", "P2"}
    if awake and gpu.pcie_gen and gpu.pcie_gen_max and gpu.pcie_gen < gpu.pcie_gen_max:
        found.append(
            f"is connected with PCIe {gpu.pcie_gen} instead of {gpu.pcie_gen_max}: slow copies"
        )
    if gpu.pcie_width and gpu.pcie_width_max and gpu.pcie_width < gpu.pcie_width_max:
        found.append(
            f"is connected with {gpu.pcie_width} instead of {gpu.pcie_width_max} PCIe lanes: slow copies"
        )
    if gpu.memory_used_mib is not None and gpu.memory_used_mib > USED_BY_OTHERS_MIB:
        found.append(
            f"has {gpu.memory_used_mib} MiB in use by somebody else: see nvidia-smi, and end what is left of "
            "an older run"
        )
    return found


def expected_links(name: str) -> int | None:
    """NVLinks of a GPU that the driver calls `name`; None if unknown."""
    return next((count for pattern, count in NVLINKS if pattern.search(name)), None)


def _judge_links(gpu: Gpu, links: Links | None, local_world_size: int) -> list[str]:
    """One rank alone needs no link. How much bandwidth is left is for the collectives to say."""
    if links is None or local_world_size < 2:
        return []
    expected = expected_links(gpu.name) or (links.total if links.active else 0)
    if links.active >= expected:
        return []
    return [f"has {links.active} of {expected} NVLinks active: data between GPUs take a slower way"]


def gpu_of(local_rank: int, visible: str | None) -> str | None:
    """What nvidia-smi calls the GPU of this rank, given CUDA_VISIBLE_DEVICES; None if it has none."""
    if visible is None:
        return str(local_rank)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return names[local_rank] if local_rank < len(names) else None


def _check_gpu(
    health: Health, local_rank: int, local_world_size: int, env: Mapping[str, str]
) -> None:
    which = gpu_of(local_rank, env.get("CUDA_VISIBLE_DEVICES"))
    program = shutil.which("nvidia-smi", path=env.get("PATH"))
    if which is None or program is None:
        missing = "nvidia-smi" if program is None else "GPU for this rank in CUDA_VISIBLE_DEVICES"
        health.facts["nvidia_smi"] = f"unknown: there is no {missing}"
        return
    deadline = time.monotonic() + SMI_TIMEOUT_S
    rows = "--query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure"
    asked_rows = _start([program, "-i", which, rows, "--format=csv,noheader"], env)
    asked_links = _start([program, "nvlink", "-s", "-i", which], env)
    text, fields = _ask_gpu([program, "-i", which], env, deadline)
    gpu = parse_gpu(text or "", fields)
    remap = parse_remap(_answer(asked_rows, deadline) or "")
    links = parse_nvlink(_answer(asked_links, deadline) or "")
    if gpu is None:
        _note_silence(health, which, text)
        return
    own_links = links.get(gpu.index)
    health.facts["nvidia_smi"] = "ok"
    health.facts["gpu"] = {
        **asdict(gpu),
        "remap_pending": remap.pending,
        "remap_failed": remap.failed,
        "nvlinks_active": own_links.active if own_links else None,
        "nvlinks_expected": expected_links(gpu.name),
    }
    health.findings += judge_gpu(gpu, remap, own_links, local_world_size)


def _note_silence(health: Health, which: str, answer: str | None) -> None:
    """A GPU that its driver has lost is broken; anything else that nvidia-smi says is only unknown."""
    if answer is None:
        silence = f"no answer within {SMI_TIMEOUT_S:g} s"
        health.facts["nvidia_smi"] = f"unknown: {silence}"
        message = f"nvidia-smi gives {silence} about GPU {which}: its driver is stuck or busy"
        health.findings.append(HealthFinding(Severity.WARN, Kind.FAILED, message))
        return
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    said = (lines or ["an empty answer"])[0][:200]
    health.facts["nvidia_smi"] = f"unknown: {said}"
    if LOST_GPU.search(answer):
        message = f"GPU {which} does not answer its driver any more: {said}"
        health.findings.append(HealthFinding(Severity.FAIL, Kind.FAILED, message))


def _ask_gpu(
    smi: list[str], env: Mapping[str, str], deadline: float
) -> tuple[str | None, tuple[str, ...]]:
    """The answer and the fields that it has: a driver may be too old, or too new, for some of them."""
    fields: tuple[str, ...] = FIELDS
    while True:
        query = [*smi, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = _answer(_start(query, env), deadline)
        refused = UNKNOWN_FIELD.search(answer or "")
        if refused is None or refused[1] not in fields:
            return answer, fields
        fields = _without(fields, refused[1])


def _without(fields: Sequence[str], refused: str) -> tuple[str, ...]:
    """By its old name where it has one."""
    renamed = (OLD_NAMES.get(field) if field == refused else field for field in fields)
    return tuple(field for field in renamed if field is not None)


def _start(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[str] | str:
    """The process, or why there is none."""
    try:
        return subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return str(error)


def _answer(process: subprocess.Popen[str] | str, deadline: float) -> str | None:
    """What it wrote, errors included; None if it did not end in time."""
    if isinstance(process, str):
        return process
    try:
        return process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
        # A process that hangs in the driver does not even die; it is left behind.
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        return None


# ------------------------------------------------------------------------------ products of matrices


class RankMatmul(NamedTuple):
    """One rank's product of the same two matrices, see `node.check_matmul`."""

    rank: int
    host: str
    device: str
    """Its name: only equal devices are compared."""
    checksum: str
    tflops: float


class RankFinding(NamedTuple):
    rank: int
    host: str
    severity: Severity
    kind: Kind
    message: str


def compare(products: Iterable[RankMatmul]) -> list[RankFinding]:
    """Pure: which ranks compute something else than the others, which are slow. By rank, WRONG first."""
    by_device: dict[str, list[RankMatmul]] = defaultdict(list)
    for product in products:
        by_device[product.device].append(product)
    found = [finding for group in by_device.values() for finding in _wrong(group)]
    slow = [finding for group in by_device.values() for finding in _slow(group)]
    return [*sorted(found), *sorted(slow)]


def _wrong(group: Sequence[RankMatmul]) -> list[RankFinding]:
    """The minority; all of them where no checksum has a majority."""
    counts = Counter(product.checksum for product in group)
    if len(counts) < 2:
        return []
    (best, most), (_, second) = counts.most_common(2)
    tie = most == second
    blamed = [product for product in group if tie or product.checksum != best]
    what = "the product of the same two matrices came out otherwise"
    if tie:
        ranks = ", ".join(str(product.rank) for product in group)
        why = f"on ranks {ranks} ({group[0].device} each), and no majority tells who is right"
    else:
        others = "rank" if most == 1 else "ranks"
        why = f"than on {most} other {others} with a {group[0].device}: it computes wrong"
    return [
        RankFinding(product.rank, product.host, Severity.FAIL, Kind.WRONG, f"{what} {why}")
        for product in blamed
    ]


def _slow(group: Sequence[RankMatmul]) -> list[RankFinding]:
    median = statistics.median(product.tflops for product in group)
    return [
        RankFinding(
            product.rank,
            product.host,
            Severity.WARN,
            Kind.FAILED,
            f"it computes with {product.tflops:.3g} TFLOP/s, the median of {len(group)} ranks with a "
            f"{product.device} is {median:.3g}: every step waits for it",
        )
        for product in group
        if product.tflops < SLOW * median
    ]
