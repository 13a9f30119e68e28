"""One process makes rows or several, and they come out in the order in which they were read."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np

from ft.runtime.data.row import DataError
from ft.runtime.data.rows import Made, Maker
from ft.runtime.data.sources import Chunk
from ft.runtime.data.tokenize import IGNORED
from ft.runtime.data.work import Work
from ft.runtime.node import die_with_parent

AHEAD = 3
"""Chunks for each process that are read before they are wanted: memory is bounded, and nobody waits."""

PIPE_BYTES = 1 << 20
"""What Linux allows anybody. With its 64 KiB both ends of a pipe wait for each other thirty times for a chunk."""

_makers: Sequence[Maker] | DataError = ()


def made(work: Work) -> Iterator[tuple[Chunk, Made]]:
    """Every chunk and its rows. Raises: DataError, that of the first bad example in the order of reading."""
    if work.num_processes > 1:
        yield from _by_several(work)
        return
    makers = work.makers()
    for index, chunk in work.chunks():
        yield chunk, makers[index].make(chunk)


def _by_several(work: Work) -> Iterator[tuple[Chunk, Made]]:
    # Forked, so that nobody loads the libraries and the tokenizer again. Nothing here has started threads of its own
    # that a child would miss: engines are made in the children.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        work.num_processes, mp_context=context, initializer=_begin, initargs=(work, os.getpid())
    ) as workers:
        waiting: deque[tuple[Chunk, Future[Made]]] = deque()
        _widen(workers)
        chunks = _until_unreadable(work.chunks())
        try:
            for index, chunk in chunks:
                if isinstance(chunk, DataError):
                    # What was read before it may have an error that comes first.
                    yield from (_first(waiting) for _ in range(len(waiting)))
                    raise chunk
                waiting.append((chunk, workers.submit(_make, index, chunk)))
                if len(waiting) > AHEAD * work.num_processes:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        except BrokenProcessPool as error:
            reason = (
                "a process that makes rows was killed, most likely because memory ran out: "
                "use fewer with `ft preprocess --processes 1`"
            )
            raise DataError("the data", None, "", reason) from error
        finally:
            workers.shutdown(wait=True, cancel_futures=True)


def _widen(workers: ProcessPoolExecutor) -> None:
    """Larger pipes to and from the workers, where the system has them."""
    for queue in ("_call_queue", "_result_queue"):
        # Not part of what the library promises; without it the same rows take longer.
        with contextlib.suppress(AttributeError, OSError):
            pipe = getattr(workers, queue)._writer.fileno()
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _until_unreadable(
    chunks: Iterator[tuple[int, Chunk]],
) -> Iterator[tuple[int, Chunk | DataError]]:
    """The chunks, and at the end the error that ended them."""
    try:
        yield from chunks
    except DataError as error:
        yield -1, error


def _first(waiting: deque[tuple[Chunk, Future[Made]]]) -> tuple[Chunk, Made]:
    chunk, future = waiting.popleft()
    return chunk, _unfolded(future.result())


def _begin(work: Work, parent: int) -> None:
    """In a child: end with the parent, leave Ctrl-C to it, make the makers."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread for each process; the library says so once it is asked.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    global _makers  # noqa: PLW0603  the one thing that a process of a pool can keep
    try:
        _makers = work.makers()
    except DataError as error:
        _makers = error  # An error in here would only say that a process ended.


def _make(index: int, chunk: Chunk) -> Made:
    if isinstance(_makers, DataError):
        raise _makers
    return _folded(_makers[index].make(chunk))


def _folded(made: Made) -> Made:
    """With one bit for each label: what goes through a pipe costs both processes."""
    return replace(made, labels=np.packbits(made.labels != IGNORED))


def _unfolded(made: Made) -> Made:
    trained = np.unpackbits(made.labels, count=len(made.ids)).view(bool)
    return replace(made, labels=np.where(trained, made.ids, np.int32(IGNORED)))
