"""Several processes make rows, and they come out in the order in which they were read."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ft.runtime.data.prepare import Work
    from ft.runtime.data.rows import Made, Maker
    from ft.runtime.data.sources import Chunk

AHEAD = 3
"""Chunks for each process that are read before they are wanted: memory is bounded, and nobody waits."""

_PR_SET_PDEATHSIG = 1

_makers: Sequence[Maker] = ()


def made(work: Work, num_processes: int) -> Iterator[tuple[Chunk, Made]]:
    """As `Work.made`. Raises: DataError, that of the first bad example in the order of reading."""
    # Forked, so that nobody loads the libraries and the tokenizer again. Nothing here has started threads of its own
    # that a child would miss: engines are made in the children.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=_begin, initargs=(work, os.getpid())
    ) as workers:
        waiting: deque[tuple[Chunk, Future[Made]]] = deque()
        try:
            for index, chunk in work.chunks():
                waiting.append((chunk, workers.submit(_make, index, chunk)))
                if len(waiting) > AHEAD * num_processes:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            workers.shutdown(wait=True, cancel_futures=True)


def _first(waiting: deque[tuple[Chunk, Future[Made]]]) -> tuple[Chunk, Made]:
    chunk, future = waiting.popleft()
    return chunk, future.result()


def _begin(work: Any, parent: int) -> None:
    """In a child: end with the parent, leave Ctrl-C to it, make the makers."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread for each process; the library says so once it is asked.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    global _makers  # noqa: PLW0603  the one thing that a process of a pool can keep
    _makers = work.makers()


def _make(index: int, chunk: Chunk) -> Made:
    return _makers[index].make(chunk)
