"""A run in a bucket: `s3://`, `gs://`, `az://` and, with its endpoint, R2. Where a machine may go, its run stays.

A bucket has no rename and no append; each write is a whole object, durable and visible to all at once. So a run is
copied there by `mirror.py`, and its manifests come last. Files go up in parts, several at once; each has its sha256
among its attributes, so that an upload that was cut off goes on with the files it lacks.

Credentials are the vendor's own: variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_STORAGE_ACCOUNT_NAME, …), a machine's role, or, where boto3 is installed, its profiles.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from ft.launcher.medium import (
    FOLDER_SCHEME,
    SET_ASIDE,
    Listed,
    MediumError,
    MediumFullError,
    MediumRefusedError,
)
from ft.recipes.digest import sha256_of_file
from ft.recipes.errors import DependencyError, FtError, StoreError, UnreachableError
from ft.recipes.runstore import MANIFEST

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

SCHEMES: Final = ("s3", "gs", "az", "r2")
SHA256: Final = "sha256"
"""Attribute of an object that holds a file."""
PARTS_AT_ONCE: Final = 8
FILES_AT_ONCE: Final = 4
PART_BYTES: Final = 16 << 20
MOST_PARTS: Final = 10_000
"""Of one object in S3; a larger file has larger parts."""
DELETED_AT_ONCE: Final = 1000
RETRY_S: Final = 60.0
"""Throttled, reset, or a server that restarts: asked again for so long, with growing pauses."""

NO_BUCKET: Final = "NoSuchBucket"
CODE: Final = re.compile(r"<Code>(\w+)</Code>")
WORDS: Final = re.compile(r"<Message>([^<]+)</Message>")
REFUSED: Final = frozenset(
    {
        *("AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken"),
        *("SignatureDoesNotMatch", "PermanentRedirect", "AuthenticationFailed"),
    }
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BucketName:
    """`s3://BUCKET/PREFIX`, taken apart."""

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def of(cls, uri: str) -> BucketName:
        """Raises: ValueError if it is none."""
        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise ValueError(
                f"{uri!r} is no bucket: expected {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        return cls(parts.scheme, parts.netloc, parts.path.strip("/"))

    @property
    def url(self) -> str:
        """As the object store's library names it: R2 speaks S3."""
        scheme = "s3" if self.scheme == "r2" else self.scheme
        return f"{scheme}://{self.bucket}/{self.prefix}"


