"""What has the job of a run: SkyPilot's controller, which begins it anew elsewhere, or the queue of a plain cluster."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from ft.launcher.backends.afar import Alive
from ft.launcher.backends.sky_request import IF_NEW
from ft.launcher.backends.sky_talk import ANSI, validated
from ft.recipes.runstore import Reason, RunState

End = tuple[RunState, Reason, str]

OF_A_NODE: Final = re.compile(r"\([^()]*pid=\d+[^()]*\)\s(.*\S)")
"""A line that a node has printed: `(head, rank=0, pid=7) text`."""
TAIL_LINES: Final = 40
FIELDS: Final = (
    *("job_id", "job_name", "status", "schedule_state", "recovery_count", "failure_reason"),
    *("details", "infra", "submitted_at", "end_at"),
)
CANCELLED: Final = (RunState.CANCELLED, Reason.CANCELLED, "cancelled with SkyPilot")
BROKE_OFF: Final = (
    *(RunState.FAILED, Reason.INFRA),
    "its job broke off, and on a plain cluster nothing begins one anew",
)
BLIND: Final = "FAILED_CONTROLLER"
NOT_SET_UP: Final = (RunState.FAILED, Reason.INFRA, "its machine could not be set up")


@dataclass(frozen=True, slots=True)
class Look:
    """What SkyPilot says of a job."""

    alive: Alive
    end: End | None = None
    """Of a job that is over: what that is for a run that has written no end of its own; None if it ended well."""
    why: str = ""
    is_blind: bool = False
    """Of a job that is over for SkyPilot alone: it does not see any more what its machines do."""


class Runner(Protocol):
    """Methods that talk raise what SkyPilot's client raises. A submission is its number among those of a run."""

    def launch(self, task: Mapping[str, Any], secret: Mapping[str, str]) -> str:
        """Send a job. The id of the request, which goes on whether somebody waits or not."""

    def job_of(self, request: str) -> int | None:
        """The job that a request has made, once it has; None if it has made none."""

    def jobs(self, run: str, submission: int) -> list[int]:
        """Jobs that may be those of a submission; none where nothing is there that could have them."""

    def look(self, run: str, submission: int, job: int) -> Look | None:
        """None if it is not known here."""

    def cancel(self, run: str, submission: int, job: int) -> None:
        """What has ended, or is gone, is no error; nor is a number that another run's job has by now: it stays."""

    def last_words(self, job: int) -> str:
        """The last line that a job has printed itself; empty without one."""

    def claimed_by(self, claim: str) -> int | None:
        """The job that has written this claim of a submission; None if it is none of ours."""

    def called(self, job: str) -> str:
        """In a sentence."""

    def unknown(self, run: str) -> str:
        """In a sentence: that nothing is known of it here."""

    def more(self, job: int) -> str:
        """How to read on."""


