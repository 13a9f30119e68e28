"""Calls of a run on Modal, as a laptop finds them: in the run's Dict, and by its app."""

from __future__ import annotations

import contextlib
from typing import Any

from ft.launcher.backends import modal_request
from ft.launcher.backends.base import Handle
from ft.launcher.backends.modal_talk import is_of_the_client


def peek(words: Any, key: str) -> Any:
    """None also where there is no such Dict."""
    import modal

    try:
        return words.get(key)
    except modal.exception.NotFoundError:
        return None


def segments(words: Any) -> list[int]:
    """Numbers of all segments that somebody has claimed, spawned, or wanted to."""
    import modal

    with contextlib.suppress(modal.exception.NotFoundError):
        names = [str(key).rpartition("-") for key in words.keys()]  # noqa: SIM118  a Dict of Modal's
        return [int(number) for what, _, number in names if what in {"call", "holder", "next"}]
    return []


def newest_call(words: Any) -> tuple[str, int]:
    """The call of the highest segment that was begun or resumed, and its number; none where no container has begun."""
    import modal

    with contextlib.suppress(modal.exception.NotFoundError):
        said = {str(key).rpartition("-")[::2]: str(value) for key, value in words.items()}
        # The one that holds a segment goes before one that was spawned for it a second time.
        found = [(int(n), what, said[what, n]) for what, n in said if what in {"call", "holder"}]
        if found:
            segment, _, call = max(found)
            return call, segment
    return "", modal_request.PREPARE


def is_living(call: str) -> bool:
    """Whether a call waits or runs. Raises: what the client raises where it cannot ask."""
    import modal

    try:
        if call:
            modal.FunctionCall.from_id(call).get(timeout=0)
    except modal.exception.TimeoutError:
        return False  # Modal ended it.
    except TimeoutError:
        return True
    except Exception as error:
        if is_of_the_client(error):
            raise
    return False


def is_deployed(handle: Handle) -> bool:
    import modal

    where = handle.values.get("environment") or None
    with contextlib.suppress(modal.exception.NotFoundError):
        modal.App.lookup(handle.values["app"], environment_name=where)
        return True
    return False


def stop_app(name: str, where: str | None) -> None:
    """And with it all its calls; one that is not there is no error."""
    import modal

    with contextlib.suppress(modal.exception.NotFoundError):
        modal.App.lookup(name, environment_name=where).stop()
