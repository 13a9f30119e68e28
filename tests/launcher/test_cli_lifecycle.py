"""Cancel, resume, wait, fetch, prune: real supervisors, and an agent that trains nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ft.launcher import ends
from ft.launcher.backends import local, registry
from ft.launcher.backends.base import Capability
from ft.launcher.cli import pruning
from ft.launcher.runs import is_locked
from ft.recipes.errors import StoreError, SubmitError
from ft.recipes.plan import read_plan
from ft.recipes.runstore import AttemptEnd, Control, Reason, RunState, why_invalid

# ------------------------------------------------------------------------------------------ cancel


def test_cancel_saves_first_shows_it_and_is_idempotent(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(7)
    result = laptop.ft("cloud", "cancel", "one")
    assert result.returncode == 0, result.stderr
    outcome = run.outcome()
    (end,) = run.ends()
    assert end == AttemptEnd(79, end.step, end.step, "cancelled")
    assert (outcome["state"], outcome["reason"]) == ("CANCELLED", "cancelled")
    assert outcome["message"] == (
        f"cancelled at step {end.step}; its checkpoint of step {end.step} stays: "
        f"`ft cloud resume {run.id}` goes on from there"
    )
    assert result.stderr.splitlines()[0] == "stopping; the run saves first, at most 60 s …"
    assert any(f"step {end.step}: saved" in line for line in result.stderr.splitlines())
    assert result.stdout.splitlines()[0] == f"CANCELLED (cancelled)  run {run.id}"

    again = laptop.ft("cloud", "cancel", "one", "--json")
    assert again.returncode == 0
    assert again.stderr == f"run {run.id} has ended already\n"
    told = json.loads(again.stdout)
    assert (told["state"], told["reason"], told["step"]) == ("CANCELLED", "cancelled", end.step)
    assert run.status()["machines"]["reason"] == "cancelled"


def test_cancel_now_kills_and_says_what_stays(laptop: Any) -> None:
    run = laptop.submit("one", files={"slow": "0.2"})
    run.wait_for(run.store.checkpoints.is_dir)
    run.wait_for_step(6)
    result = laptop.ft("cloud", "cancel", "one", "--now")
    assert result.returncode == 0, result.stderr
    outcome = run.outcome()
    assert (outcome["state"], outcome["reason"], outcome["exit_code"]) == (
        "CANCELLED", "cancelled", 137,
    )  # fmt: skip
    saved = ends.newest_published(run.store)
    assert saved >= 5
    found = re.fullmatch(
        rf"cancelled at step (\d+), killed without saving; its checkpoint of step {saved} stays: "
        rf"`ft cloud resume {run.id}` goes on from there",
        outcome["message"],
    )
    assert found is not None, outcome
    assert int(found[1]) >= saved
    assert run.ends()[0].reason == "killed"
    assert result.stderr.splitlines()[0] == (
        "killing the run; what it did since its last checkpoint is lost"
    )


def test_a_run_that_does_not_listen_is_killed_when_its_grace_is_over(laptop: Any) -> None:
    run = laptop.submit("one", files={"deaf": ""})
    run.wait_for_step(1)
    began = time.monotonic()
    result = laptop.ft("cloud", "cancel", "one", "--grace", "0.5")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began >= 0.5 + 2
    assert run.outcome()["exit_code"] == 137
    assert "killed without saving" in result.stdout
    assert "the grace of 0.5 s is over: killing the attempt" in run.log()


def test_a_later_word_counts_and_ctrl_c_does_not_wait(laptop: Any) -> None:
    run = laptop.submit("one", files={"deaf": ""})
    run.wait_for_step(1)
    patient = laptop.popen("cloud", "cancel", "one", "--grace", "3600")
    run.wait_for(run.store.get_control)
    patient.send_signal(signal.SIGINT)
    _, err = patient.communicate(timeout=60)
    assert patient.returncode == 130
    assert "not waiting; it was asked to stop, and does so by itself" in err
    assert laptop.ft("cloud", "cancel", "one", "--now").returncode == 0
    assert run.outcome()["state"] == "CANCELLED"


def test_a_submission_that_nobody_finished_is_withdrawn(laptop: Any) -> None:
    run = laptop.submit("one", steps=2)
    run.outcome()
    laptop.runs.update(laptop.runs.get(run.id), state="SUBMITTING", handle={})
    (run.folder / "supervisor.json").unlink()
    (run.folder / "outcome.json").unlink()
    result = laptop.ft("cloud", "cancel", "one")
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"run {run.id} never started: cancelled before it was started\n"
    assert result.stdout.splitlines()[0] == f"CANCELLED (cancelled)  run {run.id}"
    record = laptop.runs.get(run.id)
    assert (record.state, record.handle) == ("CANCELLED", {})
    assert not is_locked(run.folder / "supervisor.lock")
    assert laptop.ft("cloud", "wait", "one").returncode == 7
    resumed = laptop.ft("cloud", "resume", "one")
    assert resumed.returncode == 0, resumed.stderr
    assert run.outcome()["state"] == "SUCCEEDED"


def test_a_run_without_a_supervisor_is_cancelled_once_its_attempt_has_saved(laptop: Any) -> None:
    run = laptop.submit("one", files={"slow": "0.3"})
    run.wait_for_step(6)
    run.kill_supervisor()
    result = laptop.ft("cloud", "cancel", "one")
    assert result.returncode == 0, result.stderr
    assert run.agent_is_gone()
    outcome = run.outcome()
    saved = ends.newest_published(run.store)
    assert (outcome["state"], outcome["reason"]) == ("CANCELLED", "cancelled")
    assert outcome["message"] == (
        f"cancelled; its supervisor was gone; its checkpoint of step {saved} stays: "
        f"`ft cloud resume {run.id}` goes on from there"
    )


def test_cancel_now_kills_an_attempt_that_nobody_looks_after(laptop: Any) -> None:
    run = laptop.submit("one", files={"deaf": ""})
    run.wait_for_step(6)
    run.kill_supervisor()
    assert not run.agent_is_gone()
    result = laptop.ft("cloud", "cancel", "one", "--now")
    assert result.returncode == 0, result.stderr
    assert run.agent_is_gone()
    saved = ends.newest_published(run.store)
    assert run.outcome()["message"] == (
        "cancelled; its supervisor was gone, its attempt was killed without saving; its checkpoint "
        f"of step {saved} stays: `ft cloud resume {run.id}` goes on from there"
    )


HOLD = """
import fcntl, os, sys
stream = open(sys.argv[1], "a")
fcntl.flock(stream, fcntl.LOCK_EX)
if os.fork():
    os._exit(0)
