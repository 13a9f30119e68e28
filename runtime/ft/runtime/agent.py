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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ft.recipes.digest import digest_of
from ft.recipes.errors import PlanError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import ATTEMPT_LOCK, ATTEMPTS, Event, ExitCode, RankExit, Reason, Status
from ft.recipes.simulate import Simulation, parse_simulation
from ft.recipes.store import LocalStore
from ft.runtime import signatures
from ft.runtime.adjust import adjusted, after_out_of_memory
from ft.runtime.ends import AttemptError
from ft.runtime.limits import Limits, billed_s
from ft.runtime.node import Node, child_env, children_of, die_with_parent
from ft.runtime.ranks import SCRATCH, Ranks, explain
from ft.runtime.signatures import Blame
from ft.runtime.stop import STOP_FILE, Request, StopFlag, leave_request

log = logging.getLogger("ft.agent")

LOCK_TIMEOUT_S = 60.0
POLL_S = 0.1
HEARTBEAT_S = 1.0
INNER_PHASES = frozenset({"save", "eval"})
"""They lie within `train`, which goes on after them."""
PREFLIGHT_TIMEOUT_S = 60
LOG_TAIL_BYTES = 64 << 10
BLAMED = {
    Blame.CONFIG: (ExitCode.CONFIG, Reason.CONFIG),
    Blame.BAD_NODE: (ExitCode.BAD_NODE, Reason.BAD_NODE),
    Blame.OOM: (ExitCode.DETERMINISTIC, Reason.OOM),
}
"""What a known line in a log makes of an end; the other kinds only explain it."""
MIN_FREE_BYTES = 256 << 20


