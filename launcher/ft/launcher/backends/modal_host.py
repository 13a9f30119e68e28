"""A container on Modal, as the host of a segment: where the run lies, its words, the function that goes on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import modal

from ft.launcher.backends.modal_request import STORE
from ft.launcher.backends.modal_words import ModalWords, container_of
from ft.launcher.copies import open_copy
from ft.launcher.machine.bucket_words import BucketWords
from ft.launcher.machine.cluster import Cluster
from ft.launcher.machine.host import Job
from ft.launcher.machine.stage import GRACE_S
from ft.launcher.machine.words import Words, call_of
from ft.launcher.medium import FolderMedium, Medium, MediumRefusedError

log = logging.getLogger("ft.machine")

WORK: Final = "/ft/run"
COMMIT_TRIES: Final = 6
OPEN_FILES: Final = "open files"
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("s3", "r2"),
        ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
    ),
    "gs": (
        *("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"),
        "GOOGLE_SKIP_SIGNATURE",
    ),
}
"""Scheme of a bucket -> variables of which one has to be set. Without, its library would look for a role of this
machine, minute after minute, and a container of Modal's has none."""


@dataclass(frozen=True, slots=True)
class ModalJob(Job):
    """What a call is given; plain JSON, no secret."""

    app: str
    cache_volume: str
    volume: str
    """That has the run; empty where it lies in a bucket."""
    words: str
    """Name of the run's Dict; empty where its words lie in the bucket too."""
    bucket: str = ""
    """Where the run's copy lies: `s3://BUCKET/PREFIX/RUN`; empty on a volume."""
    exports: bool = False
    """The app has a function that makes the result of the last checkpoint, on a CPU."""


class ModalHost:
    """See `Host`. A machine that is taken back shows as an exception in the middle of the work."""

    grace_s = GRACE_S

    def __init__(self, job: ModalJob) -> None:
        self.job = job
        self.call = str(modal.current_function_call_id())
        self.root = Path(WORK) / job.run
        self.exports_elsewhere = job.exports
        self.words: Words
        self.medium: Medium
        self._volume: modal.Volume | None = None
        if job.bucket:
            _must_have_a_key(job.bucket)
            self.words, self.medium = BucketWords(job.bucket), open_copy(job.bucket)
        else:
            self._volume = volume = modal.Volume.from_name(job.volume)
            self.words = ModalWords(job.words)
            self.medium = FolderMedium(
                Path(STORE) / job.run,
                commit=lambda: commit(volume),
                sizes=lambda folder: _sizes(volume, f"{job.run}/{folder}/"),
            )

    def cluster(self) -> Cluster:
        """Of this container, whose call has as many of them as the job has nodes."""
        if self.job.nodes == 1:
            return Cluster.single(self.words)
        found: Any = modal.Cluster.from_context()
        ips = tuple(found.container_ips())
        return Cluster(found.object_id, found.container_rank(), ips, self.words)

    def reload(self) -> None:
        if self._volume is not None:  # A bucket is as it is.
            self._volume.reload()

    def note_begun(self, rank: int) -> None:
        """`ft cloud exec` finds the container by this."""
        self.words.put(container_of(rank), os.environ["MODAL_TASK_ID"])

    def facts(self) -> dict[str, object]:
        return {
            "container": os.environ.get("MODAL_TASK_ID", ""),
            "region": os.environ.get("MODAL_REGION", ""),
            "cloud": os.environ.get("MODAL_CLOUD_PROVIDER", ""),
        }

    def is_going(self) -> bool:
        return False

    def begin_next(self, segment: int, *, exports: bool = False) -> str:
        """Spawn it, once however often this is called."""
        call = self.words.get(call_of(segment))
        if call is None:
            name = "export" if exports else "train"
            function: Any = modal.Function.from_name(self.job.app, name)
            spawned = function.spawn({**asdict(self.job), "segment": segment}).object_id
            call = self.words.claim(call_of(segment), spawned)
        return str(call)


def _must_have_a_key(uri: str) -> None:
    """Raises: MediumRefusedError."""
    names = KEYS.get(uri.partition("://")[0], ())
    if names and not any(os.environ.get(name) for name in names):
        raise MediumRefusedError(f"{uri}: none of {', '.join(names)} is set in the container")


def _sizes(volume: modal.Volume, prefix: str) -> dict[str, int]:
    """As the service lists what was committed, not as this container sees it."""
    listed = volume.listdir(f"/{prefix}", recursive=True)
    return {e.path.lstrip("/").removeprefix(prefix): e.size for e in listed}


def commit(volume: modal.Volume) -> None:
    """Commit, and try again for a while. Raises: RuntimeError or modal's Error if it cannot be done."""
    for attempt in range(1, COMMIT_TRIES + 1):
        try:
            volume.commit()
        except (RuntimeError, modal.exception.Error) as error:
            if OPEN_FILES in str(error):
                return  # It is committed; the reload that the client does after it was refused.
            if attempt == COMMIT_TRIES:
                raise
            log.warning("commit failed (%s), tried again", error)
            time.sleep(min(0.25 * 2**attempt, 10.0))
        else:
            return