class Managed:
    """Jobs that SkyPilot's controller looks after. See `Runner`."""

    waiting: Final = frozenset({"PENDING", "STARTING", "RECOVERING"})
    held: Final = frozenset({"RUNNING", "WINDING_DOWN", "CANCELLING"})
    ends: Final[Mapping[str, End]] = {
        "CANCELLED": CANCELLED,
        "FAILED": (RunState.FAILED, Reason.INFRA, "SkyPilot gave it up"),
        "FAILED_SETUP": NOT_SET_UP,
        "FAILED_PRECHECKS": (RunState.FAILED, Reason.CONFIG, "SkyPilot's checks refused it"),
        "FAILED_NO_RESOURCE": (RunState.FAILED, Reason.INFRA, "no machine was to be had"),
        BLIND: (RunState.FAILED, Reason.INFRA, "SkyPilot's controller failed"),
    }

    def launch(self, task: Mapping[str, Any], secret: Mapping[str, str]) -> str:
        import sky

        return str(sky.jobs.launch(_made(task, secret), name=task["name"]))

    def job_of(self, request: str) -> int | None:
        jobs, _ = _answer(request) or ([], None)
        return int(jobs[0]) if jobs else None

    def jobs(self, run: str, submission: int) -> list[int]:
        del submission  # Its job is called after the run alone: whoever asks leaves out those that it had before.
        return [int(job["job_id"]) for job in self._found(run, name_match=_name(run))]

    def look(self, run: str, submission: int, job: int) -> Look | None:
        del submission
        found = self._found(run, job_ids=[job])  # On another server the number is another job's.
        if not found:
            return None
        return self.seen(found[0], found[0]["status"].value)

    def seen(self, record: Mapping[str, Any], status: str) -> Look:
        """What SkyPilot's record of a job says."""
        if status in self.waiting:
            return Look(Alive(lives=True, is_held=False, said=_waiting(record, status)))
        if status in self.held:
            count = record.get("recovery_count") or 0
            said = f"SkyPilot: {status.lower()}{_times(count)}" if count else ""
            return Look(Alive(lives=True, is_held=True, said=said))
        why = " ".join(str(record.get("failure_reason") or "").split()).partition(" To see the")[0]
        over, end = Alive(lives=False, is_held=False), self.ends.get(status)
        return Look(over, end, why, is_blind=status == BLIND)

    def _found(self, run: str, **wanted: Any) -> list[Any]:
        import sky

        asked = sky.jobs.queue_v2(refresh=False, fields=list(FIELDS), all_users=True, **wanted)
        return [job for job in sky.get(asked)[0] if job["job_name"] == _name(run)]

    def cancel(self, run: str, submission: int, job: int) -> None:
        # By its number: SkyPilot cancels nothing of two jobs with one name, and does not say so.
        import sky

        if self.look(run, submission, job) is not None:
            sky.get(sky.jobs.cancel(job_ids=[job]))

    def last_words(self, job: int) -> str:
        import sky

        stream = io.StringIO()
        sky.jobs.tail_logs(job_id=job, follow=False, tail=TAIL_LINES, output_stream=stream)
        return _last_of(stream)

    def claimed_by(self, claim: str) -> int | None:
        return int(claim) if claim.isdecimal() else None

    def called(self, job: str) -> str:
        return f"job {job} of SkyPilot's" if job else "a job of SkyPilot's"

    def unknown(self, run: str) -> str:
        return f"the API server of SkyPilot's that this laptop asks knows no job {_name(run)}"

    def more(self, job: int) -> str:
        return f"sky jobs logs {job} has more"


