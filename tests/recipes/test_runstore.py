"""A run on disk: publishing, finding the newest valid checkpoint, and the restart policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ft.recipes.runstore import (
    MANIFEST,
    AttemptEnd,
    Control,
    Event,
    Manifest,
    Reason,
    Status,
    newest_valid,
    step_name,
    verdict,
    why_invalid,
)
from ft.recipes.store import LocalStore

PLAN = "a" * 64


def publish(store: LocalStore, step: int, *, plan: str = PLAN, text: str = "weights") -> Path:
    staged = store.staging(step_name(step))
    (staged / "sub").mkdir()
    (staged / "model.bin").write_text(text)
    (staged / "sub" / "rng").write_text("rng")
    store.publish(staged, step_name(step), step=step, attempt=1, plan_sha256=plan, meta={})
    return store.checkpoints / step_name(step)


def test_a_published_folder_is_whole_and_leaves_no_staging(tmp_path) -> None:
    store = LocalStore(tmp_path)
    folder = publish(store, 10)
    manifest = Manifest.from_json((folder / MANIFEST).read_text())
    assert [(e.path, e.size) for e in manifest.files] == [("model.bin", 7), ("sub/rng", 3)]
    assert (manifest.step, manifest.attempt, manifest.size) == (10, 1, 10)
    assert why_invalid(folder, plan_sha256=PLAN) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints"]
    assert Manifest.from_json(manifest.to_json()) == manifest


def truncate(folder: Path) -> None:
    (folder / "model.bin").write_text("wei")


def flip(folder: Path) -> None:
    (folder / "model.bin").write_text("weighty")


def lose(folder: Path) -> None:
    (folder / "sub" / "rng").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def break_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (truncate, "model.bin has 3 bytes, expected 7"),
        (flip, "model.bin has another sha256 than its manifest"),
        (lose, "sub/rng is missing"),
        (lose_manifest, "no manifest"),
        (break_manifest, "manifest unreadable: not a manifest: KeyError('name')"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_and_the_one_before_is_used(
    tmp_path, spoil, why: str
) -> None:
    store = LocalStore(tmp_path)
    older, newer = publish(store, 10), publish(store, 20)
    assert store.newest_checkpoint(plan_sha256=PLAN) == (newer, [])
    spoil(newer)
    assert store.newest_checkpoint(plan_sha256=PLAN) == (older, [f"step-00000020: {why}"])


def test_a_checkpoint_of_another_plan_is_not_used(tmp_path) -> None:
    store = LocalStore(tmp_path)
    publish(store, 10, plan="b" * 64)
    found, passed = store.newest_checkpoint(plan_sha256=PLAN)
    assert found is None
    assert passed == ["step-00000010: written by another plan (bbbbbbbbbbbb, not aaaaaaaaaaaa)"]


def test_publishing_a_step_again_replaces_it_as_a_whole(tmp_path) -> None:
    store = LocalStore(tmp_path)
    publish(store, 10)
    folder = publish(store, 10, text="other")
    assert (folder / "model.bin").read_text() == "other"
    assert why_invalid(folder) is None
    assert [p.name for p in store.checkpoints.iterdir()] == ["step-00000010"]


def test_retention_keeps_the_newest_and_never_drops_the_newest_valid_one(tmp_path) -> None:
    store = LocalStore(tmp_path)
    folders = [publish(store, step) for step in (10, 20, 30, 40)]
    for folder in folders[2:]:
        flip(folder)
    assert store.prune(keep=2) == ["step-00000010"]
    assert newest_valid(store.checkpoints)[0] == folders[1]
    assert store.prune(keep=1) == ["step-00000030"]
    assert newest_valid(store.checkpoints)[0] == folders[1]


def test_a_checkpoint_that_was_half_dropped_is_none(tmp_path, monkeypatch) -> None:
    store = LocalStore(tmp_path)
    for step in (10, 20):
        publish(store, step)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or killed(path)
    )
    with pytest.raises(KeyboardInterrupt):
        store.prune(keep=1, valid="step-00000020")
    left = sorted(p.name for p in store.checkpoints.iterdir())
    assert left == [".old-step-00000010", "step-00000020"]
    assert newest_valid(store.checkpoints)[0] == store.checkpoints / "step-00000020"


def test_retention_trusts_the_checkpoint_that_was_just_published(tmp_path) -> None:
    store = LocalStore(tmp_path)
    for step in (10, 20, 30):
        publish(store, step)
    assert store.prune(keep=1, valid="step-00000030") == ["step-00000010", "step-00000020"]


def test_staging_is_empty_although_a_killed_attempt_left_something(tmp_path) -> None:
    store = LocalStore(tmp_path)
    (store.staging("step-1") / "half").write_text("x")
    assert list(store.staging("step-1").iterdir()) == []


def test_events_are_read_from_an_offset_and_half_a_line_waits(tmp_path) -> None:
    store = LocalStore(tmp_path)
    one, two = Event("log", 1.0, 1, {"message": "a"}), Event("step", 2.0, 1, {"step": 3})
    store.append_event(one)
    events, offset = store.events()
    assert events == [one]
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write(two.to_json()[:10])
    assert store.events(offset=offset) == ([], offset)
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write(two.to_json()[10:] + "\n")
    assert store.events(offset=offset)[0] == [two]


def test_status_and_control_round_trip(tmp_path) -> None:
    store = LocalStore(tmp_path)
    assert store.get_status() is None
    assert store.get_control() is None
    status = Status(attempt=2, phase="train", updated_at=1.5, step=7, loss=0.5)
    store.put_status(status)
    store.put_control(Control("stop", 2.0, "me"))
    assert store.get_status() == status
    assert store.get_control() == Control("stop", 2.0, "me")
    newer = {**json.loads(status.to_json()), "a_key_of_tomorrow": 1}
    assert Status.from_json(json.dumps(newer)) == status


def end(code: int, step: int = 5, checkpoint: int = 0, reason: str = "") -> AttemptEnd:
    return AttemptEnd(code, step, checkpoint, reason)


@pytest.mark.parametrize(
    ("history", "restart", "reason"),
    [
        ([end(0)], False, Reason.DONE),
        ([end(75)], True, Reason.PREEMPTED),
        ([end(76)], True, Reason.HAND_OFF),
        ([end(77)], True, Reason.BAD_NODE),
        ([end(78)], False, Reason.CONFIG),
        ([end(79, reason="data")], False, Reason.DATA),
        ([end(79, reason="oom")], False, Reason.OOM),
        ([end(79)], False, Reason.DETERMINISTIC),
        ([end(137)], True, Reason.KILLED),
        ([end(-9)], True, Reason.KILLED),
        ([end(1)], True, Reason.UNCLASSIFIED),
        ([end(1, step=5), end(1, step=6)], True, Reason.UNCLASSIFIED),
        ([end(1, step=5), end(1, step=5)], False, Reason.DETERMINISTIC),
        ([end(1, step=5), end(137, step=5), end(1, step=5)], True, Reason.UNCLASSIFIED),
        ([end(137)] * 9, True, Reason.KILLED),
        ([end(137)] * 10, False, Reason.INFRA),
        ([end(137, checkpoint=n) for n in range(1, 31)], True, Reason.KILLED),
        ([end(137, checkpoint=1)] * 10, True, Reason.KILLED),
        ([end(137, checkpoint=1)] * 11, False, Reason.INFRA),
    ],
)
def test_restart_policy(history: list[AttemptEnd], restart: bool, reason: Reason) -> None:
    decided = verdict(history)
    assert (decided.restart, decided.reason) == (restart, reason)
    assert decided.message


def test_a_half_deleted_checkpoint_does_not_look_whole(tmp_path) -> None:
    folder = publish(LocalStore(tmp_path), 10)
    (folder / MANIFEST).unlink()
    assert why_invalid(folder) == "no manifest"
    shutil.rmtree(folder)
    assert newest_valid(tmp_path / "checkpoints") == (None, [])
