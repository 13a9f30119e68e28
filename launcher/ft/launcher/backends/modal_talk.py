"""Talking to Modal from a laptop: which client, in which environment, and what its errors mean to the user."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from typing import Any, Final

from ft.launcher.backends.base import Check
from ft.launcher.secrets import Redactor
from ft.recipes.errors import (
    DependencyError,
    FtError,
    StoreError,
    SubmitError,
    UnreachableError,
)

VERSIONS: Final = ((1, 6), (2,))
"""From and below: what we rely on came with 1.6, and 2 may change anything."""
QUIET_S: Final = 20.0
"""After Modal did not answer, nobody in this process asks it for so long: each question may take a minute."""


class Line:
    """Whether Modal answered lately: shared by all runs of a process."""

    def __init__(self) -> None:
        self.said = ""
        """Why it did not answer; empty if it did."""
        self._until = 0.0

    def must_answer(self) -> None:
        """Raises: UnreachableError if it was asked in vain a moment ago."""
        if self.said and time.monotonic() < self._until:
            raise UnreachableError(self.said)

    def note(self, said: str) -> None:
        self.said, self._until = said, time.monotonic() + QUIET_S


LINE: Final = Line()


@contextlib.contextmanager
def talking(secret: Mapping[str, str] | None = None) -> Iterator[None]:
    """Around what talks to Modal.

    Raises: DependencyError if it is not installed, or does not know us; UnreachableError if it does not answer;
    StoreError for a file of this machine; SubmitError for whatever else it says. No message has a value of `secret`.
    """
    if version() is None:
        raise DependencyError("backend modal needs modal", extra="modal")
    import modal

    LINE.must_answer()
    hide = Redactor((secret or {}).values()).text
    try:
        yield
    except FtError:
        raise
    except modal.exception.AuthError as error:
        hint = "modal token new  makes one; or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
        raise DependencyError(f"Modal: {hide(first_line(error))}", hint=hint) from None
    except Exception as error:
        said = hide(first_line(error))
        if is_silence(error):
            LINE.note(f"Modal did not answer: {said}")
            raise UnreachableError(LINE.said) from None
        if isinstance(error, modal.exception.Error):
            raise SubmitError(f"Modal: {said}") from None
        if isinstance(error, OSError):
            raise StoreError(
                f"{error.filename or 'this machine'}: {error.strerror or said}"
            ) from None
        raise
    LINE.said = ""


def is_silence(error: BaseException) -> bool:
    """Whether an error of the client is of the way to Modal, or of a service that is busy: asked again, it may do."""
    import modal

    e = modal.exception
    kinds = (
        *(e.ConnectionError, e.ServiceError, e.InternalError, e.ResourceExhaustedError),
        *(e.ClientClosed, e.VersionError, ConnectionError, TimeoutError),
    )
    # Of its libraries: a stream that broke off, a file that was cut off.
    of_library = type(error).__module__.startswith(("grpclib", "aiohttp"))
    return isinstance(error, kinds) or of_library


def is_of_the_client(error: BaseException) -> bool:
    """Whether an error is of asking Modal, and not what a container raised: that comes without a status of gRPC's."""
    from grpclib import GRPCError

    return isinstance(error, GRPCError) or is_silence(error)


def first_line(error: BaseException) -> str:
    """What an error says, without what its client adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def environment() -> str | None:
    """The environment of Modal's that the user has chosen; None: the workspace's own."""
    from modal.config import config

    return config.get("environment") or None


def words_of(name: str, where: str | None, *, create: bool = False) -> Any:
    """The Dict of a run. Raises: modal's NotFoundError when it is used and not there, unless `create`."""
    import modal

    return modal.Dict.from_name(name, environment_name=where, create_if_missing=create)


def version() -> str | None:
    return metadata.version("modal") if util.find_spec("modal") else None


def checks() -> list[Check]:
    """The client and the token. Modal is not asked: that would take a minute where there is no network."""
    found = version()
    if found is None:
        fix = "pip install 'ft-launcher[modal]'"
        return [Check("packages", ok=False, message="missing: modal", fix=fix)]
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdecimal())
    fits = VERSIONS[0] <= numbers < VERSIONS[1]
    fix = "" if fits else "pip install 'modal>=1.6,<2'"
    packages = Check("packages", ok=fits, message=f"modal {found}", fix=fix)
    return [packages, _token()] if fits else [packages]


def _token() -> Check:
    from modal.config import config

    found = bool(config.get("token_id")) and bool(config.get("token_secret"))
    fix = "" if found else "modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
    return Check("token", ok=found, message="there is one" if found else "there is none", fix=fix)
