"""`cloud.include` and `.ftignore`: which files go along, as git would say, and what is said of the others."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft.launcher import included
from ft.launcher.backends.base import Submission, Upload
from ft.launcher.included import Entry, Tree, find
from ft.launcher.inputs import described, must_be_as_planned, stage, uploads_of
from ft.recipes.digest import IGNORED_PARTS, digest_of
from ft.recipes.errors import PlanError, SubmitError
from ft.recipes.facts import Facts, Included
from ft.recipes.secrecy import is_file_of_secrets


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())


def look(folder: Path, *texts: str, beside: Path | None = None) -> Included:
    folders = (folder,) if beside is None else (folder, beside)
    return find(
        Entry(("cloud", "include", number), text, folders) for number, text in enumerate(texts)
    )


def paths(folder: Path, *texts: str, beside: Path | None = None) -> list[str]:
    """Of what goes along; nothing is wrong with it."""
    found = look(folder, *texts, beside=beside)
    assert found.complaints == ()
    return [file.path for file in found.files]


def wrong(folder: Path, *texts: str) -> list[str]:
    return [text for _, text in look(folder, *texts).complaints]


# ------------------------------------------------------------------------------------- as with git

TREE = {
    ".ftignore": "# what a build leaves behind\n\n*.o\n/build/\n!keep.o\n\\#notes\ndocs/**/draft\n",
    "a.c": "",
    "a.o": "",
    "keep.o": "",
    "#notes": "",
    "build/a": "",
    "build/keep.o": "never: its folder is out",
    "lib/build/a": "",
    "lib/.ftignore": "*\n!*.c\n!sub/\nsub/deep/\n",
    "lib/x.c": "",
    "lib/x.h": "",
    "lib/sub/.ftignore": "!x.h\r\n  \r\ntrailing \r\n",
    "lib/sub/x.h": "",
    "lib/sub/y.h": "",
    "lib/sub/trailing": "",
    "lib/sub/deep/x.c": "",
    "docs/one/draft/a": "",
    "docs/one/final": "",
    "docs/draft": "",
    "docs/Draft": "case counts",
    "name with blanks": "",
}


def kept_by_git(folder: Path, names: list[str]) -> set[str]:
    """What git would not ignore, were each `.ftignore` a `.gitignore`."""
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    for path in folder.rglob(".ftignore"):
        path.with_name(".gitignore").write_bytes(path.read_bytes())
    command = ["git", "-c", "core.ignoreCase=false", "check-ignore", "-z", "--stdin", "--no-index"]
    asked = "\0".join(names).encode()
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        command, cwd=folder, input=asked, capture_output=True, check=False, env=env
    )
    assert done.returncode in {0, 1}, done.stderr
    return set(names) - set(done.stdout.decode().split("\0"))


def test_a_tree_goes_along_as_git_would_take_it(tmp_path: Path) -> None:
    write(tmp_path, TREE)
    found = paths(tmp_path, ".")
    assert found == [
        "a.c",
        "docs/Draft",
        "docs/one/final",
        "keep.o",
        "lib/sub/x.h",
        "lib/x.c",
        "name with blanks",
    ]
    assert set(found) == kept_by_git(tmp_path, [p for p in TREE if not p.endswith(".ftignore")])


NAMES = st.sampled_from(["a", "b", "foo", "Foo", "x.log", ".h", "b c", "#a", "!a"])
ATOMS = st.sampled_from(
    [
        *(
            "a",
            "b",
            "foo",
            "*",
            "**",
            "*.log",
            "?",
            "[ab]",
            "[!a]",
            "x.*",
            "f*",
            "b c",
            ".h",
            "Foo",
        ),
        *("\\#a", "\\!a", "[a-c]", "*o", "a**", "f?o", "[^b]"),
    ]
)
PATTERNS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "", "!", "!", "#"]),
    st.sampled_from(["", "", "/"]),
    st.lists(ATOMS, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", "/"]),
    st.sampled_from(["", "", " ", "\r"]),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12),
    st.lists(
        st.tuples(st.integers(0, 20), st.lists(PATTERNS, min_size=1, max_size=5)),
        min_size=1,
        max_size=4,
    ),
)
def test_any_tree_and_any_patterns_are_what_git_makes_of_them(
    files: list[str], ignores: list[tuple[int, list[str]]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = []
        for path in files:
            if (
                not any(p.is_file() for p in (folder / path).parents)
                and not (folder / path).exists()
            ):
                write(folder, {path: ""})
                made.append(path)
        folders = sorted({p for path in made for p in (folder / path).parents if p >= folder})
        for at, lines in ignores:
            (folders[at % len(folders)] / ".ftignore").write_text("\n".join(lines), newline="")
        tree = Tree(folder)
        tree.take_named(".")
        assert tree.complaints == []
        assert set(tree.files) == kept_by_git(folder, made)


def test_a_folder_that_stays_is_not_gone_into(tmp_path: Path) -> None:
    """It may be huge, and what is in it is nobody's business: here, a link that would be an error."""
    write(tmp_path, {"src/.ftignore": "data/\n", "src/a.py": "", "src/data/x": ""})
    for name in ("data", ".venv", ".git", "__pycache__"):
        (tmp_path / "src" / name).mkdir(exist_ok=True)
        (tmp_path / "src" / name / "out").symlink_to("/etc/hostname")
    assert paths(tmp_path, "src") == ["src/a.py"]


