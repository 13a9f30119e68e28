"""The loss curve as characters, and what a watch makes of events. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ft.launcher.cli import curve
from ft.launcher.cli.watch import Watch
from ft.recipes.runstore import Event

FALLING = {step: 0.1 + 2 * math.exp(-step / 12) for step in range(1, 61)}


@pytest.mark.parametrize(("name", "unicode"), [("curve.txt", True), ("curve-ascii.txt", False)])
def test_curve_is_what_was_reviewed(
    golden: Callable[[str, str], None], name: str, unicode: bool
) -> None:
    lines = curve.render(FALLING, unicode=unicode)
    assert len(lines) == 14
    assert max(len(line) for line in lines) <= 76
    golden(name, "\n".join(lines) + "\n")


def test_a_small_curve_to_the_letter() -> None:
    # 12 columns for steps 0..11, 3 rows: down by one row after a third and after two thirds.
    points = {0: 3.0, 3: 3.0, 4: 2.0, 7: 2.0, 8: 1.0, 11: 1.0}
    assert curve.render(points, width=22, height=3, unicode=False) == [
        "    3.00 +****",
        "    2.00 +    ****",
        "    1.00 +        ****",
        "         +------------",
        "          0   step  11",
    ]


def test_too_little_for_a_curve() -> None:
    assert curve.render({}) == []
    assert curve.render({1: 2.0}) == []
    assert curve.render({1: 2.0, 2: math.nan, 3: math.inf}) == []


def test_a_flat_curve_has_one_label() -> None:
    lines = curve.render({1: 0.25, 100: 0.25}, unicode=False)
    assert [line for line in lines if "*" in line] == ["    0.25 +" + "*" * 66]


@given(
    points=st.dictionaries(
        st.integers(0, 10**6), st.floats(-10, 10) | st.floats(), min_size=2, max_size=60
    ),
    width=st.integers(30, 76),
    height=st.integers(2, 12),
    unicode=st.booleans(),
)
@example({0: 0.0, 1: -9.898374445115664e-235}, 30, 2, False)
def test_curve_always_fits(
    points: dict[int, float], width: int, height: int, unicode: bool
) -> None:
    lines = curve.render(points, width=width, height=height, unicode=unicode)
    drawn = [value for value in points.values() if abs(value) < 1e30]
    assert len(lines) == (height + 2 if len(drawn) > 1 else 0)
    assert all(len(line) <= width for line in lines)
    assert unicode or all(line.isascii() for line in lines)


def events(*items: tuple[str, int, dict[str, object]]) -> tuple[Watch, list[str]]:
    watch = Watch()
    lines = [
        line
        for time, (kind, attempt, data) in enumerate(items)
        for line in watch.apply(Event(kind, float(time), attempt, data))
    ]
    return watch, lines


def step(number: int, loss: float) -> dict[str, object]:
    return {
        "step": number,
        "total_steps": 4,
        "loss": loss,
        "step_time_s": 2.0,
        "trained_tokens": 10,
    }


def test_after_a_restart_the_last_value_of_a_step_counts() -> None:
    watch, lines = events(
        ("step", 1, step(1, 9.0)),
        ("step", 1, step(2, 8.0)),
        ("step", 1, step(3, 7.0)),
        ("resume", 2, {"step": 1, "name": "step-00000001"}),
        ("step", 2, step(2, 5.0)),
    )
    assert watch.losses == {1: 9.0, 2: 5.0, 3: 7.0}
    assert (watch.attempt, watch.step, watch.loss, watch.progress()) == (2, 2, 5.0, "2/4")
    assert watch.eta_s == 4.0  # Two steps of 2 s are left.
    assert lines == [
        "attempt 1 ended without a word: it was killed",
        "attempt 2: started",
        "attempt 2: resumed from step 1",
    ]


def test_a_restart_without_a_checkpoint_says_so_once() -> None:
    _, lines = events(
        ("attempt", 1, {"mark": "end", "exit_code": 77, "reason": "bad_node", "message": "no GPU"}),
        ("attempt", 2, {"mark": "begin"}),
        ("step", 2, step(1, 9.0)),
        ("step", 2, step(2, 9.0)),
    )
    assert lines == [
        "attempt 1 ended (bad_node, exit code 77): no GPU",
        "attempt 2: started",
        "attempt 2: there was no checkpoint, from the beginning",
    ]


def test_every_kind_of_event_has_its_line() -> None:
    watch, lines = events(
        ("attempt", 1, {"mark": "begin"}),
        ("phase", 1, {"name": "load", "mark": "begin"}),
        ("phase", 1, {"name": "load", "mark": "end", "seconds": 83.2}),
        ("rows", 1, {"read": 10, "too_long": 0, "trained_tokens": 70}),
        ("phase", 1, {"name": "eval", "mark": "end", "seconds": 0.1}),
        ("eval", 1, {"step": 2, "loss": 1.25, "trained_tokens": 3}),
        (
            "checkpoint",
            1,
            {"step": 2, "name": "step-00000002", "bytes": 1_234_567, "seconds": 0.25},
        ),
        ("log", 1, {"level": "info", "message": "not shown"}),
        ("log", 1, {"level": "error", "message": "row 3 is broken"}),
        ("final", 1, {"name": "final", "bytes": 999}),
        (
            "attempt",
            1,
            {"mark": "end", "exit_code": 79, "reason": "data", "message": "row 3 is broken"},
        ),
        ("something-new", 1, {}),
    )
    assert lines == [
        "load       1 min 23 s",
        "rows       read 10, trained tokens 70",
        "step 2: evaluation loss 1.2500",
        "step 2: saved (1.2 MB, 0.2 s)",
        "error: row 3 is broken",
        "exported   999 B",
        "attempt 1 ended (data, exit code 79)",
    ]
    assert (watch.eval_loss, watch.trained_tokens, watch.last_time) == (1.25, None, 11.0)