sys.stdin.read()
"""


@contextmanager
def held_from_far_away(path: Path) -> Iterator[None]:
    """Its lock is held, and no living process of this machine has taken it."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.wait(timeout=60)
        yield
    deadline = time.monotonic() + 60
    while is_locked(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_store_that_is_still_written_is_neither_cancelled_nor_removed(laptop: Any) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [79, "data", "bad", 2]}})
    run.outcome()
    (run.store.root / ".staging-final").mkdir()
    handle = laptop.runs.get(run.id).as_handle()
    backend = local.LocalBackend(laptop.runs)
    with held_from_far_away(run.store.root / ".attempt.lock"):
        listed = json.loads(laptop.ft("cloud", "prune", "--force", "--yes", "--json").stdout)
        assert [(item["stays"], item["leftovers"], item["removed"]) for item in listed] == [
            ("an attempt still writes its store", [], False)
        ]
        with pytest.raises(StoreError) as caught:
            backend.discard(handle, plan_sha256=laptop.runs.get(run.id).plan_sha256)
        assert caught.value.message == (
            f"{run.store.root} is not deleted: an attempt still writes it"
        )
        (run.folder / "outcome.json").unlink()
        result = laptop.ft("cloud", "cancel", "one", "--now")
        assert result.returncode == 5
        assert result.stderr.splitlines()[1] == (
            f"error: run {run.id} could not be ended: an attempt still writes {run.store.root}"
        )
        assert not (run.folder / "outcome.json").exists()
    assert laptop.ft("cloud", "cancel", "one", "--now").returncode == 0
    assert laptop.ft("cloud", "prune", "--yes").returncode == 0
    assert not run.store.root.exists()


def test_a_supervisor_that_waits_for_an_attempt_hears_cancel(laptop: Any) -> None:
    run = laptop.submit("one", files={"deaf": ""})
    run.wait_for_step(6)
    run.kill_supervisor()
    assert laptop.ft("cloud", "resume", "one", "--detach").returncode == 0
    result = laptop.ft("cloud", "cancel", "one", "--grace", "0.2")
    assert result.returncode == 0, result.stderr
    outcome = run.outcome()
    assert (outcome["state"], outcome["exit_code"]) == ("CANCELLED", 137)
    assert "killed without saving" in outcome["message"]
    assert "the grace is over: killing the attempt that was left behind" in run.log()
    assert run.agent_is_gone()
    assert run.store.attempts() == [1]


LATE = """
import fcntl, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
stream = open(folder / "supervisor.lock", "a")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
(folder / "supervisor.json").write_text('{"pid": %d, "started_at": 1.0}' % os.getpid())
sys.stdin.read()
"""


