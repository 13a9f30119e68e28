"""Which machine SkyPilot would take, and for how much, by its own catalogs: no SkyPilot, no server, no network.

It follows SkyPilot 0.14's optimizer, which a test compares: on each cloud the machine that is cheapest anywhere, of
that one the cheapest place. Which clouds the user has, only SkyPilot's server knows; here any may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal, InvalidOperation
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from ft.launcher import sky_clouds
from ft.launcher.catalog_files import Catalog, Offer, UnreadableCatalogError, present, read
from ft.launcher.sky_resources import DOCKER

BEST: Final = "best"
READ: Final = frozenset(
    {"accelerators", "any_of", "cpus", "infra", "max_hourly_cost", "memory", "network_tier", "ordered", "use_spot"}
)  # fmt: skip
IGNORED: Final = frozenset(
    {"autostop", "disk_size", "disk_tier", "image_id", "job_recovery", "labels", "ports", "volumes"}
)
"""May rule a machine out, and leave its price as it is. Any other field may be about another machine altogether."""
COUNT_TOLERANCE: Final = 0.01
STALE_DAYS: Final = 14


@dataclass(frozen=True, slots=True)
class Ask:
    """One machine that would do. None is whatever there is."""

    accelerator: str | None
    count: float
    cloud: str | None
    region: str | None
    zone: str | None
    spot: bool
    cpus: str | None
    """`4`, `4+`"""
    memory: str | None
    """GiB as `16`, `16+`, or `4x` for so many for each core."""
    max_hourly_cost: Decimal | None
    nodes: int
    is_networked: bool
    """Whether `network_tier: best` is asked for."""
    is_container: bool = False
    """Whether it is to run in the image of a container."""

    @property
    def gpus(self) -> str:
        return f"{self.accelerator}:{self.count:g}" if self.accelerator else ""

    @property
    def place(self) -> str:
        return "/".join(part or "*" for part in (self.cloud, self.region, self.zone)).rstrip("/*")


@dataclass(frozen=True, slots=True)
class Pick:
    """An offer, and the price that counts."""

    offer: Offer
    spot: bool
    usd_per_hour: Decimal
    """For one machine."""
    order: int = 0
    """Of what was asked for: 0 is what was named first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What SkyPilot may do with a request, as far as the catalogs on this machine tell."""

    asks: tuple[Ask, ...]
    is_ordered: bool
    nodes: int
    picks: tuple[Pick, ...]
    """What it would take first, then the first of each further cloud."""
    dearest: Pick | None
    """Of all that it might take when the first are not to be had."""
    num_machines: int
    """How many it might take."""
    as_of: str | None
    """Day of the oldest catalog of a cloud that has one; ISO."""
    looked_at: str | None
    """Day of the oldest catalog that was looked into, whether it has one or not; ISO."""
    missing: tuple[str, ...]
    """Clouds that were named and have no catalog here."""
    unlisted: tuple[str, ...]
    """Places that were named and are in no catalog at all, such as a Slurm cluster."""
    problems: tuple[str, ...]
    """Catalogs that cannot be read."""
    unplaced: tuple[str, ...]
    """Places that were named and are not in the catalog of their cloud; SkyPilot refuses all of a request for one."""
    ignored: tuple[str, ...]
    """Clouds with a catalog here that this cannot read as SkyPilot does: one of theirs may be dearer."""
    unread: tuple[str, ...]
    """Fields of the request that this does not understand, and that may change the price."""

    @property
    def is_refused(self) -> bool:
        """Whether SkyPilot has nothing for it: every place is named, and in a catalog of these days that is here."""
        if self.looked_at is not None and is_stale(self.looked_at):
            return False
        if self.unplaced:
            return True
        return not self.picks and not self._is_partial and all(ask.cloud for ask in self.asks)

    @property
    def usd_per_hour(self) -> Decimal | None:
        """The most that an hour of all machines costs; None if a place has an unknown price, or all is free."""
        if self._is_partial or self.dearest is None or not self.dearest.usd_per_hour:
            return None
        return self.dearest.usd_per_hour * self.nodes

    @property
    def _is_partial(self) -> bool:
        return bool(self.missing or self.unlisted or self.problems or self.unread)

    def to_json(self) -> dict[str, Any]:
        """As `--dry-run` has it. Money is for an hour of all machines."""
        most = self.usd_per_hour
        return {
            "nodes": self.nodes,
            "offers": [self._offer(pick) for pick in self.picks],
            "usd_per_hour_at_most": None if most is None else float(most),
            "as_of": self.as_of,
            "unknown": [*self.missing, *self.unlisted, *self.ignored],
        }

    def _offer(self, pick: Pick) -> dict[str, Any]:
        offer = pick.offer
        return {
            "cloud": offer.cloud,
            "region": offer.region,
            "zone": offer.zone,
            "machine": offer.instance_type,
            "gpus": gpus_of(offer),
            "spot": pick.spot,
            "usd_per_hour": float(pick.usd_per_hour * self.nodes),
            "on_demand_usd_per_hour": _times(offer.usd_per_hour, self.nodes),
            "spot_usd_per_hour": _times(offer.spot_usd_per_hour, self.nodes),
        }


def is_stale(day: str) -> bool:
    """Whether what is not in a catalog of this day may be had by now: it is SkyPilot's server that fetches them."""
    return (date.today() - date.fromisoformat(day)).days > STALE_DAYS


