"""`ft cloud … --backend sky` through the real SkyPilot, on Slurm on loopback: lost nodes, killed clients."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from life_cycle import Client, LifeCycle, files_of, killed_while_sending
from lost_reply import Way, losing
from sky_ground import SkyGround

pytestmark = [pytest.mark.e2e, pytest.mark.sky, pytest.mark.timeout(900)]

REPO = Path(__file__).resolve().parents[2]
QUICKSTART = REPO / "recipes/gallery/smollm2/135m-lora-sft.yml"
MODEL = REPO / ".quickstart/SmolLM2-135M-Instruct"
TINY = {"max_steps": 24, "save_steps": 3, "gradient_accumulation_steps": 4}


@dataclass(frozen=True)
class Storm:
    """A run on two nodes that loses its machines twice, once these steps are done."""

    changes: dict[str, Any]
    lost_at: tuple[int, int]

    @classmethod
    def of_quickstart(cls) -> Storm:
        """The recipe of `make quickstart`, with its batch of 8 rows a step shared out to two nodes."""
        recipe = yaml.safe_load(QUICKSTART.read_text())
        for data in recipe["datasets"]:
            data["path"] = str(QUICKSTART.parent / data["path"])
        changes = {**NOTHING, **recipe, "base_model": str(MODEL), "micro_batch_size": 4}
        return cls({**changes, "nodes": 2}, (24, 44))


NOTHING: dict[str, Any] = dict.fromkeys(("lora_dropout", "max_steps", "save_steps"))
STORMS = {
    "tiny": lambda: Storm({**TINY, "nodes": 2}, (4, 10)),
    "quickstart": Storm.of_quickstart,
}


@pytest.fixture
def storm(request: pytest.FixtureRequest) -> Storm:
    return STORMS[request.param]()


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
    place = f"{resources.cloud}/{resources.region}" if resources.region else str(resources.cloud)
    assert (place.lower(), resources.cpus) == (sky_ground.lab.infra, "1+")
    assert resources.job_recovery["recover_on_exit_codes"] == [75, 76, 77]
    sky_ground.has_no_secret(json.dumps(said))


def test_the_doctor_knows_the_server_its_clouds_and_that_a_laptop_sleeps(
    sky_ground: SkyGround,
) -> None:
    def told(ground: SkyGround) -> dict[str, Any]:
        done = ground.ft("cloud", "doctor", "--backend", "sky", "--json")
        return {line["name"]: line for line in json.loads(done.stdout)["checks"]}

    url, cloud = sky_ground.lab.server.url, sky_ground.lab.infra.partition("/")[0]
    found = told(sky_ground)
    sleeps = "; while this machine sleeps, no job that loses its machine is begun anew"
    assert (found["server"]["ok"], found["server"]["message"]) == (True, f"{url}{sleeps}")
    assert found["clouds"]["ok"]
    assert cloud in found["clouds"]["message"].lower().split(", ")

    nowhere = "http://127.0.0.1:1"
    alone = replace(sky_ground, env={**sky_ground.env, "SKYPILOT_API_SERVER_ENDPOINT": nowhere})
    found = told(alone)
    assert not found["server"]["ok"]
    assert found["server"]["message"] == f"no API server of SkyPilot's answers at {nowhere}"
    assert "sky api start" in found["server"]["fix"], "it is the user who starts one"


@pytest.mark.parametrize(
    "storm",
    ["tiny", pytest.param("quickstart", marks=[pytest.mark.slow, pytest.mark.timeout(2400)])],
    indirect=True,
)
def test_two_nodes_lose_their_machines_twice_and_a_client_is_killed(
    sky_ground: SkyGround, storm: Storm, request: pytest.FixtureRequest
) -> None:
    """Of the undisturbed run, the reply to the first client is lost."""
    ground = sky_ground.at(sky_ground.folder / f"storm-{request.node.callspec.id}")
    client, lose = Client(ground), ground.lab.lose_allocation
    steps = storm.changes["max_steps"]
    stormy = killed_while_sending(client, "stormy", "request.json", **storm.changes)
    records = ground.folder / "state" / "ft" / "runs"
    assert not (records / stormy / "job.json").exists(), "it was killed before that"
    client.until(lambda: step_on_node(ground, stormy, 1) >= storm.lost_at[0])
    lose(f"ft-{stormy}")
    client.until(lambda: client.state("stormy") == "RECOVERING")
    client.until(lambda: step_on_node(ground, stormy, 2) >= storm.lost_at[1])
    lose(f"ft-{stormy}")
    code, told = client.end("stormy")
    assert (code, told["state"], told["step"], told["attempts"]) == (0, "SUCCEEDED", steps, 3), told

    recipe = client.recipe("calm", **storm.changes)
    with losing(ground.lab.server.url, "POST /jobs/launch") as way:
        elsewhere = {"SKYPILOT_API_SERVER_ENDPOINT": way.url}
        deaf = replace(ground, env={**ground.env, **elsewhere})
        sent = deaf.ft("cloud", *client.words(recipe, "calm"))
        assert way.lost.is_set()
    assert sent.returncode == 5, sent.stdout + sent.stderr
    said = json.loads(ground.ft("cloud", *client.words(recipe, "calm"), "--dry-run").stdout)
    calm = client.start("calm", **storm.changes)
    assert given(way) == as_planned(said["request"], calm, records / calm)
    followed = client.ok("logs", "calm", "--follow", "--rank", "0")
    assert f"step {steps}/{steps}" in followed
    assert client.end("calm")[0] == 0
    assert client.fetched("stormy")[0] == client.fetched("calm")[0]
    for run in (stormy, calm):
        jobs = [one["job_name"] for one in sky_jobs(ground, run)]
        assert jobs == [f"ft-{run}"], "one run, one job"


def given(way: Way) -> dict[str, Any]:
    """The task in a request to SkyPilot's server, without the values of its secrets and what the client adds."""
    body = json.loads(bytes(way.request).partition(b"\r\n\r\n")[2])
    (*_, task) = yaml.safe_load_all(body["task"])
    del task["_user_specified_yaml"]  # All of it once more.
    del task["file_mounts_mapping"]  # Where its server has put them.
    assert task["envs"].pop("SKYPILOT_API_SERVER_ENDPOINT") == way.url
    return {**task, "secrets": sorted(task["secrets"])}


