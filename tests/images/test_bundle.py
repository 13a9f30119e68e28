"""The source bundle: the same bytes from a checkout and from a wheel, package files only."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ft.images.bundle import bundle_bytes, package_files, source_digest

FILES = {
    "recipes/__init__.py": b'"""Recipes."""\n',
    "recipes/gallery/a.yml": b"base_model: x\n",
    "recipes/py.typed": b"",
    "images/__init__.py": b"\xff\x00 not text",
    "runtime/data/formats/alpaca.py": b"rows = 1\n",
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def wheel_like(folder: Path, files: dict[str, bytes] = FILES) -> list[Path]:
    return [write(folder / "site-packages/ft", files)]


def checkout_like(folder: Path, files: dict[str, bytes] = FILES) -> list[Path]:
    """A room is a folder at the root, and each has a portion of `ft`."""
    roots = []
    for room in sorted({name.split("/")[0] for name in files}, reverse=True):
        own = {name: content for name, content in files.items() if name.split("/")[0] == room}
        roots.append(write(folder / room / "ft", own))
    return roots


def test_the_tar_holds_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle_bytes(wheel_like(tmp_path)))) as tar:
        members = tar.getmembers()
        contents = {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]  # files only
    assert contents == {f"ft/{name}": content for name, content in FILES.items()}
    assert [m.name for m in members] == sorted(contents)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_checkout_and_wheel_give_the_same_bytes(tmp_path: Path) -> None:
    assert bundle_bytes(checkout_like(tmp_path / "a")) == bundle_bytes(wheel_like(tmp_path / "b"))


def test_debris_times_and_modes_do_not_count(tmp_path: Path) -> None:
    clean = source_digest(wheel_like(tmp_path / "a"))
    [root] = wheel_like(tmp_path / "b")
    write(
        root,
        {
            "recipes/__pycache__/__init__.cpython-311.pyc": b"x",
            "recipes/old.pyc": b"x",
            "recipes/.load.py.swp": b"x",
            "recipes/load.py~": b"x",
            ".hidden/x.py": b"x",
            "__pycache__/x.pyc": b"x",
        },
    )
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert source_digest([root]) == clean


def test_of_a_room_that_is_there_twice_the_first_wins(tmp_path: Path) -> None:
    [first] = wheel_like(tmp_path / "a")
    second = write(tmp_path / "b", {"recipes/new.py": b"x", "launcher/cli.py": b"y"})
    names = [name for name, _ in package_files([first, second])]
    assert names == sorted([*(f"ft/{name}" for name in FILES), "ft/launcher/cli.py"])


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(FILES)), position=st.integers(0, 50), bit=st.integers(0, 7))
def test_one_flipped_bit_is_another_digest(name: str, position: int, bit: int) -> None:
    content = bytearray(FILES[name] or b"\0")
    content[position % len(content)] ^= 1 << bit
    changed = {**FILES, name: bytes(content)}
    assert digest_in_a_new_folder(changed) != digest_in_a_new_folder(FILES)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_order_in_which_files_were_made_does_not_count(seed: int) -> None:
    names = sorted(FILES)
    random.Random(seed).shuffle(names)
    shuffled = {name: FILES[name] for name in names}
    assert digest_in_a_new_folder(shuffled) == digest_in_a_new_folder(FILES)


def digest_in_a_new_folder(files: dict[str, bytes]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return source_digest(wheel_like(Path(folder), files))


def test_the_digest_is_the_sha256_of_the_bytes() -> None:
    assert source_digest() == hashlib.sha256(bundle_bytes()).hexdigest()


def test_our_own_bundle_is_every_package_file_of_the_tree(tree_files: list[str]) -> None:
    rooms = ("recipes/ft/", "images/ft/", "launcher/ft/", "runtime/ft/")
    expected = {name.split("/", maxsplit=1)[1] for name in tree_files if name.startswith(rooms)}
    assert {name for name, _ in package_files()} == expected


def test_the_unpacked_bundle_runs_by_itself(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle_bytes())) as tar:
        tar.extractall(tmp_path, filter="data")
    code = (
        "import ft.recipes.plan, ft.images.bundle as b; print(b.__file__); print(b.source_digest())"
    )
    # -S: without site-packages and its .pth files, so that only the bundle can be found.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *libraries])}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        str(tmp_path / "ft/images/bundle.py"),
        source_digest(),
    ]
