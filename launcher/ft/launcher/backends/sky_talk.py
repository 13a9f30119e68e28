"""Talking to SkyPilot from a laptop: its API server, and what its errors mean to the user.

SkyPilot's own client starts a server on this machine where there is none. Ours does not: it would go on behind the
user's back, and stop to look after jobs when the laptop sleeps.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from typing import Any, Final

from ft.launcher.backends.base import Check
from ft.launcher.secrets import Redactor
from ft.recipes.errors import DependencyError, FtError, SubmitError, UnreachableError

VERSIONS: Final = ((0, 14), (0, 15))
"""From and below: what we rely on was tried with 0.14."""
START: Final = "sky api start  starts one on this machine; sky api login  takes one elsewhere"
ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def talking(secret: Mapping[str, str] | None = None) -> Iterator[None]:
    """Around what talks to SkyPilot.

    Raises: DependencyError if it is not installed, or no server runs; UnreachableError if it does not answer;
    SubmitError for whatever else it says. No message has a value of `secret`.
    """
    must_be_installed()
    import sky

    hide = Redactor((secret or {}).values()).text
    e = sky.exceptions
    try:
        _must_be_up()
        # Its client says on standard output what it does; that is ours, and programs read it.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except FtError:
        raise
    except (e.ApiServerConnectionError, e.ServerTemporarilyUnavailableError) as error:
        raise UnreachableError(f"SkyPilot's API server: {hide(words_of(error))}") from None
    except (e.ApiServerAuthenticationError, e.APIVersionMismatchError) as error:
        raise DependencyError(f"SkyPilot's API server: {hide(words_of(error))}") from None
    except e.ResourcesUnavailableError as error:
        hint = (
            "sky check  says which clouds can be used; another cloud.gpu or cloud.region may be had"
        )
        raise SubmitError(f"SkyPilot: {hide(words_of(error))}", hint=hint) from None
    except Exception as error:
        import requests

        if isinstance(error, requests.exceptions.RequestException):
            raise UnreachableError(f"SkyPilot's API server: {hide(words_of(error))}") from None
        if type(error).__module__.startswith("sky.") or isinstance(
            error, ValueError | RuntimeError
        ):
            raise SubmitError(f"SkyPilot: {hide(words_of(error))}") from None
        raise


def _must_be_up() -> None:
    from sky.server import common

    status = common.get_api_server_status().status
    if status == common.ApiServerStatus.UNHEALTHY:
        # Its client would remember the answer.
        common.get_api_server_status_response.cache_clear()
        raise UnreachableError(
            f"no API server of SkyPilot's answers at {common.get_server_url()}", hint=START
        )


def words_of(error: BaseException) -> str:
    """What an error says, in one line and without colours."""
    text = ANSI.sub("", str(error))
    return " ".join(text.split()) or type(error).__name__


def is_silence(error: BaseException) -> bool:
    """Whether an error is of the way to the server, so that nobody knows what became of a request."""
    import requests
    import sky

    e = sky.exceptions
    kinds = (e.ApiServerConnectionError, e.ServerTemporarilyUnavailableError)
    return isinstance(error, (*kinds, requests.exceptions.RequestException, KeyboardInterrupt))


def validated(task: Mapping[str, Any]) -> Any:
    """A task of SkyPilot's, without a server. It changes what it is made of, so it gets a copy of its own.

    Raises: SubmitError.
    """
    import sky

    try:
        return sky.Task.from_yaml_config(copy.deepcopy(dict(task)))
    except ValueError as error:
        raise SubmitError(f"SkyPilot does not take the task: {words_of(error)}") from None


def must_be_installed() -> None:
    """Raises: DependencyError."""
    if version() is None:
        raise DependencyError("backend sky needs skypilot", extra="sky")


def version() -> str | None:
    return metadata.version("skypilot") if util.find_spec("sky") else None


def checks() -> list[Check]:
    """Client, server, clouds. Nothing is started."""
    found = version()
    if found is None:
        fix = "pip install 'ft-launcher[sky]'"
        return [Check("packages", ok=False, message="missing: skypilot", fix=fix)]
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if not VERSIONS[0] <= numbers < VERSIONS[1]:
        fix = "pip install 'skypilot>=0.14,<0.15'"
        return [Check("packages", ok=False, message=f"skypilot {found}", fix=fix)]
    return [Check("packages", ok=True, message=f"skypilot {found}"), *_server()]


def _server() -> list[Check]:
    try:
        with talking():
            import sky
            from sky.client import sdk
            from sky.server import common

            where = common.get_server_url()
            clouds = sky.get(sdk.enabled_clouds())
            is_here = common.is_api_server_local()
    except FtError as error:
        return [Check("server", ok=False, message=error.message, fix=error.hint or START)]
    sleeps = (
        "; while this machine sleeps, no job that loses its machine is begun anew"
        if is_here
        else ""
    )
    names = ", ".join(sorted(str(cloud) for cloud in clouds))
    return [
        Check("server", ok=True, message=f"{where}{sleeps}"),
        Check(
            "clouds",
            ok=bool(clouds),
            message=names or "none can be used",
            fix="" if clouds else "sky check  says what is missing",
        ),
    ]
