"""This machine, detached for real: a supervisor in its own session owns the run and outlives the terminal.

Beside the record: `supervisor.lock` (flock, held while the run lives; never a pid, which may be reused),
`supervisor.json` (written once the lock is held), `supervisor.log`, `outcome.json` (the end).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.images import bundle
from ft.images.spec import ImageSpec
from ft.launcher.attempts import end_of
from ft.launcher.backends.base import (
    Adopted,
    Capability,
    Check,
    Handle,
    LogLine,
    LogQuery,
    Submission,
    Upload,
    cannot_be_resumed,
)
from ft.launcher.backends.left import Left
from ft.launcher.backends.local_bucket import push_what_is_newer_here
from ft.launcher.beside import environment_of, run_beside
from ft.launcher.bucket_store import RunBucket
from ft.launcher.ends import ENDED_BY, OUTCOME, Outcome, newest_published, outcome, what_stays
from ft.launcher.facts import local_machine
from ft.launcher.inputs import stage
from ft.launcher.local_python import agent_command, require_train, train_versions
from ft.launcher.logs import LogReader
from ft.launcher.mirror import WORDS
from ft.launcher.runs import SUBMISSION, Runs, data_home, holder, is_locked
from ft.launcher.transfer import FolderSource, delivery_in
from ft.recipes.errors import (
    NotFoundError,
    PlanError,
    StoreError,
    SubmitError,
    UsageError,
)
from ft.recipes.paths import expand
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    ATTEMPT_LOCK,
    EVENTS,
    INPUTS,
    PLAN,
    AttemptEnd,
    Control,
    Event,
    ExitCode,
    JsonRecord,
    Reason,
    RunState,
    verdict,
    write_atomic,
)
from ft.recipes.schema.cloud import CloudBlock
from ft.recipes.store import LocalStore

LOCK = "supervisor.lock"
SUPERVISOR = "supervisor.json"
LOG = "supervisor.log"
START_TIMEOUT_S = 30.0
POLL_S = 0.05
KILL_TIMEOUT_S = 10.0
LATE_S = 2.0
"""After the grace: an agent that watches it has ended by then."""
FRESH_S = 60.0
"""A heartbeat that is younger is of a living attempt, where nothing else is known of it."""
ADOPTED = "adopted"
"""In the handle of a run that another machine started."""


@dataclass(frozen=True, slots=True)
class SupervisorInfo(JsonRecord):
    pid: int
    started_at: float


class LocalBackend:
    """Runs on this machine. See `ft.launcher.backends.base.Backend` for the contract."""

    name = "local"
    capabilities = Capability.DETACH | Capability.VOLUMES | Capability.EXEC | Capability.SIMULATE

    def __init__(self, runs: Runs | None = None) -> None:
        self.runs = runs or Runs()

    def check(self) -> list[Check]:
        versions = train_versions()
        missing = [name for name, version in versions.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        machine = local_machine()
        return [
            Check("python", ok=True, message=sys.version.split()[0]),
            Check(
                "packages",
                ok=not missing,
                message=f"missing: {', '.join(missing)}" if missing else found,
                fix="pip install 'ft-launcher[train]'" if missing else "",
            ),
            Check("machine", ok=True, message=f"{machine.gpu}:{machine.num_processes_per_node}"),
            _can_write(self.runs.root),
            _can_write(data_home()),
        ]

    def must_be_able_to_send(self) -> None:
        """It is sent nowhere; its supervisor says what is missing."""

    def prepare(
        self,
        plan: RunPlan,
        image: ImageSpec | None,
        *,
        uploads: tuple[Upload, ...],
        cloud: CloudBlock,
        simulate: tuple[str, ...] = (),
    ) -> Submission:
        """There is no image: the run gets this Python. Raises: PlanError if this machine does not fit."""
        del image
        here, wanted = local_machine(), plan.parallel
        if wanted.num_nodes > 1:
            raise PlanError(
                f"cloud.nodes {wanted.num_nodes}: backend local is this one machine",
                hint="leave `nodes` out",
            )
        too_many = wanted.num_processes_per_node > here.num_processes_per_node
        if wanted.device == "cuda" and (here.gpu != wanted.gpu or too_many):
            raise PlanError(
                f"cloud.gpu {wanted.gpu}:{wanted.num_processes_per_node}: "
                f"this machine has {here.gpu}:{here.num_processes_per_node}",
                hint="--set cloud.gpu=cpu  trains on the CPU",
            )
        if simulate and cloud.store_bucket:
            raise PlanError(
                "--simulate: a run that lies in a bucket is not rehearsed",
                hint="leave cloud.store_bucket out for the rehearsal",
            )
        root = expand(cloud.store).absolute() if cloud.store else data_home() / "store"
        command = [
            *agent_command(),
            *(word for fault in simulate for word in ("--simulate", fault)),
        ]
        request: dict[str, Any] = {"command": command, "store": str(root / "{run}")}
        if cloud.store_bucket:
            request["bucket"] = f"{cloud.store_bucket.rstrip('/')}/{{run}}"
        if simulate:
            request["simulate"] = list(simulate)
        return Submission(self.name, request, plan.to_json(), uploads)

    def submit(self, submission: Submission, *, key: str) -> Handle:
        require_train()
        store = LocalStore(Path(_store_of(submission, key)))
        folder = self.runs.folder(key)
        handle = Handle(self.name, {"run": key, "store": store.uri})
        if is_locked(folder / LOCK):
            return handle
        try:
            (store.root / INPUTS).mkdir(parents=True, exist_ok=True)
            for upload in submission.uploads:
                stage(upload, store.root / INPUTS)
            write_atomic(store.root / PLAN, submission.plan_json)
        except OSError as error:
            raise SubmitError(
                f"{store.root}: {error.strerror}", hint="--set cloud.store=FOLDER"
            ) from error
        bucket = _bucket_of(submission, key)
        if bucket is not None:
            self._leave(submission, key, bucket)
        self._start(folder)
        return handle

    def _leave(self, submission: Submission, key: str, bucket: RunBucket) -> None:
        """Inputs and plan, and whose run it is: who finds it there has to know that this machine looks after it."""
        record = self.runs.get(key)
        after = record.resumed_after if record is not None else 0
        left = Left.of(submission, source_sha256=bundle.source_digest(), resumed_after=after)
        bucket.upload(submission.uploads, submission.plan_json)
        bucket.write(SUBMISSION, left.to_json())

    def _start(self, folder: Path) -> None:
        """Start the supervisor in a session of its own and wait until it holds the lock."""
        (folder / SUPERVISOR).unlink(missing_ok=True)  # Of one that was killed.
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ft.launcher.backends.local_supervisor", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (folder / SUPERVISOR).exists():
            if process.poll() is not None and not is_locked(folder / LOCK):
                tail = (folder / LOG).read_text(errors="replace").splitlines()[-5:]
                raise SubmitError("the supervisor did not start: " + " / ".join(tail))
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise SubmitError(
                    f"the supervisor did not start within {START_TIMEOUT_S:.0f} s; see {folder / LOG}"
                )
            time.sleep(POLL_S)

    def release(self, handle: Handle) -> None:
        folder, store = self.runs.folder(handle.values["run"]), self.store(handle)
        if is_locked(folder / LOCK) or is_locked(store.root / ATTEMPT_LOCK):
            raise SubmitError(
                f"run {folder.name} still writes {store.root}",
                hint=f"ft cloud cancel {folder.name}, and the same command again",
            )
        bucket = _bucket_of(self.runs.submission(folder.name), folder.name)
        if bucket is not None:
            with bucket.talking():
                push_what_is_newer_here(bucket.uri, store.root)
        store.clear_control()
        for name in (OUTCOME, SUPERVISOR):
            (folder / name).unlink(missing_ok=True)

    def find(self, key: str) -> Handle | None:
        folder = self.runs.folder(key)
        if not (folder / SUPERVISOR).exists() and not is_locked(folder / LOCK):
            return None
        submission = self.runs.submission(key)
        return Handle(self.name, {"run": key, "store": _store_of(submission, key)})

    def abandon(self, key: str) -> None:
        """Nothing to do: a supervisor that has begun is found, and one that has not never will."""

    def resume(self, submission: Submission, *, handle: Handle) -> Handle:
        key, store = handle.values["run"], self.store(handle)
        folder = self.runs.folder(key)
        if self.elsewhere(handle) and self._is_living(handle):
            raise SubmitError(
                f"a living attempt on another machine writes {store.root}",
                hint=f"stop it there, or: ft cloud cancel {key}",
            )
        if not is_locked(folder / LOCK):
            require_train()
            try:
                store.clear_control()
            except OSError as error:
                raise SubmitError(f"{store.root}: {error.strerror}") from error
            bucket = _bucket_of(submission, key)
            if bucket is not None:
                bucket.reopen()
            (folder / OUTCOME).unlink(missing_ok=True)
        return self.submit(submission, key=key)

    def adopt(self, store: str, *, key: str) -> Adopted:
        found = LocalStore(Path(store))
        root, plan = found.root, _plan_of(found)
        uploads = tuple(
            Upload(root / item.path, item.name, item.sha256, item.size) for item in plan.inputs
        )
        request = {"command": agent_command(), "store": store}
        handle = Handle(self.name, {"run": key, "store": store, ADOPTED: "yes"})
        lost = [item.path for item in plan.inputs if not (root / item.path).exists()]
        notes = (cannot_be_resumed(lost),) if lost else ()
        submission = Submission(self.name, request, plan.to_json(), uploads)
        return Adopted(submission, handle, _begun(found), notes=notes)

    def elsewhere(self, handle: Handle) -> bool:
        folder = self.runs.folder(handle.values["run"])
        return (
            ADOPTED in handle.values
            and not (folder / SUPERVISOR).exists()
            and not is_locked(folder / LOCK)
        )

    def status(self, handle: Handle) -> RunState:
        # The lock first: it is let go of after the outcome is written, so both cannot be missed.
        alive = is_locked(self.runs.folder(handle.values["run"]) / LOCK)
        end = self._end(handle)
        if end is not None:
            return RunState(end.state)
        store = self.store(handle)
        if not alive and not (self.elsewhere(handle) and is_written(store)):
            return RunState.UNKNOWN
        attempts = store.attempts()
        status = store.get_status()
        if status is None or not attempts:
            return RunState.QUEUED
        return (
            RunState.RUNNING
            if status.attempt == attempts[-1] and status.exit_code is None
            else RunState.RECOVERING
        )

    def explain(self, handle: Handle) -> str:
        alive = is_locked(self.runs.folder(handle.values["run"]) / LOCK)
        end = self._end(handle)
        if end is not None:
            return end.message
        if alive:
            return ""
        goes_on = f"`ft cloud resume {handle.values['run']}` goes on"
        if not self.elsewhere(handle):
            return f"the supervisor was killed, or the machine restarted; {self._left(handle)}{goes_on}"
        if is_written(self.store(handle)):
            return "it was adopted, and a living attempt on another machine writes its store"
        return f"it was adopted, and nobody writes its store any more; {goes_on}"

    def _is_living(self, handle: Handle) -> bool:
        """Of a run that is looked after elsewhere."""
        if is_locked(self.store(handle).root / ATTEMPT_LOCK):
            return True
        state = self.status(handle)
        return not state.ended and state is not RunState.UNKNOWN

    def _left(self, handle: Handle) -> str:
        """What became of training when its supervisor died: a part of a sentence."""
        store = self.store(handle)
        status, attempts = store.get_status(), store.attempts()
        if is_locked(store.root / ATTEMPT_LOCK):
            return "training is saving and stops by itself; after that "
        if not attempts or status is None or status.attempt != attempts[-1]:
            return "no attempt was running; "
        saved = newest_published(store)
        if status.exit_code is None:
            left = f"the checkpoint of step {saved} is left" if saved else "no checkpoint is left"
            return f"training died with it at step {status.step}, {left}; "
        if status.exit_code == ExitCode.PREEMPTED and saved:
            return f"training saved at step {saved} and stopped; "
        return f"the attempt had ended before ({status.message or status.reason}); "

    def reason(self, handle: Handle) -> str:
        end = self._end(handle)
        return end.reason if end is not None else ""

    def delivered(self, handle: Handle) -> str:
        end = self._end(handle)
        return end.delivered_to if end is not None else ""

    def _end(self, handle: Handle) -> Outcome | None:
        """How the run ended, as its supervisor wrote it, or as its adopted store tells."""
        end = read_outcome(self.runs.folder(handle.values["run"]))
        if end is None and self.elsewhere(handle):
            return outcome_of(self.store(handle))
        return end

    def logs(self, handle: Handle, query: LogQuery) -> Iterator[LogLine]:
        log = self.runs.folder(handle.values["run"]) / LOG
        reader = LogReader(self.store(handle), query, supervisor_log=log)

        def look() -> tuple[bool, bool]:
            state, over = self.status(handle), self._is_over(handle)
            return over, state.ended or state is RunState.UNKNOWN

        yield from reader.lines(look)

    def _is_over(self, handle: Handle) -> bool:
        """Whether nobody writes the run's logs any more."""
        state = self.status(handle)
        gone = state.ended or state is RunState.UNKNOWN
        return gone and not is_locked(self.store(handle).root / ATTEMPT_LOCK)

    def cancel(self, handle: Handle, *, grace_s: float, reason: Reason) -> None:
        folder, store = self.runs.folder(handle.values["run"]), self.store(handle)
        if self._end(handle) is not None:
            return
        by = f"pid {os.getpid()}"
        request = Control("stop", time.time(), by=by, reason=reason, grace_s=grace_s)
        looked_after = is_locked(folder / LOCK) or self.status(handle) is not RunState.UNKNOWN
        store.put_control(request)
        if looked_after:
            return
        # Nobody is there to do it. An attempt that is still saving is waited for.
        killed = False
        if not let_go(store.root / ATTEMPT_LOCK, grace_s + (LATE_S if grace_s else 0)):
            killed = kill_holder(store.root / ATTEMPT_LOCK)
            if not killed:
                raise StoreError(
                    f"run {folder.name} could not be ended: an attempt still writes {store.root}",
                    hint="end the process that holds its .attempt.lock, and cancel again",
                )
        what = "its supervisor was gone" + (
            ", its attempt was killed without saving" if killed else ""
        )
        self._write_end(folder, reason, what, store)

    def kill(self, handle: Handle, *, reason: Reason) -> None:
        folder = self.runs.folder(handle.values["run"])
        if not is_locked(folder / LOCK):
            return
        info = _living_supervisor(folder)
        if info is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGKILL)
        if not let_go(folder / LOCK, KILL_TIMEOUT_S):
            raise SubmitError(f"the supervisor of run {folder.name} could not be killed")
        if read_outcome(folder) is None:
            what = "its supervisor did not answer and was killed"
            self._write_end(folder, reason, what, self.store(handle))

    def _write_end(self, folder: Path, reason: Reason, what: str, store: LocalStore) -> None:
        """Of a run whose supervisor cannot do it any more. Training that was done has succeeded all the same."""
        final = store.final()
        if final is not None and was_done(store):
            record = self.runs.get(folder.name)
            target = Path(record.output_dir) if record else final
            found = delivery_in(target)
            if found is not None and found.run == folder.name and found.is_whole(target):
                said, where = "done", target
            else:
                said, where = f"done, but not delivered: {what}; it is in {final}", final
            end = outcome(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE, said, str(where))
        else:
            said = f"{ENDED_BY[reason]}; {what}; {what_stays(store, folder.name)}"
            end = outcome(RunState.CANCELLED, reason, 128 + signal.SIGKILL, said)
        write_atomic(folder / OUTCOME, end.to_json())

    def execute(
        self, handle: Handle, command: Sequence[str], *, node: int, takes_input: bool
    ) -> int:
        del node  # There is one.
        store = self.store(handle)
        agent = holder(store.root / ATTEMPT_LOCK)
        environment = environment_of(agent) if agent is not None else None
        if environment is None:
            where = ", and nothing of it on this machine" if self.elsewhere(handle) else ""
            raise NotFoundError(
                f"run {handle.values['run']}: no attempt runs now{where}",
                hint="the same command again once one does: ft cloud status "
                + handle.values["run"],
            )
        return run_beside(command, store.root, environment, takes_input=takes_input)

    def discard(self, handle: Handle, *, plan_sha256: str) -> None:
        if ADOPTED in handle.values:
            return  # Somebody else's folder: here it was only looked at.
        root = self.store(handle).root
        bucket = _bucket_of(self.runs.submission(handle.values["run"]), handle.values["run"])
        if not root.exists():
            return
        if is_locked(root / ATTEMPT_LOCK):
            raise StoreError(f"{root} is not deleted: an attempt still writes it")
        try:
            found = read_plan(root / PLAN).sha256
        except PlanError as error:
            raise StoreError(f"{root} is not deleted: {error.message}") from error
        if found != plan_sha256:
            raise StoreError(f"{root} is not deleted: it holds the plan of another run")
        if bucket is not None:
            bucket.remove()
        try:
            # The plan goes last: what a kill leaves behind can still be told for what it is.
            for path in sorted(root.iterdir(), key=lambda path: path.name == PLAN):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            root.rmdir()
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error

    def store(self, handle: Handle) -> LocalStore:
        return LocalStore(Path(handle.values["store"]))

    def published(self, handle: Handle, folder: Path) -> FolderSource:
        del handle
        return FolderSource(folder)


