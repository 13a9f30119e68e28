"""A container on Modal, as the host of a segment: its volume, its Dict, the function that goes on."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import modal

from ft.launcher.backends.modal_request import STORE
from ft.launcher.backends.modal_words import ModalWords, container_of
from ft.launcher.machine.cluster import Cluster
from ft.launcher.machine.host import Job
from ft.launcher.machine.words import Words, call_of
from ft.launcher.medium import FolderMedium, Medium

log = logging.getLogger("ft.machine")

WORK: Final = "/ft/run"
COMMIT_TRIES: Final = 6
OPEN_FILES: Final = "open files"


@dataclass(frozen=True, slots=True)
class ModalJob(Job):
    """What a call is given; plain JSON, no secret."""

    app: str
    volume: str
    cache_volume: str
    words: str
    """Name of the run's Dict."""


class ModalHost:
    """See `Host`. A machine that is taken back shows as an exception in the middle of the work."""

    def __init__(self, job: ModalJob) -> None:
        self.job = job
        self.call = str(modal.current_function_call_id())
        self.words: Words = ModalWords(job.words)
        self.root = Path(WORK) / job.run
        self.volume = modal.Volume.from_name(job.volume)
        self.medium: Medium = FolderMedium(
            Path(STORE) / job.run, commit=lambda: commit(self.volume), sizes=self._sizes
        )

    def cluster(self) -> Cluster:
        """Of this container, whose call has as many of them as the job has nodes."""
        if self.job.nodes == 1:
            return Cluster.single(self.words)
        found: Any = modal.Cluster.from_context()
        ips = tuple(found.container_ips())
        return Cluster(found.object_id, found.container_rank(), ips, self.words)

    def reload(self) -> None:
        self.volume.reload()

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

    def begin_next(self, segment: int) -> str:
        """Spawn it, once however often this is called."""
        call = self.words.get(call_of(segment))
        if call is None:
            function: Any = modal.Function.from_name(self.job.app, "train")
            spawned = function.spawn({**asdict(self.job), "segment": segment}).object_id
            call = self.words.claim(call_of(segment), spawned)
        return str(call)

    def _sizes(self, folder: str) -> dict[str, int]:
        """As the service lists what was committed, not as this container sees it."""
        prefix = f"{self.job.run}/{folder}/"
        listed = self.volume.listdir(f"/{prefix}", recursive=True)
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
