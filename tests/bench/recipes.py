"""How much CPU time it takes to read, type and check recipes, beside an empty interpreter and bare libraries.

python tests/bench/recipes.py [--runs 15] [--folder FOLDER]

FOLDER: recipes, such as the 109 public ones of Axolotl; default: FT_BENCH_RECIPES, else ../shared/axolotl/examples
beside the checkout. The rows of many recipes are left out where there is no such folder.

Each row is a whole process with cached bytecode; user and system time, which other work on the machine hardly changes.
All rows take turns. The two ratios are of medians: `of python` to the empty interpreter, `of pydantic, yaml` beyond it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
GALLERY = REPO / "recipes" / "ft" / "recipes" / "gallery"
SHARED = REPO.parent / "shared" / "axolotl" / "examples"

PYTHON = "python -c pass"
LIBRARIES = "import pydantic, yaml"
YAML = """
import sys, yaml
for path in sys.argv[1:]:
    with open(path) as file:
        yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
"""
FT = """
import sys
from ft.recipes.facts import Facts
from ft.recipes.load import load
from ft.recipes.normalize import normalize
from ft.recipes.rules import check
for path in sys.argv[1:]:
    check(normalize(load(path)), Facts(files={}))
"""


def recipes_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.y*ml"))


def cpu_s(command: list[str], env: dict[str, str]) -> float:
    """User and system time of one whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def commands(folder: Path) -> dict[str, list[str]]:
    python = [sys.executable, "-c"]
    gallery, many = recipes_in(GALLERY), recipes_in(folder)
    # The longest one: a single recipe is then as slow as it gets.
    one = max(many or gallery, key=lambda path: Path(path).stat().st_size)
    rows = {
        PYTHON: [*python, "pass"],
        "import yaml": [*python, "import yaml"],
        LIBRARIES: [*python, LIBRARIES],
        "import ft.recipes.normalize": [*python, "import ft.recipes.normalize"],
        "yaml, the longest recipe": [*python, YAML, one],
        "ft, the longest recipe": [*python, FT, one],
        f"ft, {len(gallery)} of the gallery": [*python, FT, *gallery],
    }
    if many:
        rows[f"yaml, {len(many)} recipes"] = [*python, YAML, *many]
        rows[f"ft, {len(many)} recipes"] = [*python, FT, *many]
    return rows


def measured(rows: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as cache:
        env = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = cache
        times: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(runs + 1):
            for name, command in rows.items():
                taken = cpu_s(command, env)
                if turn:  # The first one writes the bytecode.
                    times[name].append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=os.environ.get("FT_BENCH_RECIPES", SHARED))
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    times = measured(commands(folder), arguments.runs)
    start = statistics.median(times[PYTHON])
    libraries = statistics.median(times[LIBRARIES]) - start
    print("| process | min ms | median ms | beyond python ms | of python | of pydantic, yaml |")
    print("|---|---|---|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken)
        cells = [min(taken) * 1000, median * 1000, (median - start) * 1000]
        ratios = [median / start, (median - start) / libraries]
        shown = [*(f"{cell:.0f}" for cell in cells), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {name} | {' | '.join(shown)} |")
    if not folder.is_dir():
        print(
            f"\nLeft out: many recipes, because there is no {folder}; --folder names another one."
        )


if __name__ == "__main__":
    main()
