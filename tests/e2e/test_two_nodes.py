"""One attempt over two nodes that share nothing but the network: two agents, each with a folder of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ft.recipes.plan import RunPlan
from ft.recipes.runstore import (
    Adjust,
    RankExit,
    Reason,
    Status,
    combined,
    end_of_node,
    newest_valid,
)
from ft.recipes.store import LocalStore

pytestmark = pytest.mark.e2e

ENDS_WITHIN_S = 120


def two_free_ports() -> int:
    """The lower one of two neighbours."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


@dataclass
class Nodes:
    """Their stores, and the agents that were started on them."""

    stores: list[LocalStore]
    env: dict[str, str]
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, attempt: int, *simulate: str) -> None:
        """As a vendor does: one agent per machine."""
        where = {
            "FT_NUM_NODES": "2",
            "FT_MASTER_ADDR": "127.0.0.1",
            "FT_MASTER_PORT": str(two_free_ports()),
        }
        faults = [word for fault in simulate for word in ("--simulate", fault)]
        self.agents = []
        for rank, store in enumerate(self.stores):
            folder = store.attempt_folder(attempt)
            folder.mkdir(parents=True)
            env = {
                **self.env,
                **where,
                "FT_NODE_RANK": str(rank),
                "XDG_CACHE_HOME": f"{store.root}-cache",
            }
            command = [sys.executable, "-P", "-m", "ft.runtime.agent", str(store.root)]
            with (folder / "agent.log").open("wb") as log:
                self.agents.append(
                    subprocess.Popen(
                        [*command, "--attempt", str(attempt), *faults],
                        env=env,
                        stdout=log,
                        stderr=log,
                    )
                )

    def codes(self) -> list[int]:
        return [agent.wait(ENDS_WITHIN_S) for agent in self.agents]

    def end(self, attempt: int) -> RankExit:
        """What a vendor makes of both."""
        statuses = [store.get_status() for store in self.stores]
        codes = self.codes()
        return combined(
            [
                end_of_node(code, status, attempt=attempt)
                for code, status in zip(codes, statuses, strict=True)
            ]
        )

    def status(self, node: int) -> Status:
        status = self.stores[node].get_status()
        assert status is not None
        return status

    def logs(self, attempt: int) -> str:
        """For a failure."""
        folders = [store.attempt_folder(attempt) for store in self.stores]
        paths = [path for folder in folders for path in sorted(folder.glob("*.log"))]
        return "\n".join(f"---- {path}\n{path.read_text()[-3000:]}" for path in paths)


@pytest.fixture
def nodes(lab: Any) -> Iterator[Nodes]:
    # Sums depend on the number of threads, and each agent would take all processors for its node.
    lab.env["OMP_NUM_THREADS"] = "1"
    found = Nodes([LocalStore(lab.folder / f"node{rank}") for rank in (0, 1)], lab.env)
    yield found
    for agent in found.agents:
        agent.kill()
        agent.wait()


def finished_on_one_node(lab: Any, **changes: Any) -> LocalStore:
    """The same work by two processes of one machine."""
    recipe = lab.recipe(gradient_accumulation_steps=1, cloud={"gpu": "cpu:2"}, **changes)
    store = lab.start(recipe, "one-node")
    outcome = lab.outcome("one-node")
    assert outcome["state"] == "SUCCEEDED", outcome
    return LocalStore(store)


def set_out(of: LocalStore, nodes: Nodes, *, max_steps: int | None = None) -> None:
    """Plan and inputs in the folder of each node; two machines with a process each."""
    plan = json.loads(of.plan_path.read_text())
    plan["parallel"] |= {"num_nodes": 2, "num_processes_per_node": 1}
    if max_steps is not None:
        plan["optim"] |= {"max_steps": max_steps, "num_epochs": float(max_steps)}
        plan["checkpoint"] |= {"save_steps": max_steps}
    text = RunPlan.from_json(json.dumps(plan)).to_json()
    for store in nodes.stores:
        store.root.mkdir()
        store.plan_path.write_text(text)
        shutil.copytree(of.root / "inputs", store.root / "inputs")


