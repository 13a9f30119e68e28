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
KILLS = 10
"""Of each victim; two to three minutes on two idle cores."""


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("victim", ["worker", "agent", "supervisor"])
def test_ten_kills_in_one_run_change_nothing(victim: str, tmp_path: Path) -> None:
    words = ["--only", f"ten-{victim}s", "--runs", "1", "--jobs", "1", "--kills", str(KILLS)]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words, "--folder", str(tmp_path)],
        capture_output=True, text=True, timeout=2900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = re.findall(rf"#1 ten-{victim}s: same, (\d+) attempts, lost \[(.*?)\]", done.stdout)
    assert int(told[0]) == KILLS + 1
    lost = [int(steps) for steps in told[1].split(", ")]
    assert len(lost) == KILLS
    assert max(lost) <= 2, "it saves every 2 steps"
