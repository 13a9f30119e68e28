"""What `ft cloud exec` runs on a node of SkyPilot's, for whoever comes by ssh: with another environment and home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.backends.sky_beside import SEGMENT

RUN = "20261123-174512-3f9a"


def segment(home: Path, run: str, rank: int) -> subprocess.Popen[bytes]:
    """A process that looks as the one of a node does."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    job = json.dumps({"run": run, "store": "s3://bucket-one/run"})
    process = subprocess.Popen(
        [sys.executable, "-c", code, SEGMENT, job],
        env={**os.environ, "HOME": str(home), "SKYPILOT_NODE_RANK": str(rank), "FLAVOUR": f"{run} {rank}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Path]:
    """Two nodes of a run and one of another, on one machine."""
    for rank in (0, 1):
        (tmp_path / ".ft-run" / RUN / f"node{rank}-segment4").mkdir(parents=True)
    processes = [
        segment(tmp_path, RUN, 0),
        segment(tmp_path, RUN, 1),
        segment(tmp_path, "other", 0),
    ]
    yield tmp_path
    for process in processes:
        process.communicate()


def beside(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "ft.launcher.backends.sky_beside", *words]
    env = {**os.environ, "HOME": "/", "FLAVOUR": "of the terminal"}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=60, **more
    )


def test_a_command_has_the_environment_and_the_folder_of_its_node(nodes: Path) -> None:
    for rank in ("0", "1"):
        script = 'pwd; echo "$FLAVOUR" >&2; cat; exit 3'
        done = beside(RUN, rank, "sh", "-c", script, input="typed")
        assert (done.returncode, done.stdout, done.stderr) == (
            3, f"{nodes}/.ft-run/{RUN}/node{rank}-segment4\ntyped", f"{RUN} {rank}\n",
        )  # fmt: skip
    assert beside(RUN, "0", "sh", "-c", "kill -9 $$").returncode == 137
    assert beside(RUN, "0", "no-such-command").returncode == 127


def test_where_nothing_of_the_run_lives_it_says_so(nodes: Path) -> None:
    for run, rank in ((RUN, "2"), ("20261123-174512-0000", "0")):
        done = beside(run, rank, "true")
        assert (done.returncode, done.stdout) == (8, "")
        assert done.stderr == (f"error: nothing of run {run} runs on this machine as node {rank}\n")