@dataclass(frozen=True, slots=True)
class Plain:
    """Jobs in the queue of a cluster of the user's. Nothing begins one anew. See `Runner`."""

    cluster: Mapping[str, Any]
    """How SkyPilot is asked for it: `cluster_name`, and below `if_new` what holds only for one that it makes."""

    waiting: ClassVar = frozenset({"INIT", "PENDING", "SETTING_UP"})
    ends: ClassVar[Mapping[str, End]] = {
        "CANCELLED": CANCELLED,
        "FAILED": BROKE_OFF,
        "FAILED_DRIVER": BROKE_OFF,
        "FAILED_SETUP": NOT_SET_UP,
    }

    @property
    def name(self) -> str:
        return str(self.cluster["cluster_name"])

    def launch(self, task: Mapping[str, Any], secret: Mapping[str, str]) -> str:
        import sky

        asked = {key: value for key, value in self.cluster.items() if key != IF_NEW}
        if IF_NEW in self.cluster and not sky.get(sky.status(cluster_names=[self.name])):
            asked |= self.cluster[IF_NEW]
        return str(sky.launch(_made(task, secret), **asked))

    def job_of(self, request: str) -> int | None:
        job, _ = _answer(request) or (None, None)
        return None if job is None else int(job)

    def jobs(self, run: str, submission: int) -> list[int]:
        # A cluster that is made anew counts from 1 again, so the name has the submission.
        name = _name(run, submission)
        return [int(job["job_id"]) for job in self._queue() if job["job_name"] == name]

    def look(self, run: str, submission: int, job: int) -> Look | None:
        name = _name(run, submission)
        found = [one for one in self._queue() if (one["job_id"], one["job_name"]) == (job, name)]
        if not found:
            return None
        status = found[0]["status"].value
        if status == "RUNNING":
            said = f"on cluster {self.name}, where nothing begins it anew if its machine is lost"
            return Look(Alive(lives=True, is_held=True, said=said))
        if status in self.waiting:
            said = f"SkyPilot: {status.lower()} on cluster {self.name}"
            return Look(Alive(lives=True, is_held=False, said=said))
        return Look(Alive(lives=False, is_held=False), self.ends.get(status))

    def _queue(self) -> list[Any]:
        """Empty where there is no such cluster, or it is not up: then no job of it runs."""
        import sky

        try:
            return list(sky.get(sky.queue(self.name, all_users=True)))
        except (sky.exceptions.ClusterDoesNotExist, sky.exceptions.ClusterNotUpError):
            return []

    def cancel(self, run: str, submission: int, job: int) -> None:
        import sky

        if self.look(run, submission, job) is None:
            return
        try:
            sky.get(sky.cancel(self.name, job_ids=[job]))
        except (sky.exceptions.ClusterDoesNotExist, sky.exceptions.ClusterNotUpError):
            return

    def last_words(self, job: int) -> str:
        import sky

        stream = io.StringIO()
        sky.tail_logs(self.name, job, follow=False, tail=TAIL_LINES, output_stream=stream)
        return _last_of(stream)

    def claimed_by(self, claim: str) -> int | None:
        """A task's id ends with `_CLUSTER_JOB`."""
        before, _, job = claim.rpartition("_")
        return int(job) if before.endswith(f"_{self.name}") and job.isdecimal() else None

    def called(self, job: str) -> str:
        return f"job {job} on cluster {self.name}" if job else f"a job on cluster {self.name}"

    def unknown(self, run: str) -> str:
        what = f"cluster {self.name} is gone, or not up, or knows no job {_name(run)}"
        return f"{what} (sky status {self.name} says whether machines of it still cost)"

    def more(self, job: int) -> str:
        return f"sky logs {self.name} {job} has more"


def runner_of(cluster: Mapping[str, Any]) -> Runner:
    """For a run whose request names this cluster; none: SkyPilot's controller."""
    return Plain(cluster) if cluster else Managed()


def _name(run: str, submission: int | None = None) -> str:
    return f"ft-{run}" if submission is None else f"ft-{run}-{submission}"


def _made(task: Mapping[str, Any], secret: Mapping[str, str]) -> Any:
    return validated({**task, "secrets": dict(secret)} if secret else task)


def _answer(request: str) -> Any:
    """None if the server that was asked does not know it any more. Raises: what the request has."""
    import sky

    try:
        return sky.get(request)
    except sky.exceptions.RequestCancelled:
        return None
    except RuntimeError as error:
        if str(error).startswith(f"Failed to get request {request}:"):
            return None
        raise  # A machine that could not be made, or set up, is one as well.


def _last_of(stream: io.StringIO) -> str:
    lines = [ANSI.sub("", line).strip() for line in stream.getvalue().splitlines()]
    said = [match[1] for line in lines if (match := OF_A_NODE.match(line))]
    return said[-1] if said else ""


def _waiting(job: Mapping[str, Any], status: str) -> str:
    """Why nothing trains at the moment, in SkyPilot's words."""
    details = " ".join(str(job.get("details") or "").split())
    times = _times(job.get("recovery_count") or 0)
    return f"SkyPilot: {status.lower()}{f', {details}' if details else ''}{times}"


def _times(count: int) -> str:
    """Why each was needed its attempt says."""
    return f", {count} {'recovery' if count == 1 else 'recoveries'} so far" if count else ""
