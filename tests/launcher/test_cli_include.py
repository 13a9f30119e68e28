"""`cloud.include` on the command line: what is said before anything is sent, and what would be sent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
base_model: someone/some-model
datasets: [{path: rows.jsonl, type: completion}]
learning_rate: 1e-3
cloud:
  backend: local
  gpu: cpu
  include:
    - src
    - prompts/*.txt
"""


@dataclass(frozen=True)
class Folder:
    """A recipe with code beside it, and `ft` in it."""

    path: Path

    def ft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        homes = {f"XDG_{kind}_HOME": str(self.path / kind) for kind in ("STATE", "DATA")}
        kept = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "LC_ALL"}}
        return subprocess.run(
            [sys.executable, "-P", "-m", "ft.launcher.cli.app", *arguments],
            cwd=self.path, env=kept | homes | {"COLUMNS": "80", "NO_COLOR": "1"},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def dry(self, *arguments: str) -> dict[str, Any]:
        done = self.ft("cloud", "run", "r.yml", "--dry-run", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    for name, text in {
        "src/a.py": "A", "src/run.sh": "B", "src/a.log": "", "src/.ftignore": "*.log\n", "prompts/x.txt": "CC",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "src/run.sh").chmod(0o755)
    return Folder(tmp_path)


def test_a_plan_shows_files_and_bytes(folder: Folder) -> None:
    done = folder.ft("plan", "r.yml")
    assert (done.returncode, done.stderr) == (0, "hint: ft train r.yml\n")
    lines = done.stdout.splitlines()
    at = lines.index("include")
    assert lines[at : at + 6] == [
        "include",
        "  FILE           SIZE",
        "  prompts/x.txt  2 B",
        "  src/a.py       1 B",
        "  src/run.sh     1 B",
        "  all           3 files, 4 B",
    ]
    row = next(line for line in lines if "-include " in line)
    assert row.split()[1:4] == ["include", "4", "B"]


def test_of_many_files_a_plan_shows_the_first(folder: Folder) -> None:
    for number in range(30):
        (folder.path / f"src/{number:02}.py").touch()
    lines = folder.ft("plan", "r.yml").stdout.splitlines()
    at = lines.index("include")
    assert lines[at + 21 : at + 24] == [
        "  src/18.py      0 B",
        "  and 13 more: --dry-run names all",
        "  all           33 files, 4 B",
    ]


def test_a_dry_run_has_each_file_with_its_hash_and_the_plan_one_input(folder: Folder) -> None:
    printed = folder.dry()
    upload = next(u for u in printed["uploads"] if u["name"].endswith("-include"))
    lines = "".join(f"{part['path']}\0{part['sha256']}\n" for part in upload["parts"])
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    parts = {"prompts/x.txt": b"CC", "src/a.py": b"A", "src/run.sh": b"B"}
    assert upload == {
        "source": str(folder.path),
        "name": f"{sha256[:12]}-include",
        "sha256": sha256,
        "size": 4,
        "parts": [
            {"path": path, "source": f"{folder.path}/{path}", "sha256": hashlib.sha256(text).hexdigest()}
            for path, text in parts.items()
        ],
    }  # fmt: skip
    (found,) = [i for i in printed["plan"]["inputs"] if i["kind"] == "include"]
    assert found == {
        "name": upload["name"], "kind": "include", "sha256": sha256, "size": 4, "executables": ["src/run.sh"],
    }  # fmt: skip


def test_modal_is_sent_the_same_input(folder: Folder) -> None:
    """Pure: without an account, and what the agent there finds is what the local one does."""
    here, there = folder.dry(), folder.dry("--backend", "modal")
    assert there["backend"] == "modal"
    assert there["uploads"] == here["uploads"]
    assert there["plan"]["inputs"] == here["plan"]["inputs"]


def test_another_byte_is_another_plan_and_what_is_left_out_is_none(folder: Folder) -> None:
    def plan() -> list[Any]:
        return folder.dry()["plan"]["inputs"]

    before = plan()
    (folder.path / "src/a.log").write_text("other")
    (folder.path / "elsewhere.py").write_text("")
    assert plan() == before
    (folder.path / "src/a.py").write_text("Z")
    assert plan() != before


def test_check_names_file_and_line_of_what_cannot_go_along(folder: Folder) -> None:
    (folder.path / "src/.env").write_text("TOKEN=x")
    (folder.path / "src/data").symlink_to("/usr")
    recipe = RECIPE + "    - lost\n    - ../up\n    - src/\n"
    (folder.path / "r.yml").write_text(recipe)
    done = folder.ft("check", "r.yml")
    assert (done.returncode, done.stderr) == (2, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("r.yml:")] == [
        "r.yml:8: cloud.include.0: R194 src/.env looks like a file of secrets, which never travel like that: they go "
        "into `cloud.secrets`. Write its name into .ftignore; if it holds none, name the file itself in `include`.",
        f"r.yml:8: cloud.include.0: R194 src/data is a link out of {folder.path.name}, to /usr. Mend that, or leave it "
        "out by a line in .ftignore.",
        "r.yml:10: cloud.include.2: R194 lost does not exist, neither in the current folder nor beside the recipe. "
        "Mend the path.",
        "r.yml:11: cloud.include.3: R194 ../up leads out of the folder that it is relative to, so it has no place in "
        "the run. Start `ft` in a folder that holds it, and write the path from there.",
        "r.yml:12: cloud.include.4: warning: R194 'src/' is there twice. Keep one.",
    ]
    (said,) = json.loads(folder.ft("check", "r.yml", "--json").stdout)["recipes"]
    assert [(p["rule"], p["line"]) for p in said["problems"]] == [
        ("R194", 8), ("R194", 8), ("R194", 10), ("R194", 11), ("R194", 12),
    ]  # fmt: skip
    refused = folder.ft("cloud", "run", "r.yml", "--dry-run")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_what_is_large_is_a_warning(folder: Folder) -> None:
    with (folder.path / "src/weights.bin").open("wb") as stream:
        stream.truncate((5 << 28) + 1)
    done = folder.ft("check", "r.yml")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == (
        "r.yml:7: cloud.include: warning: R194 1.3 GiB in 4 files go along with every run. Leave out what it does not "
        "need by a `.ftignore`; what is large and seldom changes lies better on a volume."
    )


def test_a_command_without_include_never_loads_the_library() -> None:
    code = (
        "import sys, ft.launcher.facts, ft.launcher.cli.app\n"
        "print(sorted(name for name in sys.modules if name.startswith('pathspec')))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
