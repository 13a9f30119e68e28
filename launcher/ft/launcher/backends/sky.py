"""SkyPilot: a run is a managed job, or one on a plain cluster (`sky_jobs.py`), its store a prefix in a bucket.

Beside the record, with what `afar.py` and `sky_notes.py` name: `ft-source.tar`, which SkyPilot reads whenever it begins
anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ft.images.dockerfile import SOURCE_FILE
from ft.launcher import catalog_words, catalogs
from ft.launcher.backends import sky_exec, sky_request, sky_talk
from ft.launcher.backends.afar import STORE, AfarBackend, Alive
from ft.launcher.backends.base import (
    Adopted,
    Capability,
    Check,
    Handle,
    Submission,
    Upload,
    cannot_be_resumed,
)
from ft.launcher.backends.bucket_left import left_in, put_source, read_left, run_named
from ft.launcher.backends.left import Left, began_at
from ft.launcher.backends.sky_jobs import End, Runner, runner_of
from ft.launcher.backends.sky_notes import Notes, SkyJobRef
from ft.launcher.bucket_store import BucketSource, RunBucket
from ft.launcher.ends import OUTCOME, Outcome, outcome, what_stays
from ft.launcher.machine.bucket_words import SUBMISSION_WORD
from ft.launcher.mirror import Replica
from ft.launcher.runs import SUBMISSION
from ft.launcher.secrets import Redactor, planned_values, values
from ft.launcher.transfer import FolderSource
from ft.recipes.errors import FtError, PlanError, StoreError, SubmitError, UsageError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import INPUTS, PLAN, ExitCode, Reason, RunState

if TYPE_CHECKING:
    from ft.images.spec import ImageSpec
    from ft.launcher.transfer import Source
    from ft.recipes.schema.cloud import CloudBlock

WITHDRAWN: Final = "withdrawn"
"""In place of the job that a submission is claimed by."""
RESTS_S: Final = 60.0
"""For a job whose run has ended, until SkyPilot has seen it."""


class SkyBackend(AfarBackend):
    """Runs through SkyPilot. See `ft.launcher.backends.base.Backend` for the contract."""

    name = "sky"
    service = "SkyPilot"
    look_every_s = 5.0  # Its server starts a process for each answer.
    capabilities = (
        Capability.IMAGE
        | Capability.PUSHED_IMAGE
        | Capability.MULTI_NODE
        | Capability.SPOT
        | Capability.DETACH
        | Capability.EXEC
        | Capability.COSTS
    )

    # ------------------------------------------------------------------------------- beforehand

    def check(self) -> list[Check]:
        return sky_talk.checks()

    def must_be_able_to_send(self) -> None:
        sky_talk.must_be_installed()

    def prepare(
        self,
        plan: RunPlan,
        image: ImageSpec | None,
        *,
        uploads: tuple[Upload, ...],
        cloud: CloudBlock,
        simulate: tuple[str, ...] = (),
    ) -> Submission:
        """Needs no server, no account, no network and no SkyPilot. Raises: PlanError."""
        del simulate  # Refused before: Capability.SIMULATE is missing.
        if image is None:
            raise PlanError("backend sky sets its machines up as an image says, and got none")
        asked = sky_request.request(plan, image, cloud, os.environ)
        choice = catalogs.choice_for(asked["task"]["resources"], plan.parallel.num_nodes)
        if choice.is_refused:
            raise PlanError(catalog_words.nothing(choice), hint=catalog_words.way_out(choice))
        return Submission(self.name, asked, plan.to_json(), uploads)

    # ------------------------------------------------------------------------------- submission

    def submit(self, submission: Submission, *, key: str) -> Handle:
        known = self._notes(key).job()
        return (
            self._send(submission, key) if known is None else self._handle(submission, key, known)
        )

    def _notes(self, key: str) -> Notes:
        return Notes(self.runs.folder(key))

    def _send(self, submission: Submission, key: str) -> Handle:
        """Upload, send, wait for the job's number. A kill in between is healed by `find`.

        Raises: SubmitError; no job is left then that would train: `number` is claimed by one only.
        """
        secret = planned_values(submission.request["secrets"], os.environ)
        notes = self._notes(key)
        with sky_talk.talking(secret):
            copy = RunBucket(sky_request.filled(submission.request, key, "")["store"])
            number = self._number(key, copy)
            asked = self._asked(submission, key, number)
            sky_talk.validated(sky_request.task_of(asked))
            put_source(notes.folder / SOURCE_FILE, asked["source_sha256"], copy)
            copy.upload(submission.uploads, submission.plan_json)
            copy.reopen()
            notes.begin(number)
            copy.write(SUBMISSION, self._left(submission, asked).to_json())
            runner = runner_of(asked.get("cluster", {}))
            request = runner.launch(sky_request.task_of(asked), secret)
            notes.sent(number, request)
            try:
                job = runner.job_of(request)
            except Exception as error:
                if not sky_talk.is_silence(error):
                    notes.forget()  # It was refused: there is no job.
                raise
            if job is None:
                raise SubmitError("SkyPilot took the job and gave it no number")
            found = SkyJobRef(job, number, _cluster_of(submission))
            notes.found(found)
        return self._handle(submission, key, found)

    def _asked(self, submission: Submission, key: str, number: int) -> dict[str, Any]:
        """The request as it is sent: with names, and what has become of the run since it was planned."""
        record = self.runs.get(key)
        limits = RunPlan.from_json(submission.plan_json).limits
        asked: dict[str, Any] = sky_request.filled(
            submission.request, key, str(self.runs.folder(key))
        )
        changed = {
            "submission": number,
            "resumed_after": record.resumed_after if record is not None else 0,
            "timeout_s": None if _cluster_of(submission) else limits.timeout_s,
        }
        return {**asked, "job": {**asked["job"], **changed}}

    def _number(self, key: str, copy: RunBucket) -> int:
        """How often the run was sent, this time counted: by this laptop or by another one, which may not have begun.

        Raises: SubmitError if another laptop has gone on with what this one did not finish sending.
        """
        left = left_in(copy)
        newest = max([left.number if left is not None else 0, *copy.numbers(SUBMISSION_WORD)])
        sending = self._notes(key).sending()
        if sending is None or copy.word(f"{SUBMISSION_WORD}{newest}") == WITHDRAWN:
            return newest + 1
        if newest > sending:
            raise self._gone_on(key, copy.uri)
        return sending

    @staticmethod
    def _left(submission: Submission, asked: Mapping[str, Any]) -> Left:
        """For another laptop."""
        job = asked["job"]
        return Left.of(
            submission,
            source_sha256=asked["source_sha256"],
            resumed_after=job["resumed_after"],
            number=job["submission"],
        )

    def _handle(self, submission: Submission, key: str, job: SkyJobRef) -> Handle:
        asked = sky_request.filled(submission.request, key, "")
        values = {
            "run": key,
            "store": asked["store"],
            "job": str(job.job),
            "submission": str(job.submission),
            "cluster": job.cluster,
        }
        return Handle(self.name, values)

    def find(self, key: str) -> Handle | None:
        submission, notes = self.runs.submission(key), self._notes(key)
        known, number = notes.job(), notes.sending()
        if known is None and number is not None:
            with sky_talk.talking():
                job = self._sent(key, number)
            if job is not None:
                known = SkyJobRef(job, number, _cluster_of(submission))
                notes.found(known)
        return None if known is None else self._handle(submission, key, known)

    def _sent(self, key: str, number: int) -> int | None:
        """The job of a submission whose reply nobody waited for."""
        request = self._notes(key).request(number)
        if request is not None:
            try:
                job = self._runner(key).job_of(request)
            except Exception as error:
                if sky_talk.is_silence(error):
                    raise
                job = None  # A request that was refused has made none.
            if job is not None:
                return job
        return self._newest(key, number)

    def _runner(self, key: str) -> Runner:
        return runner_of(self.runs.submission(key).request.get("cluster", {}))

    def _newest(self, key: str, number: int) -> int | None:
        """The newest job of a submission, which the run has not had before, as its server knows it."""
        known = self._earlier(key)
        jobs = self._runner(key).jobs(key, number)
        return max((job for job in jobs if job not in known), default=None)

    def abandon(self, key: str) -> None:
        notes = self._notes(key)
        number = notes.sending()
        if number is None:
            return
        store = sky_request.filled(self.runs.submission(key).request, key, "")["store"]
        copy = RunBucket(store)
        left = left_in(copy)
        if left is None or left.number <= number:
            # A job that is still on its way finds this, and ends before it trains.
            message = "cancelled before it was started"
            end = outcome(RunState.CANCELLED, Reason.CANCELLED, ExitCode.PREEMPTED, message)
            copy.write(OUTCOME, end.to_json())
            self._withdraw(copy, number)
        runner = self._runner(key)
        with sky_talk.talking():
            found = runner.jobs(key, number)
            for job in found:
                runner.cancel(key, number, job)
        notes.over(*found)

    def resume(self, submission: Submission, *, handle: Handle) -> Handle:
        key = handle.values["run"]
        copy = self._copy(handle)
        end = self._end(handle)
        self._must_be_newest(handle)
        self._let_go(handle)
        try:
            return self._send(submission, key)
        except FtError:
            if end is not None and self._notes(key).sending() is None:
                copy.write(OUTCOME, end.to_json())
                self._write_end(handle, end)  # All is as it was.
            raise

    def release(self, handle: Handle) -> None:
        self._must_be_newest(handle)
        number = self._known(handle)
        self._let_go(handle)
        self._withdraw(self._copy(handle), number)

    @staticmethod
    def _withdraw(copy: RunBucket, number: int) -> None:
        """A job of the run that is still on its way, on whatever server, finds that it is of the past."""
        newest = max([number, *copy.numbers(SUBMISSION_WORD)])
        copy.say(f"{SUBMISSION_WORD}{newest + 1}", WITHDRAWN)

    def _let_go(self, handle: Handle) -> None:
        """What is known here of its job. Raises: as `_must_rest`."""
        key = handle.values["run"]
        self._must_rest(handle)
        with sky_talk.talking():
            # All of them: this laptop may not have been the one that sent those before.
            past = self._runner(key).jobs(key, self._known(handle))
            mine = self._job(handle)
        self._notes(key).over(*past, *([mine.job] if mine is not None else []))
        self._forget_end(key)

    def _must_be_newest(self, handle: Handle) -> None:
        """Raises: SubmitError if another laptop has gone on with the run since this one did, or looked."""
        if self._is_elsewhere_now(handle):
            raise self._gone_on(handle.values["run"], handle.values["store"])

    @staticmethod
    def _gone_on(run: str, store: str) -> SubmitError:
        return SubmitError(
            f"run {run} has gone on from another laptop",
            hint=f"ft cloud adopt {store}  looks again",
        )

    def _is_elsewhere_now(self, handle: Handle) -> bool:
        left = left_in(self._copy(handle))
        if left is None:
            return False
        return left.backend != self.name or left.number > self._known(handle)

    def _known(self, handle: Handle) -> int:
        """The newest submission of the run that this laptop has sent or seen."""
        return max(int(handle.values["submission"]), self._notes(handle.values["run"]).known())

    def _job(self, handle: Handle) -> SkyJobRef | None:
        """The job that has the run now; None if its server knows none, and nobody here ever did.

        A resume may have been killed before the record knew of its job, and an adopted run came without one.
        Raises: what SkyPilot's client raises.
        """
        key, cluster = handle.values["run"], handle.values.get("cluster", "")
        notes = self._notes(key)
        known = notes.job()
        if known is not None:
            return known
        sending = notes.sending()
        number = self._known(handle) if sending is None else sending
        job = self._newest(key, number) if sending is None else self._sent(key, number)
        if job is not None:
            notes.found(SkyJobRef(job, number, cluster))
            return SkyJobRef(job, number, cluster)
        noted = handle.values["job"] if int(handle.values["submission"]) == number else ""
        return SkyJobRef(int(noted), number, cluster) if noted else None

    def _earlier(self, key: str) -> list[int]:
        """Managed jobs that the run had before. On a cluster a job is called after its submission."""
        return [] if _cluster_of(self.runs.submission(key)) else self._notes(key).earlier()

    def _must_rest(self, handle: Handle) -> None:
        """Raises: SubmitError if the job of the run lives, or UnreachableError if nobody can say so."""
        until = time.monotonic() + RESTS_S
        while self._ask(handle).lives:
            if time.monotonic() > until:
                key, job = handle.values["run"], self._job(handle)
                which = self._runner(key).called(str(job.job) if job is not None else "")
                raise SubmitError(
                    f"run {key} goes on: {which} waits or trains",
                    hint=f"ft cloud attach {key}, or first: ft cloud cancel {key}",
                )
            time.sleep(self.look_every_s)

    def adopt(self, store: str, *, key: str) -> Adopted:
        """SkyPilot is not asked: which job has the run its name says, once somebody wants to know."""
        run = run_named(store)
        submission, left, lost = read_left(store, self.name)
        if key != run:  # Its job goes by it.
            here = self.runs.get(run)
            raise UsageError(
                f"there is another run {run} here already{f': {here.store}' if here else ''}"
            )
        record = self.runs.get(key)
        if record is not None and record.handle and not record.submitting:
            self._look_anew(key, record.as_handle(), left.number)
        gone = [upload for upload in lost if not upload.source.exists()]
        notes = [cannot_be_resumed([f"{INPUTS}/{u.name}" for u in gone])] if gone else []
        values = {"run": key, "store": store, "job": "", "submission": str(left.number)}
        values["cluster"] = _cluster_of(submission)
        handle = Handle(self.name, values)
        return Adopted(submission, handle, began_at(run), left.resumed_after, tuple(notes))

    def _look_anew(self, key: str, handle: Handle, newest: int) -> None:
        """Where another laptop has gone on, the job that this one knows is of the past: each server counts its own."""
        notes, known = self._notes(key), self._known(handle)
        self._forget_end(key)
        mine, noted = notes.job(), handle.values["job"]
        if newest > known:
            notes.over(*([mine.job] if mine is not None else []), *([int(noted)] if noted else []))
        notes.know(max(newest, known))

    def execute(
        self, handle: Handle, command: Sequence[str], *, node: int, takes_input: bool
    ) -> int:
        run = handle.values["run"]
        asked = self.runs.submission(run).request
        if not asked.get("cluster"):
            raise UsageError(
                f"run {run} is a managed job, whose machines SkyPilot lets nobody into",
                hint="ft cloud run RECIPE --cluster NAME  trains on one to look into; "
                f"ft cloud logs {run} --source agent  has what this one says",
            )
        with sky_talk.talking():  # Else `sky status` would start a server.
            return sky_exec.execute(asked, run, command, node=node, takes_input=takes_input)

    # ------------------------------------------------------------------------------------ looks

    def _copy(self, handle: Handle) -> RunBucket:
        return RunBucket(handle.values["store"])

    def _ask(self, handle: Handle) -> Alive:
        run = handle.values["run"]
        runner = self._runner(run)
        with sky_talk.talking():
            mine = self._job(handle)
            look = runner.look(run, mine.submission, mine.job) if mine is not None else None
        if mine is None or look is None:
            return self._unknown(handle, runner)
        if not look.alive.lives and self._other_has_it(handle, mine, runner):
            return self._ask(handle)
        if look.is_blind:
            unseen = self._unseen(handle, look.why)
            if unseen is not None:
                return unseen
        if look.end is not None:
            self._note_end(handle, mine.job, look.end, look.why)
        return look.alive

    def _unseen(self, handle: Handle, why: str) -> Alive | None:
        """Of a run whose controller has failed: its machine may train on. None if it has ended, or never began.

        No end is written: nobody knows, and what the machine writes counts.
        """
        run = handle.values["run"]
        spoke = self._spoke_lately(handle)
        if self._end(handle) is not None or not self._replica(handle).attempts():
            return None
        why = Redactor(self._secret(handle).values()).text(why)
        said = f"SkyPilot's controller failed{f' ({why})' if why else ''}"
        if spoke:
            more = "its machine spoke a moment ago; nothing begins it anew if that is lost"
            return Alive(lives=True, is_held=True, said=f"{said}, but {more}")
        hint = f"`ft cloud resume {run}` goes on"
        return Alive(
            lives=False, is_held=False, said=f"{said}, and its machine says nothing; {hint}"
        )

    def _unknown(self, handle: Handle, runner: Runner) -> Alive:
        """Of a run whose job the server of this laptop does not know: it may be the one of another server."""
        said = runner.unknown(handle.values["run"])
        if not self._spoke_lately(handle):
            hint = f"`ft cloud resume {handle.values['run']}` goes on"
            return Alive(lives=False, is_held=False, said=f"{said}; {hint}")
        return Alive(lives=True, is_held=True, said=f"{said}, but its machine spoke a moment ago")

    def _other_has_it(self, handle: Handle, mine: SkyJobRef, runner: Runner) -> bool:
        """Whether a lost reply has sent it twice, and the other job is the one that has the run; noted then."""
        claim = self._copy(handle).word(f"{SUBMISSION_WORD}{mine.submission}")
        winner = runner.claimed_by(str(claim or ""))
        if winner is None or winner == mine.job:
            return False
        self._notes(handle.values["run"]).found(replace(mine, job=winner))
        return True

    def _note_end(self, handle: Handle, job: int, end: End, why: str) -> None:
        """The end of a run that SkyPilot ended, unless its machine wrote one: the store is the truth about training."""
        self._copy(handle).refresh(Replica(self._mirrored(handle.values["run"])))
        if self._end(handle) is not None:
            return
        state, reason, what = end
        why = self._why(handle, job, why) if state is RunState.FAILED else ""
        stays = what_stays(self._replica(handle), handle.values["run"])
        message = f"{what}{f': {why}' if why else ''}; {stays}"
        code = ExitCode.PREEMPTED if state is RunState.CANCELLED else ExitCode.UNCLASSIFIED
        self._write_end(handle, outcome(state, reason, code, message))

    def _secret(self, handle: Handle) -> dict[str, str]:
        """What no message may have in it, as far as this laptop has it."""
        names = self.runs.submission(handle.values["run"]).request["secrets"]
        return values(names, os.environ)

    def _why(self, handle: Handle, job: int, why: str) -> str:
        """What SkyPilot says, and the last words of the job's own log, without secrets."""
        secret, runner = self._secret(handle), self._runner(handle.values["run"])
        with sky_talk.talking(secret):
            last = runner.last_words(job)
        parts = filter(None, (why, last, runner.more(job)))
        return Redactor(secret.values()).text("; ".join(parts))

    def _terminate(self, handle: Handle) -> None:
        with sky_talk.talking():
            mine = self._job(handle)
            if mine is not None:
                run = handle.values["run"]
                self._runner(run).cancel(run, mine.submission, mine.job)

    def discard(self, handle: Handle, *, plan_sha256: str) -> None:
        plan = self._mirrored(handle.values["run"]) / PLAN
        if plan.is_file() and read_plan(plan).sha256 != plan_sha256:
            raise StoreError(
                f"the store of run {handle.values['run']} is not deleted: it holds the plan of another run"
            )
        if self._has_gone_on(handle):
            raise StoreError(
                f"the store of run {handle.values['run']} is not deleted: it has gone on since this laptop saw its "
                f"end; ft cloud adopt {handle.values['store']}  looks again"
            )
        self._copy(handle).remove()

    def _has_gone_on(self, handle: Handle) -> bool:
        """Whether another laptop has, since this one saw the end of the run."""
        copy, key = self._copy(handle), handle.values["run"]
        if copy.read(PLAN) is None:
            return False  # It is gone, or went in part.
        there = copy.read(OUTCOME)
        ours = [self._read(key, f"{STORE}/{OUTCOME}"), self._read(key, OUTCOME)]
        if there is None:  # As of an end that only this laptop has seen.
            return ours[0] is not None or self._is_elsewhere_now(handle)
        return Outcome.from_json(there) not in [Outcome.from_json(text) for text in ours if text]

    def published(self, handle: Handle, folder: Path) -> Source:
        name = folder.relative_to(self._replica(handle).root).as_posix()
        return BucketSource(self._copy(handle), name, FolderSource(folder).manifest)


def _cluster_of(submission: Submission) -> str:
    """The plain cluster that a run is on; empty for a managed job."""
    return str(submission.request.get("cluster", {}).get("cluster_name", ""))
