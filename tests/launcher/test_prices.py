"""What a run costs: the list, the sums, what is said before a run starts, and who is asked."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ft.launcher import dispatch, prices
from ft.launcher.backends import local, registry
from ft.launcher.backends.base import Capability
from ft.launcher.cli import plan_view, pricing
from ft.launcher.prices import Price, Row, price_for, price_of, usd, usd_at_most
from ft.recipes.errors import RecipeError, Severity, UsageError
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import LimitsPlan
from ft.recipes.rules.cloud import MODAL_GPUS, MODAL_PINS

SOURCE = "https://github.com/rainbowpuffpuff/local-macrae/blob/d0ecfc1/server/costs.py"
PAGE = "https://modal.com/pricing"
TODAY = date(2026, 11, 29)


def of(usd_per_hour: float, made_of: str) -> Price:
    return Price(usd_per_hour, "2026-10-08", SOURCE, made_of, "Modal's list", PAGE)


# -------------------------------------------------------------------------------------- the list


def test_the_list_is_what_was_found() -> None:
    figures = {row.name: str(row.usd_per_second) for row in prices.rows()}
    assert figures == {
        "T4": "0.000164",
        "L4": "0.000222",
        "A10": "0.000306",
        "L40S": "0.000542",
        "A100": "0.000583",
        "A100-80GB": "0.000694",
        "RTX-PRO-6000": "0.000842",
        "H100": "0.001097",
        "H200": "0.001261",
        "B200": "0.001736",
        "B300": "0.001972",
        "core": "0.0000131",
        "GiB": "0.00000222",
        # Billed as A100, H100 and B200.
        "A100-40GB": "0.000583",
        "H100!": "0.001097",
        "B200+": "0.001736",
    }
    assert {(row.backend, row.as_of, row.source) for row in prices.rows()} == {
        ("modal", "2026-10-08", SOURCE)
    }
    # Whatever a rule lets pass has a price.
    assert {*MODAL_GPUS, *MODAL_PINS} <= set(figures)


def test_a_row_counts_an_hour_exactly() -> None:
    row = Row("modal", "GiB", Decimal("0.00000222"), "2026-10-08", SOURCE)
    assert row.usd_per_hour == Decimal("0.00799200")


def test_a_list_is_stale_after_half_a_year() -> None:
    price = of(31.5936, "")
    # 8 October + 180 days: 23 left of October, 30, 31, 31, 28, 31 are 174, so 6 April.
    assert not price.stale(date(2027, 4, 6))
    assert price.stale(date(2027, 4, 7))
    assert Row("modal", "T4", Decimal(1), "2026-10-08", "").stale(date(2027, 4, 7))


# -------------------------------------------------------------------------------------- the sums


@pytest.mark.parametrize(
    ("gpus", "count", "nodes", "more", "expected"),
    [
        # 0.001097 · 3600 = 3.9492, eight times.
        (["H100"], 8, 1, {}, of(31.5936, "H100:8 at $3.95; cores and memory not counted")),
        (["H100!"], 8, 1, {}, of(31.5936, "H100!:8 at $3.95; cores and memory not counted")),
        # 0.001261 · 3600 = 4.5396: dearer than the first choice.
        (["H100!", "H200"], 1, 1, {},
         of(4.5396, "H200:1 at $4.54, the dearest of 2; cores and memory not counted")),
        (["H100", "H100!"], 1, 1, {}, of(3.9492, "H100:1 at $3.95; cores and memory not counted")),
        # 0.000222 · 3600 + 4 · 0.0000131 · 3600 = 0.7992 + 0.18864.
        (["L4"], 1, 1, {"cpu": 4}, of(0.98784, "L4:1 at $0.80 + 4 cores at $0.0472; memory not counted")),
        (["L4"], 1, 1, {"memory_gib": 0.5}, of(0.803196, "L4:1 at $0.80 + 0.5 GiB at $0.00799; cores not counted")),
        # 8 · 4.5396 + 16 · 0.04716 + 128 · 0.007992 = 36.3168 + 0.75456 + 1.022976 = 38.094336, two machines.
        (["H200"], 8, 2, {"cpu": 16, "memory_gib": 128},
         of(76.188672, "H200:8 at $4.54 + 16 cores at $0.0472 + 128 GiB at $0.00799; times 2 machines")),
        # 0.5904 · 1.75
        (["T4"], 1, 1, {"in_a_region": True},
         of(1.0332, "T4:1 at $0.59; times at most 1.75 for a region; cores and memory not counted")),
        # 1 · 0.04716 + 2 · 0.007992; processes on the CPU cost nothing by themselves.
        (["cpu"], 2, 1, {"cpu": 1, "memory_gib": 2}, of(0.063144, "1 core at $0.0472 + 2 GiB at $0.00799")),
    ],
)  # fmt: skip
def test_an_hour_costs_its_parts(
    gpus: list[str], count: int, nodes: int, more: dict[str, Any], expected: Price
) -> None:
    asked = {"cpu": None, "memory_gib": None} | more
    assert price_of("modal", gpus, count, nodes, **asked) == expected


@pytest.mark.parametrize(
    ("backend", "gpus", "more"),
    [
        ("local", ["H100"], {}),
        ("modal", [], {}),
        ("modal", ["X9000"], {}),
        ("modal", ["H100", "X9000"], {}),
        ("modal", ["H100+"], {}),
        ("modal", ["cpu", "H100"], {"cpu": 1, "memory_gib": 1}),
        # A core and a GiB are rows, and no GPUs.
        ("modal", ["core"], {}),
        ("modal", ["cpu"], {}),
        ("modal", ["cpu"], {"cpu": 4}),
        ("modal", ["cpu"], {"memory_gib": 4}),
    ],
)
def test_what_is_unknown_has_no_price(backend: str, gpus: list[str], more: dict[str, Any]) -> None:
    assert price_of(backend, gpus, 1, 1, **({"cpu": None, "memory_gib": None} | more)) is None


@pytest.mark.parametrize(
    ("cloud", "expected"),
    [
        ("{gpu: 'H100:8'}", 31.5936),
        ("{gpu: ['H100!:8', 'H200:8'], nodes: 2}", 72.6336),  # 2 · 8 · 4.5396
        ("{gpu: L4, region: [us-east]}", 1.3986),  # 0.7992 · 1.75
        # 500 GiB of disk are billed as 25 GiB of memory: 0.7992 + 25 · 0.007992; 32 GiB are more than that.
        ("{gpu: L4, disk: 500}", 0.999),
        ("{gpu: L4, disk: 500, memory: 32}", 1.054944),
        ("{gpu: cpu, cpu: 4, memory: 8}", 0.252576),  # 4 · 0.04716 + 8 · 0.007992
        ("{gpu: cpu}", None),
        ("{gpu: cpu, cpu: 4, memory: 8, modal: {nonpreemptible: true}}", None),
        ("{nodes: 2}", None),
    ],
)
def test_a_recipe_is_priced_as_it_is_written(cloud: str, expected: float | None) -> None:
    block = normalize(loads(f"cloud: {cloud}")).flat.cloud.cloud
    price = price_for(block, "modal")
    assert (price and price.usd_per_hour) == expected
    assert price_for(block, "local") is None
    assert price_for(None, "modal") is None


def test_dollars_are_written_so_that_small_ones_say_something() -> None:
    amounts = ["0", "0.00799200", "0.0999", "0.1", "0.5904", "3.9492", "133.330176"]
    assert [usd(Decimal(amount)) for amount in amounts] == [
        "$0.00", "$0.00799", "$0.0999", "$0.10", "$0.59", "$3.95", "$133.33"
    ]  # fmt: skip
    assert [usd_at_most(Decimal(a)) for a in ("15.7968", "15.80", "5")] == [
        "$15.80",
        "$15.80",
        "$5.00",
    ]


# -------------------------------------------------------------------------------- before it starts


class Paid(local.LocalBackend):
    """This machine, as if an hour of it cost money; it goes by the name of a backend that has a list."""

    capabilities = local.LocalBackend.capabilities | Capability.COSTS


RECIPE = """\
base_model: some/model
datasets: [{path: rows.jsonl, type: alpaca}]
learning_rate: 1e-4
max_steps: 2
output_dir: out
cloud: {gpu: cpu}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(registry.BACKENDS, "modal", f"{__name__}:Paid")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 5)
    (tmp_path / "r.yml").write_text(RECIPE)
    return tmp_path


