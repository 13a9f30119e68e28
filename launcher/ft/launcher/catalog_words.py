"""Why a request has no machine in SkyPilot's catalogs, what is nearest, and what they cannot say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Final

from ft.launcher import sky_clouds
from ft.launcher.catalog_files import Catalog, Offer, UnreadableCatalogError, present, read
from ft.launcher.catalogs import Ask, Choice, choice_of, fits, is_gpu, is_there, refused
from ft.launcher.sky_resources import our_name

MANY: Final = 4
FETCH: Final = "sky gpus list"
REFUSED: Final = {
    sky_clouds.SPOT: "has no spot machines",
    sky_clouds.NODES: "has single machines only",
    sky_clouds.NETWORK: "has no `network_tier: best`, which several machines with GPUs are asked with",
    sky_clouds.IMAGES: "runs no containers",
}


def nothing(choice: Choice) -> str:
    """What was asked, where, and why there is none; empty where there is some, or nobody looked."""
    if choice.unplaced:
        return f"cloud.region: {_some(choice.unplaced)} is no place in SkyPilot's catalog of that cloud"
    if choice.picks or choice.unread:
        return ""
    asked = [(ask, catalog) for ask in choice.asks for catalog in _catalogs(ask)]
    if not asked:
        return ""
    reasons = dict.fromkeys(_reason(catalog, ask) for ask, catalog in asked)
    whole = dict.fromkeys(_said(ask) for ask, _ in asked)
    return f"SkyPilot's catalogs have no {' or '.join(whole)}: {_some(reasons, '; ')}"


def way_out(choice: Choice) -> str:
    """What is nearest to a request that has no machine, each as it is typed."""
    found: dict[str, None] = {}
    for ask in choice.asks:
        found.update(dict.fromkeys(_nearest(ask)))
    return _some(found, ", or ") or f"another cloud.gpu; `{FETCH}` has all"


def unknown(choice: Choice) -> str:
    """Why nobody knows what it may cost, and how to know; empty where the catalogs tell."""
    if choice.usd_per_hour is not None:
        return ""
    if choice.unread:
        return f"cloud.sky.resources.{choice.unread[0]} may be about another machine than those in the catalogs"
    if choice.problems:
        return choice.problems[0]
    if choice.missing:
        cloud = choice.missing[0]
        return f"no catalog of {cloud} is on this machine, `{FETCH} --infra {cloud}` fetches it"
    if choice.unlisted:
        return f"no catalog says what {choice.unlisted[0]} costs"
    if choice.dearest is not None:
        return "the catalogs say that it costs nothing"
    if not present():
        return f"no catalog of SkyPilot's is on this machine, `{FETCH}` fetches them"
    return "no catalog on this machine has such a machine"


def warnings(choice: Choice) -> Iterator[str]:
    """What somebody should know, and is no reason to refuse."""
    for problem in choice.problems:
        yield f"{problem}: not looked into. Take it away, and `{FETCH}` fetches it anew"
    text = nothing(choice)
    if text:
        yield f"{text}. SkyPilot may know better. Nearest here: {way_out(choice)}"


def made_of(choice: Choice) -> str:
    """What the price is made of."""
    assert choice.dearest is not None
    offer = choice.dearest.offer
    kind = " spot" if choice.dearest.spot else ""
    parts = [f"{offer.cloud} {offer.region} {offer.instance_type}{kind}"]
    if choice.num_machines > 1:
        parts[0] += f", the dearest of {choice.num_machines} that it may be"
    if choice.nodes > 1:
        parts.append(f"times {choice.nodes} machines")
    return "; ".join(parts)


def caveats(choice: Choice) -> Iterator[str]:
    """What a list of machines leaves open."""
    yield f"catalogs of {choice.as_of}; which clouds are yours, `sky check` says"
    unknown = [*choice.missing, *choice.unlisted, *choice.ignored]
    if unknown:
        yield f"not in them: {_some(unknown)}"


def usd(amount: Decimal) -> str:
    return f"${amount:.2f}"


def _catalogs(ask: Ask) -> Iterator[Catalog]:
    can_tell = sky_clouds.LACKS if ask.accelerator else sky_clouds.CPU_ONLY
    for cloud in [ask.cloud] if ask.cloud else present():
        if cloud in can_tell:
            with contextlib.suppress(UnreadableCatalogError):
                catalog = read(cloud, ask.accelerator)
                if catalog is not None:
                    yield catalog


def _said(ask: Ask) -> str:
    """`2 x H100:8 spot at aws/us-east-1 with 500+ cores`."""
    parts = [f"{ask.nodes} x " if ask.nodes > 1 else "", ask.gpus or "machine"]
    parts += [" spot"] if ask.spot else []
    parts += [f" at {ask.place}"] if ask.place else []
    wants = [
        text
        for text in (
            ask.cpus and f"{ask.cpus} cores",
            ask.memory and f"{ask.memory} GiB",
            ask.max_hourly_cost and f"at most {usd(ask.max_hourly_cost)} an hour",
        )
        if text
    ]
    return "".join(parts) + (f" with {' and '.join(wants)}" if wants else "")


def _reason(catalog: Catalog, ask: Ask) -> str:
    """The first thing that leaves no machine of a cloud."""
    cloud, name = catalog.cloud, ask.accelerator
    for feature in sorted(refused(cloud, ask)):
        return f"{cloud} {REFUSED[feature]}"
    offers: Iterable[Offer] = catalog.offers
    if name is not None:
        named = [o for o in offers if (o.accelerator or "").casefold() == name.casefold()]
        offers = [o for o in named if is_gpu(o, ask)]
        if not named:
            return f"{cloud} has no {name}"
        if not offers:
            return f"{cloud} has {_some(_counts(named))}"
    there = [o for o in offers if is_there(o, ask)]
    if not there:
        return f"{cloud} has it in {_some(sorted({o.region for o in offers}))}"
    alone = name is not None and cloud == "gcp"  # Sold apart from the machines with the cores.
    big = [o for o in there if alone or fits(o, ask.cpus, ask.memory)]
    if not big:
        sizes = {(o.vcpus or 0, o.memory_gib or 0) for o in there}
        most = " and ".join(
            f"{size:g} {word}" for size, word in zip(max(sizes), ("cores", "GiB"), strict=True)
        )
        return f"{cloud} has it with {most}"
    prices = [price for o in big if (price := o.price(spot=ask.spot)) is not None]
    if not prices:
        return f"{cloud} has no {'spot price' if ask.spot else 'price'} for it"
    if ask.max_hourly_cost is not None and min(prices) > ask.max_hourly_cost:
        return f"on {cloud} it costs {usd(min(prices))} an hour"
    return f"{cloud} has no machine that goes with it"


def _nearest(ask: Ask) -> Iterator[str]:
    """What to type instead: without one wish after the other."""
    if ask.cloud is not None and sky_clouds.NETWORK in refused(ask.cloud, ask):
        yield "cloud.sky.resources.network_tier=standard, with a slower network between machines"
    if ask.cloud is not None:
        anywhere = choice_of(replace(ask, cloud=None, region=None, zone=None))
        for pick in anywhere[:MANY]:
            yield f"cloud.region={pick.offer.cloud} ({usd(pick.usd_per_hour)} an hour each)"
        if anywhere:
            return
    looser = {
        "cloud.spot=false": replace(ask, spot=False),
        "cloud.sky.resources.max_hourly_cost": replace(ask, max_hourly_cost=None),
        "another cloud.cpu or cloud.memory": replace(ask, cpus=None, memory=None),
        "without cloud.image.pushed": replace(ask, is_container=False),
        "cloud.nodes=1": replace(ask, nodes=1, is_networked=False),
    }
    for text, wish in looser.items():
        first = next(iter(choice_of(wish)), None) if wish != ask else None
        if first is None:
            continue
        price = usd(first.usd_per_hour)
        sets = f"{text}={price[1:]}" if text.endswith("max_hourly_cost") else text
        yield f"{sets} ({first.offer.cloud} at {price} an hour each)"
        return
    if ask.accelerator is not None:
        others = [o for catalog in _catalogs(replace(ask, cloud=None)) for o in catalog.offers]
        # By the recipe's names, and only what a recipe can ask for.
        ours = [(our_name(o.accelerator), o.count) for o in others if o.accelerator]
        for name, count in sorted({(name, count) for name, count in ours if name})[:MANY]:
            yield f"cloud.gpu={name}:{count:g}"


def _counts(offers: Iterable[Offer]) -> list[str]:
    """`H100:1`, `H100:4`; the fewest first."""
    found = {(o.accelerator or "", o.count) for o in offers}
    return [f"{name}:{count:g}" for name, count in sorted(found)]


def _some(texts: Iterable[str], between: str = ", ") -> str:
    """The first ones, and how many more."""
    named = list(texts)
    more = len(named) - MANY
    return between.join(named[:MANY]) + (f" and {more} more" if more > 0 else "")