def test_kill_waits_for_a_supervisor_to_say_who_it_is(
    laptop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [79, "data", "bad", 2]}})
    run.outcome()
    for name in ("supervisor.json", "outcome.json"):
        (run.folder / name).unlink()
    handle = laptop.runs.get(run.id).as_handle()
    backend = local.LocalBackend(laptop.runs)

    def started(pause_s: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LATE, str(run.folder), str(pause_s)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    with started(0.3) as late:
        backend.kill(handle, reason=Reason.CANCELLED)
        assert late.wait(timeout=60) == -signal.SIGKILL
    assert run.outcome()["state"] == "CANCELLED"
    (run.folder / "supervisor.json").unlink()
    monkeypatch.setattr(local, "KILL_TIMEOUT_S", 0.2)
    with started(60.0) as silent:
        with pytest.raises(SubmitError, match=f"the supervisor of run {run.id} does not say who"):
            backend.kill(handle, reason=Reason.CANCELLED)
        silent.kill()


def test_a_cancel_during_the_delivery_does_not_undo_training(laptop: Any) -> None:
    """The delivery hangs: what it writes into is a pipe that nobody reads."""
    for name, out in (("one", "out1"), ("two", "out2")):
        (laptop.folder / out).mkdir()
        os.mkfifo(laptop.folder / out / "weights.bin.part")
        run = laptop.submit(name, steps=3, output=out)
        run.wait_for((laptop.folder / out / ".ft-delivered.json").exists)
        final = run.store.root / "final"
        if name == "one":
            handle = laptop.runs.get(run.id).as_handle()
            backend = local.LocalBackend(laptop.runs)
            backend.cancel(handle, grace_s=0.0, reason=Reason.CANCELLED)
            backend.kill(handle, reason=Reason.CANCELLED)
            what = "its supervisor did not answer and was killed"
        else:
            run.kill_supervisor()
            result = laptop.ft("cloud", "cancel", name)
            assert result.returncode == 0, result.stderr
            assert result.stdout.splitlines()[0] == f"SUCCEEDED  run {run.id}"
            what = "its supervisor was gone"
        outcome = run.outcome()
        assert (outcome["state"], outcome["reason"], outcome["exit_code"]) == (
            "SUCCEEDED", "done", 0,
        )  # fmt: skip
        assert outcome["message"] == f"done, but not delivered: {what}; it is in {final}"
        assert outcome["delivered_to"] == str(final)
    # One that was delivered, and whose supervisor died before it could say so.
    run = laptop.submit("three", steps=3, output="out3")
    run.outcome()
    (run.folder / "outcome.json").unlink()
    assert laptop.ft("cloud", "cancel", "three").returncode == 0
    outcome = run.outcome()
    assert (outcome["state"], outcome["message"], outcome["delivered_to"]) == (
        "SUCCEEDED", "done", f"{laptop.folder}/out3",
    )  # fmt: skip


def test_a_signal_to_the_supervisor_is_no_end_of_the_run(laptop: Any) -> None:
    """As when the machine goes down: training saves, and `resume` goes on after that."""
    run = laptop.submit("one", steps=60)
    run.wait_for_step(7)
    os.kill(run.supervisor(), signal.SIGTERM)
    run.wait_for(lambda: not is_locked(run.folder / "supervisor.lock"))
    assert not (run.folder / "outcome.json").exists()
    (end,) = run.ends()
    assert (end.exit_code, end.reason, end.checkpoint_step) == (75, "preempted", end.step)
    assert (
        run.log()
        .splitlines()[-1]
        .endswith(f"ended without an end of the run: `ft cloud resume {run.id}` goes on")
    )
    machines = run.status()["machines"]
    assert (machines["state"], machines["message"]) == (
        "UNKNOWN",
        "the supervisor was killed, or the machine restarted; training saved at step "
        f"{end.step} and stopped; `ft cloud resume {run.id}` goes on",
    )
    assert laptop.ft("cloud", "resume", "one").returncode == 0
    assert run.outcome()["state"] == "SUCCEEDED"
    assert [(end.exit_code, end.reason) for end in run.ends()] == [(75, "preempted"), (0, "done")]
    assert laptop.runs.get(run.id).resumed_after == 0


def test_ctrl_c_in_the_terminal_that_waits_is_the_user(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(3)
    run.store.put_control(Control("stop", time.time(), reason="user", grace_s=60.0))
    outcome = run.outcome()
    assert (outcome["state"], outcome["reason"]) == ("CANCELLED", "user")
    assert outcome["message"].startswith(f"stopped by the user at step {run.ends()[-1].step}; its")
    waited = laptop.ft("cloud", "wait", "one", "--json")
    assert waited.returncode == 7
    assert json.loads(waited.stdout)["reason"] == "user"
    attached = laptop.ft("cloud", "attach", "one")
    assert attached.stderr.splitlines()[-2:] == [
        f"error: run {run.id} was stopped",
        f"hint: ft cloud resume {run.id}  goes on",
    ]


def test_a_limit_of_the_user_s_own_ends_the_run_in_its_words(laptop: Any) -> None:
    spent = "max_cost 5 USD is nearly spent"
    run = laptop.submit("one", steps=9, files={"ends.json": {"1": [79, "user", spent, 6]}})
    outcome = run.outcome()
    assert (outcome["state"], outcome["reason"]) == ("CANCELLED", "user")
    assert outcome["message"] == (
        f"{spent}; its checkpoint of step 5 stays: `ft cloud resume {run.id}` goes on from there"
    )
    assert laptop.ft("cloud", "resume", "one", "--json").returncode == 0


# ------------------------------------------------------------------------------------------ resume


def test_resume_goes_on_from_the_newest_checkpoint_under_the_same_id(laptop: Any) -> None:
    run = laptop.submit("one", steps=300)
    run.wait_for_step(7)
    laptop.ft("cloud", "cancel", "one")
    stopped_at = run.ends()[-1].step
    result = laptop.ft("cloud", "resume", "one")
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"run {run.id} had ended: CANCELLED (cancelled): cancelled at step")
    assert lines[1] == "it goes on"
    assert f"attempt 2: resumed from step {stopped_at}" in lines
    assert not any(
        line.startswith("step 1/") for line in lines
    )  # What was before is not told again.
    assert run.outcome()["state"] == "SUCCEEDED"
    assert run.steps() == list(range(1, 301))
    assert run.store.get_control() is None
    record = laptop.runs.get(run.id)
    assert (record.id, record.resumed_after) == (run.id, 1)
    assert (laptop.folder / "out/weights.bin").is_file()

    done = laptop.ft("cloud", "resume", "one")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"run {run.id} has succeeded; its result is in {laptop.folder}/out\n"
    assert run.store.attempts() == [1, 2]


def test_resume_of_a_running_run_says_so_and_attaches(laptop: Any) -> None:
    run = laptop.submit("one", steps=300)
    run.wait_for_step(2)
    detached = laptop.ft("cloud", "resume", "one", "--detach", "--timeout", "1h")
    assert (detached.returncode, detached.stdout) == (0, f"{run.id}\n")
    assert detached.stderr.splitlines()[:2] == [
        "warning: its limits stay as they are while it runs: ft cloud cancel it first",
        f"run {run.id} is RUNNING already",
    ]
    attached = laptop.ft("cloud", "resume", "one")
    assert attached.returncode == 0
    assert attached.stdout.splitlines()[-1] == f"  output        {laptop.folder}/out"
    assert run.store.attempts() == [1]


def test_a_failed_run_says_why_it_failed_and_its_history_begins_anew(laptop: Any) -> None:
    """Two unknown failures in a row at the same step end a run; a third one after a resume is the first again."""
    boom = [1, "unclassified", "boom", 3]
    ends = {"1": boom, "2": boom, "3": boom}
    run = laptop.submit("one", steps=12, files={"ends.json": ends})
    outcome = run.outcome()
    assert (outcome["state"], outcome["reason"]) == ("FAILED", "deterministic")
    assert outcome["message"] == "boom (failed twice in a row at step 3)"
    assert "attempt 1 ended at step 3 (unclassified, exit code 1): boom" in run.log()
    result = laptop.ft("cloud", "resume", "one")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[:2] == [
        f"run {run.id} had ended: FAILED (deterministic): boom (failed twice in a row at step 3)",
        "it goes on",
    ]
    assert run.outcome()["state"] == "SUCCEEDED"
    assert [end.exit_code for end in run.ends()] == [1, 1, 1, 0]
    assert laptop.runs.get(run.id).resumed_after == 2


@pytest.mark.parametrize(("code", "reason"), [(78, "config"), (79, "data"), (79, "oom")])
def test_every_end_has_a_reason_and_a_sentence(laptop: Any, code: int, reason: str) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [code, reason, "what went wrong", 2]}})
    outcome = run.outcome()
    assert (outcome["state"], outcome["reason"], outcome["exit_code"]) == ("FAILED", reason, code)
    assert outcome["message"].startswith("what went wrong (")
    waited = laptop.ft("cloud", "wait", "one")
    assert waited.returncode == 6
    assert waited.stdout == f"FAILED ({reason})  one: {outcome['message']}\n"


