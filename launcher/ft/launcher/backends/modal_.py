"""Modal: a run is a chain of calls of one deployed app, its store a folder on a volume.

Beside the record: `sending.json` (something was sent), `call.json` (the call that was spawned, written before
anything else is done), `store/` (what the store says, fetched again and again), `outcome.json` (an end
that only this laptop saw).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ft.images import bundle
from ft.launcher.backends import modal_request
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
from ft.launcher.backends.modal_calls import (
    is_deployed,
    is_living,
    newest_call,
    peek,
    segments,
    stop_app,
)
from ft.launcher.backends.modal_left import Left, Place
from ft.launcher.backends.modal_store import (
    RunFolder,
    VolumeSource,
    lacking,
    read_left,
)
from ft.launcher.backends.modal_talk import (
    checks,
    environment,
    first_line,
    is_of_the_client,
    talking,
    words_of,
)
from ft.launcher.ends import ENDED_BY, OUTCOME, Outcome, outcome, what_stays
from ft.launcher.logs import LogReader
from ft.launcher.mirror import SUPERVISOR_LOG, Replica, SeenStore
from ft.launcher.runs import SUBMISSION, Runs
from ft.launcher.secrets import values
from ft.launcher.transfer import FolderSource
from ft.recipes.errors import (
    FtError,
    NotFoundError,
    PlanError,
    StoreError,
    SubmitError,
    UsageError,
)
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    INPUTS,
    PLAN,
    Control,
    ExitCode,
    JsonRecord,
    Reason,
    RunState,
    write_atomic,
)
from ft.recipes.store import LocalStore

if TYPE_CHECKING:
    from ft.images.spec import ImageSpec
    from ft.launcher.transfer import Source
    from ft.recipes.schema.cloud import CloudBlock

SENDING: Final = "sending.json"
CALL: Final = "call.json"
STORE: Final = "store"
LOOK_EVERY_S: Final = 1.0
SILENT_S: Final = 120.0
"""As long as Modal may be silent before nobody knows what a run does."""
RESTS_S: Final = 30.0
"""For a call that is about to end, before a resume calls it a living one."""
STALE_S: Final = 90.0
"""An upload whose container has not said for so long that it goes on does not."""
MAX_HOPS: Final = 10_000
"""Segments of a chain; a ring would be a bug, not a reason to hang."""


@dataclass(frozen=True, slots=True)
class Call(JsonRecord):
    """A call that this laptop spawned, or found."""

    app_id: str
    call: str
    segment: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of a run's machines."""

    state: RunState
    is_held: bool
    """Whether a container has begun the segment that is to go on; else it waits for a machine."""
    at: float
    """When that was, by `time.monotonic`."""
    asked_at: float
    """When Modal was last asked, whether it answered or not."""


