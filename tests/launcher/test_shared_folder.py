"""A run in a folder that many machines see: whole files only, claims by many processes at once, and what is said when
its file system is full, read-only or not there. NFS itself is not here: the folders are of this machine's disk.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.bucket import Bucket, told
from ft.launcher.bucket_store import BucketSource, RunBucket
from ft.launcher.copies import open_copy
from ft.launcher.machine.bucket_words import BucketWords, next_segment
from ft.launcher.medium import MediumError, MediumRefusedError
from ft.launcher.mirror import Replica
from ft.launcher.shared_folder import SharedFolder
from ft.recipes.digest import sha256_of_file
from ft.recipes.errors import StoreError, UnreachableError
from ft.recipes.runstore import FileEntry, Manifest

CLAIMER = """
import sys
from ft.launcher.shared_folder import SharedFolder
uri, who, names = sys.argv[1], sys.argv[2], int(sys.argv[3])
folder, content = SharedFolder(uri), who.encode() * (1 << 20)
print("ready", flush=True)
sys.stdin.readline()
for number in range(names):
    print(folder.claim(f"words/holder-{number}", content)[:1].decode(), flush=True)
"""
TROUBLED = """
import subprocess, sys
from pathlib import Path
from ft.launcher.bucket_store import RunBucket
from ft.launcher.shared_folder import SharedFolder
from ft.recipes.errors import FtError
base, what = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", base], check=True)
uri = f"file://{base}/run-1"
RunBucket(uri).upload([], "{}")
if what == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", base], check=True)
big = Path(sys.argv[3])
big.write_bytes(bytes(1 << 20))
try:
    RunBucket(uri).write("outcome.json", "x" * 100)
    with RunBucket(uri).talking():
        SharedFolder(uri).put("final/big", big)
except FtError as error:
    print(type(error).__name__, error, error.hint, sep="|")
print(sorted(path.name for path in base.rglob("*") if path.is_file()))
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    found = f"file://{tmp_path}/shared/run-1"
    open_copy(found).begin()
    return found


def sizes(folder: SharedFolder, below: str = "") -> dict[str, int]:
    return {file.path: file.size for file in folder.listed(below)}


