"""Node supervisor of ONE attempt: preflight and worker as torchrun children, signals, status, exit code.

`python -m ft.runtime.agent STORE --attempt N`. Imports no torch, not even indirectly. Ends with an exit code
of `runstore.ExitCode`, or 128+9 if a rank died by a signal without a word.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ft.recipes.digest import digest_of
from ft.recipes.errors import PlanError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import ATTEMPTS, Event, ExitCode, RankExit, Reason, Status
from ft.recipes.store import LocalStore
from ft.runtime.node import Node, child_env, children_of, die_with_parent
from ft.runtime.ranks import SCRATCH, Ranks, explain
from ft.runtime.stop import STOP_FILE, StopFlag, leave_request

log = logging.getLogger("ft.agent")

ATTEMPT_LOCK = ".attempt.lock"
LOCK_TIMEOUT_S = 60.0
POLL_S = 0.1
HEARTBEAT_S = 1.0
INNER_PHASES = frozenset({"save", "eval"})
"""They lie within `train`, which goes on after them."""
PREFLIGHT_TIMEOUT_S = 60
MIN_FREE_BYTES = 256 << 20


class AttemptError(Exception):
    """The attempt ends now, for a reason that is known."""

    def __init__(self, exit_code: int, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.reason, self.message = exit_code, reason, message


class Agent:
    """One attempt on this node."""

    def __init__(self, store: LocalStore, attempt: int, node: Node, stop: StopFlag) -> None:
        self.store, self.attempt, self.node, self.stop = store, attempt, node, stop
        self.folder = store.attempt_folder(attempt)
        self.status = Status(attempt, "start", time.time())
        self._offset = store.events()[1]
        self._written_at = 0.0
        self._passed_on = False

    def run(self) -> int:
        """The attempt from the plan to the exit code."""
        self.emit("attempt", mark="begin", host=self.node.hostname)
        try:
            plan = read_plan(self.store.plan_path)
            self._check_inputs(plan)
            self._end_if_stopping()
            self._preflight(plan)
            end = self._worker(plan)
        except PlanError as error:
            end = RankExit(ExitCode.CONFIG, Reason.CONFIG, error.message, 0)
        except AttemptError as error:
            end = RankExit(error.exit_code, error.reason, error.message, self.status.step)
        log.info(
            "attempt %d ends: exit %d, %s, %s", self.attempt, end.exit_code, end.reason, end.message
        )
        self._follow_events()
        self.status = replace(
            self.status,
            phase="end",
            step=end.step,
            exit_code=end.exit_code,
            reason=end.reason,
            message=end.message,
        )
        self._heartbeat(force=True)
        self.emit(
            "attempt", mark="end", exit_code=end.exit_code, reason=end.reason, message=end.message
        )
        return end.exit_code

    def emit(self, kind: str, **data: object) -> None:
        self.store.append_event(Event(kind, time.time(), self.attempt, data))

    def _check_inputs(self, plan: RunPlan) -> None:
        for item in plan.inputs:
            path = self.store.root / item.path
            if not path.exists():
                raise AttemptError(ExitCode.CONFIG, Reason.CONFIG, f"{item.path} is missing")
            if digest_of(path) != item.sha256:
                message = f"{item.path} is not the file that was planned: its sha256 is another"
                raise AttemptError(ExitCode.CONFIG, Reason.CONFIG, message)

    def _preflight(self, plan: RunPlan) -> None:
        report = self.folder / "preflight.json"
        arguments = ["--device", plan.parallel.device, "--disk", str(self.store.root)]
        arguments += ["--min-free-bytes", str(MIN_FREE_BYTES), "--json-out", str(report)]
        arguments += ["--timeout-s", str(PREFLIGHT_TIMEOUT_S)]
        self._enter("preflight")
        began = time.monotonic()
        code = self._torchrun("ft.runtime.preflight", arguments, plan)
        self._end_if_stopping()
        # torchrun ends with 1 whatever its ranks said, so the report decides. Without one a rank was killed.
        verdict = _read_json(report)
        if not verdict:
            raise AttemptError(
                ExitCode.UNCLASSIFIED,
                Reason.UNCLASSIFIED,
                f"preflight ended with {code}, no report",
            )
        if verdict.get("exit_code") != ExitCode.DONE:
            known = (
                ExitCode.CONFIG
                if verdict.get("exit_code") == ExitCode.CONFIG
                else ExitCode.BAD_NODE
            )
            reason = Reason.CONFIG if known == ExitCode.CONFIG else Reason.BAD_NODE
            raise AttemptError(known, reason, str(verdict.get("message")))
        self.emit("phase", name="preflight", mark="end", seconds=round(time.monotonic() - began, 3))

    def _worker(self, plan: RunPlan) -> RankExit:
        processes = plan.parallel.num_processes_per_node
        first = self.node.rank * processes
        ranks = Ranks(self.folder, range(first, first + processes))
        arguments = [str(self.store.root), "--attempt", str(self.attempt)]
        code = self._torchrun("ft.runtime.worker", arguments, plan, ranks)
        self._follow_events()
        ends = ranks.ends()
        if code != 0:
            return explain(ends, step=self.status.step)
        step = max((end.end.step for end in ends if end.end), default=self.status.step)
        return RankExit(ExitCode.DONE, Reason.DONE, "done", step, time.time())

    def _torchrun(
        self, module: str, arguments: list[str], plan: RunPlan, ranks: Ranks | None = None
    ) -> int:
        """Run `module` on every local rank; meanwhile follow events, beat, watch control, signals and `ranks`."""
        processes = plan.parallel.num_processes_per_node
        command = [
            sys.executable,
            "-P",
            "-m",
            "torch.distributed.run",
            *self.node.torchrun(processes),
        ]
        child = subprocess.Popen(
            [*command, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            env=child_env(processes),
            cwd=self.store.root,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  # single-threaded; no child may outlive the agent
        )
        try:
            while child.poll() is None:
                time.sleep(POLL_S)
                if ranks is not None:
                    ranks.look()
                self._follow_events()
                self._heartbeat()
                if self._must_stop():
                    self._pass_on_stop(child.pid, ranks)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return child.returncode

    def _end_if_stopping(self) -> None:
        if self._must_stop():
            message = "stopped before training began"
            raise AttemptError(ExitCode.PREEMPTED, Reason.PREEMPTED, message)

    def _must_stop(self) -> bool:
        """Whether a signal or the launcher asked for it."""
        control = self.store.get_control()
        if control is not None and control.request == "stop":
            self.stop.requested = True
        return self.stop.requested

    def _pass_on_stop(self, torchrun_pid: int, ranks: Ranks | None) -> None:
        """Tell the ranks, not torchrun: it would end them before they have saved. A preflight has nothing to save."""
        if ranks is None:
            for pid in children_of(torchrun_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif not self._passed_on:
            log.info("asked to stop: telling the ranks")
            leave_request(self.folder)
            ranks.signal(signal.SIGTERM)
            self._passed_on = True

    def _enter(self, phase: str) -> None:
        self.emit("phase", name=phase, mark="begin")
        self._follow_events()
        self._heartbeat(force=True)

    def _follow_events(self) -> None:
        events, self._offset = self.store.events(offset=self._offset)
        for event in events:
            if event.attempt == self.attempt:
                self.status = advance(self.status, event)

    def _heartbeat(self, *, force: bool = False) -> None:
        now = time.time()
        if force or now - self._written_at >= HEARTBEAT_S:
            self.status = replace(self.status, updated_at=now)
            self.store.put_status(self.status)
            self._written_at = now


def advance(status: Status, event: Event) -> Status:
    """Status after `event`. Pure."""
    data = event.data
    if event.kind == "phase" and data.get("mark") == "begin":
        return replace(status, phase=data["name"])
    if event.kind == "phase" and data.get("name") in INNER_PHASES:
        return replace(status, phase="train")
    if event.kind == "progress":
        step, total = data["step"], data["total_steps"]
        return replace(status, step=step, total_steps=total, last_step_at=event.time)
    if event.kind == "step":
        names = ("step", "total_steps", "epoch", "loss", "tokens_per_s", "trained_tokens")
        values: dict[str, Any] = {name: data.get(name) for name in names}
        return replace(status, last_step_at=event.time, **values)
    if event.kind == "resume":
        return replace(status, step=data["step"], checkpoint_step=data["step"])
    if event.kind == "checkpoint":
        return replace(status, checkpoint_step=data["step"])
    return status


def _read_json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextlib.contextmanager
def only_writer(store: LocalStore) -> Iterator[bool]:
    """Hold the store's attempt lock. False if another agent still has it after a minute."""
    with (store.root / ATTEMPT_LOCK).open("a") as stream:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(POLL_S)
            else:
                yield True
                return


