"""Checkpoints: all ranks write into their node's staged folder, rank 0 publishes that of node 0.

Nodes share no folder, so files of the others are brought to node 0 first (`gather.py`). On a resume every node reads
its own copy of the checkpoint that node 0 has chosen; who starts the agents puts it there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from ft.recipes.digest import sha256_of_file
from ft.recipes.runstore import MANIFEST, ExitCode, Manifest, Reason, step_name, why_invalid
from ft.recipes.store import LocalStore
from ft.runtime.checkpoint.gather import bring_together
from ft.runtime.ends import AttemptError
from ft.runtime.events import Events
from ft.runtime.marks import Place
from ft.runtime.simulate import Faults
from ft.runtime.world import World

log = logging.getLogger("ft.checkpoint")

COUNTERS = "counters.json"
TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter|inline_container\.cc|iostream error")
"""How torch.save speaks when a file does not take what it writes: it has no OSError for that."""
MAX_FAILED_SAVES = 2
"""In a row: one may be a hiccup of the medium, after two nothing would be left of hours of training."""


@dataclass(slots=True)
class Counters:
    """Sums over the whole run, not over an attempt: they belong to us and survive a resume."""

    tokens: int = 0
    """Tokens without padding."""
    trained_tokens: int = 0
    """Tokens with a label."""
    train_seconds: float = 0.0
    save_seconds: float = 0.0
    """What the longest save took; a resumed attempt knows it before its own first one."""

    def write(self, folder: Path) -> None:
        (folder / COUNTERS).write_text(json.dumps(asdict(self)))

    def read(self, folder: Path) -> None:
        """Take over what was counted up to the checkpoint in `folder`."""
        values = json.loads((folder / COUNTERS).read_text())
        self.tokens, self.trained_tokens = int(values["tokens"]), int(values["trained_tokens"])
        self.train_seconds = float(values["train_seconds"])
        self.save_seconds = float(values["save_seconds"])


class Checkpoints:
    """Publishes and finds the checkpoints of one attempt."""

    def __init__(
        self,
        store: LocalStore,
        events: Events,
        world: World,
        faults: Faults,
        *,
        plan_sha256: str,
        keep: int,
    ) -> None:
        self.store, self.events, self.world, self.faults = store, events, world, faults
        self.plan_sha256, self.keep = plan_sha256, keep
        self.newest_step = 0
        """Of the newest whole one that we know of; 0 without any."""
        self.save_seconds = 0.0
        """What the longest save took; 0 before the first."""
        self.ending = False
        """The attempt ends anyway: how it ends is decided by who asked for it, not by this save."""
        self._saves = self._failed = 0

    def save(self, step: int, write: Callable[[Path], None]) -> bool:
        """Let every rank `write` into one folder, then publish it. Collective. False if it could not be written.

        Raises: AttemptError on every rank if that has happened too often.
        """
        self.world.marks.at(Place.SAVE, step)
        self._saves += 1
        began = time.monotonic()
        with self.events.phase("save"):
            name = step_name(step)
            error = self._write(name, write)
            if self.world.any(error is not None):
                self._note_failure(step, name, error)
                return False
            error = self._publish(name, step, began) if self.world.is_main else None
            # It hashes and syncs every byte of it: longer than an agreement may take.
            self.world.barrier()
            if self.world.any(error is not None):
                self._note_failure(step, name, error)
                return False
            self._failed, self.newest_step = 0, step
            seconds = time.monotonic() - began
            self.save_seconds = max(self.save_seconds, seconds)
            if not self.world.is_main:
                # The agent of this node knows what is saved, too; it lies on node 0.
                self.events.emit("checkpoint", step=step, name=name, seconds=round(seconds, 3))
        return True

    def _write(self, name: str, write: Callable[[Path], None]) -> Exception | None:
        """The files of all ranks, at last in node 0's folder. Returns what the medium did not let this rank do."""
        error: Exception | None = None
        if self.world.is_first_of_node:
            try:
                self.store.staging(name)
            except OSError as failure:
                error = failure
        self.world.barrier()
        if self.world.any(error is not None):
            return error
        staged = self.store.staged(name)
        try:
            self.faults.before_save(self._saves)
            write(staged)
        except (OSError, SafetensorError, RuntimeError) as failure:
            if not is_of_the_medium(failure):
                raise
            error = failure
        # Hours may lie between the ranks: each writes as much as it holds.
        self.world.barrier()
        if self.world.num_nodes > 1 and not self.world.any(error is not None):
            error = bring_together(staged, self.world)
            self.world.barrier()
        return error

    def _publish(self, name: str, step: int, began: float) -> OSError | None:
        try:
            manifest = self._published(name, step)
        except OSError as error:
            return error
        seconds = round(time.monotonic() - began, 3)
        self.events.emit("checkpoint", step=step, name=name, bytes=manifest.size, seconds=seconds)
        try:
            for dropped in self.store.prune(keep=self.keep, valid=name):
                log.info("dropped %s: more than save_total_limit", dropped)
        except OSError as error:
            log.warning("an old checkpoint could not be dropped: %s", error)
        return None

    def _published(self, name: str, step: int) -> Manifest:
        return self.store.publish(
            self.store.staged(name),
            name,
            step=step,
            attempt=self.events.attempt,
            plan_sha256=self.plan_sha256,
            meta={},
        )

    def _note_failure(self, step: int, name: str, error: Exception | None) -> None:
        """Nothing of the half-written one stays. Raises: AttemptError."""
        self._failed += 1
        if self.world.is_first_of_node:
            shutil.rmtree(self.store.staged(name), ignore_errors=True)
        why = str(error).splitlines()[0] if error is not None else "another rank could not write"
        newest = f"step {self.newest_step}" if self.newest_step else "none yet"
        message = f"the checkpoint of step {step} could not be written: {why} (newest whole one: {newest})"
        if self._failed >= MAX_FAILED_SAVES and not self.ending:
            message = f"{message}; {self._failed} in a row"
            raise AttemptError(ExitCode.DETERMINISTIC, Reason.INFRA, message)
        log.warning("%s; training goes on", message)
        self.events.log(f"{message}; training goes on", level="warning")

    def newest(self) -> Path | None:
        """This node's copy of the newest whole checkpoint of this plan that node 0 has. Collective.

        Newer ones that are broken are set aside, with a line on what is wrong with each.
        Raises: AttemptError on every rank if another node has no such copy.
        """
        found = ""
        if self.world.is_main:
            folder, passed = self.store.newest_checkpoint(plan_sha256=self.plan_sha256)
            for line in passed:
                self._set_aside(line.partition(":")[0], line)
            if folder is not None:
                found = f"{folder.name} {sha256_of_file(folder / MANIFEST)}"
        found = self.world.from_main(found)
        if not found:
            return None
        name, _, manifest_sha256 = found.partition(" ")
        if self.world.num_nodes > 1:
            self._find_on_all_nodes(name, manifest_sha256)
        self.newest_step = int(name.removeprefix("step-"))
        return self.store.checkpoints / name

    def _find_on_all_nodes(self, name: str, manifest_sha256: str) -> None:
        """A copy of another content would load as well, and train something else. Raises: AttemptError."""
        why: str | None = None
        if self.world.is_first_of_node and not self.world.is_main:
            folder = self.store.checkpoints / name
            why = "it is not there"
            if folder.exists():
                why = why_invalid(folder, plan_sha256=self.plan_sha256)
            if why is None and sha256_of_file(folder / MANIFEST) != manifest_sha256:
                why = "it is another one than node 0's"
            if why is not None and folder.exists():
                # Out of the way of the copy that the next attempt needs.
                self._set_aside(name, f"{name}: {why}")
        said = f"node {self.world.node} ({socket.gethostname()}): {why}" if why else ""
        lacking = [words for words in self.world.from_nodes(said) if words]
        if lacking:
            message = f"{name}, which node 0 goes on from, is not to be had on {'; '.join(lacking)}"
            raise AttemptError(ExitCode.BAD_NODE, Reason.BAD_NODE, message)

    def _set_aside(self, name: str, line: str) -> None:
        aside = self.store.set_aside(self.store.checkpoints / name)
        message = f"checkpoint not used: {line}; set aside as {aside.name}"
        log.warning("%s", message)
        self.events.log(message, level="warning")


def is_of_the_medium(error: Exception) -> bool:
    """Whether a write failed, as each of our libraries says it."""
    if isinstance(error, OSError | SafetensorError):
        return True
    return TORCH_CANNOT_WRITE.search(str(error)) is not None
