"""What runs in containers on Modal: rows on a CPU, then attempts on GPUs, one segment of a run after the other.

A call is a segment. Modal starts its input anew when it takes the machine back: that is another attempt of the same
segment. A segment that has to end (24 hours, a bad machine) notes that there is a next one, spawns it and returns. A
claim in the run's Dict says which call holds a segment, so that a second one, spawned after a lost reply, ends at once;
and a segment that sees a later one begin ends as well.

The run lies on the container's own disk; a mirror on the volume is what outlives it (`mirror.py`). So no file of the
volume is open while it is committed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import modal

from ft.launcher.attempts import KILLED, note_missing_ends
from ft.launcher.backends.modal_cluster import MOMENT_S, Cluster, Company
from ft.launcher.backends.modal_request import STORE
from ft.launcher.backends.modal_words import (
    CONTROL,
    CURRENT,
    ENDING,
    Words,
    call_of,
    holder_of,
    next_of,
)
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
from ft.launcher.local_python import agent_command, die_with, runtime_command
from ft.launcher.mirror import OUTCOME, SUPERVISOR_LOG, Mirror, replace_file
from ft.recipes.digest import digest_of
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    AttemptEnd,
    Control,
    Event,
    ExitCode,
    Reason,
    RunState,
    verdict,
    write_atomic,
)
from ft.recipes.store import LocalStore

log = logging.getLogger("ft.modal")

BROKE: Final = "ft: "
"""How the message begins of what ended a segment that could not go on."""
SUPERSEDED: Final = "superseded"
CONTINUED: Final = "continued"

WORK: Final = "/ft/run"
POLL_S: Final = 0.2
WORDS_EVERY_S: Final = 2.0
CONTROL_EVERY_S: Final = 2.0
GRACE_S: Final = 20.0
"""Of the 30 s that a preemption is said to leave: the rest is for the last upload."""
LATE_S: Final = 5.0
DRAIN_S: Final = 60.0
"""Of a segment's time, for what comes behind the attempt; a fourth at most."""
COMMIT_TRIES: Final = 6
OPEN_FILES: Final = "open files"
LINGER_S: Final = 5.0
RESTARTED_HERE_FROM: Final = 0.25
"""Share of a segment's time that has to be left for another attempt in it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a call is given; plain JSON, no secret."""

    run: str
    app: str
    volume: str
    cache_volume: str
    words: str
    """Name of the run's Dict."""
    plan_sha256: str
    timeout_s: int
    """Of a segment, as Modal was told."""
    gpus: tuple[str, ...]
    """What was asked for, the first choice first; none for a CPU."""
    nodes: int
    resumed_after: int
    """The restart policy begins after this attempt."""
    segment: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        return cls(**{**values, "gpus": tuple(values["gpus"])})


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Function on Modal: inputs verified, model and data fetched, rows made, on a CPU; then training is spawned."""
    wanted = Job.from_json(job)
    return _run(Preparation(wanted, Cluster.here(1, Words(wanted.words))))


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Function on Modal: one segment of training. Returns the end of the run, or which call goes on.

    On several machines every container of the call is here, and what node 0 returns counts.
    """
    wanted = Job.from_json(job)
    cluster = Cluster.here(wanted.nodes, Words(wanted.words))
    return _run((Segment if cluster.rank == 0 else Assistance)(wanted, cluster))


def run_cmd(
    cmd: str | Sequence[str],
    run_folder: str,
    volumes: Mapping[str, modal.Volume] | None = None,
) -> int:
    """Run a command in `run_folder`, in a container. Its exit code, 128+n after a signal.

    `volumes` (path -> volume) are reloaded before, and committed after, whatever the exit code is. A text is split as a
    shell would, quotes and all; a list is taken as it is. A signal that ends this process is passed on first.
    """
    words = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
    mounted = (volumes or {}).values()
    for volume in mounted:
        volume.reload()
    try:
        return _run_words(words, run_folder)
    finally:
        for volume in mounted:
            commit(volume)


