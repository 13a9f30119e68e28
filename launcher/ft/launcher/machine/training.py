"""Segments that train: attempts of an agent, watched and mirrored, until the run ends or goes elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ft.launcher.attempts import KILLED, note_missing_ends
from ft.launcher.ends import (
    ENDED_BY,
    Outcome,
    end_of_attempt,
    failed,
    newest_published,
    outcome,
    stop_asked,
    stopped,
)
from ft.launcher.facts import local_machine
from ft.launcher.local_python import agent_command, die_with
from ft.launcher.machine.cluster import MOMENT_S, Cluster, Company
from ft.launcher.machine.host import MACHINE, Host, Job
from ft.launcher.machine.stage import (
    CONTROL_EVERY_S,
    WORDS_EVERY_S,
    Stage,
    SupersededError,
    every,
)
from ft.launcher.machine.words import ENDING, PUBLISH_S
from ft.launcher.mirror import Mirror
from ft.recipes.catalog import GPUS
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    AttemptEnd,
    Control,
    ExitCode,
    Reason,
    RunState,
    verdict,
    write_atomic,
)

log = logging.getLogger("ft.machine")

POLL_S: Final = 0.2
LATE_S: Final = 5.0
DRAIN_S: Final = 60.0
"""Of a segment's time, for what comes behind the attempt; a fourth at most."""
LINGER_S: Final = 5.0
RENEW_S: Final = 15.0
RESTARTED_HERE_FROM: Final = 0.25
"""Share of a segment's time that has to be left for another attempt in it."""
DRIVERS_NAME: Final = {"A10": "A10G"}
"""A vendor's name of a GPU -> its driver's, where they differ: what Modal sells as an A10 is an A10G."""


