"""All that `make chaos` does to a run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from chaos_judge import KEEP
from chaos_run import (
    MAX_STEPS,
    NAMED_WITHIN_S,
    ROLES,
    SAVE_STEPS,
    Fault,
    Hit,
    MissedError,
    Run,
    kill,
    mount,
)  # fmt: skip


def kill_worker(run: Run) -> None:
    run.after_a_step()
    run.hit(run.pids("worker"), "the worker")


def kill_agent(run: Run) -> None:
    run.after_a_step()
    run.hit(run.pids("agent"), "the agent")


def kill_torchrun(run: Run) -> None:
    run.after_a_step()
    run.hit(run.pids("run"), "torchrun")


def kill_supervisor(run: Run) -> None:
    """And a resume that does not wait until the attempt has saved."""
    run.after_a_step()
    run.hit([run.supervisor()], "the supervisor")
    run.pause(3.0)
    run.resume()


def kill_machine(run: Run) -> None:
    run.after_a_step()
    everybody = [run.supervisor(), *run.pids("agent", "run", "worker")]
    run.hit(everybody, "every process")
    run.resume()


def kill_rank(run: Run) -> None:
    run.after_a_step()
    rank = run.rng.randrange(run.fault.ranks)
    pid = int((run.store / "attempts" / "1" / f"rank{rank}.pid").read_text())
    run.hit([pid], f"rank {rank}")


def kill_agent_any_time(run: Run) -> None:
    """In preflight, while the worker starts, in training, in the export."""
    run.wait(lambda: run.events, "the first attempt")
    run.pause(run.calm.seconds)
    run.hit(run.pids("agent"), "the agent")


def stop_rank(run: Run) -> None:
    run.after_a_step()
    rank = run.rng.randrange(run.fault.ranks)
    pid = int((run.store / "attempts" / "1" / f"rank{rank}.pid").read_text())
    run.hit([pid], f"rank {rank}", signal.SIGSTOP)
    expect_named(run, rank)


def expect_named(run: Run, rank: int) -> None:
    """The attempt has to end soon and say which rank did not come."""
    began = time.time()
    run.wait(lambda: run.attempts[0].end, "the end of the stuck attempt", running=False)
    first = run.attempts[0]
    if f"rank {rank} did not arrive" not in first.end["message"]:
        run.problems.append(f"rank {rank} was stopped; the end says: {first.end['message']}")
    if first.ended - began > NAMED_WITHIN_S:
        run.problems.append(f"the stuck attempt took {first.ended - began:.0f} s to end")


def stop_rank_in_save(run: Run) -> None:
    run.wait(run.hits.exists, "the save")
    expect_named(run, 1)


def preempt(run: Run) -> None:
    run.wait(lambda: run.events, "the first attempt")
    run.pause(run.calm.seconds)
    run.hit(run.pids("agent"), "the agent", signal.SIGTERM)


def cancel(run: Run) -> None:
    run.after_a_step()
    run.ft("cloud", "cancel", run.NAME, "--grace", "120")
    end = run.outcome()
    if end["state"] == "SUCCEEDED":
        raise MissedError("it was done before it could be cancelled")
    if (end["state"], end["reason"]) != ("CANCELLED", "cancelled"):
        run.problems.append(f"cancelled, it ended as {end}")
    run.did.append("cancel")
    run.resume()


def at_point(point: str) -> Hit:
    """Kill rank 0 there, in a random save of the first attempt."""

    def before(run: Run) -> None:
        saves = run.max_steps // run.save_steps
        first = KEEP + 1 if point in {"prune", "pruning"} else 1
        step = run.save_steps * run.rng.randint(first, saves)
        run.order(point, step, rank=int(point == "peer"))

    return before


def stopped_in_save(run: Run) -> None:
    run.order("peer", run.save_steps * 2, rank=1, signum="SIGSTOP")


PUBLISHED = {"renamed", "prune", "pruning", "export", "exported"}
"""Points at which the checkpoint of that step is there already."""


def was_hit(run: Run) -> Iterator[str]:
    """It died where it was to, and went on from the newest checkpoint that can be there."""
    lines = run.hits.read_text().splitlines() if run.hits.exists() else []
    if len(lines) != 1:
        yield f"hit {len(lines)} times: {lines}"
        return
    point, step = lines[0].split()[0], int(lines[0].split()[1])
    attempts = run.attempts
    last = run.max_steps if point in {"export", "exported"} else step
    expected = last if point in PUBLISHED else step - run.save_steps
    starts = [attempt.start for attempt in attempts]
    if starts != [0, expected]:
        yield f"attempts began at steps {starts}, expected 0 and {expected}"


# Broken checkpoints.


def truncate(folder: Path, rng: random.Random) -> None:
    path = rng.choice(shards_of(folder))
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip_a_bit(folder: Path, rng: random.Random) -> None:
    path = rng.choice(shards_of(folder))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def remove_a_file(folder: Path, rng: random.Random) -> None:
    rng.choice(shards_of(folder)).unlink()


def remove_manifest(folder: Path, rng: random.Random) -> None:
    (folder / "manifest.json").unlink()


def tear_manifest(folder: Path, rng: random.Random) -> None:
    path = folder / "manifest.json"
    os.truncate(path, rng.randrange(path.stat().st_size - 1))


def name_another_plan(folder: Path, rng: random.Random) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["plan_sha256"] = f"{rng.getrandbits(256):064x}"
    path.write_text(json.dumps(manifest))


def shards_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name != "manifest.json" and p.stat().st_size)


def breaking(how: Callable[[Path, random.Random], None], count: int = 1) -> Hit:
    """Kill the worker and break the newest `count` checkpoints before the next attempt looks at them."""

    def hit(run: Run) -> None:
        run.after_a_step(first=run.save_steps * count)
        run.wait(lambda: len(run.checkpoints()) >= count, "enough checkpoints")
        supervisor = run.supervisor()
        # Held, so that it cannot begin the next attempt while the disk goes bad.
        kill([supervisor], signal.SIGSTOP)
        try:
            run.hit(run.pids("worker"), "the worker")
            run.wait(lambda: not run.pids(*ROLE_NAMES), "the end of the attempt", running=False)
            there = run.checkpoints()
            for folder in there[-count:]:
                run.damage(folder, how)
        finally:
            kill([supervisor], signal.SIGCONT)
        # Where none is left that is whole, it begins anew.
        run.intervals = 1 + count if len(there) > count else run.max_steps

    return hit


ROLE_NAMES = tuple(role.rpartition(".")[2] for role in ROLES)


# Media.


def refused_saves(count: int) -> Callable[[random.Random], list[str]]:
    def orders(rng: random.Random) -> list[str]:
        first = rng.randint(2, MAX_STEPS // SAVE_STEPS - count)
        return [f"disk-full@save:{first + n}" for n in range(count)]

    return orders


def one_save_refused(run: Run) -> Iterator[str]:
    said = warnings_of(run)
    if len(said) != 1 or "could not be written" not in said[0] or "No space left" not in said[0]:
        yield f"one save was refused, the log says {said}"
    if run.attempt != 1:
        yield f"{run.attempt} attempts, a refused save needs no restart"


def two_saves_refused(run: Run) -> None:
    run.fails("could not be written", "No space left on device", "2 in a row")
    run.intervals = 2
    run.resume()


def fill_disk(run: Run) -> None:
    """To the last byte, between any two writes; then there is room again, and somebody resumes."""
    run.after_a_step()
    ballast = run.store.parent / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
    with ballast.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(64))
    run.did.append(f"disk full at step {run.step}")
    # Who notices first says it: the supervisor, or a rank whose log has a known line.
    run.fails("No space left on device", reasons=("infra", "config"))
    run.intervals = 2
    ballast.unlink()
    run.resume()


def make_read_only(run: Run) -> None:
    run.after_a_step()
    mount("--bind", str(run.store), str(run.store))
    run.mounts.append(run.store)
    mount("-o", "remount,ro,bind", str(run.store))
    run.did.append(f"read-only at step {run.step}")
    run.fails("Read-only file system")
    run.intervals = 2
    subprocess.run(["umount", "-l", str(run.mounts.pop())], check=True)
    run.resume()


SECOND_AGENT = """
import sys, ft.runtime.agent as agent
agent.LOCK_TIMEOUT_S = 1.0
sys.exit(agent.main([sys.argv[1], "--attempt", "1"]))
"""


def second_writers(run: Run) -> None:
    """A second agent, a second supervisor, the same name again and a resume, while it runs."""
    run.wait(lambda: run.events, "the first attempt")
    run.pause(2.0)
    second = [sys.executable, "-c", SECOND_AGENT, str(run.store)]
    supervisor = [
        sys.executable, "-m", "ft.launcher.backends.local_supervisor", str(run.folder)
    ]  # fmt: skip
    ends = [
        subprocess.run(c, env=run.lab.env, capture_output=True, text=True, timeout=120, check=False)
        for c in (second, supervisor)
    ]
    recipe = str(run.lab.folder / "recipe.yml")
    run.ft("cloud", "run", recipe, "--backend", "local", "--name", run.NAME, "--detach")
    run.resume()
    if (run.folder / "outcome.json").exists():
        raise MissedError("it was over before the second writers had tried")
    told = [(end.returncode, end.stderr) for end in ends]
    if told[0][0] != 79 or "another attempt still writes" not in told[0][1]:
        run.problems.append(f"the second agent was not refused: {told[0]}")
    if told[1][0] != 0 or "another supervisor has this run" not in told[1][1]:
        run.problems.append(f"the second supervisor was not refused: {told[1]}")
    run.did.append("second agent, supervisor, run and resume")


def one_attempt(run: Run) -> Iterator[str]:
    numbers = {event["attempt"] for event in run.events}
    if numbers != {1}:
        yield f"attempts {sorted(numbers)}, expected one"


# Failures with a name.


LOOKED_AT_BYTES = 1 << 20
"""What `ft cloud run` looks at by itself: it refuses a bad row there, before there is a run."""


def spoil_a_row(run: Run) -> None:
    path = run.lab.folder / "data" / "rows.jsonl"
    lines = path.read_text().splitlines()
    number = run.rng.randrange(1, len(lines))
    lines[0] = json.dumps({**json.loads(lines[0]), "note": "x" * LOOKED_AT_BYTES})
    lines[number] = json.dumps({"messages": [{"role": "pirate", "content": "arr" * 99}]})
    path.write_text("\n".join(lines) + "\n")
    run.spoiled = number + 1, lines[number]
    run.did.append(f"row {number + 1} of {len(lines)}")


def row_is_named(run: Run) -> Iterator[str]:
    (number, text), end = run.spoiled, run.outcome()
    missing = [
        word for word in ("rows.jsonl", f" {number}:", text[:200]) if word not in end["message"]
    ]
    if missing or text[:201] in end["message"]:
        yield f"{end['message']!r} does not name {missing or 'only 200 characters'}"
    if end["exit_code"] != 79 or run.attempt != 1:
        yield f"exit code {end['exit_code']} after {run.attempt} attempts, expected 79 after one"


def warnings_of(run: Run) -> list[str]:
    logs = [e["data"] for e in run.events if e["kind"] == "log"]
    return [log["message"] for log in logs if log["level"] == "warning"]


def adjust_of(run: Run) -> dict[str, Any]:
    path = run.store / "adjust.json"
    values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return values


def few_bad_steps(rng: random.Random) -> list[str]:
    return [
        f"nan@step:{step}" for step in sorted(rng.sample(range(1, MAX_STEPS), rng.randint(1, 3)))
    ]


def bad_steps(count: int) -> Callable[[random.Random], list[str]]:
    def orders(rng: random.Random) -> list[str]:
        first = rng.randint(SAVE_STEPS + 1, MAX_STEPS - count)
        return [f"nan@step:{first + n}" for n in range(count)]

    return orders


def ordered_steps(run: Run) -> list[int]:
    return [int(order.rpartition(":")[2]) for order in run.did if order.startswith(("nan", "oom"))]


def bad_steps_are_left_out(run: Run) -> Iterator[str]:
    said = [int(line.split()[1].rstrip(":")) for line in warnings_of(run) if "not finite" in line]
    if said != ordered_steps(run):
        yield f"the log names steps {said}, bad were {ordered_steps(run)}"
    if run.attempt != 1:
        yield f"{run.attempt} attempts, within the budget no restart is needed"


def went_back_once(run: Run) -> Iterator[str]:
    bad, adjust, attempts = ordered_steps(run), adjust_of(run), run.attempts
    if (adjust.get("left_out"), adjust.get("rollbacks")) != (bad, bad[-1:]):
        yield f"adjust.json has {adjust}, bad were {bad}"
    if [a.reason for a in attempts] != ["rollback", "done"]:
        yield f"attempts ended by {[a.reason for a in attempts]}"
    elif attempts[1].start != (bad[0] - 1) // run.save_steps * run.save_steps:
        yield f"bad were {bad}, it went back to step {attempts[1].start}"


def out_of_memory(rng: random.Random) -> list[str]:
    return [f"oom@step:{rng.randint(1, MAX_STEPS)}"]


def micro_batch_is_halved(run: Run) -> Iterator[str]:
    attempts = run.attempts
    if adjust_of(run).get("micro_batch_size") != 1:
        yield f"adjust.json has {adjust_of(run)}"
    if attempts[0].reason != "oom" or attempts[-1].reason != "done":
        yield f"attempts ended by {[a.reason for a in attempts]}"
    for attempt in attempts[1:]:
        for path in run.store.glob(f"attempts/{attempt.number}/rank*.rows.jsonl"):
            sizes = {len(json.loads(line)["rows"]) for line in path.read_text().splitlines()}
            if sizes - {1}:
                yield f"{path.relative_to(run.store)} has micro batches of {sorted(sizes)} rows"


def kill_after_oom(run: Run) -> None:
    def trains_again() -> bool:
        return run.attempt == 2 and run.attempts[-1].start is not None

    run.wait(trains_again, "attempt 2")
    run.pause(1.0)
    run.hit(run.pids("worker"), "the worker")


# Many kills in one run.


def many(victim: str) -> Hit:
    """Kill it `run.kills` times, each time at a random step after the attempt has written a checkpoint."""

    def hit(run: Run) -> None:
        before = 0
        for _ in range(run.kills):
            saved = run.wait(partial(saved_after, run, before), f"a checkpoint, {run.did[-1:]}")
            step = saved + run.rng.randint(0, 4)
            run.wait(lambda step=step: run.step >= step, f"step {step}")
            run.pause(0.1)
            before = run.attempt
            if victim == "supervisor":
                run.hit([run.supervisor()], "the supervisor")
                run.resume()
            else:
                run.hit(run.pids(victim), f"the {victim}")

    return hit


def saved_after(run: Run, attempt: int) -> int | None:
    """The step of the first checkpoint that a later attempt than `attempt` has written."""
    return next((min(a.saved) for a in run.attempts if a.number > attempt and a.saved), None)


def hit_often(run: Run) -> Iterator[str]:
    attempts = run.attempts
    if len(attempts) != run.kills + 1:
        yield f"{len(attempts)} attempts, expected {run.kills + 1}"


FAULTS: dict[str, Fault] = {
    "worker": Fault("kill -9 of the worker after a random step", kill_worker),
    "agent": Fault("kill -9 of the agent after a random step", kill_agent),
    "agent-any-time": Fault("kill -9 of the agent, also before and after training", kill_agent_any_time),
    "torchrun": Fault("kill -9 of torchrun", kill_torchrun, ranks=2),
    "supervisor": Fault("kill -9 of the supervisor, then resume", kill_supervisor),
    "machine": Fault("kill -9 of every process at once, then resume", kill_machine),
    "rank": Fault("kill -9 of one of two ranks", kill_rank, ranks=2),
    **{
        f"save-{point}": Fault(f"kill -9 of the worker in a save: {what}", before=at_point(point), check=was_hit)
        for point, what in {
            "staging": "before it has begun",
            "weights": "the weights are there, the optimizer is not",
            "files": "before the hashes",
            "manifest": "before the manifest",
            "rename": "after the manifest, before the rename",
            "renamed": "after the rename, before anybody is told",
            "prune": "before an old one is dropped",
            "pruning": "while an old one is dropped",
            "export": "before the rename of final/",
            "exported": "after the rename of final/",
        }.items()
    },
    "save-peer": Fault("kill -9 of rank 1 of two in a save", before=at_point("peer"), check=was_hit, ranks=2),
    "truncated": Fault("the newest checkpoint has a shorter file", breaking(truncate)),
    "bit-flip": Fault("the newest checkpoint has another bit", breaking(flip_a_bit)),
    "missing-file": Fault("the newest checkpoint lacks a file", breaking(remove_a_file)),
    "no-manifest": Fault("the newest checkpoint lacks its manifest", breaking(remove_manifest)),
    "torn-manifest": Fault("the newest checkpoint has half a manifest", breaking(tear_manifest)),
    "other-plan": Fault("the newest checkpoint is of another plan", breaking(name_another_plan)),
    "two-broken": Fault("the newest two are broken", breaking(flip_a_bit, 2)),
    "all-broken": Fault("all that are kept are broken", breaking(truncate, KEEP)),
    "refused-save": Fault("the disk refuses one save", orders=refused_saves(1), check=one_save_refused),
    "refused-saves": Fault("it refuses two in a row, then resume", two_saves_refused, orders=refused_saves(2)),
    "disk-full": Fault("the disk is full, later resume", fill_disk, mounts=True),
    "read-only": Fault("the store gets read-only, later resume", make_read_only, mounts=True),
    "two-writers": Fault("others want to write as well", second_writers, check=one_attempt),
    "bad-row": Fault("a row that cannot be read", before=spoil_a_row, ends="data", check=row_is_named),
    "nan": Fault("1 to 3 steps with NaN", ends="done", orders=few_bad_steps, check=bad_steps_are_left_out),
    "nan-rollback": Fault("4 steps with NaN", ends="done", orders=bad_steps(4), check=went_back_once),
    "nan-stop": Fault(
        "8 steps with NaN and no checkpoint between", ends="deterministic", orders=bad_steps(8),
        recipe={"save_steps": 1000},
    ),
    "oom": Fault("out of memory in a step", ends="done", orders=out_of_memory, check=micro_batch_is_halved),
    "oom-rank": Fault(
        "out of memory on one of two ranks", ends="done", orders=out_of_memory, check=micro_batch_is_halved, ranks=2
    ),
    "oom-kill": Fault(
        "out of memory, later kill -9 of the worker", kill_after_oom, ends="done", orders=out_of_memory,
        check=micro_batch_is_halved,
    ),
    "stuck-rank": Fault("one of two ranks stops moving", stop_rank, ranks=2),
    "stuck-save": Fault("rank 1 of two stops moving in a save", stop_rank_in_save, before=stopped_in_save, ranks=2),
    "preempt": Fault("SIGTERM to the agent at a random moment", preempt),
    "cancel": Fault("`ft cloud cancel`, then resume", cancel),
    "ten-workers": Fault("ten kill -9 of the worker in one run", many("worker"), check=hit_often, long=True),
    "ten-agents": Fault("ten kill -9 of the agent in one run", many("agent"), check=hit_often, long=True),
    "ten-supervisors": Fault(
        "ten kill -9 of the supervisor in one run", many("supervisor"), check=hit_often, long=True
    ),
}  # fmt: skip

SHORT = (
    "supervisor", "rank", "save-rename", "save-pruning", "bit-flip", "refused-save", "nan-rollback", "oom"
)  # fmt: skip
"""For `make test`: a victim of each kind, a phase before and one after a checkpoint counts, and the other parts."""
