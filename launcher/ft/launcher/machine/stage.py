"""A segment of a run on its machine: claims, control, the mirror, the end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import IO, Any, Final

from ft.launcher.ends import (
    OUTCOME,
    Outcome,
    stop_asked,
)
from ft.launcher.local_python import die_with
from ft.launcher.machine.cluster import Cluster
from ft.launcher.machine.host import Host, Job
from ft.launcher.machine.words import (
    CONTROL,
    CURRENT,
    ENDING,
    holder_of,
    next_of,
)
from ft.launcher.mirror import SUPERVISOR_LOG, Mirror
from ft.recipes.runstore import (
    Control,
    Event,
)
from ft.recipes.store import LocalStore

log = logging.getLogger("ft.machine")

CONTINUED: Final = "continued"
WORDS_EVERY_S: Final = 2.0
CONTROL_EVERY_S: Final = 2.0
GRACE_S: Final = 20.0
"""Of the 30 s that a preemption is said to leave: the rest is for the last upload."""


class SupersededError(Exception):
    """A later segment of the run has begun: this one must write nothing any more."""

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call


class Stage(ABC):
    """A segment of a run on its machine: what all segments have in common."""

    def __init__(self, job: Job, cluster: Cluster, host: Host) -> None:
        self.job, self.cluster, self.host = job, cluster, host
        self.words, self.call, self.medium = host.words, host.call, host.medium
        self._control_text = ""
        self._is_uncommitted = False
        """What was written waits for a commit that did not fail."""
        self.is_superseded = False
        """A later segment has begun: nothing is written any more."""
        self.began = time.monotonic()
        self.store = LocalStore(host.root)
        self.mirror = Mirror(self.store, host.medium)

    def work(self) -> dict[str, Any]:
        """The segment from its claim to its reply."""
        holder = self._claim()
        if holder != self.call:
            log.info("segment %d is held by another call", self.job.segment)
            raise SupersededError(holder)
        self.words.drop(ENDING)
        self.host.reload()
        with contextlib.suppress(FileNotFoundError):
            return asdict(Outcome.from_json(self.medium.read(OUTCOME)))
        passed = self.mirror.restore(plan_sha256=self.job.plan_sha256)
        self.host.note_begun(self.cluster.rank)
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
        """Begin the next segment, once however often this is called; whoever is second is turned away by `_claim`."""
        following = self.job.segment + 1
        log.info("segment %d goes on as segment %d", self.job.segment, following)
        self._flush()
        # Before it begins: who begins this segment again must not train beside the next one.
        self.words.put(next_of(following), self.call)
        call = self.host.begin_next(following, exports=self._is_to_be_exported())
        return {"state": CONTINUED, "next": call}

    def _is_to_be_exported(self) -> bool:
        """Whether that is all that is left of the run, and somebody else's to do."""
        return False

    def _finish(self, end: Outcome) -> dict[str, Any]:
        """Write the end of the run behind everything else."""
        log.info("%s: %s", end.state, end.message)
        self._flush()
        self.medium.write(OUTCOME, end.to_json().encode())
        self.medium.commit()
        self.words.drop(ENDING)
        return asdict(end)

    def _flush(self) -> None:
        """All that the run says, on the medium and durable."""
        if self.is_superseded:
            return
        self._is_uncommitted = self.mirror.push_words() or self._is_uncommitted
        if self._is_uncommitted:
            self.medium.commit()
            self._is_uncommitted = False

    def _take_control(self) -> Control | None:
        """What the launcher asks for, put where the agent looks; what it asked for before, if it cannot be had.

        Times count from now: the laptop's clock may be another one.

        Raises: SupersededError; nothing is written any more then.
        """
        current = self.words.peek(CURRENT)
        if current is not None and current["segment"] > self.job.segment:
            self.is_superseded = True
            raise SupersededError(str(current["call"]))
        text = self.words.peek(CONTROL, self._control_text or None)
        if text and text != self._control_text:
            self._control_text = text
            self.store.put_control(replace(Control.from_json(text), at=time.time()))
        return stop_asked(self.store)

    def _tell(self, kind: str, **data: object) -> None:
        """An event of the run and of no attempt."""
        self.store.append_event(Event(kind, time.time(), 0, data))


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


@contextlib.contextmanager
def logged(handler: logging.Handler) -> Iterator[None]:
    """Our own lines go to `handler` as well: standard error is the vendor's log, the supervisor log is the run's."""
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