class Bucket:
    """One run in a bucket: a `SharedMedium`. Methods raise OSError, `BucketError` where the bucket has failed."""

    def __init__(self, uri: str, *, retry_s: float = RETRY_S) -> None:
        """Raises: ValueError if `uri` is no bucket, DependencyError without obstore. Nothing is asked yet."""
        self.name = BucketName.of(uri)
        self.uri = uri.rstrip("/")
        self._store: ObjectStore = _open(self.name, retry_s)

    # ------------------------------------------------------------------------- of `mirror.Medium`

    def listed(self, folder: str = "") -> list[Listed]:
        import obstore

        return [
            Listed(item["path"], item["size"], item["last_modified"].timestamp())
            for chunk in self._chunks(lambda: obstore.list(self._store, folder or None))
            for item in chunk
        ]

    def read(self, name: str) -> bytes:
        import obstore

        return bytes(self._ask(lambda: obstore.get(self._store, name).bytes()))

    def write(self, name: str, content: bytes) -> None:
        import obstore

        self._ask(lambda: obstore.put(self._store, name, content, use_multipart=False))

    def upload(self, files: Mapping[str, Path]) -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(lambda item: self.put(item[0], item[1]), files.items()))

    def download(self, files: Mapping[str, Path]) -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(lambda item: self._fetch(item[0], item[1]), files.items()))

    def drop(self, folder: str) -> None:
        names = [file.path for file in self.listed(folder)]
        manifest = f"{folder}/{MANIFEST}"
        if manifest in names:
            self.remove([manifest])
        self.remove([name for name in names if name != manifest])

    def set_aside(self, folder: str) -> None:
        # Copied first: a kill in between leaves a checkpoint that is found broken once more.
        self.write(f"{folder}/{SET_ASIDE}", self.read(f"{folder}/{MANIFEST}"))
        self.remove([f"{folder}/{MANIFEST}"])

    def commit(self) -> None:
        """Each object is durable and visible when its write returns."""

    def sizes(self, folder: str) -> dict[str, int]:
        return {file.path.removeprefix(f"{folder}/"): file.size for file in self.listed(folder)}

    # ------------------------------------------------------------------------------------ beyond

    def begin(self) -> None:
        """A prefix is there once something is."""

    def put(self, name: str, path: Path, sha256: str | None = None) -> bool:
        """Send a file unless the same bytes are there. False if they were. Raises: FileNotFoundError, OSError."""
        import obstore

        size = path.stat().st_size
        digest = sha256 or sha256_of_file(path)
        if self._has(name, size, digest):
            return False
        part = max(PART_BYTES, -(-size // MOST_PARTS))
        self._ask(
            lambda: obstore.put(
                self._store,
                name,
                path,
                attributes={SHA256: digest},
                use_multipart=size > part,
                chunk_size=part,
                max_concurrency=PARTS_AT_ONCE,
            )
        )
        return True

    def claim(self, name: str, content: bytes) -> bytes:
        """Write it if there is none yet. What is there then: ours, or what another one wrote before."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def create() -> None:
            try:
                obstore.put(self._store, name, content, mode="create")
            except AlreadyExistsError:
                return  # Or our own reply was lost: reading it tells.

        self._ask(create)
        return self.read(name)

    def remove(self, names: Sequence[str]) -> None:
        """What is not there is no error."""
        import obstore

        for start in range(0, len(names), DELETED_AT_ONCE):
            some = list(names[start : start + DELETED_AT_ONCE])
            with contextlib.suppress(FileNotFoundError):
                self._ask(partial(obstore.delete, self._store, some))

    def ranged(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, without the last one."""
        import obstore

        if start >= end:
            return b""
        return bytes(self._ask(lambda: obstore.get_range(self._store, name, start=start, end=end)))

    def _has(self, name: str, size: int, sha256: str) -> bool:
        import obstore

        try:
            found = self._ask(lambda: obstore.get(self._store, name, options={"head": True}))
        except FileNotFoundError:
            return False
        return found.meta["size"] == size and found.attributes.get(SHA256) == sha256

    def _fetch(self, name: str, path: Path) -> None:
        """In parts, several at once; each is asked for again where its connection breaks."""
        import obstore

        size = int(self._ask(lambda: obstore.head(self._store, name))["size"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream, ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            stream.truncate(size)
            descriptor = stream.fileno()

            def fetch(start: int) -> None:
                os.pwrite(
                    descriptor, self.ranged(name, start, min(start + PART_BYTES, size)), start
                )

            list(pool.map(fetch, range(0, size, PART_BYTES)))

    def _chunks(self, ask: Callable[[], Iterable[T]]) -> Iterator[T]:
        stream = iter(self._ask(ask))
        while (chunk := self._ask(lambda: next(stream, None))) is not None:
            yield chunk

    def _ask(self, ask: Callable[[], T]) -> T:
        from obstore.exceptions import BaseError

        try:
            return ask()
        except FileNotFoundError as error:
            if NO_BUCKET in str(error):
                raise self._missing() from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.uri) from None
        except (BaseError, TimeoutError) as error:
            if NO_BUCKET in str(error):
                raise self._missing() from None
            raise _translated(self.uri, error) from None

    def _missing(self) -> BucketRefusedError:
        return BucketRefusedError(f"{self.uri}: there is no bucket {self.name.bucket}")


class BucketError(MediumError):
    """The bucket did not do what it was asked for; it may the next time."""


class BucketRefusedError(BucketError, MediumRefusedError):
    """It will not: there is none, or these credentials do not open it."""


def told(uri: str, error: OSError) -> FtError:
    """What a laptop says of a medium that failed: UnreachableError where another try may do."""
    key = "store" if uri.startswith(FOLDER_SCHEME) else "store_bucket"
    if isinstance(error, MediumRefusedError):
        return StoreError(str(error), hint=f"mend that, or another one: --set cloud.{key}=…")
    if isinstance(error, MediumFullError):
        return StoreError(str(error), hint=f"make room, or another one: --set cloud.{key}=…")
    if isinstance(error, MediumError):
        return UnreachableError(str(error), hint="try again")
    return StoreError(f"{uri}: {error.strerror or error}")


def _open(name: BucketName, retry_s: float) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise DependencyError(
            f"{name.scheme}://{name.bucket}: the library for buckets is not installed",
            hint="pip install 'ft-launcher[bucket]'",
        ) from None
    retry: RetryConfig = {"max_retries": 1000, "retry_timeout": timedelta(seconds=retry_s)}
    options: dict[str, Any] = {"timeout": "60s"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    more: dict[str, Any] = {}
    if name.url.startswith("s3://"):
        more = _profile()
        if endpoint:
            more["endpoint"] = endpoint
        if name.scheme == "r2":
            more["region"] = "auto"
    opened: Any = from_url  # Its overloads are one per vendor; which one it is says the name.
    try:
        store: ObjectStore = opened(name.url, retry_config=retry, client_options=options, **more)
    except BaseError as error:  # Such as a container of Azure's without the name of an account.
        said = " ".join(str(error).partition("\n\nDebug source:")[0].split())
        raise BucketRefusedError(f"{name.scheme}://{name.bucket}: {said}") from None
    return store


def _profile() -> dict[str, Any]:
    """A profile of the AWS command line, where no variable has a key and boto3 is there to read it."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    if boto3.Session().get_credentials() is None:
        return {}
    return {"credential_provider": Boto3CredentialProvider()}


def _translated(uri: str, error: Exception) -> BucketError:
    """The library's message in one line: a service's own code and words, where it gave any."""
    said = " ".join(str(error).partition("\n\nDebug source:")[0].split())
    code, words = CODE.search(said), WORDS.search(said)
    is_refused = isinstance(error, PermissionError) or " 401 " in said or " 403 " in said
    text = f"{uri}: {said}"
    if code is not None:
        is_refused = is_refused or code[1] in REFUSED
        text = f"{uri}: {code[1]}{f': {words[1]}' if words else ''}"
    elif is_refused:
        text = f"{uri}: access denied"
    return (BucketRefusedError if is_refused else BucketError)(text)
