"""`ft` that is killed by -9 at one exact point of a submission: `python kill_at.py POINT cloud run …`.

Points: `record` (nothing is written yet), `spawn` (record and inputs are there, nothing runs),
`handle` (the supervisor runs, its handle is not written down).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from ft.launcher import runs
from ft.launcher.backends import local
from ft.launcher.cli import app


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    point = sys.argv.pop(1)
    where, name = {
        "record": (runs.Runs, "create"),
        "spawn": (local.LocalBackend, "_start"),
        "handle": (runs.Runs, "update"),
    }[point]
    setattr(where, name, die)
    app.main()