def _plan_of(store: LocalStore) -> RunPlan:
    if not store.plan_path.is_file():
        what = f"it has no {PLAN}" if store.root.is_dir() else "it is no folder"
        raise UsageError(
            f"{store.root} is no store of a run: {what}",
            hint="a store is a folder with plan.json, inputs/, status.json and events.jsonl",
        )
    if (store.root / WORDS).is_dir() or (store.root / SUBMISSION).is_file():
        raise UsageError(
            f"{store.root} is the copy of a run that other machines write: what is done here would be lost there",
            hint=f"ft cloud adopt file://{store.root}  is the way to it",
        )
    return read_plan(store.plan_path)


def _begun(store: LocalStore) -> float:
    """Unix time of the first event, or of the plan where there is none."""
    try:
        with (store.root / EVENTS).open("rb") as stream:
            return Event.from_json(stream.readline()).time
    except (OSError, ValueError):
        return store.plan_path.stat().st_mtime


def was_done(store: LocalStore) -> bool:
    """Whether the last attempt ended well: as a supervisor noted it, or as it said itself."""
    number = max(store.attempts(), default=0)
    end, status = end_of(store, number), store.get_status()
    if end is not None:
        return end.exit_code == ExitCode.DONE
    return status is not None and (status.attempt, status.exit_code) == (number, ExitCode.DONE)


