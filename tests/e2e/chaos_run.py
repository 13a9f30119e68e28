"""One run of the tiny model, what may happen to it, and what the harness sees of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos_judge import (
    KEEP,
    Attempt,
    Calm,
    Damage,
    Event,
    attempts_of,
    json_lines,
    losses_of,
)  # fmt: skip

KILL_AT = Path(__file__).with_name("kill_at.py")

MAX_STEPS, SAVE_STEPS = 18, 3
TEN_STEPS, TEN_SAVE_STEPS = 84, 2
DDP_TIMEOUT_S = 20
NAMED_WITHIN_S = DDP_TIMEOUT_S + 10 + 20
"""A stuck collective: its timeout, what the agent gives the others, and room for a busy machine."""
DEADLINE_S, TEN_DEADLINE_S = 420.0, 1800.0
"""Against hanging; a run takes about half a minute on two idle cores, and several times that on busy ones."""
POLL_S = 0.05
LOOK_S = 0.5


class MissedError(Exception):
    """The run was over before the fault could hit it: it is tried again."""


class HungError(Exception):
    """What should have happened did not, for a long time."""


Hit = Callable[["Run"], None]


def no_orders(rng: random.Random) -> list[str]:
    return []


def nothing(run: Run) -> None:
    """The fault was ordered with `--simulate` or FT_KILL_AT."""


def nothing_more(run: Run) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Fault:
    """One thing that may happen to a run."""

    what: str
    hit: Hit = nothing
    """Once it runs."""
    before: Hit = nothing
    ends: str = "same"
    """same: SUCCEEDED, bit for bit; done: SUCCEEDED, with other numbers; else FAILED for this reason."""
    ranks: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    orders: Callable[[random.Random], list[str]] = no_orders
    """For `--simulate`."""
    check: Callable[[Run], Iterable[str]] = nothing_more
    mounts: bool = False
    long: bool = False
    """Many kills in one run: once is enough."""

    @property
    def steps(self) -> tuple[int, int]:
        """(all, between two saves)"""
        steps = (TEN_STEPS, TEN_SAVE_STEPS) if self.long else (MAX_STEPS, SAVE_STEPS)
        return steps[0], self.recipe.get("save_steps", steps[1])

    @property
    def like(self) -> tuple[int, int]:
        """Faults with the same value are compared with the same undisturbed run."""
        return self.ranks, self.steps[0]


@dataclass(frozen=True)
class Process:
    pid: int
    role: str
    """agent, torchrun, preflight or worker."""
    attempt: int


ROLES = ("ft.runtime.agent", "torch.distributed.run", "ft.runtime.preflight", "ft.runtime.worker")


def processes_of(store: Path) -> list[Process]:
    """Living processes that were started for this store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        role = next((role for role in ROLES if role in words), None)
        if role is not None and any(str(store) in word for word in words):
            number = words[words.index("--attempt") + 1] if "--attempt" in words else "0"
            found.append(Process(int(path.parent.name), role.rpartition(".")[2], int(number)))
    return found


