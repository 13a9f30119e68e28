"""Modal: a run is a chain of calls of one deployed app, its store a folder on a volume or a prefix in a bucket.

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
from dataclasses import dataclass, replace
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
from ft.launcher.backends.bucket_left import left_in
from ft.launcher.backends.left import Left, began_at
from ft.launcher.backends.modal_calls import (
    calls,
    is_call,
    is_deployed,
    is_living,
    newest_call,
    segments,
    stop_app,
)
from ft.launcher.backends.modal_run import BucketRun, ModalRun, left_at, named, run_asked, run_of
from ft.launcher.backends.modal_talk import (
    checks,
    environment,
    first_line,
    is_of_the_client,
    talking,
)
from ft.launcher.ends import OUTCOME, Outcome, outcome, what_stays
from ft.launcher.machine.host import MACHINE
from ft.launcher.machine.words import CONTROL, CURRENT, call_of, holder_of
from ft.launcher.mirror import Replica
from ft.launcher.secrets import Redactor, planned_values, values
from ft.launcher.transfer import FolderSource
from ft.recipes.errors import (
    DependencyError,
    FtError,
    NotFoundError,
    PlanError,
    StoreError,
    SubmitError,
    UnreachableError,
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


class MayTrainError(UnreachableError):
    """What was sent may have begun, and cannot be stopped now."""


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

    def must_be_able_to_send(self) -> None:
        for check in checks():
            if not check.ok:
                said = f"backend modal: {check.name}: {check.message}"
                raise DependencyError(said, hint=check.fix)

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

        begun = self._sending(key)

        def forget_withdrawal() -> None:
            if begun is not None or asked["job"].get("bucket"):
                run_asked(asked, environment()).unsay(CONTROL)

        with talking():
            first = self._first_segment(asked, begun)
        return self._send(submission, asked, key, segment=first, at_last=forget_withdrawal)

    def _sending(self, key: str) -> int | None:
        """The segment that was begun to be sent last; None if none was, or only to another backend."""
        text = self._read(key, SENDING)
        begun = None if text is None else json.loads(text).get("segment")
        return None if begun is None else int(begun)

    @staticmethod
    def _first_segment(asked: Mapping[str, Any], begun: int | None) -> int:
        """The one that was begun to be sent, if none has it; else one behind all that another backend has done.

        Only of a run in a bucket may another backend have done anything.
        """
        if not asked["job"].get("bucket"):
            return modal_request.PREPARE if begun is None else begun
        run = run_asked(asked, environment())
        if begun is not None and run.word(holder_of(begun)) is None:
            return begun
        return 1 + max(segments(run), default=modal_request.PREPARE - 1)

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

            where = environment()
            _must_have_secrets(asked, where)
            is_new = self._read(key, SENDING) is None
            write_atomic(self.runs.folder(key) / SENDING, json.dumps({"segment": segment}))
            job, run = self._job(asked, key, segment), run_asked(asked, where)
            left = _left(submission, job)
            run.send(submission.uploads, submission.plan_json, left, is_new=is_new)
            cloud = ModalCloud(asked, secrets=secret)
            app_id = cloud.deploy()
            at_last()
            try:
                spawned = cloud.spawn(self._first(key, segment), job)
                call = Call(app_id, spawned, segment)
                write_atomic(self.runs.folder(key) / CALL, call.to_json())
                if segment != modal_request.PREPARE:
                    # The run is known elsewhere by now, which looks for the newest call before it has begun.
                    run.say(call_of(segment), spawned)
            except BaseException as error:
                # Whether it was spawned nobody knows: what nobody can name must not train.
                try:
                    stop_app(asked["app"], where)
                except Exception:  # noqa: BLE001  # whatever it was, nobody has stopped it
                    message = f"app {asked['app']} may train, and cannot be stopped now"
                    raise MayTrainError(message) from error
                (self.runs.folder(key) / CALL).unlink(missing_ok=True)
                raise
        return self._handle(asked, call, where)

    def _first(self, key: str, segment: int) -> str:
        """The function to begin with. A run that has had an attempt on Modal has its rows and its model there."""
        if segment == modal_request.PREPARE:
            return "prepare"
        store = LocalStore(self.runs.folder(key) / STORE)
        machines = [store.attempt_folder(number) / MACHINE for number in store.attempts()]
        calls_of_them = [json.loads(m.read_bytes())["call"] for m in machines if m.is_file()]
        return "train" if any(map(is_call, calls_of_them)) else "prepare"

    def _job(self, asked: Mapping[str, Any], key: str, segment: int) -> dict[str, Any]:
        record = self.runs.get(key)
        after = record.resumed_after if record is not None else 0
        return {**asked["job"], "segment": segment, "resumed_after": after}

    def _handle(self, asked: Mapping[str, Any], call: Call, where: str | None) -> Handle:
        job = asked["job"]
        names = {
            "run": job["run"],
            "app": asked["app"],
            "app_id": call.app_id,
            "call": call.call,
            "segment": str(call.segment),
            "volume": job["volume"],
            "words": job["words"],
            "bucket": job.get("bucket", ""),
            "environment": where or "",
        }
        return Handle(self.name, names)

    def release(self, handle: Handle) -> None:
        """Of a run in a bucket: one on a volume of Modal's goes nowhere else."""
        key = handle.values["run"]
        self._must_rest(handle)
        with talking():
            stop_app(handle.values["app"], handle.values.get("environment") or None)
        for name in (CALL, SENDING):
            (self.runs.folder(key) / name).unlink(missing_ok=True)
        self._forget_end(key)

    def find(self, key: str) -> Handle | None:
        asked = modal_request.filled(self.runs.submission(key).request, key)
        known = self._read(key, CALL)
        if known is not None:
            return self._handle(asked, Call.from_json(known), environment())
        begun = self._sending(key)
        if begun is None:
            return None
        with talking():
            current = run_asked(asked, environment()).word(CURRENT)
        if current is None or current["segment"] < begun or not is_call(current["call"]):
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
            run_asked(asked, environment()).say(CONTROL, request.to_json())
            stop_app(asked["app"], environment())
        if asked["job"].get("bucket"):  # Another backend may go on with it.
            (self.runs.folder(key) / SENDING).unlink(missing_ok=True)

    def resume(self, submission: Submission, *, handle: Handle) -> Handle:
        key = handle.values["run"]
        plan = RunPlan.from_json(submission.plan_json)
        asked = modal_request.filled(modal_request.limited(submission.request, plan), key)
        _must_be_here(handle)
        run = run_of(handle)
        run.must_exist()
        _must_be_ours(run)
        self._must_rest(handle)
        begun = (run.word(CURRENT) or {}).get("segment", 0)
        segment = 1 + max([int(handle.values["segment"]), begun, *segments(run)])

        def forget_end() -> None:
            run.reopen()
            (self.runs.folder(key) / CALL).unlink(missing_ok=True)
            self._forget_end(key)

        end = self._end(handle)
        try:
            return self._send(submission, asked, key, segment=segment, at_last=forget_end)
        except MayTrainError:
            raise  # Nobody says that it has ended.
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
        run = named(store)
        if key != run:  # Its app, its words and its calls go by it.
            here = self.runs.get(run)
            raise UsageError(
                f"there is another run {run} here already{f': {here.store}' if here else ''}"
            )
        with talking():
            where = environment()
            submission, left, missing = left_at(store, self.name)
            asked = modal_request.filled(submission.request, key)
            call, segment = newest_call(run_asked(asked, where))
            if self.runs.get(key) is not None:
                self._forget_end(key)
        lost = [upload for upload in missing if not upload.source.exists()]
        notes = [cannot_be_resumed([f"{INPUTS}/{u.name}" for u in lost])] if lost else []
        return Adopted(
            submission,
            self._handle(asked, Call("", call, segment), where),
            began_at(run),
            left.resumed_after,
            (*notes, *filter(None, [left.difference()])),
        )

    # ------------------------------------------------------------------------------------ looks

    def _copy(self, handle: Handle) -> ModalRun:
        return run_of(handle)

    def _ask(self, handle: Handle) -> Alive:
        with talking():
            alive = Alive(*self._follow(handle))
            if alive.lives or not handle.values.get("bucket") or is_deployed(handle):
                return alive
        # A bucket can be read from anywhere, its calls only from the workspace that they are in.
        if self._end(handle) is not None or not self._spoke_lately(handle):
            return alive
        said = f"Modal has no app {handle.values['app']} here, but its machine spoke a moment ago"
        return Alive(lives=True, is_held=True, said=said)

    def _follow(self, handle: Handle) -> tuple[bool, bool]:
        """Whether a call of the run goes on or waits, and whether it is one that a container has begun.

        A chain that broke off gets its end here: nobody else saw it. Raises: what the client raises.
        """
        import modal

        call, holder = self._newest(handle)
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
            if said.pop(modal_request.UNWRITTEN, False):
                self._note_said(handle, Outcome(**said))
            if said.get("next") is None or said["state"] in set(RunState):
                return False, False
            call = said["next"]
        raise StoreError(f"the chain of calls of run {handle.values['run']} has no end")

    def _newest(self, handle: Handle) -> tuple[str, str]:
        """The newest call that is known of the run, and the same again if a container has begun it.

        Raises: SubmitError if another backend has the run now, in its bucket.
        """
        current = run_of(handle).word(CURRENT)
        if current is None or current["segment"] < int(handle.values["segment"]):
            return handle.values["call"], ""
        if not is_call(current["call"]):
            raise _gone_on(handle.values["bucket"], "another backend")
        return current["call"], current["call"]

    def _note_said(self, handle: Handle, end: Outcome) -> None:
        """An end that its container could not write down, as the bucket did not let it in."""
        run_of(handle).refresh(Replica(self._mirrored(handle.values["run"])))
        if self._end(handle) is None:
            self._write_end(handle, replace(end, message=self._hidden(handle, end.message)))

    def _note_broken(self, handle: Handle, error: Exception) -> None:
        """The end of a run that Modal gave up, or that somebody cancelled there."""
        # Raises if the store cannot be read: then nobody knows whether the container wrote an end.
        run_of(handle).refresh(Replica(self._mirrored(handle.values["run"])))
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
            message = self._hidden(handle, f"Modal gave it up: {what}")
            end = outcome(RunState.FAILED, Reason.INFRA, ExitCode.UNCLASSIFIED, message)
        self._write_end(handle, end)

    def _hidden(self, handle: Handle, text: str) -> str:
        """Without secrets, as far as this laptop has them: a container quotes what a program that failed said last."""
        names = self.runs.submission(handle.values["run"]).request["secrets"]
        secret = values([*names["from_here"], *names["on_modal"]], os.environ)
        return Redactor(secret.values()).text(text)

    def execute(
        self, handle: Handle, command: Sequence[str], *, node: int, takes_input: bool
    ) -> int:
        with talking():
            from ft.launcher.backends.modal_exec import execute
            from ft.launcher.backends.modal_host import WORK
            from ft.launcher.backends.modal_words import container_of

            container = run_of(handle).word(container_of(node))
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
            known = {handle.values["call"]} | calls(run_of(handle))
            if "" in known:  # Whoever adopted it does not know its first one.
                known.remove("")
                stop_app(handle.values["app"], handle.values.get("environment") or None)
            for call in known:
                with contextlib.suppress(modal.exception.NotFoundError):
                    modal.FunctionCall.from_id(call).cancel(terminate_containers=True)

    def discard(self, handle: Handle, *, plan_sha256: str) -> None:
        key = handle.values["run"]
        plan = self.runs.folder(key) / STORE / PLAN
        if plan.is_file() and read_plan(plan).sha256 != plan_sha256:
            raise StoreError(
                f"the store of run {key} is not deleted: it holds the plan of another run"
            )
        with talking():
            self._must_be_as_seen(handle)
            run_of(handle).remove()
            stop_app(handle.values["app"], handle.values.get("environment") or None)

    def _must_be_as_seen(self, handle: Handle) -> None:
        """Raises: StoreError if another laptop has gone on with it since this one saw its end."""
        key, run = handle.values["run"], run_of(handle)
        paths = run.paths()
        if PLAN not in paths:
            return  # It is gone, or went in part.
        _must_be_ours(run)
        seen, own = self._read(key, f"{STORE}/{OUTCOME}"), self._read(key, OUTCOME)
        there = run.read(OUTCOME) if OUTCOME in paths else None
        if there is not None:
            is_same = Outcome.from_json(there) in [Outcome.from_json(x) for x in (seen, own) if x]
        else:  # As of an end that only this laptop has seen.
            is_same = seen is None and not is_living(newest_call(run)[0])
        if not is_same:
            raise StoreError(
                f"the store of run {key} is not deleted: it has gone on since this laptop saw its end; "
                f"ft cloud adopt {run.uri}  looks again"
            )

    # ------------------------------------------------------------------------------------ store

    def published(self, handle: Handle, folder: Path) -> Source:
        name = folder.relative_to(self._replica(handle).root).as_posix()
        return run_of(handle).source(name, FolderSource(folder).manifest)


