"""How long `ft --help` takes, beside `trl --help` and an empty interpreter. Prints a table.

python tests/bench/help.py [--runs 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent


def seconds(command: list[str]) -> float:
    """Wall time of one whole process, its output thrown away as a pipe would take it."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "ft --help": [str(BIN / "ft"), "--help"],
        "trl --help": [str(BIN / "trl"), "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        # One after the other in turn, so that a slow moment of the machine hits all of them.
        for name, command in commands.items():
            taken = seconds(command)
            if turn:
                times[name].append(taken)
    print(f"{'command':<16} {'min s':>8} {'median s':>9} {'max s':>8} {'of trl':>8}")
    peer = statistics.median(times["trl --help"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<16} {min(taken):8.3f} {median:9.3f} {max(taken):8.3f} {median / peer:8.2f}")


if __name__ == "__main__":
    main()
