"""Owner of one local run: attempts, restarts, delivery. `python -m … RUN_FOLDER`, in a session of its own.

Holds an flock on the run, so that a second supervisor cannot start, and so that everybody can see it live.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from ft.launcher.backends.base import DELIVERED
from ft.launcher.backends.local import (
    KILL_AGENT,
    LOCK,
    LOG,
    OUTCOME,
    SUPERVISOR,
    Outcome,
    SupervisorInfo,
)
from ft.launcher.runs import Runs
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import (
    MANIFEST,
    AttemptEnd,
    ExitCode,
    Reason,
    RunState,
    Verdict,
    newest_valid,
    verdict,
    write_atomic,
)
from ft.recipes.store import LocalStore

log = logging.getLogger("ft.supervisor")

LOCK_TRIES = 100
LOCK_PAUSE_S = 0.02
MAX_PAUSE_S = 30.0
PAUSE_STEP_S = 0.1
PR_SET_PDEATHSIG = 1


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
        self.base_model = RunPlan.from_json(submission.plan_json).model.base_model
        self.sources = {f"inputs/{upload.name}": upload.source for upload in submission.uploads}
        self.agent: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> Outcome:
        """Attempt after attempt. Returns the end of the run."""
        ends: list[AttemptEnd] = []
        while True:
            if self._must_stop():
                return self._cancelled(ends)
            code = self._attempt()
            ends.append(self._end_of_attempt(code))
            decision = verdict(ends)
            log.info("attempt ended with %s at step %s: %s", code, ends[-1].step, decision.message)
            if code == ExitCode.DONE:
                return self._deliver()
            if self._must_stop():
                return self._cancelled(ends)
            if not decision.restart:
                return outcome(RunState.FAILED, decision.reason, code, self._why(decision))
            self._pause(ends)

    def stop(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler: pass it on; the agent lets the ranks save first. KILL_AGENT: the grace is over."""
        self.stopping = True
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(signal.SIGKILL if signum == KILL_AGENT else signal.SIGTERM)

    def _attempt(self) -> int:
        attempt = (self.store.attempts() or [0])[-1] + 1
        log.info("attempt %d", attempt)
        folder = self.store.attempt_folder(attempt)
        folder.mkdir(parents=True)
        fill = {"store": str(self.store.root), "attempt": str(attempt)}
        with (folder / "agent.log").open("ab") as stream:
            self.agent = subprocess.Popen(
                [word.format(**fill) for word in self.command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.store.root,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  # single-threaded; no orphans
            )
        if self.stopping:
            # The signal came before the agent was known to the handler.
            self.agent.send_signal(signal.SIGTERM)
        return self.agent.wait()

    def _end_of_attempt(self, code: int) -> AttemptEnd:
        status = self.store.get_status()
        newest, _ = newest_valid(self.store.checkpoints)
        return AttemptEnd(
            exit_code=code,
            step=status.step if status else 0,
            checkpoint_step=int(newest.name.removeprefix("step-")) if newest else 0,
            reason=(status.reason if status and status.exit_code is not None else "") or "",
        )

    def _must_stop(self) -> bool:
        control = self.store.get_control()
        return self.stopping or (control is not None and control.request == "stop")

    def _cancelled(self, ends: list[AttemptEnd]) -> Outcome:
        message = "cancelled before the first attempt"
        if ends:
            saved = ends[-1].checkpoint_step
            message = (
                f"cancelled at step {ends[-1].step}; its checkpoint of step {saved} stays in "
                f"{self.store.root}, a new run begins at step 1"
            )
        code = ends[-1].exit_code if ends else ExitCode.PREEMPTED
        return outcome(RunState.CANCELLED, Reason.CANCELLED, code, message)

    def _why(self, decision: Verdict) -> str:
        """What went wrong, and why it is not tried again."""
        status = self.store.get_status()
        if status is None or not status.message:
            return decision.message
        return f"{status.message} ({decision.message})"

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
            return outcome(RunState.FAILED, Reason.UNCLASSIFIED, ExitCode.UNCLASSIFIED, message)
        try:
            deliver(final, target, run_id=self.record.id)
            self._name_base_model(target)
        except (OSError, ValueError) as error:
            message = f"done, but {target} cannot be written ({error}); it is in {final}"
            return outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, message, str(final))
        return outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, "done", str(target))

    def _name_base_model(self, target: Path) -> None:
        """In the delivered adapter, name the base model as the user knows it, not as `inputs/…`."""
        config = target / "adapter_config.json"
        if not config.is_file() or self.base_model not in self.sources:
            return
        values = json.loads(config.read_text())
        values["base_model_name_or_path"] = str(self.sources[self.base_model])
        write_atomic(config, json.dumps(values, indent=2) + "\n")


def outcome(
    state: RunState, reason: Reason, code: int, message: str, delivered: str = ""
) -> Outcome:
    """An end, as of now."""
    return Outcome(state, reason, int(code), message, time.time(), delivered)


def deliver(source: Path, target: Path, *, run_id: str) -> None:
    """Copy the files of `source` into `target`, each whole or not at all.

    What an earlier run delivered there and this one does not bring is taken away: an old adapter beside a new
    model would be loaded with it. Files of the user's own stay.
    """
    files = [f for f in sorted(source.rglob("*")) if f.is_file() and f.name != MANIFEST]
    names = [file.relative_to(source).as_posix() for file in files]
    target.mkdir(parents=True, exist_ok=True)
    for name in set(_delivered_before(target)) - set(names):
        (target / name).unlink(missing_ok=True)
    write_atomic(target / DELIVERED, json.dumps({"run": run_id, "files": names}, indent=1) + "\n")
    for file, name in zip(files, names, strict=True):
        to = target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
        shutil.copyfile(file, temporary)
        temporary.replace(to)


def _delivered_before(target: Path) -> list[str]:
    """Names that stand in the list of an earlier delivery; only such as lie below `target`."""
    try:
        names = json.loads((target / DELIVERED).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        n
        for n in names
        if isinstance(n, str) and not Path(n).is_absolute() and ".." not in Path(n).parts
    ]


def _die_with(parent: int) -> Callable[[], None]:
    """For the child: be told to save and end when the supervisor dies, even by SIGKILL."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


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
        write_atomic(folder / OUTCOME, end.to_json())
        log.info("%s: %s", end.state, end.message)
    return 0


def _supervise(folder: Path) -> Outcome:
    """The edge of the process: whatever happens, the run gets an end that says what it was."""
    try:
        supervisor = Supervisor(folder)
        for signum in (signal.SIGTERM, signal.SIGINT, KILL_AGENT):
            signal.signal(signum, supervisor.stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        write_atomic(folder / SUPERVISOR, SupervisorInfo(os.getpid(), time.time()).to_json())
        return supervisor.run()
    except Exception as error:
        log.exception("the supervisor failed")
        message = f"the supervisor failed: {type(error).__name__}: {error}; see {folder / LOG}"
        return outcome(RunState.FAILED, Reason.INFRA, ExitCode.UNCLASSIFIED, message)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
