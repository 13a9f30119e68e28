"""SkyPilot's API server in a home of its own, on a port of its own: the user's `~/.sky` is never touched.

A managed job's controller runs inside the server ("consolidation mode"), so there is no second machine for it.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sky_lab.processes import Daemon, LabError, wait_for
from sky_lab.slurm import SHIMS

PORT = 46980
"""SkyPilot moves its second port, 50011, along with this one."""
CATALOG = "v8"
"""The folder of catalogs that SkyPilot 0.14 reads; one that lacks a checksum counts as edited by hand and is kept."""


@dataclass(frozen=True)
class Server:
    """`home` holds everything that client and server keep."""

    home: Path
    python: Path
    """Of the environment that SkyPilot is installed in."""
    port: int = PORT

    @property
    def daemon(self) -> Daemon:
        return Daemon(self.home, "api-server")

    @property
    def environment(self) -> dict[str, str]:
        """What leads a client here and nowhere else: to be laid over the environment of a process."""
        return {
            "HOME": str(self.home),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            # Few workers: this one client needs no more, and each is a process of 200 MB.
            "SKYPILOT_POD_CPU_CORE_LIMIT": "1",
            "SKYPILOT_POD_MEMORY_GB_LIMIT": "6",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write_settings(self, files: Mapping[str, str], gpu_memory_gb: Mapping[str, int]) -> None:
        """Configuration, catalogs of pretend GPUs, and `files` (name below home -> text)."""
        clouds = "['Slurm']"
        catalog = f".sky/catalogs/{CATALOG}/common"
        gpus = "".join(f'{gpu},"{clouds}"\n' for gpu in gpu_memory_gb)
        sizes = "".join(f"{gpu},{size},NVIDIA\n" for gpu, size in gpu_memory_gb.items())
        ours = {
            ".sky/config.yaml": (
                "allowed_clouds: [slurm]  # Else a check asks all clouds there are.\n"
                "jobs:\n  controller:\n    consolidation_mode: true\n"
            ),
            f"{catalog}/accelerators.csv": "AcceleratorName,Clouds\n" + gpus,
            f"{catalog}/metadata.csv": "GPU,MemoryGB,Manufacturer\n" + sizes,
        }
        for name, text in {**ours, **files}.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def up(self, *, until_parent_ends: bool = True) -> None:
        """Idempotent; returns once it answers. Raises: LabError with the end of its log."""
        if not self.python.exists():
            raise LabError(f"{self.python} is not there: `make e2e-sky` makes it")
        if self.daemon.pid is None and self.healthy():
            raise LabError(f"{self.url} is taken by an API server that is not the lab's")
        environment = {
            **os.environ,
            **self.environment,
            "PYTHONPATH": str(SHIMS / "probe"),
            "PATH": f"{self.python.parent}:{os.environ.get('PATH', os.defpath)}",
        }
        command: list[str | Path] = [self.python.with_name("sky"), "api", "start", "--foreground"]
        self.daemon.start(command, environment=environment, until_parent_ends=until_parent_ends)
        try:
            wait_for(self._answers, 90, f"{self.url} does not answer")
        except LabError as error:
            raise LabError(f"{error}\n{self.daemon.tail()}") from None

    def down(self) -> None:
        """With its workers and the controllers of all managed jobs: they share its PID namespace."""
        self.daemon.stop()

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=5) as reply:
                return bool(json.load(reply)["status"] == "healthy")
        except (urllib.error.URLError, OSError, ValueError, KeyError):
            return False

    def _answers(self) -> bool:
        if self.daemon.pid is None:
            raise LabError("the API server has ended")
        return self.healthy()