class ModalBackend:
    """Runs on Modal. See `ft.launcher.backends.base.Backend` for the contract."""

    name = "modal"
    capabilities = (
        Capability.IMAGE
        | Capability.MULTI_NODE
        | Capability.VOLUMES
        | Capability.SPOT
        | Capability.DETACH
        | Capability.EXEC
        | Capability.COSTS
    )

    def __init__(self, runs: Runs | None = None) -> None:
        self.runs = runs or Runs()
        self._looked_at: dict[str, float] = {}
        self._seen: dict[str, Seen] = {}
        self._silent = ""
        """What was said when Modal was last asked about a run in vain."""

    # ------------------------------------------------------------------------------- beforehand

    def check(self) -> list[Check]:
        return checks()

    def prepare(
        self,
        plan: RunPlan,
        image: ImageSpec | None,
        *,
        uploads: tuple[Upload, ...],
        cloud: CloudBlock,
        simulate: tuple[str, ...] = (),
    ) -> Submission:
        """Needs no account, no network and no client of Modal's. Raises: PlanError."""
        del simulate  # Refused before: Capability.SIMULATE is missing.
        if image is None:
            raise PlanError("backend modal runs in an image, and got none")
        asked = modal_request.request(plan, image, cloud, os.environ)
        return Submission(self.name, asked, plan.to_json(), uploads)

    # ------------------------------------------------------------------------------- submission

    def submit(self, submission: Submission, *, key: str) -> Handle:
        asked = modal_request.filled(submission.request, key)
        known = self._read(key, CALL)
        if known is not None:
            return self._handle(asked, Call.from_json(known), environment())

        was_begun = self._read(key, SENDING) is not None

        def forget_withdrawal() -> None:
            if was_begun:
                words_of(asked["words"], environment(), create=True).pop("control", None)

        first = modal_request.PREPARE
        return self._send(submission, asked, key, segment=first, at_last=forget_withdrawal)

    def _send(
        self,
        submission: Submission,
        asked: Mapping[str, Any],
        key: str,
        *,
        segment: int,
        at_last: Callable[[], None] = lambda: None,
    ) -> Handle:
        """Upload, deploy, spawn; `at_last` just before that. A kill in between is healed: one call claims the segment.

        Raises: SubmitError; nothing is left running then.
        """
        secret, where = _secrets_of(asked), None
        with talking(secret):
            from ft.launcher.backends.modal_app import ModalCloud
            from ft.launcher.machine.words import call_of

            where = environment()
            _must_have_secrets(asked, where)
            is_new = self._read(key, SENDING) is None
            write_atomic(self.runs.folder(key) / SENDING, json.dumps({"segment": segment}))
            job = self._job(asked, key, segment)
            texts = {PLAN: submission.plan_json, SUBMISSION: _left(submission, job)}
            self._folder(asked, where).upload(submission.uploads, texts, is_new=is_new)
            cloud = ModalCloud(asked, secrets=secret)
            app_id = cloud.deploy()
            at_last()
            try:
                spawned = cloud.spawn(self._first(key, segment), job)
                call = Call(app_id, spawned, segment)
                write_atomic(self.runs.folder(key) / CALL, call.to_json())
                if segment != modal_request.PREPARE:
                    # The run is known elsewhere by now, which looks for the newest call before it has begun.
                    words_of(asked["words"], where)[call_of(segment)] = spawned
            except BaseException:
                # Whether it was spawned nobody knows: what nobody can name must not train.
                with contextlib.suppress(Exception):
                    stop_app(asked["app"], where)
                raise
        return self._handle(asked, call, where)

    def _first(self, key: str, segment: int) -> str:
        """The function to begin with. A run that has had an attempt has its rows and its model."""
        store = LocalStore(self.runs.folder(key) / STORE)
        return "train" if segment != modal_request.PREPARE and store.attempts() else "prepare"

    def _job(self, asked: Mapping[str, Any], key: str, segment: int) -> dict[str, Any]:
        record = self.runs.get(key)
        after = record.resumed_after if record is not None else 0
        return {**asked["job"], "segment": segment, "resumed_after": after}

    def _handle(self, asked: Mapping[str, Any], call: Call, where: str | None) -> Handle:
        names = {
            "run": asked["job"]["run"],
            "app": asked["app"],
            "app_id": call.app_id,
            "call": call.call,
            "segment": str(call.segment),
            "volume": asked["job"]["volume"],
            "words": asked["words"],
            "environment": where or "",
        }
        return Handle(self.name, names)

    @staticmethod
    def _folder(asked: Mapping[str, Any], where: str | None) -> RunFolder:
        return RunFolder(asked["job"]["run"], asked["job"]["volume"], where)

    def release(self, handle: Handle) -> None:
        """Nothing to do: a run on a volume of Modal's goes nowhere else."""

    def find(self, key: str) -> Handle | None:
        asked = modal_request.filled(self.runs.submission(key).request, key)
        known = self._read(key, CALL)
        if known is not None:
            return self._handle(asked, Call.from_json(known), environment())
        if self._read(key, SENDING) is None:
            return None
        with talking():
            current = peek(words_of(asked["words"], environment()), "current")
        if current is None:
            return None
        if current["plan"] != asked["job"]["plan_sha256"]:
            raise SubmitError(
                f"a call of another plan has begun under the id {key}",
                hint=f"modal app stop {asked['app']}, and submit it again under another --name",
            )
        call = Call("", current["call"], current["segment"])
        return self._handle(asked, call, environment())

    def abandon(self, key: str) -> None:
        if self._read(key, SENDING) is None:
            return
        asked = modal_request.filled(self.runs.submission(key).request, key)
        with talking():
            request = Control("stop", time.time(), by="withdrawn", grace_s=0.0)
            words_of(asked["words"], environment(), create=True)["control"] = request.to_json()
            stop_app(asked["app"], environment())

    def resume(self, submission: Submission, *, handle: Handle) -> Handle:
        key = handle.values["run"]
        plan = RunPlan.from_json(submission.plan_json)
        asked = modal_request.filled(modal_request.limited(submission.request, plan), key)
        _must_be_here(handle)
        with talking():
            self._run_folder(handle).must_exist()
            self._must_rest(handle)
            words = self._words(handle)
            begun = (peek(words, "current") or {}).get("segment", 0)
            segment = 1 + max([int(handle.values["segment"]), begun, *segments(words)])

        def forget_end() -> None:
            words.pop("control", None)
            self._run_folder(handle).remove(OUTCOME)
            (self.runs.folder(key) / CALL).unlink(missing_ok=True)
            self._forget_end(key)

        end = self._end(handle)
        try:
            return self._send(submission, asked, key, segment=segment, at_last=forget_end)
        except FtError:
            if end is not None:
                self._write_end(handle, end)  # All is as it was.
            raise

    def _forget_end(self, key: str) -> None:
        """What this laptop has noted of it."""
        (self.runs.folder(key) / OUTCOME).unlink(missing_ok=True)
        Replica(self.runs.folder(key) / STORE).forget_end()
        self._seen.pop(key, None)

    def _must_rest(self, handle: Handle) -> None:
        """Raises: SubmitError if a call of the run lives, or UnreachableError if nobody can say so."""
        until = time.monotonic() + RESTS_S
        while self._ask(handle)[0]:
            if time.monotonic() > until:
                key = handle.values["run"]
                raise SubmitError(
                    f"run {key} goes on: a call of it waits or trains on Modal",
                    hint=f"ft cloud attach {key}, or first: ft cloud cancel {key}",
                )
            time.sleep(LOOK_EVERY_S)

    def adopt(self, store: str, *, key: str) -> Adopted:
        place = Place.named(store)
        if key != place.run:  # Its app, its Dict and its calls go by it.
            here = self.runs.get(place.run)
            raise UsageError(
                f"there is another run {place.run} here already{f': {here.store}' if here else ''}"
            )
        where = environment()
        with talking():
            submission, left, listed = read_left(place, where)
            asked = modal_request.filled(submission.request, key)
            call, segment = newest_call(words_of(asked["words"], where))
            if self.runs.get(key) is not None:
                self._forget_end(key)
        lost = [u for u in lacking(listed, submission.uploads) if not u.source.exists()]
        notes = [cannot_be_resumed([f"{INPUTS}/{u.name}" for u in lost])] if lost else []
        return Adopted(
            submission,
            self._handle(asked, Call("", call, segment), where),
            place.began_at,
            left.resumed_after,
            (*notes, *filter(None, [left.difference()])),
        )

    # ------------------------------------------------------------------------------------ looks

    def status(self, handle: Handle) -> RunState:
        key = handle.values["run"]
        end = self._end(handle)
        if end is not None:
            return RunState(end.state)
        seen = self._seen.get(key)
        if seen is None or time.monotonic() - seen.asked_at >= LOOK_EVERY_S:
            seen = self._seen[key] = self._look(handle, seen)
        return seen.state

    def _look(self, handle: Handle, before: Seen | None) -> Seen:
        """The state as Modal has it now; where it does not answer, the last one for a while."""
        now = time.monotonic()
        try:
            with talking():
                alive, is_held = self._ask(handle)
        except FtError as error:
            self._silent = error.message
            if before is not None and now - before.at < SILENT_S:
                return replace(before, asked_at=now)
            return Seen(RunState.UNKNOWN, is_held=True, at=now, asked_at=now)
        self._silent = ""
        self._try_refresh(handle, at_once=not alive)
        end = self._end(handle)
        if end is not None:
            state = RunState(end.state)
        else:
            state = self._living(handle, is_held=is_held) if alive else RunState.UNKNOWN
        return Seen(state, is_held, now, now)

    def _living(self, handle: Handle, *, is_held: bool) -> RunState:
        store = self._replica(handle)
        attempts, status = store.attempts(), store.get_status()
        if not attempts:
            return RunState.RUNNING if is_held else RunState.QUEUED
        is_running = (
            status is not None and status.attempt == attempts[-1] and status.exit_code is None
        )
        return RunState.RUNNING if is_running and is_held else RunState.RECOVERING

    def _ask(self, handle: Handle) -> tuple[bool, bool]:
        """Whether a call of the run goes on or waits, and whether it is one that a container has begun.

        A chain that broke off gets its end here: nobody else saw it. Raises: what the client raises.
        """
        import modal

        current = peek(self._words(handle), "current")
        call, holder = handle.values["call"], ""
        if current is not None and current["segment"] >= int(handle.values["segment"]):
            call = holder = current["call"]
        if not call:  # It was adopted before a container had begun, and its first call is the other laptop's to know.
            return is_deployed(handle), False
        for _ in range(MAX_HOPS):
            try:
                said = modal.FunctionCall.from_id(call).get(timeout=0)
            except modal.exception.FunctionTimeoutError as error:
                self._note_broken(handle, error)
                return False, False
            except (modal.exception.OutputExpiredError, modal.exception.NotFoundError):
                return False, False
            except TimeoutError:
                return True, call == holder
            except Exception as error:
                if is_of_the_client(error):
                    raise
                self._note_broken(handle, error)
                return False, False
            if said.get("next") is None or said["state"] in set(RunState):
                return False, False
            call = said["next"]
        raise StoreError(f"the chain of calls of run {handle.values['run']} has no end")

    def _note_broken(self, handle: Handle, error: Exception) -> None:
        """The end of a run that Modal gave up, or that somebody cancelled there."""
        # Raises if the volume cannot be read: then nobody knows whether the container wrote an end.
        self._run_folder(handle).refresh(self._mirror_of(handle))
        if self._end(handle) is not None:
            return
        said = first_line(error)
        if type(error).__name__ == "RemoteError" and "cancel" in said.lower():
            stays = what_stays(self._replica(handle), handle.values["run"])
            message = f"cancelled on Modal; {stays}"
            end = outcome(RunState.CANCELLED, Reason.CANCELLED, ExitCode.PREEMPTED, message)
        else:
            # What a container raised says itself what it was; see `modal_remote._run`.
            what = (
                said.removeprefix("ft: ")
                if said.startswith("ft: ")
                else f"{type(error).__name__}: {said}"
            )
            message = f"Modal gave it up: {what}"
            end = outcome(RunState.FAILED, Reason.INFRA, ExitCode.UNCLASSIFIED, message)
        self._write_end(handle, end)

    def _write_end(self, handle: Handle, end: Outcome) -> None:
        write_atomic(self.runs.folder(handle.values["run"]) / OUTCOME, end.to_json())

    def _end(self, handle: Handle) -> Outcome | None:
        folder = self.runs.folder(handle.values["run"])
        for path in (folder / OUTCOME, folder / STORE / OUTCOME):
            with contextlib.suppress(FileNotFoundError):
                return Outcome.from_json(path.read_bytes())
        return None

    def explain(self, handle: Handle) -> str:
        key, end = handle.values["run"], self._end(handle)
        if end is None and self._silent:
            return self._silent
        if end is None:
            seen = self._seen.get(key)
            is_gone = seen is not None and seen.state is RunState.UNKNOWN
            return (
                f"no call of it lives on Modal; `ft cloud resume {key}` goes on" if is_gone else ""
            )
        message = end.message
        for upload in self.runs.submission(key).uploads:
            message = message.replace(f"inputs/{upload.name}", str(upload.source))
        return message

    def reason(self, handle: Handle) -> str:
        end = self._end(handle)
        return end.reason if end is not None else ""

    def elsewhere(self, handle: Handle) -> bool:
        del handle
        return False

    def delivered(self, handle: Handle) -> str:
        """It stays on the volume until somebody fetches it."""
        del handle
        return ""

    def logs(self, handle: Handle, query: LogQuery) -> Iterator[LogLine]:
        log = self.runs.folder(handle.values["run"]) / STORE / SUPERVISOR_LOG
        reader = LogReader(self.store(handle), query, supervisor_log=log)

        def look() -> tuple[bool, bool]:
            state = self.status(handle)
            self.store(handle)
            over = state.ended or state is RunState.UNKNOWN
            return over, over

        yield from reader.lines(look)

    def execute(
        self, handle: Handle, command: Sequence[str], *, node: int, takes_input: bool
    ) -> int:
        with talking():
            from ft.launcher.backends.modal_exec import execute
            from ft.launcher.backends.modal_host import WORK
            from ft.launcher.backends.modal_words import container_of

            container = peek(self._words(handle), container_of(node))
        if container is None:
            raise NotFoundError(
                f"no container of run {handle.values['run']} has said that it is node {node}",
                hint="the same command again in a moment; or modal container list",
            )
        # A shell says what every shell does where there is no such command, and where it may not be run.
        words = ["sh", "-c", 'cd "$0" && exec "$@"', f"{WORK}/{handle.values['run']}", *command]
        return execute(str(container), words, takes_input=takes_input)

    # ------------------------------------------------------------------------------------- ends

    def cancel(self, handle: Handle, *, grace_s: float, reason: Reason) -> None:
        if self._end(handle) is not None:
            return
        by = f"pid {os.getpid()}"
        request = Control("stop", time.time(), by=by, reason=reason, grace_s=grace_s)
        where = handle.values.get("environment") or None
        with talking():
            # Its first container may not have made it yet.
            words_of(handle.values["words"], where, create=True)["control"] = request.to_json()
            alive, is_held = self._ask(handle)
        self._try_refresh(handle, at_once=True)
        if self._end(handle) is not None or is_held:
            return
        # No container is there to hear it.
        self._terminate(handle)
        what = " while it waited for a machine" if alive else " when no call of it lived any more"
        self._end_here(handle, reason, what)

    def kill(self, handle: Handle, *, reason: Reason) -> None:
        self._wait_for_upload(handle)
        if self._end(handle) is not None:
            return
        self._terminate(handle)
        self._end_here(handle, reason, ": it did not answer and was killed")

    def _wait_for_upload(self, handle: Handle) -> None:
        """What the run has saved may still be on its way: its container says so again and again while it is."""
        last, changed_at = None, time.monotonic()
        while time.monotonic() - changed_at < STALE_S:
            with talking():
                ending, (alive, _) = peek(self._words(handle), "ending"), self._ask(handle)
            self._try_refresh(handle, at_once=True)
            if ending is None or not alive or self._end(handle) is not None:
                return
            if ending != last:
                last, changed_at = ending, time.monotonic()
            time.sleep(2 * LOOK_EVERY_S)

    def _terminate(self, handle: Handle) -> None:
        """End every call of the run that there may be."""
        import modal

        with talking():
            words = self._words(handle)
            calls = {handle.values["call"]}
            with contextlib.suppress(modal.exception.NotFoundError):
                said = {str(key): value for key, value in words.items()}
                calls |= {str(v) for k, v in said.items() if k.startswith(("call-", "holder-"))}
            if "" in calls:  # Whoever adopted it does not know its first one.
                calls.remove("")
                stop_app(handle.values["app"], handle.values.get("environment") or None)
            for call in calls:
                with contextlib.suppress(modal.exception.NotFoundError):
                    modal.FunctionCall.from_id(call).cancel(terminate_containers=True)

    def _end_here(self, handle: Handle, reason: Reason, what: str) -> None:
        """Write the end that no container can write any more, here and where a new segment would look.

        Unless one was written at the last moment.
        """
        self._try_refresh(handle, at_once=True)
        if self._end(handle) is not None:
            return
        stays = what_stays(self._replica(handle), handle.values["run"])
        message = f"{ENDED_BY[reason]}{what}; {stays}"
        end = outcome(RunState.CANCELLED, reason, int(ExitCode.PREEMPTED), message)
        with talking():
            self._run_folder(handle).write(OUTCOME, end.to_json())
        self._write_end(handle, end)

    def discard(self, handle: Handle, *, plan_sha256: str) -> None:
        import modal

        key = handle.values["run"]
        plan = self.runs.folder(key) / STORE / PLAN
        if plan.is_file() and read_plan(plan).sha256 != plan_sha256:
            raise StoreError(
                f"the store of run {key} is not deleted: it holds the plan of another run"
            )
        where = handle.values.get("environment") or None
        with talking():
            with contextlib.suppress(modal.exception.NotFoundError):
                self._must_be_as_seen(handle)
            self._run_folder(handle).remove()
            with contextlib.suppress(modal.exception.NotFoundError):
                modal.Dict.objects.delete(handle.values["words"], environment_name=where)
            stop_app(handle.values["app"], where)

    def _must_be_as_seen(self, handle: Handle) -> None:
        """Raises: StoreError if another laptop has gone on with it since this one saw its end."""
        key, folder = handle.values["run"], self._run_folder(handle)
        paths = {file.path for file in folder.listed()}
        if PLAN not in paths:
            return  # It is gone, or went in part.
        seen, own = self._read(key, f"{STORE}/{OUTCOME}"), self._read(key, OUTCOME)
        if OUTCOME in paths:
            there = Outcome.from_json(folder.read(OUTCOME))
            is_same = there in [Outcome.from_json(text) for text in (seen, own) if text]
        else:  # As of an end that only this laptop has seen.
            is_same = seen is None and not is_living(newest_call(self._words(handle))[0])
        if not is_same:
            raise StoreError(
                f"the store of run {key} is not deleted: it has gone on since this laptop saw its end; "
                f"ft cloud adopt modal://{folder.volume}/{key}  looks again"
            )

    # ------------------------------------------------------------------------------------ store

    def store(self, handle: Handle) -> LocalStore:
        """As it was a second ago at most, where Modal answers; else as it was last seen."""
        if self._end(handle) is None:
            self._try_refresh(handle)
        return self._replica(handle)

    def _replica(self, handle: Handle) -> LocalStore:
        return SeenStore(self.runs.folder(handle.values["run"]) / STORE)

    def _try_refresh(self, handle: Handle, *, at_once: bool = False) -> None:
        """Fetch what is new, unless that was done a moment ago. What cannot be had now is had later."""
        key, now = handle.values["run"], time.monotonic()
        if not at_once and now - self._looked_at.get(key, float("-inf")) < LOOK_EVERY_S:
            return
        self._looked_at[key] = now
        try:
            with talking():
                self._run_folder(handle).refresh(self._mirror_of(handle))
        except FtError as error:
            self._silent = error.message

    def published(self, handle: Handle, folder: Path) -> Source:
        name = folder.relative_to(self._replica(handle).root).as_posix()
        return VolumeSource(self._run_folder(handle), name, FolderSource(folder).manifest)

    def _mirror_of(self, handle: Handle) -> Replica:
        return Replica(self.runs.folder(handle.values["run"]) / STORE)

    @staticmethod
    def _run_folder(handle: Handle) -> RunFolder:
        of = handle.values
        return RunFolder(of["run"], of["volume"], of.get("environment") or None)

    @staticmethod
    def _words(handle: Handle) -> Any:
        return words_of(handle.values["words"], handle.values.get("environment") or None)

    def _read(self, key: str, name: str) -> bytes | None:
        try:
            return (self.runs.folder(key) / name).read_bytes()
        except FileNotFoundError:
            return None


