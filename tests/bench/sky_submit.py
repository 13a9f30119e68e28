"""What `ft cloud run --backend sky --detach` takes beside `sky jobs launch --detach-run` of an equal task.

.venv-sky/bin/python tests/bench/sky_submit.py [--rounds 7]

Both talk to one API server of SkyPilot's on Slurm on loopback (tests/e2e/sky_lab). The bare task is ft's own: the same
resources, setup, file and secrets. Each row is a whole process; both submit and come back once the job has its number.
They take turns, and a job is cancelled, and has ended, before the next process begins. `bucket` is a part of ft's time,
measured in it: what it writes to the bucket, which is on loopback too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "e2e")]

import sky_ground  # noqa: E402  # Known by this path only.
from sky_lab.lab import raised  # noqa: E402

from ft.launcher.backends import sky_request  # noqa: E402

PYTHON, SKY, DRY = "python -c pass", "import sky", "ft cloud run --dry-run"
BARE, FT = "sky jobs launch --detach-run", "ft cloud run --detach"
BUCKET, BEYOND = "bucket", "ft without the bucket"
ENDS_S = 300.0

# `ft` itself, which leaves behind how long it was at the bucket. Nothing is imported that it would not import.
TIMED_FT = """
import pathlib, time
from ft.launcher.bucket_store import RunBucket
from ft.launcher.cli.app import main

spent = []


def timed(method):
    def call(*arguments, **options):
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - began)
            pathlib.Path("bucket").write_text(str(sum(spent)))

    return call


RunBucket.upload, RunBucket.reopen = timed(RunBucket.upload), timed(RunBucket.reopen)
main()
"""


class Bench:
    """A recipe, and a task that is equal to what ft makes of it."""

    def __init__(self, ground: sky_ground.SkyGround) -> None:
        self.ground = ground
        self.recipe = str(ground.recipe())
        self.secrets: list[str] = []
        said = json.loads(self.run(DRY))["request"]
        self.secrets = [word for name in said["secrets"] for word in ("--secret", name)]
        asked = sky_request.filled(said, "bare", str(ground.folder))
        (ground.folder / "bare.yml").write_text(json.dumps(sky_request.task_of(asked)))

    def run(self, name: str) -> str:
        """What it prints. Raises: SystemExit with what it said if it fails."""
        run = ["cloud", "run", self.recipe, "--backend", "sky"]
        words = {
            PYTHON: ["-c", "pass"],
            SKY: ["-c", "import sky"],
            DRY: ["-m", "ft.launcher.cli.app", *run, "--dry-run"],
            BARE: ["jobs", "launch", "--yes", "--detach-run", *self.secrets, "bare.yml"],
            FT: ["-c", TIMED_FT, *run, "--yes", "--detach"],
        }[name]
        python = Path(sys.executable)
        program = python.with_name("sky") if name == BARE else python
        done = subprocess.run(
            [program, *words], cwd=self.ground.folder, env=self.ground.env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}{done.stdout}")
        if name == FT:
            # What the bare task sends is there from then on.
            (bundle,) = self.ground.folder.glob(
                f"state/ft/runs/{done.stdout.strip()}/ft-source.tar"
            )
            (self.ground.folder / "ft-source.tar").write_bytes(bundle.read_bytes())
        return done.stdout

    def measured(self, name: str) -> float:
        """Seconds that a process takes."""
        began = time.perf_counter()
        self.run(name)
        return time.perf_counter() - began

    def clear(self) -> None:
        """Cancel all jobs, and wait until they have ended."""
        import sky

        def living() -> list[int]:
            asked = sky.jobs.queue_v2(refresh=False, fields=["job_id", "status"])
            return [job["job_id"] for job in sky.get(asked)[0] if not job["status"].is_terminal()]

        until = time.monotonic() + ENDS_S
        jobs = living()
        if jobs:
            sky.get(sky.jobs.cancel(job_ids=jobs))
        while living():
            if time.monotonic() > until:
                raise SystemExit(f"jobs go on {ENDS_S:g} s after they were cancelled")
            time.sleep(2)


def measure(bench: Bench, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    names = [PYTHON, SKY, DRY, FT, BARE]
    for turn in range(rounds + 1):
        for name in reversed(names) if turn and turn % 2 else names:
            taken = bench.measured(name)
            bench.clear()
            if not turn:  # The first one writes bytecode, and SkyPilot's server fills its caches.
                continue
            found[name].append(taken)
            if name == FT:
                bucket_s = float((bench.ground.folder / "bucket").read_text())
                found[BUCKET].append(bucket_s)
                found[BEYOND].append(taken - bucket_s)
    return found


def show(found: dict[str, list[float]]) -> None:
    bare_s = statistics.median(found[BARE])
    print("| process | min s | median s | max s | of bare |")
    print("|---|---|---|---|---|")
    for name in (PYTHON, SKY, DRY, BARE, FT, BUCKET, BEYOND):
        walls = found[name]
        cells = [f"{value:.2f}" for value in (min(walls), statistics.median(walls), max(walls))]
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(walls) / bare_s:.2f} |")
    pairs = [one / other for one, other in zip(found[FT], found[BARE], strict=True)]
    print(
        f"\nOf {len(pairs)} pairs, ft to bare: median {statistics.median(pairs):.2f}, "
        f"{min(pairs):.2f} to {max(pairs):.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, raised() as lab:
        os.environ.update(lab.environment)
        with sky_ground.raised(lab, Path(name)) as ground:
            show(measure(Bench(ground), arguments.rounds))


if __name__ == "__main__":
    main()
