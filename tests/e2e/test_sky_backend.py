"""`ft cloud … --backend sky` through the real SkyPilot, on Slurm on loopback: lost nodes, killed clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from life_cycle import Client, LifeCycle, files_of, killed_while_sending
from sky_ground import SECRET, SkyGround

pytestmark = [pytest.mark.e2e, pytest.mark.sky, pytest.mark.timeout(900)]

STEPS = 24
TWO = {"nodes": 2, "max_steps": STEPS, "save_steps": 3, "gradient_accumulation_steps": 2}


def test_what_skypilot_gets_is_what_the_dry_run_said(sky_ground: SkyGround) -> None:
    import sky

    from ft.launcher.backends import sky_request

    recipe = sky_ground.recipe(2)
    words = ["cloud", "run", str(recipe), "--backend", "sky", "--dry-run"]
    said = json.loads(sky_ground.ft(*words).stdout)
    asked = sky_request.filled(said["request"], "run-1", str(sky_ground.folder))
    (sky_ground.folder / "ft-source.tar").touch()
    task = sky.Task.from_yaml_config(sky_request.task_of(asked))
    (resources,) = task.resources
    assert (task.num_nodes, task.name) == (2, "ft-run-1")
    assert (str(resources.cloud), resources.region, resources.cpus) == ("Slurm", "loop", "1+")
    assert resources.job_recovery["recover_on_exit_codes"] == [75, 76, 77]
    assert SECRET not in json.dumps(said)


def test_two_nodes_lose_their_machines_twice_and_a_client_is_killed(sky_ground: SkyGround) -> None:
    client = Client(sky_ground)
    stormy = killed_while_sending(client, "stormy", "request.json", **TWO)
    records = sky_ground.folder / "state" / "ft" / "runs"
    assert not (records / stormy / "job.json").exists(), "it was killed before that"
    job = f"ft-{stormy}"
    client.start("calm", **TWO)

    client.until(lambda: client.step("stormy") >= 4)
    sky_ground.lab.lose_allocation(job)
    client.until(lambda: client.state("stormy") == "RECOVERING")
    client.until(lambda: client.step("stormy") >= 10 and client.state("stormy") == "RUNNING")
    sky_ground.lab.lose_allocation(job)
    for name, attempts in (("stormy", 3), ("calm", 1)):
        code, told = client.end(name)
        assert (code, told["state"], told["step"]) == (0, "SUCCEEDED", STEPS), told
        assert told["attempts"] == attempts
    assert client.fetched("stormy")[0] == client.fetched("calm")[0]
    assert [one["job_name"] for one in sky_jobs(sky_ground, stormy)] == [job], "one run, one job"


def test_a_run_moves_from_here_to_skypilot(sky_ground: SkyGround) -> None:
    """Begun and cancelled on this machine, ended on a node: `ft cloud resume RUN --backend sky`."""
    ground = sky_ground.at(sky_ground.folder / "moves")
    client = Client(ground)

    def here(*words: str) -> str:
        done = ground.here("cloud", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    recipe = str(client.recipe("moves"))
    here("run", recipe, "--backend", "local", "--name", "moves", "--detach")
    client.until(lambda: client.step("moves") >= 1)
    cancelled = json.loads(here("cancel", "moves", "--json"))
    assert (cancelled["state"], cancelled["attempts"]) == ("CANCELLED", 1)
    assert 1 <= cancelled["step"] < client.STEPS
    client.ok("resume", "moves", "--backend", "sky", "--detach")
    there = ("--name", "stays", "--set", "output_dir=stays")
    here("run", recipe, "--backend", "local", *there)
    code, told = client.end("moves")
    assert (code, told["state"], told["step"], told["attempts"]) == (
        0,
        "SUCCEEDED",
        client.STEPS,
        2,
    )
    assert told["backend"] == "sky"
    assert client.fetched("moves")[0] == files_of(ground.folder / "stays")


class TestOnSkyPilot(LifeCycle):
    @pytest.fixture(scope="class")
    @classmethod
    def ground(cls, sky_ground: SkyGround) -> SkyGround:
        return sky_ground.at(sky_ground.folder / "life-cycle")

    def test_a_mistake_is_no_reason_for_another_machine(
        self, ground: SkyGround, ids: dict[str, str]
    ) -> None:
        ended = sky_jobs(ground, ids["wrong"])
        assert [job["recovery_count"] for job in ended] == [0]

    def test_all_machines_are_given_back(
        self, ground: SkyGround, client: Client, ids: dict[str, str]
    ) -> None:
        def held() -> list[str]:
            jobs = ground.lab.cluster.allocations().values()
            return [job for job in jobs if any(run_id in job for run_id in ids.values())]

        client.until(lambda: not held())


def sky_jobs(ground: SkyGround, run_id: str) -> list[Any]:
    """The managed jobs of a run, once SkyPilot has seen the last one end."""
    import sky

    def asked() -> list[Any]:
        found = sky.jobs.queue_v2(refresh=False, name_match=f"ft-{run_id}", fields=None)
        jobs = list(sky.get(found)[0])
        return jobs if all(job["status"].is_terminal() for job in jobs) else []

    return list(Client(ground).until(asked))
