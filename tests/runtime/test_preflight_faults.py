"""Broken machines: every fault is found, the rank named, and all of them end in time. Real processes.

A fault is done to one rank from outside of the package, by a driver that torchrun starts instead.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HOST = socket.gethostname()
TIMEOUT_S = 4.0
IN_TIME_S = TIMEOUT_S + 10
"""The longest that a verdict may take, counted from when the ranks have loaded torch."""

DRIVER = """\
import os, signal, socket, sys, time
import torch
import torch.distributed as dist
from ft.runtime.preflight.run import main

RANK = int(os.environ["RANK"])
{fault}
sys.exit(main())
"""

AT_ALL_REDUCE = """\
real = dist.all_reduce

def faulty(tensor, *args, **kwargs):
    if RANK == {rank} and tensor.numel() == 1024:
        {before}
    work = real(tensor, *args, **kwargs)
    if RANK == {rank} and tensor.numel() == 1024:
        {after}
    return work

dist.all_reduce = faulty
"""


def at_all_reduce(rank: int, *, before: str = "pass", after: str = "pass") -> str:
    """One rank runs these statements around each all_reduce of 1024 elements."""
    return AT_ALL_REDUCE.format(rank=rank, before=before, after=after)


def run(
    folder: Path, fault: str, *, num_ranks: int = 2, arguments: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What torchrun said, and the report ({} without one)."""
    driver, out = folder / "driver.py", folder / "out.json"
    driver.write_text(DRIVER.format(fault=fault))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0",
        "--nproc-per-node", str(num_ranks), str(driver),
        "--device", "cpu", "--disk", str(folder), "--min-free-bytes", "1000",
        "--json-out", str(out), "--timeout-s", str(TIMEOUT_S),
        "--op", "all_reduce", "--min-bytes", "1024", "--max-bytes", "16384", "--step-factor", "4",
        "--iters", "2", *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    report = json.loads(out.read_text()) if out.exists() else {}
    if report:
        assert report["seconds"] < IN_TIME_S
    return done, report


def verdict(report: dict[str, Any]) -> tuple[str, int, str]:
    return report["verdict"], report["exit_code"], report["message"]


def test_a_wrong_value_is_found_and_the_rank_is_named(tmp_path: Path) -> None:
    fault = at_all_reduce(1, after="work.wait(); tensor[7] += 1")
    done, report = run(tmp_path, fault)
    # torchrun ends with 1 whatever its ranks say; what they said stands in its report.
    assert done.returncode == 1
    assert re.search(r"exitcode +: 77 ", done.stderr)
    message = (
        f"rank 1 on {HOST}: 1 wrong element after all_reduce of 1024 elements (out-of-place), "
        "and some after 1 other test"
    )
    assert verdict(report) == ("fail", 77, message)
    assert f"preflight: {message}\n" in done.stderr
    # Two tests, whatever the number of elements.
    assert done.stdout.count("# Out of bounds values : 2 FAILED\n") == 1
    wrong = [
        (row["count"], row["out_of_place"]["num_wrong"], row["in_place"]["num_wrong"])
        for row in report["rows"]
    ]
    assert wrong == [(256, 0, 0), (1024, 1, 1), (4096, 0, 0), (257, 0, 0)]


def test_without_the_check_nobody_looks(tmp_path: Path) -> None:
    fault = at_all_reduce(1, after="work.wait(); tensor[7] += 1")
    done, report = run(tmp_path, fault, arguments=("--check", "0"))
    assert done.returncode == 0
    assert verdict(report) == ("pass", 0, "passed")
    halves = [row[place] for row in report["rows"] for place in ("out_of_place", "in_place")]
    assert {half["num_wrong"] for half in halves} == {None}
    assert len(re.findall(r" N/A .* N/A$", done.stdout, re.MULTILINE)) == 4


