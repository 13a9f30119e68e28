"""A million lengths into packs on one core: ft's best-fit-decreasing beside TRL's `bfd`, and Axolotl's multipack.

python tests/bench/pack.py [--rows 1000000] [--capacity 4096] [--axolotl-python PATH]

All sides get the same lengths on the same core, one after the other, and only choose who goes where. TRL's function
packs Arrow columns of tokens; here it gets one byte a token, and all rows at once, which fills packs better than the
1000 at a time of `SFTConfig(packing=True)`. Its gather of those bytes is part of its time; `ft` makes batches later.
Efficiency is tokens over packs times capacity; the bound is that of any packing: as many packs as the tokens fill, or
as there are rows longer than half a pack. Exit 1 if ft is less efficient than TRL, or needs more than 3 seconds.
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

from ft.runtime.data.pack import pack, pack_sequentially

LIMIT_S = 3.0

AXOLOTL = """\
import json, sys, time
import numpy as np
from axolotl.utils.samplers.multipack import allocate_sequentially, pack_parallel
lengths, capacity = np.load(sys.argv[1]), int(sys.argv[2])
pack_parallel(lengths[:1000], capacity, 100_000, 200, 1)  # Compiles.
began = time.perf_counter()
bins = pack_parallel(lengths, capacity, 100_000, 200, 1)
print(json.dumps([time.perf_counter() - began, len(bins)]))
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
    began = time.perf_counter()
    count = act()
    return time.perf_counter() - began, count


def trl(lengths: np.ndarray, capacity: int) -> int:
    import pyarrow as pa
    from trl.data_utils import _pack_bfd

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = pa.array(np.zeros(offsets[-1], dtype=np.int8))
    return len(
        _pack_bfd(pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, tokens)}), capacity)
    )


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
        if args.axolotl_python:
            found["Axolotl"] = axolotl(args.axolotl_python, lengths[order], capacity)
        for packer, (seconds, count) in found.items():
            share = lengths.sum() / (count * capacity)
            print(
                f"{name:10} {packer:14} {seconds:8.2f} {seconds / found['ft'][0]:6.1f}x {count:8} "
                f"{share:11.4%} {count / bound - 1:11.3%}"
            )
        failed |= found["ft"][1] > found["TRL bfd"][1] or found["ft"][0] > LIMIT_S
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
