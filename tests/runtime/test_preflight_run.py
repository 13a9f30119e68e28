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

from ft.runtime.preflight.parse import parse

HOST = socket.gethostname()


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
    assert others.count("# Plateau bus bandwidth: n/a") == 3
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
    assert [(link["first"], link["second"], link["num_wrong"]) for link in data["links"]] == [
        (0, 1, 0)
    ]
    table = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(table) == 24
    assert all(len(line.split()) == 13 for line in table)


@pytest.mark.slow
def test_every_op_gives_every_rank_what_it_should(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    ops = (
        "all_reduce", "all_gather", "reduce_scatter", "alltoall", "broadcast", "reduce",
        "sendrecv", "gather", "scatter",
    )  # fmt: skip
    arguments = ("--min-bytes", "60", "--max-bytes", "130", "--step-bytes", "35", "--iters", "2")
    chosen = tuple(word for op in ops for word in ("--op", op))
    done = preflight(out, num_ranks=3, disk=tmp_path, arguments=(*arguments, *chosen))
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    assert (data["verdict"], data["unsupported"]) == ("pass", {})
    # 60, 95 and 130 B; one third of them in multiples of 16 B are 16, 16 and 32 B; and an odd size.
    for op in ops:
        if op in {"all_reduce", "broadcast", "reduce", "sendrecv"}:
            expected = [(60, 15), (92, 23), (128, 32), (12, 3)]
        else:
            expected = [(48, 4), (96, 8), (36, 3)]
        assert sizes_and_counts(data, op) == expected, op
    wrong = {(row["op"], row["out_of_place"]["num_wrong"]) for row in data["rows"]}
    assert wrong == {(op, 0) for op in ops}
    unchecked = {row["op"] for row in data["rows"] if row["in_place"]["num_wrong"] is None}
    assert unchecked == {"alltoall", "sendrecv"}
    for row in data["rows"]:
        for half in (row["out_of_place"], row["in_place"]):
            assert half["time_max_us"] >= half["time_us"] > 0
    assert [(link["first"], link["second"]) for link in data["links"]] == [(0, 1), (0, 2), (1, 2)]
    assert {link["num_wrong"] for link in data["links"]} == {0}
    # What a person saw is what the report holds.
    tables = {table.op: table for table in parse(done.stdout)}
    assert list(tables) == list(ops)
    assert {op: len(table.rows) for op, table in tables.items()} == {
        op: len(sizes_and_counts(data, op)) for op in ops
    }
    assert {op: f"{data['average_busbw_gbps'][op]:g}" for op in ops} == {
        op: f"{table.average_busbw_gbps:g}" for op, table in tables.items()
    }


@pytest.mark.slow
def test_two_nodes_have_the_same_report(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nodes = []
    for rank in (0, 1):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
            "--master-addr=127.0.0.1", f"--master-port={port}", "--nproc-per-node=1",
            "--max-restarts=0", "-m", "ft.runtime.preflight",
            "--device", "cpu", "--disk", str(tmp_path), "--min-free-bytes", "1",
            "--json-out", str(tmp_path / f"{rank}.json"),
            "--op", "all_gather", "--min-bytes", "1024", "--max-bytes", "1024",
        ]  # fmt: skip
        nodes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    # Rank 0 speaks for all.
    assert f"2 ranks on 2 nodes, host {HOST}" in outputs[0][0]
    assert outputs[1][0] == ""
    reports = [(tmp_path / f"{rank}.json").read_text() for rank in (0, 1)]
    assert reports[0] == reports[1]
    data = json.loads(reports[0])
    assert (data["verdict"], data["num_nodes"]) == ("pass", 2)
    # The first rank of each node tests its disk.
    assert [bool(rank["disk"]) for rank in data["ranks"]] == [True, True]


# An older torch, whose gloo has no all-to-all, and a machine with little memory.
OLD = """\
import sys
import torch.distributed as dist
from ft.runtime.preflight import node
from ft.runtime.preflight.run import main

def missing(*args, **kwargs):
    raise RuntimeError("ProcessGroupGloo does not support alltoall_base")

dist.all_to_all_single = missing
known = node.memory
node.memory = lambda: {**known(), "available_bytes": 2 * (2**30 + 5 * 3000)}
sys.exit(main())
"""


@pytest.mark.slow
def test_op_that_is_not_there_and_sizes_that_do_not_fit_are_left_out_and_said(
    tmp_path: Path,
) -> None:
    out, driver = tmp_path / "out.json", tmp_path / "driver.py"
    driver.write_text(OLD)
    arguments = ("--op", "alltoall", "--op", "all_reduce", "--min-bytes", "1024")
    done = preflight(
        out, str(driver), num_ranks=2, disk=tmp_path,
        arguments=(*arguments, "--max-bytes", "8192", "--iters", "2"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    why = f"gloo of torch {torch.__version__} has no such op"
    assert (data["verdict"], data["unsupported"]) == ("pass", {"alltoall": why})
    assert f"\n# alltoall: unsupported: {why}\n" in done.stdout
    # Two ranks share what is available, less 1 GiB each, and need five buffers.
    assert "\n# Reducing maxBytes to 3000 due to memory limitation\n" in done.stdout
    assert sizes_and_counts(data, "all_reduce") == [(1024, 256), (2048, 512), (516, 129)]


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
