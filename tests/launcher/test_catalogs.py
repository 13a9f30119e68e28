"""Which machine SkyPilot would take, and for how much, from catalogs made by hand. All prices are invented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ft.launcher import catalog_words, catalogs, dispatch
from ft.launcher.catalog_files import Offer, UnreadableCatalogError, present, read
from ft.launcher.catalogs import Pick, choice_for
from ft.launcher.cli import plan_view
from ft.launcher.prices import Price, price_for
from ft.recipes.errors import PlanError
from ft.recipes.load import loads
from ft.recipes.normalize import normalize

HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region"
)
AWS = f"""\
{HEADER},AvailabilityZone
p9.48xlarge,H100,8,192,2048,,90.5,30.25,us-east-1,us-east-1a
p9.48xlarge,H100,8,192,2048,,90.5,31.25,us-east-1,us-east-1b
p9.48xlarge,H100,8,192,2048,,99,28.25,eu-north-1,eu-north-1a
p8.24xlarge,A100-80GB,8,96,1152,,40,,us-east-1,us-east-1a
m6i.xlarge,,,4,16,,0.2,0.1,us-east-1,us-east-1a
"""
LAMBDA = f"""\
{HEADER}
gpu_8x_h100,H100,8,208,1800,,24.5,,us-south-1
gpu_1x_h100,H100,1,26,200,,3.5,,us-south-1
gpu_4x_h100_mega,H100-MEGA,4,26,200,,13.5,,us-south-1
"""
RUNPOD = f"""\
{HEADER},AvailabilityZone
8x_H100_SECURE,H100,8,128,640,,22,16,CA,CA-1
"""
TODAY = datetime.combine(date.today(), time(12))
DAY, EARLIER = (int((TODAY - timedelta(days=days)).timestamp()) for days in (0, 1))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SkyPilot's folder of catalogs."""
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / ".sky/catalogs/v8"
    for cloud, text, at in (
        ("aws", AWS, DAY),
        ("lambda", LAMBDA, EARLIER),
        ("runpod", RUNPOD, DAY),
    ):
        write(folder, cloud, text, at)
    return folder


def write(folder: Path, cloud: str, text: str, at: int = DAY) -> None:
    path = folder / cloud / "vms.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))


def resources(**more: Any) -> dict[str, Any]:
    return {"accelerators": "H100:8", "job_recovery": {}, **more}


P9 = Offer(
    "aws", "us-east-1", None, "p9.48xlarge", "H100", 8, 192, 2048, Decimal("90.5"), Decimal("30.25")
)
P9_SPOT = replace(
    P9, region="eu-north-1", zone="eu-north-1a", usd_per_hour=Decimal(99), spot_usd_per_hour=Decimal("28.25")
)  # fmt: skip
GPU_8X = Offer(
    "lambda", "us-south-1", None, "gpu_8x_h100", "H100", 8, 208, 1800, Decimal("24.5"), None
)
SECURE = Offer(
    "runpod", "CA", None, "8x_H100_SECURE", "H100", 8, 128, 640, Decimal(22), Decimal(16)
)


# ---------------------------------------------------------------------------------- what is chosen


def test_the_cheapest_goes_first_and_each_cloud_has_a_line(home: Path) -> None:
    choice = choice_for(resources(), 1)
    assert choice.picks == (
        Pick(SECURE, False, Decimal(22)),
        Pick(GPU_8X, False, Decimal("24.5")),
        Pick(P9, False, Decimal("90.5")),
    )
    assert choice.dearest is not None
    assert (choice.dearest.offer.region, choice.dearest.usd_per_hour) == ("eu-north-1", Decimal(99))
    assert (choice.num_machines, choice.as_of, choice.usd_per_hour) == (
        4,
        f"{TODAY.date() - timedelta(days=1)}",
        Decimal(99),
    )
    assert not choice.is_refused


