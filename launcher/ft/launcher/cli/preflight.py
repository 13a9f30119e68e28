"""`ft preflight`: check this machine and the links between its GPUs, with the flags and the table of nccl-tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import JsonOption
from ft.recipes.errors import NotFoundError, UsageError

OPS: Final = (
    "all_reduce", "all_gather", "reduce_scatter", "alltoall", "broadcast", "reduce", "sendrecv", "gather", "scatter",
)  # fmt: skip
UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
GPU_MAX_BYTES: Final = "1G"
CPU_MAX_BYTES: Final = "32M"
CPU_PROCESSES: Final = 2
MAX_SIZES: Final = 1000


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes, and how one becomes the next."""

    min_bytes: int
    max_bytes: int
    factor: int
    step_bytes: int | None

    @property
    def count(self) -> int:
        if self.step_bytes:
            return (self.max_bytes - self.min_bytes) // self.step_bytes + 1
        size, count = self.min_bytes, 0
        while size <= self.max_bytes:
            size, count = size * self.factor, count + 1
        return count


MinBytes = Annotated[
    str, typer.Option("-b", metavar="SIZE", help="Smallest size: 8, 64K, 128M, 1G; 1024-based.")
]
MaxBytes = Annotated[
    str | None,
    typer.Option("-e", metavar="SIZE", help="Largest size. Default: 1G on GPUs, 32M on a CPU."),
]
Factor = Annotated[
    int | None, typer.Option("-f", metavar="N", help="A size is N times the last one. Default: 2.")
]
Step = Annotated[
    str | None,
    typer.Option("-i", metavar="SIZE", help="Instead of -f: a size is the last one and this."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "-g", metavar="N", help="GPUs, one process each. Default: all of them; 2 on a CPU."
    ),
]
Ops = Annotated[
    list[str] | None,
    typer.Option(
        "--op",
        metavar="OP",
        help=f"May be given again: {', '.join(OPS)}. Default: the first three.",
    ),
]
Iters = Annotated[
    int | None,
    typer.Option(
        "-n",
        metavar="N",
        help="Timed calls of each test. Default: 20, fewer where they are slow.",
    ),
]
Warmup = Annotated[int, typer.Option("-w", metavar="N", help="Calls before them.")]
Check = Annotated[int, typer.Option("-c", metavar="0|1", help="Whether to compare the data.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="cpu|cuda", help="Default: cuda if there is a GPU."),
]
Disk = Annotated[Path, typer.Option("--disk", metavar="FOLDER", help="Where checkpoints will go.")]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="For a single step of it.")
]


def preflight(
    min_bytes: MinBytes = "8",
    max_bytes: MaxBytes = None,
    factor: Factor = None,
    step: Step = None,
    processes: Processes = None,
    *,
    op: Ops = None,
    iters: Iters = None,
    warmup: Warmup = 1,
    check: Check = 1,
    device: Device = None,
    disk: Disk = Path(),
    timeout: Timeout = 60,
    json_: JsonOption = False,
) -> None:
    """Check this machine: GPUs, disk, every collective.

    Each collective is timed and its data are compared. Flags, sizes and columns are those of nccl-tests.
    Ends with 0 if training may start here, 77 if the machine is broken, 78 if something has to be set up differently.
    docs/preflight.md explains the figures.
    """
    from ft.launcher import local_python
    from ft.launcher.cli import preflighting

    local_python.require_torch()
    where, found = _machine(device, processes)
    sizes = _sizes(min_bytes, max_bytes or _default_max(min_bytes, where), factor, step)
    _check(op or (), iters, warmup, check, timeout)
    if not disk.is_dir():
        raise NotFoundError(f"--disk {disk}: no such folder")
    arguments = ["--device", where, "--disk", str(disk.absolute()), "--min-free-bytes", "0"]
    arguments += ["--min-bytes", str(sizes.min_bytes), "--max-bytes", str(sizes.max_bytes)]
    arguments += [
        "--step-factor",
        str(sizes.factor),
        "--warmup",
        str(warmup),
        "--check",
        str(check),
    ]
    arguments += ["--timeout-s", str(timeout), "--second-opinion"]
    arguments += ["--step-bytes", str(sizes.step_bytes)] if sizes.step_bytes else []
    arguments += ["--iters", str(iters)] if iters else []
    arguments += [word for name in op or () for word in ("--op", name)]
    report = preflighting.run(found, arguments, quiet=json_)
    if json_:
        console.out_json(report)
    raise typer.Exit(int(report["exit_code"]))


def _machine(device: str | None, processes: int | None) -> tuple[Literal["cpu", "cuda"], int]:
    """Device and number of processes. Raises: UsageError."""
    from ft.launcher.facts import local_machine

    if device not in {None, "cpu", "cuda"}:
        raise UsageError(f"--device {device}: expected cpu or cuda")
    if processes is not None and processes < 1:
        raise UsageError(f"-g {processes}: expected 1 or more")
    machine = local_machine()
    where: Literal["cpu", "cuda"] = "cuda" if (device or machine.device) == "cuda" else "cpu"
    all_gpus = machine.num_processes_per_node if machine.device == "cuda" else 1
    return where, processes or (all_gpus if where == "cuda" else CPU_PROCESSES)


def _default_max(min_bytes: str, device: str) -> str:
    """As far as the links need to show what they can do, and at least one size."""
    usual = GPU_MAX_BYTES if device == "cuda" else CPU_MAX_BYTES
    return usual if size_of("-b", min_bytes) <= size_of("-e", usual) else min_bytes


def _sizes(min_bytes: str, max_bytes: str, factor: int | None, step: str | None) -> Sizes:
    """Raises: UsageError."""
    smallest, largest = size_of("-b", min_bytes), size_of("-e", max_bytes)
    if largest < smallest:
        raise UsageError(f"-b {min_bytes} -e {max_bytes}: expected the larger size after -e")
    if factor is not None and step is not None:
        raise UsageError(f"-f {factor} -i {step}: expected one of them")
    if factor is not None and factor < 2:
        raise UsageError(f"-f {factor}: expected 2 or more; for equal steps take -i")
    sizes = Sizes(smallest, largest, factor or 2, None if step is None else size_of("-i", step))
    if sizes.count > MAX_SIZES:
        raise UsageError(
            f"these are {sizes.count} sizes, expected at most {MAX_SIZES}: take a larger -i"
        )
    return sizes


def size_of(flag: str, text: str) -> int:
    """Bytes of a size as nccl-tests writes it. Raises: UsageError naming `flag`."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(found[1]) * UNITS[found[2].upper()] if found else 0
    if not size:
        raise UsageError(f"{flag} {text}: expected a size such as 8, 64K, 128M or 1G")
    return size


def _check(ops: Sequence[str], iters: int | None, warmup: int, check: int, timeout: float) -> None:
    """Raises: UsageError."""
    for op in ops:
        if op not in OPS:
            raise UsageError(f"--op {op}: expected one of {', '.join(OPS)}")
    if iters is not None and iters < 1:
        raise UsageError(f"-n {iters}: expected 1 or more")
    if warmup < 0:
        raise UsageError(f"-w {warmup}: expected 0 or more")
    if check not in {0, 1}:
        raise UsageError(f"-c {check}: expected 0 or 1")
    if not timeout > 0:
        raise UsageError(f"--timeout {timeout:g}: expected more than 0 seconds")
