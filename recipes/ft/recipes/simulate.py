"""Faults on order: `--simulate preempt@30s`. A rehearsal on the local backend, and what tests use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ft.recipes.errors import UsageError

FAULTS: Final[dict[str, str]] = {
    "preempt": "s",
    "kill": "s",
    "oom": "step",
    "nan": "step",
    "disk-full": "save",
}
"""What can be ordered, and what its place is counted in: seconds, optimizer steps, saves of an attempt."""

EXAMPLES: Final = "preempt@30s, kill@30s, oom@step:7, nan@step:7, disk-full@save:2"


@dataclass(frozen=True, slots=True)
class Simulation:
    """One fault. `preempt` and `kill` hit the first attempt only, `at` seconds after it began.

    `oom` and `nan` happen in the step `at` whenever it is trained on the rows that it was planned for and with the
    micro batch of the plan; `disk-full` in the save number `at` of the first attempt.
    """

    fault: str
    at: float

    def __str__(self) -> str:
        unit = FAULTS[self.fault]
        return f"{self.fault}@{self.at:g}s" if unit == "s" else f"{self.fault}@{unit}:{self.at:g}"


def parse_simulation(text: str) -> Simulation:
    """Raises: UsageError naming what can be written."""
    found = re.fullmatch(r"([a-z-]+)@(?:(\d+(?:\.\d+)?)s|(step|save):([1-9]\d*))", text)
    if found is None or FAULTS.get(found[1]) != (found[3] or "s"):
        raise UsageError(f"--simulate {text}: expected one of {EXAMPLES}")
    return Simulation(found[1], float(found[2] or found[4]))