@pytest.mark.parametrize(
    ("asked", "nodes", "expected", "most"),
    [
        # With spot only those with a spot price, each zone by itself.
        ({"use_spot": True}, 1, ["runpod CA-1 16", "aws eu-north-1a 28.25"], "31.25"),
        ({"infra": "aws/us-east-1", "use_spot": True}, 1, ["aws us-east-1a 30.25"], "31.25"),
        ({"infra": "aws/us-east-1/us-east-1b"}, 1, ["aws us-east-1 90.5"], "90.5"),
        ({"infra": "AWS/US-EAST-1"}, 1, ["aws us-east-1 90.5"], "90.5"),
        ({"infra": "*/us-east-1"}, 1, ["aws us-east-1 90.5"], "90.5"),
        ({"accelerators": "h100:8", "infra": "lambda"}, 1, ["lambda us-south-1 24.5"], "24.5"),
        # RunPod has single machines only; with the best network also Lambda has not several.
        ({}, 2, ["lambda us-south-1 24.5", "aws us-east-1 90.5"], "198"),
        ({"network_tier": "best"}, 2, ["aws us-east-1 90.5"], "198"),
        ({"cpus": "200+"}, 1, ["lambda us-south-1 24.5"], "24.5"),
        ({"cpus": "192", "memory": "2000+"}, 1, ["aws us-east-1 90.5"], "99"),
        # Of a machine that is cheap enough somewhere SkyPilot tries the dearer regions too.
        ({"infra": "aws", "max_hourly_cost": 95}, 1, ["aws us-east-1 90.5"], "99"),
        ({"max_hourly_cost": 23}, 1, ["runpod CA 22"], "22"),
        ({"any_of": [{"infra": "aws"}, {"infra": "lambda"}]}, 1,
         ["lambda us-south-1 24.5", "aws us-east-1 90.5"], "99"),
        # The order counts, and not the price; what is not to be had is passed by.
        ({"ordered": [{"accelerators": "H100:8", "infra": "aws"}, {"accelerators": "H100:1", "infra": "lambda"}]}, 1,
         ["aws us-east-1 90.5", "lambda us-south-1 3.5"], "99"),
        ({"ordered": [{"accelerators": "H100:3"}, {"accelerators": "A100-80GB:8"}]}, 1, ["aws us-east-1 40"], "40"),
        ({"accelerators": None, "cpus": "4+", "infra": "aws"}, 1, ["aws us-east-1 0.2"], "0.2"),
    ],
)  # fmt: skip
def test_what_is_asked_for_decides(
    home: Path, asked: dict[str, Any], nodes: int, expected: list[str], most: str
) -> None:
    choice = choice_for(resources(**asked), nodes)
    found = [
        f"{p.offer.cloud} {p.offer.zone or p.offer.region} {p.usd_per_hour}" for p in choice.picks
    ]
    assert (found, choice.usd_per_hour) == (expected, Decimal(most))


def test_google_cloud_sells_gpus_and_machines_apart(home: Path) -> None:
    write(home, "gcp", f"""\
{HEADER},AvailabilityZone
a3-highgpu-8g,,,208,1872,,7.5,2.5,us-west1,us-west1-a
a3-highgpu-8g,,,208,1872,,9,1,eu-west4,eu-west4-a
,H100,8,,,H100,70.5,20,us-west1,us-west1-a
,H100,8,,,H100,70,,eu-west4,eu-west4-a
""")  # fmt: skip
    expected = Offer(
        "gcp", "us-west1", "us-west1-a", "a3-highgpu-8g", "H100", 8, 208, 1872, Decimal(78), Decimal("22.5")
    )  # fmt: skip
    assert choice_for(resources(infra="gcp"), 1).picks == (Pick(expected, False, Decimal(78)),)
    assert choice_for(resources(infra="gcp", use_spot=True), 1).usd_per_hour == Decimal("22.5")