# ------------------------------------------------------------------------------------------ entries


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["src"], ["src/a.py", "src/b.txt", "src/sub/c.py"]),
        (["src/", "./src", "src//sub/../sub"], ["src/a.py", "src/b.txt", "src/sub/c.py"]),
        (["src/sub/c.py"], ["src/sub/c.py"]),
        (["src/*.py"], ["src/a.py"]),
        (["src/**/*.py"], ["src/a.py", "src/sub/c.py"]),
        (["**/c.p?", "[s]rc/b.txt"], ["src/b.txt", "src/sub/c.py"]),
        (["s*"], ["src/a.py", "src/b.txt", "src/sub/c.py"]),
        (["src/**"], ["src/a.py", "src/b.txt", "src/sub/c.py"]),
        (["*/**/c.py"], ["src/sub/c.py"]),
        (["a[1].txt"], ["a[1].txt"]),
        (["*"], ["a[1].txt", "src/a.py", "src/b.txt", "src/sub/c.py"]),
        ([".*/x"], [".hidden/x"]),
        (["src/skip.me"], ["src/skip.me"]),
        (["src/gone"], ["src/gone/x"]),
        (["src/*.me", "src/a.py"], None),
    ],
)
def test_an_entry_is_a_file_a_folder_or_a_pattern(
    tmp_path: Path, texts: list[str], expected: list[str] | None
) -> None:
    """What it names itself goes along, `.ftignore` or not."""
    names = ["a[1].txt", "src/a.py", "src/b.txt", "src/sub/c.py", "src/skip.me", "src/gone/x"]
    write(tmp_path, dict.fromkeys([*names, ".hidden/x"], ""))
    write(tmp_path, {"src/.ftignore": "skip.me\ngone/\n"})
    if expected is not None:
        assert paths(tmp_path, *texts) == expected
    else:
        assert wrong(tmp_path, *texts) == [
            "nothing matches src/*.me, neither in the current folder nor beside the recipe, but for what .ftignore "
            "leaves out. Mend the pattern."
        ]


def test_the_current_folder_goes_before_the_recipes(tmp_path: Path) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    write(here, {"a.txt": "here"})
    write(beside, {"a.txt": "beside", "b.txt": "beside"})
    found = look(here, "a.txt", "b.txt", "*.txt", beside=beside)
    assert [(file.path, file.source) for file in found.files] == [
        ("a.txt", here / "a.txt"),
        ("b.txt", beside / "b.txt"),
    ]