class Training(Stage):
    """An agent on this machine, watched and mirrored."""

    def __init__(self, job: Job, cluster: Cluster, host: Host) -> None:
        super().__init__(job, cluster, host)
        self.interrupted: BaseException | None = None
        """What ended our watch of an attempt; it goes on its way once all is saved."""
        self.killed = False
        """The grace was over: the agent was killed before it had saved."""
        self._ending = 0
        self.publish_s = 0.0
        """What the longest upload of a checkpoint took."""

    def _run_agent(self, number: int, *beside: Callable[[], None]) -> int:
        """Start the agent of this machine and watch it; meanwhile do what is to be done `beside`, again and again."""
        fill = {"store": str(self.store.root), "attempt": str(number)}
        environment = {
            **os.environ,
            "FT_GRACE_S": f"{self.host.grace_s:g}",
            **self.cluster.environment(),
        }
        with (self.store.attempt_folder(number) / self.cluster.agent_log).open("ab") as stream:
            agent = subprocess.Popen(
                [word.format(**fill) for word in (*agent_command(), *self._more_words())],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.store.root,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509  only a system call
            )
        with contextlib.ExitStack() as stack:
            # First in, last out: what is beside is waited for, and that may be a long upload.
            stack.enter_context(every(RENEW_S, self._renew_ending))
            for work in beside:
                stack.enter_context(every(WORDS_EVERY_S, work))
            try:
                code = self._watch(agent, Company(self.cluster, number))
            except SupersededError:
                agent.kill()
                raise
            except BaseException as error:  # noqa: BLE001  KeyboardInterrupt, and what a vendor raises to cancel
                self.interrupted = error
                code = self._let_agent_save(agent, type(error).__name__)
            # What is beside may be in the middle of an upload, which is now waited for.
            self._note_ending()
            return code

    def _more_words(self) -> list[str]:
        return ["--no-export"] if self.host.exports_elsewhere else []

    def _watch(self, agent: subprocess.Popen[bytes], company: Company) -> int:
        asked_at = 0.0
        while True:
            if company.is_over():
                return self._let_agent_save(agent, "another machine has ended")
            if self.host.is_going():
                return self._let_agent_save(agent, "the machine is taken back")
            if self._left_s() < 0:
                return self._let_agent_save(agent, "the time of the segment is nearly over")
            try:
                code = agent.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() - asked_at >= CONTROL_EVERY_S:
                    asked_at = time.monotonic()
                    self._kill_if_late(agent, self._take_control())
            else:
                return code if code >= 0 else 128 - code

    def _left_s(self) -> float:
        """Of the segment's time, without what comes behind an attempt: its last upload above all."""
        whole = self.job.timeout_s
        if whole is None:
            return math.inf
        after = max(min(DRAIN_S, whole / 4), 2 * self.publish_s)
        return whole - (time.monotonic() - self.began) - min(after, whole / 2)

    def _note_ending(self) -> None:
        """From now on an upload may be on its way, which a cancel has to wait for."""
        self._ending = 1
        self._renew_ending()

    def _renew_ending(self) -> None:
        if self._ending and self.cluster.rank == 0:
            self._ending += 1
            self.words.put(ENDING, self._ending)

    def _kill_if_late(self, agent: subprocess.Popen[bytes], control: Control | None) -> None:
        if control is None or control.grace_s is None or self.killed:
            return
        late = LATE_S if control.grace_s else 0.0
        if time.time() > control.at + control.grace_s + late:
            log.info("the grace of %g s is over: killing the attempt", control.grace_s)
            self.killed = True
            agent.kill()

    def _let_agent_save(self, agent: subprocess.Popen[bytes], why: str) -> int:
        """Exit code of the agent, told to save and end; 137 if it was too late."""
        log.info("%s: the attempt is told to save", why)
        agent.send_signal(signal.SIGTERM)
        try:
            code = agent.wait(timeout=self.host.grace_s + LATE_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            code = agent.wait()
        return code if code >= 0 else 128 - code


class Segment(Training):
    """Attempts of training, until the run ends or another segment has to go on."""

    def work(self) -> dict[str, Any]:
        try:
            return super().work()
        finally:
            self.cluster.disband()

    def _work(self) -> dict[str, Any]:
        self.publish_s = float(self.words.get(PUBLISH_S) or 0.0)
        return self._attempts()

    def _attempts(self) -> dict[str, Any]:
        plan = read_plan(self.store.plan_path)
        self._note_earlier()
        ends = self.store.attempt_ends(after=self.job.resumed_after)
        lacks_result = bool(ends) and ends[-1].exit_code == ExitCode.DONE
        lacks_result = lacks_result and not self.mirror.has_final()
        if lacks_result and not self._is_to_be_exported(ends):
            # Its machine went before the result was here: it goes on from its newest checkpoint.
            ends[-1] = replace(ends[-1], exit_code=KILLED, reason=str(Reason.KILLED))
        while True:
            if self._take_control() is not None:
                return self._finish(self._stopped(ends))
            if self._is_to_be_exported(ends):
                return self._hand_over()
            if ends and not verdict(ends).restart:
                return self._ended(ends)
            if self.host.is_going():
                return self._hand_over()
            ends.append(self._attempt(plan))
            is_wanted = verdict(ends).restart and self._take_control() is None
            if is_wanted and self._goes_on_elsewhere(ends[-1]):
                return self._hand_over()

    def _is_to_be_exported(self, ends: Sequence[AttemptEnd] | None = None) -> bool:
        """Trained, and the last step saved where others see it; a result of its own the attempt has not made."""
        if ends is None:
            ends = self.store.attempt_ends(after=self.job.resumed_after)
        if not self.host.exports_elsewhere or not ends or ends[-1].exit_code != ExitCode.DONE:
            return False
        return ends[-1].step == newest_published(self.store) and not self.mirror.has_final()

    def _goes_on_elsewhere(self, end: AttemptEnd) -> bool:
        """Whether another attempt is for another machine, or has too little time left here."""
        elsewhere = end.exit_code in {ExitCode.HAND_OFF, ExitCode.BAD_NODE}
        is_late = self._left_s() < RESTARTED_HERE_FROM * (self.job.timeout_s or 0)
        return elsewhere or is_late or self.host.is_going() or self.cluster.is_going()

    def _note_earlier(self) -> None:
        """Ends of attempts that were taken away with their machine."""
        saved = newest_published(self.store)
        after = self.job.resumed_after
        for number in note_missing_ends(self.store, after=after, checkpoint_step=saved):
            log.info("attempt %d was lost with its machine", number)

    def _ended(self, ends: list[AttemptEnd]) -> dict[str, Any]:
        last, decision = ends[-1], verdict(ends)
        if last.exit_code == ExitCode.DONE:
            if not self.mirror.has_final():
                message = "training ended well, but nothing was exported"
                end = outcome(RunState.FAILED, Reason.INFRA, ExitCode.UNCLASSIFIED, message)
            else:
                end = outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, "done")
            return self._finish(end)
        if stop_asked(self.store) is not None or decision.reason in ENDED_BY:
            return self._finish(self._stopped(ends))
        return self._finish(failed(self.store, decision, last.exit_code, {}))

    def _stopped(self, ends: list[AttemptEnd]) -> Outcome:
        return stopped(self.store, self.job.run, ends, killed=self.killed, names={})

    def _attempt(self, plan: RunPlan) -> AttemptEnd:
        number = (self.store.attempts() or [0])[-1] + 1
        folder = self.store.attempt_folder(number)
        folder.mkdir(parents=True)
        self._note_machine(folder, plan)
        self._limit(plan)
        log.info("attempt %d in segment %d", number, self.job.segment)
        self._flush()  # Should the machine be lost, the next one knows that there was an attempt.
        self.cluster.begin(number)
        code = self._run_agent(number, self._flush, lambda: self._publish(plan))
        if self.cluster.size > 1:
            code = self._end_on_all(number, code, plan)
        end = self._end_attempt(number, code, plan)
        if self.interrupted is not None:
            # The machine is taken back, or somebody cancelled the call: the vendor goes on from here.
            raise self.interrupted
        return end

    def _end_on_all(self, number: int, code: int, plan: RunPlan) -> int:
        """The exit code over all nodes. What this one has saved goes up before the others are waited for.

        Machines that are taken back together have no time for each other.
        """
        self.cluster.tell_end(number, code, self.store)
        self._take_control()  # Another segment may have begun while this one saved.
        with every(RENEW_S, self._renew_ending):
            try:
                self._publish(plan)
                self._flush()
            except OSError as error:  # What counts comes behind the end of the attempt.
                log.warning("what was saved did not go up, tried again: %s", error)
            return self.cluster.end(number, self.store, MOMENT_S + self.host.grace_s + 2 * LATE_S)

    def _end_attempt(self, number: int, code: int, plan: RunPlan) -> AttemptEnd:
        self._take_control()  # Likewise, or while the others were waited for.
        # The service verified it when it was published; to hash it again would cost time that is not there.
        end = end_of_attempt(self.store, number, code, checkpoint_step=newest_published(self.store))
        self.store.put_attempt_end(number, end)
        log.info(
            "attempt %d ended at step %d (%s, exit code %d)",
            *(number, end.step, end.reason or "unknown", end.exit_code),
        )
        with every(RENEW_S, self._renew_ending):
            self._flush()
            self._publish(plan)
            self._flush()
        self._ending = 0
        if stop_asked(self.store) is None:  # Else it is dropped once the end of the run is written.
            self.words.drop(ENDING)
        return end

    def _publish(self, plan: RunPlan) -> None:
        if self.is_superseded:
            return
        began = time.monotonic()
        names = self.mirror.push_published(keep=plan.checkpoint.save_total_limit)
        took_s = time.monotonic() - began
        if names and took_s > self.publish_s:
            self.publish_s = took_s
            self.words.put(PUBLISH_S, took_s)
        for name in names:
            log.info("%s is in the copy", name)

    def _note_machine(self, folder: Path, plan: RunPlan) -> None:
        """Which machine this attempt got; another GPU than the one asked for is worth a warning."""
        machine = local_machine()
        facts = {
            "call": self.call,
            **self.host.facts(),
            "segment": self.job.segment,
            "gpu": machine.gpu,
            "gpus": machine.num_processes_per_node,
        }
        write_atomic(folder / MACHINE, json.dumps(facts))
        if plan.parallel.device == "cuda" and not was_asked_for(machine.gpu, self.job.gpus):
            message = f"asked for {' or '.join(self.job.gpus)}, got {machine.gpu}"
            self._tell("log", level="warning", message=message)

    def _limit(self, plan: RunPlan) -> None:
        """The attempt ends by itself before the vendor ends the segment."""
        if self.job.timeout_s is None:
            return
        limit = max(1, int(self._left_s()))
        limits = plan.limits.model_copy(update={"timeout_s": limit})
        limited = plan.model_copy(update={"limits": limits})
        write_atomic(self.store.plan_path, limited.to_json())


