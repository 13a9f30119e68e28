"""What tests of images need: a store of their own, a base image from the distribution, pip as it is configured here.

Nothing of it touches the user's images. The base and what was built on it stay in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NEEDED: Final = ("podman", "buildah", "runc", "debootstrap", "docker-registry")
"""Debian packages, and the programs in them."""
PACKAGES_OF_BASE: Final = "ca-certificates,python3,python3-pip,python-is-python3"
SUITE: Final = "bookworm"
"""With the Python that images have, 3.11."""


def missing() -> list[str]:
    return [name for name in NEEDED if not shutil.which(name, path=_path())]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Engine:
    """podman and buildah with a store, limits and a runtime of their own."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": _path(),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
        }

    def configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/store"\nrunroot = "{self.folder}/run"\n'
        )
        # Limits below the hard ones of where tests run: a runtime may not raise them without CAP_SYS_RESOURCE.
        (self.folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n[engine]\nruntime = "runc"\n'
        )

    def run(self, *command: str, check: bool = True, timeout_s: float = 900) -> str:
        done = subprocess.run(
            command,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def import_base(self, name: str) -> None:
        """A small Debian with Python under the name that Dockerfiles begin with."""
        if self.run("podman", "images", "--quiet", name):
            return
        root = self.folder / "base"
        if not (root / "finished").exists():
            shutil.rmtree(root, ignore_errors=True)
            include = f"--include={PACKAGES_OF_BASE}"
            self.run("debootstrap", "--variant=minbase", include, SUITE, str(root))
            # Python's own image lets pip install; the distribution's Python has a file that forbids it.
            for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                marker.unlink()
            shutil.rmtree(root / "var/cache/apt")
            (root / "finished").touch()
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["podman", "import", "-", name],
                stdin=tar.stdout, env={**os.environ, **self.env}, capture_output=True, check=True,
            )  # fmt: skip


def pip_volumes(folder: Path) -> list[str]:
    """Arguments of a build that let pip in it find what pip finds here; nothing of them stays in the image."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    values: dict[str, str] = {}
    # Variables of the environment come first in the list, and win.
    for line in lines:
        if found := re.fullmatch(r"[^=]*?\.([a-z-]+)='(.*)'", line):
            values.setdefault(found[1], found[2])
    values.pop("disable-pip-version-check", None)
    paths = {word.removeprefix("file://") for value in values.values() for word in value.split()}
    here = sorted(Path(path) for path in paths if path.startswith("/") and Path(path).exists())
    # An index of files refers to what lies beside it.
    mounted = [path.parent if path.name == "simple" else path for path in here]
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
    volumes = [f"{config}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in mounted)]
    return [word for volume in volumes for word in ("--volume", volume)]


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry on loopback; yields `127.0.0.1:PORT`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "registry.yml")], stdout=log, stderr=log
        )
    try:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the registry did not start"
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)
        else:
            return
