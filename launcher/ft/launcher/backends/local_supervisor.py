"""Owner of one local run: attempts, restarts, delivery. `python -m … RUN_FOLDER`, in a session of its own.

Holds an flock on the run, so that a second supervisor cannot start, and so that everybody can see it live.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from ft.launcher.attempts import note_missing_ends
from ft.launcher.backends import local_bucket
from ft.launcher.backends.local import (
    LATE_S,
    LOCK,
    LOG,
    SUPERVISOR,
    SupervisorInfo,
    bucket_uri,
    kill_holder,
)
from ft.launcher.ends import (
    ENDED_BY,
    OUTCOME,
    Outcome,
    end_of_attempt,
    failed,
    newest_step,
    outcome,
    said,
    stop_asked,
    stopped,
)
from ft.launcher.local_python import die_with
from ft.launcher.runs import Runs, is_locked
from ft.launcher.transfer import FolderSource, deliver
from ft.recipes.errors import FtError
from ft.recipes.runstore import (
    ATTEMPT_LOCK,
    AttemptEnd,
    Control,
    ExitCode,
    Reason,
    RunState,
    verdict,
    write_atomic,
)
from ft.recipes.store import LocalStore

log = logging.getLogger("ft.supervisor")

LOCK_TRIES = 100
LOCK_PAUSE_S = 0.02
MAX_PAUSE_S = 30.0
PAUSE_STEP_S = 0.1
STOP_GRACE_S = 60.0
"""For an attempt that somebody else started, where whoever asked it to stop named no grace."""


class Supervisor:
    """Runs attempts until the policy says stop."""

    def __init__(self, folder: Path) -> None:
        runs = Runs(folder.parent)
        record = runs.get(folder.name)
        if record is None:
            raise SystemExit(f"{folder}: no run record")
        submission = runs.submission(record.id)
        self.record = record
        self.store = LocalStore(Path(str(submission.request["store"]).replace("{run}", record.id)))
        self.command: list[str] = list(submission.request["command"])
        self.submission = submission
        self.agent: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.killed = False
        """The grace was over: the agent was killed before it had saved."""
        self._host: local_bucket.LocalHost | None = None

    def run(self) -> Outcome | None:
        """Attempt after attempt. Returns the end of the run; None if it has none, and may be resumed."""
        if not self._await_orphan():
            return None
        ends = self._earlier_ends()
        if ends and ends[-1].exit_code == ExitCode.DONE and self.store.final() is not None:
            return self._deliver()
        while True:
            if self._must_stop():
                return self._stopped(ends) if self._control() else None
            attempt = self._attempt()
            ends.append(attempt)
            decision = verdict(ends)
            if attempt.exit_code == ExitCode.DONE:
                return self._deliver()
            if self._control() or decision.reason in ENDED_BY:
                return self._stopped(ends)
            if not decision.restart:
                return failed(self.store, decision, attempt.exit_code, self._names())
            log.info("%s", decision.message)
            self._pause(ends)

    def stop(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler: the machine goes down. Pass it on; the agent lets the ranks save first. It is no end."""
        self.stopping = True
        if self._host is not None:
            self._host.go(signum, _frame)
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(signal.SIGTERM)

    def _await_orphan(self) -> bool:
        """Wait until the attempt of a supervisor that was killed has let go of the store; False: it has not.

        It hears control itself; where the grace is over, it is killed.
        """
        lock = self.store.root / ATTEMPT_LOCK
        if is_locked(lock):
            log.info("waiting for an attempt that another supervisor left behind")
        while is_locked(lock):
            if self.stopping:
                return False
            control = self._control()
            if control is not None and _late_s(control) > 0:
                log.info("the grace is over: killing the attempt that was left behind")
                self.killed = kill_holder(lock)
                if not self.killed:
                    log.info("it could not be killed, and still writes the store")
                return self.killed
            time.sleep(PAUSE_STEP_S)
        return True

    def _earlier_ends(self) -> list[AttemptEnd]:
        """Of the attempts that count. Nobody may be writing the store."""
        after = self.record.resumed_after
        saved = newest_step(self.store)
        for number in note_missing_ends(self.store, after=after, checkpoint_step=saved):
            log.info("attempt %d ended while nobody watched it", number)
        return self.store.attempt_ends(after=after)

    def _attempt(self) -> AttemptEnd:
        number = (self.store.attempts() or [0])[-1] + 1
        log.info("attempt %d", number)
        folder = self.store.attempt_folder(number)
        folder.mkdir(parents=True)
        fill = {"store": str(self.store.root), "attempt": str(number)}
        with (folder / "agent.log").open("ab") as stream:
            self.agent = subprocess.Popen(
                [word.format(**fill) for word in self.command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.store.root,
                # Single-threaded. Told to save and end when we die: no orphans.
                preexec_fn=die_with(os.getpid(), signal.SIGTERM),  # noqa: PLW1509
            )
        if self.stopping:
            # The signal came before the agent was known to the handler.
            self.agent.send_signal(signal.SIGTERM)
        code = self._wait(self.agent)
        end = end_of_attempt(self.store, number, code, checkpoint_step=newest_step(self.store))
        self.store.put_attempt_end(number, end)
        words = said(self.store, number, self._names())
        log.info(
            "attempt %d ended at step %d (%s, exit code %d)%s",
            *(
                number,
                end.step,
                end.reason or "unknown",
                end.exit_code,
                f": {words}" if words else "",
            ),
        )
        return end

    def _wait(self, agent: subprocess.Popen[bytes]) -> int:
        """Its exit code, 128+n after a signal. Kills it where somebody's grace is over."""
        while True:
            try:
                code = agent.wait(timeout=PAUSE_STEP_S)
            except subprocess.TimeoutExpired:
                control = self._control()
                # The agent keeps an eye on the time itself; the last word is ours.
                limited = control is not None and control.grace_s is not None and not self.killed
                if control is not None and limited and _late_s(control) > 0:
                    log.info("the grace of %g s is over: killing the attempt", control.grace_s)
                    self.killed = True
                    agent.kill()
            else:
                return code if code >= 0 else 128 - code

    def run_with_bucket(self, uri: str) -> Outcome | None:
        """As `run`, where the run's copy lies in a bucket: another machine may have gone on with it, or will."""
        if not self._await_orphan():
            return None
        host = self._host = local_bucket.LocalHost(uri, self.store.root)
        job = {
            "run": self.record.id,
            "plan_sha256": self.record.plan_sha256,
            "timeout_s": None,
            "gpus": (),
            "nodes": 1,
            "resumed_after": self.record.resumed_after,
        }
        end = local_bucket.run(host, job, uri)
        if end is None or end.state != RunState.SUCCEEDED:
            return end
        return self._deliver()

    def _names(self) -> dict[str, str]:
        """Input -> the user's own path: an attempt knows only what it became in the store."""
        return {upload.name: str(upload.source) for upload in self.submission.uploads}

    def _control(self) -> Control | None:
        return stop_asked(self.store)

    def _must_stop(self) -> bool:
        return self.stopping or self._control() is not None

    def _stopped(self, ends: list[AttemptEnd]) -> Outcome:
        return stopped(self.store, self.record.id, ends, killed=self.killed, names=self._names())

    def _pause(self, ends: list[AttemptEnd]) -> None:
        """Longer after each attempt that brought nothing, so that a broken disk is not hammered."""
        stuck = sum(1 for end in ends if end.checkpoint_step == ends[-1].checkpoint_step)
        until = time.monotonic() + min(0.25 * 2.0**stuck, MAX_PAUSE_S)
        while time.monotonic() < until and not self._must_stop():
            time.sleep(PAUSE_STEP_S)

    def _deliver(self) -> Outcome:
        """Put the finished adapter or model where the recipe wants it. The store keeps its own copy."""
        final, target = self.store.final(), Path(self.record.output_dir)
        if final is None:
            message = "training ended well, but nothing was exported"
            return outcome(RunState.FAILED, Reason.INFRA, ExitCode.UNCLASSIFIED, message)
        base = self.submission.base_model()
        try:
            deliver(FolderSource(final), target, run_id=self.record.id, base_model=base, force=True)
        except FtError as error:
            message = f"done, but not delivered: {error.message}; it is in {final}"
            return outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, message, str(final))
        return outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, "done", str(target))


