"""What runs on each node of a job of SkyPilot's: one segment of a run. `python -m … JOB`, JOB being JSON.

The only place that knows SkyPilot's variables. SkyPilot begins the job anew on other machines when it loses some
(a segment each), or when the job ends with a code of `RESTARTED`; which attempt goes on from where is decided here.
With any other code it is over, so whatever cannot be written down in the run's own words ends it.

Node 0 decides. On Slurm all nodes are one step, of whose exit codes the highest counts, and the first that is not 0
ends the others: so the other nodes end with 0, and node 0 waits until they have gone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ft.launcher.copies import open_copy
from ft.launcher.ends import outcome
from ft.launcher.machine import spot
from ft.launcher.machine.bucket_words import SUBMISSION_WORD, BucketWords, next_segment
from ft.launcher.machine.cluster import MASTER_PORTS, Cluster, port_of
from ft.launcher.machine.host import Job
from ft.launcher.machine.stage import CONTINUED, SupersededError, every, logged
from ft.launcher.machine.training import Assistance, Segment
from ft.launcher.machine.words import Words
from ft.launcher.medium import Medium, MediumError, MediumRefusedError
from ft.launcher.sky_resources import RESTARTED
from ft.recipes.runstore import AttemptEnd, ExitCode, Reason, RunState

log = logging.getLogger("ft.machine")

MEET_PORTS: Final = range(20_000, MASTER_PORTS.start)
MEET_S: Final = 600.0
"""For the other nodes to be set up as well."""
FREE_S: Final = 120.0
"""For processes of a lost machine to let go of a port."""
GONE_S: Final = 60.0
"""For the other nodes to go, once node 0 has nothing more to do."""
AFTER_S: Final = 3.0
"""Behind the goodbye of the others: until their processes have ended."""
PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class SkyJob(Job):
    """What a job of SkyPilot's is given; plain JSON, no secret."""

    store: str
    """Where the run's copy lies: `s3://BUCKET/PREFIX/RUN`, or `file:///FOLDER/RUN` on a shared file system."""
    submission: int
    """How often the run was sent to SkyPilot: 1, and one more for each resume."""
    retries: int
    """Machines that may be lost in a row before an attempt has begun."""
    stays: bool = False
    """On a plain cluster: nobody begins it anew, so what has to be tried again is tried here, while this is there."""


@dataclass(frozen=True, slots=True)
class Node:
    """This machine among those of the job."""

    rank: int
    addresses: tuple[str, ...]
    job: str
    """SkyPilot's number of the managed job, which all its machines have; on a plain cluster the id of the task."""
    cluster: Mapping[str, Any]
    """`cloud`, `region`, …"""

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Node:
        addresses = tuple(variables["SKYPILOT_NODE_IPS"].split())
        job = variables.get("SKYPILOT_MANAGED_JOB_ID") or variables["SKYPILOT_TASK_ID"]
        cluster = json.loads(variables.get("SKYPILOT_CLUSTER_INFO") or "{}")
        return cls(int(variables["SKYPILOT_NODE_RANK"]), addresses, job, cluster)


