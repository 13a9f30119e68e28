"""A million lengths into packs on one core: ft's best-fit-decreasing beside TRL's `bfd`, and Axolotl's multipack.

python tests/bench/pack.py [--rows 1000000] [--capacity 4096] [--axolotl-python PATH]

All sides get the same lengths on the same core, one after the other; seconds are of the processor, so that a busy
machine counts less. TRL packs Arrow columns and its time includes gathering them; here they hold nulls, which take no
memory, and come all at once. `SFTConfig(packing=True)` packs 1000 rows at a time: `TRL by 1000`, counted by ours,
which has as many packs (a test shows it), so without a time. Efficiency is tokens over packs times capacity; the bound
is that of any packing: as many packs as the tokens fill, or as there are rows longer than half a pack. Exit 1 if ft is
less efficient than TRL, or needs more than 3 seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from trl.data_utils import _pack_bfd

from ft.runtime.data.pack import Packing, pack, pack_sequentially

LIMIT_S = 3.0

AXOLOTL = """\
import json, sys, time
import numpy as np
from axolotl.utils.samplers.multipack import allocate_sequentially, pack_parallel
lengths, capacity = np.load(sys.argv[1]), int(sys.argv[2])
pack_parallel(lengths[:1000], capacity, 100_000, 200, 1)  # Compiles.
began = time.process_time()
bins = pack_parallel(lengths, capacity, 100_000, 200, 1)
print(json.dumps([time.process_time() - began, len(bins)]))
"""


def distributions(rows: int, capacity: int) -> dict[str, np.ndarray]:
    """Name -> lengths from 1 to `capacity`."""
    rng = np.random.default_rng(0)
    short, long = rng.normal(0.06, 0.03, rows), rng.normal(0.6, 0.15, rows)
    found = {
        "uniform": rng.integers(1, capacity + 1, rows),
        "lognormal": rng.lognormal(math.log(400), 1.0, rows),
        "bimodal": np.where(rng.random(rows) < 0.8, short, long) * capacity,
        "all short": rng.integers(5, 65, rows),
        "all equal": np.full(rows, capacity * 3 // 10),
    }
    return {name: np.clip(ls, 1, capacity).astype(np.int64) for name, ls in found.items()}


def timed(act: Callable[[], int]) -> tuple[float, int]:
    """(seconds, packs)."""
    began = time.process_time()
    count = act()
    return time.process_time() - began, count


def trl(lengths: np.ndarray, capacity: int) -> int:
    """Packs of TRL's own function."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    small = offsets[-1] < 2**31
    lists = pa.ListArray if small else pa.LargeListArray
    ends = pa.array(offsets, pa.int32() if small else pa.int64())
    table = pa.table({"input_ids": lists.from_arrays(ends, pa.nulls(int(offsets[-1])))})
    return len(_pack_bfd(table, capacity))


def axolotl(python: Path, lengths: np.ndarray, capacity: int) -> tuple[float, int]:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, lengths)
        file.flush()
        command = [str(python), "-c", AXOLOTL, file.name, str(capacity)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, count = json.loads(done.stdout.splitlines()[-1])
    return seconds, count


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--capacity", type=int, default=4096)
    parser.add_argument("--axolotl-python", type=Path, help="Python of an environment with axolotl")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    capacity, failed = args.capacity, False
    print(f"{args.rows} rows, packs of {capacity} tokens, one core")
    print(
        f"{'lengths':10} {'packer':14} {'seconds':>8} {'of ft':>7} {'packs':>8} {'efficiency':>11} {'over bound':>11}"
    )
    # What is done once in a process is not packing.
    trl(np.ones(10, dtype=np.int64), 4)
    pack(np.ones(10, dtype=np.int64), 4, np.arange(10))
    for name, lengths in distributions(args.rows, capacity).items():
        order = np.random.default_rng(1).permutation(args.rows)
        bound = max(-(-int(lengths.sum()) // capacity), int((2 * lengths > capacity).sum()))
        found = {
            "ft": timed(lambda ls=lengths, o=order: len(pack(ls, capacity, o))),
            "ft, neighbours": timed(
                lambda ls=lengths, o=order: len(pack_sequentially(ls, capacity, o))
            ),
            "TRL bfd": timed(lambda ls=lengths: trl(ls, capacity)),
        }
        by_1000 = len(Packing(capacity, group_size=1000).packs(lengths, order))
        found["TRL by 1000"] = (0.0, by_1000)
        if args.axolotl_python:
            found["Axolotl"] = axolotl(args.axolotl_python, lengths[order], capacity)
        for packer, (seconds, count) in found.items():
            took = f"{seconds:8.2f} {seconds / found['ft'][0]:6.1f}x"
            took = took if seconds else f"{'-':>8} {'-':>7}"
            share = lengths.sum() / (count * capacity)
            print(
                f"{name:10} {packer:14} {took} {count:8} {share:11.4%} {count / bound - 1:11.3%}",
                flush=True,
            )
        failed |= found["ft"][1] > found["TRL bfd"][1] or found["ft"][0] > LIMIT_S
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