def test_limits_are_rewritten_and_the_plan_stays_the_same(laptop: Any) -> None:
    run = laptop.submit("one", steps=20, files={"ends.json": {"1": [79, "data", "bad", 2]}})
    run.outcome()
    before = read_plan(run.store.plan_path)
    for arguments, message in (
        (["--max-cost", "5"], "error: --max-cost: nobody knows what an hour of this run costs"),
        (["--max-cost", "0"], "error: --max-cost 0: expected more than 0 US dollars"),
        (["--timeout", "soon"], "error: --timeout 'soon' is no duration: expected seconds"),
        (["--timeout", "0"], "error: --timeout 0: expected at least a second"),
    ):
        wrong = laptop.ft("cloud", "resume", "one", *arguments)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith(message)
    assert run.outcome()["state"] == "FAILED"
    limits = ["--max-cost", "5", "--price-per-hour", "2.5", "--timeout", "90m"]
    result = laptop.ft("cloud", "resume", "one", *limits, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "SUCCEEDED"
    after = read_plan(run.store.plan_path)
    assert after.sha256 == before.sha256 == laptop.runs.get(run.id).plan_sha256
    assert (after.limits.timeout_s, after.limits.max_cost, after.limits.price_per_hour) == (
        5400, 5.0, 2.5,
    )  # fmt: skip
    assert after.model_copy(update={"limits": before.limits}) == before


def test_the_same_name_with_other_limits_says_that_they_count_for_nothing(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(1)
    same = ["cloud", "run", "one.yml", "--name", "one", "--detach"]
    assert "limits" not in laptop.ft(*same).stderr
    other = [*same, "--set", "cloud.max_cost=5", "--set", "cloud.price_per_hour=2.5"]
    result = laptop.ft(*other)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    at = lines.index(f"run {run.id} (one) is there already")
    assert lines[at + 1 : at + 3] == [
        "warning: it keeps the limits that it has: max_cost none, not 5, price_per_hour none, "
        "not 2.5",
        "hint: ft cloud cancel one; ft cloud resume one --max-cost 5 --price-per-hour 2.5",
    ]
    assert read_plan(run.store.plan_path).limits.max_cost is None


def test_another_plan_in_the_store_is_not_resumed(laptop: Any) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [79, "data", "bad", 2]}})
    run.outcome()
    plan = read_plan(run.store.plan_path)
    changed = plan.optim.model_copy(update={"seed": plan.optim.seed + 1})
    run.store.plan_path.write_text(plan.model_copy(update={"optim": changed}).to_json())
    result = laptop.ft("cloud", "resume", "one")
    assert result.returncode == 3
    assert result.stderr.splitlines()[0] == (
        f"error: {run.store.plan_path} is not the plan that run {run.id} began with"
    )
    assert run.outcome()["state"] == "FAILED"


