"""The copy of a run that outlives its machine: written by the machine, read from a laptop.

The copy lies on a medium: a volume, a bucket or a shared folder. It is laid out as a store is (`runstore.py`), but for
files that only grow: those lie in pieces (`events.jsonl.pieces/000000`, …), so that a look at a long log costs its last
piece and not all of it. A published folder is copied file by file, its manifest last, and verified by whoever takes it
back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from ft.images.dockerfile import SOURCE_FILE
from ft.launcher.ends import OUTCOME
from ft.launcher.medium import Listed, Medium, replace_file
from ft.recipes.runstore import (
    ADJUST,
    ATTEMPTS,
    CHECKPOINTS,
    CONTROL,
    EVENTS,
    FINAL,
    INPUTS,
    MANIFEST,
    PLAN,
    STATUS,
    Manifest,
    step_folders,
    why_invalid,
)
from ft.recipes.store import LocalStore

PIECES: Final = ".pieces"
PIECE_BYTES: Final = 1 << 18
SUPERVISOR_LOG: Final = "supervisor.log"
"""What looks after the attempts says here what it does."""
WORDS: Final = "words"
"""In a bucket or a shared folder: what machines and laptop say to each other; no part of the run."""
GROWING: Final = (".log", ".rows.jsonl")
NOT_MIRRORED: Final = (".pid", ".mark")
SETTLED_S: Final = 2.0


class Mirror:
    """A run's folder on this machine (`store`), and the copy of it on `medium`. One process writes both."""

    def __init__(
        self, store: LocalStore, medium: Medium, *, only: Callable[[str], bool] | None = None
    ) -> None:
        """`only`: which files of attempts are pushed, by name, and nothing else is; for a machine that assists."""
        self.store, self.medium, self._only = store, medium, only
        self._seen: dict[str, tuple[int, int]] = {}
        """Small file -> (mtime in ns, size) as it was copied."""
        self._lengths: dict[str, int] = {}
        """Growing file -> bytes that are in the copy."""
        self._manifests: dict[str, bytes] = {}
        """Published folder -> its manifest in the copy, once somebody has looked."""

    # ------------------------------------------------------------------------------------ out

    def push_words(self) -> bool:
        """Copy what the run says of itself: status, events, logs, ends. True if anything was new."""
        found = [self._push_growing(path) for path in self._growing()]
        # Behind the events: a status never tells of more than they do.
        return any([*found, *[self._push_small(path) for path in self._small()]])

    def push_published(self, *, keep: int) -> list[str]:
        """Copy checkpoints and the result that the copy lacks, the newest first; then drop old ones.

        A manifest is written once the medium lists every file of it with its size. A checkpoint that the run drops
        meanwhile is passed over. Returns the names that were published. Raises: OSError if the medium lacks something.
        """
        names = []
        for folder in self._published():
            name = self._name(folder)
            if not self._is_published(folder, name) and self._publish(folder, name):
                names.append(folder.name)
        if names and self._prune(keep):
            self.medium.commit()
        return names

    def has_final(self) -> bool:
        """Whether the copy has the result."""
        return bool(self._manifest_of(FINAL))

    def _prune(self, keep: int) -> bool:
        """Drop old checkpoints but the newest `keep`, and what was cut off on its way before those."""
        files = [PurePosixPath(file.path) for file in self.medium.listed(CHECKPOINTS)]
        folders = sorted({f.parts[1] for f in files if f.parts[1].startswith("step-")})
        whole = [name for name in folders if PurePosixPath(CHECKPOINTS, name, MANIFEST) in files]
        if not whole[:-keep]:
            return False
        for name in (name for name in folders if name < whole[-keep]):
            self.medium.drop(f"{CHECKPOINTS}/{name}")
            self._manifests.pop(f"{CHECKPOINTS}/{name}", None)
        return True

    def _publish(self, folder: Path, name: str) -> bool:
        """Copy what is held by links of our own: training may drop a checkpoint while it travels."""
        held = self.store.root / f".held-{folder.name}"
        shutil.rmtree(held, ignore_errors=True)
        try:
            shutil.copytree(folder, held, copy_function=os.link)
            return self._copy_published(held, name)
        except (FileNotFoundError, shutil.Error):
            return False
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def _copy_published(self, folder: Path, name: str) -> bool:
        """Copy a published folder, its manifest last."""
        manifest = (folder / MANIFEST).read_bytes()
        files = Manifest.from_json(manifest).files
        self._begin(name, {f"{name}/{entry.path}" for entry in files})
        self.medium.upload({f"{name}/{entry.path}": folder / entry.path for entry in files})
        self.medium.commit()
        there = self.medium.sizes(name)
        for entry in files:
            if there.get(entry.path) != entry.size:
                raise OSError(
                    f"{name}/{entry.path} has {entry.size} bytes, committed were {there.get(entry.path)}"
                )
        self.medium.write(f"{name}/{MANIFEST}", manifest)
        self.medium.commit()
        self._manifests[name] = manifest
        return True

    def _begin(self, name: str, files: set[str]) -> None:
        """What an earlier attempt has published there is none any more; what was cut off may be gone on with."""
        there = {file.path for file in self.medium.listed(name)}
        if not there <= files:
            self.medium.drop(name)
        self._manifests.pop(name, None)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.store.root).as_posix()

    def _published(self) -> Iterator[Path]:
        """The result, then checkpoints from the newest."""
        folders = [self.store.root / FINAL]
        if self.store.checkpoints.is_dir():
            folders += sorted(self.store.checkpoints.glob("step-*"), reverse=True)
        yield from (folder for folder in folders if (folder / MANIFEST).is_file())

    def _is_published(self, folder: Path, name: str) -> bool:
        """Whether the copy has the same manifest."""
        try:
            return (folder / MANIFEST).read_bytes() == self._manifest_of(name)
        except FileNotFoundError:
            return False

    def _manifest_of(self, name: str) -> bytes:
        """Of a folder in the copy; empty without one. Asked once: nobody else writes there."""
        if name not in self._manifests:
            try:
                self._manifests[name] = self.medium.read(f"{name}/{MANIFEST}")
            except FileNotFoundError:
                return b""
        return self._manifests[name]

    def _growing(self) -> Iterator[Path]:
        yield from self._of_run(EVENTS, SUPERVISOR_LOG)
        yield from (path for path in self._of_attempts() if path.name.endswith(GROWING))

    def _small(self) -> Iterator[Path]:
        yield from (
            path
            for path in self._of_attempts()
            if not path.name.endswith((*GROWING, *NOT_MIRRORED, ".tmp"))
        )
        yield from self._of_run(ADJUST, STATUS)

    def _of_run(self, *names: str) -> Iterator[Path]:
        if self._only is None:
            yield from (path for name in names if (path := self.store.root / name).is_file())

    def _of_attempts(self) -> Iterator[Path]:
        """Files of attempts, but for what their ranks put by."""
        for path in (self.store.root / ATTEMPTS).glob("*/*"):
            if path.is_file() and (self._only is None or self._only(path.name)):
                yield path

    def _push_growing(self, path: Path) -> bool:
        name = self._name(path)
        there = self._lengths.get(name, 0)
        if path.stat().st_size <= there:
            return False
        with path.open("rb") as stream:
            number = there // PIECE_BYTES
            stream.seek(number * PIECE_BYTES)
            while piece := stream.read(PIECE_BYTES):
                self.medium.write(f"{name}{PIECES}/{number:06d}", piece)
                there = number * PIECE_BYTES + len(piece)
                number += 1
                if len(piece) < PIECE_BYTES:
                    break  # What is appended meanwhile belongs to this piece: it comes the next time.
        self._lengths[name] = there
        return True

    def _push_small(self, path: Path) -> bool:
        name = self._name(path)
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if self._seen.get(name) == stamp:
                return False
            content = path.read_bytes()
        except FileNotFoundError:
            return False  # Taken away meanwhile, as what only a living attempt needs.
        self.medium.write(name, content)
        self._seen[name] = stamp
        return True

    # ------------------------------------------------------------------------------------- in

    def restore(self, *, plan_sha256: str) -> list[str]:
        """Make the run's folder from the copy: plan, inputs, words, the newest whole checkpoint, the result.

        A checkpoint that does not match its manifest is set aside in the copy. Returns a line for each. What lies in
        the run's folder already is replaced, but for inputs and a checkpoint, which are compared.
        """
        self._manifests.clear()
        there = {file.path: file.size for file in self.medium.listed()}
        wanted = [name for name in there if _is_word(name) or name == PLAN]
        wanted += [
            name for name in there if name.startswith(f"{INPUTS}/") and self._lacks(name, there)
        ]
        if f"{FINAL}/{MANIFEST}" in there:
            shutil.rmtree(self.store.root / FINAL, ignore_errors=True)
            wanted += [name for name in there if name.startswith(f"{FINAL}/")]
        self.medium.download({name: self.store.root / name for name in wanted})
        for name in wanted:
            if _is_word(name):
                self._note(name)
        self._restore_growing([name for name in there if _is_piece(name)])
        return self._restore_checkpoint(there, plan_sha256)

    def _lacks(self, name: str, there: Mapping[str, int]) -> bool:
        """Inputs have their sha256 in their names; the agent verifies them, so size is enough here."""
        path = self.store.root / name
        return not (path.is_file() and path.stat().st_size == there[name])

    def _note(self, name: str) -> None:
        found = (self.store.root / name).stat()
        self._seen[name] = (found.st_mtime_ns, found.st_size)

    def _restore_growing(self, pieces: list[str]) -> None:
        """What grows at the top of a run; logs of earlier attempts are for people, who read them in the copy."""
        for name in sorted({piece.split(PIECES)[0] for piece in pieces}):
            target = self.store.root / name
            with target.open("wb") as stream:
                for piece in sorted(p for p in pieces if p.startswith(f"{name}{PIECES}/")):
                    stream.write(self.medium.read(piece))
            self._lengths[name] = target.stat().st_size

    def _restore_checkpoint(self, there: Mapping[str, int], plan_sha256: str) -> list[str]:
        passed: list[str] = []
        manifests = [
            PurePosixPath(name) for name in there if name.startswith(f"{CHECKPOINTS}/step-")
        ]
        folders = {str(name.parent) for name in manifests if name.name == MANIFEST}
        for name in sorted((f for f in folders if f.count("/") == 1), reverse=True):
            here = self.store.root / name
            if why_invalid(here, plan_sha256=plan_sha256) is None and self._is_published(
                here, name
            ):
                return passed
            shutil.rmtree(here, ignore_errors=True)
            files = [file for file in there if file.startswith(f"{name}/")]
            self.medium.download({file: self.store.root / file for file in files})
            why = why_invalid(here, plan_sha256=plan_sha256)
            if why is None:
                return passed
            shutil.rmtree(here)
            self.medium.set_aside(name)
            self._manifests.pop(name, None)
            passed.append(f"checkpoint not used: {Path(name).name}: {why}; set aside")
        return passed