def test_one_place_in_the_run_has_one_file(tmp_path: Path) -> None:
    """Two recipes, one over the other, in two folders."""
    for name in ("one", "two"):
        write(tmp_path / name, {"a.txt": name})
    entries = [
        Entry(("cloud", "include", number), "a.txt", (tmp_path / name,))
        for number, name in enumerate(("one", "two"))
    ]
    assert find(entries).complaints == (
        (
            ("cloud", "include", 1),
            f"a.txt would be two files in the run: {tmp_path}/one/a.txt and {tmp_path}/two/a.txt. Keep one.",
        ),
    )


WAY_OUT = "Start `ft` in a folder that holds it, and write the path from there."
NEITHER = "neither in the current folder nor beside the recipe"
LEAVE = "Mend that, or leave it out by a line in .ftignore."


def link(path: str, to: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).symlink_to(to)


def name_of_bytes(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder / "src") + b"/\xff.txt")).touch()


@pytest.mark.parametrize(
    ("text", "spoil", "said"),
    [
        ("nowhere", None, f"nowhere does not exist, {NEITHER}. Mend the path."),
        ("no*where", None, f"nothing matches no*where, {NEITHER}. Mend the pattern."),
        ("/etc/hosts", None, f"/etc/hosts is an absolute path, so it has no place in the run. {WAY_OUT}"),
        ("~/x", None, f"~/x is an absolute path, so it has no place in the run. {WAY_OUT}"),
        ("src/../../x", None, "src/../../x leads out of the folder that it is relative to, so it has no place in the "
         f"run. {WAY_OUT}"),
        ("a\0b", None, "'a\\x00b' is no path. Mend it."),
        ("empty", lambda f: (f / "empty").mkdir(), "there is no file in empty. Put one there, or take the entry out."),
        ("src", lambda f: write(f, {"src/.ftignore": "*\n"}),
         "nothing of src would go along: its .ftignore leaves out all. Mend that, or take the entry out."),
        ("src", lambda f: write(f, {"src/.ftignore": "ok\n[a\n"}),
         "src/.ftignore:2: '[a' is no pattern. Mend the line."),
        ("src", lambda f: write(f, {"src/.ftignore": "!\n"}), "src/.ftignore:1: '!' is no pattern. Mend the line."),
        ("src", lambda f: (f / "src/.ftignore").mkdir(), "src/.ftignore cannot be read: Is a directory. Mend that."),
        (".git/HEAD", lambda f: write(f, {".git/HEAD": ""}), ".git never goes along. Take the entry out."),
        (".git/H*", lambda f: write(f, {".git/HEAD": ""}), ".git never goes along. Take the entry out."),
        ("src", link("src/out", "/etc/hosts"), f"src/out is a link out of TOP, to /etc/hosts. {LEAVE}"),
        ("src/out", link("src/out", "/etc/hosts"), f"src/out is a link out of TOP, to /etc/hosts. {LEAVE}"),
        ("src/out/hosts", link("src/out", "/etc"), f"src/out is a link out of TOP, to /etc. {LEAVE}"),
        ("src/out/ho*", link("src/out", "/etc"), f"src/out is a link out of TOP, to /etc. {LEAVE}"),
        ("src", link("src/lost", "nowhere"), f"src/lost is a link to what is not there. {LEAVE}"),
        ("src", link("src/self", "self"), f"src/self is a link to what is not there. {LEAVE}"),
        ("src", link("src/up", "../src"), f"src/up is a link to a folder that it lies in. {LEAVE}"),
        ("src", lambda f: os.mkfifo(f / "src/pipe"), f"src/pipe is neither a file nor a folder. {LEAVE}"),
        ("src", name_of_bytes, f"'src/\\udcff.txt' has a name that is no UTF-8. {LEAVE}"),
        ("src", lambda f: write(f, {"src/a\nb/.env": ""}),
         "'src/a\\nb/.env' looks like a file of secrets, which never travel like that: they go into `cloud.secrets`. "
         "Write its name into .ftignore; if it holds none, name the file itself in `include`."),
        ("src", lambda f: write(f, {"src/" + "d/" * 201 + "x": ""}),
         f"src{'/d' * 200} lies more than 200 folders deep. {LEAVE}"),
    ],
)  # fmt: skip
def test_what_cannot_go_along_is_said_with_the_way_out(
    tmp_path: Path, text: str, spoil: Callable[[Path], Any] | None, said: str
) -> None:
    write(tmp_path, {"src/a.py": ""})
    if spoil is not None:
        spoil(tmp_path)
    assert wrong(tmp_path, text) == [said.replace("TOP", tmp_path.name)]
    if ".ftignore." in said and text == "src":
        # The way out is one.
        write(tmp_path, {".ftignore": "*\n!src/\n!a.py\n"})
        assert paths(tmp_path, "src") == ["src/a.py"]


