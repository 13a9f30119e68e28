"""A store that another machine made: looked at, fetched from, and resumed once nobody writes it."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.backends.local import outcome_of
from ft.launcher.cli.complete import stores
from ft.recipes.runstore import AttemptEnd, Control, Status
from ft.recipes.store import LocalStore


def moved(laptop: Any, run: Any, to: str) -> tuple[Any, Path]:
    """Another machine, and a copy of the store that it can see."""
    other = replace(laptop, folder=laptop.folder / "other")
    other.folder.mkdir(exist_ok=True)
    folder = other.folder / to
    shutil.copytree(run.store.root, folder)
    return other, folder


def test_an_adopted_run_is_listed_fetched_resumed_and_never_deleted(laptop: Any) -> None:
    run = laptop.submit("one", steps=400)
    run.wait_for_step(7)
    laptop.ft("cloud", "cancel", "one")
    run.outcome()
    stopped_at = run.ends()[-1].step
    other, folder = moved(laptop, run, run.id)
    result = other.ft("cloud", "adopt", run.id, "--name", "theirs")
    assert (result.returncode, result.stdout) == (0, f"{run.id}\n"), result.stderr
    assert result.stderr.splitlines()[0] == f"run {run.id} (theirs) adopted"
    again = other.ft("cloud", "adopt", str(folder))
    assert (again.returncode, again.stdout) == (0, f"{run.id}\n")
    assert again.stderr.splitlines()[0] == f"run {run.id} (theirs) is here already"
    assert len(other.runs.all()) == 1

    (row,) = json.loads(other.ft("cloud", "ls", "--json").stdout)
    assert (row["id"], row["state"], row["reason"], row["step"]) == (
        run.id, "CANCELLED", "cancelled", stopped_at,
    )  # fmt: skip
    assert other.ft("cloud", "ls").stdout.splitlines()[1].split()[-1] == "-"
    status = json.loads(other.ft("cloud", "status", "theirs", "--json").stdout)
    assert status["attempts"][0]["exit_code"] == 79
    assert status["output_dir"] == f"{other.folder}/model-out/theirs"
    assert other.ft("cloud", "logs", "theirs").returncode == 0
    fetched = other.ft("cloud", "fetch", "theirs", "--to", "part")
    assert fetched.returncode == 0, fetched.stderr
    assert (other.folder / "part/weights.bin").is_file()

    # What the submission lacks is rebuilt; these tests put their own agent in.
    submission = other.runs.submission(run.id)
    plan = json.loads((folder / "plan.json").read_text())
    assert [upload.name for upload in submission.uploads] == [i["name"] for i in plan["inputs"]]
    assert submission.request["store"] == str(folder)
    assert submission.request["command"][-3:] == ["{store}", "--attempt", "{attempt}"]
    record = other.runs.get(run.id)
    command = laptop.runs.submission(run.id).request["command"]
    request = {**submission.request, "command": command}
    other.runs.create(record, replace(submission, request=request))
    resumed = other.ft("cloud", "resume", "theirs")
    assert resumed.returncode == 0, resumed.stderr
    assert f"attempt 2: resumed from step {stopped_at}" in resumed.stderr
    assert (other.folder / "model-out/theirs/weights.bin").is_file()
    assert (run.store.attempts(), LocalStore(folder).attempts()) == ([1], [1, 2])

    pruned = other.ft("cloud", "prune", "--yes")
    assert pruned.returncode == 0, pruned.stderr
    assert other.runs.all() == []
    assert (folder / "final/weights.bin").is_file()


def test_a_finished_store_has_its_result_in_it(laptop: Any) -> None:
    run = laptop.submit("one", steps=6)
    run.outcome()
    other, folder = moved(laptop, run, "copy-of-a-store")
    adopted = other.ft("cloud", "adopt", "copy-of-a-store", "--json")
    assert adopted.returncode == 0, adopted.stderr
    told = json.loads(adopted.stdout)
    assert told["id"] != run.id  # The folder's name is no id.
    assert told["machines"]["state"] == "SUCCEEDED"
    assert told["output"] == f"{folder}/final"
    assert other.ft("cloud", "wait", "@last").returncode == 0
    assert other.ft("cloud", "fetch", "@last", "--to", "mine").returncode == 0
    assert (other.folder / "mine/weights.bin").is_file()
    resumed = other.ft("cloud", "resume", "@last")
    assert resumed.stdout.endswith(f"has succeeded; its result is in {folder}/final\n")
    taken = other.ft("cloud", "adopt", str(run.store.root), "--name", told["name"])
    assert taken.returncode == 2


def test_a_store_that_is_being_written_is_left_alone(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(6)
    other = replace(laptop, folder=laptop.folder / "other")
    other.folder.mkdir()
    assert other.ft("cloud", "adopt", str(run.store.root)).returncode == 0
    status = json.loads(other.ft("cloud", "status", run.id, "--json").stdout)["machines"]
    assert (status["state"], status["message"]) == (
        "RUNNING", "it was adopted, and a living attempt on another machine writes its store",
    )  # fmt: skip
    before = other.runs.submission(run.id)
    refused = other.ft("cloud", "resume", run.id, "--max-cost", "5", "--price-per-hour", "2")
    assert other.runs.submission(run.id) == before
    assert refused.returncode == 5
    assert refused.stderr.splitlines() == [
        f"error: a living attempt on another machine writes {run.store.root}",
        f"hint: stop it there, or: ft cloud cancel {run.id}",
    ]
    assert run.store.attempts() == [1]
    # The store is how one speaks to it, wherever it runs.
    cancelled = other.ft("cloud", "cancel", run.id)
    assert cancelled.returncode == 0, cancelled.stderr
    assert run.outcome()["state"] == "CANCELLED"
    assert cancelled.stdout.splitlines()[0] == f"CANCELLED (cancelled)  run {run.id}"


def test_a_heartbeat_tells_where_no_lock_can_be_seen(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(6)
    laptop.ft("cloud", "cancel", "one", "--now")
    run.outcome()
    run.store.clear_control()
    # As an attempt leaves it that has not ended: here it may have had the time to say how it did.
    status = replace(run.store.get_status(), phase="train", exit_code=None, reason=None)
    other, folder = moved(laptop, run, run.id)
    store = LocalStore(folder)
    store.put_status(replace(status, updated_at=time.time()))
    other.ft("cloud", "adopt", run.id)

    def state() -> str:
        return str(json.loads(other.ft("cloud", "ls", "--json").stdout)[0]["state"])

    assert state() == "RUNNING"
    assert other.ft("cloud", "resume", run.id).returncode == 5
    store.put_status(replace(status, updated_at=time.time() - 61))
    assert state() == "UNKNOWN"
    told = json.loads(other.ft("cloud", "status", run.id, "--json").stdout)
    assert told["machines"]["message"] == (
        f"it was adopted, and nobody writes its store any more; `ft cloud resume {run.id}` goes on"
    )
    assert told["notes"][0].startswith("The machines are gone, while training said")
    with (folder / ".attempt.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert state() == "RUNNING"
        assert other.ft("cloud", "resume", run.id).returncode == 5


def test_the_copy_of_a_run_that_other_machines_write_is_refused(laptop: Any) -> None:
    run = laptop.submit("one")
    run.outcome()
    other, folder = moved(laptop, run, run.id)
    (folder / "words").mkdir()
    result = other.ft("cloud", "adopt", str(folder))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"error: {folder} is the copy of a run that other machines write"
    )
    assert other.runs.all() == []


def test_what_is_no_store_is_refused_with_what_is_missing(laptop: Any) -> None:
    (laptop.folder / "empty").mkdir()
    for name, what in (("nowhere", "it is no folder"), ("empty", "it has no plan.json")):
        result = laptop.ft("cloud", "adopt", name)
        assert result.returncode == 2
        assert result.stderr.splitlines()[0] == (
            f"error: {laptop.folder}/{name} is no store of a run: {what}"
        )
    (laptop.folder / "empty/plan.json").write_text('{"schema_version": 1}')
    old = laptop.ft("cloud", "adopt", "empty")
    assert old.returncode == 3
    assert old.stderr.startswith("error: plan.json has schema version 1")
    assert laptop.ft("cloud", "adopt", "empty", "--name", "7 up").returncode == 2
    assert laptop.runs.all() == []


@pytest.mark.parametrize(
    ("store", "error", "hint"),
    [
        (
            "ftp://host/runs/20261123-174512-3f9a",
            "ftp://host/runs/20261123-174512-3f9a: no backend has its stores at ftp://",
            "expected a folder, or modal://…, s3://…, gs://…, az://…, r2://…, file://…",
        ),
        (
            "modal://ft-store",
            "modal://ft-store names no run: expected modal://VOLUME/RUN, the run by its id (20261123-174512-3f9a)",
            "modal volume ls ft-store",
        ),
        (
            "modal://mine/first/",
            "modal://mine/first names no run: expected modal://VOLUME/RUN, the run by its id (20261123-174512-3f9a)",
            "modal volume ls mine",
        ),
    ],
)
def test_a_name_that_is_no_store_is_refused(laptop: Any, store: str, error: str, hint: str) -> None:
    done = laptop.ft("cloud", "adopt", store)
    assert (done.returncode, done.stdout) == (2, "")
    assert " ".join(done.stderr.split()) == f"error: {error} hint: {hint}"
    assert laptop.runs.all() == []


def test_stores_complete_by_folder_and_scheme(laptop: Any) -> None:
    (laptop.folder / "mount").mkdir()
    (laptop.folder / "mine.yml").touch()
    assert stores("m") == ["mount/", "modal://"]
    assert stores("modal://ft") == []
    assert stores("s") == ["s3://"]


def test_a_store_without_its_inputs_can_be_looked_at(laptop: Any) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [79, "data", "bad", 2]}})
    run.outcome()
    other, folder = moved(laptop, run, run.id)
    shutil.rmtree(folder / "inputs")
    adopted = other.ft("cloud", "adopt", run.id)
    assert adopted.returncode == 0
    assert adopted.stderr.splitlines()[0].endswith(
        "is missing: it can be looked at, but not resumed"
    )
    assert other.ft("cloud", "wait", run.id).returncode == 6
    resumed = other.ft("cloud", "resume", run.id)
    assert resumed.returncode == 5
    assert "is gone since the run was planned" in resumed.stderr


def written(root: Path, *ends: AttemptEnd, stop: str = "", message: str = "said") -> LocalStore:
    """A store whose last attempt has ended."""
    store = LocalStore(root)
    for number, end in enumerate(ends, start=1):
        store.attempt_folder(number).mkdir(parents=True)
        store.put_attempt_end(number, end)
    last = ends[-1]
    store.put_status(
        Status(len(ends), "end", 1.0, last.step, exit_code=last.exit_code, reason=last.reason,
               message=message)
    )  # fmt: skip
    if stop:
        store.put_control(Control("stop", 1.0, reason=stop))
    return store


@pytest.mark.parametrize(
    ("ends", "stop", "expected"),
    [
        ([AttemptEnd(78, 0, 0, "config")], "", ("FAILED", "config")),
        ([AttemptEnd(79, 3, 0, "data")], "", ("FAILED", "data")),
        ([AttemptEnd(79, 3, 3, "user")], "", ("CANCELLED", "user")),
        ([AttemptEnd(79, 3, 3, "cancelled")], "cancelled", ("CANCELLED", "cancelled")),
        ([AttemptEnd(75, 3, 3, "preempted")], "user", ("CANCELLED", "user")),
        ([AttemptEnd(75, 3, 3, "preempted")], "", None),
        ([AttemptEnd(1, 3, 0, "unclassified")], "", None),
        ([AttemptEnd(1, 3, 0, "unclassified")] * 2, "", ("FAILED", "deterministic")),
        ([AttemptEnd(75, 3, 3, "preempted")] * 11, "", ("FAILED", "infra")),
    ],
)
def test_how_a_run_ended_elsewhere(
    tmp_path: Path, ends: list[AttemptEnd], stop: str, expected: tuple[str, str] | None
) -> None:
    found = outcome_of(written(tmp_path, *ends, stop=stop))
    assert (found and (found.state, found.reason)) == expected
    if found is not None:
        assert found.message == "said"


def test_a_newer_attempt_means_that_the_run_goes_on(tmp_path: Path) -> None:
    store = written(tmp_path, AttemptEnd(78, 0, 0, "config"))
    assert outcome_of(store) is not None
    store.attempt_folder(2).mkdir()
    assert outcome_of(store) is None
    assert outcome_of(LocalStore(tmp_path / "empty")) is None