def is_locked(path: Path) -> bool:
    """Whether somebody holds the flock on `path`."""
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def kill(pids: Iterable[int], signum: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


class Run:
    """One run of the tiny model, with what the faults do to it."""

    NAME = "chaos"

    def __init__(
        self, fault: Fault, lab: Any, rng: random.Random, calm: Calm, halt: threading.Event
    ) -> None:
        self.fault, self.lab, self.rng, self.calm, self.halt = fault, lab, rng, calm, halt
        self.deadline = time.monotonic() + (TEN_DEADLINE_S if fault.long else DEADLINE_S)
        self.max_steps, self.save_steps = fault.steps
        self.damaged: list[Damage] = []
        self.problems: list[str] = []
        self.did: list[str] = []
        self.intervals = 1
        self.kills = 0
        """How often the faults with many kills do it."""
        self.spoiled = 0, ""
        """The row that cannot be read: its number, counted from 1, and its text."""
        self.mounts: list[Path] = []
        self.store = Path()
        self.left: list[Attempt] = []
        """What it did in the end, kept when its medium is gone."""
        self._looked = 0.0

    # What it was started with.

    def start(self) -> None:
        """`ft cloud run --detach`."""
        changes: dict[str, Any] = {
            "max_steps": self.max_steps,
            "save_steps": self.save_steps,
            "save_total_limit": KEEP,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "ddp_timeout": DDP_TIMEOUT_S,
            **self.fault.recipe,
        }
        cloud = {"gpu": f"cpu:{self.fault.ranks}" if self.fault.ranks > 1 else "cpu"}
        if self.fault.mounts:
            cloud["store"] = str(self.mount_tmpfs())
        recipe = self.lab.recipe(**changes, cloud=cloud)
        orders = [word for order in self.fault.orders(self.rng) for word in ("--simulate", order)]
        self.did += orders[1::2]
        command = ("cloud", "run", str(recipe), "--backend", "local", "--name", self.NAME)
        self.ft(*command, "--detach", *orders)
        if self.problems:
            raise HungError("it did not start")
        self.store = Path(self.record["store"])

    def order(self, point: str, step: int, *, rank: int = 0, signum: str = "SIGKILL") -> None:
        """Before `start`: hit a rank of the first attempt at a point of `kill_at.py`."""
        hooks = self.lab.folder / "hooks"
        hooks.mkdir()
        (hooks / "sitecustomize.py").symlink_to(KILL_AT)
        path = os.pathsep.join(filter(None, (str(hooks), self.lab.env.get("PYTHONPATH"))))
        order = f"{point} {step} {rank} 1 {signum}"
        new = {"PYTHONPATH": path, "FT_KILL_AT": order, "FT_KILL_LOG": str(self.hits)}
        self.lab = replace(self.lab, env={**self.lab.env, **new})
        self.did.append(f"{signum} at {point} of step {step}, rank {rank}")

    @property
    def hits(self) -> Path:
        """Where a process writes that it is about to be killed by an order."""
        return self.lab.folder / "hits"

    def mount_tmpfs(self) -> Path:
        """A medium of its own; a preflight wants 256 MiB of it free."""
        folder = self.lab.folder / "medium"
        folder.mkdir()
        mount("-t", "tmpfs", "-o", "size=400m", "ft-chaos", str(folder))
        self.mounts.append(folder)
        return folder

    # What can be seen of it.

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = self.lab.record(self.NAME)
        return record

    @property
    def folder(self) -> Path:
        """Of the record."""
        return self.lab.folder / "state" / "ft" / "runs" / self.record["id"]

    @property
    def events(self) -> list[Event]:
        if self.fault.mounts:
            return list(json_lines(self.store / "events.jsonl"))
        events: list[Event] = self.lab.events(self.store)
        return events

    @property
    def step(self) -> int:
        return max(losses_of(self.events), default=0)

    @property
    def attempts(self) -> list[Attempt]:
        return attempts_of(self.events) if self.store != Path() else []

    @property
    def attempt(self) -> int:
        """The newest one."""
        return max((event["attempt"] for event in self.events), default=0)

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.store / "checkpoints").glob("step-*"))

    def supervisor(self) -> int:
        return int(json.loads((self.folder / "supervisor.json").read_text())["pid"])

    def pids(self, *roles: str) -> list[int]:
        return [p.pid for p in processes_of(self.store) if p.role in roles]

    # What the harness does.

    def ft(self, *arguments: str, fails: bool = False) -> str:
        done = self.lab.ft(*arguments, timeout_s=max(10.0, self.deadline - time.monotonic()))
        if (done.returncode != 0) is not fails:
            self.problems.append(f"ft {' '.join(arguments)}: exit {done.returncode}: {done.stderr}")
        return str(done.stdout + done.stderr)

    def wait(self, condition: Callable[[], Any], what: str, *, running: bool = True) -> Any:
        """The first true value. Raises: HungError; MissedError if the run ends before (`running`)."""
        while not (value := condition()):
            if running and (self.folder / "outcome.json").exists() and not condition():
                raise MissedError(f"the run ended before: {what}")
            if time.monotonic() > self.deadline:
                raise HungError(f"it hung before: {what}")
            if self.halt.is_set():
                raise HungError(f"interrupted before: {what}")
            self.look()
            time.sleep(POLL_S)
        return value

    def look(self) -> None:
        """Two attempts must never have a worker at the same time."""
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            at_work = {p.attempt for p in processes_of(self.store) if p.role == "worker"}
            if len(at_work) > 1:
                self.problems.append(f"attempts {sorted(at_work)} had workers at the same time")

    def pause(self, most_s: float) -> None:
        """A random while."""
        until = time.monotonic() + self.rng.uniform(0, most_s)
        while time.monotonic() < until:
            time.sleep(min(POLL_S, max(0.0, until - time.monotonic())))

    def after_a_step(self, first: int = 1, last: int | None = None) -> int:
        """Wait for a random step, and a little more."""
        step = self.rng.randint(first, last or self.max_steps - 4)
        self.wait(lambda: self.step >= step, f"step {step}")
        self.pause(0.2)
        return step

    def hit(self, pids: Sequence[int], what: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """Raises: MissedError if nobody is there any more."""
        if not pids or (self.folder / "outcome.json").exists():
            raise MissedError(f"no {what} to hit")
        kill(pids, signum)
        self.did.append(f"{signum.name} to {what} at step {self.step}")

    def outcome(self) -> dict[str, Any]:
        """Wait for the end."""
        path = self.folder / "outcome.json"
        self.wait(path.exists, "its end", running=False)
        end: dict[str, Any] = json.loads(path.read_text())
        return end

    def fails(self, *words: str, reasons: Sequence[str] = ("infra",)) -> None:
        """It has to end as FAILED, with these words in its message."""
        end = self.outcome()
        missing = [word for word in words if word not in end["message"]]
        if end["state"] != "FAILED" or end["reason"] not in reasons or missing:
            self.problems.append(f"expected FAILED, {reasons}, {words}; it ended as {end}")

    def resume(self) -> None:
        self.ft("cloud", "resume", self.NAME, "--detach")
        self.did.append("resume")

    def damage(self, folder: Path, how: Callable[[Path, random.Random], None]) -> None:
        how(folder, self.rng)
        self.damaged.append(Damage(folder.name, time.time()))
        self.did.append(f"{how.__name__} {folder.name}")

    def clean_up(self) -> None:
        """Nothing of this run stays: no process, no mount."""
        if self.store != Path():
            with contextlib.suppress(OSError, ValueError):
                if is_locked(self.folder / "supervisor.lock"):
                    kill([self.supervisor()])
            while left := processes_of(self.store):
                kill(p.pid for p in left)
                time.sleep(POLL_S)
        self.left = self.attempts
        if self.mounts and self.problems:
            shutil.copytree(self.store, self.lab.folder / "store", symlinks=True)
        for folder in reversed(self.mounts):
            subprocess.run(["umount", "-l", str(folder)], check=False)
        self.mounts.clear()


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount("-t", "tmpfs", "-o", "size=1m", "ft-chaos", folder)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
    return True