def limits(**changes: Any) -> LimitsPlan:
    return LimitsPlan(**{"timeout_s": None, "max_cost": None, "price_per_hour": None} | changes)


H100 = of(31.5936, "H100:8 at $3.95; cores and memory not counted")


@pytest.mark.parametrize(
    ("price", "changes", "costs", "expected"),
    [
        (None, {}, False, []),
        (None, {"timeout_s": 60}, False, []),
        (None, {}, True,
         [("price", "? an hour: on no list; cloud.price_per_hour says it"), ("cost", "?")]),
        (None, {"price_per_hour": 2.5}, False,
         [("price", "$2.50 an hour (cloud.price_per_hour)"),
          ("cost", "?: neither cloud.max_cost nor cloud.timeout is set")]),
        # 31.5936 / 2 = 15.7968, rounded up.
        (H100, {"price_per_hour": 31.5936, "timeout_s": 1800}, True,
         [("price", "$31.59 an hour (H100:8 at $3.95; cores and memory not counted; Modal's list of 2026-10-08)"),
          ("cost", "?; an attempt at most $15.80 (30 min 00 s, cloud.timeout)")]),
        # 5 / 31.5936 · 3600 = 569.7 s
        (H100, {"price_per_hour": 31.5936, "max_cost": 5.0, "timeout_s": 1800}, True,
         [("price", "$31.59 an hour (H100:8 at $3.95; cores and memory not counted; Modal's list of 2026-10-08)"),
          ("cost", "at most $5.00 (cloud.max_cost): 9 min 30 s at this price")]),
    ],
)  # fmt: skip
def test_what_is_said_of_money(
    folder: Path,
    price: Price | None,
    changes: dict[str, Any],
    costs: bool,
    expected: list[tuple[str, str]],
) -> None:
    plan = dispatch.prepare("r.yml").plan.model_copy(update={"limits": limits(**changes)})
    assert list(pricing.money(price, plan, costs=costs)) == expected


