"""A segment of a run in its container on Modal: claims, control, the mirror, the end. And the one that makes rows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import modal

from ft.launcher.backends.modal_cluster import Cluster
from ft.launcher.backends.modal_request import STORE
from ft.launcher.backends.modal_words import (
    CONTROL,
    CURRENT,
    ENDING,
    call_of,
    container_of,
    holder_of,
    next_of,
)
from ft.launcher.ends import (
    OUTCOME,
    Outcome,
    outcome,
    stop_asked,
    stopped,
)
from ft.launcher.local_python import die_with, runtime_command
from ft.launcher.mirror import SUPERVISOR_LOG, Mirror, replace_file
from ft.recipes.digest import digest_of
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    Control,
    Event,
    ExitCode,
    Reason,
    RunState,
)
from ft.recipes.store import LocalStore

log = logging.getLogger("ft.modal")

CONTINUED: Final = "continued"
WORK: Final = "/ft/run"
WORDS_EVERY_S: Final = 2.0
CONTROL_EVERY_S: Final = 2.0
GRACE_S: Final = 20.0
"""Of the 30 s that a preemption is said to leave: the rest is for the last upload."""
COMMIT_TRIES: Final = 6
OPEN_FILES: Final = "open files"


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


class SupersededError(Exception):
    """A later segment of the run has begun: this one must write nothing any more."""

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call


class Stage(ABC):
    """A segment of a run in its container: what preparing and training have in common."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self.job, self.cluster = job, cluster
        self.words = cluster.words
        self._control_text = ""
        self._is_uncommitted = False
        """What was written waits for a commit that did not fail."""
        self.is_superseded = False
        """A later segment has begun: nothing is written any more."""
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
        self.words.put(container_of(self.cluster.rank), os.environ["MODAL_TASK_ID"])
        with logged(logging.FileHandler(self.store.root / SUPERVISOR_LOG)):
            for line in passed:
                self._tell("log", level="warning", message=line)
            return self._go_on()

    def _go_on(self) -> dict[str, Any]:
        is_noted = self.words.get(next_of(self.job.segment + 1)) is not None
        if is_noted and self._take_control() is None:
            # It is to be spawned, or was, and our reply was lost with the machine.
            return self._hand_over()
        return self._work()

    @abstractmethod
    def _work(self) -> dict[str, Any]:
        """What the segment does, once it is this call's to do."""

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
        if self.is_superseded:
            return
        self._is_uncommitted = self.mirror.push_words() or self._is_uncommitted
        if self._is_uncommitted:
            commit(self.volume)
            self._is_uncommitted = False

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
        with every(WORDS_EVERY_S, self._flush):
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

    def _is_over(self) -> bool:
        """Whether rows are not wanted any more; asked while they are made."""
        try:
            return self._is_cancelled()
        except SupersededError:
            self.is_superseded = True
            return True

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
                code = run_words(command, root, line, words, self._is_over)
            finally:
                commit(cache)
                words.seek(0)
                said = words.read()
                sys.stderr.write(said)
        lines = [text for text in said.splitlines() if text.strip()]
        return code, "; ".join(problems) or "".join(lines[-1:])


def run_words(
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
            with every(CONTROL_EVERY_S, look):
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


@contextlib.contextmanager
def logged(handler: logging.Handler) -> Iterator[None]:
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


@contextlib.contextmanager
def every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
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