def main(argv: list[str] | None = None) -> int:
    stop = StopFlag()
    stop.listen()
    parser = argparse.ArgumentParser(prog="python -m ft.runtime.agent")
    parser.add_argument("store", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args(argv)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ agent %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    store = LocalStore(arguments.store)
    folder = store.attempt_folder(arguments.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(store) as alone:
        if not alone:
            log.error("another attempt still writes to %s", store.root)
            return ExitCode.CONFIG
        sweep(store)
        _forget_ranks(folder)
        try:
            return Agent(store, arguments.attempt, Node.from_env(), stop).run()
        finally:
            sweep(store)


def sweep(store: LocalStore) -> None:
    """Remove what only a living attempt needs, and one that was killed leaves behind."""
    attempts = store.root / ATTEMPTS
    for folder in (
        *store.root.glob(".staging-*"),
        *store.root.glob(".old-*"),
        *store.checkpoints.glob(".old-*"),
        *attempts.glob(f"*/{SCRATCH}*"),
    ):
        shutil.rmtree(folder, ignore_errors=True)


def _forget_ranks(folder: Path) -> None:
    """Files of this attempt's ranks, should somebody have begun it before."""
    for pattern in ("rank*.pid", "rank*.exit.json", STOP_FILE):
        for path in folder.glob(pattern):
            path.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