class Assistance(Training):
    """Another machine of a cluster: its agent, and what its ranks say. Node 0 does all else."""

    def __init__(self, job: Job, cluster: Cluster, host: Host) -> None:
        super().__init__(job, cluster, host)
        self.mirror = Mirror(self.store, host.medium, only=self._is_ours)

    def _is_ours(self, name: str) -> bool:
        """Ranks have their numbers among all; the files of node 0 are its own."""
        rank = re.match(r"rank(\d+)\.", name)
        if rank is None:
            return name == self.cluster.agent_log
        per_node = read_plan(self.store.plan_path).parallel.num_processes_per_node
        return int(rank[1]) // per_node == self.cluster.rank

    def _go_on(self) -> dict[str, Any]:
        return self._work()  # What comes next is for node 0 to say.

    def _work(self) -> dict[str, Any]:
        number = 0
        while number := self.cluster.next_attempt(number, is_over=lambda: self._left_s() < 0):
            self.host.reload()
            self.mirror.restore(plan_sha256=self.job.plan_sha256)
            self.store.attempt_folder(number).mkdir(parents=True, exist_ok=True)
            code = self._run_agent(number, self._flush)
            if self.host.is_going():
                self.cluster.tell_going()
            self.cluster.tell_end(number, code, self.store)
            self._flush()
            if self.interrupted is not None:
                raise self.interrupted
        time.sleep(LINGER_S)  # Where one machine of a cluster ends, the others do.
        return {"state": "assisted", "rank": self.cluster.rank}


def was_asked_for(gpu: str, asked: Sequence[str]) -> bool:
    """Whether a GPU by its name in the catalog is one of those that were asked for, by the vendor's names."""
    return any(_is_one(gpu, name) for name in asked)


def _is_one(gpu: str, asked: str) -> bool:
    if asked.endswith("+"):
        return _is_no_worse(gpu, asked.removesuffix("+"))
    name = asked.removesuffix("!")
    return gpu in {name, DRIVERS_NAME.get(name)} or gpu.startswith(f"{name}-")


def _is_no_worse(gpu: str, least: str) -> bool:
    """Of one that the catalog does not have nothing is said against it: newer ones come before their line there."""
    if gpu not in GPUS or least not in GPUS:
        return True
    got, wanted = GPUS[gpu], GPUS[least]
    return got.memory_gib >= wanted.memory_gib and got.capability >= wanted.capability