def test_a_run_in_a_folder_does_not_move_and_is_left_as_it_was(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(3)
    laptop.ft("cloud", "cancel", "one")
    before = run.outcome()
    result = laptop.ft("cloud", "resume", "one", "--backend", "sky")
    assert (result.returncode, result.stdout) == (2, "")
    assert " ".join(result.stderr.split()) == (
        f"error: run {run.id} cannot go on with backend sky: only a run in a bucket moves, and it lies in "
        f"{run.store.root} hint: a run with cloud.store_bucket can move; this one goes on with backend local"
    )
    assert run.outcome() == before


# ----------------------------------------------------------------------------- a killed supervisor


@pytest.mark.slow
def test_a_killed_supervisor_is_noticed_and_the_history_continues(laptop: Any) -> None:
    boom = [1, "unclassified", "boom", 7]
    run = laptop.submit("one", steps=40, files={"slow": "0.3", "ends.json": {"1": boom}})
    run.wait_for(lambda: len(run.store.attempts()) == 2)
    run.wait_for_step(8)
    run.kill_supervisor()
    saving = run.status()["machines"]
    assert saving["state"] == "UNKNOWN"
    run.wait_for(run.agent_is_gone)
    saved = ends.newest_published(run.store)
    machines = run.status()["machines"]
    sentence = (
        "the supervisor was killed, or the machine restarted; training saved at step "
        f"{saved} and stopped; `ft cloud resume {run.id}` goes on"
    )
    assert (machines["state"], machines["message"]) == ("UNKNOWN", sentence)
    assert [end.exit_code for end in run.ends()] == [1]  # Nobody saw the second one end.
    listed = json.loads(laptop.ft("cloud", "ls", "--json").stdout)
    assert [(row["state"], row["reason"]) for row in listed] == [("UNKNOWN", None)]

    result = laptop.ft("cloud", "resume", "one")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[0] == f"run {run.id}: {sentence}"
    assert run.outcome()["state"] == "SUCCEEDED"
    first, second, third = run.ends()
    assert (first.exit_code, first.reason) == (1, "unclassified")
    assert (second.exit_code, second.reason, second.step) == (75, "preempted", saved)
    assert third.exit_code == 0
    assert "attempt 2 ended while nobody watched it" in run.log()
    assert laptop.runs.get(run.id).resumed_after == 0
    assert run.steps()[-1] == 40


def test_while_the_attempt_saves_status_says_so_and_a_resume_waits_for_it(laptop: Any) -> None:
    run = laptop.submit("one", steps=100, files={"deaf": "", "held": ""})
    run.wait_for_step(3)
    run.kill_supervisor()
    assert run.status()["machines"]["message"] == (
        "the supervisor was killed, or the machine restarted; training is saving and stops by "
        f"itself; after that `ft cloud resume {run.id}` goes on"
    )
    assert laptop.ft("cloud", "resume", "one", "--detach").returncode == 0
    run.wait_for(lambda: "waiting for an attempt that another supervisor left behind" in run.log())
    (run.store.root / "held").unlink()
    assert run.outcome()["state"] == "SUCCEEDED"
    # The first attempt heard nothing and was waited for to its end; it had succeeded.
    assert [end.exit_code for end in run.ends()] == [0]
    assert run.steps() == list(range(1, 101))


def test_an_attempt_that_died_with_its_supervisor_counts_as_killed(laptop: Any) -> None:
    run = laptop.submit("one", steps=30)
    run.wait_for_step(12)
    agents = Path(f"/proc/{run.supervisor()}/task/{run.supervisor()}/children").read_text().split()
    os.kill(run.supervisor(), signal.SIGSTOP)
    for pid in agents:
        os.kill(int(pid), signal.SIGKILL)
    run.kill_supervisor()
    saved = ends.newest_published(run.store)
    told = run.status()["machines"]["message"]
    step = run.store.get_status().step
    assert told == (
        f"the supervisor was killed, or the machine restarted; training died with it at step {step}, "
        f"the checkpoint of step {saved} is left; `ft cloud resume {run.id}` goes on"
    )
    assert laptop.ft("cloud", "resume", "one").returncode == 0
    first, second = run.ends()
    assert (first.exit_code, first.reason, first.checkpoint_step) == (137, "killed", saved)
    assert second.exit_code == 0
    assert run.steps().count(saved) == 1


def test_a_second_supervisor_cannot_start_while_one_lives(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(2)
    pid = run.supervisor()
    backend = local.LocalBackend(laptop.runs)
    record = laptop.runs.get(run.id)
    backend.resume(laptop.runs.submission(run.id), handle=record.as_handle())
    assert run.supervisor() == pid
    assert run.store.attempts() == [1]


def test_the_same_name_goes_on_as_well(laptop: Any) -> None:
    run = laptop.submit("one", steps=60)
    run.wait_for_step(8)
    run.kill_supervisor()
    again = laptop.submit("one", steps=60)
    assert again.id == run.id
    assert run.outcome()["state"] == "SUCCEEDED"
    assert [(end.exit_code, end.reason) for end in run.ends()] == [(75, "preempted"), (0, "done")]


# -------------------------------------------------------------------------------------------- wait


@pytest.mark.slow
def test_wait_blocks_until_the_end_and_exits_with_the_worst(laptop: Any) -> None:
    laptop.submit("good", steps=3)
    bad = laptop.submit("bad", files={"ends.json": {"1": [79, "data", "line 3", 1]}})
    long = laptop.submit("long")
    late = laptop.ft("cloud", "wait", "good", "long", "--timeout", "0.3")
    assert late.returncode == 124
    assert late.stderr.splitlines()[-1].startswith("error: not ended after 0.3 s: ")
    assert late.stderr.splitlines()[-1].endswith(long.id)
    first = laptop.ft("cloud", "wait", "long", "good", "--any")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"SUCCEEDED  good  {laptop.folder}/out\n"
    laptop.ft("cloud", "cancel", "long")
    every = laptop.ft("cloud", "wait", "good", "long", "bad", bad.id, "--json")
    assert every.returncode == 6
    told = [json.loads(line) for line in every.stdout.splitlines()]
    assert {(item["name"], item["state"], item["exit_code"]) for item in told} == {
        ("good", "SUCCEEDED", 0), ("bad", "FAILED", 6), ("long", "CANCELLED", 7),
    }  # fmt: skip
    assert len(told) == 3
    assert laptop.ft("cloud", "wait", "long", "good").returncode == 7


# ------------------------------------------------------------------------------------------- fetch


def test_fetch_of_a_result_that_lies_where_it_was_delivered(laptop: Any) -> None:
    run = laptop.submit("one", steps=7)
    run.outcome()
    there = laptop.ft("cloud", "fetch", "one")
    assert there.returncode == 0, there.stderr
    assert there.stdout == f"final lies in {laptop.folder}/out already: 1 file, verified\n"
    (laptop.folder / "elsewhere").mkdir()
    (laptop.folder / "elsewhere/weights.bin").write_text("the user's own")
    refused = laptop.ft("cloud", "fetch", "one", "--to", "elsewhere")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        f"error: {laptop.folder}/elsewhere holds other files of the same name: weights.bin",
        "hint: --to another folder, or --force to overwrite them",
    ]
    assert (laptop.folder / "elsewhere/weights.bin").read_text() == "the user's own"
    forced = json.loads(
        laptop.ft("cloud", "fetch", "one", "--to", "elsewhere", "--force", "--json").stdout
    )
    seconds = forced.pop("seconds")
    assert seconds >= 0
    assert forced == {
        "id": run.id, "what": "final", "to": f"{laptop.folder}/elsewhere", "files": 1,
        "bytes": 2000, "copied_bytes": 2000,
    }  # fmt: skip
    assert laptop.runs.get(run.id).fetched_to == f"{laptop.folder}/elsewhere"


@pytest.mark.slow
def test_fetch_continues_verifies_and_takes_checkpoints(laptop: Any) -> None:
    run = laptop.submit("one", steps=400)
    nothing = laptop.ft("cloud", "fetch", "one")
    if nothing.returncode:  # Unless the first checkpoint was faster.
        assert nothing.returncode == 8
        assert nothing.stderr.splitlines()[0] == (
            f"error: run {run.id} has neither a result nor a checkpoint yet"
        )
    run.wait_for_step(11)
    laptop.ft("cloud", "cancel", "one", "--now")
    target = laptop.folder / "here"
    target.mkdir()
    weights = (run.store.checkpoints / "step-00000010/weights.bin").read_bytes()
    (target / "weights.bin.part").write_bytes(weights[:100])
    ten = laptop.ft("cloud", "fetch", "one", "--checkpoint", "10", "--to", "here", "--json")
    assert ten.returncode == 0, ten.stderr
    told = json.loads(ten.stdout)
    assert (told["what"], told["bytes"], told["copied_bytes"]) == (
        "step-00000010", len(weights), len(weights) - 100,
    )  # fmt: skip
    assert (target / "weights.bin").read_bytes() == weights
    assert sorted(p.name for p in target.iterdir()) == ["manifest.json", "weights.bin"]

    newest = ends.newest_published(run.store)
    name = f"step-{newest:08d}"
    for arguments in (["one", "--checkpoint"], ["--checkpoint", "one"], ["one"]):
        fetched = laptop.ft("cloud", "fetch", *arguments)
        assert fetched.returncode == 0, fetched.stderr
        assert f"{laptop.folder}/out/{name}" in fetched.stdout
    assert fetched.stderr == f"there is no result yet; this is the checkpoint {name}\n"
    (run.store.checkpoints / name / "weights.bin").write_bytes(b"damaged")
    passed = laptop.ft("cloud", "fetch", "one", "--checkpoint", "newest")
    assert passed.returncode == 0
    assert passed.stderr.startswith(f"warning: passed over: {name}: weights.bin has 7 bytes")
    damaged = laptop.ft("cloud", "fetch", "one", "--checkpoint", str(newest), "--to", "new")
    assert damaged.returncode == 5
    assert damaged.stderr == (
        "error: weights.bin: its bytes do not have the sha256 of its manifest\n"
    )
    none = laptop.ft("cloud", "fetch", "one", "--checkpoint", "3")
    assert none.returncode == 8
    assert none.stderr.splitlines()[0] == f"error: run {run.id} has no checkpoint of step 3"


def test_a_manifest_of_the_user_s_own_is_not_overwritten(laptop: Any) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [79, "data", "bad", 6]}})
    run.outcome()
    target = laptop.folder / "here"
    target.mkdir()
    (target / "manifest.json").write_text('{"mine": true}')
    fetch = ["cloud", "fetch", "one", "--checkpoint", "5", "--to", "here"]
    refused = laptop.ft(*fetch)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0] == (
        f"error: {target} holds other files of the same name: manifest.json"
    )
    assert [path.name for path in target.iterdir()] == ["manifest.json"]
    assert (target / "manifest.json").read_text() == '{"mine": true}'
    assert laptop.ft(*fetch, "--force").returncode == 0
    assert why_invalid(target) is None
    again = laptop.ft(*fetch)
    assert again.stdout == f"step-00000005 lies in {target} already: 1 file, verified\n"


