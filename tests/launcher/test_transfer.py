"""Copying a published folder: continued, verified, and nothing of the user's lost."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pytest

from ft.launcher.backends.base import DELIVERED
from ft.launcher.transfer import (
    FolderSource,
    Progress,
    conflicts,
    copy,
    deliver,
    delivery_in,
)
from ft.recipes.errors import StoreError, UsageError
from ft.recipes.runstore import FileEntry
from ft.recipes.store import LocalStore

LARGE = bytes(range(256)) * 40000
"""More than two chunks."""


def published(root: Path, files: dict[str, bytes]) -> FolderSource:
    """A folder as the runtime publishes it."""
    store = LocalStore(root)
    staged = store.staging("final")
    for name, data in files.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_bytes(data)
    store.publish(staged, "final", step=3, attempt=1, plan_sha256="0" * 64, meta={})
    return FolderSource(root / "final")


@dataclass
class Remote:
    """A place that counts what is asked of it, lies once if told so, and breaks off after some bytes."""

    data: dict[str, bytes]
    opened: list[tuple[str, int]] = field(default_factory=list)
    breaks_after: int | None = None
    lies: int = 0

    def files(self) -> tuple[FileEntry, ...]:
        return tuple(
            FileEntry(name, len(data), sha256(data).hexdigest()) for name, data in self.data.items()
        )

    @contextlib.contextmanager
    def open(self, path: str, offset: int) -> Iterator[BinaryIO]:
        self.opened.append((path, offset))
        data = self.data[path][offset:]
        if self.lies:
            self.lies -= 1
            data = bytes(len(data))
        if self.breaks_after is None:
            yield io.BytesIO(data)
            return
        yield io.BytesIO(data[: self.breaks_after])
        self.breaks_after = None
        raise ConnectionResetError("the other side has gone")


def test_a_copy_is_whole_and_tells_how_far_it_is(tmp_path: Path) -> None:
    source = published(tmp_path / "store", {"a.json": b"{}", "sub/b.bin": LARGE})
    told: list[Progress] = []
    done = copy(source, tmp_path / "out", tell=told.append)
    assert (tmp_path / "out/a.json").read_bytes() == b"{}"
    assert (tmp_path / "out/sub/b.bin").read_bytes() == LARGE
    assert (done.size, done.moved) == (len(LARGE) + 2, len(LARGE) + 2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "sub"]
    assert (told[-1].path, told[-1].done, told[-1].total) == ("sub/b.bin", done.size, done.size)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert len(told) >= 4
    assert told[-1].eta_s == 0
    again = copy(source, tmp_path / "out")
    assert (again.size, again.moved) == (len(LARGE) + 2, 0)


def test_what_broke_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    copy(Remote({"a": b"first"}), tmp_path)
    remote = Remote({"a": b"first", "b": LARGE}, breaks_after=5_000_000)
    with pytest.raises(StoreError, match="b: the other side has gone"):
        copy(remote, tmp_path)
    assert (tmp_path / "b.part").stat().st_size == 5_000_000
    assert not (tmp_path / "b").exists()
    done = copy(remote, tmp_path)
    assert remote.opened == [("b", 0), ("b", 5_000_000)]
    assert done.moved == len(LARGE) - 5_000_000
    assert (tmp_path / "b").read_bytes() == LARGE
    assert not (tmp_path / "b.part").exists()


def test_a_wrong_hash_is_tried_once_more_from_the_beginning(tmp_path: Path) -> None:
    remote = Remote({"b": LARGE})
    (tmp_path / "b.part").write_bytes(b"of another file")
    done = copy(remote, tmp_path)
    assert remote.opened == [("b", 15), ("b", 0)]
    assert (tmp_path / "b").read_bytes() == LARGE
    assert done.moved == 2 * len(LARGE) - 15

    (tmp_path / "b").unlink()
    lying = Remote({"b": LARGE}, lies=2)
    with pytest.raises(StoreError, match=r"^b: its bytes do not have the sha256 of its manifest$"):
        copy(lying, tmp_path)
    assert lying.opened == [("b", 0), ("b", 0)]
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_too_long_and_one_that_is_complete(tmp_path: Path) -> None:
    remote = Remote({"a": b"12345", "b": b"12345"})
    (tmp_path / "a.part").write_bytes(b"1234567")
    (tmp_path / "b.part").write_bytes(b"12345")
    assert copy(remote, tmp_path).moved == 5
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"12345"


def test_two_copies_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with (tmp_path / "a.part").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"a\.part is being written by another ft"):
            copy(Remote({"a": b"1"}), tmp_path)
    assert copy(Remote({"a": b"1"}), tmp_path).moved == 1


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", ""])
def test_a_manifest_that_points_outside_writes_nothing_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="does not lie below its folder"):
        copy(Remote({"ok": b"1", name: b"1"}), tmp_path / "out")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    class Huge(Remote):
        def files(self) -> tuple[FileEntry, ...]:
            return (FileEntry("a", 1 << 60, "0" * 64),)

    with pytest.raises(StoreError, match=r"needs 1152921504606846976 bytes more, and \d+ are free"):
        copy(Huge({}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_a_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        FolderSource(tmp_path)


def test_conflicts_are_files_that_differ_and_are_not_ours(tmp_path: Path) -> None:
    entries = Remote({"same": b"1", "theirs": b"1", "ours": b"1", "new": b"1", "folder": b"1"})
    for name, data in (("same", b"1"), ("theirs", b"2"), ("ours", b"3")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    known = {
        "ours": frozenset({sha256(b"2").hexdigest(), sha256(b"3").hexdigest()}),
        "theirs": frozenset({sha256(b"before the edit").hexdigest()}),
    }
    assert conflicts(entries.files(), tmp_path, known) == ["theirs", "folder"]


# -------------------------------------------------------------------------------------- deliveries


def lay(source: FolderSource, out: Path, run_id: str, *, force: bool = False) -> None:
    deliver(source, out, run_id=run_id, base_model=None, force=force)


def test_a_delivery_replaces_the_one_before_and_leaves_what_is_the_users(tmp_path: Path) -> None:
    """An old adapter beside a new model would be loaded with it."""
    out = tmp_path / "out"
    lora = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"}
    lay(published(tmp_path / "lora", lora), out, "1")
    (out / "notes.txt").write_text("mine")
    full = {"config.json": b"full", "sub/model.safetensors": b"2"}
    lay(published(tmp_path / "full", full), out, "2")
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {"config.json", "sub/model.safetensors", "notes.txt", DELIVERED}
    assert (out / "config.json").read_bytes() == b"full"
    assert json.loads((out / DELIVERED).read_text()) == {
        "run": "2",
        "files": ["config.json", "sub/model.safetensors"],
        "sha256": {
            "config.json": sha256(b"full").hexdigest(),
            "sub/model.safetensors": sha256(b"2").hexdigest(),
        },
    }


def test_a_file_that_the_user_has_edited_is_overwritten_with_force_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lay(published(tmp_path / "one", {"README.md": b"1", "old": b"1"}), out, "1")
    (out / "README.md").write_bytes(b"edited")
    (out / "old").write_bytes(b"edited too")
    new = published(tmp_path / "two", {"README.md": b"2"})
    with pytest.raises(UsageError) as caught:
        lay(new, out, "2")
    assert caught.value.message == f"{out} holds other files of the same name: README.md, old"
    assert caught.value.hint == "--to another folder, or --force to overwrite them"
    assert (out / "README.md").read_bytes() == b"edited"
    assert (out / "old").exists()
    lay(new, out, "2", force=True)
    assert (out / "README.md").read_bytes() == b"2"
    assert not (out / "old").exists()


def test_a_delivered_adapter_names_its_base_as_the_user_does_and_is_still_ours(
    tmp_path: Path,
) -> None:
    config = json.dumps({"base_model_name_or_path": "inputs/3f-model", "r": 4}).encode()
    source = published(tmp_path / "store", {"adapter_config.json": config, "x": b"1"})
    out = tmp_path / "out"
    for _ in range(2):  # The second time the renamed file is known for ours.
        deliver(source, out, run_id="1", base_model="/models/tiny", force=False)
        assert json.loads((out / "adapter_config.json").read_text()) == {
            "base_model_name_or_path": "/models/tiny",
            "r": 4,
        }
    found = delivery_in(out)
    assert found is not None
    assert (found.run, found.is_whole(out)) == ("1", True)
    (out / "x").write_bytes(b"2")
    assert not found.is_whole(out)
    (out / "x").unlink()
    assert not found.is_whole(out)


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from ft.launcher.transfer import FolderSource, deliver

left = int(sys.argv[1])

def die(event, _):
    global left
    if event == "os.rename":
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
source = FolderSource(Path(sys.argv[2]))
deliver(source, Path(sys.argv[3]), run_id="2", base_model="/models/tiny", force=False)
"""