def _run_words(
    words: Sequence[str],
    folder: str,
    line: Callable[[str], None] | None = None,
    errors: IO[str] | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """`line` gets what it prints, line by line, and `errors` its standard error; else they are our own.

    It is told to end once `is_over`, which is asked every two seconds.
    """
    stdout = subprocess.PIPE if line is not None else None
    with subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=errors,
        text=True,
        preexec_fn=die_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509  only a system call
    ) as child:

        def look() -> None:
            if is_over():
                child.terminate()

        try:
            with _every(CONTROL_EVERY_S, look):
                for text in child.stdout or ():
                    assert line is not None
                    line(text)
                code = child.wait()
        except BaseException:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
            child.kill()
            raise
    return code if code >= 0 else 128 - code


def commit(volume: modal.Volume) -> None:
    """Commit, and try again for a while. Raises: RuntimeError or modal's Error if it cannot be done."""
    for attempt in range(1, COMMIT_TRIES + 1):
        try:
            volume.commit()
        except (RuntimeError, modal.exception.Error) as error:
            if OPEN_FILES in str(error):
                return  # It is committed; the reload that the client does after it was refused.
            if attempt == COMMIT_TRIES:
                raise
            log.warning("commit failed (%s), tried again", error)
            time.sleep(min(0.25 * 2**attempt, 10.0))
        else:
            return


def _run(stage: Stage) -> dict[str, Any]:
    """The edge: whatever fails goes to the laptop as one kind of error, which it can tell from those of the client."""
    with _logged(logging.StreamHandler()):
        try:
            return stage.work()
        except SupersededError as error:
            return {"state": SUPERSEDED, "next": error.call}
        except Exception as error:
            log.exception("the segment failed")
            raise RuntimeError(f"{BROKE}{type(error).__name__}: {error}") from error


class SupersededError(Exception):
    """A later segment of the run has begun: this one must write nothing any more."""

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call


