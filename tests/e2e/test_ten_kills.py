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
@pytest.mark.parametrize(
    ("victims", "kills"),
    [(("worker",), 10), (("agent", "supervisor"), 3)],
    ids=["worker", "others"],
)
def test_ten_kills_in_one_run_change_nothing(
    victims: tuple[str, ...], kills: int, tmp_path: Path
) -> None:
    """Of each victim in a run of its own. `make chaos` gives ten to every one; here two of them get fewer, for time."""
    words = [word for victim in victims for word in ("--only", f"ten-{victim}s")]
    count = str(len(victims))
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words, "--runs", count, "--kills", str(kills), "--folder", str(tmp_path)],
        capture_output=True, text=True, timeout=2900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.findall(r"#\d ten-(\w+)s: same, (\d+) attempts, lost \[(.*?)\]", done.stdout)
    assert sorted(victim for victim, _, _ in told) == sorted(victims)
    for victim, attempts, steps in told:
        lost = [int(step) for step in steps.split(", ")]
        assert (int(attempts), len(lost)) == (kills + 1, kills), victim
        assert max(lost) <= 2, f"{victim}: it saves every 2 steps"
