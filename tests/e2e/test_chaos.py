"""The short form of `make chaos`, and proof that its judge sees what is wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import chaos
import chaos_faults
import chaos_judge
import pytest

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_promise_is_kept_under_eight_faults(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CHAOS), "--short", "--folder", str(tmp_path)],
        capture_output=True, text=True, timeout=2900, check=False,
        # It runs two at a time itself, and nearly all other tests are over when it begins.
        preexec_fn=lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 runs, " in done.stdout
    assert "every promise kept" in done.stdout
    ends = dict(re.findall(r"#\d+ ([a-z-]+): (\w+),", done.stdout))
    assert ends == {name: chaos.FAULTS[name].ends for name in chaos.SHORT}


# --------------------------------------------------------------------------- the judge sees what is wrong


def event(kind: str, at: float, attempt: int = 1, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "time": at, "attempt": attempt, "data": data}


def train(attempt: int, at: float, start: int, reached: int) -> list[dict[str, Any]]:
    """Events of an attempt that saves every 3 steps; a step takes a second."""
    found = [event("attempt", at, attempt, mark="begin")]
    if start:
        found.append(event("resume", at, attempt, step=start, name=chaos_judge.name_of(start)))
    found.append(event("phase", at, attempt, name="train", mark="begin"))
    for step in range(start + 1, reached + 1):
        at += 1
        found.append(
            event("step", at, attempt, step=step, loss=1 / step, tokens=9, trained_tokens=5)
        )
        if step % 3 == 0:
            found.append(
                event("checkpoint", at + 0.5, attempt, step=step, name=chaos_judge.name_of(step))
            )
    return found


def losses_of(*parts: list[dict[str, Any]], **changes: Any) -> list[str]:
    values = {"damaged": [], "save_steps": 3, "intervals": 1, **changes}
    return list(
        chaos_judge.judge_losses(chaos_judge.attempts_of(itertools.chain(*parts)), **values)
    )


def test_attempts_are_read_from_the_events() -> None:
    events = [*train(1, 100, 0, 7), *train(2, 200, 6, 12)]
    events.append(event("attempt", 220, 2, mark="end", exit_code=0, reason="done", message="done"))
    first, second = chaos_judge.attempts_of(events)
    assert (first.start, first.reached, first.reason) == (0, 7, "killed")
    assert first.saved == {3: 103.5, 6: 106.5}
    assert (first.began, first.ended) == (100, 107)
    assert (second.start, second.reached, second.reason) == (6, 12, "done")
    assert chaos_judge.steps_lost([first, second]) == [1]


def test_more_than_an_interval_lost_is_seen() -> None:
    before = train(1, 100, 0, 8)
    assert losses_of(before, train(2, 200, 6, 12)) == []
    assert losses_of(before, train(2, 200, 3, 12)) == [
        "attempt 2 began 5 steps back, an interval is 3",
        "attempt 2 began at step 3, step 6 was whole",
    ]


def test_a_broken_checkpoint_excuses_an_older_one_and_no_other() -> None:
    before, damaged = train(1, 100, 0, 8), [chaos_judge.Damage("step-00000006", 150)]
    changes = {"damaged": damaged, "intervals": 2}
    assert losses_of(before, train(2, 200, 3, 12), **changes) == []
    assert losses_of(before, train(2, 200, 0, 12), **changes) == [
        "attempt 2 began 8 steps back, an interval is 3",
        "attempt 2 began at step 0, step 3 was whole",
    ]


def test_a_loaded_broken_checkpoint_is_seen() -> None:
    damaged = [chaos_judge.Damage("step-00000006", 150)]
    loaded = [*train(1, 100, 0, 8), *train(2, 200, 6, 12)]
    assert list(chaos_judge.judge_resumes(loaded, damaged)) == [
        "attempt 2 loaded step-00000006, which was broken"
    ]
    # Attempt 2 writes the step again; attempt 3 may load that.
    again = [
        *train(1, 100, 0, 8), *train(2, 200, 3, 7), *train(3, 300, 6, 12)
    ]  # fmt: skip
    assert list(chaos_judge.judge_resumes(again, damaged)) == []


def test_two_writers_are_seen() -> None:
    one = [*train(1, 100, 0, 8), *train(2, 109, 6, 12)]
    assert list(chaos_judge.judge_writers(chaos_judge.attempts_of(one))) == []
    two = [*train(1, 100, 0, 8), *train(2, 107, 6, 12)]
    assert list(chaos_judge.judge_writers(chaos_judge.attempts_of(two))) == [
        "attempt 1 wrote 1.000 s into attempt 2"
    ]


def publish(folder: Path, **files: str) -> None:
    """A whole folder of plan `p`."""
    folder.mkdir(parents=True)
    listed = []
    for name, text in files.items():
        (folder / name).write_text(text)
        listed.append({"path": name, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    manifest = {"plan_sha256": "p", "files": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_broken_folders_and_leftovers_are_seen(tmp_path: Path) -> None:
    publish(tmp_path / "checkpoints" / "step-00000003", weights="abc", optimizer="def")
    publish(tmp_path / "final", weights="xyz")
    assert list(chaos_judge.judge_store(tmp_path, "p", ended_well=True)) == []
    (tmp_path / "final" / "weights").write_text("xyZ")
    (tmp_path / "checkpoints" / "step-00000003" / "optimizer").unlink()
    (tmp_path / ".staging-step-00000006").mkdir()
    assert list(chaos_judge.judge_store(tmp_path, "p", ended_well=True)) == [
        "step-00000003 is broken: it holds ['weights'], listed are ['optimizer', 'weights']",
        "final is broken: weights is not what the manifest says",
        "left behind: .staging-step-00000006",
    ]
    assert chaos_judge.why_broken(tmp_path / "final", "q") == "it is of another plan"
    (tmp_path / "final" / "manifest.json").unlink()
    assert chaos_judge.why_broken(tmp_path / "final", "p").startswith(
        "its manifest: FileNotFoundError"
    )


def test_a_checkpoint_that_is_not_set_aside_is_seen(tmp_path: Path) -> None:
    damaged = [chaos_judge.Damage("step-00000006", 150)]
    assert list(chaos_judge.judge_aside(tmp_path, [], damaged)) == [
        "step-00000006 was broken and is not set aside as broken-00000006",
        "no log line says why step-00000006 was not used",
    ]
    (tmp_path / "checkpoints" / "broken-00000006").mkdir(parents=True)
    said = "checkpoint not used: step-00000006: no manifest; set aside as broken-00000006"
    log = [event("log", 200, 2, level="warning", message=said)]
    assert list(chaos_judge.judge_aside(tmp_path, log, damaged)) == []


def test_rows_that_a_step_missed_or_should_not_have_read_are_seen(tmp_path: Path) -> None:
    calm = chaos_judge.Calm({}, {}, (0, 0), {1: [4, 7], 2: [1, 3], 3: [2, 8]}, 0.0)

    def write(attempt: int, rank: int, *parts: tuple[int, list[int]]) -> None:
        path = tmp_path / "attempts" / str(attempt) / f"rank{rank}.rows.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": step, "rows": rows}) for step, rows in parts]
        path.write_text("\n".join(lines) + "\n")

    # The first attempt dies within step 2, the second begins with it.
    write(1, 0, (1, [7]), (2, [3]))
    write(1, 1, (1, [4]))
    write(2, 0, (2, [3]), (3, [2]))
    write(2, 1, (2, [1]), (3, [8]))
    assert list(chaos_judge.judge_rows(tmp_path, calm)) == []
    write(2, 1, (2, [1]), (3, [9]))
    assert list(chaos_judge.judge_rows(tmp_path, calm)) == [
        "attempt 2 read rows [2, 9] in step 3, not [2, 8]",
        "steps [3] never saw all their rows",
    ]
    assert list(chaos_judge.judge_rows(tmp_path, calm, left_out=[3])) == [
        "attempt 2 read rows [2, 9] in step 3, not [2, 8]"
    ]


def test_another_adapter_loss_or_count_is_seen(tmp_path: Path) -> None:
    publish(tmp_path / "final", weights="abc")
    events = train(1, 100, 0, 3)
    files = chaos_judge.files_of(tmp_path / "final")
    assert files == {"weights": hashlib.sha256(b"abc").hexdigest()}
    same = chaos_judge.Calm(files, {1: 1.0, 2: 0.5, 3: 1 / 3}, (9, 5), {}, 0.0)
    assert list(chaos_judge.judge_result(tmp_path / "final", events, same, steps=3)) == []
    other = chaos_judge.Calm({"weights": "0"}, {1: 1.0, 2: 0.25, 3: 1 / 3}, (9, 6), {}, 0.0)
    assert list(chaos_judge.judge_result(tmp_path / "final", events, other, steps=3)) == [
        "final differs from an undisturbed run's in weights",
        "other losses in steps [2]",
        "counted (9, 5) tokens, expected (9, 6)",
    ]


# -------------------------------------------------------------------------------- plan, table, damage


def test_the_same_seed_makes_the_same_plan_and_every_fault_has_its_turn() -> None:
    names = list(chaos.FAULTS)
    plan = list(itertools.islice(chaos.plan_of(7, names), 100))
    assert plan == list(itertools.islice(chaos.plan_of(7, names), 100))
    assert plan != list(itertools.islice(chaos.plan_of(8, names), 100))
    assert set(plan) == set(names)
    assert [plan.count(name) for name in names if name.startswith("ten-")] == [1, 1, 1]
    assert set(chaos.SHORT) <= set(names)
    assert len(chaos.SHORT) == 8


def test_each_kind_of_damage_breaks_a_checkpoint(tmp_path: Path) -> None:
    import random

    kinds = (
        "truncate", "flip_a_bit", "remove_a_file", "remove_manifest", "tear_manifest",
        "name_another_plan",
    )  # fmt: skip
    for kind in kinds:
        folder = tmp_path / kind
        publish(folder, weights="abcdefgh", optimizer="ijklmnop")
        assert chaos_judge.why_broken(folder, "p") is None
        getattr(chaos_faults, kind)(folder, random.Random(1))
        assert chaos_judge.why_broken(folder, "p") is not None, kind


def test_the_table_fits_a_terminal_and_says_what_was_broken() -> None:
    results = [
        chaos.Result(1, "agent", "same", attempts=2, lost=[1], seconds=30.4),
        chaos.Result(2, "agent", "BROKEN", ["it hung"], attempts=3, lost=[2, 3], seconds=50.4),
        chaos.Result(3, "bad-row", "failed", attempts=1, seconds=20.0),
        chaos.Result(4, "disk-full", "skipped", ["skipped: mounting a disk needs root"]),
    ]
    shown = chaos.table(results)
    assert shown.splitlines()[2:] == [
        "agent               2     1     ·       ·       1       2.5     3        40",
        "disk-full           0  skipped: mounting a disk needs root",
        "bad-row             1     ·     ·       1       ·       1.0     ·        20",
        "all                 3     1     ·       1       1       2.0     3        30",
    ]
    assert max(len(line) for line in (*shown.splitlines(), *chaos.LEGEND.splitlines())) <= 80
    assert chaos.summary(results) == (
        "3 runs, 3 restarts of training, 0 checkpoints broken on purpose: BROKEN: 1"
    )