# ------------------------------------------------------------------------------------------- prune


def test_a_result_whose_copy_is_damaged_stays(laptop: Any) -> None:
    run = laptop.submit("one", steps=3)
    run.outcome()
    copy = laptop.folder / "out/weights.bin"
    whole = copy.read_bytes()
    copy.write_bytes(bytes(len(whole)))
    (item,) = json.loads(laptop.ft("cloud", "prune", "--yes", "--json").stdout)
    assert (item["stays"], item["removed"]) == (
        "its result lies nowhere else (ft cloud fetch, or --force)", False,
    )  # fmt: skip
    copy.write_bytes(whole)
    (item,) = json.loads(laptop.ft("cloud", "prune", "--yes", "--json").stdout)
    assert (item["stays"], item["removed"]) == (None, True)


@pytest.mark.slow
def test_prune_removes_what_has_ended_and_nothing_else(laptop: Any) -> None:
    failed = laptop.submit("failed", files={"ends.json": {"1": [79, "data", "bad", 6]}})
    done = laptop.submit("done", steps=3, output="out1")
    replaced = laptop.submit("replaced", steps=3, output="out2")
    for run in (failed, done, replaced):
        run.outcome()
    laptop.submit("replacing", steps=3, output="out2").outcome()
    running = laptop.submit("running", output="out3")
    (failed.store.checkpoints / "broken-00000005").mkdir()
    (failed.store.root / ".staging-final").mkdir()
    bystander = failed.store.root.parent / "not-a-run"
    bystander.mkdir()

    listed = laptop.ft("cloud", "prune", "--json")
    assert listed.returncode == 0, listed.stderr
    told = {item["name"]: item for item in json.loads(listed.stdout)}
    assert set(told) == {"failed", "done", "replaced", "replacing"}
    assert {name: item["goes"] for name, item in told.items()} == {
        "failed": True, "done": True, "replaced": False, "replacing": True,
    }  # fmt: skip
    assert told["replaced"]["stays"] == (
        "its result lies nowhere else (ft cloud fetch, or --force)"
    )
    assert all(not item["removed"] for item in told.values())
    assert told["done"]["bytes"] > 1000

    nobody = laptop.ft("cloud", "prune", "--failed")
    assert nobody.returncode == 2
    assert nobody.stderr.splitlines() == [
        "error: nobody is there to ask", "hint: --yes removes what is listed",
    ]  # fmt: skip
    lines = nobody.stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "ENDED", "SIZE"]
    assert lines[1].endswith("goes")
    assert [line.split("stays: ")[1] for line in lines[2:5]] == ["it succeeded"] * 3
    assert failed.store.root.exists()

    assert laptop.ft("cloud", "prune", "--older-than", "1h", "--yes").returncode == 0
    assert failed.store.root.exists()
    assert not (failed.store.checkpoints / "broken-00000005").exists()  # Leftovers go anyway.
    assert not (failed.store.root / ".staging-final").exists()

    assert laptop.ft("cloud", "prune", "--keep", "1", "--yes").returncode == 0
    left = {record.name for record in laptop.runs.all()}
    assert left == {"replaced", "replacing", "running"}
    assert not failed.store.root.exists()
    assert not done.folder.exists()
    assert (laptop.folder / "out1/weights.bin").is_file()
    assert bystander.is_dir()
    forced = laptop.ft("cloud", "prune", "--force", "--yes", "--json")
    assert {item["name"] for item in json.loads(forced.stdout) if item["removed"]} == {
        "replaced", "replacing",
    }  # fmt: skip
    assert [record.name for record in laptop.runs.all()] == ["running"]
    assert running.store.root.exists()
    assert laptop.ft("cloud", "prune", "--older-than", "soon").returncode == 2


