"""What the machines of a run and the laptop say to each other: claims, requests, ends. Read with patience."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, TypeVar

log = logging.getLogger("ft.machine")

CONTROL: Final = "control"
"""What `ft cloud cancel` asks for, as control.json."""
CURRENT: Final = "current"
"""The newest segment that a machine has begun: its number, its call, the plan's sha256."""
ENDING: Final = "ending"
"""A number that grows while a machine uploads what an attempt has left; not the moment to kill it."""
PUBLISH_S: Final = "publish_s"
"""What the longest upload of a checkpoint took: so much of a segment's time has to stay free."""
PATIENCE_S: Final = 300.0
"""A client gives up after a second; a service that restarts needs longer."""
PAUSE_S: Final = 2.0

T = TypeVar("T")


class Words(ABC):
    """Words by key, plain JSON values, whose service may not answer for a while.

    Whoever claims something reads it again: a reply can be lost.
    """

    @abstractmethod
    def _get(self, key: str) -> Any:
        """None if it is not there. Raises: what the service raises."""

    @abstractmethod
    def _put(self, key: str, value: Any, *, once: bool) -> None:
        """`once`: the first value stays."""

    @abstractmethod
    def _drop(self, key: str) -> None:
        """What is not there is no error."""

    def get(self, key: str) -> Any:
        """None if it is not there. Raises: what the service raises, after minutes."""
        return self._patiently(lambda: self._get(key))

    def put(self, key: str, value: Any, *, once: bool = False) -> None:
        """`once`: the first value stays."""
        self._patiently(lambda: self._put(key, value, once=once))

    def claim(self, key: str, value: str) -> str:
        """The value that was first: ours or another one."""
        self.put(key, value, once=True)
        return str(self.get(key))

    def drop(self, key: str) -> None:
        """What is not there is no error."""
        self._patiently(lambda: self._drop(key))

    def peek(self, key: str, default: Any = None) -> Any:
        """As `get`, asked once; `default` where the service does not answer, which is no news."""
        try:
            return self._get(key)
        except Exception as error:  # noqa: BLE001  each service has its own
            log.warning("%s could not be read: %s", key, error)
            return default

    def _is_refused(self, error: Exception) -> bool:
        """Whether asking again is of no use."""
        del error
        return False

    def _patiently(self, ask: Callable[[], T]) -> T:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except Exception as error:
                if time.monotonic() > until or self._is_refused(error):
                    raise
                log.warning("no answer, asked again: %s", error)
                time.sleep(PAUSE_S)


def holder_of(segment: int) -> str:
    """Key: the call that holds a segment."""
    return f"holder-{segment}"


def call_of(segment: int) -> str:
    """Key: the call that was begun for a segment."""
    return f"call-{segment}"


def next_of(segment: int) -> str:
    """Key: somebody is about to begin this segment, or has done so."""
    return f"next-{segment}"
