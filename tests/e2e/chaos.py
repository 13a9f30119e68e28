"""`make chaos`: a tiny model is trained again and again, each time with a fault, by `ft cloud run --backend local`.

Afterwards the run's own files are judged: no more lost than an interval, no broken checkpoint loaded, no second writer,
no hang, every step trained on its rows, the result bit for bit that of an undisturbed run. Prints fault × outcome;
exits 1 if anything was broken and keeps that run's folder. The same seed makes the same plan.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos_faults import FAULTS, SHORT, adjust_of
from chaos_judge import (
    Calm,
    attempts_of,
    judge_aside,
    judge_losses,
    judge_result,
    judge_resumes,
    judge_rows,
    judge_store,
    judge_writers,
    steps_lost,
)
from chaos_run import (
    SAVE_STEPS,
    TEN_SAVE_STEPS,
    Fault,
    HungError,
    MissedError,
    Run,
    can_mount,
    processes_of,
)  # fmt: skip

TRIES = 4
"""A run may be over before its fault could hit it."""


def short(did: Sequence[str]) -> str:
    """What was done to a run, in a line."""
    some = [*did[:2], "…", did[-1]] if len(did) > 4 else did
    return "; ".join(some)


@dataclass
class Result:
    number: int
    name: str
    ends: str
    """same, done or failed: as it should; skipped; or BROKEN."""
    problems: list[str] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    attempts: int = 0
    lost: list[int] = field(default_factory=list)
    damaged: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        told = f"{self.name}: {self.ends}, {self.attempts} attempts, lost {self.lost}, {self.seconds:.0f} s"
        return f"{told} ({short(self.did)})"


def judge(run: Run) -> list[str]:
    """What is wrong with a run that has ended."""
    end, fault, store, events = run.outcome(), run.fault, run.store, run.events
    attempts, succeeded = attempts_of(events), end["state"] == "SUCCEEDED"
    problems = []
    if succeeded != (fault.ends in {"same", "done"}):
        problems.append(f"it ended as {end}")
    if not succeeded and (end["state"], end["reason"]) != ("FAILED", fault.ends):
        problems.append(f"it ended as {end}, expected {fault.ends}")
    problems += judge_losses(
        attempts, run.damaged, save_steps=run.save_steps, intervals=run.intervals
    )
    problems += judge_resumes(events, run.damaged)
    problems += judge_writers(attempts)
    problems += judge_store(store, run.record["plan_sha256"], ended_well=succeeded)
    problems += judge_aside(store, events, run.damaged)
    if succeeded:
        problems += judge_rows(store, run.calm, adjust_of(run).get("left_out", ()))
        if fault.ends == "same":
            problems += judge_result(store / "final", events, run.calm, steps=run.max_steps)
    problems += fault.check(run)
    living = processes_of(store)
    if living:
        problems.append(f"still there: {living}")
    return problems


def disturb(run: Run) -> None:
    """The run from start to end; `run.problems` says what was wrong. Raises: MissedError."""
    try:
        run.fault.before(run)
        run.start()
        run.fault.hit(run)
        run.outcome()
        run.problems += judge(run)
    except MissedError:
        raise
    except HungError as hung:
        run.problems.append(str(hung))
    except Exception as error:  # noqa: BLE001  # The other runs go on.
        where = traceback.extract_tb(error.__traceback__)[-1]
        run.problems.append(f"{type(error).__name__}: {error} ({where.name}:{where.lineno})")
    finally:
        run.clean_up()


class Chaos:
    """The labs of all runs, below one folder."""

    def __init__(
        self, folder: Path, make_lab: Callable[[Path], Any], *, seed: int, kills: int
    ) -> None:
        self.folder, self.make_lab, self.seed, self.kills = folder, make_lab, seed, kills
        self.calm: dict[tuple[int, int], Calm] = {}
        self.halt = threading.Event()
        """Set: nobody waits any more."""

    def lab(self, name: str) -> Any:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        lab = self.make_lab(folder)
        # Threads that spin while they wait for each other would only take the cores from the other runs, and what
        # killed processes leave among temporary files goes with the run.
        more = {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
        return replace(lab, env={**lab.env, **more})

    def train_calmly(self, fault: Fault) -> None:
        """Once for all faults that are compared with it."""
        if fault.like not in self.calm:
            like = Fault("", ranks=fault.ranks, long=fault.long)
            name = f"calm-{like.ranks}-{like.steps[0]}"
            empty = Calm({}, {}, (0, 0), {}, 0.0)
            run = Run(like, self.lab(name), random.Random(0), empty, self.halt)
            try:
                run.start()
                end = run.outcome()
                assert end["state"] == "SUCCEEDED", (end, run.lab.folder)
                self.calm[fault.like] = Calm.of(run.store, run.events)
            finally:
                run.clean_up()

    def run(self, number: int, name: str) -> Result:
        """One run of the plan; its folder stays only if something was wrong."""
        began, fault = time.monotonic(), FAULTS[name]
        result = Result(number, name, "BROKEN")
        for attempt in range(TRIES):
            rng = random.Random(f"{self.seed}.{number}.{attempt}")
            lab = self.lab(f"{number:03d}-{name}-{attempt}")
            run = Run(fault, lab, rng, self.calm[fault.like], self.halt)
            run.kills = self.kills
            try:
                disturb(run)
                result.problems = run.problems
            except MissedError as missed:
                result.problems = [f"missed {TRIES} times: {missed}"]
                if attempt < TRIES - 1:
                    shutil.rmtree(run.lab.folder)
                continue
            break
        result.did, result.damaged = run.did, len(run.damaged)
        result.attempts, result.lost = len(run.left), steps_lost(run.left)
        result.seconds = time.monotonic() - began
        if result.problems:
            result.problems.append(f"its files: {run.lab.folder}")
        else:
            result.ends = fault.ends if fault.ends in {"same", "done"} else "failed"
            shutil.rmtree(run.lab.folder)
        return result


def plan_of(seed: int, names: Sequence[str]) -> Iterator[str]:
    """Without end: all faults in random order, again and again; the long ones once."""
    rng, left = random.Random(seed), list(names)
    while left:
        rng.shuffle(left)
        yield from left
        left = [name for name in left if not FAULTS[name].long]


def table(results: Sequence[Result]) -> str:
    """Fault × outcome; 80 columns."""
    head = ("fault", "runs", "same", "done", "failed", "BROKEN", "attempts", "lost", "median s")
    layout = "{:<16}{:>5}{:>6}{:>6}{:>8}{:>8}{:>10}{:>6}{:>10}"
    lines = [layout.format(*head), "-" * 75]
    by_name = {name: [r for r in results if r.name == name] for name in FAULTS}
    for name, found in [*by_name.items(), ("all", list(results))]:
        real = [r for r in found if r.ends != "skipped"]
        if found and not real:
            lines.append(f"{name:<16}{0:>5}  {found[0].problems[0]}")
        if real:
            counts = [sum(r.ends == e for r in real) for e in ("same", "done", "failed", "BROKEN")]
            lines.append(
                layout.format(
                    name,
                    len(real),
                    *(count or "·" for count in counts),
                    f"{statistics.mean(r.attempts for r in real):.1f}",
                    max((lost for r in real for lost in r.lost), default="·"),
                    f"{statistics.median(r.seconds for r in real):.0f}",
                )
            )
    return "\n".join(lines)


LEGEND = f"""\
same: SUCCEEDED; adapter, losses and counters bit for bit those of a calm run
done: SUCCEEDED, with the numbers that the fault leaves
failed: FAILED at once and for good, with the right name
attempts: mean; lost: most steps done again at one restart, it saves every {SAVE_STEPS}
(ten-*: every {TEN_SAVE_STEPS}; each save that was broken or refused adds an interval)"""


def summary(results: Sequence[Result]) -> str:
    real = [r for r in results if r.ends != "skipped"]
    restarts = sum(len(r.lost) for r in real)
    broken = sum(r.damaged for r in real)
    bad = [r for r in real if r.ends == "BROKEN"]
    return (
        f"{len(real)} runs, {restarts} restarts of training, {broken} checkpoints broken on purpose: "
        f"{'every promise kept' if not bad else f'BROKEN: {len(bad)}'}"
    )


@contextlib.contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """Removed in the end unless something of interest is left in it."""
    folder = Path(tempfile.mkdtemp(prefix="ft-chaos-", dir=parent))
    try:
        yield folder
    finally:
        for path in [*folder.glob("calm-*"), folder / "tiny-llama"]:
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def lab_maker(folder: Path) -> Callable[[Path], Any]:
    """(empty folder) -> a laptop of its own, all with one model."""
    from laptop import make_lab, make_tiny_model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = make_tiny_model(folder / "tiny-llama")
    return lambda path: make_lab(path, model)


def skipped(name: str, number: int, *, mounts: bool) -> Result | None:
    if FAULTS[name].mounts and not mounts:
        return Result(number, name, "skipped", ["skipped: mounting a disk needs root"])
    return None


@contextlib.contextmanager
def halting(chaos: Chaos, pool: ThreadPoolExecutor) -> Iterator[None]:
    """An interrupt ends the runs that are under way and begins no other."""
    try:
        yield
    except BaseException:
        chaos.halt.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def carry_out(
    chaos: Chaos, plan: Sequence[tuple[int, str]], jobs: int, say: Callable[[str], None]
) -> list[Result]:
    """All runs of the plan, `jobs` at a time."""
    mounts = can_mount()
    results = [r for n, name in plan if (r := skipped(name, n, mounts=mounts)) is not None]
    left = [(n, name) for n, name in plan if not skipped(name, n, mounts=mounts)]
    with ThreadPoolExecutor(jobs) as pool, halting(chaos, pool):
        likes = {FAULTS[name].like: FAULTS[name] for _, name in left}
        list(pool.map(chaos.train_calmly, likes.values()))
        say(f"{len(likes)} undisturbed runs to compare with")
        began = time.monotonic()
        futures = [pool.submit(chaos.run, n, name) for n, name in left]
        for done, future in enumerate(as_completed(futures), start=1):
            result = future.result()
            results.append(result)
            rest_s = (time.monotonic() - began) / done * (len(left) - done)
            clock = time.strftime("%H:%M:%S")
            say(
                f"{clock} [{done:>3}/{len(left)}] #{result.number} {result}; {rest_s / 60:.0f} min left"
            )
            for problem in result.problems:
                say(f"    BROKEN: {problem}")
    return sorted(results, key=lambda r: r.number)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--only", action="append", choices=FAULTS, metavar="FAULT")
    parser.add_argument("--number", type=int, help="only this run of the plan, as its line says #N")
    parser.add_argument("--short", action="store_true", help=f"each of: {', '.join(SHORT)}")
    parser.add_argument("--kills", type=int, default=10, help="of each of the faults ten-*")
    parser.add_argument("--folder", type=Path, help="where to work; default: among temporary files")
    parser.add_argument("--list", action="store_true", help="the faults")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.list:
        print("\n".join(f"{name:<16} {fault.what}" for name, fault in FAULTS.items()))
        return 0
    names = arguments.only or (SHORT if arguments.short else list(FAULTS))
    runs = len(SHORT) if arguments.short else arguments.runs
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    plan = list(enumerate(itertools.islice(plan_of(seed, names), runs), start=1))
    if arguments.number is not None:
        plan = [(n, name) for n, name in plan if n == arguments.number]
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    with work_folder(arguments.folder) as folder:
        say(f"seed {seed}, {len(plan)} runs, {arguments.jobs} at a time, in {folder}")
        chaos = Chaos(folder, lab_maker(folder), seed=seed, kills=arguments.kills)
        results = carry_out(chaos, plan, arguments.jobs, say)
    say(f"\nseed {seed}, {len(os.sched_getaffinity(0))} cores\n{table(results)}\n{LEGEND}")
    say(f"\n{summary(results)}")
    for result in results:
        if result.ends == "BROKEN":
            again = " ".join(f"--only {name}" for name in arguments.only or ())
            again += " --short" if arguments.short else ""
            say(f"#{result.number} again: chaos.py --seed {seed} --number {result.number} {again}")
    return int(any(result.ends == "BROKEN" for result in results))


if __name__ == "__main__":
    # Killed runs are cleaned up as interrupted ones are.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except AssertionError:
        traceback.print_exc()
        raise SystemExit(1) from None
