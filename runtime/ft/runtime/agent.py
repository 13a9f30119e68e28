"""Node supervisor of ONE attempt: preflight and worker as children, signals, status, exit code.

`python -m ft.runtime.agent STORE --attempt N`. Imports no torch, not even indirectly. Ends with an exit code
of `runstore.ExitCode`, or 128+9 if a rank died by a signal without a word.

With several nodes each has an agent and a store of its own, and says how the attempt ended as it saw it: where only
ranks of another node are missing that is `Reason.LOST_PEER`. `runstore` says what becomes of all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from ft.recipes.digest import digest_of
from ft.recipes.errors import PlanError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    ATTEMPT_LOCK,
    ATTEMPTS,
    RANKS_LOCK,
    Event,
    ExitCode,
    RankExit,
    Reason,
)
from ft.recipes.simulate import Simulation, parse_simulation
from ft.recipes.store import LocalStore
from ft.runtime.adjust import adjusted, after_out_of_memory, described
from ft.runtime.blame import named
from ft.runtime.ends import AttemptError
from ft.runtime.limits import Limits, billed_s
from ft.runtime.node import Node, child_env, children_of, die_with_parent
from ft.runtime.ranks import LINGER_S, SCRATCH, RankEnd, Ranks, explain, is_lost_elsewhere
from ft.runtime.stillness import Stillness
from ft.runtime.stop import STOP_FILE, Request, StopFlag, leave_request
from ft.runtime.telling import Telling
from ft.runtime.work import lay_out

log = logging.getLogger("ft.agent")

LOCK_TIMEOUT_S = 60.0
POLL_S = 0.1
LATE_S = 10.0
"""Past the end of the grace: then a rank is stuck where it cannot stop."""
PREFLIGHT_TIMEOUT_S = 60
"""For one step of it."""
PREFLIGHT_ALL_S = 240.0
"""For all of it: a machine that needs longer is not worth waiting for."""
SILENT = "silent"
"""The kind of finding on a rank that is gone, or was never there."""
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
        *,
        exports: bool = True,
    ) -> None:
        """`exports`: False where the result is made of the last checkpoint, elsewhere."""
        self.store, self.attempt, self.node, self.stop = store, attempt, node, stop
        self.simulations, self.exports = simulations, exports
        self.folder = store.attempt_folder(attempt)
        self.began_at = time.time()
        self.telling = Telling(store, attempt)
        self._billed_before_s = billed_s(self.telling.before, store.get_status())
        self._limits: Limits | None = None
        self._passed_on = False
        self._waited_s: float | None = None
        """How long the last torchrun waited in vain for other nodes; None if it did not."""

    def run(self) -> int:
        """The attempt from the plan to the exit code."""
        self.telling.emit("attempt", mark="begin", host=self.node.hostname)
        try:
            plan = read_plan(self.store.plan_path)
            self._limits = Limits(plan.limits, self.began_at, self._billed_before_s)
            self._check_inputs(plan)
            work = lay_out(plan, self.store.root)
            self._end_if_stopping()
            self._preflight(plan)
            end = self._worker(plan, work)
        except PlanError as error:
            end = RankExit(ExitCode.CONFIG, Reason.CONFIG, error.message, 0)
        except AttemptError as error:
            end = RankExit(error.exit_code, error.reason, error.message, self._step)
        except Exception as error:
            log.exception("the agent failed")
            message = f"the agent failed: {type(error).__name__}: {error}"
            end = RankExit(ExitCode.UNCLASSIFIED, Reason.UNCLASSIFIED, message, self._step)
        log.info(
            "attempt %d ends: exit %d, %s, %s", self.attempt, end.exit_code, end.reason, end.message
        )
        self.telling.end(end, self._cost())
        return end.exit_code

    @property
    def _step(self) -> int:
        return self.telling.status.step

    def _cost(self) -> float | None:
        return self._limits.cost(time.time()) if self._limits is not None else None

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
        code = self._run_ranks("ft.runtime.preflight", arguments, plan, limit_s=PREFLIGHT_ALL_S)
        self._end_if_stopping()
        if time.monotonic() - began > PREFLIGHT_ALL_S:
            self._end_if_alone("preflight")
            message = f"{self.node.hostname}: preflight did not end within {PREFLIGHT_ALL_S:.0f} s"
            raise AttemptError(ExitCode.BAD_NODE, Reason.BAD_NODE, message)
        # torchrun ends with 1 whatever its ranks said, so the report decides. Without one a rank was killed.
        verdict = _read_json(report)
        if not verdict:
            self._end_if_alone("preflight")
            message = f"preflight ended with {code}, no report"
            if self.node.rank > 0:
                # Rank 0 writes it: it is there, or lost.
                raise AttemptError(ExitCode.BAD_NODE, Reason.LOST_PEER, message)
            raise AttemptError(ExitCode.UNCLASSIFIED, Reason.UNCLASSIFIED, message)
        if verdict.get("exit_code") != ExitCode.DONE:
            raise unfit(verdict, self._local_ranks(plan))
        for warning in _listed(verdict, "warnings"):
            message = f"preflight, {warning['host']}: {warning['message']}"
            self.telling.emit("log", level="warning", message=message)
        self.telling.emit(
            "phase", name="preflight", mark="end", seconds=round(time.monotonic() - began, 3)
        )

    def _local_ranks(self, plan: RunPlan) -> range:
        processes = plan.parallel.num_processes_per_node
        return range(self.node.rank * processes, (self.node.rank + 1) * processes)

    def _worker(self, plan: RunPlan, work: Path) -> RankExit:
        has_others = self.node.num_nodes > 1
        ranks = Ranks(self.folder, self._local_ranks(plan), has_others=has_others)
        ranks.stillness = Stillness(plan.parallel.ddp_timeout + LINGER_S)
        arguments = [str(self.store.root), "--attempt", str(self.attempt)]
        for order in self.simulations:
            arguments += ["--simulate", str(order)]
        if not self.exports:
            arguments.append("--no-export")
        code = self._run_ranks("ft.runtime.worker", arguments, plan, ranks, work=work)
        self.telling.follow()
        ends = ranks.ends()
        if code != 0:
            self._end_if_alone("training")
            end = named(explain(ends, step=self._step, has_others=has_others), self.folder)
            if has_others:
                end = self._lost(end, ends)
            return self._smaller_after(end, plan)
        step = max((end.end.step for end in ends if end.end), default=self._step)
        return RankExit(ExitCode.DONE, Reason.DONE, "done", step, time.time())

    def _lost(self, end: RankExit, ends: Sequence[RankEnd]) -> RankExit:
        """An end without a name whose cause is on another node; any other end as it is."""
        if end.reason != Reason.UNCLASSIFIED or not is_lost_elsewhere(ends):
            return end
        message = f"{self.node.others} is gone or does not answer: {end.message}"
        return replace(end, exit_code=ExitCode.BAD_NODE, reason=Reason.LOST_PEER, message=message)

    def _end_if_alone(self, what: str) -> None:
        """torchrun starts no rank before all nodes have come. Raises: AttemptError if they have not."""
        if self._waited_s is not None:
            message = f"{self.node.others} did not come to the {what} within {self._waited_s:.0f} s"
            raise AttemptError(ExitCode.BAD_NODE, Reason.LOST_PEER, message)

    def _smaller_after(self, end: RankExit, plan: RunPlan) -> RankExit:
        """Out of memory, once more with a smaller micro batch; any other end as it is."""
        phase = self.telling.status.phase
        if end.reason != Reason.OOM or phase not in {"train", "eval"}:
            # While loading or preparing data it is not the batch that is too large.
            return end
        adjust = after_out_of_memory(plan, self.store.get_adjust(), evaluating=phase == "eval")
        if adjust is None:
            return replace(end, message=f"{end.message}; not even a batch of 1 row fits")
        self.store.put_adjust(adjust)
        message = f"{end.message}; the next attempt uses {described(adjusted(plan, adjust))}"
        self.telling.emit("log", level="warning", message=message)
        return replace(end, exit_code=ExitCode.PREEMPTED, message=message)

    def _run_ranks(
        self,
        module: str,
        arguments: list[str],
        plan: RunPlan,
        ranks: Ranks | None = None,
        *,
        work: Path | None = None,
        limit_s: float = math.inf,
    ) -> int:
        """Run `module` on every local rank; meanwhile follow events, beat, watch control, signals and `ranks`.

        Ends it after `limit_s`, and where ranks that were asked to stop have not done so in time.
        """
        processes = plan.parallel.num_processes_per_node
        start, join_s = 0 if ranks is None else 1, min(plan.parallel.ddp_timeout, limit_s)
        torchrun = self.node.torchrun(processes, start=start, join_s=int(join_s))
        ranks_began = False
        child = subprocess.Popen(
            [sys.executable, "-P", *torchrun, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            start_new_session=not torchrun,  # As torchrun does it: a terminal's Ctrl-C is not theirs.
            env=child_env(processes, self.node),
            cwd=work or self.store.root,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  # single-threaded; no child may outlive the agent
        )
        began = time.monotonic()
        try:
            while child.poll() is None and time.monotonic() - began <= limit_s:
                time.sleep(POLL_S)
                local = children_of(child.pid) if torchrun else [child.pid]
                ranks_began = ranks_began or bool(local)
                self._watch(local, ranks)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        waited_s = time.monotonic() - began
        alone = self.node.num_nodes > 1 and not ranks_began and waited_s >= join_s
        self._waited_s = waited_s if alone else None
        return child.returncode

    def _watch(self, local: list[int], ranks: Ranks | None) -> None:
        """One look at everything. Raises: AttemptError if ranks have not stopped in time."""
        if ranks is not None:
            ranks.look()
            if ranks.lingers():
                ranks.signal(signal.SIGKILL)
            stuck = ranks.stand_still()
            if stuck is not None:
                raise AttemptError(ExitCode.UNCLASSIFIED, Reason.UNCLASSIFIED, stuck)
        self.telling.follow()
        self.telling.beat(self._cost())
        request = self._must_stop()
        if request is None:
            return
        self._pass_on_stop(local, ranks, request)
        if request.until is not None and time.time() > request.until + LATE_S:
            if ranks is not None:
                ranks.signal(signal.SIGKILL)
            message = (
                f"killed without saving, {LATE_S:.0f} s after its time was over: it did not come to "
                f"the end of a step; step {self.telling.status.checkpoint_step or 0} is saved"
            )
            raise AttemptError(request.exit_code, Reason(request.reason), message)

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
            request = self._limits.request(
                time.time(), save_s=self.telling.save_s, step_s=self.telling.step_s
            )
        return request

    def _simulate(self) -> None:
        """Faults of the whole machine that are due. They hit the first attempt: the next one is to go on."""
        age_s = time.time() - self.began_at
        for order in self.simulations if self.attempt == 1 else ():
            if order.fault == "kill" and age_s >= order.at:
                os.kill(os.getpid(), signal.SIGKILL)
            if order.fault == "preempt" and age_s >= order.at:
                self.stop.note()

    def _pass_on_stop(self, local: list[int], ranks: Ranks | None, request: Request) -> None:
        """Tell the ranks, not torchrun: it would end them before they have saved. A preflight has nothing to save."""
        if ranks is None:
            for pid in local:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif not self._passed_on:
            log.info("asked to stop (%s): telling the ranks", request.reason)
            leave_request(self.folder, request)
            ranks.signal(signal.SIGTERM)
            self._passed_on = True

    def _enter(self, phase: str) -> None:
        self.telling.emit("phase", name=phase, mark="begin")
        self.telling.follow()
        self.telling.beat(self._cost(), force=True)


def unfit(verdict: Mapping[str, object], here: Container[int]) -> AttemptError:
    """What a preflight that failed means for this node, whose ranks are `here`."""
    message = str(verdict.get("message"))
    if verdict.get("exit_code") == ExitCode.CONFIG:
        return AttemptError(ExitCode.CONFIG, Reason.CONFIG, message)
    # The first finding is the most telling one.
    first = next(iter(_listed(verdict, "findings")), {})
    is_lost = first.get("kind") == SILENT and first.get("rank") not in here
    reason = Reason.LOST_PEER if is_lost else Reason.BAD_NODE
    return AttemptError(ExitCode.BAD_NODE, reason, message)


def _listed(verdict: Mapping[str, object], name: str) -> list[dict[str, object]]:
    found = verdict.get(name)
    return found if isinstance(found, list) else []


def _read_json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextlib.contextmanager
def only_writer(store: LocalStore) -> Iterator[bool]:
    """Hold the store's attempt lock. False if another agent, or a rank of one, still writes after a minute."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with (
        (store.root / ATTEMPT_LOCK).open("a") as mine,
        (store.root / RANKS_LOCK).open("a") as theirs,
    ):
        alone = _lock(mine, deadline) and _lock(theirs, deadline)
        fcntl.flock(theirs, fcntl.LOCK_UN)  # Our own ranks share it from now on.
        yield alone


def _lock(stream: IO[str], deadline: float) -> bool:
    """Take an exclusive flock; False if somebody has it until `deadline`."""
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        else:
            return True


def main(argv: list[str] | None = None) -> int:
    node = Node.from_env()
    stop = StopFlag(grace_s=node.grace_s)
    stop.listen()
    parser = argparse.ArgumentParser(prog="python -m ft.runtime.agent")
    parser.add_argument("store", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--simulate", type=parse_simulation, action="append", default=[])
    parser.add_argument("--no-export", action="store_true")
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
            message = f"another attempt still writes to {store.root}"
            log.error("%s", message)
            # An event only: the status belongs to that other attempt.
            values = {"exit_code": 79, "reason": str(Reason.INFRA), "message": message}
            store.append_event(
                Event("attempt", time.time(), arguments.attempt, {"mark": "end", **values})
            )
            return ExitCode.DETERMINISTIC
        sweep(store)
        _forget_ranks(folder)
        try:
            return Agent(
                *(store, arguments.attempt, node, stop, arguments.simulate),
                exports=not arguments.no_export,
            ).run()
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