class SkyHost:
    """See `Host`."""

    exports_elsewhere = False

    def __init__(self, job: SkyJob, call: str, segment: int, node: Node) -> None:
        self.call = call
        self.words: Words = BucketWords(job.store)
        self.medium: Medium = open_copy(job.store)
        self._node, self._going = node, threading.Event()
        self.grace_s = spot.grace_s(self._cloud)
        work = Path.home() / ".ft-run" / job.run
        self.root = work / f"node{node.rank}-segment{segment}"
        for old in work.glob(f"node{node.rank}-segment*"):
            shutil.rmtree(old)

    @property
    def _cloud(self) -> str:
        return str(self._node.cluster.get("cloud") or "")

    def reload(self) -> None:
        """A bucket or a shared folder is as it is."""

    def note_begun(self, rank: int) -> None:
        """Nobody asks."""
        del rank

    def facts(self) -> dict[str, object]:
        cluster = self._node.cluster
        names = {"cloud": "cloud", "region": "region", "zone": "zone", "cluster": "cluster_name"}
        found = {name: cluster.get(key) or "" for name, key in names.items()}
        return {**found, "node": socket.gethostname(), "job": self._node.job}

    def is_going(self) -> bool:
        return self._going.is_set()

    def begin_next(self, segment: int, *, exports: bool = False) -> str:
        """SkyPilot does, by our exit code."""
        del segment, exports
        return ""

    def go(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: the machine is taken back, or somebody has cancelled the job."""
        del signum, frame
        self._going.set()

    def ask_cloud(self) -> None:
        """Whether the cloud has said that it takes the machine back."""
        question = spot.question_for(self._cloud)
        if question is not None and not self._going.is_set() and spot.is_going(question):
            log.info("the cloud takes this machine back in a moment")
            self._going.set()


def main(argv: Sequence[str]) -> int:
    """Exit code of this node."""
    job, node = SkyJob.from_json(json.loads(argv[0])), Node.of(os.environ)
    with logged(logging.StreamHandler()):
        try:
            return _first(job, node) if node.rank == 0 else _other(job, node)
        except MediumRefusedError as error:
            log.error("%s", error)
            return int(ExitCode.CONFIG)
        except MediumError as error:
            log.error("the segment failed: %s", error)
            return int(ExitCode.UNCLASSIFIED)
        except Exception:
            # Nobody counts how often: SkyPilot would begin it anew for ever.
            log.exception("the segment failed")
            return int(ExitCode.UNCLASSIFIED)


def _first(job: SkyJob, node: Node) -> int:
    words = BucketWords(job.store)
    call = f"{node.job}-{uuid.uuid4().hex[:12]}"
    if not _is_the_job(words, job, node):
        log.info("another job of SkyPilot's has run %s", job.run)
        # The other job may be on this machine too, and hold the port until the run ends.
        with suppress(OSError), _met(job, node, call="", is_going=lambda: False) as answered:
            _wait_until(lambda: len(answered) >= len(node.addresses) - 1, GONE_S)
        return 0
    job = replace(job, segment=next_segment(words))
    host = SkyHost(job, call, job.segment, node)
    cluster = Cluster(call if job.nodes > 1 else "", 0, node.addresses, host.words)
    with _heard(host), _met(job, node, call=call, is_going=host.is_going):
        segment = BoundedSegment(job, cluster, host)
        try:
            said = segment.work()
        except SupersededError as error:
            log.info("segment %d has begun elsewhere: %s", job.segment, error.call)
            return 0
        _wait_for_others(cluster)
    return _code_of(said, segment)


def _other(job: SkyJob, node: Node) -> int:
    met = _meet(job, node)
    if met is None:
        log.error("node 0 of run %s does not answer", job.run)
        return int(ExitCode.UNCLASSIFIED)
    if not met["call"]:
        return 0  # Node 0 has nothing to do, and says why.
    host = SkyHost(job, met["call"], met["segment"], node)
    cluster = Cluster(met["call"], node.rank, node.addresses, host.words)
    with _heard(host):
        try:
            with suppress(SupersededError):
                Assistance(replace(job, segment=met["segment"]), cluster, host).work()
        finally:
            host.words.put(_bye(cluster.id, node.rank), True)
    return 0


class BoundedSegment(Segment):
    """A segment that notices when machine after machine is lost before an attempt begins."""

    job: SkyJob

    def _go_on(self) -> dict[str, Any]:
        attempts = len(self.store.attempts())
        self.words.put(_began(self.job.segment), attempts)
        first = self.words.claim(f"first-{self.job.submission}", str(self.job.segment))
        before = range(self.job.segment - 1, int(first) - 1, -1)
        lost = 0
        for number in before:
            if self.words.get(_began(number)) not in {attempts, None}:
                break
            lost += 1
        if lost > self.job.retries:
            message = (
                f"{lost} machines in a row were lost before an attempt began; see `sky jobs logs`"
            )
            end = outcome(RunState.FAILED, Reason.INFRA, ExitCode.DETERMINISTIC, message)
            return self._finish(end)
        return super()._go_on()

    def _goes_on_elsewhere(self, end: AttemptEnd) -> bool:
        if self.job.stays:
            return self.host.is_going() or self.cluster.is_going()
        return super()._goes_on_elsewhere(end)


def _is_the_job(words: BucketWords, job: SkyJob, node: Node) -> bool:
    """Whether this job is the one of its submission, and none has begun since.

    A lost reply may have sent it twice; another laptop may have gone on while this one waited for a machine.
    """
    if words.claim(f"{SUBMISSION_WORD}{job.submission}", node.job) != node.job:
        return False
    claimed = [key.removeprefix(SUBMISSION_WORD) for key in words.all()]
    return max(int(number) for number in claimed if number.isdecimal()) == job.submission


def _code_of(said: Mapping[str, Any], segment: Segment) -> int:
    """What tells SkyPilot whether to begin the job anew."""
    if said["state"] == CONTINUED:
        ends = segment.store.attempt_ends()
        code = ends[-1].exit_code if ends else int(ExitCode.PREEMPTED)
        return code if code in RESTARTED else int(ExitCode.PREEMPTED)
    if said["state"] != RunState.FAILED:
        return 0
    # Whatever it was, it is not tried again.
    code = int(said["exit_code"])
    final = {int(ExitCode.CONFIG), int(ExitCode.DETERMINISTIC)}
    return code if code in final else int(ExitCode.DETERMINISTIC)


# ------------------------------------------------------------------------------------ among nodes


def _company(job: SkyJob, node: Node) -> dict[str, Any]:
    """What the nodes of one launch have in common, and those of another job on the same machines have not."""
    return {
        "run": job.run,
        "submission": job.submission,
        "job": node.job,
        "addresses": list(node.addresses),
    }


@contextmanager
def _met(
    job: SkyJob, node: Node, *, call: str, is_going: Callable[[], bool]
) -> Iterator[list[str]]:
    """Tell every node that asks which segment this is, until this machine is taken back. Gives: whom it has told.

    SkyPilot begins the job anew with the same number, on Slurm perhaps on this very machine while this process saves:
    a node of that one must not take this segment for its own.
    """
    answered: list[str] = []
    if len(node.addresses) == 1:
        yield answered
        return
    server = _server(node.addresses[0], port_of(job.run, MEET_PORTS))
    server.settimeout(PAUSE_S)
    text = json.dumps({**_company(job, node), "call": call, "segment": job.segment}).encode()

    def serve() -> None:
        with server:
            while not is_going():
                try:
                    connection, asker = server.accept()
                except TimeoutError:
                    continue
                except OSError:
                    return  # It is over.
                with connection, suppress(OSError):
                    if not is_going():
                        connection.sendall(text)
                        answered.append(str(asker))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield answered
    finally:
        server.close()


def _server(address: str, port: int) -> socket.socket:
    """Wait for the port: on Slurm the last machine of the run may be this one, and its processes live on for 30 s."""
    until = time.monotonic() + FREE_S
    while True:
        try:
            return socket.create_server((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)


def _meet(job: SkyJob, node: Node, limit_s: float = MEET_S) -> dict[str, Any] | None:
    """What node 0 of this launch says, once it is there; None if it is not in time."""
    place = (node.addresses[0], port_of(job.run, MEET_PORTS))
    company = _company(job, node)
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            with socket.create_connection(place, timeout=10) as connection:
                said = dict(json.loads(b"".join(iter(lambda: connection.recv(4096), b""))))
        except (OSError, ValueError):
            said = {}
        if company.items() <= said.items():
            return said
        is_the_submission = (said.get("run"), said.get("submission")) == (job.run, job.submission)
        if is_the_submission and said["job"] != node.job and said["call"]:
            return {**said, "call": ""}  # It was sent twice, and the other job has the run.
        time.sleep(PAUSE_S)
    return None


def _wait_for_others(cluster: Cluster) -> None:
    if cluster.size == 1:
        return
    others = range(1, cluster.size)
    _wait_until(lambda: all(cluster.words.peek(_bye(cluster.id, rank)) for rank in others), GONE_S)
    time.sleep(AFTER_S)


def _wait_until(holds: Callable[[], bool], limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not holds() and time.monotonic() < until:
        time.sleep(PAUSE_S)


@contextmanager
def _heard(host: SkyHost) -> Iterator[None]:
    before = {signum: signal.signal(signum, host.go) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        with every(spot.EVERY_S, host.ask_cloud):
            yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _bye(cluster: str, rank: int) -> str:
    return f"cluster/{cluster}/bye/{rank}"


def _began(segment: int) -> str:
    return f"began-{segment}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