def test_a_plan_has_the_price_of_the_list_and_is_the_same_plan(folder: Path) -> None:
    asked = ["cloud={gpu: cpu, cpu: 4, memory: 8, max_cost: 1}"]
    # `cpu` and `memory` cannot run yet, but are priced.
    checked = dispatch.check("r.yml", asked, backend="modal")
    assert checked.facts.price_per_hour == 0.252576
    assert checked.report.of(Severity.ERROR) == []
    here = dispatch.check("r.yml", asked)
    assert [problem.rule for problem in here.report.of(Severity.ERROR)] == ["R017"]

    plain = dispatch.prepare("r.yml", backend="modal")
    assert (plain.price, plain.costs, plain.plan.limits) == (None, True, limits())
    own = dispatch.prepare("r.yml", ["cloud.price_per_hour=2"], backend="modal")
    assert (own.price, own.plan.limits) == (None, limits(price_per_hour=2.0))
    assert own.plan.sha256 == plain.plan.sha256
    free = dispatch.prepare("r.yml")
    assert (free.price, free.costs, free.plan.limits) == (None, False, limits())
    with pytest.raises(RecipeError):
        dispatch.prepare("r.yml", ["cloud.max_cost=1"], backend="modal")


def test_a_list_bounds_what_its_plan_may_cost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine with the GPUs that the list knows: the whole way from the list to the limits and the lines.
    from ft.launcher.facts import machine_of

    smi = "".join(f"{n}, GPU-{n}, NVIDIA H100 80GB HBM3, 81559, 9.0\n" for n in range(8))
    monkeypatch.setattr(local, "local_machine", lambda: machine_of(smi, None))
    prepared = dispatch.prepare("r.yml", ["cloud={gpu: 'H100:8', max_cost: 5}"], backend="modal")
    assert prepared.price == H100
    assert prepared.plan.limits == limits(max_cost=5.0, price_per_hour=31.5936)
    assert json.loads(prepared.submission.plan_json)["limits"]["price_per_hour"] == 31.5936
    written = [line for line in plan_view.short(prepared) if line.startswith(("  price", "  cost"))]
    assert written == [
        "  price         $31.59 an hour (H100:8 at $3.95; cores and memory not counted;",
        "  cost          at most $5.00 (cloud.max_cost): 9 min 30 s at this price",
    ]
    full = list(plan_view.full(prepared))
    assert full[full.index("money") :][:4] == [
        "money",
        "  price         $31.59 an hour (H100:8 at $3.95; cores and memory not counted;",
        "                Modal's list of 2026-10-08)",
        "  cost          at most $5.00 (cloud.max_cost): 9 min 30 s at this price",
    ]


def test_an_old_price_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    pricing.warn_of_age(None)
    pricing.warn_of_age(Price(1.0, date.today().isoformat(), SOURCE, "", "Modal's list", PAGE))
    assert capsys.readouterr().err == ""
    old = date.fromordinal(date.today().toordinal() - 181).isoformat()
    pricing.warn_of_age(Price(1.0, old, SOURCE, "", "Modal's list", PAGE))
    assert capsys.readouterr().err == (
        f"warning: the price is 181 days old: {PAGE} has today's, cloud.price_per_hour takes it\n"
    )


# ------------------------------------------------------------------------------------ who is asked