def test_a_rank_that_is_slow_to_start_a_collective_is_named(tmp_path: Path) -> None:
    fault = """\
real = dist.all_reduce

def slow(*args, **kwargs):
    if RANK == 1:
        time.sleep(0.25)
    return real(*args, **kwargs)

dist.all_reduce = slow
"""
    done, report = run(tmp_path, fault)
    assert (done.returncode, report["verdict"], report["exit_code"]) == (0, "warn", 0)
    [warning] = report["warnings"]
    assert (warning["rank"], warning["host"], warning["kind"]) == (1, HOST, "warn")
    assert re.fullmatch(
        r"it is a straggler: all_reduce takes it 25\d ms to start, \S+ times as long as the other "
        "ranks",
        warning["message"],
    )
    assert f"preflight: warning: rank 1 on {HOST}: it is a straggler" in done.stderr
    assert re.search(r"^# Verdict              : WARN in ", done.stdout, re.MULTILINE)


def test_a_rank_with_a_slow_device_is_named(tmp_path: Path) -> None:
    fault = """\
real = torch.Tensor.__matmul__

def slow(left, right):
    if RANK == 0:
        time.sleep(0.25)
    return real(left, right)

torch.Tensor.__matmul__ = slow
"""
    done, report = run(tmp_path, fault)
    assert (done.returncode, report["verdict"]) == (0, "warn")
    [warning] = report["warnings"]
    assert warning["rank"] == 0
    assert warning["message"].startswith("it is a straggler: a matrix product takes it 2")


def test_a_rank_that_multiplies_otherwise_is_a_bad_node(tmp_path: Path) -> None:
    fault = """\
real = torch.Tensor.__matmul__

def wrong(left, right):
    product = real(left, right)
    if RANK == 2 and len(product) == 512:
        product[3, 4] += 1
    return product

torch.Tensor.__matmul__ = wrong
"""
    done, report = run(tmp_path, fault, num_ranks=3)
    assert (done.returncode, report["exit_code"]) == (1, 77)
    assert report["message"].startswith(f"rank 2 on {HOST}: the product of the same two matrices")
    assert report["rows"] == []


def test_a_slow_link_is_named(tmp_path: Path) -> None:
    fault = """\
real = dist.batch_isend_irecv

def slow(ops):
    if RANK == 1 and ops[0].peer == 2:
        time.sleep(0.07)
    return real(ops)

dist.batch_isend_irecv = slow
"""
    done, report = run(tmp_path, fault, num_ranks=3)
    assert (done.returncode, report["verdict"]) == (0, "warn")
    [warning] = report["warnings"]
    assert warning["rank"] == 1
    assert warning["message"].startswith("the link rank 1 - rank 2 is slow: ")
    links = [(link["first"], link["second"]) for link in report["links"]]
    assert links == [(0, 1), (0, 2), (1, 2)]
    assert "; worst rank 1 - rank 2: " in done.stdout


def test_a_link_that_changes_data_is_a_bad_node(tmp_path: Path) -> None:
    fault = """\
real = dist.batch_isend_irecv

def corrupt(ops):
    if RANK == 1 and ops[0].op is dist.isend and ops[0].tensor.numel() > 1:
        ops[0].tensor[5] = 300
    return real(ops)

dist.batch_isend_irecv = corrupt
"""
    done, report = run(tmp_path, fault)
    assert done.returncode == 1
    message = (
        f"rank 0 on {HOST}: 1 wrong elements between it and rank 1 on {HOST}, sent there and back"
    )
    assert verdict(report) == ("fail", 77, message)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_is_named_by_those_who_live(tmp_path: Path, rank: int) -> None:
    fault = at_all_reduce(rank, before="os.kill(os.getpid(), signal.SIGKILL)")
    done, report = run(tmp_path, fault)
    assert done.returncode == 1
    assert (report["verdict"], report["exit_code"]) == ("fail", 77)
    first = report["findings"][0]
    assert (first["rank"], first["host"], first["kind"]) == (rank, HOST, "silent")
    assert re.fullmatch(
        r"its process \d+ ended without a report during all_reduce of 1024 elements "
        r"\(out-of-place\)",
        first["message"],
    )
    assert f"preflight: rank {rank} on {HOST}: its process " in done.stderr


