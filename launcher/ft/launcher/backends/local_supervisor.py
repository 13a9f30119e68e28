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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from ft.launcher.backends.local import LOCK, OUTCOME, SUPERVISOR, Outcome, SupervisorInfo
from ft.launcher.local_python import agent_command
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
PR_SET_PDEATHSIG = 1


class Supervisor:
    """Runs attempts until the policy says stop."""

    def __init__(self, folder: Path) -> None:
        runs = Runs(folder.parent)
        record = runs.get(folder.name)
        if record is None:
            raise SystemExit(f"{folder}: no run record")
        submission = runs.submission(record.id)
        self.folder = folder
        self.record = record
        self.store = LocalStore(Path(str(submission.request["store"]).replace("{run}", record.id)))
        self.plan = RunPlan.from_json(submission.plan_json)
        self.base_model = {upload.name: upload.source for upload in submission.uploads}
        self.agent: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> Outcome:
        """Attempt after attempt. Returns the end of the run."""
        ends: list[AttemptEnd] = []
        while True:
            code = self._attempt(len(ends))
            ends.append(self._end_of_attempt(code))
            decision = verdict(ends)
            log.info("attempt ended with %s at step %s: %s", code, ends[-1].step, decision.message)
            if ends[-1].exit_code == ExitCode.DONE:
                return self._deliver()
            if self.stopping or self._cancelled():
                message = f"cancelled at step {ends[-1].step}; newest checkpoint: step {ends[-1].checkpoint_step}"
                return self._outcome(RunState.CANCELLED, Reason.CANCELLED, code, message)
            if not decision.restart:
                return self._outcome(RunState.FAILED, decision.reason, code, self._why(decision))
            time.sleep(self._pause_s(ends))

    def stop(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler: pass it on; the agent lets the ranks save first."""
        self.stopping = True
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(signum)

    def _attempt(self, earlier: int) -> int:
        attempt = (self.store.attempts() or [0])[-1] + 1
        log.info("attempt %d (%d before it by this supervisor)", attempt, earlier)
        folder = self.store.attempt_folder(attempt)
        folder.mkdir(parents=True)
        with (folder / "agent.log").open("ab") as stream:
            self.agent = subprocess.Popen(
                agent_command(self.store.root, attempt),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.store.root,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # single-threaded; the child must not outlive us
            )
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

    def _cancelled(self) -> bool:
        control = self.store.get_control()
        return control is not None and control.request == "stop"

    def _why(self, decision: Verdict) -> str:
        """What went wrong, and why it is not tried again."""
        status = self.store.get_status()
        if status is None or not status.message:
            return decision.message
        return f"{status.message} ({decision.message})"

    @staticmethod
    def _pause_s(ends: list[AttemptEnd]) -> float:
        """Longer after each attempt that brought nothing, so that a broken disk is not hammered."""
        stuck = sum(1 for end in ends if end.checkpoint_step == ends[-1].checkpoint_step)
        return min(0.25 * 2.0**stuck, MAX_PAUSE_S)

    def _outcome(
        self, state: RunState, reason: Reason, code: int, message: str, delivered: str = ""
    ) -> Outcome:
        return Outcome(state, reason, code, message, time.time(), delivered)

    def _deliver(self) -> Outcome:
        """Put the finished adapter or model where the recipe wants it. The store keeps its own copy."""
        final, target = self.store.final(), Path(self.record.output_dir)
        if final is None:
            message = "training ended well, but nothing was exported"
            return self._outcome(
                RunState.FAILED, Reason.UNCLASSIFIED, ExitCode.UNCLASSIFIED, message
            )
        try:
            copy_over(final, target)
            self._name_base_model(target)
        except OSError as error:
            message = f"done, but {target} cannot be written ({error.strerror}); it is in {final}"
            return self._outcome(
                RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, message, str(final)
            )
        return self._outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, "done", str(target))

    def _name_base_model(self, target: Path) -> None:
        """In the delivered adapter, name the base model as the user knows it, not as `inputs/…`."""
        config = target / "adapter_config.json"
        name = self.plan.model.base_model.removeprefix("inputs/")
        if not config.is_file() or name not in self.base_model:
            return
        values = json.loads(config.read_text())
        values["base_model_name_or_path"] = str(self.base_model[name])
        write_atomic(config, json.dumps(values, indent=2) + "\n")


def copy_over(source: Path, target: Path) -> None:
    """Copy the files of `source` into `target`, each whole or not at all; other files there stay."""
    for file in sorted(source.rglob("*")):
        if not file.is_file() or file.name == MANIFEST:
            continue
        to = target / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
        shutil.copyfile(file, temporary)
        temporary.replace(to)


def _die_with_parent() -> None:
    """In the child: be told to save and end when the supervisor dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
        supervisor = Supervisor(folder)
        signal.signal(signal.SIGTERM, supervisor.stop)
        signal.signal(signal.SIGINT, supervisor.stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        write_atomic(folder / SUPERVISOR, SupervisorInfo(os.getpid(), time.time()).to_json())
        outcome = supervisor.run()
        write_atomic(folder / OUTCOME, outcome.to_json())
        log.info("%s: %s", outcome.state, outcome.message)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