def _late_s(control: Control) -> float:
    """Seconds since somebody else has to kill what has not stopped by itself; below 0 until then."""
    grace_s = STOP_GRACE_S if control.grace_s is None else control.grace_s
    return time.time() - control.at - grace_s - (LATE_S if grace_s else 0.0)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[IO[str] | None]:
    """The flock on the run; None if another supervisor holds it. Tried for a while: a look takes it for a moment."""
    with path.open("a") as stream:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
            else:
                yield stream
                return
        yield None


def main(argv: list[str]) -> int:
    folder = Path(argv[0])
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)sZ %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
    )
    logging.Formatter.converter = time.gmtime
    with _exclusive(folder / LOCK) as held:
        if held is None or (folder / OUTCOME).exists():
            log.info("another supervisor has this run, or it has ended")
            return 0
        end = _supervise(folder)
        if end is None:
            log.info("ended without an end of the run: `ft cloud resume %s` goes on", folder.name)
            return 0
        write_atomic(folder / OUTCOME, end.to_json())
        log.info("%s: %s", end.state, end.message)
    return 0


def _supervise(folder: Path) -> Outcome | None:
    """The edge of the process: whatever fails, the run gets an end that says what it was; None if it may go on."""
    try:
        supervisor = Supervisor(folder)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, supervisor.stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        write_atomic(folder / SUPERVISOR, SupervisorInfo(os.getpid(), time.time()).to_json())
        bucket = bucket_uri(supervisor.submission, supervisor.record.id)
        return supervisor.run_with_bucket(bucket) if bucket else supervisor.run()
    except Exception as error:
        log.exception("the supervisor failed")
        message = f"the supervisor failed: {type(error).__name__}: {error}; see {folder / LOG}"
        return outcome(RunState.FAILED, Reason.INFRA, ExitCode.UNCLASSIFIED, message)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
