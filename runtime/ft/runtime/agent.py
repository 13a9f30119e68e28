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
from pathlib import Path
from types import FrameType
from typing import Any

from ft.recipes.digest import digest_of
from ft.recipes.errors import PlanError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import Event, ExitCode, RankExit, Reason, Status
from ft.recipes.store import LocalStore
from ft.runtime.node import Node, child_env, children_of, die_with_parent

log = logging.getLogger("ft.agent")

ATTEMPT_LOCK = ".attempt.lock"
LOCK_TIMEOUT_S = 60.0
POLL_S = 0.1
HEARTBEAT_S = 1.0
KILLED = 128 + signal.SIGKILL
PREFLIGHT_TIMEOUT_S = 60
MIN_FREE_BYTES = 256 << 20


class AttemptError(Exception):
    """The attempt ends now, for a reason that is known."""

    def __init__(self, exit_code: int, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.reason, self.message = exit_code, reason, message


class Agent:
    """One attempt on this node."""

    def __init__(self, store: LocalStore, attempt: int, node: Node) -> None:
        self.store, self.attempt, self.node = store, attempt, node
        self.folder = store.attempt_folder(attempt)
        self.status = Status(attempt, "start", time.time())
        self.stop_requested = False
        self._offset = store.events()[1]
        self._written_at = 0.0
        self._signalled = False

    def run(self) -> int:
        """The attempt from the plan to the exit code."""
        self.emit("attempt", mark="begin", host=self.node.hostname)
        try:
            plan = read_plan(self.store.plan_path)
            self._check_inputs(plan)
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
            exit_code=end.exit_code,
            reason=end.reason,
            message=end.message,
        )
        self._heartbeat(force=True)
        self.emit(
            "attempt", mark="end", exit_code=end.exit_code, reason=end.reason, message=end.message
        )
        return end.exit_code

    def stop(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler: only notes it; the loop passes it on."""
        log.info("got %s", signal.Signals(signum).name)
        self.stop_requested = True

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
        if self.stop_requested:
            raise AttemptError(
                ExitCode.PREEMPTED, Reason.PREEMPTED, "stopped before training began"
            )
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
        code = self._torchrun(
            "ft.runtime.worker", [str(self.store.root), "--attempt", str(self.attempt)], plan
        )
        if code == 0:
            return RankExit(ExitCode.DONE, Reason.DONE, "done", self.status.step)
        self._follow_events()
        return self._explain_ranks(plan)

    def _explain_ranks(self, plan: RunPlan) -> RankExit:
        """The rank that ended the attempt. Its peers then fail in a collective; they are not the cause."""
        first = self.node.rank * plan.parallel.num_processes_per_node
        exits: dict[int, RankExit | None] = {}
        for rank in range(first, first + plan.parallel.num_processes_per_node):
            values = _read_json(self.folder / f"rank{rank}.exit.json")
            exits[rank] = RankExit.from_json(json.dumps(values)) if values else None
        said = [end for end in exits.values() if end is not None]
        for code in (ExitCode.DETERMINISTIC, ExitCode.CONFIG, ExitCode.BAD_NODE):
            found = next((end for end in said if end.exit_code == code), None)
            if found is not None:
                return found
        silent = [rank for rank, end in exits.items() if end is None]
        if silent:
            message = f"rank {silent[0]} died without a word at step {self.status.step}: killed, or out of memory"
            return RankExit(KILLED, Reason.KILLED, message, self.status.step)
        failed = [end for end in said if end.exit_code != ExitCode.DONE]
        return (
            failed[0]
            if failed
            else RankExit(KILLED, Reason.KILLED, "torchrun died", self.status.step)
        )

    def _torchrun(self, module: str, arguments: list[str], plan: RunPlan) -> int:
        """Run `module` on every local rank; meanwhile follow events, beat, watch control and signals."""
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
            preexec_fn=die_with_parent,  # noqa: PLW1509  # single-threaded; no child may outlive the agent
        )
        try:
            while child.poll() is None:
                time.sleep(POLL_S)
                self._follow_events()
                self._heartbeat()
                self._pass_on_stop(child.pid, module)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return child.returncode

    def _pass_on_stop(self, torchrun_pid: int, module: str) -> None:
        """Tell the ranks, not torchrun: it would end them before they have saved."""
        control = self.store.get_control()
        if control is not None and control.request == "stop":
            self.stop_requested = True
        if not self.stop_requested or self._signalled:
            return
        self._signalled = module == "ft.runtime.worker"
        for pid in children_of(torchrun_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if self._signalled else signal.SIGKILL)

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
    parser = argparse.ArgumentParser(prog="python -m ft.runtime.agent")
    parser.add_argument("store", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args(argv)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ agent %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    store = LocalStore(arguments.store)
    store.attempt_folder(arguments.attempt).mkdir(parents=True, exist_ok=True)
    with only_writer(store) as alone:
        if not alone:
            log.error("another attempt still writes to %s", store.root)
            return ExitCode.CONFIG
        _sweep(store)
        agent = Agent(store, arguments.attempt, Node.from_env())
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, agent.stop)
        return agent.run()


def _sweep(store: LocalStore) -> None:
    """Half-made folders of an attempt that was killed."""
    for folder in store.root.glob(".staging-*"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
