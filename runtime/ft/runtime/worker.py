"""One rank: `python -m ft.runtime.worker STORE --attempt N`. Logs to a file of its own, and says how it ended."""

from __future__ import annotations

from ft.runtime.node import Rank, die_with_agent

die_with_agent()  # Before the slow imports: an agent that dies now must not leave ranks behind.

import argparse  # noqa: E402
import fcntl  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

from ft.recipes.errors import FtError  # noqa: E402
from ft.recipes.runstore import RANKS_LOCK, ExitCode, RankExit, Reason, write_atomic  # noqa: E402
from ft.recipes.simulate import Simulation, parse_simulation  # noqa: E402
from ft.recipes.store import LocalStore  # noqa: E402
from ft.runtime.data.row import DataError  # noqa: E402
from ft.runtime.ends import AttemptError  # noqa: E402
from ft.runtime.events import Events  # noqa: E402
from ft.runtime.gc_paused import gc_paused  # noqa: E402
from ft.runtime.ranks import exit_path  # noqa: E402
from ft.runtime.stop import StopFlag, join  # noqa: E402
from ft.runtime.work import enter  # noqa: E402

log = logging.getLogger("ft.worker")


def classify(error: BaseException, step: int) -> RankExit:
    """Which exit code and reason an exception is (decision 8)."""
    message = str(error).strip() or type(error).__name__
    if isinstance(error, DataError):
        return RankExit(ExitCode.DETERMINISTIC, Reason.DATA, message, step)
    if _is_out_of_memory(error):
        return RankExit(ExitCode.DETERMINISTIC, Reason.OOM, f"out of memory: {message}", step)
    if isinstance(error, AttemptError):
        return RankExit(error.exit_code, error.reason, message, step)
    if isinstance(error, FtError):
        hint = f". {error.hint}" if error.hint else ""
        return RankExit(ExitCode.CONFIG, Reason.CONFIG, f"{message}{hint}", step)
    if isinstance(error, ImportError):
        message = f"{message}: training needs pip install 'ft-launcher[train]'"
        return RankExit(ExitCode.CONFIG, Reason.CONFIG, message, step)
    return RankExit(
        ExitCode.UNCLASSIFIED, Reason.UNCLASSIFIED, f"{type(error).__name__}: {message}", step
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # Not imported here: where torch is not loaded it raised nothing, and its absence may be the error.
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )


def main(argv: list[str] | None = None) -> int:
    stop = StopFlag()
    stop.listen()
    parser = argparse.ArgumentParser(prog="python -m ft.runtime.worker")
    parser.add_argument("store", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--simulate", type=parse_simulation, action="append", default=[])
    parser.add_argument("--no-export", action="store_true")
    arguments = parser.parse_args(argv)
    store = LocalStore(arguments.store)
    rank = Rank.from_env()
    folder = store.attempt_folder(arguments.attempt)
    still_writing = (store.root / RANKS_LOCK).open("a")
    fcntl.flock(
        still_writing, fcntl.LOCK_SH
    )  # Until this process is gone, whatever happens to its agent.
    join(stop, folder, rank.rank)
    enter(Path.cwd())
    _log_to(folder / f"rank{rank.rank}.log")
    # Renamed arguments that trl still passes by their old names.
    warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6.*")
    events = Events(store, arguments.attempt, speaks=rank.local_rank == 0)
    end = _run(
        store, rank, events, stop, tuple(arguments.simulate), exports=not arguments.no_export
    )
    write_atomic(exit_path(folder, rank.rank), end.to_json())
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a rank whose peer is gone would wait in the destructor of its process group.
    os._exit(end.exit_code)


def _run(
    store: LocalStore,
    rank: Rank,
    events: Events,
    stop: StopFlag,
    simulations: tuple[Simulation, ...],
    *,
    exports: bool,
) -> RankExit:
    progress = [0]
    try:
        with gc_paused():
            from ft.runtime.train import (
                train,
            )  # torch and friends: seconds, and they may be missing

        end = train(store, rank, events, stop, progress, simulations=simulations, exports=exports)
        return replace(end, at=time.time())
    except BaseException as error:  # noqa: BLE001  # the edge of the process: whatever it was is written down
        end = replace(classify(error, progress[0]), at=time.time())
        if isinstance(error, FtError | DataError | AttemptError):
            log.error("%s", end.message)
        else:
            traceback.print_exc()
        events.log(end.message, level="error")
        return end


def _log_to(path: Path) -> None:
    """Send this process's stdout and stderr, also those of C libraries, to `path`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)sZ %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        force=True,
    )


if __name__ == "__main__":
    main()