def test_zones_of_aws_have_the_names_of_the_account_that_skypilot_asked_last(home: Path) -> None:
    ids = AWS.replace("us-east-1a", "use1-az4").replace("us-east-1b", "use1-az6")
    write(home, "aws", ids)
    asked = resources(infra="aws/us-east-1/us-east-1b", use_spot=True)
    unknown = choice_for(asked, 1)
    assert (unknown.picks, unknown.unlisted, unknown.is_refused) == (
        (), ("aws/us-east-1/us-east-1b",), False,
    )  # fmt: skip
    (home / "aws/az_mappings-0a1b.csv").write_text(
        "AvailabilityZone,AvailabilityZoneName\nuse1-az4,us-east-1a\nuse1-az6,us-east-1b\n"
    )
    assert choice_for(asked, 1).usd_per_hour == Decimal("31.25")
    # Its other regions are not the account's.
    assert choice_for(resources(infra="aws/eu-north-1"), 1).unplaced == ("aws/eu-north-1",)


# ------------------------------------------------------------------------------- what is not known


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"infra": "kubernetes"}, "no catalog says what kubernetes costs"),
        ({"infra": "slurm/loop"}, "no catalog says what slurm/loop costs"),
        ({"infra": "ssh/pool"}, "no catalog says what ssh/pool costs"),
        ({"any_of": [{"infra": "lambda"}, {"infra": "slurm/loop"}]}, "no catalog says what slurm/loop costs"),
        ({"infra": "gcp"}, "no catalog of gcp is on this machine, `sky gpus list --infra gcp` fetches it"),
        ({"instance_type": "p9"},
         "cloud.sky.resources.instance_type may be about another machine than those in the catalogs"),
        ({"accelerators": "H100:3"}, "no catalog on this machine has such a machine"),
    ],
)  # fmt: skip
def test_what_no_catalog_says_is_unknown_and_not_refused(
    home: Path, asked: dict[str, Any], why: str
) -> None:
    choice = choice_for(resources(**asked), 1)
    assert (choice.usd_per_hour, choice.is_refused, catalog_words.unknown(choice)) == (
        None,
        False,
        why,
    )


def test_without_catalogs_it_is_said_how_to_get_them(home: Path, tmp_path: Path) -> None:
    for cloud in ("aws", "lambda", "runpod"):
        (home / cloud / "vms.csv").unlink()
    choice = choice_for(resources(), 1)
    assert (present(), choice.usd_per_hour, choice.picks, choice.is_refused) == (
        [],
        None,
        (),
        False,
    )
    expected = "no catalog of SkyPilot's is on this machine, `sky gpus list` fetches them"
    assert (catalog_words.unknown(choice), list(catalog_words.warnings(choice))) == (expected, [])


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("accelerators", {"accelerators": {"H100": 8}}),
        ("max_hourly_cost", {"max_hourly_cost": "cheap"}),
        ("any_of", {"any_of": ["aws"]}),
        ("accelerators", {"any_of": [{"infra": "aws", "accelerators": ["H100:8"]}]}),
    ],
)
def test_what_is_not_written_as_ft_writes_it_has_no_price(
    home: Path, field: str, more: dict[str, Any]
) -> None:
    choice = choice_for(resources(**more), 1)
    assert (choice.unread, choice.picks, choice.usd_per_hour) == ((field,), (), None)
    assert not choice.is_refused
    assert catalog_words.unknown(choice).startswith(f"cloud.sky.resources.{field} may be about")


def test_what_a_catalog_of_long_ago_lacks_may_be_there_by_now(home: Path) -> None:
    request = resources(infra="aws", accelerators="H300:8")
    assert choice_for(request, 1).is_refused
    write(home, "aws", AWS, DAY - 15 * 86400)
    choice = choice_for(request, 1)
    assert not choice.is_refused
    (warning,) = catalog_words.warnings(choice)
    assert "SkyPilot may know better" in warning