@contextlib.contextmanager
def _logged(handler: logging.Handler) -> Iterator[None]:
    """Our own lines go to `handler` as well: standard error is Modal's log, the supervisor log is the run's."""
    formatter = logging.Formatter("%(asctime)sZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class Stage:
    """A segment of a run in its container: what preparing and training have in common."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self.job, self.cluster = job, cluster
        self.words = cluster.words
        self._control_text = ""
        self.began = time.monotonic()
        self.call = str(modal.current_function_call_id())
        self.store = LocalStore(Path(WORK) / job.run)
        self.mirror = Mirror(self.store, Path(STORE) / job.run)
        self.volume = modal.Volume.from_name(job.volume)

    def work(self) -> dict[str, Any]:
        """The segment from its claim to its reply."""
        holder = self._claim()
        if holder != self.call:
            log.info("segment %d is held by another call", self.job.segment)
            raise SupersededError(holder)
        self.words.drop(ENDING)
        self.volume.reload()
        ended = self.mirror.copy.root / OUTCOME
        if ended.exists():
            return asdict(Outcome.from_json(ended.read_bytes()))
        passed = self.mirror.restore(plan_sha256=self.job.plan_sha256)
        with _logged(logging.FileHandler(self.store.root / SUPERVISOR_LOG)):
            for line in passed:
                self._tell("log", level="warning", message=line)
            return self._go_on()

    def _go_on(self) -> dict[str, Any]:
        if self.words.get(next_of(self.job.segment + 1)) is not None:
            # It is to be spawned, or was, and our reply was lost with the machine.
            return self._hand_over()
        return self._work()

    def _work(self) -> dict[str, Any]:
        raise NotImplementedError

    def _claim(self) -> str:
        """The call that holds this segment: ours if it is the first one that asks, and no later segment has begun."""
        current = self.words.get(CURRENT)
        if current is not None and current["segment"] > self.job.segment:
            return str(current["call"])
        holder = self.words.claim(holder_of(self.job.segment), self.call)
        if holder == self.call:
            plan = self.job.plan_sha256
            self.words.put(CURRENT, {"segment": self.job.segment, "call": self.call, "plan": plan})
        return holder

    def _hand_over(self) -> dict[str, Any]:
        """Spawn the next segment, once however often this is called; whoever is second is turned away by `_claim`."""
        following = self.job.segment + 1
        log.info("segment %d goes on as segment %d", self.job.segment, following)
        self._flush()
        # Before it is spawned: who begins this segment again must not train beside the next one.
        self.words.put(next_of(following), self.call)
        call = self.words.get(call_of(following))
        if call is None:
            function: Any = modal.Function.from_name(self.job.app, "train")
            spawned = function.spawn({**asdict(self.job), "segment": following}).object_id
            call = self.words.claim(call_of(following), spawned)
        return {"state": CONTINUED, "next": str(call)}

    def _finish(self, end: Outcome) -> dict[str, Any]:
        """Write the end of the run behind everything else."""
        log.info("%s: %s", end.state, end.message)
        self._flush()
        replace_file(self.mirror.copy.root / OUTCOME, end.to_json().encode())
        commit(self.volume)
        self.words.drop(ENDING)
        return asdict(end)

    def _flush(self) -> None:
        """All that the run says, on the volume and durable."""
        if self.mirror.push_words():
            commit(self.volume)

    def _take_control(self) -> Control | None:
        """What the launcher asks for, put where the agent looks; what it asked for before, if it cannot be had.

        Times count from now: the laptop's clock may be another one. Raises: SupersededError.
        """
        current = self.words.peek(CURRENT)
        if current is not None and current["segment"] > self.job.segment:
            raise SupersededError(str(current["call"]))
        text = self.words.peek(CONTROL, self._control_text or None)
        if text and text != self._control_text:
            self._control_text = text
            self.store.put_control(replace(Control.from_json(text), at=time.time()))
        return stop_asked(self.store)

    def _tell(self, kind: str, **data: object) -> None:
        """An event of the run and of no attempt."""
        self.store.append_event(Event(kind, time.time(), 0, data))


class Preparation(Stage):
    """What needs no GPU: a mistake in the data costs a minute of a CPU."""

    def _work(self) -> dict[str, Any]:
        if self._is_cancelled():
            return self._finish(self._cancelled())
        self._tell("phase", name="data", mark="begin")
        began = time.monotonic()
        plan = read_plan(self.store.plan_path)
        wrong = self._wrong_input(plan)
        if wrong:
            return self._finish(outcome(RunState.FAILED, Reason.CONFIG, ExitCode.CONFIG, wrong))
        with _every(WORDS_EVERY_S, self._flush):
            code, said = self._preprocess()
        if self._is_cancelled():
            return self._finish(self._cancelled())
        if code:
            log.info("preparing rows ended with %d: %s", code, said)
        if code in {ExitCode.CONFIG, ExitCode.DETERMINISTIC}:
            reason = Reason.CONFIG if code == ExitCode.CONFIG else Reason.DATA
            return self._finish(outcome(RunState.FAILED, reason, code, said))
        if code:
            # Modal tries again as often as its policy says.
            raise RuntimeError(f"preparing rows ended with exit code {code}: {said}")
        seconds = round(time.monotonic() - began, 3)
        self._tell("phase", name="data", mark="end", seconds=seconds)
        return self._hand_over()

    def _is_cancelled(self) -> bool:
        return self._take_control() is not None

    def _cancelled(self) -> Outcome:
        return stopped(self.store, self.job.run, [], killed=False, names={})

    def _wrong_input(self, plan: RunPlan) -> str:
        for item in plan.inputs:
            path = self.store.root / item.path
            if not path.exists():
                return f"{item.path} is missing"
            if digest_of(path) != item.sha256:
                return f"{item.path} is not the file that was planned: its sha256 is another"
        return ""

    def _preprocess(self) -> tuple[int, str]:
        """Exit code, and what went wrong."""
        problems: list[str] = []

        def line(text: str) -> None:
            said = json.loads(text) if text.startswith("{") else {}
            if said.get("event") == "error":
                row = "" if said["row"] is None else f", {said['unit']} {said['row']}"
                problems.append(f"{said['path']}{row}: {said['reason']}")
            elif said.get("event") == "done":
                log.info("rows: %s", said["counts"])

        cache, root = modal.Volume.from_name(self.job.cache_volume), str(self.store.root)
        with tempfile.TemporaryFile("w+") as words:
            try:
                command = [*runtime_command("preprocess"), root, "--fetch"]
                code = _run_words(command, root, line, words, self._is_cancelled)
            finally:
                commit(cache)
                words.seek(0)
                said = words.read()
                sys.stderr.write(said)
        lines = [text for text in said.splitlines() if text.strip()]
        return code, "; ".join(problems) or "".join(lines[-1:])


class Training(Stage):
    """An agent on this machine, watched and mirrored."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        super().__init__(job, cluster)
        self.interrupted: BaseException | None = None
        """What ended our watch of an attempt; it goes on its way once all is saved."""
        self.killed = False
        """The grace was over: the agent was killed before it had saved."""
        self.publish_s = 0.0
        """What the longest upload of a checkpoint took."""

    def _run_agent(self, number: int, *beside: Callable[[], None]) -> int:
        """Start the agent of this machine and watch it; meanwhile do what is to be done `beside`, again and again."""
        fill = {"store": str(self.store.root), "attempt": str(number)}
        environment = {**os.environ, "FT_GRACE_S": f"{GRACE_S:g}", **self.cluster.environment()}
        with (self.store.attempt_folder(number) / self.cluster.agent_log).open("ab") as stream:
            agent = subprocess.Popen(
                [word.format(**fill) for word in agent_command()],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.store.root,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509  only a system call
            )
        with contextlib.ExitStack() as stack:
            for work in beside:
                stack.enter_context(_every(WORDS_EVERY_S, work))
            try:
                return self._watch(agent, Company(self.cluster, number))
            except SupersededError:
                agent.kill()
                raise
            except BaseException as error:  # noqa: BLE001  KeyboardInterrupt, and what Modal raises to cancel
                self.interrupted = error
                return self._let_agent_save(agent, type(error).__name__)

    def _watch(self, agent: subprocess.Popen[bytes], company: Company) -> int:
        asked_at = 0.0
        while True:
            if company.is_over():
                return self._let_agent_save(agent, "another machine has ended")
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
        after = max(min(DRAIN_S, self.job.timeout_s / 4), 2 * self.publish_s)
        return (
            self.job.timeout_s
            - (time.monotonic() - self.began)
            - min(after, self.job.timeout_s / 2)
        )

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
            code = agent.wait(timeout=GRACE_S + LATE_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            code = agent.wait()
        return code if code >= 0 else 128 - code


class Segment(Training):
    """Attempts of training, until the run ends or another segment has to go on."""

    def _work(self) -> dict[str, Any]:
        try:
            return self._attempts()
        finally:
            self.cluster.disband()

    def _attempts(self) -> dict[str, Any]:
        plan = read_plan(self.store.plan_path)
        self._note_earlier()
        ends = self.store.attempt_ends(after=self.job.resumed_after)
        if ends and ends[-1].exit_code == ExitCode.DONE and self.mirror.copy.final() is None:
            # Its machine went before the result was here: it goes on from its newest checkpoint.
            ends[-1] = replace(ends[-1], exit_code=KILLED, reason=str(Reason.KILLED))
        while True:
            if self._take_control() is not None:
                return self._finish(self._stopped(ends))
            if ends and not verdict(ends).restart:
                return self._ended(ends)
            ends.append(self._attempt(plan))
            if verdict(ends).restart and self._goes_on_elsewhere(ends[-1]):
                return self._hand_over()

    def _goes_on_elsewhere(self, end: AttemptEnd) -> bool:
        """Whether another attempt is for another machine, or has too little time left here."""
        elsewhere = end.exit_code in {ExitCode.HAND_OFF, ExitCode.BAD_NODE}
        return elsewhere or self._left_s() < RESTARTED_HERE_FROM * self.job.timeout_s

    def _note_earlier(self) -> None:
        """Ends of attempts that were taken away with their machine."""
        saved = newest_published(self.store)
        after = self.job.resumed_after
        for number in note_missing_ends(self.store, after=after, checkpoint_step=saved):
            log.info("attempt %d was lost with its machine", number)

    def _ended(self, ends: list[AttemptEnd]) -> dict[str, Any]:
        last, decision = ends[-1], verdict(ends)
        if last.exit_code == ExitCode.DONE:
            if self.mirror.copy.final() is None:
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
            self.cluster.tell_end(number, code, self.store)
            code = self.cluster.end(number, self.store, MOMENT_S + GRACE_S + 2 * LATE_S)
        end = self._end_attempt(number, code, plan)
        if self.interrupted is not None:
            # The machine is taken back, or somebody cancelled the call: Modal goes on from here.
            raise self.interrupted
        return end

    def _end_attempt(self, number: int, code: int, plan: RunPlan) -> AttemptEnd:
        # The service verified it when it was published; to hash it again would cost time that is not there.
        end = end_of_attempt(self.store, number, code, checkpoint_step=newest_published(self.store))
        self.store.put_attempt_end(number, end)
        log.info(
            "attempt %d ended at step %d (%s, exit code %d)",
            *(number, end.step, end.reason or "unknown", end.exit_code),
        )
        self.words.put(ENDING, number)
        self._flush()
        self._publish(plan)
        self._flush()
        self.words.drop(ENDING)
        return end

    def _publish(self, plan: RunPlan) -> None:
        began = time.monotonic()
        names = self.mirror.push_published(keep=plan.checkpoint.save_total_limit, medium=self)
        if names:
            self.publish_s = max(self.publish_s, time.monotonic() - began)
        for name in names:
            log.info("%s is on the volume", name)

    def commit(self) -> None:
        """Of `mirror.Medium`."""
        commit(self.volume)

    def sizes(self, folder: str) -> dict[str, int]:
        """Of `mirror.Medium`: as the service lists what was committed, not as this container sees it."""
        prefix = f"{self.job.run}/{folder}/"
        listed = self.volume.listdir(f"/{prefix}", recursive=True)
        return {e.path.lstrip("/").removeprefix(prefix): e.size for e in listed}

    def _note_machine(self, folder: Path, plan: RunPlan) -> None:
        """Which machine this attempt got; another GPU than the one asked for is worth a warning."""
        machine = local_machine()
        facts = {
            "call": self.call,
            "container": os.environ.get("MODAL_TASK_ID", ""),
            "region": os.environ.get("MODAL_REGION", ""),
            "cloud": os.environ.get("MODAL_CLOUD_PROVIDER", ""),
            "segment": self.job.segment,
            "gpu": machine.gpu,
            "gpus": machine.num_processes_per_node,
        }
        write_atomic(folder / "machine.json", json.dumps(facts))
        if plan.parallel.device == "cuda" and not was_asked_for(machine.gpu, self.job.gpus):
            message = f"asked for {' or '.join(self.job.gpus)}, got {machine.gpu}"
            self._tell("log", level="warning", message=message)

    def _limit(self, plan: RunPlan) -> None:
        """The attempt ends by itself before Modal ends the segment."""
        limit = max(1, int(self._left_s()))
        limits = plan.limits.model_copy(update={"timeout_s": limit})
        limited = plan.model_copy(update={"limits": limits})
        write_atomic(self.store.plan_path, limited.to_json())


class Assistance(Training):
    """Another machine of a cluster: its agent, and what its ranks say. Node 0 does all else."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        super().__init__(job, cluster)
        self.mirror = Mirror(self.store, self.mirror.copy.root, only=self._is_ours)

    def _is_ours(self, name: str) -> bool:
        """Ranks have their numbers among all; the files of node 0 are its own."""
        rank = re.match(r"rank(\d+)\.", name)
        if rank is None:
            return name == self.cluster.agent_log
        per_node = read_plan(self.store.plan_path).parallel.num_processes_per_node
        return int(rank[1]) // per_node == self.cluster.rank

    def _work(self) -> dict[str, Any]:
        number = 0
        while number := self.cluster.next_attempt(after=number):
            self.volume.reload()
            self.mirror.restore(plan_sha256=self.job.plan_sha256)
            self.store.attempt_folder(number).mkdir(parents=True, exist_ok=True)
            code = self._run_agent(number, self._flush)
            self.cluster.tell_end(number, code, self.store)
            self._flush()
            if self.interrupted is not None:
                raise self.interrupted
        time.sleep(LINGER_S)  # Where one container of a cluster ends, the others do.
        return {"state": "assisted", "rank": self.cluster.rank}


def was_asked_for(gpu: str, asked: Sequence[str]) -> bool:
    """Whether a GPU by its name in the catalog is one of those that Modal was asked for, by its names."""
    return any(
        gpu == name or gpu.startswith(f"{name}-") for name in (a.rstrip("!+") for a in asked)
    )


@contextlib.contextmanager
def _every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Do `work` again and again beside what is done here. One that fails is logged, and tried again."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(seconds):
            try:
                work()
            except Exception as error:  # noqa: BLE001  whatever it was, training goes on
                log.warning("%s failed, tried again: %s", work.__qualname__, error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
