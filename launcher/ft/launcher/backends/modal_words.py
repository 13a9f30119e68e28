"""The Dict of a run on Modal, as its containers read and write it."""

from __future__ import annotations

from typing import Any

import modal

from ft.launcher.machine.words import Words


class ModalWords(Words):
    """See `Words`."""

    def __init__(self, name: str) -> None:
        self._dict: Any = modal.Dict.from_name(name, create_if_missing=True)

    def _get(self, key: str) -> Any:
        return self._dict.get(key)

    def _put(self, key: str, value: Any, *, once: bool) -> None:
        self._dict.put(key, value, skip_if_exists=once)

    def _drop(self, key: str) -> None:
        self._dict.pop(key, None)


def container_of(node: int) -> str:
    """Key: the container that a node of the run is, or was last."""
    return f"container-{node}"