def test_a_cloud_whose_machines_are_not_judged_is_named(home: Path) -> None:
    write(home, "azure", AWS)
    request = {"job_recovery": {}, "cpus": "4+"}
    choice = choice_for(request, 1)
    assert choice.ignored == ("azure",)
    assert "not in them: azure" in list(catalog_words.caveats(choice))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (AWS.replace("SpotPrice,", "Spot,"), " has no column SpotPrice"),
        ("", f" has no column {', '.join(c for c in HEADER.split(',') if c != 'GpuInfo')}"),
        (AWS.replace("90.5", "cheap"), ":2: Price 'cheap' is no number"),
        (AWS.replace("90.5", "-1"), ":2: Price '-1' is no number"),
        (AWS.replace("90.5", "inf"), ":2: Price 'inf' is no number"),
    ],
)
def test_a_catalog_that_cannot_be_read_is_a_warning(home: Path, text: str, problem: str) -> None:
    write(home, "aws", text)
    whole = f"{home}/aws/vms.csv{problem}"
    with pytest.raises(UnreadableCatalogError, match=r"vms\.csv"):
        read("aws", "H100")
    choice = choice_for(resources(infra="aws"), 1)
    assert (choice.problems, choice.usd_per_hour, choice.is_refused) == ((whole,), None, False)
    assert catalog_words.unknown(choice) == whole
    assert list(catalog_words.warnings(choice)) == [
        f"{whole}: not looked into. Take it away, and `sky gpus list` fetches it anew"
    ]


def test_bytes_that_are_no_text_and_a_folder_are_no_tracebacks(home: Path) -> None:
    (home / "aws/vms.csv").write_bytes(b"\xff\xfe\x00")
    (home / "lambda/vms.csv").unlink()
    (home / "lambda/vms.csv").mkdir()
    assert len(choice_for(resources(infra="aws"), 1).problems) == 1
    assert choice_for(resources(infra="lambda"), 1).problems == (
        f"{home}/lambda/vms.csv: Is a directory",
    )


def test_what_is_free_by_a_catalog_has_no_price(home: Path) -> None:
    write(home, "lambda", LAMBDA.replace("24.5", "0"))
    choice = choice_for(resources(infra="lambda"), 1)
    assert choice.picks[0].usd_per_hour == 0
    assert choice.usd_per_hour is None
    assert catalog_words.unknown(choice) == "the catalogs say that it costs nothing"


# ---------------------------------------------------------------------------- what is not to be had


@pytest.mark.parametrize(
    ("asked", "nodes", "message", "hint"),
    [
        ({"accelerators": "H100:3", "infra": "lambda"}, 1,
         "SkyPilot's catalogs have no H100:3 at lambda: lambda has H100:1, H100:8",
         "cloud.gpu=H100:1, or cloud.gpu=H100:8"),
        ({"infra": "lambda", "use_spot": True}, 1,
         "SkyPilot's catalogs have no H100:8 spot at lambda: lambda has no spot machines",
         "cloud.region=runpod ($16.00 an hour each), or cloud.region=aws ($28.25 an hour each)"),
        ({"accelerators": "A100-80GB:8", "infra": "aws", "use_spot": True}, 1,
         "SkyPilot's catalogs have no A100-80GB:8 spot at aws: aws has no spot price for it",
         "cloud.spot=false (aws at $40.00 an hour each)"),
        ({"infra": "aws", "max_hourly_cost": 20}, 1,
         "SkyPilot's catalogs have no H100:8 at aws with at most $20.00 an hour: on aws it costs $90.50 an hour",
         "cloud.sky.resources.max_hourly_cost=90.50 (aws at $90.50 an hour each)"),
        ({"infra": "aws/us-west-9"}, 1,
         "cloud.region: aws/us-west-9 is no place in SkyPilot's catalog of that cloud",
         "cloud.region=runpod ($22.00 an hour each), or cloud.region=lambda ($24.50 an hour each), or "
         "cloud.region=aws ($90.50 an hour each)"),
        ({"infra": "aws", "accelerators": "A100-80GB:8", "cpus": "500+"}, 1,
         "SkyPilot's catalogs have no A100-80GB:8 at aws with 500+ cores: aws has it with 96 cores and 1152 GiB",
         "another cloud.cpu or cloud.memory (aws at $40.00 an hour each)"),
        ({"infra": "lambda", "network_tier": "best"}, 2,
         "SkyPilot's catalogs have no 2 x H100:8 at lambda: lambda has no `network_tier: best`, which several "
         "machines with GPUs are asked with",
         "cloud.sky.resources.network_tier=standard, with a slower network between machines, or "
         "cloud.region=aws ($90.50 an hour each)"),
        ({"any_of": [{"infra": "lambda"}, {"infra": "runpod"}], "accelerators": "B200:8"}, 1,
         "SkyPilot's catalogs have no B200:8 at lambda or B200:8 at runpod: lambda has no B200; runpod has no B200",
         "another cloud.gpu; `sky gpus list` has all"),
    ],
)  # fmt: skip
def test_why_there_is_none_and_what_is_nearest(
    home: Path, asked: dict[str, Any], nodes: int, message: str, hint: str
) -> None:
    choice = choice_for(resources(**asked), nodes)
    assert choice.is_refused
    assert (catalog_words.nothing(choice), catalog_words.way_out(choice)) == (message, hint)


