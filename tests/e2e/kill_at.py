"""Processes that are killed by -9 at one exact point, without a hook in the product.

`python kill_at.py POINT cloud run …` is `ft` that dies in a submission, at `record` (nothing is written yet), `spawn`
(record and inputs are there, nothing runs) or `handle` (the supervisor runs, its handle is not written down); on Modal
at `deployed` (nothing is spawned) or `spawned` (a call is, and nobody knows which).

As `sitecustomize` on PYTHONPATH it hits one worker in the middle of a save: Python tells an audit hook of every file
that is opened, renamed or removed. FT_KILL_AT says where, see `Order`; FT_KILL_LOG is told that it happened.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ORDER, LOG = "FT_KILL_AT", "FT_KILL_LOG"


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Order:
    """`POINT STEP RANK ATTEMPT SIGNAL`, the value of FT_KILL_AT."""

    point: str
    step: int
    rank: int = 0
    attempt: int = 1
    signal: str = "SIGKILL"

    def __str__(self) -> str:
        return f"{self.point} {self.step} {self.rank} {self.attempt} {self.signal}"

    @classmethod
    def parse(cls, text: str) -> Order:
        point, step, rank, attempt, signum = text.split()
        return cls(point, int(step), int(rank), int(attempt), signum)


@dataclass(frozen=True)
class Place:
    """Where the files of one save are."""

    store: Path
    step: int

    @property
    def staged(self) -> str:
        return f"{self.store}/.staging-step-{self.step:08d}"

    @property
    def published(self) -> str:
        return f"{self.checkpoints}/step-{self.step:08d}"

    @property
    def checkpoints(self) -> str:
        return f"{self.store}/checkpoints"

    @property
    def staged_final(self) -> str:
        return f"{self.store}/.staging-final"

    def whole(self, folder: str) -> bool:
        return Path(folder, "manifest.json").exists()


def _old_checkpoint(place: Place, path: str) -> bool:
    """A checkpoint that goes because a newer one is there."""
    found = re.fullmatch(re.escape(place.checkpoints) + r"/(?:\.old-)?step-(\d{8})", path)
    return found is not None and int(found[1]) < place.step and place.whole(place.published)


# What Python is about to do: the event, and whether its path is the one.
POINTS: dict[str, tuple[str, Callable[[Place, str], bool]]] = {
    # Nothing is there.
    "staging": ("os.mkdir", lambda at, path: path == at.staged),
    # The weights are there, optimizer and random states are not.
    "weights": ("open", lambda at, path: path == f"{at.staged}/trainer_state.json"),
    # Every file is there and is hashed: torch writes this one without Python, which only reads it.
    "files": ("open", lambda at, path: path == f"{at.staged}/optimizer.pt"),
    "manifest": (
        "open",
        lambda at, path: path.startswith(f"{at.staged}/.manifest.json."),
    ),
    # The manifest is there, the folder still has its temporary name.
    "rename": ("os.rename", lambda at, path: path == at.staged),
    # It has its name, and nobody has been told.
    "renamed": (
        "open",
        lambda at, path: path == at.checkpoints and at.whole(at.published),
    ),
    # The old checkpoint still has its name; then: it has another one, its files are there.
    "prune": ("os.rename", _old_checkpoint),
    "pruning": ("shutil.rmtree", _old_checkpoint),
    # The export, likewise.
    "export": ("os.rename", lambda at, path: path == at.staged_final),
    "exported": (
        "open",
        lambda at, path: path == str(at.store) and at.whole(f"{at.store}/final"),
    ),
    # Another rank than 0, which has a file of its own in the folder.
    "peer": ("os.mkdir", lambda at, path: path == at.staged),
}


def arm() -> None:
    """Watch this process, if it is the worker that the order is for."""
    order, words = os.environ.get(ORDER), sys.orig_argv
    module = "ft.runtime.worker"
    if order is None or module not in words or "torch.distributed.run" in words:
        return
    wanted = Order.parse(order)
    attempt = int(words[words.index("--attempt") + 1])
    if (attempt, int(os.environ["RANK"])) == (wanted.attempt, wanted.rank):
        place = Place(Path(words[words.index(module) + 1]), wanted.step)
        sys.addaudithook(Watch(wanted, place))


class Watch:
    """Hits this process once, at its point."""

    def __init__(self, order: Order, place: Place) -> None:
        self.order, self.place = order, place
        self.event, self.is_here = POINTS[order.point]
        self.over = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.over or event != self.event or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        if isinstance(path, str) and self.is_here(self.place, path):
            self.over = True  # What follows opens a file, too.
            with Path(os.environ[LOG]).open("a") as stream:
                stream.write(f"{self.order}: {event} {path}\n")
            os.kill(os.getpid(), signal.Signals[self.order.signal])


def main() -> None:
    from ft.launcher import runs
    from ft.launcher.backends import local
    from ft.launcher.cli import app

    point = sys.argv.pop(1)
    if point in {"deployed", "spawned"}:
        kill_at_modal(point)
    else:
        where, name = {
            "record": (runs.Runs, "create"),
            "spawn": (local.LocalBackend, "_start"),
            "handle": (runs.Runs, "update"),
        }[point]
        setattr(where, name, die)
    app.main()


def kill_at_modal(point: str) -> None:
    from ft.launcher.backends import modal_app

    spawn = modal_app.ModalCloud.spawn
    before = die if point == "deployed" else spawn

    def spawn_and_die(*words: Any, **values: Any) -> NoReturn:
        before(*words, **values)
        die()

    modal_app.ModalCloud.spawn = spawn_and_die  # type: ignore[method-assign]  # it never returns


if __name__ == "__main__":
    main()
elif __name__ == "sitecustomize":
    arm()
