"""What needs no GPU on Modal: the first segment of a run, which makes its rows, and the last one of a large result."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import threading
import time
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import modal

from ft.launcher.backends.modal_host import ModalHost, ModalJob, commit
from ft.launcher.ends import Outcome, newest_published, outcome, stopped
from ft.launcher.local_python import runtime_command
from ft.launcher.machine.cluster import Cluster
from ft.launcher.machine.stage import WORDS_EVERY_S, Stage, SupersededError, every, run_words
from ft.recipes.digest import digest_of
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import ExitCode, Reason, RunState, Status

log = logging.getLogger("ft.machine")


class OnCpu(Stage):
    """A verb of the runtime on the run's folder, in a container without a GPU."""

    phase: ClassVar[str]
    verb: ClassVar[str]

    def __init__(self, job: ModalJob, host: ModalHost) -> None:
        super().__init__(job, Cluster.single(host.words), host)
        self.cache_volume = job.cache_volume

    def _work(self) -> dict[str, Any]:
        if self._is_cancelled():
            return self._finish(self._cancelled())
        self._tell("phase", name=self.phase, mark="begin")
        began = time.monotonic()
        plan = read_plan(self.store.plan_path)
        wrong = self._wrong_input(plan)
        if wrong:
            return self._finish(outcome(RunState.FAILED, Reason.CONFIG, ExitCode.CONFIG, wrong))
        with every(WORDS_EVERY_S, self._flush):
            code, said = self._run_verb()
        if self._is_cancelled():
            return self._finish(self._cancelled())
        if code:
            log.info("%s ended with %d: %s", self.verb, code, said)
        if code in {ExitCode.CONFIG, ExitCode.DETERMINISTIC}:
            reason = Reason.CONFIG if code == ExitCode.CONFIG else Reason.DATA
            return self._finish(outcome(RunState.FAILED, reason, code, said))
        if code:
            # Modal tries again as often as its policy says.
            raise RuntimeError(f"{self.verb} ended with exit code {code}: {said}")
        seconds = round(time.monotonic() - began, 3)
        self._tell("phase", name=self.phase, mark="end", seconds=seconds)
        return self._go_on_from_here(plan)

    @abstractmethod
    def _more_words(self) -> list[str]:
        """Of the verb, behind the run's folder."""

    @abstractmethod
    def _go_on_from_here(self, plan: RunPlan) -> dict[str, Any]:
        """What comes of it, once it has ended well."""

    def _is_cancelled(self) -> bool:
        return self._take_control() is not None

    def _is_over(self) -> bool:
        """Whether it is not wanted any more; asked while it works."""
        try:
            return self._is_cancelled()
        except SupersededError:
            return True

    def _cancelled(self) -> Outcome:
        ends = self.store.attempt_ends()
        return stopped(self.store, self.job.run, ends, killed=False, names={})

    def _wrong_input(self, plan: RunPlan) -> str:
        for item in plan.inputs:
            path = self.store.root / item.path
            if not path.exists():
                return f"{item.path} is missing"
            if digest_of(path) != item.sha256:
                return f"{item.path} is not the file that was planned: its sha256 is another"
        return ""

    def _run_verb(self) -> tuple[int, str]:
        """Exit code, and what went wrong."""
        problems: list[str] = []

        def line(text: str) -> None:
            said = json.loads(text) if text.startswith("{") else {}
            if said.get("event") == "error":
                row = "" if said["row"] is None else f", {said['unit']} {said['row']}"
                problems.append(f"{said['path']}{row}: {said['reason']}")
            elif said.get("event") == "done":
                log.info("%s: %s", self.verb, said["counts"])

        cache, root = modal.Volume.from_name(self.cache_volume), str(self.store.root)
        with tempfile.TemporaryFile("w+") as words:
            try:
                command = [*runtime_command(self.verb), root, *self._more_words()]
                code = run_words(command, root, line, words, self._is_over)
            finally:
                commit(cache)
                words.seek(0)
                said = words.read()
                sys.stderr.write(said)
        lines = [text for text in said.splitlines() if text.strip()]
        return code, "; ".join(problems) or "".join(lines[-1:])


class Preparation(OnCpu):
    """Inputs verified, model and data fetched, rows made: a mistake in the data costs a minute of a CPU."""

    phase = "data"
    verb = "preprocess"

    def _more_words(self) -> list[str]:
        return ["--fetch"]

    def _go_on_from_here(self, plan: RunPlan) -> dict[str, Any]:
        del plan
        return self._hand_over()


class Export(OnCpu):
    """The result, out of the last checkpoint: all weights once more, which take minutes on their way."""

    phase = "export"
    verb = "export"

    def __init__(self, job: ModalJob, host: ModalHost) -> None:
        super().__init__(job, host)
        self._status: Status | None = None
        """How the last attempt ended; meanwhile it is said that this goes on."""
        self._telling = threading.Lock()

    def _work(self) -> dict[str, Any]:
        if self.mirror.has_final():
            return self._succeeded()  # Its machine went before it could say so.
        ends = self.store.attempt_ends(after=self.job.resumed_after)
        trained = ends and ends[-1].exit_code == ExitCode.DONE
        if not trained or ends[-1].step != newest_published(self.store):
            log.info("the last checkpoint is not whole: training goes on from the one before")
            return self._hand_over()
        self._status = self.store.get_status()
        with every(WORDS_EVERY_S, self._beat):
            return super()._work()

    def _beat(self) -> None:
        """A run that nobody hears of looks dead."""
        with self._telling:
            if self._status is not None:
                now = replace(
                    self._status, phase=self.phase, exit_code=None, updated_at=time.time()
                )
                self.store.put_status(now)

    def _finish(self, end: Outcome) -> dict[str, Any]:
        with self._telling:
            if self._status is not None:
                self.store.put_status(self._status)
                self._status = None
        return super()._finish(end)

    def _more_words(self) -> list[str]:
        return ["--step", str(newest_published(self.store))]

    def _go_on_from_here(self, plan: RunPlan) -> dict[str, Any]:
        self.mirror.push_published(keep=plan.checkpoint.save_total_limit)
        self._take_control()  # Another segment may have begun meanwhile; a cancel comes too late.
        if not self.mirror.has_final():
            raise RuntimeError("the result could not be copied")
        return self._succeeded()

    def _succeeded(self) -> dict[str, Any]:
        return self._finish(outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, "done"))
