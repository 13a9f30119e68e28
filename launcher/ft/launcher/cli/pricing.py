"""What a run costs, as text: before it starts, and the lists themselves for `ft cloud prices`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import typer

from ft.launcher import catalog_words, catalogs, prices
from ft.launcher.catalogs import Choice
from ft.launcher.cli import console
from ft.launcher.dispatch import Prepared
from ft.launcher.prices import Price, usd, usd_at_most
from ft.recipes.errors import UsageError
from ft.recipes.plan import LimitsPlan, RunPlan


def money(
    price: Price | None, plan: RunPlan, *, costs: bool, choice: Choice | None = None
) -> Iterator[tuple[str, str]]:
    """What an hour costs and what that may add up to, each with its label; nothing where no money is spoken of.

    `price` is the backend's list, None if the recipe says the price or nobody knows it; `costs`: it is not free.
    """
    limits = plan.limits
    if price is None and limits.price_per_hour is None and not costs:
        return
    yield "price", _per_hour(price, limits, choice)
    yield "cost", _in_all(limits)


def _per_hour(price: Price | None, limits: LimitsPlan, choice: Choice | None) -> str:
    if price is not None:
        of = f"({price.made_of}; {price.whose} of {price.as_of})"
        most = "at most " if choice is not None else ""
        return f"{most}{usd(price.usd_per_hour)} an hour {of}"
    if limits.price_per_hour is not None:
        return f"{usd(limits.price_per_hour)} an hour (cloud.price_per_hour)"
    why = "on no list" if choice is None else catalog_words.unknown(choice)
    return f"? an hour: {why}; cloud.price_per_hour says it"


def offers(choice: Choice) -> Iterator[str]:
    """Which machines may come, the first that SkyPilot would take on the first line; nothing if it is not known."""
    if not choice.picks:
        return
    nodes = f"all {choice.nodes} machines" if choice.nodes > 1 else "one machine"
    yield f"machines (an hour of {nodes}; SkyPilot tries the first one first)"
    rows = [
        (
            f"  {pick.offer.cloud}",
            pick.offer.zone or pick.offer.region,
            pick.offer.instance_type,
            catalogs.gpus_of(pick.offer) or "-",
            *(
                "-" if price is None else usd(price * choice.nodes)
                for price in (pick.offer.usd_per_hour, pick.offer.spot_usd_per_hour)
            ),
        )
        for pick in choice.picks
    ]
    header = ("  CLOUD", "REGION", "MACHINE", "GPUS", "ON-DEMAND", "SPOT")
    yield from console.table(header, rows, shrink=(1, 2))
    yield from (f"  {text}" for text in catalog_words.caveats(choice))


def _in_all(limits: LimitsPlan) -> str:
    """`?` where nothing bounds it: how long a run takes is known once it runs."""
    hour = limits.price_per_hour
    if hour is None:
        return "?"
    if limits.max_cost is not None:
        seconds = limits.max_cost / hour * prices.SECONDS_PER_HOUR
        most = usd_at_most(Decimal(str(limits.max_cost)))
        return f"at most {most} (cloud.max_cost): {console.duration(seconds)} at this price"
    if limits.timeout_s is None:
        return "?: neither cloud.max_cost nor cloud.timeout is set"
    attempt = Decimal(str(hour)) * limits.timeout_s / prices.SECONDS_PER_HOUR
    length = console.duration(limits.timeout_s)
    return f"?; an attempt at most {usd_at_most(attempt)} ({length}, cloud.timeout)"


def warn_of_age(price: Price | None) -> None:
    """On stderr, if the list is so old that it may well be wrong."""
    today = date.today()
    if price is not None and price.stale(today):
        days = (today - date.fromisoformat(price.as_of)).days
        console.warn(
            f"the price is {days} days old: {price.page} has today's, cloud.price_per_hour takes it"
        )


def ask(prepared: Prepared) -> None:
    """Before anything is sent to a backend that costs money.

    Raises: UsageError where nobody can answer, typer.Abort for a no.
    """
    if not prepared.costs:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to ask", hint="--yes starts it")
    # Not `typer.confirm`: it writes a blank to stdout, where the id of the run is to stand alone.
    print("Start it? [y/N]: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise typer.Abort


def lines() -> Iterator[str]:
    """A table for each list, and below it where each row is written."""
    listed = list(prices.rows())
    sources = list(dict.fromkeys(row.source for row in listed))
    table = []
    for row in listed:
        second = f"{row.usd_per_second:f}"
        where = f"[{sources.index(row.source) + 1}]"
        table.append((row.backend, row.name, usd(row.usd_per_hour), second, row.as_of, where))
    yield from console.table(
        ("BACKEND", "ONE", "USD AN HOUR", "USD A SECOND", "AS OF", "SOURCE"), table
    )
    for number, source in enumerate(sources, start=1):
        yield f"[{number}] {source}"
    for backend, page in prices.pages().items():
        yield f"{backend}: today's are at {page}"


def to_json() -> list[dict[str, Any]]:
    """One object for each row. Dollars a second are text: they are exact."""
    today = date.today()
    return [
        {
            "backend": row.backend,
            "name": row.name,
            "usd_per_second": f"{row.usd_per_second:f}",
            "usd_per_hour": float(row.usd_per_hour),
            "as_of": row.as_of,
            "source": row.source,
            "stale": row.stale(today),
        }
        for row in prices.rows()
    ]
