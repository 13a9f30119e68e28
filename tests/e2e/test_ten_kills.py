"""Ten kill -9 in one run: at most one interval is lost each time, and the adapter is that of an undisturbed run.

`chaos.py` does it and judges it: each kill comes at a random step once the attempt has written a checkpoint; afterwards
sha256 of every exported file, every loss and the counters are compared.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.timeout(3000)
def test_ten_kills_in_one_run_change_nothing(tmp_path: Path) -> None:
    """Of the worker; `make chaos` gives ten to agent and supervisor, too, and its short form one."""
    words = ["--only", "ten-workers", "--runs", "1", "--kills", "10", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words],
        capture_output=True, text=True, timeout=2900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ((attempts, steps),) = re.findall(
        r"#\d ten-workers: same, (\d+) attempts, lost \[(.*?)\]", done.stdout
    )
    lost = [int(step) for step in steps.split(", ")]
    assert (int(attempts), len(lost)) == (11, 10)
    assert max(lost) <= 2, "it saves every 2 steps"