PAID = """\
from pathlib import Path

from ft.launcher.backends.base import Capability, Handle
from ft.launcher.backends.local import LocalBackend
from ft.recipes.runstore import RunState


class Paid(LocalBackend):
    capabilities = LocalBackend.capabilities | Capability.COSTS

    def submit(self, submission, *, key):
        with Path("sent.txt").open("a") as stream:
            print(key, file=stream)
        return Handle("modal", {"id": key})

    def find(self, key):
        return None

    def status(self, handle):
        return RunState.RUNNING
"""
START = """\
import sys
sys.path.insert(0, ".")
from ft.launcher.backends import registry
registry.BACKENDS["modal"] = "paid:Paid"
from ft.launcher.cli.app import main
main(sys.argv[1:])
"""


def ft(*arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    """`ft` with a backend that costs money and only writes down what it is sent. `answer` comes from a terminal."""
    homes: Mapping[str, str] = {
        f"XDG_{kind}_HOME": f"{Path.cwd()}/{kind}" for kind in ("STATE", "DATA")
    }
    leader, follower = pty.openpty()
    try:
        if answer is not None:
            os.write(leader, answer.encode())
        return subprocess.run(
            [sys.executable, "-P", "-c", START, *arguments],
            stdin=subprocess.DEVNULL if answer is None else follower,
            env={**os.environ, **homes, "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(leader)
        os.close(follower)


RUN = ("cloud", "run", "r.yml", "--backend", "modal", "-d", "--name", "one")


def sent(folder: Path) -> int:
    there = folder / "sent.txt"
    return len(there.read_text().splitlines()) if there.exists() else 0


def test_what_costs_money_is_asked_for(folder: Path) -> None:
    (folder / "paid.py").write_text(PAID)
    nobody = ft(*RUN)
    assert (nobody.returncode, nobody.stdout) == (2, "")
    shown = nobody.stderr.splitlines()
    assert shown[-2:] == ["error: nobody is there to ask", "hint: --yes starts it"]
    assert "  price         ? an hour: on no list; cloud.price_per_hour says it" in shown
    program = ft(*RUN, "--json")
    assert json.loads(program.stdout) == {
        "error": {
            "message": "nobody is there to ask",
            "hint": "--yes starts it",
            "exit_code": 2,
        },
        "problems": [],
    }
    no = ft(*RUN, answer="n\n")
    assert (no.returncode, no.stdout) == (1, "")
    assert "Start it? [y/N]: " in no.stderr
    assert ft(*RUN, "--dry-run").returncode == 0
    assert sent(folder) == 0
    assert not (folder / "STATE/ft/runs").exists()

    yes = ft(*RUN, answer="y\n")
    assert yes.returncode == 0, yes.stderr
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}\n", yes.stdout)
    assert sent(folder) == 1
    # The run is there: it is only looked at.
    again = ft(*RUN)
    assert (again.returncode, again.stdout) == (0, yes.stdout)
    assert sent(folder) == 1
    other = ft(*RUN[:-1], "two", "-y")
    assert other.returncode == 0, other.stderr
    assert sent(folder) == 2


def test_what_is_free_is_not_asked_for(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pricing.ask(dispatch.prepare("r.yml"))
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="nobody is there to ask"):
        pricing.ask(dispatch.prepare("r.yml", backend="modal"))


# ------------------------------------------------------------------------------- ft cloud prices


def test_the_list_fits_a_terminal_and_says_where_it_is_from(folder: Path) -> None:
    lines = ft("cloud", "prices").stdout.splitlines()
    assert lines[:3] == [
        "BACKEND  ONE           USD AN HOUR  USD A SECOND  AS OF       SOURCE",
        "modal    T4            $0.59        0.000164      2026-10-08  [1]",
        "modal    L4            $0.80        0.000222      2026-10-08  [1]",
    ]
    assert lines[-3:] == [
        "modal    B200+         $6.25        0.001736      2026-10-08  [1]",
        f"[1] {SOURCE}",
        f"modal: today's are at {PAGE}",
    ]
    assert len(lines) == 19
    assert max(map(len, lines)) <= 80


def test_the_list_as_json(folder: Path) -> None:
    rows = json.loads(ft("cloud", "prices", "--json").stdout)
    assert rows[12] == {
        "backend": "modal",
        "name": "GiB",
        "usd_per_second": "0.00000222",
        "usd_per_hour": 0.007992,
        "as_of": "2026-10-08",
        "source": SOURCE,
        "stale": Row("modal", "GiB", Decimal(0), "2026-10-08", "").stale(date.today()),
    }
    assert [row["name"] for row in rows] == [row.name for row in prices.rows()]