def gpus_of(offer: Offer) -> str:
    """`H100:8`; empty for a machine without."""
    return f"{offer.accelerator}:{offer.count:g}" if offer.accelerator else ""


def _times(price: Decimal | None, nodes: int) -> float | None:
    return None if price is None else float(price * nodes)


def choice_for(resources: Mapping[str, Any], nodes: int) -> Choice:
    """What SkyPilot would do with the `resources` of a task of so many `nodes`."""
    unread = unreadable(resources)
    asks, is_ordered = ((), False) if unread else asks_of(resources, nodes)
    shelf = _Shelf()
    ranked = [] if unread else _ranked(asks, shelf, is_ordered=is_ordered)
    used = {pick.offer.cloud for pick in ranked}
    days = [catalog.as_of for catalog in shelf.read.values() if catalog.cloud in used]
    return Choice(
        asks=asks,
        is_ordered=is_ordered,
        nodes=nodes,
        picks=_first_of_each(ranked),
        dearest=max(ranked, key=lambda pick: pick.usd_per_hour, default=None),
        num_machines=len(ranked),
        as_of=min(days, default=None),
        looked_at=min((catalog.as_of for catalog in shelf.read.values()), default=None),
        missing=tuple(shelf.missing),
        unlisted=tuple(shelf.unlisted),
        problems=tuple(shelf.problems.values()),
        unplaced=tuple(shelf.unplaced),
        ignored=tuple(shelf.ignored),
        unread=unread,
    )