def test_links_within_the_folder_travel_as_what_they_point_at(tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": "A", "shared/x.txt": "X"})
    (tmp_path / "src/b.py").symlink_to("a.py")
    (tmp_path / "src/shared").symlink_to("../shared")
    found = described(look(tmp_path, "src"))
    assert [(file.path, file.size) for file in found.files] == [
        ("src/a.py", 1), ("src/b.py", 1), ("src/shared/x.txt", 1),
    ]  # fmt: skip
    (item,) = uploads_of(Facts(files={}, included=found))
    stage(item, tmp_path / "inputs")
    copy = tmp_path / "inputs" / item.name / "src"
    assert [path.name for path in copy.rglob("*") if path.is_symlink()] == []
    assert (copy / "shared/x.txt").read_text() == "X"


def test_a_link_to_secrets_is_known_by_both_names(tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": "", ".env": "A=b"})
    (tmp_path / "src/settings").symlink_to("../.env")
    assert [text.split(",")[0] for text in wrong(tmp_path, "src")] == [
        "src/settings looks like a file of secrets"
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".env", True), (".env.local", True), ("prod.env", True), (".ENV", True), (".env.example", False),
        ("id_rsa", True), ("id_ed25519", True), ("server.pem", True), ("tls.KEY", True), ("credentials.json", True),
        (".netrc", True), ("environment.yml", False), ("keys.py", False), ("tokenizer.json", False),
    ],
)  # fmt: skip
def test_files_of_secrets_are_known_by_name(tmp_path: Path, name: str, expected: bool) -> None:
    assert is_file_of_secrets(name) is expected
    write(tmp_path, {f"src/{name}": "", "src/a.py": ""})
    assert bool(wrong(tmp_path, "src")) is expected
    assert paths(tmp_path, f"src/{name}") == [f"src/{name}"], "who names it, means it"
    write(tmp_path, {".ftignore": f"{name}\n"})
    assert paths(tmp_path, "src") == ["src/a.py"]