def test_a_container_goes_where_skypilot_runs_containers(home: Path) -> None:
    write(home, "verda", f"{HEADER}\n8H100.80S,H100,8,176,1480,,9,,FIN-01\n")
    image = {"image_id": f"docker:reg.example/ft@sha256:{'ab' * 32}"}
    plain, contained = (choice_for(resources(**more), 1) for more in ({}, image))
    assert [pick.offer.cloud for pick in plain.picks] == ["verda", "runpod", "lambda", "aws"]
    assert [pick.offer.cloud for pick in contained.picks] == ["runpod", "lambda", "aws"]
    refused = choice_for(resources(infra="verda", **image), 1)
    assert refused.is_refused
    assert catalog_words.nothing(refused) == (
        "SkyPilot's catalogs have no H100:8 at verda: verda runs no containers"
    )
    # A disk of a cloud's own is none.
    assert choice_for(resources(infra="verda", image_id="ami-123"), 1).picks


def test_where_no_place_is_named_it_is_a_warning(home: Path) -> None:
    choice = choice_for(resources(accelerators="H100:3"), 1)
    assert not choice.is_refused
    assert list(catalog_words.warnings(choice)) == [
        "SkyPilot's catalogs have no H100:3: aws has H100:8; lambda has H100:1, H100:8; runpod has H100:8. "
        "SkyPilot may know better. Nearest here: cloud.gpu=H100:1, or cloud.gpu=H100:8"
    ]


# ------------------------------------------------------------------------------------ what is shown

RECIPE = """\
base_model: some/model
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
datasets: [{path: rows.jsonl, type: alpaca}]
learning_rate: 1e-4
max_steps: 2
output_dir: out
cloud: {backend: sky, gpu: "H100:8", store_bucket: "s3://my-runs/team"}
"""


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 5)
    (tmp_path / "r.yml").write_text(RECIPE)
    return tmp_path


