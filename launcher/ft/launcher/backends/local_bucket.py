"""A run on this machine whose copy lies in a bucket, so that another machine can go on with it.

It works as a segment does on a rented machine: claimed in the bucket, mirrored there, its end written there. The folder
of the run stays where a run without a bucket has it, and everything that looks at it finds it as ever.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ft.launcher.bucket import Bucket
from ft.launcher.ends import Outcome
from ft.launcher.machine.bucket_words import BucketWords, next_segment
from ft.launcher.machine.cluster import Cluster
from ft.launcher.machine.host import Job
from ft.launcher.machine.stage import CONTINUED, GRACE_S, SupersededError
from ft.launcher.machine.training import Segment
from ft.launcher.machine.words import CURRENT, Words
from ft.launcher.medium import Medium
from ft.launcher.mirror import Mirror
from ft.recipes.plan import read_plan
from ft.recipes.runstore import PLAN, RunState, write_atomic
from ft.recipes.store import LocalStore

CALL: Final = ".bucket-call"
"""In the run's folder: the last call of this machine that has claimed a segment."""


class LocalHost:
    """See `Host`."""

    exports_elsewhere = False
    grace_s = GRACE_S

    def __init__(self, store: str, root: Path) -> None:
        self.call = f"local-{uuid.uuid4().hex[:12]}"
        self.words: Words = BucketWords(store)
        self.medium: Medium = Bucket(store)
        self.root = root
        self._going = False

    def reload(self) -> None:
        """A bucket is as it is."""

    def note_begun(self, rank: int) -> None:
        """Nobody asks."""
        del rank

    def facts(self) -> dict[str, object]:
        return {"cloud": "local"}

    def is_going(self) -> bool:
        return self._going

    def begin_next(self, segment: int, *, exports: bool = False) -> str:
        """Whoever began this one does."""
        del segment, exports
        return ""

    def go(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: the machine goes down."""
        del signum, frame
        self._going = True


def push_what_is_newer_here(uri: str, root: Path) -> None:
    """A supervisor that was killed left an attempt that saved and ended after its last push: bring that to the copy.

    Unless another machine has gone on since: then the copy is the run. Raises: OSError.
    """
    current = BucketWords(uri).get(CURRENT)
    try:
        mine = (root / CALL).read_text()
    except FileNotFoundError:
        return
    if current is not None and current["call"] == mine:
        mirror = Mirror(LocalStore(root), Bucket(uri))
        mirror.push_words()
        mirror.push_published(keep=read_plan(root / PLAN).checkpoint.save_total_limit)


def run(host: LocalHost, values: Mapping[str, Any], store: str) -> Outcome | None:
    """Segment after segment, to the end of the run; None if it has none, and may go on: here, or elsewhere.

    `values` are those of a `Job`. Raises: OSError if the bucket fails for minutes.
    """
    push_what_is_newer_here(store, host.root)
    while not host.is_going():
        write_atomic(host.root / CALL, host.call)
        job = Job.from_json({**values, "segment": next_segment(BucketWords(store))})
        try:
            said = Segment(job, Cluster.single(host.words), host).work()
        except SupersededError:
            return None
        if said["state"] in set(RunState):
            return Outcome(**said)
        assert said["state"] == CONTINUED
    return None
