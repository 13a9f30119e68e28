"""Where model and tokenizer come from, and why they cannot be read: a mistake of the user, or a bad moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ft.recipes.errors import PlanError
from ft.recipes.runstore import INPUTS

WRONG_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM}
"""Of the system's errors, those that are the same at the next attempt."""


def located(name: str, run_folder: Path) -> str:
    """`inputs/<name>` as a path in the run's folder; a hub id as it is."""
    return str(run_folder / name) if name.startswith(f"{INPUTS}/") else name


@contextmanager
def reading(key: str, source: str) -> Iterator[None]:
    """Around what reads `source` for the recipe's `key`.

    Raises: PlanError naming both if the source is wrong. A failure of the network or of the disk stays what it is:
    another attempt may do better.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if may_pass(error):
            raise
        raise PlanError(_refusal(key, source, error)) from error


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    if is_offline_mode():
        # Nothing goes out, so it is the cache that lacks the file, or a folder that is wrong.
        return any(_is_bad_disk(cause) for cause in _chain(error))
    return any(_is_bad_moment(cause) or _is_bad_disk(cause) for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_bad_moment(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status in {0, 408, 429} or status >= 500
    if isinstance(error, LocalEntryNotFoundError):
        return True  # Online it means: the hub did not answer, and the cache is empty.
    # By name: the hub's client has had three HTTP libraries, and their errors have these bases.
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"ConnectionError", "TimeoutError", "TransportError", "RequestException"})


def _is_bad_disk(error: BaseException) -> bool:
    return (
        isinstance(error, OSError)
        and not isinstance(error, OfflineModeIsEnabled)
        and error.errno is not None
        and error.errno not in WRONG_PATH
    )


def _refusal(key: str, source: str, error: BaseException) -> str:
    if source.startswith(("/", ".")) and not Path(source).exists():
        return f"{key}: {source} is not there. Name a folder with a model, or a hub id"
    if is_offline_mode() and any(isinstance(e, LocalEntryNotFoundError) for e in _chain(error)):
        return (
            f"{key}: {source} is not in the cache of this machine, and HF_HUB_OFFLINE is set. "
            "Download it first, or let the run go online"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    kind = "folder" if os.path.isdir(source) else "hub id"  # noqa: PTH112  # a hub id is no path
    return f"{key}: the {kind} {source} cannot be used: {first.strip()}"
