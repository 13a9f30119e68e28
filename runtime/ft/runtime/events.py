"""What the first rank of a node tells while it works. One line per event, in the node's store.

That of node 0 is the run's; from the others only their agents learn where they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ft.recipes.runstore import Event
from ft.recipes.store import Store

log = logging.getLogger("ft.events")


class Events:
    """Writes events of one attempt. Ranks other than the first of a node are silent."""

    def __init__(self, store: Store, attempt: int, *, speaks: bool) -> None:
        self.store = store
        self.attempt = attempt
        self.speaks = speaks

    def emit(self, kind: str, **data: Any) -> None:
        """See `runstore.Event` for the kinds and their data."""
        if not self.speaks:
            return
        try:
            self.store.append_event(Event(kind, time.time(), self.attempt, data))
        except OSError as error:
            # Lines about a step are worth less than the step: only a checkpoint that fails ends training.
            log.warning("an event of kind %s could not be written: %s", kind, error)

    def log(self, message: str, level: str = "info") -> None:
        self.emit("log", level=level, message=message)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Begin and end of a part of the run; the end is written only if it ended well."""
        began = time.monotonic()
        self.emit("phase", name=name, mark="begin")
        yield
        self.emit("phase", name=name, mark="end", seconds=round(time.monotonic() - began, 3))
