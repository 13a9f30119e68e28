"""python tests/e2e/sky_lab up|status|down [--sky PYTHON]: the lab by hand. `up` also prints what a client needs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sky_lab.lab import REPO, lab  # noqa: E402  # Known by this path only.
from sky_lab.processes import LabError  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("order", choices=("up", "status", "down"))
    parser.add_argument("--sky", type=Path, default=REPO / ".venv-sky" / "bin" / "python")
    options = parser.parse_args()
    found = lab(options.sky)
    try:
        if options.order == "down":
            found.down()
        elif options.order == "up":
            found.up(until_parent_ends=False)
    except LabError as error:
        found.down()
        print(error, file=sys.stderr)
        return 1
    print(found.status(), end="", file=sys.stderr)
    if options.order == "up":
        for name, value in found.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"export SLURM_CONF={shlex.quote(str(found.cluster.conf))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
