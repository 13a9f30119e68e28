"""What a node of SkyPilot's decides by itself, without an attempt."""

from __future__ import annotations

import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.backends import sky_remote
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


@pytest.fixture
def pair() -> tuple[SkyJob, Node]:
    """A job on two nodes of this machine, and node 0; the port goes by the name of the run."""
    run = f"run-{uuid.uuid4().hex[:8]}"
    job = SkyJob(run, "0" * 64, None, (), 2, 0, 1, f"s3://bucket-one/{run}", 1, 3)
    nodes = variables(SKYPILOT_NODE_IPS="127.0.0.11\n127.0.0.12\n", SKYPILOT_MANAGED_JOB_ID="7")
    return job, Node.of(nodes)


def test_a_machine_that_is_taken_back_meets_no_node_of_the_next_launch(
    pair: tuple[SkyJob, Node],
) -> None:
    """On Slurm the next one may be this machine again, while what was there still saves."""
    job, node = pair
    going = threading.Event()
    with ThreadPoolExecutor() as threads:
        with sky_remote._met(job, node, call="old", is_going=going.is_set):
            met = sky_remote._meet(job, replace(node, rank=1))
            assert (met and met["call"], met and met["segment"]) == ("old", 1)
            going.set()
            late = threads.submit(sky_remote._meet, job, replace(node, rank=1))
            with sky_remote._met(replace(job, segment=2), node, call="new", is_going=lambda: False):
                found = late.result(timeout=60)
        assert (found and found["call"], found and found["segment"]) == ("new", 2)


def test_nodes_of_another_submission_are_not_met(
    pair: tuple[SkyJob, Node],
) -> None:
    job, node = pair
    asker = replace(node, rank=1)
    with sky_remote._met(job, node, call="ours", is_going=lambda: False) as answered:
        assert sky_remote._meet(replace(job, submission=2), asker, limit_s=2) is None
        answered.clear()
        assert sky_remote._meet(job, asker) is not None
        assert len(answered) == 1


def test_of_a_submission_that_was_sent_twice_the_job_without_the_run_goes_home(
    pair: tuple[SkyJob, Node],
) -> None:
    job, node = pair
    second = replace(node, rank=1, job="8")
    with sky_remote._met(job, node, call="ours", is_going=lambda: False):
        met = sky_remote._meet(job, second, limit_s=2)
        assert met is not None
        assert met["call"] == ""
    with sky_remote._met(job, node, call="", is_going=lambda: False):
        assert sky_remote._meet(job, second, limit_s=2) is None, "it may be the one that trains"
