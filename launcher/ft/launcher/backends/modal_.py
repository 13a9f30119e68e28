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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ft.images import bundle
from ft.launcher.backends import modal_request
from ft.launcher.backends.afar import LOOK_EVERY_S, STORE, AfarBackend, Alive
from ft.launcher.backends.base import (
    Adopted,
    Capability,
    Check,
    Handle,
    Submission,
    Upload,
    cannot_be_resumed,
)
from ft.launcher.backends.left import Left, began_at
from ft.launcher.backends.modal_calls import (
    is_deployed,
    is_living,
    newest_call,
    peek,
    segments,
    stop_app,
)
from ft.launcher.backends.modal_left import Place
from ft.launcher.backends.modal_store import (
    RunFolder,
    VolumeSource,
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
from ft.launcher.ends import OUTCOME, Outcome, outcome, what_stays
from ft.launcher.inputs import lacking
from ft.launcher.mirror import Replica
from ft.launcher.runs import SUBMISSION
from ft.launcher.secrets import planned_values
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
RESTS_S: Final = 30.0
"""For a call that is about to end, before a resume calls it a living one."""
MAX_HOPS: Final = 10_000
"""Segments of a chain; a ring would be a bug, not a reason to hang."""


@dataclass(frozen=True, slots=True)
class Call(JsonRecord):
    """A call that this laptop spawned, or found."""

    app_id: str
    call: str
    segment: int


@dataclass(frozen=True, slots=True)
class ModalCopy:
    """A run's volume and Dict, as a laptop reads and writes them: see `afar.RunCopy`."""

    handle: Handle

    def refresh(self, replica: Replica) -> None:
        with talking():
            _folder_of(self.handle).refresh(replica)

    def write(self, name: str, text: str) -> None:
        with talking():
            _folder_of(self.handle).write(name, text)

    def say(self, key: str, value: object) -> None:
        where = self.handle.values.get("environment") or None
        with talking():
            # Its first container may not have made it yet.
            words_of(self.handle.values["words"], where, create=True)[key] = value

    def word(self, key: str) -> object:
        with talking():
            return peek(_words(self.handle), key)


class ModalBackend(AfarBackend):
    """Runs on Modal. See `ft.launcher.backends.base.Backend` for the contract."""

    name = "modal"
    service = "Modal"
    capabilities = (
        Capability.IMAGE
        | Capability.MULTI_NODE
        | Capability.VOLUMES
        | Capability.SPOT
        | Capability.DETACH
        | Capability.EXEC
        | Capability.COSTS
    )

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
        secret, where = planned_values(asked["secrets"]["from_here"], os.environ), None
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
            _folder_of(handle).must_exist()
            self._must_rest(handle)
            words = _words(handle)
            begun = (peek(words, "current") or {}).get("segment", 0)
            segment = 1 + max([int(handle.values["segment"]), begun, *segments(words)])

        def forget_end() -> None:
            words.pop("control", None)
            _folder_of(handle).remove(OUTCOME)
            (self.runs.folder(key) / CALL).unlink(missing_ok=True)
            self._forget_end(key)

        end = self._end(handle)
        try:
            return self._send(submission, asked, key, segment=segment, at_last=forget_end)
        except FtError:
            if end is not None:
                self._write_end(handle, end)  # All is as it was.
            raise

    def _must_rest(self, handle: Handle) -> None:
        """Raises: SubmitError if a call of the run lives, or UnreachableError if nobody can say so."""
        until = time.monotonic() + RESTS_S
        while self._ask(handle).lives:
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
            began_at(place.run),
            left.resumed_after,
            (*notes, *filter(None, [left.difference()])),
        )

    # ------------------------------------------------------------------------------------ looks

    def _copy(self, handle: Handle) -> ModalCopy:
        return ModalCopy(handle)

    def _ask(self, handle: Handle) -> Alive:
        with talking():
            return Alive(*self._follow(handle))

    def _follow(self, handle: Handle) -> tuple[bool, bool]:
        """Whether a call of the run goes on or waits, and whether it is one that a container has begun.

        A chain that broke off gets its end here: nobody else saw it. Raises: what the client raises.
        """
        import modal

        current = peek(_words(handle), "current")
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
        _folder_of(handle).refresh(Replica(self._mirrored(handle.values["run"])))
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

    def execute(
        self, handle: Handle, command: Sequence[str], *, node: int, takes_input: bool
    ) -> int:
        with talking():
            from ft.launcher.backends.modal_exec import execute
            from ft.launcher.backends.modal_host import WORK
            from ft.launcher.backends.modal_words import container_of

            container = peek(_words(handle), container_of(node))
        if container is None:
            raise NotFoundError(
                f"no container of run {handle.values['run']} has said that it is node {node}",
                hint="the same command again in a moment; or modal container list",
            )
        # A shell says what every shell does where there is no such command, and where it may not be run.
        words = ["sh", "-c", 'cd "$0" && exec "$@"', f"{WORK}/{handle.values['run']}", *command]
        return execute(str(container), words, takes_input=takes_input)

    # ------------------------------------------------------------------------------------- ends

    def _terminate(self, handle: Handle) -> None:
        """End every call of the run that there may be."""
        import modal

        with talking():
            words = _words(handle)
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
            _folder_of(handle).remove()
            with contextlib.suppress(modal.exception.NotFoundError):
                modal.Dict.objects.delete(handle.values["words"], environment_name=where)
            stop_app(handle.values["app"], where)

    def _must_be_as_seen(self, handle: Handle) -> None:
        """Raises: StoreError if another laptop has gone on with it since this one saw its end."""
        key, folder = handle.values["run"], _folder_of(handle)
        paths = {file.path for file in folder.listed()}
        if PLAN not in paths:
            return  # It is gone, or went in part.
        seen, own = self._read(key, f"{STORE}/{OUTCOME}"), self._read(key, OUTCOME)
        if OUTCOME in paths:
            there = Outcome.from_json(folder.read(OUTCOME))
            is_same = there in [Outcome.from_json(text) for text in (seen, own) if text]
        else:  # As of an end that only this laptop has seen.
            is_same = seen is None and not is_living(newest_call(_words(handle))[0])
        if not is_same:
            raise StoreError(
                f"the store of run {key} is not deleted: it has gone on since this laptop saw its end; "
                f"ft cloud adopt modal://{folder.volume}/{key}  looks again"
            )

    # ------------------------------------------------------------------------------------ store

    def published(self, handle: Handle, folder: Path) -> Source:
        name = folder.relative_to(self._replica(handle).root).as_posix()
        return VolumeSource(_folder_of(handle), name, FolderSource(folder).manifest)


def _folder_of(handle: Handle) -> RunFolder:
    of = handle.values
    return RunFolder(of["run"], of["volume"], of.get("environment") or None)


def _words(handle: Handle) -> Any:
    return words_of(handle.values["words"], handle.values.get("environment") or None)


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
