"""The command line of one rank. For people there is `ft preflight`, which knows K, M and G."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ft.runtime.preflight.collectives import SWEEPS, Sweep
from ft.runtime.preflight.table import ELEMENT_BYTES, TRAINING_OPS, Op

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
TIMEOUT_S = 60.0
ITERS = 20
"""As nccl-tests has it."""
BUDGET_S = 0.1
"""For the timed calls of one test, unless somebody says how many."""
ODD_PART = 16
"""The odd size is about this part of the largest one."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to check, and where."""

    device: str
    disk: Path
    min_free_bytes: int
    json_out: Path
    timeout_s: float
    sweep: Sweep
    second_opinion: bool

    @property
    def backend(self) -> str:
        return BACKENDS[self.device]


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Options]:
    """Raises: SystemExit (2) with what was expected."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.timeout_s <= 0:
        parser.error(f"--timeout-s {given.timeout_s:g}: expected more than 0 seconds")
    if given.max_bytes is not None and not 0 < given.min_bytes <= given.max_bytes:
        parser.error(
            f"--min-bytes {given.min_bytes} --max-bytes {given.max_bytes}: expected 1 or more, "
            "and the larger one behind"
        )
    return parser, Options(
        given.device,
        given.disk,
        given.min_free_bytes,
        given.json_out,
        given.timeout_s,
        SWEEPS[BACKENDS[given.device]] if given.max_bytes is None else _sweep(given),
        given.second_opinion,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ft.runtime.preflight", description=__doc__)
    add = parser.add_argument
    add("--device", choices=sorted(BACKENDS), required=True)
    add("--disk", type=Path, required=True, help="folder of the run, checkpoints included")
    add("--min-free-bytes", type=int, required=True, help="that the run needs there")
    add("--json-out", type=Path, required=True, help="the report; rank 0 writes it")
    add("--timeout-s", type=float, default=TIMEOUT_S, help="for one step (default: %(default)g)")
    add("--op", action="append", choices=[str(op) for op in Op], help="may be given again")
    add("--min-bytes", type=int, default=ELEMENT_BYTES)
    add("--max-bytes", type=int, help="without it: a short sweep, as before each training")
    add("--step-factor", type=int, default=2)
    add("--step-bytes", type=int, help="instead of the factor")
    add("--iters", type=int, help=f"timed calls; by default {ITERS}, fewer where they are slow")
    add("--warmup", type=int, default=1)
    add("--check", type=int, choices=(0, 1), default=1, help="compare the data")
    add("--second-opinion", action="store_true", help="ask all_reduce_perf too, if it is there")
    return parser


def _sweep(given: argparse.Namespace) -> Sweep:
    return Sweep(
        tuple(Op(op) for op in given.op) if given.op else TRAINING_OPS,
        sizes(given.min_bytes, given.max_bytes, given.step_factor, given.step_bytes),
        # The lowest bit makes it odd.
        odd_count=given.max_bytes // ELEMENT_BYTES // ODD_PART | 1,
        iters=given.iters or ITERS,
        warmup=given.warmup,
        check=bool(given.check),
        budget_s=None if given.iters else BUDGET_S,
    )


def sizes(min_bytes: int, max_bytes: int, factor: int, step_bytes: int | None) -> tuple[int, ...]:
    """From the smallest to at most the largest, as nccl-tests goes."""
    found = []
    size = min_bytes
    while size <= max_bytes:
        found.append(size)
        size = size + step_bytes if step_bytes else size * max(2, factor)
    return tuple(found)