def _must_be_ours(run: ModalRun) -> None:
    """Raises: SubmitError if another laptop has sent it elsewhere, which it can only from a bucket."""
    if isinstance(run, BucketRun):
        left = left_in(run)
        if left is not None and left.backend != ModalBackend.name:
            raise _gone_on(run.uri, f"backend {left.backend}")


def _gone_on(store: str, where: str) -> SubmitError:
    return SubmitError(
        f"run {store.rpartition('/')[2]} has gone on with {where}, from another laptop",
        hint="that laptop looks after it: ft cloud ls  there",
    )


def _must_be_here(handle: Handle) -> None:
    """Raises: SubmitError where a resume would go to another environment of Modal's than the run is in."""
    was, here = handle.values.get("environment") or None, environment()
    if was != here:
        raise SubmitError(
            f"run {handle.values['run']} is in {was or 'the default environment'} of Modal, and {here or 'that'} is "
            "chosen now",
            hint=f"MODAL_ENVIRONMENT={was or ''} ft cloud resume {handle.values['run']}",
        )


def _left(submission: Submission, job: Mapping[str, Any]) -> Left:
    """For another laptop."""
    # The first time it is what was planned a moment ago; to hash it again takes as long as to send a small run.
    is_first = job["segment"] == modal_request.PREPARE
    digest = submission.request["image"]["source_sha256"] if is_first else bundle.source_digest()
    after = job["resumed_after"]
    return Left.of(submission, source_sha256=digest, resumed_after=after)


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
