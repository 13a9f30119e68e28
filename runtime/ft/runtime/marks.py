"""Where each rank is, so that the one that did not arrive has a name. Imports no torch.

A rank writes into a mapped file, which costs less than a microsecond and survives whatever happens to it; its agent
reads the files once the others have waited too long.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

LAYOUT = struct.Struct("<qqqd?")


class Place(IntEnum):
    """What a rank does."""

    START = 0
    LOAD = 1
    DATA = 2
    BATCH = 3
    COMPUTE = 4
    AGREE = 5
    SAVE = 6
    EVAL = 7
    EXPORT = 8

    @property
    def doing(self) -> str:
        """For a sentence: it was …"""
        return DOING[self]


DOING = {
    Place.START: "starting",
    Place.LOAD: "loading the model",
    Place.DATA: "preparing the data",
    Place.BATCH: "reading a batch",
    Place.COMPUTE: "in the forward or backward pass",
    Place.AGREE: "at the end of a step",
    Place.SAVE: "saving",
    Place.EVAL: "evaluating",
    Place.EXPORT: "exporting",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """The last place that a rank wrote down."""

    count: int
    """Places so far. All ranks pass the same ones, so the one with the smallest count is behind."""
    place: Place
    step: int
    """Optimizer step, counted from 1; 0 before the first."""
    at: float
    """Unix time in seconds."""
    waits: bool = False
    """For other ranks, in a group where that may take hours."""


def mark_path(folder: Path, rank: int) -> Path:
    """In the attempt's folder."""
    return folder / f"rank{rank}.mark"


class Marks:
    """What a rank writes. Without a folder nothing is written."""

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self._last = (0, Place.START, 0, time.time())
        self._map: mmap.mmap | None = None
        if folder is not None:
            path = mark_path(folder, rank)
            path.write_bytes(LAYOUT.pack(*self._last, False))
            with path.open("r+b") as stream:
                self._map = mmap.mmap(stream.fileno(), LAYOUT.size)

    def at(self, place: Place, step: int = 0) -> None:
        """This rank has come to `place`."""
        self._last = (self._last[0] + 1, place, step, time.time())
        self._write(waits=False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """This rank waits for others, as long as it takes: that it does nothing says nothing."""
        self._write(waits=True)
        yield
        self._write(waits=False)

    def _write(self, *, waits: bool) -> None:
        if self._map is not None:
            self._map[:] = LAYOUT.pack(*self._last, waits)


def read_mark(folder: Path, rank: int) -> Mark | None:
    """None if the rank has not begun."""
    try:
        count, place, step, at, waits = LAYOUT.unpack(mark_path(folder, rank).read_bytes())
        return Mark(count, Place(place), step, at, waits)
    except (OSError, ValueError, struct.error):
        return None
