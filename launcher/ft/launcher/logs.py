"""Logs in a store that can be read as files: lines of all attempts, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ft.launcher.backends.base import LogLine, LogQuery
from ft.recipes.store import LocalStore

SUPERVISOR: Final = "supervisor"
"""A source that belongs to the run and to no attempt."""
FOLLOW_S: Final = 0.2


class LogReader:
    """Whole lines of a run's logs, each once, attempt by attempt."""

    def __init__(
        self, store: LocalStore, query: LogQuery, *, supervisor_log: Path | None = None
    ) -> None:
        self.store, self.supervisor_log, self.query = store, supervisor_log, query
        self._offsets: dict[Path, int] = {}
        self._times: dict[Path, datetime] = {}

    def new(self, *, ended: bool = False) -> Iterator[LogLine]:
        """Lines that were added since the last call. What an attempt has left of a line ends with it.

        `ended`: nobody writes the logs any more.
        """
        last = max(self.store.attempts(), default=0)
        for attempt, source, path in self._files():
            for text in self._texts(path, to_the_end=ended or 0 < attempt < last):
                line = LogLine(text, attempt, source, _time_of(text))
                if line.time is not None:
                    self._times[path] = line.time
                if self._is_wanted(self._times.get(path)):
                    yield line

    def lines(self, look: Callable[[], tuple[bool, bool]]) -> Iterator[LogLine]:
        """All that the query asks for. `look`: whether nobody writes the logs any more, and whether the run is over."""
        # The state first: what is written before an end is read after it.
        over, _ = look()
        lines: Iterable[LogLine] = self.new(ended=over)
        if self.query.tail is not None:
            kept = list(lines)
            lines = kept[len(kept) - min(self.query.tail, len(kept)) :]
        yield from lines
        while self.query.follow:
            over, ends_here = look()
            yield from self.new(ended=over)
            if ends_here:
                return
            time.sleep(FOLLOW_S)

    def _files(self) -> Iterator[tuple[int, str, Path]]:
        if SUPERVISOR in self.query.sources and self.supervisor_log and not self.query.attempt:
            yield 0, SUPERVISOR, self.supervisor_log
        for attempt in self.store.attempts():
            if self.query.attempt in {None, attempt}:
                for source in self.query.sources:
                    path = self.store.attempt_folder(attempt) / f"{source}.log"
                    yield attempt, source, path

    def _texts(self, path: Path, *, to_the_end: bool) -> list[str]:
        if not path.is_file():
            return []
        offset = self._offsets.get(path, 0)
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
        whole = data if to_the_end else data[: data.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(whole)
        return whole.decode(errors="replace").splitlines()

    def _is_wanted(self, at: datetime | None) -> bool:
        """A line without a time, such as one of a traceback, has that of the line before it."""
        since = self.query.since
        return since is None or at is None or at >= since


def _time_of(text: str) -> datetime | None:
    """The time at the start of a line of ours: `2026-11-23T17:45:12Z …`."""
    stamp = text.split(" ", 1)[0]
    try:
        return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
