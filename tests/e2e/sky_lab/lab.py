"""The lab: Slurm on loopback, SkyPilot's API server on top of it; or infra that the user has, with the user's server.

In a test: the fixture `sky_lab` of ../conftest.py. By hand: `python tests/e2e/sky_lab up|status|down`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from sky_lab.processes import LabError
from sky_lab.server import Server
from sky_lab.slurm import Cluster, client_settings

REPO = Path(__file__).resolve().parents[3]
FOLDER = Path("/opt/ft-sky-lab")
"""Short, outside of every home, and on one file system."""
WHICH = "E2E_SKY_INFRA"
"""Environment variable: infra as SkyPilot writes it (`slurm/mycluster`, `aws`), instead of a lab of our own."""
STORE = "E2E_SKY_STORE"
"""Environment variable: a bucket for runs there, `s3://BUCKET/PREFIX`; `AWS_…` of this environment open it."""
GPU_MEMORY_GB = {"H100": 80, "A100": 40}


@dataclass(frozen=True)
class Lab:
    """What runs here."""

    cluster: Cluster
    server: Server
    infra: str = "slurm/loop"
    environment: dict[str, str] = field(default_factory=dict)
    """To be laid over the environment of every process that uses SkyPilot."""

    @property
    def shared(self) -> Path:
        """A folder that this process and all nodes see under the same path."""
        return self.cluster.home

    @property
    def resources(self) -> dict[str, str]:
        """Of a small task, with pretend GPUs."""
        return {"infra": self.infra, "cpus": "1", "memory": "1", "accelerators": "H100:2"}

    def lose_allocation(self, job_name: str) -> None:
        """As if the nodes were preempted: the allocation of a managed job is cancelled behind SkyPilot's back."""
        (number,) = [n for n, name in self.cluster.allocations().items() if job_name in name]
        self.cluster.command("scancel", number)

    def up(self, *, until_parent_ends: bool = True) -> None:
        self.cluster.up(until_parent_ends=until_parent_ends)
        self.server.write_settings(client_settings(self.cluster), GPU_MEMORY_GB)
        self.server.up(until_parent_ends=until_parent_ends)

    def down(self) -> None:
        self.server.down()
        self.cluster.down()

    def status(self) -> str:
        return self.cluster.status() + f"{'api-server':10} {self.server.daemon.pid or 'down'}\n"


@dataclass(frozen=True)
class Elsewhere:
    """Infra that the user has, reached through the user's own SkyPilot. What only a lab has skips the test."""

    infra: str
    store: str
    """A bucket for runs; empty where none is given."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def resources(self) -> dict[str, str]:
        """Of a small task; it is paid for."""
        return {"infra": self.infra, "cpus": "2+"}

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        import pytest

        pytest.skip(f"needs {name} of a lab of our own, not of {self.infra}")


def lab(sky_python: Path, folder: Path = FOLDER, repo: Path = REPO) -> Lab:
    """Not raised yet. `sky_python` is of the environment with SkyPilot; jobs can read `repo` and all its Pythons."""
    environments = [path.parent.parent for path in (sky_python, repo / ".venv" / "bin" / "python")]
    readable = [repo, *environments, *(p for env in environments for p in _pythons(env))]
    visible = tuple(path for path in dict.fromkeys(readable) if path.exists())
    cluster = Cluster(folder, visible=visible, runtime=environments[0])
    server = Server(folder / "sky", sky_python)
    return Lab(cluster, server, f"slurm/{cluster.name}", server.environment)


def _pythons(environment: Path) -> list[Path]:
    """The installation of Python below a virtual environment: its `bin/python` is only a link."""
    python = environment / "bin" / "python"
    return [python.resolve().parents[1]] if python.exists() else []


@contextlib.contextmanager
def raised(sky_python: Path = Path(sys.executable), folder: Path = FOLDER) -> Iterator[Lab]:
    """A lab from an empty folder; nothing of it runs afterwards, not even if this process is killed.

    Raises: LabError if it cannot be raised, or another one is up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"another lab is up: {folder}/lock is held") from None
        found = lab(sky_python, folder)
        found.down()
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        try:
            found.up()
            yield found
        finally:
            found.down()


def elsewhere() -> Elsewhere | None:
    """The infra that the user names, if any."""
    infra = os.environ.get(WHICH, "")
    return Elsewhere(infra, os.environ.get(STORE, "").rstrip("/")) if infra else None
