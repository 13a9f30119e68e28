"""Checkpoints: all ranks write into one staged folder, rank 0 publishes it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ft.recipes.runstore import step_name
from ft.recipes.store import LocalStore
from ft.runtime.events import Events
from ft.runtime.world import World

log = logging.getLogger("ft.checkpoint")

COUNTERS = "counters.json"


@dataclass(slots=True)
class Counters:
    """Sums over the whole run, not over an attempt: they belong to us and survive a resume."""

    tokens: int = 0
    """Tokens without padding."""
    trained_tokens: int = 0
    """Tokens with a label."""
    train_seconds: float = 0.0

    def write(self, folder: Path) -> None:
        (folder / COUNTERS).write_text(json.dumps(asdict(self)))

    def read(self, folder: Path) -> None:
        """Take over what was counted up to the checkpoint in `folder`."""
        values = json.loads((folder / COUNTERS).read_text())
        self.tokens, self.trained_tokens = int(values["tokens"]), int(values["trained_tokens"])
        self.train_seconds = float(values["train_seconds"])


class Checkpoints:
    """Publishes and finds the checkpoints of one attempt."""

    def __init__(
        self, store: LocalStore, events: Events, world: World, *, plan_sha256: str, keep: int
    ) -> None:
        self.store, self.events, self.world = store, events, world
        self.plan_sha256, self.keep = plan_sha256, keep

    @contextmanager
    def publishing(self, step: int) -> Iterator[Path]:
        """Yields the folder to write into; publishes it once every rank has written. Collective."""
        with self.events.phase("save"), self._publishing(step) as staged:
            yield staged

    @contextmanager
    def _publishing(self, step: int) -> Iterator[Path]:
        began = time.monotonic()
        name = step_name(step)
        staged = Path(
            self.world.from_main(str(self.store.staging(name)) if self.world.is_main else "")
        )
        yield staged
        self.world.barrier()
        if self.world.is_main:
            manifest = self.store.publish(
                staged,
                name,
                step=step,
                attempt=self.events.attempt,
                plan_sha256=self.plan_sha256,
                meta={},
            )
            seconds = round(time.monotonic() - began, 3)
            self.events.emit(
                "checkpoint", step=step, name=name, bytes=manifest.size, seconds=seconds
            )
            for dropped in self.store.prune(keep=self.keep, valid=name):
                log.info("dropped %s: more than save_total_limit", dropped)
        self.world.barrier()

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this plan; every rank gets the same answer. Collective."""
        found = ""
        if self.world.is_main:
            folder, passed = self.store.newest_checkpoint(plan_sha256=self.plan_sha256)
            for line in passed:
                log.warning("checkpoint not used: %s", line)
                self.events.log(f"checkpoint not used: {line}", level="warning")
            found = str(folder or "")
        found = self.world.from_main(found)
        return Path(found) if found else None
