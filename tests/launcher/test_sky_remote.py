"""What a node of SkyPilot's decides by itself, without an attempt."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.backends.sky_remote import BoundedSegment, Node, SkyHost, SkyJob
from ft.launcher.machine.cluster import Cluster
from ft.recipes.runstore import AttemptEnd, ExitCode, Reason

TASK = "sky-2026-11-23-17-45-12-345678_dev_3"
HAND_OFF = AttemptEnd(int(ExitCode.HAND_OFF), 4, 4, Reason.HAND_OFF)
BAD_NODE = AttemptEnd(int(ExitCode.BAD_NODE), 0, 0, Reason.INFRA)


def variables(**more: str) -> dict[str, str]:
    plain = {
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n",
        "SKYPILOT_TASK_ID": TASK,
    }
    return {**plain, **more}


def test_a_managed_job_is_its_number_and_one_of_a_cluster_its_task() -> None:
    assert Node.of(variables(SKYPILOT_MANAGED_JOB_ID="7")).job == "7"
    assert Node.of(variables()).job == TASK


@pytest.mark.parametrize("stays", [False, True])
def test_what_asks_for_another_machine_is_tried_again_where_there_will_be_none(
    object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    job = SkyJob(
        "run-1", "0" * 64, None, (), 1, 0, 1, "s3://bucket-one/run-1", 1, 3, stays=stays
    )  # fmt: skip
    host = SkyHost(job, "call", 1, Node.of(variables()))
    segment = BoundedSegment(job, Cluster.single(host.words), host)
    assert [segment._goes_on_elsewhere(end) for end in (HAND_OFF, BAD_NODE)] == [not stays] * 2
    host.go(signal.SIGTERM, None)
    assert segment._goes_on_elsewhere(HAND_OFF), "the machine goes: the checkpoint is what is left"