def test_of_many_problems_the_first_are_told_and_each_once(tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": ""})
    for number in range(8):
        (tmp_path / f"src/{number}").symlink_to("nowhere")
    found = look(tmp_path, "src", "src/*")
    assert [(key[2], text.split(".")[0]) for key, text in found.complaints] == [
        *((0, f"src/{number} is a link to what is not there") for number in range(5)),
        (0, "and 3 more like these"),
    ]


CAPBSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2


def as_anybody() -> None:
    """Root may read every file; without two of its rights it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    for right in (DAC_OVERRIDE, DAC_READ_SEARCH):
        libc.prctl(CAPBSET_DROP, right, 0, 0, 0)


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": "", "src/no.txt": "", "src/shut/x": ""})
    (tmp_path / "src/no.txt").chmod(0)
    (tmp_path / "src/shut").chmod(0)
    code = (
        "from pathlib import Path; from ft.launcher.included import Entry, find\n"
        "for _, text in find([Entry(('a',), 'src', (Path.cwd(),))]).complaints: print(text)"
    )
    said = subprocess.check_output(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, preexec_fn=as_anybody
    )
    (tmp_path / "src/shut").chmod(0o700)
    assert said.splitlines() == [
        f"src/no.txt cannot be read: Permission denied. {LEAVE}",
        "src/shut/.ftignore cannot be read: Permission denied. Mend that.",
    ]


# ------------------------------------------------------------------------------------------- hashes


def test_the_same_files_have_the_same_hash_however_they_lie_and_are_named(tmp_path: Path) -> None:
    files = {"src/a.py": "A", "src/sub/b": "B", "src.txt": "C", "p/é.txt": "D"}
    hashes = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        names = sorted(files)
        random.Random(seed).shuffle(names)
        write(folder, {name: files[name] for name in names})
        entries = (["."], ["*"], ["src", "p/**", "src.txt", "src/a.py"])[seed]
        hashes.append(described(look(folder, *entries)).sha256)
        # Nor does it matter where it was put: the agent hashes the folder that it finds.
        (item,) = uploads_of(Facts(files={}, included=described(look(folder, *entries))))
        stage(item, tmp_path / "inputs")
        assert digest_of(tmp_path / "inputs" / item.name) == hashes[-1]
    assert len(set(hashes)) == 1
    lines = "".join(
        f"{path}\0{hashlib.sha256(files[path].encode()).hexdigest()}\n"
        for path in ("p/é.txt", "src/a.py", "src/sub/b", "src.txt")
    )
    assert hashes[0] == hashlib.sha256(lines.encode()).hexdigest()
    assert item.name == f"{hashes[0][:12]}-include"


def test_an_upload_knows_its_files_and_the_record_keeps_them(tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": "A", "src/b.py": "BB"})
    found = described(look(tmp_path, "src"))
    (item,) = uploads_of(Facts(files={}, included=found))
    assert item.to_json() == {
        "source": str(tmp_path / "src"),
        "name": found.name,
        "sha256": found.sha256,
        "size": 3,
        "parts": [
            {"path": f"src/{name}", "source": str(tmp_path / "src" / name),
             "sha256": hashlib.sha256(text).hexdigest()}
            for name, text in (("a.py", b"A"), ("b.py", b"BB"))
        ],
    }  # fmt: skip
    assert Upload.from_json(json.loads(json.dumps(item.to_json()))) == item
    assert Submission("local", {}, "{}", (item,)).to_json()["uploads"] == [item.to_json()]


def change(path: Path) -> None:
    path.write_text("Z")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(change, "has changed since the run was planned"), (Path.unlink, "is gone since the run was planned")],
)  # fmt: skip
def test_the_file_that_is_another_than_planned_is_named(
    tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    write(tmp_path, {"src/a.py": "A", "src/b.py": "B"})
    (item,) = uploads_of(Facts(files={}, included=described(look(tmp_path, "src"))))
    must_be_as_planned(item)
    spoil(tmp_path / "src/b.py")
    for send in (must_be_as_planned, lambda item: stage(item, tmp_path / "inputs")):
        with pytest.raises(SubmitError) as raised:
            send(item)
        assert raised.value.message == f"{tmp_path}/src/b.py {said}"
    assert list((tmp_path / "inputs").glob("*")) == []
    write(tmp_path, {"src/b.py": "B", "src/new.py": "did not exist when it was planned"})
    stage(item, tmp_path / "inputs")
    assert sorted(p.name for p in (tmp_path / "inputs" / item.name / "src").iterdir()) == [
        "a.py",
        "b.py",
    ]


def test_a_file_that_goes_while_it_is_hashed_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": "A"})
    found = look(tmp_path, "src")
    (tmp_path / "src/a.py").unlink()
    with pytest.raises(
        PlanError, match=r"cloud\.include: .*/src/a\.py cannot be read: No such file"
    ):
        described(found)


def test_the_bit_of_a_program_is_seen(tmp_path: Path) -> None:
    write(tmp_path, {"run.sh": "", "a.txt": ""})
    (tmp_path / "run.sh").chmod(0o755)
    assert [(f.path, f.is_executable) for f in look(tmp_path, "*").files] == [
        ("a.txt", False), ("run.sh", True),
    ]  # fmt: skip


def test_names_that_stay_cover_what_digests_leave_out() -> None:
    """Else the agent would not verify a file that travels."""
    assert sorted(included.STAYS - IGNORED_PARTS) == [".ftignore", ".venv"]
    assert sorted(IGNORED_PARTS - included.STAYS) == []