class Agent:
    """One attempt on this node."""

    def __init__(
        self,
        store: LocalStore,
        attempt: int,
        node: Node,
        stop: StopFlag,
        simulations: Sequence[Simulation] = (),
    ) -> None:
        self.store, self.attempt, self.node, self.stop = store, attempt, node, stop
        self.simulations = simulations
        self.folder = store.attempt_folder(attempt)
        self.began_at = time.time()
        self.status = Status(attempt, "start", self.began_at)
        before, self._offset = store.events()
        self._billed_before_s = billed_s(before, store.get_status())
        self._limits: Limits | None = None
        self._save_s = 0.0
        self._written_at = 0.0
        self._passed_on = False

    def run(self) -> int:
        """The attempt from the plan to the exit code."""
        self.emit("attempt", mark="begin", host=self.node.hostname)
        try:
            plan = read_plan(self.store.plan_path)
            self._limits = Limits(plan.limits, self.began_at, self._billed_before_s)
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
            rank=end.rank,
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
        warnings = verdict.get("warnings")
        for warning in warnings if isinstance(warnings, list) else ():
            self.emit("log", level="warning", message=f"preflight: {warning}")
        self.emit("phase", name="preflight", mark="end", seconds=round(time.monotonic() - began, 3))

    def _worker(self, plan: RunPlan) -> RankExit:
        processes = plan.parallel.num_processes_per_node
        first = self.node.rank * processes
        ranks = Ranks(self.folder, range(first, first + processes))
        arguments = [str(self.store.root), "--attempt", str(self.attempt)]
        for order in self.simulations:
            arguments += ["--simulate", str(order)]
        code = self._torchrun("ft.runtime.worker", arguments, plan, ranks)
        self._follow_events()
        ends = ranks.ends()
        if code != 0:
            end = named(explain(ends, step=self.status.step), self.folder)
            return self._smaller_after(end, plan)
        step = max((end.end.step for end in ends if end.end), default=self.status.step)
        return RankExit(ExitCode.DONE, Reason.DONE, "done", step, time.time())

    def _smaller_after(self, end: RankExit, plan: RunPlan) -> RankExit:
        """Out of memory, once more with a smaller micro batch; any other end as it is."""
        if end.reason != Reason.OOM:
            return end
        before = self.store.get_adjust()
        adjust = after_out_of_memory(plan, before)
        if adjust is None:
            return replace(end, message=f"{end.message}; a micro batch of 1 row does not fit")
        self.store.put_adjust(adjust)
        optim = adjusted(plan, adjust).optim
        message = (
            f"{end.message}; the next attempt uses micro_batch_size {optim.micro_batch_size} and "
            f"gradient_accumulation_steps {optim.gradient_accumulation_steps}: the same global batch"
        )
        self.emit("log", level="warning", message=message)
        return replace(end, exit_code=ExitCode.PREEMPTED, message=message)

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
                    if ranks.lingers():
                        ranks.signal(signal.SIGKILL)
                self._follow_events()
                self._heartbeat()
                request = self._must_stop()
                if request is not None:
                    self._pass_on_stop(child.pid, ranks, request)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return child.returncode

    def _end_if_stopping(self) -> None:
        request = self._must_stop()
        if request is not None:
            because = f": {request.because}" if request.because else ""
            message = f"stopped before training began{because}"
            raise AttemptError(request.exit_code, Reason(request.reason), message)

    def _must_stop(self) -> Request | None:
        """What a signal, the launcher or a limit asks for; the launcher's word counts most."""
        self._simulate()
        control = self.store.get_control()
        if control is not None and control.request == "stop":
            until = None if control.grace_s is None else control.at + control.grace_s
            return Request(control.reason, until)
        request = self.stop.request()
        if request is None and self._limits is not None:
            request = self._limits.request(time.time(), self._save_s)
        return request

    def _simulate(self) -> None:
        """Faults of the whole machine that are due. They hit the first attempt: the next one is to go on."""
        age_s = time.time() - self.began_at
        for order in self.simulations if self.attempt == 1 else ():
            if order.fault == "kill" and age_s >= order.at:
                os.kill(os.getpid(), signal.SIGKILL)
            if order.fault == "preempt" and age_s >= order.at:
                self.stop.note()

    def _pass_on_stop(self, torchrun_pid: int, ranks: Ranks | None, request: Request) -> None:
        """Tell the ranks, not torchrun: it would end them before they have saved. A preflight has nothing to save."""
        if ranks is None:
            for pid in children_of(torchrun_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif not self._passed_on:
            log.info("asked to stop (%s): telling the ranks", request.reason)
            leave_request(self.folder, request)
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
                if event.kind == "checkpoint":
                    self._save_s = max(self._save_s, float(event.data["seconds"]))

    def _heartbeat(self, *, force: bool = False) -> None:
        now = time.time()
        if force or now - self._written_at >= HEARTBEAT_S:
            cost = self._limits.cost(now) if self._limits is not None else None
            self.status = replace(self.status, updated_at=now, cost=cost)
            self.store.put_status(self.status)
            self._written_at = now


def named(end: RankExit, folder: Path) -> RankExit:
    """An end without a name, with the name, cause and way out that its log tells; else as it is."""
    if end.reason not in {Reason.UNCLASSIFIED, Reason.KILLED}:
        return end
    known = signatures.explain(end.message)
    if known is None and end.rank is not None:
        known = signatures.explain(_last_words(folder / f"rank{end.rank}.log"))
    if known is None:
        return end
    message = f"{end.message}: {known.message}"
    # A death by signal is tried again, whatever the rank had to complain about before.
    blames = end.reason == Reason.UNCLASSIFIED or known.kind is Blame.BAD_NODE
    if known.kind not in BLAMED or not blames:
        return replace(end, message=message)
    code, reason = BLAMED[known.kind]
    return replace(end, exit_code=code, reason=reason, message=message)


def _last_words(log_file: Path) -> str:
    """The end of a rank's log, from its last traceback on: what it warned of before is no cause."""
    try:
        with log_file.open("rb") as stream:
            stream.seek(max(0, log_file.stat().st_size - LOG_TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return text[max(0, text.rfind("Traceback (most recent call last)")) :]


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
    node = Node.from_env()
    stop = StopFlag(grace_s=node.grace_s)
    stop.listen()
    parser = argparse.ArgumentParser(prog="python -m ft.runtime.agent")
    parser.add_argument("store", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--simulate", type=parse_simulation, action="append", default=[])
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
            return Agent(store, arguments.attempt, node, stop, arguments.simulate).run()
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
    for pattern in ("rank*.pid", "rank*.exit.json", "rank*.mark", STOP_FILE):
        for path in folder.glob(pattern):
            path.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
