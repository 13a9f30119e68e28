"""This machine, detached for real: a supervisor in its own session owns the run and outlives the terminal.

Beside the record: `supervisor.lock` (flock, held while the run lives; never a pid, which may be reused),
`supervisor.json` (written once the lock is held), `supervisor.log`, `outcome.json` (the end).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft.images.spec import ImageSpec
from ft.launcher.backends.base import Capability, Check, Handle, LogLine, Submission, Upload
from ft.launcher.facts import local_machine
from ft.launcher.inputs import stage
from ft.launcher.local_python import agent_command, require_train, train_versions
from ft.launcher.runs import Runs, data_home, is_locked
from ft.recipes.errors import PlanError, StoreError, SubmitError
from ft.recipes.paths import expand
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import INPUTS, PLAN, Control, JsonRecord, Reason, RunState, write_atomic
from ft.recipes.store import LocalStore

LOCK = "supervisor.lock"
SUPERVISOR = "supervisor.json"
OUTCOME = "outcome.json"
LOG = "supervisor.log"
START_TIMEOUT_S = 30.0
POLL_S = 0.05
KILL_TIMEOUT_S = 10.0
KILL_AGENT = signal.SIGUSR2
"""To the supervisor: the grace is over."""


@dataclass(frozen=True, slots=True)
class Outcome(JsonRecord):
    """How the run ended, written by the supervisor as its last act."""

    state: str
    reason: str
    exit_code: int
    message: str
    ended_at: float
    delivered_to: str = ""


@dataclass(frozen=True, slots=True)
class SupervisorInfo(JsonRecord):
    pid: int
    started_at: float


class LocalBackend:
    """Runs on this machine. See `ft.launcher.backends.base.Backend` for the contract."""

    name = "local"
    capabilities = Capability.DETACH | Capability.VOLUMES | Capability.EXEC

    def __init__(self, runs: Runs | None = None) -> None:
        self.runs = runs or Runs()

    def check(self) -> list[Check]:
        versions = train_versions()
        missing = [name for name, version in versions.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        machine = local_machine()
        return [
            Check("python", ok=True, message=sys.version.split()[0]),
            Check(
                "packages",
                ok=not missing,
                message=f"missing: {', '.join(missing)}" if missing else found,
                fix="pip install 'ft-launcher[train]'" if missing else "",
            ),
            Check("machine", ok=True, message=f"{machine.gpu}:{machine.num_processes_per_node}"),
            _can_write(self.runs.root),
            _can_write(data_home()),
        ]

    def prepare(
        self,
        plan: RunPlan,
        image: ImageSpec | None,
        *,
        uploads: tuple[Upload, ...],
        store: str | None,
    ) -> Submission:
        """There is no image: the run gets this Python. Raises: PlanError if this machine does not fit."""
        del image
        here, wanted = local_machine(), plan.parallel
        if wanted.num_nodes > 1:
            raise PlanError(
                f"cloud.nodes {wanted.num_nodes}: backend local is this one machine",
                hint="leave `nodes` out",
            )
        too_many = wanted.num_processes_per_node > here.num_processes_per_node
        if wanted.device == "cuda" and (here.gpu != wanted.gpu or too_many):
            raise PlanError(
                f"cloud.gpu {wanted.gpu}:{wanted.num_processes_per_node}: "
                f"this machine has {here.gpu}:{here.num_processes_per_node}",
                hint="--set cloud.gpu=cpu  trains on the CPU",
            )
        root = expand(store).absolute() if store else data_home() / "store"
        request: dict[str, Any] = {"command": agent_command(), "store": str(root / "{run}")}
        return Submission(self.name, request, plan.to_json(), uploads)

    def submit(self, submission: Submission, *, key: str) -> Handle:
        require_train()
        store = LocalStore(Path(str(submission.request["store"]).replace("{run}", key)))
        folder = self.runs.folder(key)
        handle = Handle(self.name, {"run": key, "store": store.uri})
        if is_locked(folder / LOCK):
            return handle
        try:
            (store.root / INPUTS).mkdir(parents=True, exist_ok=True)
            for upload in submission.uploads:
                stage(upload, store.root / INPUTS)
            write_atomic(store.root / PLAN, submission.plan_json)
        except OSError as error:
            raise SubmitError(
                f"{store.root}: {error.strerror}", hint="--set cloud.store=FOLDER"
            ) from error
        self._start(folder)
        return handle

    def _start(self, folder: Path) -> None:
        """Start the supervisor in a session of its own and wait until it holds the lock."""
        (folder / SUPERVISOR).unlink(missing_ok=True)  # Of one that was killed.
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ft.launcher.backends.local_supervisor", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (folder / SUPERVISOR).exists():
            if process.poll() is not None and not is_locked(folder / LOCK):
                tail = (folder / LOG).read_text(errors="replace").splitlines()[-5:]
                raise SubmitError("the supervisor did not start: " + " / ".join(tail))
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise SubmitError(
                    f"the supervisor did not start within {START_TIMEOUT_S:.0f} s; see {folder / LOG}"
                )
            time.sleep(POLL_S)

    def find(self, key: str) -> Handle | None:
        folder = self.runs.folder(key)
        if not (folder / SUPERVISOR).exists() and not is_locked(folder / LOCK):
            return None
        submission = self.runs.submission(key)
        store = str(submission.request["store"]).replace("{run}", key)
        return Handle(self.name, {"run": key, "store": store})

    def status(self, handle: Handle) -> RunState:
        folder = self.runs.folder(handle.values["run"])
        # The lock first: it is let go of after the outcome is written, so both cannot be missed.
        alive = is_locked(folder / LOCK)
        outcome = read_outcome(folder)
        if outcome is not None:
            return RunState(outcome.state)
        if not alive:
            return RunState.UNKNOWN
        store = self.store(handle)
        attempts = store.attempts()
        status = store.get_status()
        if status is None or not attempts:
            return RunState.QUEUED
        return (
            RunState.RUNNING
            if status.attempt == attempts[-1] and status.exit_code is None
            else RunState.RECOVERING
        )

    def explain(self, handle: Handle) -> str:
        folder = self.runs.folder(handle.values["run"])
        alive = is_locked(folder / LOCK)
        outcome = read_outcome(folder)
        if outcome is not None:
            return outcome.message
        if alive:
            return ""
        return "the supervisor is gone without a word: it was killed, or the machine was restarted"

    def delivered(self, handle: Handle) -> str:
        outcome = read_outcome(self.runs.folder(handle.values["run"]))
        return outcome.delivered_to if outcome is not None else ""

    def logs(
        self,
        handle: Handle,
        *,
        follow: bool,
        tail: int | None,
        since: datetime | None,
        rank: int | None,
    ) -> Iterator[LogLine]:
        store = self.store(handle)
        seen: dict[Path, int] = {}
        lines = list(_new_lines(store, rank, seen))
        if since is not None:
            lines = [line for line in lines if line.time is None or line.time >= since]
        yield from lines[-tail:] if tail is not None else lines
        while follow:
            ended = self.status(handle).ended or not is_locked(
                self.runs.folder(handle.values["run"]) / LOCK
            )
            yield from _new_lines(store, rank, seen)
            if ended:
                return
            time.sleep(0.2)

    def cancel(self, handle: Handle, *, grace_s: float) -> None:
        folder = self.runs.folder(handle.values["run"])
        if not is_locked(folder / LOCK):
            return
        self.store(handle).put_control(Control("stop", time.time(), by=f"pid {os.getpid()}"))
        if _let_go(folder, grace_s):
            return
        # The lock is held, so the pid is still the supervisor's. It kills the agent and writes the end.
        info = SupervisorInfo.from_json((folder / SUPERVISOR).read_bytes())
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.pid, KILL_AGENT)
        if not _let_go(folder, KILL_TIMEOUT_S):
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGKILL)
            message = f"cancelled; it did not save within {grace_s:.0f} s and was killed"
            end = Outcome(
                RunState.CANCELLED, Reason.CANCELLED, 128 + signal.SIGKILL, message, time.time()
            )
            write_atomic(folder / OUTCOME, end.to_json())

    def store(self, handle: Handle) -> LocalStore:
        return LocalStore(Path(handle.values["store"]))


def _let_go(folder: Path, timeout_s: float) -> bool:
    """Wait until no supervisor has the run."""
    deadline = time.monotonic() + timeout_s
    while is_locked(folder / LOCK):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def read_outcome(folder: Path) -> Outcome | None:
    try:
        return Outcome.from_json((folder / OUTCOME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / OUTCOME}: {error}") from error


def _new_lines(store: LocalStore, rank: int | None, seen: dict[Path, int]) -> Iterator[LogLine]:
    """Whole lines that were added since the last call, attempt by attempt."""
    sources = ["agent", "rank0"] if rank is None else [f"rank{rank}"]
    for attempt in store.attempts():
        for source in sources:
            path = store.attempt_folder(attempt) / f"{source}.log"
            if not path.is_file():
                continue
            with path.open("rb") as stream:
                stream.seek(seen.get(path, 0))
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            seen[path] = seen.get(path, 0) + len(whole)
            for text in whole.decode(errors="replace").splitlines():
                yield LogLine(text, attempt, source, _time_of(text))


def _time_of(text: str) -> datetime | None:
    """The time at the start of a line of ours: `2026-11-23T17:45:12Z …`."""
    stamp = text.split(" ", 1)[0]
    try:
        return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def _can_write(folder: Path) -> Check:
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    ok = os.access(nearest, os.W_OK)
    fix = "" if ok else "set XDG_STATE_HOME and XDG_DATA_HOME to folders of yours"
    return Check(
        "storage", ok=ok, message=f"{folder} {'can' if ok else 'cannot'} be written", fix=fix
    )