def files_of(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}


def steps_told(store: LocalStore) -> list[int]:
    return [event.data["step"] for event in store.events()[0] if event.kind == "step"]


def test_two_nodes_train_what_one_does_also_after_a_stop_of_one_of_them(
    lab: Any, nodes: Nodes
) -> None:
    alone = finished_on_one_node(lab, max_steps=40, save_steps=10)
    set_out(alone, nodes)
    zero, one = nodes.stores
    # A stop that only node 1 hears of.
    nodes.start(1)
    lab.wait_for(lambda: len(steps_told(zero)) >= 3)
    nodes.agents[1].send_signal(signal.SIGTERM)
    assert nodes.codes() == [75, 75], nodes.logs(1)
    step = nodes.status(0).step
    assert 3 <= step < 40
    for number in (0, 1):
        status = nodes.status(number)
        assert (status.reason, status.step, status.checkpoint_step) == ("preempted", step, step)
    end = nodes.end(1)
    assert (end.exit_code, end.message) == (
        75,
        f"saved at step {step} and stopped: a signal asked for it",
    )
    saved, _ = newest_valid(zero.checkpoints)
    assert saved is not None
    assert saved.name == f"step-{step:08d}"
    of_ranks = {"rng_state_0.pth", "rng_state_1.pth"}
    assert of_ranks < set(files_of(saved))
    assert not one.checkpoints.exists()
    assert not list(one.root.glob(".staging-*"))
    assert (one.attempt_folder(1) / "rank1.log").is_file()
    assert not (zero.attempt_folder(1) / "rank1.log").exists()

    # Node 1 does not have what node 0 goes on from.
    nodes.start(2)
    assert nodes.codes() == [77, 77], nodes.logs(2)
    host = socket.gethostname()
    missing = f"{saved.name}, which node 0 goes on from, is not to be had on node 1 ({host}): it is not there"
    assert [nodes.status(number).message for number in (0, 1)] == [missing, missing]
    assert nodes.end(2).message == missing

    shutil.copytree(saved, one.checkpoints / saved.name)
    nodes.start(3)
    assert nodes.codes() == [0, 0], nodes.logs(3)
    resumed = [event.data["step"] for event in zero.events()[0] if event.kind == "resume"]
    assert resumed == [step]
    assert nodes.end(3).reason == "done"
    final = zero.final()
    assert final is not None
    assert one.final() is None
    assert files_of(final) == files_of(alone.root / "final")


def test_a_node_that_runs_out_of_memory_or_dies_is_what_ended_the_attempt(
    lab: Any, nodes: Nodes
) -> None:
    set_out(finished_on_one_node(lab, max_steps=1, save_steps=1), nodes, max_steps=1000)
    zero, one = nodes.stores
    # The fault is the last rank's, which is on node 1.
    nodes.start(1, "oom@step:2")
    assert nodes.codes() == [77, 75], nodes.logs(1)
    assert nodes.status(0).reason == Reason.LOST_PEER
    end = nodes.end(1)
    assert (end.exit_code, end.reason) == (75, Reason.OOM)
    assert "node 1: out of memory: simulated at step 2; the next attempt uses" in end.message
    assert (zero.get_adjust(), one.get_adjust()) == (Adjust(), Adjust(micro_batch_size=1))

    nodes.start(2, "oom@step:2")
    lab.wait_for(lambda: steps_told(zero)[-1:] > [2])
    # All have learnt it from node 1.
    assert zero.get_adjust() == Adjust(micro_batch_size=1)
    nodes.agents[1].kill()
    began = time.monotonic()
    assert nodes.codes() == [77, -signal.SIGKILL], nodes.logs(2)
    assert time.monotonic() - began < 60
    status = nodes.status(0)
    assert (status.exit_code, status.reason) == (77, Reason.LOST_PEER)
    assert str(status.message).startswith("node 1 is gone or does not answer: ")
    end = nodes.end(2)
    assert (end.exit_code, end.reason) == (137, Reason.KILLED)
    assert end.message == "node 1 ended without a word: its machine is gone, or it was killed"