def is_written(store: LocalStore) -> bool:
    """Whether a living attempt seems to write the store: it holds the lock, or spoke a moment ago."""
    if is_locked(store.root / ATTEMPT_LOCK):
        return True
    status = store.get_status()
    return status is not None and time.time() - status.updated_at < FRESH_S


def outcome_of(store: LocalStore) -> Outcome | None:
    """How a run ended that another machine looked after; None if it may go on."""
    status, attempts = store.get_status(), store.attempts()
    if status is None or status.exit_code is None or (attempts and attempts[-1] > status.attempt):
        return None
    code, message = status.exit_code, status.message or ""

    def end(state: RunState, reason: str, said: str, delivered: str = "") -> Outcome:
        return Outcome(state, reason, code, said, status.updated_at, delivered)

    final, control = store.final(), store.get_control()
    if code == ExitCode.DONE and final is not None:
        return end(RunState.SUCCEEDED, Reason.DONE, "done", str(final))
    if control is not None and control.request == "stop":
        return end(RunState.CANCELLED, control.reason, message)
    ends = store.attempt_ends(after=0)
    if len(ends) < len(attempts) or not ends:
        last = AttemptEnd(code, status.step, newest_published(store), status.reason or "")
        ends = [*ends, last]
    decision = verdict(ends)
    if decision.restart:
        return None
    if decision.reason in ENDED_BY:
        return end(RunState.CANCELLED, decision.reason, message or decision.message)
    return end(RunState.FAILED, decision.reason, message or decision.message)