def _is_word(name: str) -> bool:
    """What the next machine has to know of what a copy says, but for what grows."""
    path = PurePosixPath(name)
    if name in {STATUS, ADJUST}:
        return True
    return len(path.parts) == 3 and path.parts[0] == ATTEMPTS and not path.name.startswith(".")


def _is_piece(name: str) -> bool:
    """Of a file that grows, at the top of a run."""
    path = PurePosixPath(name)
    is_whole = not path.name.startswith(".")  # Else a lost machine left it half renamed.
    return len(path.parts) == 2 and path.parts[0].endswith(PIECES) and is_whole


# --------------------------------------------------------------------------------- seen from afar


class Replica:
    """What a copy says, in a folder of this laptop that reads like a store. Weights and inputs stay where they are."""

    INDEX: Final = ".replica.json"

    def __init__(self, root: Path) -> None:
        self.root = root

    def refresh(self, listed: Iterable[Listed], read: Callable[[str], bytes]) -> None:
        """Fetch what has changed since the last time. `read` gives the bytes of a file by its path.

        `outcome.json` comes last, so that whoever sees the end sees all before it. Raises: what `read` raises.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        index = self._index()
        files = {file.path: file for file in listed if _is_wanted(file.path)}
        # Times are whole seconds: what changed last may change once more without a sign.
        newest = max((file.mtime for file in files.values()), default=0.0)
        try:
            self._fetch(files, index, newest, read)
        finally:
            replace_file(self.root / self.INDEX, json.dumps(index).encode())

    def _fetch(
        self,
        files: Mapping[str, Listed],
        index: dict[str, list[float]],
        newest: float,
        read: Callable[[str], bytes],
    ) -> None:
        for path in sorted(files, key=lambda path: (path == OUTCOME, path == STATUS, path)):
            stamp = [files[path].mtime, files[path].size]
            if index.get(path) != stamp:
                try:
                    self._put(path, read(path))
                except FileNotFoundError:
                    continue  # It was taken away since it was listed.
                is_settled = newest - files[path].mtime > SETTLED_S
                index[path] = stamp if is_settled else []
        for path in set(index) - set(files):
            self._take_away(path)
            del index[path]

    def forget_end(self) -> None:
        """The run goes on: its end is one no more."""
        (self.root / OUTCOME).unlink(missing_ok=True)
        index = self._index()
        index.pop(OUTCOME, None)
        if self.root.is_dir():
            replace_file(self.root / self.INDEX, json.dumps(index).encode())

    def _index(self) -> dict[str, list[float]]:
        """File -> its time and size when it was fetched; empty if it has to be fetched again."""
        try:
            found = json.loads((self.root / self.INDEX).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _put(self, path: str, content: bytes) -> None:
        folder, slash, piece = path.partition(f"{PIECES}/")
        target = self.root / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        if not slash:
            replace_file(target, content)
            return
        # Pieces are of one size but for the last: each has its place.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, content, int(piece) * PIECE_BYTES)
        finally:
            os.close(descriptor)

    def _take_away(self, path: str) -> None:
        """A checkpoint that was dropped, or what only a living attempt needed."""
        if f"{PIECES}/" not in path:
            target = self.root / path
            target.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                target.parent.rmdir()


class SeenStore(LocalStore):
    """A store as it is seen from a laptop: manifests without what they list."""

    def newest_checkpoint(self, *, plan_sha256: str) -> tuple[Path | None, list[str]]:
        """By its manifest, which is written last; whoever copies it verifies every byte."""
        passed = []
        for folder in reversed(step_folders(self.checkpoints)):
            try:
                manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
            except (OSError, ValueError) as error:
                passed.append(f"{folder.name}: {error}")
                continue
            if manifest.plan_sha256 == plan_sha256:
                return folder, passed
            passed.append(f"{folder.name}: written by another plan")
        return None, passed


def _is_wanted(path: str) -> bool:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or pure.name.startswith("."):
        return False
    if pure.parts[0] in {CHECKPOINTS, FINAL}:
        return pure.name == MANIFEST
    return pure.parts[0] not in {INPUTS, CONTROL, SOURCE_FILE, WORDS}
