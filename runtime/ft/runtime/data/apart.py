"""Rows are prepared in a process of its own: `python -m ft.runtime preprocess`, which answers in lines of JSON.

What it used comes back to the machine when it ends, and it can fork: it has neither a GPU nor threads of torch.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ft.recipes.plan import RunPlan
from ft.recipes.runstore import INPUTS
from ft.runtime.data.row import DataError

LARGE_BYTES = 64 << 20
"""Of data files: below it a process would take longer to start than rows take to make."""
BYTES_PER_PROCESS = 8 << 20
MAX_PROCESSES = 64
CHECK_S = 0.2
END_S = 10.0


def is_large(plan: RunPlan) -> bool:
    """Whether a process of its own is worth its start. Of a data set of the hub nobody knows before it is there."""
    return _is_from_hub(plan) or data_bytes(plan) > LARGE_BYTES


def _is_from_hub(plan: RunPlan) -> bool:
    return any(
        not spec.path.startswith(f"{INPUTS}/")
        for spec in (*plan.data.datasets, *plan.data.test_datasets)
    )


def data_bytes(plan: RunPlan) -> int:
    """Of the plan's data files, as often as they are read."""
    sizes = {entry.path: entry.size for entry in plan.inputs}
    return sum(sizes.get(spec.path, 0) for spec in (*plan.data.datasets, *plan.data.test_datasets))


def processes_for(plan: RunPlan) -> int:
    """As many as there are processors for this process, fewer for little data."""
    processors = min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if _is_from_hub(plan):
        return processors
    return max(1, min(processors, data_bytes(plan) // BYTES_PER_PROCESS))


def build_apart(
    run_folder: Path,
    root: Path,
    check: Callable[[], None],
    tell: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> None:
    """Make the rows of `run_folder/plan.json` in the cache at `root`, unless they are there.

    `check` is called several times a second; what it raises ends the process. `tell` gets its progress.
    Raises: DataError as `prepare` does; RuntimeError with the last words of a process that failed otherwise.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "ft.runtime",
        "preprocess",
        str(run_folder),
        "--root",
        str(root),
    ]
    # Nothing here computes on a GPU, and a rank's is full.
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        try:
            for said in _lines(process, check):
                if said.get("event") == "error":
                    raise DataError(
                        said["path"],
                        said["row"],
                        said["excerpt"],
                        said["reason"],
                        unit=said["unit"],
                    )
                tell(said)
            code = process.wait()
        finally:
            if process.poll() is None:
                _end(process)
    if code:
        raise RuntimeError(f"the process that prepares rows ended with {code}")


def _lines(process: subprocess.Popen[bytes], check: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """What it says until it ends."""
    stream = process.stdout
    assert stream is not None
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        rest = b""
        while True:
            check()
            if not selector.select(CHECK_S):
                continue
            found = _some(stream)
            if found == b"":
                return
            *lines, rest = (rest + found).split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    yield json.loads(line)


def _some(stream: IO[bytes]) -> bytes:
    """What there is to read; nothing at the end."""
    return os.read(stream.fileno(), 1 << 16)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
