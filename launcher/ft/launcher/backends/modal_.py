"""Modal: a run is a chain of calls of one deployed app, its store a folder on a volume.

Beside the record: `sending.json` (something was sent), `call.json` (the call that was spawned, written before
anything else is done), `store/` (what the store says, fetched again and again), `outcome.json` (an end
that only this laptop saw).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from ft.launcher.backends import modal_request
from ft.launcher.backends.base import (
    Capability,
    Check,
    Handle,
    LogLine,
    LogQuery,
    Submission,
    Upload,
)
from ft.launcher.ends import ENDED_BY, Outcome, outcome, stopped, what_stays
from ft.launcher.inputs import must_be_as_planned
from ft.launcher.logs import LogReader
from ft.launcher.mirror import OUTCOME, SUPERVISOR_LOG, Listed, Replica
from ft.launcher.runs import Runs
from ft.launcher.secrets import Redactor, values
from ft.launcher.transfer import FolderSource
from ft.recipes.errors import DependencyError, FtError, PlanError, StoreError, SubmitError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import (
    INPUTS,
    MANIFEST,
    PLAN,
    Control,
    ExitCode,
    FileEntry,
    JsonRecord,
    Manifest,
    Reason,
    RunState,
    step_folders,
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
MAX_HOPS: Final = 10_000
"""Segments of a chain; a ring would be a bug, not a reason to hang."""
VERSIONS: Final = ((1, 6), (2,))
"""From and below: what we rely on came with 1.6, and 2 may change anything."""


@dataclass(frozen=True, slots=True)
class Call(JsonRecord):
    """A call that this laptop spawned."""

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
        | Capability.COSTS
    )

    def __init__(self, runs: Runs | None = None) -> None:
        self.runs = runs or Runs()
        self._looked_at: dict[str, float] = {}
        self._seen: dict[str, Seen] = {}
        self._silent = ""
        """What Modal, or the way to it, said when it was last asked in vain."""

    # ------------------------------------------------------------------------------- beforehand

    def check(self) -> list[Check]:
        version = _version()
        if version is None:
            fix = "pip install 'ft-launcher[modal]'"
            return [Check("packages", ok=False, message="missing: modal", fix=fix)]
        fits = VERSIONS[0] <= _numbers(version) < VERSIONS[1]
        fix = "" if fits else "pip install 'modal>=1.6,<2'"
        checks = [Check("packages", ok=fits, message=f"modal {version}", fix=fix)]
        return [*checks, _account()] if fits else checks

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
        first = Call.from_json(b) if (b := self._read(key, CALL)) else None
        if first is not None:
            return self._handle(asked, first)
        return self._send(submission, asked, key, segment=modal_request.PREPARE)

    def _send(
        self, submission: Submission, asked: Mapping[str, Any], key: str, *, segment: int
    ) -> Handle:
        """Upload, deploy, spawn. A kill in between is healed: the segment's claim lets one call train."""
        secret = _secrets_of(asked)
        folder = self.runs.folder(key)
        with _talking(secret):
            from ft.launcher.backends.modal_app import ModalCloud

            _must_have_secrets(asked)
            write_atomic(folder / SENDING, json.dumps({"segment": segment}))
            self._upload(submission, asked, key)
            cloud = ModalCloud(asked, secrets=secret)
            app_id = cloud.deploy()
            trained = segment != modal_request.PREPARE and self._has_attempts(key)
            after = record.resumed_after if (record := self.runs.get(key)) else 0
            job = {**asked["job"], "segment": segment, "resumed_after": after}
            spawned = cloud.spawn("train" if trained else "prepare", job)
            call = Call(app_id, spawned, segment)
            write_atomic(folder / CALL, call.to_json())
        return self._handle(asked, call)

    def _has_attempts(self, key: str) -> bool:
        return bool(LocalStore(self.runs.folder(key) / STORE).attempts())

    def _handle(self, asked: Mapping[str, Any], call: Call) -> Handle:
        values = {
            "run": asked["job"]["run"],
            "app": asked["app"],
            "app_id": call.app_id,
            "call": call.call,
            "segment": str(call.segment),
            "volume": asked["job"]["volume"],
            "words": asked["words"],
        }
        return Handle(self.name, values)

    def _upload(self, submission: Submission, asked: Mapping[str, Any], key: str) -> None:
        """Plan and inputs. Blocks that the volume has already are not sent again."""
        import modal

        for upload in submission.uploads:
            must_be_as_planned(upload)
        name = asked["job"]["volume"]
        volume = modal.Volume.from_name(name, create_if_missing=True, version=2)
        modal.Dict.from_name(asked["words"], create_if_missing=True).hydrate()
        with volume.batch_upload(force=True) as batch:
            for upload in submission.uploads:
                to = f"/{key}/{INPUTS}/{upload.name}"
                put = batch.put_directory if upload.source.is_dir() else batch.put_file
                put(upload.source, to)
            batch.put_file(io.BytesIO(submission.plan_json.encode()), f"/{key}/{PLAN}")

    def find(self, key: str) -> Handle | None:
        asked = modal_request.filled(self.runs.submission(key).request, key)
        known = self._read(key, CALL)
        if known:
            return self._handle(asked, Call.from_json(known))
        if self._read(key, SENDING) is None:
            return None
        with _talking({}):
            current = _words(asked["words"]).get("current")
        if current is None:
            return None
        return self._handle(asked, Call("", current["call"], current["segment"]))

    def resume(self, submission: Submission, *, handle: Handle) -> Handle:
        key = handle.values["run"]
        plan = RunPlan.from_json(submission.plan_json)
        asked = modal_request.filled(modal_request.limited(submission.request, plan), key)
        with _talking({}):
            words = _words(asked["words"])
            words.pop("control", None)
            segment = 1 + max([int(handle.values["segment"]), *_segments(words)])
            self._remove(handle, OUTCOME)
        folder = self.runs.folder(key)
        for name in (OUTCOME, CALL):
            (folder / name).unlink(missing_ok=True)
        Replica(folder / STORE).forget_end()
        self._seen.pop(key, None)
        return self._send(submission, asked, key, segment=segment)

    def adopt(self, store: Path, plan: RunPlan, *, key: str) -> tuple[Submission, Handle]:
        del plan, key
        raise SubmitError(
            f"{store} is a folder of this machine, and backend modal has its stores on volumes",
            hint="--backend local adopts a folder",
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
            with _talking({}):
                alive, is_held = self._ask(handle)
                self._refresh(handle, at_once=not alive)
        except FtError as error:
            self._silent = error.message
            if before is not None and now - before.at < SILENT_S:
                return replace(before, asked_at=now)
            return Seen(RunState.UNKNOWN, is_held=True, at=now, asked_at=now)
        self._silent = ""
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

        A chain that broke off gets its end here: nobody else saw it.
        """
        import modal

        current = _words(handle.values["words"]).get("current")
        call, holder = handle.values["call"], ""
        if current is not None and current["segment"] >= int(handle.values["segment"]):
            call = holder = current["call"]
        for _ in range(MAX_HOPS):
            try:
                said = modal.FunctionCall.from_id(call).get(timeout=0)
            except TimeoutError:
                return True, call == holder
            except (modal.exception.OutputExpiredError, modal.exception.NotFoundError):
                return False, False
            except _unreachable():
                raise
            except Exception as error:  # noqa: BLE001  what a container raised may be anything
                self._note_broken(handle, error)
                return False, False
            if said.get("next") is None or said["state"] in set(RunState):
                return False, False
            call = said["next"]
        raise StoreError(f"the chain of calls of run {handle.values['run']} has no end")

    def _note_broken(self, handle: Handle, error: Exception) -> None:
        """The end of a run that Modal gave up."""
        self._refresh(handle, at_once=True)
        if self._end(handle) is not None:
            return
        said = _first_line(error)
        if type(error).__name__ == "RemoteError" and "cancel" in said.lower():
            end = stopped(self._replica(handle), handle.values["run"], [], killed=True, names={})
            end = replace(
                end,
                message=f"cancelled on Modal; {what_stays(self._replica(handle), handle.values['run'])}",
            )
        else:
            message = f"Modal gave it up: {type(error).__name__}: {said}"
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
        end = self._end(handle)
        if end is None:
            return f"Modal did not answer: {self._silent}" if self._silent else ""
        message = end.message
        for upload in self.runs.submission(handle.values["run"]).uploads:
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

    # ------------------------------------------------------------------------------------- ends

    def cancel(self, handle: Handle, *, grace_s: float, reason: Reason) -> None:
        if self._end(handle) is not None:
            return
        by = f"pid {os.getpid()}"
        request = Control("stop", time.time(), by=by, reason=reason, grace_s=grace_s)
        with _talking({}):
            _words(handle.values["words"])["control"] = request.to_json()
        seen = self._look(handle, None)
        if not seen.state.ended and not seen.is_held:
            # No container is there to hear it.
            self._terminate(handle)
            self._end_here(handle, reason, " before a machine had begun")

    def kill(self, handle: Handle, *, reason: Reason) -> None:
        if self._end(handle) is not None:
            return
        self._terminate(handle)
        self._end_here(handle, reason, ": it did not answer and was killed")

    def _terminate(self, handle: Handle) -> None:
        """End every call of the run that there may be."""
        import modal

        with _talking({}):
            words = _words(handle.values["words"])
            calls = {handle.values["call"]}
            calls |= {str(v) for k, v in words.items() if str(k).startswith(("call-", "holder-"))}
            for call in calls:
                with contextlib.suppress(modal.exception.NotFoundError):
                    modal.FunctionCall.from_id(call).cancel(terminate_containers=True)

    def _end_here(self, handle: Handle, reason: Reason, what: str) -> None:
        """Write the end that no container can write any more, here and where a new segment would look."""
        import modal

        key = handle.values["run"]
        stays = what_stays(self._replica(handle), key)
        message = f"{ENDED_BY[reason]}{what}; {stays}"
        end = outcome(RunState.CANCELLED, reason, int(ExitCode.PREEMPTED), message)
        with _talking({}):
            volume = modal.Volume.from_name(handle.values["volume"])
            with volume.batch_upload(force=True) as batch:
                batch.put_file(io.BytesIO(end.to_json().encode()), f"/{key}/{OUTCOME}")
        self._write_end(handle, end)

    def discard(self, handle: Handle, *, plan_sha256: str) -> None:
        import modal

        key = handle.values["run"]
        plan = self.runs.folder(key) / STORE / PLAN
        if plan.is_file() and read_plan(plan).sha256 != plan_sha256:
            raise StoreError(
                f"the store of run {key} is not deleted: it holds the plan of another run"
            )
        with _talking({}):
            self._remove(handle, "")
            with contextlib.suppress(modal.exception.NotFoundError):
                modal.Dict.objects.delete(handle.values["words"])
            with contextlib.suppress(modal.exception.NotFoundError):
                modal.App.lookup(handle.values["app"]).stop()

    def _remove(self, handle: Handle, name: str) -> None:
        """A file of the run on its volume, or all of it; one that is not there is no error."""
        import modal

        volume = modal.Volume.from_name(handle.values["volume"])
        path = f"/{handle.values['run']}/{name}".rstrip("/")
        with contextlib.suppress(modal.exception.NotFoundError, FileNotFoundError):
            volume.remove_file(path, recursive=not name)

    # ------------------------------------------------------------------------------------ store

    def store(self, handle: Handle) -> LocalStore:
        """As it was a second ago at most, where Modal answers; else as it was last seen."""
        if self._end(handle) is None:
            try:
                with _talking({}):
                    self._refresh(handle)
            except FtError as error:
                self._silent = error.message
        return self._replica(handle)

    def _replica(self, handle: Handle) -> LocalStore:
        return SeenStore(self.runs.folder(handle.values["run"]) / STORE)

    def _refresh(self, handle: Handle, *, at_once: bool = False) -> None:
        import modal

        key = handle.values["run"]
        if not at_once and time.monotonic() - self._looked_at.get(key, -1e9) < LOOK_EVERY_S:
            return
        volume = modal.Volume.from_name(handle.values["volume"])
        try:
            entries = volume.listdir(f"/{key}", recursive=True)
        except (modal.exception.NotFoundError, FileNotFoundError):
            entries = []  # It is being submitted.
        listed = [
            Listed(e.path.lstrip("/").removeprefix(f"{key}/"), e.size, float(e.mtime))
            for e in entries
            if e.type.name == "FILE"
        ]

        def read(path: str) -> bytes:
            try:
                return b"".join(volume.read_file(f"/{key}/{path}"))
            except modal.exception.NotFoundError as error:
                raise FileNotFoundError(path) from error

        Replica(self.runs.folder(key) / STORE).refresh(listed, read)
        self._looked_at[key] = time.monotonic()

    def published(self, handle: Handle, folder: Path) -> Source:
        name = folder.relative_to(self._replica(handle).root).as_posix()
        return VolumeSource(handle, name, FolderSource(folder).manifest)

    def _read(self, key: str, name: str) -> bytes | None:
        try:
            return (self.runs.folder(key) / name).read_bytes()
        except FileNotFoundError:
            return None


class SeenStore(LocalStore):
    """A store as it is seen from a laptop: manifests without what they list."""

    def newest_checkpoint(self, *, plan_sha256: str) -> tuple[Path | None, list[str]]:
        """By its manifest, which is written last; whoever copies it verifies every byte."""
        passed = []
        for folder in reversed(step_folders(self.checkpoints)):
            try:
                manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
            except (OSError, ValueError) as error:
                passed.append(f"{folder.name}: {error}")
                continue
            if manifest.plan_sha256 == plan_sha256:
                return folder, passed
            passed.append(f"{folder.name}: written by another plan")
        return None, passed


class VolumeSource:
    """A published folder on a volume."""

    def __init__(self, handle: Handle, name: str, manifest: Manifest) -> None:
        self.handle, self.name, self.manifest = handle, name, manifest

    def files(self) -> tuple[FileEntry, ...]:
        return self.manifest.files

    @contextlib.contextmanager
    def open(self, path: str, offset: int) -> Iterator[BinaryIO]:
        """From the beginning whatever `offset` is: Modal's client reads whole files only."""
        import modal

        volume = modal.Volume.from_name(self.handle.values["volume"])
        where = f"/{self.handle.values['run']}/{self.name}/{path}"
        with _talking({}):
            blocks = iter(volume.read_file(where))
            stream = io.BufferedReader(Blocks(blocks), 1 << 20)
            while offset:
                skipped = stream.read(min(offset, 1 << 20))
                if not skipped:
                    break
                offset -= len(skipped)
            yield stream


class Blocks(io.RawIOBase):
    """Pieces of bytes that come one after the other, read as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


# ---------------------------------------------------------------------------------------- talking


def _words(name: str) -> Any:
    import modal

    return modal.Dict.from_name(name, create_if_missing=True)


def _segments(words: Any) -> list[int]:
    """Numbers of all segments that somebody has claimed or spawned."""
    names = [str(key).rpartition("-") for key in words.keys()]  # noqa: SIM118  a Dict of Modal's
    return [int(number) for what, _, number in names if what in {"call", "holder"}]


def _must_have_secrets(asked: Mapping[str, Any]) -> None:
    """Before anything is sent. Raises: SubmitError naming a secret that is neither here nor on Modal."""
    import modal

    for name in asked["secrets"]["on_modal"]:
        try:
            modal.Secret.from_name(name).hydrate()
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


def _unreachable() -> tuple[type[BaseException], ...]:
    """What Modal's client raises if the service does not answer, or does not know us."""
    import modal

    e = modal.exception
    return (e.ConnectionError, e.AuthError, e.ServiceError, e.InternalError, e.VersionError)


@contextlib.contextmanager
def _talking(secret: Mapping[str, str]) -> Iterator[None]:
    """Around what talks to Modal.

    Raises: DependencyError if it is not installed, or does not know us; SubmitError for whatever else it says. No
    message has a value of `secret` in it.
    """
    if _version() is None:
        raise DependencyError("backend modal needs modal", extra="modal")
    import modal

    hide = Redactor(secret.values()).text
    try:
        yield
    except FtError:
        raise
    except modal.exception.AuthError as error:
        hint = "modal token new  makes one; or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
        raise DependencyError(f"Modal: {hide(_first_line(error))}", hint=hint) from None
    except modal.exception.Error as error:
        raise SubmitError(f"Modal: {hide(_first_line(error))}") from None
    except OSError as error:
        raise SubmitError(f"Modal cannot be reached: {hide(str(error))}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _version() -> str | None:
    return metadata.version("modal") if util.find_spec("modal") else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _account() -> Check:
    """Whether there is a token. Modal is not asked: that would take a minute where there is no network."""
    from modal.config import config

    found = bool(config.get("token_id")) and bool(config.get("token_secret"))
    fix = "" if found else "modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
    return Check("token", ok=found, message="there is one" if found else "there is none", fix=fix)
