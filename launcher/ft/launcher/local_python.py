"""The one way from the launcher into the runtime on this machine: a child process, never an import.

A child that is started from here does not outlive us: `die_with`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata, util

from ft.recipes.errors import DependencyError

TRAIN_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
PR_SET_PDEATHSIG = 1


def agent_command() -> list[str]:
    """Command line of an attempt; `{store}` and `{attempt}` are filled in. `-P`: no package of the current folder."""
    return [sys.executable, "-P", "-m", "ft.runtime.agent", "{store}", "--attempt", "{attempt}"]


def runtime_command(verb: str) -> list[str]:
    """Command line of a verb of `python -m ft.runtime`; the run folder follows."""
    return [sys.executable, "-P", "-m", "ft.runtime", verb]


def preflight_command(num_processes: int, arguments: Sequence[str]) -> list[str]:
    """Command line of a preflight on this machine; torchrun ends with 1 whatever it found, the report says more."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [sys.executable, "-P", "-m", *torchrun, "--max-restarts=0"]
    return [*command, "-m", "ft.runtime.preflight", *arguments]


def die_with(parent: int, signum: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn`: the child gets `signum` when `parent`, the process that starts it, dies, even by SIGKILL."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)

    return ask


def require_torch() -> None:
    """Raises: DependencyError naming the extra."""
    if _version("torch") is None:
        raise DependencyError("a preflight here needs torch", extra="train")


def train_versions() -> dict[str, str | None]:
    """Installed version of each package that training needs; None where it is missing. Imports nothing."""
    return {name: _version(name) for name in TRAIN_PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name) if util.find_spec(name) else None
    except (metadata.PackageNotFoundError, ImportError, ValueError):
        return None


def require_train() -> None:
    """Raises: DependencyError naming the extra, before a run is made that could not start."""
    missing = [name for name, version in train_versions().items() if version is None]
    if missing:
        raise DependencyError(f"training here needs {', '.join(missing)}", extra="train")
