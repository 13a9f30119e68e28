"""Calls of a run on Modal, as a laptop finds them: among the run's words, and by its app."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

from ft.launcher.backends import modal_request
from ft.launcher.backends.base import Handle
from ft.launcher.backends.modal_talk import is_of_the_client
from ft.launcher.machine.words import call_of, holder_of


class Said(Protocol):
    """The words of a run."""

    def keys(self) -> list[str]: ...
    def word(self, key: str) -> Any: ...


def is_call(name: str) -> bool:
    """Whether it is an id of Modal's. In a bucket another backend may hold a segment."""
    return name.startswith("fc-")


def segments(words: Said) -> list[int]:
    """Numbers of all segments that somebody has claimed, spawned, or wanted to."""
    return _numbers(words.keys(), "call-", "holder-", "next-")


def newest_call(words: Said) -> tuple[str, int]:
    """The call of the highest segment that was begun or resumed, and its number; none where no container has begun."""
    segment = max(_numbers(words.keys(), "call-", "holder-"), default=None)
    if segment is None:
        return "", modal_request.PREPARE
    # The one that holds a segment goes before one that was spawned for it a second time.
    call = str(words.word(holder_of(segment)) or words.word(call_of(segment)))
    return call if is_call(call) else "", segment


def calls(words: Said) -> set[str]:
    """Every call of the run that a container or a laptop has told of."""
    told = [key for key in words.keys() if key.startswith(("call-", "holder-"))]  # noqa: SIM118  no mapping
    return {call for key in told if is_call(call := str(words.word(key)))}


def _numbers(keys: Iterable[str], *prefixes: str) -> list[int]:
    said = [key.rpartition("-") for key in keys if key.startswith(prefixes)]
    return [int(number) for _what, _, number in said if number.isdecimal()]


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
