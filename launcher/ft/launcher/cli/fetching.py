"""`ft cloud fetch`: which folder of a run, where to, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ft.launcher.cli import console
from ft.launcher.cli.run import Run
from ft.launcher.transfer import (
    Copied,
    FolderSource,
    Progress,
    Source,
    Tell,
    conflicts,
    copy,
    deliver,
    refuse,
)
from ft.recipes.errors import FtError, NotFoundError, StoreError
from ft.recipes.runstore import (
    FINAL,
    MANIFEST,
    Manifest,
    step_folders,
    step_name,
    write_atomic,
)

PLAIN_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What lies where."""

    run_id: str
    what: str
    """`final`, or the name of a checkpoint."""
    to: Path
    copied: Copied

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.run_id,
            "what": self.what,
            "to": str(self.to),
            "files": len(self.copied.files),
            "bytes": self.copied.size,
            "copied_bytes": self.copied.moved,
            "seconds": round(self.copied.seconds, 3),
        }

    def sentence(self) -> str:
        files = console.plural(len(self.copied.files), "file")
        if not self.copied.moved:
            return f"{self.what} lies in {self.to} already: {files}, verified"
        took = console.duration(self.copied.seconds)
        size = console.size(self.copied.size)
        return f"{self.what}: {files}, {size} in {took}, verified, in {self.to}"


def fetch(
    run: Run, *, to: Path | None, step: int | None, wants_checkpoint: bool, force: bool
) -> Fetched:
    """Copy the result, or a checkpoint where that is asked for or there is no result yet.

    Raises: NotFoundError if there is nothing to fetch; UsageError if files of the user's are in the way; StoreError.
    """
    final = None if wants_checkpoint else run.store.final()
    folder = final if final is not None else _checkpoint(run, step)
    source = run.backend.published(run.record.as_handle(), folder)
    if final is None and not wants_checkpoint:
        console.note(f"there is no result yet; this is the checkpoint {folder.name}")
    output = Path(run.record.output_dir)
    target = (to or (output if final is not None else output / folder.name)).absolute()
    with _shown() as tell:
        if final is not None:
            copied = _result(run, source, target, force=force, tell=tell)
        else:
            copied = _whole(source, folder, target, force=force, tell=tell)
    return Fetched(run.record.id, FINAL if final else folder.name, target, copied)


def bring(run: Run) -> None:
    """Put the result of a run that has succeeded into its `output_dir`, where the backend has not done so.

    What is in the way there stays, and a line says how to have the result all the same.
    """
    if run.delivered():
        return
    try:
        console.note(fetch(run, to=None, step=None, wants_checkpoint=False, force=False).sentence())
    except FtError as error:
        console.warn(f"the result is not in {run.record.output_dir}: {error.message}")
        console.hint(f"ft cloud fetch {run.record.id} --to FOLDER")


def _result(run: Run, source: Source, target: Path, *, force: bool, tell: Tell) -> Copied:
    base_model = run.runs.submission(run.record.id).base_model()
    run_id = run.record.id
    copied = deliver(source, target, run_id=run_id, base_model=base_model, force=force, tell=tell)
    run.record = run.runs.update(run.record, fetched_to=str(target))
    return copied


def _whole(source: Source, folder: Path, target: Path, *, force: bool, tell: Tell) -> Copied:
    """Copy a checkpoint with its manifest. Raises: UsageError naming what is in the way; StoreError."""
    manifest, published = target / MANIFEST, FolderSource(folder).manifest
    is_there = manifest.exists()
    is_ours = is_there and _is_manifest(manifest, published)
    if not force:
        others = [MANIFEST] if is_there and not is_ours else []
        refuse([*conflicts(source.files(), target), *others], target)
    try:
        if is_there and not is_ours:
            manifest.unlink()
        copied = copy(source, target, tell=tell)
        # Last, so that the folder is a whole checkpoint exactly when it says so.
        write_atomic(manifest, published.to_json())
    except OSError as error:
        raise StoreError(f"{manifest}: {error.strerror or error}") from error
    return copied


def _is_manifest(path: Path, manifest: Manifest) -> bool:
    try:
        return Manifest.from_json(path.read_bytes()) == manifest
    except (OSError, ValueError):
        return False


def _checkpoint(run: Run, step: int | None) -> Path:
    """The checkpoint of `step`, or the newest that is whole. Raises: NotFoundError naming those there are."""
    name, store = run.record.id, run.store
    if step is None:
        newest, passed = store.newest_checkpoint(plan_sha256=run.record.plan_sha256)
        for line in passed:
            console.warn(f"passed over: {line}")
        if newest is None:
            raise NotFoundError(
                f"run {name} has neither a result nor a checkpoint yet",
                hint=f"ft cloud status {name}",
            )
        return newest
    folder = store.checkpoints / step_name(step)
    if not (folder / MANIFEST).is_file():
        found = [f for f in step_folders(store.checkpoints) if (f / MANIFEST).is_file()]
        steps = ", ".join(str(int(f.name.removeprefix("step-"))) for f in found)
        raise NotFoundError(
            f"run {name} has no checkpoint of step {step}",
            hint=f"there are: {steps}" if steps else "there is none yet",
        )
    return folder


@contextmanager
def _shown() -> Iterator[Tell]:
    """Progress on stderr: a bar on a terminal, else a line now and then. Ctrl-C loses nothing."""
    try:
        if console.is_terminal(sys.stderr):
            with _bar() as tell:
                yield tell
        else:
            yield _Plain()
    except KeyboardInterrupt:
        console.note("\ninterrupted; the same command goes on where it stopped")
        raise


def text(progress: Progress) -> str:
    """`1.2 MB of 3.4 MB  0.5 MB/s  4.4 s left`."""
    eta = progress.eta_s
    left = f"  {console.duration(eta)} left" if eta is not None else ""
    done = f"{console.size(progress.done)} of {console.size(progress.total)}"
    return f"{done}  {console.size(progress.rate)}/s{left}"


class _Plain:
    def __init__(self) -> None:
        self._next = time.monotonic() + PLAIN_EVERY_S

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            console.note(f"{progress.path}: {text(progress)}")


@contextmanager
def _bar() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fetching", total=None, text="")

        def tell(progress: Progress) -> None:
            bar.update(
                task,
                description=console.cut(progress.path, 30),
                completed=progress.done,
                total=progress.total,
                text=text(progress),
            )

        yield tell