def as_planned(request: dict[str, Any], run: str, folder: Path) -> dict[str, Any]:
    """The task that a dry-run's request is, in the words of SkyPilot's client."""
    import sky

    from ft.launcher.backends import sky_request

    asked = sky_request.filled(request, run, str(folder))
    task = sky.Task.from_yaml_config(sky_request.task_of(asked)).to_yaml_config()
    del task["_user_specified_yaml"]
    return {**task, "secrets": sorted(request["secrets"])}


@pytest.mark.slow
def test_two_nodes_are_cancelled_and_given_back(sky_ground: SkyGround) -> None:
    """Of the quickstart recipe."""
    ground = sky_ground.at(sky_ground.folder / "two")
    client = Client(ground)
    run = client.start("two", **Storm.of_quickstart().changes)
    client.until(lambda: client.step("two") >= 2)
    told = json.loads(client.ok("cancel", "two", "--json"))
    assert (told["state"], told["attempts"]) == ("CANCELLED", 1)
    assert f"its checkpoint of step {told['step']} stays" in told["message"]
    allocations = ground.lab.cluster.allocations
    client.until(lambda: not any(run in name for name in allocations().values()))


def step_on_node(ground: SkyGround, run_id: str, segment: int) -> int:
    """The last step of node 0, on its own disk: a client that asks takes longer than the run does."""
    folders = f".sky_clusters/*/.ft-run/{run_id}/node0-segment{segment}"
    for path in ground.lab.shared.glob(f"{folders}/events.jsonl"):
        events = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        return max((e["data"]["step"] for e in events if e["kind"] == "step"), default=0)
    return 0


@pytest.mark.slow
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


@pytest.mark.slow
class TestOnSkyPilot(LifeCycle):
    @pytest.fixture(scope="class")
    @classmethod
    def ground(cls, sky_ground: SkyGround) -> SkyGround:
        return sky_ground.at(sky_ground.folder / "life-cycle")

    def test_a_mistake_is_no_reason_for_another_machine(
        self, ground: SkyGround, wrong: tuple[int, dict[str, Any]]
    ) -> None:
        assert [job["recovery_count"] for job in sky_jobs(ground, wrong[1]["id"])] == [0]

    def test_all_machines_are_given_back(
        self, ground: SkyGround, client: Client, wrong: tuple[int, dict[str, Any]]
    ) -> None:
        def held() -> bool:
            return any(wrong[1]["id"] in job for job in ground.lab.cluster.allocations().values())

        client.until(lambda: not held())


def sky_jobs(ground: SkyGround, run_id: str) -> list[Any]:
    """The managed jobs of a run, once SkyPilot has seen the last one end."""
    import sky

    def asked() -> list[Any]:
        found = sky.jobs.queue_v2(refresh=False, name_match=f"ft-{run_id}", fields=None)
        jobs = list(sky.get(found)[0])
        return jobs if all(job["status"].is_terminal() for job in jobs) else []

    return list(Client(ground).until(asked))
