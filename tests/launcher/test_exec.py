"""`ft cloud exec`: commands beside an attempt of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from ft.launcher.backends import registry
from ft.launcher.backends.base import Capability
from ft.launcher.backends.local import LocalBackend
from ft.recipes.errors import UsageError


def test_a_command_has_the_environment_and_the_folder_of_the_attempt(
    laptop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAVOUR", "of the attempt")
    run = laptop.submit("one")
    run.wait_for_step(1)
    monkeypatch.setenv("FLAVOUR", "of the terminal")

    script = 'pwd; echo "$FLAVOUR" >&2; cat; exit 3'
    done = laptop.ft("cloud", "exec", "one", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (
        3, f"{run.store.root}\n", "of the attempt\n",
    )  # fmt: skip
    killed = laptop.ft("cloud", "exec", "one", "--", "sh", "-c", "kill -9 $$")
    assert (killed.returncode, killed.stdout, killed.stderr) == (137, "", "")
    nowhere = laptop.ft("cloud", "exec", "one", "no-such-command")
    assert (nowhere.returncode, nowhere.stdout) == (127, "")
    assert nowhere.stderr.endswith("no-such-command: not found\n")
    assert laptop.ft("cloud", "exec", "one", "--", str(run.store.plan_path)).returncode == 126
    other = laptop.ft("cloud", "exec", "one", "--node", "1", "--", "true")
    assert (other.returncode, other.stderr) == (
        2, f"error: --node 1: run {run.id} has one node, 0\n",
    )  # fmt: skip

    piped = subprocess.run(
        [sys.executable, "-P", "-m", "ft.launcher.cli.app", "cloud", "exec", "one", "--", "cat"],
        env=laptop.env, input=b"a\0b", capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert (piped.returncode, piped.stdout) == (0, b"a\0b")
    assert typed(laptop, "exec", "one", "--", "cat") == (0, b"")
    assert typed(laptop, "exec", "-i", "one", "--", "cat") == (0, b"typed\n")

    laptop.ft("cloud", "cancel", "one", "--now")
    run.outcome()
    late = laptop.ft("cloud", "exec", "one", "--", "true")
    assert (late.returncode, late.stdout) == (8, "")
    error, hint = late.stderr.splitlines()
    assert error.startswith(f"error: run {run.id} is CANCELLED, so no machine of it lives: ")
    assert hint == (
        f"hint: ft cloud logs {run.id}  has what it said; ft cloud resume {run.id}  goes on"
    )


def typed(laptop: Any, *arguments: str) -> tuple[int, bytes]:
    """Exit code and output of a command at whose terminal a line and the end of input were typed."""
    mine, its = os.openpty()
    try:
        os.write(mine, b"typed\n\4")
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ft.launcher.cli.app", "cloud", *arguments],
            env=laptop.env, stdin=its, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
    finally:
        os.close(mine)
        os.close(its)
    return done.returncode, done.stdout


def test_where_the_supervisor_is_gone_a_resume_is_the_way(laptop: Any) -> None:
    run = laptop.submit("one", files={"held": ""}, steps=3)
    run.wait_for_step(2)
    run.kill_supervisor()
    run.wait_for(run.agent_is_gone)
    gone = laptop.ft("cloud", "exec", "one", "--", "true")
    assert gone.returncode == 8
    assert gone.stderr.splitlines()[0].startswith(
        f"error: run {run.id} is UNKNOWN, so no machine of it lives: "
    )
    assert f"`ft cloud resume {run.id}` goes on" in gone.stderr
    assert gone.stderr.splitlines()[-1] == f"hint: ft cloud status {run.id}  says more"


class Mute(LocalBackend):
    capabilities = LocalBackend.capabilities & ~Capability.EXEC


def test_a_backend_that_runs_no_commands_says_so(
    laptop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ft.launcher.cli import beside
    from ft.launcher.cli.run import find

    laptop.submit("one", steps=1).outcome()
    monkeypatch.setitem(registry.BACKENDS, "local", f"{__name__}:Mute")
    with pytest.raises(UsageError, match="backend local runs no commands beside a run"):
        beside.execute(find("one"), ["true"], node=0, interactive=False)
