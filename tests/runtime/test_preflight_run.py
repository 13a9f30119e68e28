"""Whole preflights under torchrun: real processes, gloo, one JSON file, one exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HOST = socket.gethostname()

# What a broken machine does, done to the collective of one rank from outside of the package.
DRIVER = """\
import os, signal, sys
import torch.distributed as dist
from ft.runtime.preflight.run import main

real = dist.all_reduce

def faulty(tensor, *args, **kwargs):
    if dist.get_rank() == 1 and tensor.numel() == 1024:
        {before}
    work = real(tensor, *args, **kwargs)
    if dist.get_rank() == 1 and tensor.numel() == 1024:
        {after}
    return work

dist.all_reduce = faulty
sys.exit(main())
"""


def preflight(
    json_out: Path, *program: str, num_ranks: int, disk: Path, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(num_ranks), "--max-restarts=0",
        *(program or ("-m", "ft.runtime.preflight")),
        "--device", "cpu", "--disk", str(disk), "--min-free-bytes", "1000",
        "--json-out", str(json_out), *arguments,
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=env
    )


def faulty_preflight(
    folder: Path, *, before: str = "pass", after: str = "pass", timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Two ranks; rank 1 runs these statements around each all_reduce of 1024 elements."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER.format(before=before, after=after))
    return preflight(
        folder / "out.json",
        str(driver),
        num_ranks=2,
        disk=folder,
        arguments=("--timeout-s", str(timeout_s)),
    )


def sizes_and_counts(data: dict[str, Any], op: str) -> list[tuple[int, int]]:
    return [(row["size_bytes"], row["count"]) for row in data["rows"] if row["op"] == op]


@pytest.mark.slow
def test_one_process_passes_without_bus_bandwidth(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("an older verdict")
    done = preflight(out, num_ranks=1, disk=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == (
        f"# ft preflight: device cpu, backend gloo, 1 rank, host {HOST}, torch {torch.__version__}"
    )
    assert others.count("# Out of bounds values : 0 OK") == 3
    assert others.count("# Avg bus bandwidth    : n/a") == 3
    assert re.fullmatch(r"# Verdict              : PASS in \d+\.\d s", others[-1])
    data = json.loads(out.read_text())
    assert (data["verdict"], data["exit_code"], data["world_size"]) == ("pass", 0, 1)
    halves = [row[place] for row in data["rows"] for place in ("out_of_place", "in_place")]
    assert {half["busbw_gbps"] for half in halves} == {None}
    assert {half["num_wrong"] for half in halves} == {0}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.json"]


@pytest.mark.slow
def test_two_processes_pass_and_agree_on_every_element(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = preflight(out, num_ranks=2, disk=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    assert (data["verdict"], data["reason"], data["message"]) == ("pass", "done", "passed")
    assert [(rank["rank"], rank["host"]) for rank in data["ranks"]] == [(0, HOST), (1, HOST)]
    assert [bool(rank["disk"]) for rank in data["ranks"]] == [True, False]
    assert sizes_and_counts(data, "all_reduce") == [
        (1024, 256), (4096, 1024), (16384, 4096), (65536, 16384),
        (262144, 65536), (1048576, 262144), (4194304, 1048576), (262148, 65537),
    ]  # fmt: skip
    totals = [
        (1024, 128), (4096, 512), (16384, 2048), (65536, 8192),
        (262144, 32768), (1048576, 131072), (4194304, 524288), (524296, 65537),
    ]  # fmt: skip
    assert sizes_and_counts(data, "all_gather") == totals
    assert sizes_and_counts(data, "reduce_scatter") == totals
    # Two ranks: 2(n-1)/n is 1, (n-1)/n is 1/2.
    factors = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5}
    for row in data["rows"]:
        for half in (row["out_of_place"], row["in_place"]):
            assert half["num_wrong"] == 0
            assert half["algbw_gbps"] == row["size_bytes"] / half["time_us"] / 1e3
            assert half["busbw_gbps"] == half["algbw_gbps"] * factors[row["op"]]
    table = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(table) == 24
    assert all(len(line.split()) == 13 for line in table)


@pytest.mark.slow
def test_one_wrong_element_on_one_rank_is_found_and_the_rank_is_named(tmp_path: Path) -> None:
    done = faulty_preflight(tmp_path, after="tensor[7] += 1")
    # torchrun ends with 1 whatever its ranks say; what they said stands in its report.
    assert done.returncode == 1
    assert re.search(r"exitcode +: 77 ", done.stderr)
    message = (
        f"rank 1 on {HOST}: 1 wrong element after all_reduce of 1024 elements (out-of-place), "
        "and some after 1 other test"
    )
    assert f"preflight: {message}\n" in done.stderr
    assert done.stdout.count("# Out of bounds values : 2 FAILED\n") == 1
    assert done.stdout.count("# Out of bounds values : 0 OK\n") == 2
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["verdict"], data["exit_code"]) == ("fail", 77)
    assert (data["reason"], data["message"]) == ("bad_node", message)
    wrong = [
        (row["op"], row["count"], row["out_of_place"]["num_wrong"], row["in_place"]["num_wrong"])
        for row in data["rows"]
        if row["out_of_place"]["num_wrong"] or row["in_place"]["num_wrong"]
    ]
    assert wrong == [("all_reduce", 1024, 1, 1)]


@pytest.mark.slow
def test_rank_that_hangs_in_a_collective_ends_all_of_them(tmp_path: Path) -> None:
    done = faulty_preflight(tmp_path, before="signal.pause()", timeout_s=3)
    assert done.returncode == 1
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["verdict"], data["exit_code"], data["reason"]) == ("fail", 77, "bad_node")
    # Rank 0 could only wait for it, so rank 1 is named first.
    name = "all_reduce of 1024 elements (out-of-place)"
    assert data["message"] == (f"rank 1 on {HOST}: {name} did not end within 5 s (1 more finding)")
    assert [(f["rank"], f["kind"]) for f in data["findings"]] == [(1, "stuck"), (0, "failed")]
    assert data["findings"][1]["message"].startswith(f"{name} failed: Timed out")
    # The row before it had been measured by both.
    assert sizes_and_counts(data, "all_reduce") == [(1024, 256)]


@pytest.mark.slow
def test_bug_in_one_rank_is_a_traceback_and_ends_all_of_them(tmp_path: Path) -> None:
    done = faulty_preflight(tmp_path, before="raise TypeError('a bug')")
    assert done.returncode == 1
    assert "TypeError: a bug" in done.stderr
    assert re.search(r"exitcode +: 1 ", done.stderr)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_too_little_disk_is_a_configuration_error(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ("--min-free-bytes", str(2**70))
    done = preflight(out, num_ranks=2, disk=tmp_path, arguments=arguments)
    assert done.returncode == 1
    assert re.search(r"exitcode +: 78 ", done.stderr)
    data = json.loads(out.read_text())
    assert (data["verdict"], data["exit_code"], data["reason"]) == ("fail", 78, "config")
    assert data["message"].startswith(f"{HOST}: {tmp_path} has ")
    assert " GiB free, but this run needs 1099511627776.0 GiB. " in data["message"]
    assert f"preflight: {data['message']}\n" in done.stderr
    # Nothing was measured on a node that is refused.
    assert data["rows"] == []
    assert len(data["findings"]) == 1


@pytest.mark.slow
def test_report_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    out = tmp_path / "absent" / "out.json"
    done = preflight(out, num_ranks=1, disk=tmp_path)
    assert done.returncode == 1
    assert re.search(r"exitcode +: 78 ", done.stderr)
    assert (
        f"preflight: {HOST}: --json-out {out} cannot be written: No such file or directory. "
        "Name a file in a folder that exists and can be written to.\n"
    ) in done.stderr
    assert re.search(r"# Verdict              : FAIL \(CONFIG\) in \d+\.\d s\n$", done.stdout)


@pytest.mark.slow
def test_without_torchrun_it_says_what_to_do(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [
            sys.executable, "-m", "ft.runtime.preflight", "--device", "cpu",
            "--disk", str(tmp_path), "--min-free-bytes", "1", "--json-out", str(tmp_path / "o"),
        ],
        capture_output=True, text=True, timeout=60, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: 'RANK' is not set: start it with python -m torch.distributed.run\n"
    )
