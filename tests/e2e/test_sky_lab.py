"""The ground that the backend on SkyPilot is tested on: what SkyPilot itself does here, through its SDK alone.

What passes here was run on Slurm on loopback with pretend GPUs, and on nobody's cloud. See sky_lab/README.md.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.sky]

RECOVERED = [75, 76, 77]
FIELDS = ["job_id", "status", "schedule_state", "recovery_count", "failure_reason", "details"]

AGAIN = """
echo "rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES gpus $SKYPILOT_NUM_GPUS_PER_NODE ips" $SKYPILOT_NODE_IPS
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then touch "$COUNTER.other"; exit 0; fi
until [ -e "$COUNTER.other" ]; do sleep 1; done
n=$(( $(cat "$COUNTER" 2>/dev/null || echo 0) + 1 ))
echo "$n" > "$COUNTER"
echo "attempt $n"
[ "$n" -gt 1 ] || { sleep 10; exit 75; }
"""
"""Its count lies outside of its home: a recovery is a new cluster, with an empty one.

The other node ends first: one that has not is taken along with 143, and on Slurm the highest exit code counts.
"""

REFUSED = "echo to stdout; echo to stderr >&2; exit 78"


def launch(lab: Any, name: str, run: str, nodes: int = 1, **envs: str) -> int:
    """A managed job under a name that no other job has; its number."""
    import sky

    unique = f"ft-{name}-{uuid.uuid4().hex[:6]}"
    task = sky.Task.from_yaml_config({
        "name": unique,
        "num_nodes": nodes,
        "resources": {**lab.resources, "job_recovery": {"recover_on_exit_codes": RECOVERED}},
        "envs": envs,
        "run": run,
    })  # fmt: skip
    ids, _ = sky.get(sky.jobs.launch(task, name=unique))
    return int(ids[0])


def record(job: int) -> Any:
    import sky

    (found,) = sky.get(sky.jobs.queue_v2(refresh=False, job_ids=[job], fields=FIELDS))[0]
    return found


def seen(job: int, last: Callable[[Any], bool], timeout_s: float = 600) -> tuple[list[str], Any]:
    """Every status until `last` holds, each once in a row, and the record that it holds for."""
    statuses: list[str] = []
    deadline = time.monotonic() + timeout_s
    while True:
        found = record(job)
        if not statuses or statuses[-1] != found.status.value:
            statuses.append(found.status.value)
        if last(found):
            return statuses, found
        assert time.monotonic() < deadline, (statuses, found.details)
        assert not found.status.is_terminal(), (statuses, found.details, log(job))
        time.sleep(5)  # The server starts a process for each question.


def ended(found: Any) -> bool:
    return found.status.is_terminal()


def log(job: int) -> str:
    import sky

    text = io.StringIO()
    sky.jobs.tail_logs(job_id=job, follow=False, output_stream=text)
    return text.getvalue()


@pytest.fixture(scope="module")
def short(sky_lab: Any) -> dict[str, int]:
    """Jobs that end by themselves, started together: each waits for most of its time."""
    counter = str(sky_lab.shared / "again")
    again = launch(sky_lab, "again", AGAIN, nodes=2, COUNTER=counter)
    refused = launch(sky_lab, "refused", REFUSED)
    return {"again": again, "refused": refused}


def test_the_check_finds_the_infra(sky_lab: Any) -> None:
    import sky
    from sky.client import sdk

    cloud = sky_lab.infra.partition("/")[0]
    found = sky.get(sdk.check(infra_list=(cloud,), verbose=False))
    (workspace,) = found.values()
    assert {name.lower(): kinds for name, kinds in workspace.items()}[cloud].count("compute") == 1


def test_an_exit_code_that_is_listed_recovers(short: Any) -> None:
    job = short["again"]
    _, end = seen(job, ended)
    assert (end.status.value, end.recovery_count, end.failure_reason) == ("SUCCEEDED", 1, None)
    lines = log(job).splitlines()
    assert any(line.endswith("attempt 2") for line in lines)
    for rank in (0, 1):
        text = f"rank {rank} of 2 gpus 2 ips 127.0.0.11 127.0.0.12"
        assert any(line.endswith(text) for line in lines), lines


def test_any_other_exit_code_fails_at_once(short: Any) -> None:
    job = short["refused"]
    statuses, end = seen(job, ended)
    assert (end.status.value, end.recovery_count) == ("FAILED", 0)
    assert "RECOVERING" not in statuses
    assert end.failure_reason.startswith("Job exited with exit code 78 (user program failure).")
    text = log(job)
    assert "to stdout" in text
    assert "to stderr" in text
