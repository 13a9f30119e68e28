"""Imports of torch and friends without searches for garbage, which find none: modules and classes stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """A fifth of the time that a rank's imports took went into searches. What is there afterwards is never searched."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
