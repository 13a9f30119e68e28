"""Processes that go with all that they started: each is the first of a PID namespace, so that its end ends them all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
INIT = ("bash", "-c", '"$@" & wait $!', "init")
"""The first process of the namespace. It reaps what loses its parent, and stays root: a process that changes its user
is not told any more that its parent died."""


class LabError(RuntimeError):
    """The lab cannot be raised; the message says why and what helps."""


@dataclass(frozen=True)
class Daemon:
    """One process by its pid file. `folder` holds `run/NAME.pid` and `log/NAME.log`."""

    folder: Path
    name: str

    @property
    def pid_file(self) -> Path:
        return self.folder / "run" / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.folder / "log" / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The pid if it runs. A pid that another program has by now does not count."""
        try:
            words = self.pid_file.read_text().split()
            started = _start_time(int(words[0]))
        except (OSError, ValueError, IndexError):
            return None
        return int(words[0]) if started == words[1] else None

    def start(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        namespaces: Sequence[str] = (),
        until_parent_ends: bool = True,
    ) -> None:
        """Nothing if it runs already. With `until_parent_ends` even a killed caller leaves nothing behind."""
        if self.pid is not None:
            return
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        tied = ("setpriv", "--pdeathsig", "KILL") if until_parent_ends else ()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*tied, *NAMESPACES, *namespaces, *INIT, *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )  # fmt: skip
        self.pid_file.write_text(f"{process.pid} {_start_time(process.pid)}\n")

    def stop(self) -> None:
        """With everything that it started. Returns once it is gone."""
        pid = self.pid
        if pid is not None:
            # `unshare` takes its child along, the first process of the namespace, and that takes all others.
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self.pid is None or _reaped(pid), 20, f"{self.name} does not end")
        self.pid_file.unlink(missing_ok=True)

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _reaped(pid: int) -> bool:
    """Is this a child of ours that has ended?"""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def _start_time(pid: int) -> str:
    """In clock ticks since the machine started. Raises: OSError if there is no such process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]


def wait_for(condition: Callable[[], object], timeout_s: float, otherwise: str) -> None:
    """Raises: LabError with `otherwise` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{otherwise} within {timeout_s:g} s")
        time.sleep(0.1)


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """What it prints. Raises: LabError with its errors if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False,
        env=None if environment is None else dict(environment),
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