def unreadable(resources: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that are not looked into: about something else, or not written as ft writes them."""
    unknown = set(resources) - READ - IGNORED
    for key in ("any_of", "ordered"):
        options = resources.get(key) or []
        if not all(isinstance(option, Mapping) for option in options):
            return tuple(sorted({*unknown, key}))
        unknown |= {field for option in options for field in unreadable(option)}
    if not isinstance(resources.get("accelerators") or "", str):
        unknown.add("accelerators")
    try:
        Decimal(str(resources.get("max_hourly_cost") or 0))
    except InvalidOperation:
        unknown.add("max_hourly_cost")
    return tuple(sorted(unknown))


def choice_of(ask: Ask) -> tuple[Pick, ...]:
    """What SkyPilot would take for one machine, on each cloud with a catalog that can be read; the cheapest first."""
    return _first_of_each(_ranked((ask,), _Shelf(), is_ordered=False))


def _ranked(asks: tuple[Ask, ...], shelf: _Shelf, *, is_ordered: bool) -> list[Pick]:
    picks = [
        Pick(offer, ask.spot, price, order if is_ordered else 0)
        for order, ask in enumerate(asks)
        for catalog in shelf.of(ask)
        for offer in machines(catalog, ask)
        if (price := offer.price(spot=ask.spot)) is not None
    ]
    return sorted(picks, key=_rank)


def _first_of_each(ranked: list[Pick]) -> tuple[Pick, ...]:
    """Of each cloud what it would take there, in the order of `ranked`."""
    found: dict[str, Pick] = {}
    for pick in ranked:
        found.setdefault(pick.offer.cloud, pick)
    return tuple(found.values())


def asks_of(resources: Mapping[str, Any], nodes: int) -> tuple[tuple[Ask, ...], bool]:
    """What would do, and whether in this order."""
    common = {key: value for key, value in resources.items() if key not in {"any_of", "ordered"}}
    is_ordered = "ordered" in resources
    options = resources.get("ordered") or resources.get("any_of") or [{}]
    return tuple(_ask({**common, **option}, nodes) for option in options), is_ordered


def _ask(wanted: Mapping[str, Any], nodes: int) -> Ask:
    name, _, count = str(wanted.get("accelerators") or "").partition(":")
    parts = [part.strip() for part in str(wanted.get("infra") or "").strip().strip("/").split("/")]
    cloud, region, zone = (None if part in {"", "*"} else part for part in [*parts, "", ""][:3])
    cost = wanted.get("max_hourly_cost")
    return Ask(
        accelerator=name or None,
        count=float(count or 1),
        cloud=cloud and cloud.lower(),
        region=region,
        zone=zone,
        spot=bool(wanted.get("use_spot")),
        cpus=_amount(wanted, "cpus"),
        memory=_amount(wanted, "memory"),
        max_hourly_cost=None if cost is None else Decimal(str(cost)),
        nodes=nodes,
        is_networked=wanted.get("network_tier") == BEST,
        is_container=str(wanted.get("image_id") or "").startswith(DOCKER),
    )


def _amount(wanted: Mapping[str, Any], key: str) -> str | None:
    return None if wanted.get(key) is None else str(wanted[key])


def _rank(pick: Pick) -> tuple[int, Decimal, bool, str, str, str]:
    """As SkyPilot tries them; which of two clouds with one price goes first depends on the user's."""
    offer = pick.offer
    is_later = offer.cloud in sky_clouds.US_FIRST and not offer.region.startswith("us-")
    return pick.order, pick.usd_per_hour, is_later, offer.cloud, offer.region, offer.zone or ""


@dataclass(slots=True)
class _Shelf:
    """The catalogs that a request needs, and those that it lacks."""

    read: dict[tuple[str, str | None], Catalog] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    unlisted: dict[str, None] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, None] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)

    def of(self, ask: Ask) -> Iterator[Catalog]:
        """Those in which `ask` has to look: of its cloud, else of all."""
        can_tell = sky_clouds.LACKS if ask.accelerator else sky_clouds.CPU_ONLY
        if ask.cloud is not None and ask.cloud not in can_tell:
            self.unlisted[ask.place] = None
            return
        for cloud in [ask.cloud] if ask.cloud else present():
            if cloud not in can_tell:
                self.ignored[cloud] = None
                continue
            try:
                catalog = read(cloud, ask.accelerator)
            except UnreadableCatalogError as error:
                self.problems[cloud] = str(error)
                continue
            if catalog is None:
                self.missing[cloud] = None
            else:
                self.read[cloud, ask.accelerator] = catalog
                if _has_place(catalog, ask):
                    yield catalog
                else:
                    self._misplaced(catalog, ask)

    def _misplaced(self, catalog: Catalog, ask: Ask) -> None:
        if ask.cloud is None:
            return  # Another cloud may have a region of this name.
        may_be_named_so = catalog.are_zones_ids and ask.zone is not None
        (self.unlisted if may_be_named_so else self.unplaced)[ask.place] = None


def _has_place(catalog: Catalog, ask: Ask) -> bool:
    has_region = ask.region is None or ask.region.lower() in catalog.places
    return has_region and (ask.zone is None or ask.zone in catalog.places)


def machines(catalog: Catalog, ask: Ask) -> list[Offer]:
    """What SkyPilot would try on one cloud: one kind of machine at every place that sells it. Empty: infeasible."""
    if refused(catalog.cloud, ask):
        return []
    kind = _kind(catalog, ask)
    if kind is None:
        return []
    sold = [offer for offer in catalog.offers if offer.instance_type == kind]
    if catalog.cloud == "gcp" and ask.accelerator is not None:
        sold = list(_with_gpus(sold, catalog, ask))
    priced = [
        offer
        for offer in sold
        if offer.price(spot=ask.spot) is not None and (offer.zone or not catalog.has_zones)
    ]
    there = [offer for offer in priced if is_there(offer, ask)]
    if catalog.has_zones and (ask.spot or catalog.cloud == "gcp"):
        return there
    return _by_region(there)


def refused(cloud: str, ask: Ask) -> frozenset[str]:
    """What is asked for and SkyPilot does not have on a cloud: `spot`, `nodes`, `network`, `images`."""
    asked = {
        sky_clouds.SPOT: ask.spot,
        sky_clouds.NODES: ask.nodes > 1,
        sky_clouds.NETWORK: ask.is_networked,
        sky_clouds.IMAGES: ask.is_container,
    }
    lacks = sky_clouds.lacks(cloud, ask.accelerator, ask.count)
    return frozenset(feature for feature, is_asked in asked.items() if is_asked) & lacks


def _kind(catalog: Catalog, ask: Ask) -> str | None:
    """The machine that is the cheapest of those that will do."""
    if ask.accelerator is None:
        return _cpu_kind(catalog, ask)
    rows = [o for o in catalog.offers if is_gpu(o, ask) and is_there(o, ask)]
    if catalog.cloud == "gcp":
        return _gcp_kind(catalog, ask) if rows else None
    memory = None if catalog.cloud in sky_clouds.MEMORY_IGNORED else ask.memory
    return _cheapest([row for row in rows if fits(row, ask.cpus, memory)], ask, spot=ask.spot)


