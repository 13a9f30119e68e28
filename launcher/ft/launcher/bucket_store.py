"""A run in a bucket or on a shared file system, as it is read and written from a laptop."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from ft.launcher.backends.base import Upload
from ft.launcher.bucket import told
from ft.launcher.copies import open_copy
from ft.launcher.ends import OUTCOME
from ft.launcher.inputs import lacking, members, must_be_as_planned
from ft.launcher.machine.bucket_words import key_of, word_name
from ft.launcher.machine.words import CONTROL
from ft.launcher.mirror import WORDS, Replica
from ft.recipes.errors import StoreError
from ft.recipes.runstore import INPUTS, PLAN, FileEntry, Manifest

BLOCK_BYTES: Final = 8 << 20
LOOK_RETRY_S: Final = 10.0
"""A person waits: a bucket that is away is said to be so after this time."""


class RunBucket:
    """A run by its URI, in a bucket or in a folder that nodes mount as well (`copies.py`).

    Methods raise FtError, UnreachableError where another try may do.
    """

    def __init__(self, uri: str) -> None:
        """Raises: DependencyError without the library for buckets, StoreError if it cannot be opened as it is named."""
        self.uri = uri
        try:
            with self.talking():
                self.bucket = open_copy(uri, retry_s=LOOK_RETRY_S)
        except ValueError as error:
            raise StoreError(str(error)) from error

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """What goes wrong with the bucket becomes an error that a person can act on."""
        try:
            yield
        except OSError as error:
            raise told(self.uri, error) from error

    def refresh(self, replica: Replica) -> None:
        """Fetch what has changed. Raises: StoreError if the bucket has lost what it had."""
        with self.talking():
            listed = self.bucket.listed()
            if not listed and (replica.root / PLAN).exists():
                raise StoreError(f"{self.uri}: there is nothing of the run any more")
            replica.refresh(listed, self.bucket.read)

    def upload(self, uploads: Sequence[Upload], plan_json: str) -> None:
        """Inputs, then the plan. What is there in its size is left: its name has its hash, and it is verified.

        Raises: SubmitError if an input is gone, or has changed since.
        """
        with self.talking():
            self.bucket.begin()
            for upload in lacking(self.bucket.listed(INPUTS), uploads):
                must_be_as_planned(upload)
                named = {_input(upload, path): source for source, path in members(upload)}
                self.bucket.upload(named)
            self.bucket.write(PLAN, plan_json.encode())

    def write(self, name: str, text: str) -> None:
        with self.talking():
            self.bucket.write(name, text.encode())

    def put(self, name: str, path: Path) -> None:
        """A file, unless the same bytes are there."""
        with self.talking():
            self.bucket.put(name, path)

    def read(self, name: str) -> bytes | None:
        """A small file; None if it is not there."""
        with self.talking():
            try:
                return self.bucket.read(name)
            except FileNotFoundError:
                return None

    def remove(self, name: str = "") -> None:
        """A file, or all of the run; what is not there is no error."""
        with self.talking():
            if name:
                self.bucket.remove([name])
            else:
                self.bucket.drop("")

    def reopen(self) -> None:
        """The run goes on: what was asked of it and its end are forgotten."""
        self.unsay(CONTROL)
        self.remove(OUTCOME)

    def word(self, key: str) -> Any:
        """What a machine or a laptop has said; None if nobody has."""
        said = self.read(word_name(key))
        return None if said is None else json.loads(said)

    def keys(self) -> list[str]:
        """Of all words that anybody has said."""
        with self.talking():
            return [key_of(file.path) for file in self.bucket.listed(WORDS)]

    def numbers(self, prefix: str) -> list[int]:
        """Of the words that are called `<prefix><number>`."""
        found = [key.removeprefix(prefix) for key in self.keys() if key.startswith(prefix)]
        return [int(number) for number in found if number.isdecimal()]

    def say(self, key: str, value: Any) -> None:
        with self.talking():
            self.bucket.write(word_name(key), json.dumps(value).encode())

    def unsay(self, *keys: str) -> None:
        with self.talking():
            self.bucket.remove([word_name(key) for key in keys])


def _input(upload: Upload, path: str) -> str:
    """What a file of an upload is called in the run."""
    return PurePosixPath(INPUTS, upload.name, path).as_posix()


class BucketSource:
    """A published folder of such a run; see `ft.launcher.transfer.Source`."""

    def __init__(self, run: RunBucket, name: str, manifest: Manifest) -> None:
        self.run, self.name, self.manifest = run, name, manifest

    def files(self) -> tuple[FileEntry, ...]:
        return self.manifest.files

    @contextlib.contextmanager
    def open(self, path: str, offset: int) -> Iterator[BinaryIO]:
        size = next(entry.size for entry in self.manifest.files if entry.path == path)
        blocks = _Blocks(self.run, f"{self.name}/{path}", offset, size)
        yield io.BufferedReader(blocks, BLOCK_BYTES)


class _Blocks(io.RawIOBase):
    """An object from an offset on, block by block: one that is cut off goes on where it was."""

    def __init__(self, run: RunBucket, name: str, offset: int, size: int) -> None:
        self._run, self._name, self._offset, self._size = run, name, offset, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = min(self._offset + len(buffer), self._size)
        with self._run.talking():
            block = self._run.bucket.ranged(self._name, self._offset, end)
        buffer[: len(block)] = block
        self._offset += len(block)
        return len(block)
