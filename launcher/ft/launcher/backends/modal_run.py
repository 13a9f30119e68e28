"""A run of backend modal as a laptop reads and writes it: on a volume beside a Dict with its words, or in a bucket.

What the backend asks is the same of both. In a bucket it is what backends sky and local have there, words too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ft.launcher.backends.afar import RunCopy
from ft.launcher.backends.base import Handle, Submission, Upload
from ft.launcher.backends.bucket_left import read_left as read_left_in_bucket
from ft.launcher.backends.bucket_left import run_named
from ft.launcher.backends.left import Left
from ft.launcher.backends.modal_left import SCHEME, Place
from ft.launcher.backends.modal_store import RunFolder, VolumeSource, read_left
from ft.launcher.backends.modal_talk import environment, talking, words_of
from ft.launcher.bucket_store import BucketSource, RunBucket
from ft.launcher.ends import OUTCOME
from ft.launcher.inputs import lacking
from ft.launcher.machine.words import CONTROL
from ft.launcher.mirror import Replica
from ft.launcher.runs import SUBMISSION
from ft.recipes.errors import StoreError
from ft.recipes.runstore import PLAN, Manifest

if TYPE_CHECKING:
    from ft.launcher.transfer import Source


class ModalRun(RunCopy, Protocol):
    """Methods raise FtError, UnreachableError where another try may do."""

    @property
    def uri(self) -> str:
        """What `ft cloud adopt` takes."""

    def must_exist(self) -> None:
        """Raises: StoreError if nothing of the run is there."""

    def paths(self) -> set[str]:
        """Every file of the run; none if it is gone."""

    def read(self, name: str) -> bytes | None:
        """A small file; None if it is not there."""

    def send(self, uploads: Sequence[Upload], plan_json: str, left: Left, *, is_new: bool) -> None:
        """Inputs, plan and what is left for another laptop. `is_new`: nothing of the run is there.

        Raises: SubmitError if an input is gone, or has changed since.
        """

    def reopen(self) -> None:
        """The run goes on: what was asked of it and its end are forgotten."""

    def word(self, key: str) -> Any:
        """What anybody has said; None if nobody has."""

    def unsay(self, key: str) -> None:
        """What nobody has said is no error."""

    def keys(self) -> list[str]:
        """Of all words that anybody has said."""

    def remove(self, name: str = "") -> None:
        """A file, or all of the run, its words too; what is not there is no error."""

    def source(self, name: str, manifest: Manifest) -> Source:
        """A published folder."""


class BucketRun(RunBucket):
    """See `ModalRun`."""

    def must_exist(self) -> None:
        if self.read(PLAN) is None:
            raise StoreError(f"{self.uri}: there is nothing of the run")

    def paths(self) -> set[str]:
        with self.talking():
            return {file.path for file in self.bucket.listed()}

    def send(self, uploads: Sequence[Upload], plan_json: str, left: Left, *, is_new: bool) -> None:
        del is_new  # Its listing tells.
        self.upload(uploads, plan_json)
        self.write(SUBMISSION, left.to_json())

    def source(self, name: str, manifest: Manifest) -> Source:
        return BucketSource(self, name, manifest)


@dataclass(frozen=True, slots=True)
class VolumeRun:
    """See `ModalRun`."""

    folder: RunFolder
    dict_name: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.folder.volume}/{self.folder.run}"

    def must_exist(self) -> None:
        with talking():
            self.folder.must_exist()

    def paths(self) -> set[str]:
        import modal

        with talking(), contextlib.suppress(modal.exception.NotFoundError):
            return {file.path for file in self.folder.listed()}
        return set()

    def refresh(self, replica: Replica) -> None:
        with talking():
            self.folder.refresh(replica)

    def read(self, name: str) -> bytes | None:
        with talking():
            try:
                return self.folder.read(name)
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        with talking():
            self.folder.write(name, text)

    def send(self, uploads: Sequence[Upload], plan_json: str, left: Left, *, is_new: bool) -> None:
        texts = {PLAN: plan_json, SUBMISSION: left.to_json()}
        with talking():
            self.folder.upload(uploads, texts, is_new=is_new)

    def reopen(self) -> None:
        self.unsay(CONTROL)
        with talking():
            self.folder.remove(OUTCOME)

    def remove(self, name: str = "") -> None:
        import modal

        with talking():
            self.folder.remove(name)
            if not name:
                with contextlib.suppress(modal.exception.NotFoundError):
                    where = self.folder.environment
                    modal.Dict.objects.delete(self.dict_name, environment_name=where)

    def say(self, key: str, value: object) -> None:
        with talking():
            # Its first container may not have made it yet.
            self._dict(create=True)[key] = value

    def unsay(self, key: str) -> None:
        with talking():
            self._dict(create=True).pop(key, None)

    def word(self, key: str) -> Any:
        import modal

        with talking(), contextlib.suppress(modal.exception.NotFoundError):
            return self._dict().get(key)
        return None

    def keys(self) -> list[str]:
        import modal

        with talking(), contextlib.suppress(modal.exception.NotFoundError):
            return [str(key) for key in self._dict().keys()]  # noqa: SIM118  a Dict of Modal's
        return []

    def source(self, name: str, manifest: Manifest) -> Source:
        return VolumeSource(self.folder, name, manifest)

    def _dict(self, *, create: bool = False) -> Any:
        return words_of(self.dict_name, self.folder.environment, create=create)


def run_of(handle: Handle) -> ModalRun:
    """Where the run of a handle lies. Raises: DependencyError without the library for buckets."""
    return _run_at(handle.values, handle.values["run"], handle.values.get("environment") or None)


def run_asked(asked: Mapping[str, Any], where: str | None) -> ModalRun:
    """Where the run of a request lies, `where` being the environment of Modal's."""
    return _run_at(asked["job"], asked["job"]["run"], where)


def _run_at(place: Mapping[str, str], run: str, where: str | None) -> ModalRun:
    bucket = place.get("bucket")
    if bucket:
        return BucketRun(bucket)
    return VolumeRun(RunFolder(run, place["volume"], where), place["words"])


def named(store: str) -> str:
    """The run of `modal://VOLUME/RUN` or `s3://BUCKET/PREFIX/RUN`. Raises: UsageError if it names none."""
    return Place.named(store).run if store.startswith(SCHEME) else run_named(store)


def left_at(store: str, backend: str) -> tuple[Submission, Left, list[Upload]]:
    """What a run was sent with, and the inputs that its store lacks. Only read.

    Raises: NotFoundError if it is not there; UsageError, PlanError, StoreError if it is no run that can be adopted.
    """
    if not store.startswith(SCHEME):
        return read_left_in_bucket(store, backend)
    with talking():
        submission, left, listed = read_left(Place.named(store), environment())
    return submission, left, lacking(listed, submission.uploads)
