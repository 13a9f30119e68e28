"""Checkpoints of two nodes that share no folder, with two ranks each: real processes, gloo, no model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ft.recipes.runstore import why_invalid
from ft.recipes.store import LocalStore

RANK = """\
import json, shutil, socket, sys
from pathlib import Path
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.resolve import resolve
from ft.recipes.simulate import Simulation
from ft.recipes.store import LocalStore
from ft.runtime.checkpoint.write import Checkpoints
from ft.runtime.ends import AttemptError
from ft.runtime.events import Events
from ft.runtime.node import Rank
from ft.runtime.simulate import faults_of
from ft.runtime.world import World, own_sockets

root = Path(sys.argv[1])
recipe = "base_model: a/b\\nlearning_rate: 1e-4\\ndatasets: [{path: a/b, type: alpaca}]\\n"
machine = Machine("cpu", "cpu", 2, 2, bf16=False, tf32=False)
plan = resolve(normalize(loads(recipe)).flat, Facts(files={}, machine=machine))
rank = Rank.from_env()
world = World(plan.parallel, rank)
store = LocalStore(root / f"node{world.node}")
events = Events(store, 1, speaks=rank.local_rank == 0)
faults = faults_of([Simulation("disk-full", 2)], attempt=1, rank=rank.rank, world_size=4, as_planned=True)
checkpoints = Checkpoints(store, events, world, faults, plan_sha256="0" * 64, keep=4)
told = {"node": world.node, "texts": world.from_nodes(f"of rank {rank.rank}")}

def write(folder):
    (folder / f"rank{rank.rank}").write_bytes(bytes([rank.rank]) * (rank.rank * 1_000_000))
    (folder / f"sub{rank.rank}").mkdir()
    (folder / f"sub{rank.rank}" / "file").write_text("x")

told["saved"] = [checkpoints.save(step, write) for step in (2, 4)]

def find():
    try:
        found = checkpoints.newest()
    except AttemptError as error:
        return [int(error.exit_code), error.message]
    return str(found.relative_to(root))

def copy(folder):
    shutil.copytree(root / "node0" / "checkpoints" / folder.name, folder)

def another(folder):
    staged = store.staging(folder.name)
    (staged / "rank0").write_text("other weights")
    store.publish(staged, folder.name, step=2, attempt=1, plan_sha256="0" * 64, meta={})

def half(folder):
    copy(folder)
    (folder / "sub1" / "file").unlink()

told["found"] = [find()]
for put in (another, half, copy):
    if rank.rank == 2:
        put(root / "node1" / "checkpoints" / "step-00000002")
    world.barrier()
    told["found"].append(find())
sockets = [s for s in own_sockets() if s.family != socket.AF_UNIX and s.type == socket.SOCK_STREAM]
told["kept_alive"] = [s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for s in sockets]
world.barrier()
(root / f"told{rank.rank}.json").write_text(json.dumps(told))
"""


def run_four(root: Path) -> list[dict[str, Any]]:
    """Two ranks on each of two nodes; what each has told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for node in (0, 1):
        (root / f"node{node}").mkdir()
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "4"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(root)],
            env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(4)
    ]  # fmt: skip
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4, "\n".join(errors)[-6000:]
    return [json.loads((root / f"told{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.slow
def test_a_checkpoint_of_two_nodes_is_whole_on_node_0_and_read_where_it_is_the_same(
    tmp_path: Path,
) -> None:
    told = run_four(tmp_path)
    zero, one = (LocalStore(tmp_path / f"node{node}") for node in (0, 1))
    assert [each["node"] for each in told] == [0, 0, 1, 1]
    assert [each["texts"] for each in told] == [["of rank 0", "of rank 2"]] * 4
    # The second save fails on rank 3, and then nothing of it stays anywhere.
    assert [each["saved"] for each in told] == [[True, False]] * 4
    folder = zero.checkpoints / "step-00000002"
    assert why_invalid(folder) is None
    assert [(folder / f"rank{rank}").read_bytes() for rank in range(4)] == [
        bytes([rank]) * (rank * 1_000_000) for rank in range(4)
    ]
    assert sorted(path.name for path in folder.glob("sub*/file")) == ["file"] * 4
    for store in (zero, one):
        assert not list(store.root.glob(".staging-*"))
        saved = [event.data["step"] for event in store.events()[0] if event.kind == "checkpoint"]
        assert saved == [2]
    said = f"step-00000002, which node 0 goes on from, is not to be had on node 1 ({socket.gethostname()}): "
    for each in told:
        assert each["found"] == [
            [77, f"{said}it is not there"],
            [77, f"{said}it is another one than node 0's"],
            [77, f"{said}sub1/file is missing"],
            f"node{each['node']}/checkpoints/step-00000002",
        ]
        assert len(each["kept_alive"]) >= 6
        assert set(each["kept_alive"]) == {1}
    names = sorted(path.name for path in one.checkpoints.iterdir())
    assert names == ["broken-00000002", "broken-00000002-2", "step-00000002"]
