"""The working directory of an attempt: what `cloud.include` names, under its own paths."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ft.recipes.plan import RunPlan
from ft.recipes.runstore import WORK, ExitCode, Reason
from ft.runtime.ends import AttemptError


def lay_out(plan: RunPlan, run_folder: Path) -> Path:
    """Make it anew from `inputs/`, which have been verified. Copies: what a program writes here changes no input.

    Raises: AttemptError if the disk has no room for them.
    """
    work = run_folder / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    included = [item for item in plan.inputs if item.kind == "include"]
    size, free = sum(item.size for item in included), shutil.disk_usage(work).free
    if size > free:
        message = f"{work} has {free:,} bytes free, but cloud.include needs {size:,}"
        raise AttemptError(ExitCode.CONFIG, Reason.CONFIG, message)
    for item in included:
        source = run_folder / item.path
        shutil.copytree(source, work, copy_function=shutil.copyfile, dirs_exist_ok=True)
        for path in item.executables:
            (work / path).chmod(0o755)
    return work


def enter(work: Path) -> None:
    """Find files from there, and modules as well; one that is installed goes before one of the same name."""
    os.chdir(work)
    sys.path.append(str(work))
