"""The folder of a run on a volume of Modal's, as it is read and written from a laptop."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from ft.launcher.backends.base import Submission, Upload
from ft.launcher.backends.left import Left
from ft.launcher.backends.modal_left import SCHEME, Place
from ft.launcher.backends.modal_talk import talking
from ft.launcher.inputs import lacking, must_be_as_planned
from ft.launcher.medium import Listed
from ft.launcher.mirror import Replica
from ft.launcher.runs import SUBMISSION
from ft.recipes.errors import NotFoundError, StoreError, UsageError
from ft.recipes.plan import plan_of
from ft.recipes.runstore import INPUTS, PLAN, FileEntry, Manifest

SKIP_BYTES: Final = 1 << 20
VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run lies on Modal."""

    run: str
    volume: str
    environment: str | None

    def _volume(self, *, create: bool = False) -> Any:
        import modal

        where, version = self.environment, VERSION if create else None
        return modal.Volume.from_name(
            self.volume, environment_name=where, create_if_missing=create, version=version
        )

    def must_exist(self) -> None:
        """Raises: modal's NotFoundError, or StoreError, if it is not there, as in another workspace of Modal's."""
        if not self.listed():
            raise StoreError(
                f"volume {self.volume} has no folder {self.run}: is this the workspace that the run is in?"
            )

    def listed(self) -> list[Listed]:
        """Every file of the run. Empty if it has none; raises modal's NotFoundError if there is no volume."""
        import modal

        volume = self._volume().hydrate()
        try:
            entries = volume.listdir(f"/{self.run}", recursive=True)
        except (modal.exception.NotFoundError, FileNotFoundError):
            return []
        return [
            Listed(e.path.lstrip("/").removeprefix(f"{self.run}/"), e.size, float(e.mtime))
            for e in entries
            if e.type.name == "FILE"
        ]

    def refresh(self, replica: Replica) -> None:
        """Fetch what has changed. Raises: StoreError if the volume has lost what it had."""
        listed = self.listed()
        if not listed and (replica.root / PLAN).exists():
            raise StoreError(f"volume {self.volume} has no folder {self.run} any more")
        replica.refresh(listed, self.read)

    def read(self, path: str) -> bytes:
        """Raises: FileNotFoundError."""
        import modal

        try:
            return b"".join(self._volume().read_file(f"/{self.run}/{path}"))
        except modal.exception.NotFoundError as error:
            raise FileNotFoundError(path) from error

    def blocks(self, path: str) -> Iterator[bytes]:
        """The bytes of a file, as they come."""
        return iter(self._volume().read_file(f"/{self.run}/{path}"))

    def upload(self, uploads: Sequence[Upload], texts: Mapping[str, str], *, is_new: bool) -> None:
        """Inputs, and files by name. An input that is there in its size is left: its name has its hash.

        The run verifies it. `is_new`: nothing of the run is there.
        Raises: SubmitError if an input is gone, or has changed since.
        """
        volume = self._volume(create=True).hydrate()
        missing = list(uploads) if is_new else lacking(self.listed(), uploads)
        for upload in missing:
            must_be_as_planned(upload)
        with volume.batch_upload(force=True) as batch:
            for upload in missing:
                to = f"/{self.run}/{INPUTS}/{upload.name}"
                if upload.parts:
                    for part in upload.parts:
                        batch.put_file(part.source, f"{to}/{part.path}")
                else:
                    put = batch.put_directory if upload.source.is_dir() else batch.put_file
                    put(upload.source, to)
            for name, text in texts.items():
                batch.put_file(io.BytesIO(text.encode()), f"/{self.run}/{name}")

    def write(self, name: str, text: str) -> None:
        with self._volume().batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(text.encode()), f"/{self.run}/{name}")

    def remove(self, name: str = "") -> None:
        """A file, or all of the run; what is not there is no error."""
        import modal

        path = f"/{self.run}/{name}".rstrip("/")
        with contextlib.suppress(modal.exception.NotFoundError, FileNotFoundError):
            self._volume().remove_file(path, recursive=not name)


def read_left(place: Place, where: str | None) -> tuple[Submission, Left, list[Listed]]:
    """What a run on a volume was sent with, and all its files.

    Raises: NotFoundError if it is not there; UsageError, PlanError, StoreError if it is no run that can be adopted.
    """
    import modal

    folder, store = RunFolder(place.run, place.volume, where), f"{SCHEME}{place.volume}/{place.run}"
    try:
        listed = folder.listed()
    except modal.exception.NotFoundError:
        raise NotFoundError(
            f"Modal has no volume {place.volume} in {where or 'the default environment'} of this workspace",
            hint="modal profile activate NAME  changes the workspace, MODAL_ENVIRONMENT=NAME the environment",
        ) from None
    if not listed:
        raise NotFoundError(
            f"volume {place.volume} has no folder {place.run}",
            hint=f"modal volume ls {place.volume}",
        )
    missing = {PLAN, SUBMISSION} - {file.path for file in listed}
    if missing:
        hint = f"modal volume get {place.volume} {place.run}  fetches what is there"
        what = f"it has no {' and no '.join(sorted(missing))}"
        raise UsageError(f"{store} is no store of a run: {what}", hint=hint)
    plan = plan_of(folder.read(PLAN), f"{store}/{PLAN}")
    try:
        left = Left.from_json(folder.read(SUBMISSION))
        submission = left.submission(plan)
    except ValueError as error:
        raise StoreError(f"{store}/{SUBMISSION} cannot be read: {error}") from error
    if not place.has(left, plan):
        raise StoreError(
            f"{store} is a copy, or of two runs: its {SUBMISSION} is of another place or plan"
        )
    return submission, left, listed


class VolumeSource:
    """A published folder on a volume."""

    def __init__(self, folder: RunFolder, name: str, manifest: Manifest) -> None:
        self.folder, self.name, self.manifest = folder, name, manifest

    def files(self) -> tuple[FileEntry, ...]:
        return self.manifest.files

    @contextlib.contextmanager
    def open(self, path: str, offset: int) -> Iterator[BinaryIO]:
        """What lies before `offset` is read as well: Modal's client reads whole files only."""
        stream = io.BufferedReader(Blocks(self.folder, f"{self.name}/{path}"), SKIP_BYTES)
        while offset and (skipped := stream.read(min(offset, SKIP_BYTES))):
            offset -= len(skipped)
        yield stream


class Blocks(io.RawIOBase):
    """A file of a volume, block by block. What fails while one is fetched is Modal's, and nothing else is."""

    def __init__(self, folder: RunFolder, path: str) -> None:
        self._folder, self._path = folder, path
        self._blocks: Iterator[bytes] | None = None
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            with talking():
                self._blocks = self._blocks or self._folder.blocks(self._path)
                block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
