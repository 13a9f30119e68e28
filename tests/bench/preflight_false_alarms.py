"""How often the preflight before each training finds fault with a machine that has none. Prints a count.

python tests/bench/preflight_false_alarms.py [--runs 100] [--ranks 2] [--per-start 20]

Loading torch takes longer than a preflight on the CPU, so `--per-start` of them follow each other in the same
processes: each with a process group, a report and a verdict of its own, the whole way of `ft.runtime.preflight`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DRIVER = """
import os, sys
from ft.runtime.preflight.run import main
folder, count = sys.argv[1], int(sys.argv[2])
codes = []
for i in range(count):
    # As if torchrun had started the ranks anew: the notes of the last one are not read again.
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(i)
    codes.append(main([
        "--device", "cpu", "--disk", folder, "--min-free-bytes", "1",
        "--json-out", f"{folder}/{i}.json", "--timeout-s", "60",
    ]))
sys.exit(max(codes))
"""


def preflights(count: int, num_ranks: int) -> list[dict[str, object]]:
    """Reports of `count` preflights in the same processes."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder) / "driver.py"
        driver.write_text(DRIVER)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0",
            "--nproc-per-node", str(num_ranks), str(driver), folder, str(count),
        ]  # fmt: skip
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        reports = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        if len(reports) < count:
            sys.exit(f"only {len(reports)} of {count} reports:\n{done.stderr}")
        return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--per-start", type=int, default=20)
    given = parser.parse_args()
    reports: list[dict[str, object]] = []
    began = time.perf_counter()
    while len(reports) < given.runs:
        missing = given.runs - len(reports)
        reports += preflights(min(given.per_start, missing), given.ranks)
    seconds = [float(str(report["seconds"])) for report in reports]
    alarms = [report for report in reports if report["verdict"] != "pass"]
    for report in alarms:
        print(f"{report['verdict']}: {report['message']}")
    load = os.getloadavg()[0]
    print(
        f"{len(reports)} runs on {given.ranks} ranks, {len(alarms)} false alarms; a run took "
        f"{statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s at most; all of them "
        f"{time.perf_counter() - began:.0f} s with their starts, load {load:.1f}"
    )
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