def test_a_plan_has_the_dearest_as_its_price_and_a_line_for_each_cloud(folder: Path) -> None:
    prepared = dispatch.prepare("r.yml", ["cloud.spot=true", "cloud.max_cost=50"])
    made_of = "aws us-east-1 p9.48xlarge spot, the dearest of 4 that it may be"
    assert prepared.price == Price(
        31.25, f"{TODAY.date()}", "", made_of, "SkyPilot's catalogs", "`sky gpus list`"
    )
    assert (prepared.plan.limits.price_per_hour, prepared.checked.facts.price_per_hour) == (
        31.25,
        31.25,
    )
    short = list(plan_view.short(prepared))
    expected = [
        "  price         at most $31.25 an hour (aws us-east-1 p9.48xlarge spot, the",
        f"                dearest of 4 that it may be; SkyPilot's catalogs of {TODAY.date()})",
        "  cost          at most $50.00 (cloud.max_cost): 1 h 36 min at this price",
        "machines (an hour of one machine; SkyPilot tries the first one first)",
        "  CLOUD   REGION       MACHINE         GPUS    ON-DEMAND  SPOT",
        "  runpod  CA-1         8x_H100_SECURE  H100:8  $22.00     $16.00",
        "  aws     eu-north-1a  p9.48xlarge     H100:8  $99.00     $28.25",
        f"  catalogs of {TODAY.date()}; which clouds are yours, `sky check` says",
    ]
    assert short[5:-1] == expected
    full = list(plan_view.full(prepared))
    at = full.index("money")
    assert full[at + 1 : at + 9] == expected
    assert max(map(len, expected)) <= 80


def test_of_several_machines_all_are_counted(folder: Path) -> None:
    prepared = dispatch.prepare("r.yml", ["cloud.nodes=2", "cloud.region=[aws, gcp]"])
    assert (prepared.price, prepared.plan.limits.price_per_hour) == (None, None)
    assert prepared.choice is not None
    assert list(plan_view.short(prepared))[5:-1] == [
        "  price         ? an hour: no catalog of gcp is on this machine, `sky gpus list",
        "                --infra gcp` fetches it; cloud.price_per_hour says it",
        "  cost          ?",
        "machines (an hour of all 2 machines; SkyPilot tries the first one first)",
        "  CLOUD  REGION     MACHINE      GPUS    ON-DEMAND  SPOT",
        "  aws    us-east-1  p9.48xlarge  H100:8  $181.00    $60.50",
        f"  catalogs of {TODAY.date()}; which clouds are yours, `sky check` says",
        "  not in them: gcp",
    ]
    assert prepared.choice.to_json() == {
        "nodes": 2,
        "offers": [
            {
                "cloud": "aws", "region": "us-east-1", "zone": None, "machine": "p9.48xlarge", "gpus": "H100:8",
                "spot": False, "usd_per_hour": 181.0, "on_demand_usd_per_hour": 181.0, "spot_usd_per_hour": 60.5,
            },
        ],
        "usd_per_hour_at_most": None,
        "as_of": f"{TODAY.date()}",
        "unknown": ["gcp"],
    }  # fmt: skip


def test_a_request_without_a_machine_ends_before_anything_is_sent(folder: Path) -> None:
    with pytest.raises(PlanError, match=r"have no H100:8 spot at lambda") as error:
        dispatch.prepare("r.yml", ["cloud.region=lambda", "cloud.spot=true"])
    assert error.value.hint == (
        "cloud.region=runpod ($16.00 an hour each), or cloud.region=aws ($28.25 an hour each)"
    )


def test_the_dry_run_has_the_choice_and_needs_no_skypilot(folder: Path, tmp_path: Path) -> None:
    blocked = "import sys, socket; socket.socket.connect = None; sys.modules['sky'] = None\n"
    code = f"{blocked}from ft.launcher.cli.app import main\nmain(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "cloud", "run", "r.yml", "--dry-run"],
        cwd=folder, env=os.environ | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    choice = json.loads(done.stdout)["choice"]
    assert ([offer["cloud"] for offer in choice["offers"]], choice["usd_per_hour_at_most"]) == (
        ["runpod", "lambda", "aws"], 99.0,
    )  # fmt: skip


@pytest.mark.parametrize("cloud", ["{}", "{nodes: 2}", "{gpu: cpu, region: slurm/x}"])
def test_a_recipe_that_names_no_machine_with_a_price_has_none(home: Path, cloud: str) -> None:
    block = normalize(loads(f"cloud: {cloud}")).flat.cloud.cloud
    assert price_for(block, "sky") is None
    assert price_for(None, "sky") is None
    assert not hasattr(catalogs, "sky")