def test_prune_refuses_a_store_that_is_not_the_run_s(laptop: Any) -> None:
    run = laptop.submit("one", files={"ends.json": {"1": [79, "data", "bad", 2]}})
    run.outcome()
    plan = run.store.plan_path.read_text()
    run.store.plan_path.unlink()
    result = laptop.ft("cloud", "prune", "--yes")
    assert result.returncode == 0
    assert f"warning: run {run.id}: {run.store.root} is not deleted: plan.json" in result.stderr
    assert (run.store.root / "events.jsonl").is_file()
    assert run.folder.is_dir()
    other = json.loads(plan)
    other["optim"]["seed"] += 1
    run.store.plan_path.write_text(json.dumps(other))
    result = laptop.ft("cloud", "prune", "--yes")
    assert "is not deleted: it holds the plan of another run" in result.stderr
    assert (run.store.root / "events.jsonl").is_file()
    run.store.plan_path.write_text(plan)
    assert laptop.ft("cloud", "prune", "--yes").returncode == 0
    assert not run.store.root.exists()
    assert laptop.runs.all() == []


@pytest.mark.parametrize(("text", "seconds"), [(None, 0.0), ("90m", 5400.0), ("7d", 604800.0)])
def test_ages(text: str | None, seconds: float) -> None:
    assert pruning.age_s(text) == seconds