def _must_be_here(handle: Handle) -> None:
    """Raises: SubmitError where a resume would go to another environment of Modal's than the run is in."""
    was, here = handle.values.get("environment") or None, environment()
    if was != here:
        raise SubmitError(
            f"run {handle.values['run']} is in {was or 'the default environment'} of Modal, and {here or 'that'} is "
            "chosen now",
            hint=f"MODAL_ENVIRONMENT={was or ''} ft cloud resume {handle.values['run']}",
        )


def _left(submission: Submission, job: Mapping[str, Any]) -> str:
    """What is left for another laptop, as text."""
    # The first time it is what was planned a moment ago; to hash it again takes as long as to send a small run.
    is_first = job["segment"] == modal_request.PREPARE
    digest = submission.request["image"]["source_sha256"] if is_first else bundle.source_digest()
    after = job["resumed_after"]
    return Left.of(submission, source_sha256=digest, resumed_after=after).to_json()


def _must_have_secrets(asked: Mapping[str, Any], where: str | None) -> None:
    """Before anything is sent. Raises: SubmitError naming a secret that is neither here nor on Modal."""
    import modal

    for name in asked["secrets"]["on_modal"]:
        try:
            modal.Secret.from_name(name, environment_name=where).hydrate()
        except modal.exception.NotFoundError:
            raise SubmitError(
                f"cloud.secrets: {name} is neither set in this machine's environment nor a secret on Modal",
                hint=f"export {name}=…, or: modal secret create {name} …",
            ) from None


def _secrets_of(asked: Mapping[str, Any]) -> dict[str, str]:
    wanted = asked["secrets"]["from_here"]
    found = values(wanted, os.environ)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SubmitError(
            f"cloud.secrets: {missing[0]} was set when the run was planned, and is not set now",
            hint=f"export {missing[0]}=…, and the same command again",
        )
    return found