def _store_of(submission: Submission, key: str) -> str:
    return str(submission.request["store"]).replace("{run}", key)


def _bucket_of(submission: Submission, key: str) -> RunBucket | None:
    """Where the run's copy lies, if it has one. Raises: DependencyError without the library for buckets."""
    uri = bucket_uri(submission, key)
    return RunBucket(uri) if uri else None


def bucket_uri(submission: Submission, key: str) -> str:
    """`s3://BUCKET/PREFIX/RUN`; empty without one."""
    return str(submission.request.get("bucket", "")).replace("{run}", key)


def kill_holder(lock: Path) -> bool:
    """Kill the process of this machine that holds the lock. False: somebody still holds it."""
    pid = holder(lock)
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return let_go(lock, KILL_TIMEOUT_S if pid is not None else 0.0)


def _living_supervisor(folder: Path) -> SupervisorInfo | None:
    """Whoever holds the run's lock, which makes its pid its own; None if nobody does any more.

    It says who it is a moment after it has taken the lock. Raises: SubmitError if it does not.
    """
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while is_locked(folder / LOCK):
        try:
            return SupervisorInfo.from_json((folder / SUPERVISOR).read_bytes())
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise SubmitError(
                    f"the supervisor of run {folder.name} does not say who it is: {error}"
                ) from error
        time.sleep(POLL_S)
    return None


def let_go(lock: Path, timeout_s: float) -> bool:
    """Wait until nobody holds the lock."""
    deadline = time.monotonic() + timeout_s
    while is_locked(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def read_outcome(folder: Path) -> Outcome | None:
    try:
        return Outcome.from_json((folder / OUTCOME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / OUTCOME}: {error}") from error


def _can_write(folder: Path) -> Check:
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    ok = os.access(nearest, os.W_OK)
    fix = "" if ok else "set XDG_STATE_HOME and XDG_DATA_HOME to folders of yours"
    return Check(
        "storage", ok=ok, message=f"{folder} {'can' if ok else 'cannot'} be written", fix=fix
    )