def everything(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_files_of_any_size_travel_both_ways(uri: str, tmp_path: Path) -> None:
    folder = SharedFolder(uri)
    contents = {
        "final/big": os.urandom((8 << 20) + 5),
        "final/empty": b"",
        "final/deep/small": b"text",
    }
    for name, content in contents.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    folder.upload({name: tmp_path / "from" / name for name in contents})
    assert sizes(folder) == {name: len(content) for name, content in contents.items()}
    assert folder.sizes("final") == {"big": (8 << 20) + 5, "empty": 0, "deep/small": 4}
    folder.download({name: tmp_path / "to" / name for name in contents})
    assert {name: (tmp_path / "to" / name).read_bytes() for name in contents} == contents
    assert folder.ranged("final/big", 7, 20) == contents["final/big"][7:20]
    assert folder.ranged("final/big", 20, 7) == b""
    assert everything(folder.root) == sorted(contents), "nothing else is left"


def test_what_is_there_with_the_same_bytes_is_not_sent_again(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert SharedFolder(uri).put("a/file", path)
    written = (SharedFolder(uri).root / "a/file").stat()
    assert not SharedFolder(uri).put("a/file", path)
    assert (SharedFolder(uri).root / "a/file").stat().st_ino == written.st_ino
    path.write_bytes(b"two")
    assert SharedFolder(uri).put("a/file", path), "of the same size, with other bytes"
    assert SharedFolder(uri).read("a/file") == b"two"


def test_a_folder_goes_with_its_manifest_first(uri: str) -> None:
    folder = SharedFolder(uri)
    for name in ("a/manifest.json", "a/x", "ab/y"):
        folder.write(name, b"{}")
    folder.set_aside("a")
    assert sizes(folder) == {"a/manifest.broken.json": 2, "a/x": 2, "ab/y": 2}
    folder.drop("a")
    assert sizes(folder) == {"ab/y": 2}, "a folder whose name begins the same stays"
    folder.drop("a")
    folder.remove(["nothing"])


def test_of_many_processes_one_has_the_claim_and_no_half_is_seen(uri: str) -> None:
    """A reader that looks all the time at the very files sees none, or a whole one."""
    names, folder = 20, SharedFolder(uri)
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, uri, who, str(names)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for who in "abcdef"
    ]  # fmt: skip
    for claimer in claimers:
        assert claimer.stdout is not None
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    seen = 0
    while any(claimer.poll() is None for claimer in claimers):
        for number in range(names):
            try:
                size = (folder.root / f"words/holder-{number}").stat().st_size
            except FileNotFoundError:
                continue
            assert size == 1 << 20, "half of a claim"
            seen += 1
    said = [claimer.communicate()[0].split() for claimer in claimers]
    assert [claimer.returncode for claimer in claimers] == [0] * 6
    assert len(said[0]) == names
    assert all(one == said[0] for one in said), "each heard of the same winners"
    assert seen
    assert everything(folder.root) == sorted(f"words/holder-{number}" for number in range(names))
    for number, who in enumerate(said[0]):
        assert folder.read(f"words/holder-{number}") == who.encode() * (1 << 20)


def test_what_a_killed_machine_was_writing_is_no_file_of_the_run(uri: str) -> None:
    folder = SharedFolder(uri)
    folder.write("words/a.json", b"1")
    (folder.root / f"words/.b.json.{'0' * 32}.tmp").write_bytes(b"ha")
    (folder.root / "words/.nfs00000000deadbeef").write_bytes(b"deleted, and read by somebody")
    assert sizes(folder) == {"words/a.json": 1}
    RunBucket(uri).remove()
    assert not folder.root.exists(), "nothing is left of a run that was removed"
    RunBucket(uri).remove()


def test_modes_are_what_the_umask_leaves(uri: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "file", SharedFolder(uri)
    path.write_bytes(b"x")
    path.chmod(0o600)
    before = os.umask(0o027)
    try:
        folder.put("a/put", path)
        folder.write("a/written", b"")
        folder.claim("a/claimed", b"")
    finally:
        os.umask(before)
    modes = [(folder.root / "a" / name).stat().st_mode & 0o777 for name in ("put", "written", "claimed")]  # fmt: skip
    assert modes == [0o640] * 3
    assert (folder.root / "a").stat().st_mode & 0o777 == 0o750


def test_words_are_those_of_a_bucket(uri: str) -> None:
    words = BucketWords(uri)
    assert words.get("current") is None
    assert words.claim("holder-1", "first") == "first"
    assert BucketWords(uri).claim("holder-1", "second") == "first"
    words.put("cluster/x/bye/1", True)
    assert sorted(words.all()) == ["cluster/x/bye/1", "holder-1"]
    assert next_segment(words) == 2
    words.drop("holder-1")
    words.drop("holder-1")
    assert words.get("holder-1") is None


def test_a_laptop_sees_the_run_and_fetches_from_it(uri: str, tmp_path: Path) -> None:
    run, final = RunBucket(uri), tmp_path / "final"
    run.upload([], '{"a": "plan"}')
    run.say("control", {"stop": True})
    assert (run.word("control"), run.word("nobody")) == ({"stop": True}, None)
    run.reopen()
    assert run.word("control") is None
    final.mkdir()
    (final / "weights").write_bytes(b"0123456789")
    run.bucket.put("final/weights", final / "weights")
    files = (FileEntry("weights", 10, sha256_of_file(final / "weights")),)
    manifest = Manifest("final", 1, 1, "0" * 64, files, 0.0)
    with BucketSource(run, "final", manifest).open("weights", 4) as stream:
        assert stream.read() == b"456789"
    replica = Replica(tmp_path / "seen")
    run.refresh(replica)
    assert (tmp_path / "seen/plan.json").read_text() == '{"a": "plan"}'
    run.remove()
    with pytest.raises(StoreError, match="there is nothing of the run any more"):
        run.refresh(replica)


def test_a_folder_that_is_not_mounted_is_said_and_not_made(tmp_path: Path) -> None:
    gone = f"file://{tmp_path}/shared/run-1"
    folder = SharedFolder(gone)
    for ask in (
        lambda: folder.read("x"),
        folder.listed,
        lambda: folder.write("x", b""),
        lambda: folder.claim("words/x", b""),
        lambda: folder.drop(""),
        lambda: BucketWords(gone).claim("holder-1", "me"),
    ):
        with pytest.raises(MediumRefusedError, match=f"there is no folder {tmp_path}/shared"):
            ask()
    with pytest.raises(StoreError) as caught:
        RunBucket(gone).upload([], "{}")
    assert caught.value.message.endswith(
        "; it has to be of a file system that the nodes and the machine that sends the run mount under the same path"
    )
    assert caught.value.hint == "mend that, or another one: --set cloud.store=…"
    assert not (tmp_path / "shared").exists()


def test_a_mount_point_without_its_file_system_gets_nothing(tmp_path: Path) -> None:
    """Only who sends a run makes its folder: what a node wrote there would stay on the node."""
    (tmp_path / "shared").mkdir()
    folder = SharedFolder(f"file://{tmp_path}/shared/run-1")
    assert folder.listed() == []
    with pytest.raises(FileNotFoundError):
        folder.read("plan.json")
    for ask in (lambda: folder.write("x", b""), lambda: folder.claim("words/x", b"")):
        with pytest.raises(MediumRefusedError, match=r"there is no folder .*/shared/run-1 on "):
            ask()
    assert list((tmp_path / "shared").iterdir()) == []
    folder.begin()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["run-1"]
    assert list(folder.root.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "said", "left"),
    [
        (
            "full",
            "StoreError|URI: no space is left on its file system|make room, or another one: --set cloud.store=…",
            "['outcome.json', 'plan.json']",
        ),
        (
            "read-only",
            "StoreError|URI: Read-only file system (URI/.outcome.json.",
            "['plan.json']",
        ),
    ],
)
def test_a_file_system_that_takes_no_more(tmp_path: Path, what: str, said: str, left: str) -> None:
    (tmp_path / "shared").mkdir()
    spaces = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    done = subprocess.run(
        [*spaces, sys.executable, "-c", TROUBLED, str(tmp_path / "shared"), what, str(tmp_path / "big")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    uri = f"file://{tmp_path}/shared/run-1"
    said = said.replace("(URI", f"({tmp_path}/shared/run-1").replace("URI", uri)
    assert lines[0].startswith(said)
    assert lines[1] == left, "nothing half is left"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ESTALE, UnreachableError), (errno.EACCES, StoreError), (errno.EDQUOT, StoreError)],
)
def test_what_the_kernel_says_of_it(
    uri: str, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(MediumError) as caught:
        SharedFolder(uri).write("x", b"content")
    assert isinstance(told(uri, caught.value), kind)
    assert everything(SharedFolder(uri).root) == []


def test_a_file_system_without_hard_links_is_refused_when_the_run_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fails)
    (tmp_path / "shared").mkdir()
    with pytest.raises(StoreError, match="its file system has no hard links"):
        RunBucket(f"file://{tmp_path}/shared/run-1").upload([], "{}")


@pytest.mark.parametrize("uri", ["file://shared/run-1", "file:///run-1/", "file:///"])
def test_what_is_no_folder_of_a_run(uri: str) -> None:
    with pytest.raises(ValueError, match="is no folder of a run"):
        open_copy(uri)


def test_a_uri_says_what_is_opened() -> None:
    assert isinstance(open_copy("file:///shared/runs/run-1"), SharedFolder)
    assert isinstance(open_copy("s3://bucket-one/run-1"), Bucket)
    with pytest.raises(ValueError, match="is no bucket"):
        open_copy("/shared/runs/run-1")
