"""A run on disk: publishing, finding the newest valid checkpoint, and the restart policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ft.recipes.runstore import (
    MANIFEST,
    Adjust,
    AttemptEnd,
    Control,
    Event,
    Manifest,
    RankExit,
    Reason,
    Status,
    combined,
    end_of_node,
    learnt_by_all,
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


# ---------------------------------------------------------------------------------------- several nodes

DONE = RankExit(0, "done", "done", 9)
LOST = RankExit(77, "lost_peer", "node 1 is gone or does not answer: closed", 5)
SAVED = RankExit(75, "preempted", "saved at step 7 and stopped", 7)
ERROR = RankExit(1, "unclassified", "rank 1: ValueError: x", 6)
OOM = RankExit(75, "oom", "out of memory; the next attempt uses less", 6)
BROKEN = RankExit(77, "bad_node", "GPU 3 fell off the bus", 0)
DATA = RankExit(79, "data", "row 3", 0)
CONFIG = RankExit(78, "config", "the disk is full", 0)
DIED = RankExit(137, "killed", "rank 1 died without a word", 5)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([DONE, DONE], (0, "done", "done")),
        ([DONE], (0, "done", "done")),
        ([ERROR], (1, "unclassified", "rank 1: ValueError: x")),
        # Not done on all is not done.
        ([DONE, LOST], (77, "lost_peer", f"node 1: {LOST.message}")),
        ([DONE, SAVED], (75, "preempted", SAVED.message)),
        ([DONE, None], (137, "killed", "node 1 ended without a word: its machine is gone, or it was killed")),
        # Who only lost the other hides nothing.
        ([LOST, None], (137, "killed", "node 1 ended without a word: its machine is gone, or it was killed")),
        ([LOST, ERROR], (1, "unclassified", "node 1: rank 1: ValueError: x")),
        ([LOST, OOM], (75, "oom", f"node 1: {OOM.message}")),
        ([LOST, DATA], (79, "data", "node 1: row 3")),
        ([LOST, SAVED], (75, "preempted", SAVED.message)),
        ([LOST, DIED], (137, "killed", f"node 1: {DIED.message}")),
        ([LOST, LOST], (77, "lost_peer", LOST.message)),
        # Nor does whom the vendor killed, or stopped, because another one had ended.
        ([ERROR, None], (1, "unclassified", f"node 0: {ERROR.message}")),
        ([ERROR, SAVED], (1, "unclassified", f"node 0: {ERROR.message}")),
        ([SAVED, None], (75, "preempted", SAVED.message)),
        ([BROKEN, DIED], (77, "bad_node", f"node 0: {BROKEN.message}")),
        ([ERROR, BROKEN], (77, "bad_node", f"node 1: {BROKEN.message}")),
        ([OOM, BROKEN], (75, "oom", f"node 0: {OOM.message}")),
        ([OOM, CONFIG], (78, "config", "node 1: the disk is full")),
        ([DATA, CONFIG, BROKEN], (78, "config", "node 1: the disk is full")),
        ([SAVED, SAVED, DIED], (137, "killed", f"node 2: {DIED.message}")),
    ],
)  # fmt: skip
def test_the_end_over_all_nodes(ends, expected) -> None:
    end = combined(ends)
    assert (end.exit_code, end.reason, end.message) == expected
    assert end.step == max((each.step for each in ends if each), default=0)


def test_the_end_of_a_node_is_what_its_agent_told_of_this_attempt() -> None:
    told = Status(2, "end", 50.0, step=7, exit_code=75, reason="preempted", message="saved", rank=3)
    assert end_of_node(75, told, attempt=2) == RankExit(75, "preempted", "saved", 7, 50.0, 3)
    # A rank died by a signal, and its agent said so; or the agent itself did.
    died = Status(2, "end", 50.0, step=7, exit_code=137, reason="killed", message="rank 3 died")
    assert end_of_node(137, died, attempt=2) == RankExit(137, "killed", "rank 3 died", 7, 50.0)
    running = Status(2, "train", 50.0, step=7)
    assert end_of_node(137, running, attempt=2) is None
    assert end_of_node(-9, None, attempt=2) is None
    # Words of an attempt before are none of this one.
    silent = RankExit(75, "", "its agent ended with exit code 75 and said nothing", 0)
    assert end_of_node(75, told, attempt=3) == silent


def test_what_nodes_learnt_fits_all_of_them() -> None:
    assert learnt_by_all([Adjust(), Adjust()]) == Adjust()
    zero = Adjust(micro_batch_size=4, left_out=(5, 6), rollbacks=(6,))
    one = Adjust(micro_batch_size=2, eval_batch_size=8)
    expected = Adjust(micro_batch_size=2, eval_batch_size=8, left_out=(5, 6), rollbacks=(6,))
    assert learnt_by_all([zero, one]) == learnt_by_all([one, zero]) == expected
    # Read from a file they are lists.
    assert learnt_by_all([Adjust.from_json(zero.to_json())]) == zero
