"""A plain cluster of the real SkyPilot's, on Slurm on loopback; and a managed run that another laptop adopts."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from life_cycle import Client
from sky_ground import SkyGround

pytestmark = [pytest.mark.e2e, pytest.mark.sky, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "ft-dev"
ON_CLUSTER = {"cluster": NAME}
LONG = {"max_steps": 4000, "save_steps": 5, "num_epochs": 1000, "gradient_accumulation_steps": 1}
SHORT = {"max_steps": 4, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def client(sky_ground: SkyGround) -> Iterator[Client]:
    yield Client(sky_ground)
    import sky

    with contextlib.suppress(sky.exceptions.ClusterDoesNotExist):
        sky.get(sky.down(NAME))


def machines(client: Client, name: str) -> dict[str, Any]:
    return dict(client.status(name)["machines"])


def test_two_runs_share_a_cluster_and_a_resume_goes_on_there(
    client: Client,
) -> None:
    began = time.monotonic()
    first = client.start("one", cloud=ON_CLUSTER, **LONG)
    made_s = time.monotonic() - began
    job = json.loads((record(client, first) / "job.json").read_text())
    assert job == {"job": 1, "submission": 1, "cluster": NAME}
    client.until(lambda: client.step("one") >= 6)
    said = machines(client, "one")
    assert (said["state"], said["message"]) == (
        "RUNNING", f"on cluster {NAME}, where nothing begins it anew if its machine is lost",
    )  # fmt: skip
    refused = client.ground.ft("cloud", "run", str(client.recipe("x")), "--cluster", "bad name")
    assert refused.returncode == 2
    assert client.ok("logs", "one").count("\n") > 3
    script = 'pwd; echo "$FT_SETUP_ROOT" >&2; exit 3'
    looked = client.ground.ft("cloud", "exec", "one", "--", "sh", "-c", script)
    assert looked.returncode == 3, looked.stderr
    assert looked.stdout.endswith(f"/.ft-run/{first}/node0-segment1\n")
    # bash may complain first: nodes of one home that are set up at once write SkyPilot's line into .bashrc twice.
    assert looked.stderr.splitlines()[-1] == client.ground.env["FT_SETUP_ROOT"]
    killed = client.ground.ft("cloud", "exec", "one", "--", "sh", "-c", "kill -9 $$")
    assert (killed.returncode, killed.stdout) == (137, "")
    assert client.ok("cancel", "one").startswith("CANCELLED")

    began = time.monotonic()
    second = client.start("two", cloud=ON_CLUSTER, **SHORT)
    assert time.monotonic() - began < made_s, "the cluster was there"
    code, done = client.end("two")
    assert (code, done["state"]) == (0, "SUCCEEDED"), done
    assert json.loads((record(client, second) / "job.json").read_text())["job"] == 2
    files, _ = client.fetched("two")
    assert "adapter_model.safetensors" in files

    before = client.step("one")
    client.ok("resume", "one", "--detach")
    job = json.loads((record(client, first) / "job.json").read_text())
    assert job == {"job": 3, "submission": 2, "cluster": NAME}
    client.until(lambda: client.step("one") > before)

    client.ground.lab.lose_allocation(NAME)
    gone = client.until(
        lambda: (said := machines(client, "one"))["state"] not in {"RUNNING", "RECOVERING"} and said
    )
    assert gone["state"] in {"UNKNOWN", "FAILED"}, gone
    assert f"cluster {NAME} is gone" in gone["message"]
    assert f"`ft cloud resume {first}` goes on" in gone["message"]


def record(client: Client, run: str) -> Path:
    return client.ground.folder / "state" / "ft" / "runs" / run


def test_an_idle_cluster_is_taken_down(client: Client) -> None:
    """What SkyPilot's Slurm can of `down`; it cannot stop a cluster that has no container."""
    client.start("three", cloud={**ON_CLUSTER, "autostop": "1m"}, **SHORT)
    assert client.end("three")[0] == 0
    names = client.ground.lab.cluster.allocations
    assert any(NAME in name for name in names().values())
    client.until(lambda: not any(NAME in name for name in names().values()), within_s=300)


def test_another_laptop_adopts_a_managed_run_and_ends_it(client: Client, tmp_path: Path) -> None:
    run = client.start("shared", **LONG)
    store = client.status("shared")["store"]
    client.until(lambda: client.step("shared") >= 6)
    looked = client.ground.ft("cloud", "exec", "shared", "--", "true")
    assert looked.returncode == 2
    assert f"error: run {run} is a managed job, whose machines SkyPilot" in looked.stderr
    other = Client(client.ground.at(tmp_path / "other"))
    assert other.ok("adopt", store, "--name", "theirs").strip() == run
    assert machines(other, "theirs")["state"] == "RUNNING"
    assert other.ok("cancel", "theirs").startswith("CANCELLED")
    assert machines(client, "shared")["state"] == "CANCELLED"
    other.ok("resume", "theirs", "--detach")
    before = other.step("theirs")
    other.until(lambda: other.step("theirs") > before)
    refused = client.ground.ft("cloud", "resume", "shared", "--detach")
    assert refused.returncode == 5
    assert f"error: run {run} has gone on from another laptop" in refused.stderr
    kept = client.ground.ft("cloud", "prune", "--yes", "--force")
    assert "it has gone on since this laptop saw its end" in " ".join(kept.stderr.split())
    assert other.ok("cancel", "theirs").startswith("CANCELLED")