def _cpu_kind(catalog: Catalog, ask: Ask) -> str | None:
    rule = sky_clouds.CPU_ONLY[catalog.cloud]
    cpus = rule.cpus if ask.cpus is None and ask.memory is None else ask.cpus
    memory = ask.memory or rule.memory
    rows = [o for o in catalog.offers if is_there(o, ask) and fits(o, cpus, memory)]
    # Without a limit SkyPilot ranks by the price on demand: where only GPUs have spot machines, that is dear.
    return _cheapest(rows, ask, spot=ask.spot and ask.max_hourly_cost is not None)


def _gcp_kind(catalog: Catalog, ask: Ask) -> str | None:
    """The machine that a GPU of Google Cloud's is put into. Its price anywhere decides, and no limit in dollars."""
    assert ask.accelerator is not None
    hosts = sky_clouds.gcp_hosts(ask.accelerator, int(ask.count))
    cpus, memory = ask.cpus, ask.memory
    if hosts is None:
        if cpus is None and memory is None:
            number = sky_clouds.gcp_cpus(ask.accelerator, int(ask.count))
            cpus = f"{number}+" if number else None
        if cpus is None and memory is None:
            return None
        if memory is None and cpus is not None:
            memory = f"{int(float(cpus.rstrip('+'))) * 4}+"
        rows = [o for o in catalog.offers if o.instance_type.startswith(sky_clouds.N1)]
    else:
        rows = [o for o in catalog.offers if o.instance_type in hosts]
    rows = [row for row in rows if fits(row, cpus, memory)]
    return _cheapest(rows, replace(ask, max_hourly_cost=None), spot=False)


def _with_gpus(hosts: list[Offer], catalog: Catalog, ask: Ask) -> Iterator[Offer]:
    gpus = {(o.region, o.zone): o for o in catalog.offers if is_gpu(o, ask)}
    for host in hosts:
        gpu = gpus.get((host.region, host.zone))
        if gpu is not None:
            yield replace(
                host,
                accelerator=gpu.accelerator,
                count=gpu.count,
                usd_per_hour=_sum(host.usd_per_hour, gpu.usd_per_hour),
                spot_usd_per_hour=_sum(host.spot_usd_per_hour, gpu.spot_usd_per_hour),
            )


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other


def _cheapest(rows: list[Offer], ask: Ask, *, spot: bool) -> str | None:
    priced = [(price, row) for row in rows if (price := row.price(spot=spot)) is not None]
    limit = ask.max_hourly_cost
    allowed = [(price, row) for price, row in priced if limit is None or price <= limit]
    return min(allowed, key=lambda pair: pair[0])[1].instance_type if allowed else None


def _by_region(offers: list[Offer]) -> list[Offer]:
    """A region's zones are tried together where they have one price."""
    found = []
    for _, group in groupby(sorted(offers, key=attrgetter("region")), attrgetter("region")):
        zones = list(group)
        found.append(
            replace(
                zones[0],
                zone=None,
                usd_per_hour=_least(zone.usd_per_hour for zone in zones),
                spot_usd_per_hour=_least(zone.spot_usd_per_hour for zone in zones),
            )
        )
    return found


def _least(prices: Iterator[Decimal | None]) -> Decimal | None:
    return min((price for price in prices if price is not None), default=None)


def is_gpu(offer: Offer, ask: Ask) -> bool:
    """Whether it has the GPUs; names are one whatever their case."""
    same = (offer.accelerator or "").casefold() == (ask.accelerator or "").casefold()
    return same and abs(offer.count - ask.count) <= COUNT_TOLERANCE


def is_there(offer: Offer, ask: Ask) -> bool:
    if ask.region is not None and offer.region.casefold() != ask.region.casefold():
        return False
    return ask.zone is None or offer.zone == ask.zone


def fits(offer: Offer, cpus: str | None, memory: str | None) -> bool:
    """Whether it has as many cores and as much memory; what is not in the catalog is not enough."""
    gib = memory
    if memory is not None and memory.endswith("x"):
        gib = f"{float(memory[:-1]) * (offer.vcpus or 0)}+"
        if offer.vcpus is None:
            return False
    return _is_enough(offer.vcpus, cpus) and _is_enough(offer.memory_gib, gib)


def _is_enough(number: float | None, wanted: str | None) -> bool:
    if wanted is None:
        return True
    if number is None:
        return False
    return number >= float(wanted[:-1]) if wanted.endswith("+") else number == float(wanted)
