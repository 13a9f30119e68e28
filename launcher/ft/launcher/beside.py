"""A command beside an attempt on this machine: with its environment, in its folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ft.launcher.local_python import die_with
from ft.recipes.errors import StoreError


def environment_of(pid: int) -> dict[str, str] | None:
    """What a process was started with; None if it has ended. Raises: StoreError if it is another user's."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError as error:
        raise StoreError(
            f"process {pid} is another user's: its environment cannot be read"
        ) from error
    except OSError:
        return None
    named = (pair.partition(b"=") for pair in pairs if b"=" in pair)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in named} or None


def run_beside(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, takes_input: bool
) -> int:
    """Run it with our own output, and our input where it takes any. Its exit code, 128+n after a signal."""
    child = subprocess.Popen(
        # A shell says what every shell does where there is no such command, and where it may not be run.
        ["/bin/sh", "-c", 'exec "$@"', "sh", *command],
        cwd=folder,
        env=dict(environment),
        stdin=None if takes_input else subprocess.DEVNULL,
        # Single-threaded. What is run here does not outlive us.
        preexec_fn=die_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509
    )
    # Ctrl-C is the command's, which gets it from the terminal as we do.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code
