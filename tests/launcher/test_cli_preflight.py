"""`ft preflight` as a process: its flags, its exit codes, and that it leaves nobody behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ft.launcher.cli.preflight import Sizes, size_of
from ft.recipes.errors import UsageError

FT = [sys.executable, "-P", "-m", "ft.launcher.cli.app", "preflight"]
SHORT = ["-b", "1K", "-e", "4K", "-f", "4", "-n", "2", "--device", "cpu"]


def preflight(
    folder: Path, *arguments: str, program: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", program, "preflight"] if program else FT
    return subprocess.run(
        [*command, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("text", "size"),
    [("8", 8), ("64K", 65_536), ("128m", 134_217_728), ("1G", 1_073_741_824), (" 4k ", 4096)],
)
def test_sizes_are_written_as_for_nccl_tests(text: str, size: int) -> None:
    assert size_of("-b", text) == size


@pytest.mark.parametrize("text", ["", "0", "-8", "8Q", "1.5M", "8 M", "M", "0x10", "²"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        size_of("-b", text)
    assert caught.value.message == f"-b {text}: expected a size such as 8, 64K, 128M or 1G"


def test_number_of_sizes() -> None:
    # 8, 16, 32, 64; 8 and 24, since 80 is beyond 64; 8, 18, 28, 38.
    assert Sizes(8, 64, 2, None).count == 4
    assert Sizes(8, 64, 3, None).count == 2
    assert Sizes(8, 40, 2, 10).count == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "8Q"], "-b 8Q: expected a size such as 8, 64K, 128M or 1G"),
        (["-e", "big"], "-e big: expected a size such as 8, 64K, 128M or 1G"),
        (["-b", "16", "-e", "8"], "-b 16 -e 8: expected the larger size after -e"),
        (["-f", "1"], "-f 1: expected 2 or more; for equal steps take -i"),
        (["-f", "2", "-i", "8"], "-f 2 -i 8: expected one of them"),
        (
            ["-e", "1G", "-i", "8"],
            "these are 134217728 sizes, expected at most 1000: take a larger -i",
        ),
        (
            ["--op", "allreduce"],
            "--op allreduce: expected one of all_reduce, all_gather, reduce_scatter, alltoall, broadcast, reduce, "
            "sendrecv, gather, scatter",
        ),
        (["-n", "0"], "-n 0: expected 1 or more"),
        (["-w", "-1"], "-w -1: expected 0 or more"),
        (["-c", "2"], "-c 2: expected 0 or 1"),
        (["-g", "0"], "-g 0: expected 1 or more"),
        (["--device", "tpu"], "--device tpu: expected cpu or cuda"),
        (["--timeout", "0"], "--timeout 0: expected more than 0 seconds"),
        (["--timeout", "nan"], "--timeout nan: expected more than 0 seconds"),
    ],
)
def test_bad_flags_say_what_was_expected(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = preflight(tmp_path, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    done = preflight(tmp_path, "--disk", "absent")
    assert (done.returncode, done.stderr) == (8, "error: --disk absent: no such folder\n")


def test_without_torch_it_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from ft.launcher.cli.app import main\n"
        "main(sys.argv[1:])"
    )
    done = preflight(tmp_path, program=program)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "error: a preflight here needs torch\nhint: pip install 'ft-launcher[train]'\n"
    )


# -------------------------------------------------------------------------------------------- whole


@pytest.mark.slow
def test_it_passes_on_two_processes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # A module of the current folder is not taken for the real one.
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')")
    done = preflight(tmp_path, *SHORT, "-g", "2", "--op", "broadcast")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.match(r"# ft preflight: device cpu, backend gloo, 2 ranks, host ", lines[0])
    # 1 KiB, 4 KiB, and an odd number of elements.
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [row[:5] for row in rows] == [
        ["1024", "256", "float", "none", "0"],
        ["4096", "1024", "float", "none", "0"],
        ["260", "65", "float", "none", "0"],
    ]
    assert re.fullmatch(r"# Verdict              : PASS in \d+\.\d s", lines[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


@pytest.mark.slow
def test_json_is_all_that_stands_on_stdout(tmp_path: Path) -> None:
    done = preflight(tmp_path, *SHORT, "-g", "1", "--json", "--disk", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["verdict"], report["world_size"]) == ("pass", 1)
    assert list(report["average_busbw_gbps"]) == ["all_reduce", "all_gather", "reduce_scatter"]
    assert "# Verdict              : PASS" in done.stderr


@pytest.mark.slow
def test_what_has_to_be_set_up_differently_ends_with_78(tmp_path: Path) -> None:
    # No machine has so many GPUs, if it has any.
    done = preflight(tmp_path, "--device", "cuda", "-g", "17")
    assert done.returncode == 78
    assert re.search(r"^\S+: 17 GPUs asked for, ", done.stderr)
    assert "# Verdict              : FAIL (CONFIG) in " in done.stdout
    assert "Traceback" not in done.stderr


def processes_of(session: str) -> list[int]:
    """Living processes with this text in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if session.encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_who_stops_it_stops_all_of_it(tmp_path: Path, signum: int, code: int) -> None:
    # It would take minutes. The name of the folder stands in every command line.
    disk = tmp_path / "disk-of-this-test"
    disk.mkdir()
    child = subprocess.Popen(
        [*FT, "--device", "cpu", "-g", "2", "-b", "8", "-e", "8M", "-n", "500", "--disk", str(disk)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        for line in child.stdout:
            # Rows come as they are measured.
            if re.match(r" +64 ", line):
                break
        # Itself, torchrun and two ranks.
        assert len(processes_of(str(disk))) == 4
        child.send_signal(signum)
        assert child.wait(timeout=30) == code
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 20
    while processes_of(str(disk)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
