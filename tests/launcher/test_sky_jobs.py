"""What SkyPilot's record of a job says of a run. SkyPilot is not asked, nor installed."""

from __future__ import annotations

from typing import Any

import pytest

from ft.launcher.backends.afar import Alive
from ft.launcher.backends.sky_jobs import Look, Managed
from ft.recipes.runstore import Reason, RunState

OVER = Alive(lives=False, is_held=False)


@pytest.mark.parametrize(
    ("status", "record", "expected"),
    [
        ("RUNNING", {"recovery_count": 0}, Look(Alive(lives=True, is_held=True))),
        (
            "RUNNING",
            {"recovery_count": 1},
            Look(Alive(lives=True, is_held=True, said="SkyPilot: running, 1 recovery so far")),
        ),
        (
            "RECOVERING",
            {"recovery_count": 2, "details": "Failed to\n acquire resources"},
            Look(
                Alive(
                    lives=True,
                    is_held=False,
                    said="SkyPilot: recovering, Failed to acquire resources, 2 recoveries so far",
                )
            ),
        ),
        ("SUCCEEDED", {}, Look(OVER)),
        (
            "FAILED_NO_RESOURCE",
            {"failure_reason": "nothing to be had. To see the details, run: sky"},
            Look(
                OVER,
                (RunState.FAILED, Reason.INFRA, "no machine was to be had"),
                "nothing to be had.",
            ),
        ),
        (
            "FAILED_CONTROLLER",
            {"failure_reason": None},
            Look(
                OVER,
                (RunState.FAILED, Reason.INFRA, "SkyPilot's controller failed"),
                is_blind=True,
            ),
        ),
    ],
)
def test_a_job_is_seen_as(status: str, record: dict[str, Any], expected: Look) -> None:
    assert Managed().seen(record, status) == expected
