"""A command beside a run on a plain cluster, by ssh as SkyPilot sets it up: streams apart, the exit code kept.

`sky exec` is a job in the cluster's queue: it waits there, its output is one stream with prefixes, its exit code is not
the command's. `sky status CLUSTER` writes what ssh needs, for every cloud, Kubernetes and Slurm.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ft.launcher.backends.sky_request import ROOT
from ft.recipes.errors import DependencyError, NotFoundError, UnreachableError

CONFIG: Final = "~/.sky/generated/ssh/{}"
KEY: Final = "~/.sky/generated/ssh-keys/{}.key"
SSH_FAILED: Final = 255
SKY: Final = "from sky.cli import cli; cli()"


def execute(
    asked: Mapping[str, Any], run: str, command: Sequence[str], *, node: int, takes_input: bool
) -> int:
    """Its exit code, 128+n after a signal; 255 also where ssh fails. Outputs and input are our own.

    `asked`: the request of the run, with the name of its cluster. Ctrl-C lets go; the command may go on there.
    Raises: NotFoundError if there is no such cluster any more; DependencyError without ssh.
    """
    name = str(asked["cluster"]["cluster_name"])
    if shutil.which("ssh") is None:
        raise DependencyError(
            "ft cloud exec goes by ssh, and there is none on this machine",
            hint="apt-get install openssh-client",
        )
    config = _config_of(name)
    host = name if node == 0 else f"{name}-worker{node}"
    key = Path(KEY.format(name)).expanduser()
    identity = ["-i", str(key)] if key.exists() else []
    quiet = ["-o", "LogLevel=ERROR"]
    words = ["ssh", "-T", "-F", str(config), *identity, *quiet, *([] if takes_input else ["-n"])]
    # Whatever the user's shell there is.
    line = f"bash -c {shlex.quote(_script(asked, run, node, command))}"
    return subprocess.run([*words, host, line], check=False).returncode


def _config_of(cluster: str) -> Path:
    """What ssh needs, written anew: the cluster may be another one of this name by now."""
    done = subprocess.run(
        [sys.executable, "-c", SKY, "status", cluster],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    path = Path(CONFIG.format(cluster)).expanduser()
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UnreachableError(f"sky status {cluster}: {said[-1]}")
    if not path.exists():
        raise NotFoundError(
            f"cluster {cluster} is gone, or not up", hint=f"sky status {cluster}  says more"
        )
    return path


def _script(asked: Mapping[str, Any], run: str, node: int, command: Sequence[str]) -> str:
    """In the environment that `setup` made, which has the code that finds the run there."""
    exports = [
        f"export {name}={shlex.quote(str(value))}" for name, value in asked["task"]["envs"].items()
    ]
    words = ["python", "-P", "-m", "ft.launcher.backends.sky_beside", run, str(node), *command]
    lines = [*exports, ROOT.rstrip("\n"), asked["activation"], f"exec {shlex.join(words)}"]
    return "\n".join(lines)