@pytest.mark.parametrize("writes", range(5))
def test_a_delivery_that_was_killed_anywhere_goes_on(tmp_path: Path, writes: int) -> None:
    """It replaces another one. Whichever of its five writes it did not get to: all there is still ours."""
    out = tmp_path / "out"

    def adapter(name: str) -> FolderSource:
        config = json.dumps({"base_model_name_or_path": f"inputs/{name}"}).encode()
        return published(tmp_path / name, {"adapter_config.json": config, "x": name.encode()})

    deliver(adapter("one"), out, run_id="1", base_model="/models/tiny", force=False)
    two = adapter("two")
    command = [sys.executable, "-P", "-c", KILLED_AT, str(writes), str(two.folder), str(out)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    deliver(two, out, run_id="2", base_model="/models/tiny", force=False)
    found = delivery_in(out)
    assert found is not None
    assert (found.run, found.is_whole(out), found.before) == ("2", True, {})
    assert (out / "x").read_bytes() == b"two"
    assert json.loads((out / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "/models/tiny"
    }


def test_a_list_that_points_outside_takes_nothing_away_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").touch()
    (out / DELIVERED).write_text(
        json.dumps({"files": ["../precious", str(tmp_path / "precious"), 3]})
    )
    lay(published(tmp_path / "new", {"a": b"1"}), out, "1", force=True)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"files": 3}', '{"run": 1}', '{"files": [], "sha256": 3}']
)
def test_a_list_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / DELIVERED).write_text(text)
    found = delivery_in(tmp_path)
    assert found is None or found.files == {}
