"""The Dict of a run on Modal: claims, and what the launcher asks for. Read and written in containers with patience."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import modal

log = logging.getLogger("ft.modal")

CONTROL: Final = "control"
"""What `ft cloud cancel` asks for, as control.json."""
CURRENT: Final = "current"
"""The newest segment that a container has begun: its number, its call, the plan's sha256."""
ENDING: Final = "ending"
"""A number that grows while a container uploads what an attempt has left; not the moment to kill it."""
PUBLISH_S: Final = "publish_s"
"""What the longest upload of a checkpoint took: so much of a segment's time has to stay free."""
PATIENCE_S: Final = 300.0
"""The client gives up after a second; a service that restarts needs longer."""
PAUSE_S: Final = 2.0

T = TypeVar("T")


class Words:
    """A Dict whose service may not answer for a while. Whoever claims something reads it again: a reply can be lost."""

    def __init__(self, name: str) -> None:
        self._dict: Any = modal.Dict.from_name(name, create_if_missing=True)

    def get(self, key: str) -> Any:
        """None if it is not there. Raises: what the client raises, after minutes."""
        return self._patiently(lambda: self._dict.get(key))

    def put(self, key: str, value: Any, *, once: bool = False) -> None:
        """`once`: the first value stays."""
        self._patiently(lambda: self._dict.put(key, value, skip_if_exists=once))

    def claim(self, key: str, value: str) -> str:
        """The value that was first: ours or another one."""
        self.put(key, value, once=True)
        return str(self.get(key))

    def drop(self, key: str) -> None:
        self._patiently(lambda: self._dict.pop(key, None))

    def peek(self, key: str, default: Any = None) -> Any:
        """As `get`, asked once; `default` where the service does not answer, which is no news."""
        try:
            return self._dict.get(key)
        except Exception as error:  # noqa: BLE001  the client has many, and grpclib's own
            log.warning("%s could not be read: %s", key, error)
            return default

    @staticmethod
    def _patiently(ask: Callable[[], T]) -> T:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except Exception as error:
                if time.monotonic() > until:
                    raise
                log.warning("Modal did not answer, asked again: %s", error)
                time.sleep(PAUSE_S)


def holder_of(segment: int) -> str:
    """Key: the call that holds a segment."""
    return f"holder-{segment}"


def call_of(segment: int) -> str:
    """Key: the call that was spawned for a segment."""
    return f"call-{segment}"


def container_of(node: int) -> str:
    """Key: the container that a node of the run is, or was last."""
    return f"container-{node}"


def next_of(segment: int) -> str:
    """Key: somebody is about to spawn this segment, or has done so."""
    return f"next-{segment}"