# -------------------------------------------------------------------------------------- simulation


def test_a_rehearsed_fault_is_in_the_request_and_in_the_lines(laptop: Any) -> None:
    laptop.submit("one", steps=1).outcome()
    faults = ["--simulate", "oom@step:7", "--simulate", "preempt@30s"]
    dry = laptop.ft("cloud", "run", "one.yml", "--dry-run", *faults)
    assert dry.returncode == 0, dry.stderr
    request = json.loads(dry.stdout)["request"]
    assert request["simulate"] == ["oom@step:7", "preempt@30s"]
    assert request["command"][-4:] == ["--simulate", "oom@step:7", "--simulate", "preempt@30s"]
    assert "  simulated     oom@step:7, preempt@30s" in dry.stderr.splitlines()
    plain = json.loads(laptop.ft("cloud", "run", "one.yml", "--dry-run").stdout)["request"]
    assert "simulate" not in plain
    wrong = laptop.ft("train", "one.yml", "--simulate", "flood@3s")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --simulate flood@3s: expected one of preempt@30s")


class Strict(local.LocalBackend):
    """A backend that rehearses nothing."""

    capabilities = Capability.DETACH


def test_a_backend_that_rehearses_nothing_refuses(
    laptop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ft.launcher import dispatch
    from ft.recipes.errors import UsageError

    laptop.submit("one", steps=1).outcome()
    monkeypatch.setitem(registry.BACKENDS, "local", f"{__name__}:Strict")
    assert dispatch.prepare("one.yml", backend="local").backend == "local"
    with pytest.raises(UsageError, match="--simulate: backend local has real faults only"):
        dispatch.prepare("one.yml", backend="local", simulate=["kill@3s"])


# --------------------------------------------------------------------------- help and completion


COMMANDS = ("cancel", "resume", "wait", "fetch", "adopt", "prune", "exec")


def test_every_command_has_an_example_in_its_help(laptop: Any) -> None:
    for command in COMMANDS:
        result = laptop.ft("cloud", command, "--help")
        assert result.returncode == 0
        assert f"Example: ft cloud {command} " in " ".join(result.stdout.split())


def test_runs_complete_for_every_command_on_runs(laptop: Any) -> None:
    laptop.submit("a-name", steps=1).outcome()
    lap = replace(laptop)
    for command in ("cancel", "resume", "wait", "fetch", "logs", "exec"):
        env = {
            "_FT_COMPLETE": "complete_bash",
            "COMP_WORDS": f"ft cloud {command} a",
            "COMP_CWORD": "3",
        }
        os.environ.update(env)
        try:
            assert lap.ft().stdout.split() == ["a-name"]
        finally:
            for name in env:
                del os.environ[name]


def test_states_that_have_ended() -> None:
    assert [s for s in RunState if s.ended] == [
        RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED,
    ]  # fmt: skip


def test_a_rehearsal_and_the_real_run_do_not_share_a_name(laptop: Any) -> None:
    run = laptop.submit("one")
    run.wait_for_step(1)
    real = laptop.ft(
        "cloud", "run", "one.yml", "--name", "one", "--simulate", "nan@step:3", "--detach"
    )
    assert real.returncode == 2
    assert "error: run 'one' exists without --simulate" in real.stderr
    laptop.ft("cloud", "cancel", "one", "--now")


def test_a_run_whose_money_is_spent_does_not_go_on_without_more(laptop: Any) -> None:
    run = laptop.submit(
        "one", files={"ends.json": {"1": [79, "user", "max_cost is nearly spent", 2]}}
    )
    run.outcome()
    status = run.store.get_status()
    run.store.put_status(replace(status, cost=0.4))
    refused = laptop.ft("cloud", "resume", "one", "--max-cost", "0.5", "--price-per-hour", "1")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-2:] == [
        "error: 0.4 of max_cost 0.5 USD are spent, and its last attempt ended for that",
        "hint: --max-cost with more",
    ]


def test_an_end_names_the_user_s_file_and_not_its_copy_in_the_store(laptop: Any) -> None:
    first = laptop.submit("one")
    (upload,) = laptop.runs.submission(first.id).uploads
    laptop.ft("cloud", "cancel", "one", "--now")
    ends = {"1": [79, "data", f"inputs/{upload.name}, line 5: unknown role", 0]}
    outcome = laptop.submit("two", files={"ends.json": ends}).outcome()
    assert outcome["message"].startswith(f"{laptop.folder}/rows.jsonl, line 5: unknown role (")