def test_a_rank_that_hangs_in_a_collective_ends_all_of_them(tmp_path: Path) -> None:
    done, report = run(tmp_path, at_all_reduce(1, before="signal.pause()"))
    assert done.returncode == 1
    # Rank 0 could only wait for it, so rank 1 is named first.
    name = "all_reduce of 1024 elements (out-of-place)"
    message = f"rank 1 on {HOST}: {name} did not end within 6 s (1 more finding)"
    assert verdict(report) == ("fail", 77, message)
    assert [(f["rank"], f["kind"]) for f in report["findings"]] == [(1, "stuck"), (0, "failed")]
    assert report["findings"][1]["message"].startswith(f"{name} failed: Timed out")
    # The row before it had been measured by both.
    assert [row["count"] for row in report["rows"]] == [256]


def test_ranks_with_different_world_sizes_are_a_configuration_error(tmp_path: Path) -> None:
    done, report = run(tmp_path, 'if RANK == 1:\n    os.environ["WORLD_SIZE"] = "3"')
    assert done.returncode == 1
    message = (
        f"{HOST}: rank 1 was started with WORLD_SIZE 3, rank 0 on {HOST} with 2. "
        "Start all ranks with the same one."
    )
    assert verdict(report) == ("fail", 78, message)


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    done, report = run(tmp_path, "if RANK == 1:\n    signal.pause()")
    assert done.returncode == 1
    assert (report["exit_code"], report["findings"][0]["kind"]) == (77, "silent")
    assert re.fullmatch(
        rf"rank 1 on {HOST}: it did not join within 8 s: not started, or it cannot reach \S+:\d+",
        report["message"],
    )


def test_a_port_that_nobody_listens_on_is_named(tmp_path: Path) -> None:
    fault = """\
if RANK == 1:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(closed)
"""
    done, report = run(tmp_path, fault)
    assert done.returncode == 1
    # It says so itself, and rank 0 misses it.
    assert re.search(
        rf"^preflight: rank 1 on {HOST}: the store of torchrun at 127.0.0.1:\d+ cannot be reached: "
        r"\[Errno 111\] Connection refused$",
        done.stderr,
        re.MULTILINE,
    )
    assert report["exit_code"] == 77
    assert re.fullmatch(
        rf"rank 1 on {HOST}: it never joined: not started, or it cannot reach \S+:\d+",
        report["message"],
    )


def test_a_bug_in_one_rank_is_a_traceback_and_no_verdict_on_the_machine(tmp_path: Path) -> None:
    done, report = run(tmp_path, at_all_reduce(1, before="raise TypeError('a bug')"))
    assert (done.returncode, report) == (1, {})
    assert "TypeError: a bug" in done.stderr
    assert "preflight: rank 1 met a bug, not a broken machine: TypeError: a bug\n" in done.stderr
    assert re.search(r"exitcode +: 1 ", done.stderr)


def test_when_torchrun_is_told_to_end_there_is_no_verdict(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    fault = at_all_reduce(1, before=f"open({str(begun)!r}, 'w').close(); signal.pause()")
    driver, out = tmp_path / "driver.py", tmp_path / "out.json"
    driver.write_text(DRIVER.format(fault=fault))
    child = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(driver), "--device", "cpu", "--disk", str(tmp_path), "--min-free-bytes", "1",
            "--json-out", str(out),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not begun.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode not in {0, None}
    assert not out.exists()


def test_a_sound_machine_is_not_suspected(repo: Path) -> None:
    script = repo / "tests/bench/preflight_false_alarms.py"
    done = subprocess.run(
        [sys.executable, str(script), "--runs", "3"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("3 runs on 2 ranks, 0 false alarms; ")
