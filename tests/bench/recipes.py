"""How long it takes to read, type and check recipes, beside an empty interpreter and a bare YAML reader.

python tests/bench/recipes.py [--runs 15] [--folder FOLDER]        FOLDER: recipes; default: the gallery
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

GALLERY = Path(__file__).resolve().parents[2] / "recipes" / "ft" / "recipes" / "gallery"

YAML = """
import sys, yaml
for path in sys.argv[1:]:
    yaml.load(open(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
"""
PYDANTIC = "import pydantic, yaml"
FT = """
import sys
from ft.recipes.facts import Facts
from ft.recipes.load import load
from ft.recipes.normalize import normalize
from ft.recipes.rules import check
for path in sys.argv[1:]:
    check(normalize(load(path)), Facts(files={}))
"""


def seconds(command: list[str]) -> float:
    """Wall time of one whole process."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=GALLERY)
    arguments = parser.parse_args()
    paths = sorted(str(p) for p in arguments.folder.rglob("*.y*ml"))
    # The longest one: a single recipe is then as slow as it gets.
    one = max(paths, key=lambda path: Path(path).stat().st_size)
    python = [sys.executable, "-c"]
    commands = {
        "python -c pass": [*python, "pass"],
        "import pydantic, yaml": [*python, PYDANTIC],
        "yaml, 1 recipe": [*python, YAML, one],
        "ft, 1 recipe": [*python, FT, one],
        f"yaml, {len(paths)} recipes": [*python, YAML, *paths],
        f"ft, {len(paths)} recipes": [*python, FT, *paths],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(arguments.runs + 1):
        # One after the other in turn, so that a slow moment of the machine hits all of them.
        for name, command in commands.items():
            taken = seconds(command)
            if turn:
                times[name].append(taken)
    start = statistics.median(times["python -c pass"])
    print(f"{'what':<22} {'min s':>7} {'median s':>9} {'max s':>7} {'beyond start s':>15}")
    for name, taken in times.items():
        median = statistics.median(taken)
        beyond = median - start
        print(f"{name:<22} {min(taken):7.3f} {median:9.3f} {max(taken):7.3f} {beyond:15.3f}")


if __name__ == "__main__":
    main()
