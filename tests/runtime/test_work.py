"""The working directory of an attempt: made of inputs that were verified, anew each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ft.launcher.included import Entry, find
from ft.launcher.inputs import described, stage, uploads_of
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.runstore import ExitCode, Reason
from ft.recipes.store import LocalStore
from ft.runtime import work
from ft.runtime.ends import AttemptError

RECIPE = (
    "base_model: some/model\ndatasets: [{path: some/data, type: alpaca}]\nlearning_rate: 1e-4\n"
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A run whose recipe includes two files, one of them a program."""
    folder = tmp_path / "laptop"
    (folder / "src").mkdir(parents=True)
    (folder / "src/x.txt").write_text("as planned")
    (folder / "src/run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "src/run.sh").chmod(0o755)
    included = described(find([Entry(("cloud", "include", 0), "src", (folder,))]))
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    facts = Facts(files={}, included=included, machine=machine)
    store = LocalStore(tmp_path / "store")
    for upload in uploads_of(facts):
        stage(upload, store.root / "inputs")
    store.plan_path.write_text(resolve(normalize(loads(RECIPE)).flat, facts).to_json())
    return store


def plan_of(store: LocalStore) -> RunPlan:
    return RunPlan.from_json(store.plan_path.read_text())


def tree(folder: Path) -> dict[str, tuple[str, bool]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_text(), os.access(path, os.X_OK))
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_each_attempt_begins_with_what_was_planned(store: LocalStore) -> None:
    expected = {"src/x.txt": ("as planned", False), "src/run.sh": ("#!/bin/sh\necho ran\n", True)}
    for path in (store.root / "inputs").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # As a volume gives it back.
    folder = work.lay_out(plan_of(store), store.root)
    assert (folder, tree(folder)) == (store.root / "work", expected)
    (folder / "src/x.txt").write_text("spoiled")
    (folder / "of this attempt").touch()
    assert tree(work.lay_out(plan_of(store), store.root)) == expected
    (source,) = (store.root / "inputs").iterdir()
    assert (source / "src/x.txt").read_text() == "as planned"


def test_without_include_it_is_an_empty_folder(store: LocalStore) -> None:
    plan = plan_of(store).model_copy(update={"inputs": ()})
    assert list(work.lay_out(plan, store.root).iterdir()) == []


def test_a_disk_without_room_is_said_before_anything_is_copied(store: LocalStore) -> None:
    plan = plan_of(store)
    huge = tuple(item.model_copy(update={"size": 1 << 60}) for item in plan.inputs)
    with pytest.raises(
        AttemptError, match=r"bytes free, but cloud\.include needs 1,152,921,"
    ) as end:
        work.lay_out(plan.model_copy(update={"inputs": huge}), store.root)
    assert (end.value.exit_code, end.value.reason) == (ExitCode.CONFIG, Reason.CONFIG)


def test_an_input_that_was_changed_is_refused(store: LocalStore) -> None:
    (item,) = plan_of(store).inputs
    (store.root / item.path / "src/x.txt").write_text("spoiled")
    command = [sys.executable, "-P", "-m", "ft.runtime.agent", str(store.root), "--attempt", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.CONFIG, done.stderr
    status = store.get_status()
    assert status is not None
    assert status.message == f"{item.path} is not the file that was planned: its sha256 is another"
    assert not (store.root / "work").exists()


def test_files_and_modules_are_found_and_none_shadows_a_library(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("WORD = 'mine'")
    (tmp_path / "json.py").write_text("raise ImportError('not the library')")
    code = (
        "import sys; from pathlib import Path; from ft.runtime.work import enter\n"
        "enter(Path(sys.argv[1]))\n"
        "import json, mine; print(json.dumps([mine.WORD, Path('mine.py').exists()]))"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    assert json.loads(subprocess.check_output(command, text=True)) == ["mine", True]
