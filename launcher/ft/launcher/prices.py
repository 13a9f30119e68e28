"""What a backend costs, by a dated list that travels with `ft`: no network, and no figure that nobody stated.

Backend `sky` is priced by SkyPilot's catalogs (`catalogs.py`).
`prices.json` holds dollars per second as text, because a sum of money is exact; each row says of which day it is and
where that is written. What is not in it is unknown: None, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from ft.recipes.schema.cloud import gpu_choices

if TYPE_CHECKING:
    from ft.launcher.catalogs import Choice
    from ft.recipes.schema.cloud import CloudBlock

SECONDS_PER_HOUR: Final = 3600
STALE_DAYS: Final = 180
SKY: Final = "sky"
CORE: Final = "core"
GIB: Final = "GiB"
"""Names of rows that are no GPU."""
GIB_DISK_PER_GIB: Final = 20
"""Modal bills so much disk as a GiB of memory, if that is more than the memory asked for (its guide on resources)."""
CENT: Final = Decimal("0.01")
TEN_CENTS: Final = Decimal("0.1")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list: what one of a thing costs."""

    backend: str
    name: str
    """As the backend spells it; `core` is a physical core, `GiB` is of memory."""
    usd_per_second: Decimal
    as_of: str
    """Day on which somebody read it at the backend's page."""
    source: str
    """Address at which that is written down."""

    @property
    def usd_per_hour(self) -> Decimal:
        return self.usd_per_second * SECONDS_PER_HOUR

    def stale(self, today: date) -> bool:
        """Whether it is so old that it may well be wrong."""
        return _is_stale(self.as_of, today)


@dataclass(frozen=True, slots=True)
class Price:
    """What an hour of all machines of a run costs."""

    usd_per_hour: float
    as_of: str
    """The oldest day of the rows that it is made of; ISO."""
    source: str
    """Address of that row; empty for a catalog's."""
    made_of: str
    """`H100:8 at $3.95`, with what it is multiplied by and what is not counted."""
    whose: str
    """`Modal's list`."""
    page: str
    """Where the backend itself has its prices."""

    def stale(self, today: date) -> bool:
        """Whether a row of it is so old that it may well be wrong."""
        return _is_stale(self.as_of, today)


def price_for(block: CloudBlock | None, backend: str) -> Price | None:
    """What an hour of what a recipe asks for costs by the list of `backend`; None if it has no figure for it.

    The recipe's own `price_per_hour` is not looked at.
    """
    if backend == SKY:
        return _of_catalogs(choice_for(block, backend))
    if block is None or (block.modal or {}).get("nonpreemptible"):
        return None  # Not taken back, cores and memory cost a multiple that the list does not have.
    choices = list(gpu_choices(block.gpu))
    memory = block.memory
    if block.disk is not None:
        memory = max(memory or 0.0, block.disk / GIB_DISK_PER_GIB)
    return price_of(
        backend,
        [choice.named for choice in choices],
        max((choice.count for choice in choices), default=1),
        block.nodes or 1,
        cpu=block.cpu,
        memory_gib=memory,
        in_a_region=block.region is not None,
    )


def choice_for(block: CloudBlock | None, backend: str) -> Choice | None:
    """Which machines may come, each with its price; None for a backend that has one of a kind, or if none is named."""
    if backend != SKY or block is None or block.gpu is None:
        return None
    # Imported here: other backends need no catalogs.
    from ft.launcher import catalogs
    from ft.launcher.sky_resources import resources_of

    resources = resources_of(block)
    if not isinstance(resources, Mapping):
        return None  # The rules say so.
    return catalogs.choice_for(resources, block.nodes or 1)


def _of_catalogs(choice: Choice | None) -> Price | None:
    """The most that any of them costs, so that a limit in dollars holds whichever comes."""
    if choice is None or choice.usd_per_hour is None or choice.as_of is None:
        return None
    from ft.launcher.catalog_words import FETCH, made_of

    return Price(
        usd_per_hour=float(choice.usd_per_hour),
        as_of=choice.as_of,
        source="",
        made_of=made_of(choice),
        whose="SkyPilot's catalogs",
        page=f"`{FETCH}`",
    )


def price_of(
    backend: str,
    gpus: Sequence[str],
    count: int,
    nodes: int,
    *,
    cpu: float | None,
    memory_gib: float | None,
    in_a_region: bool = False,
) -> Price | None:
    """Dollars for an hour of `nodes` machines with `count` GPUs each; None if a figure is unknown.

    Of several choices in `gpus` it is the dearest, and for a region the most that any costs, so that a limit in dollars
    holds whichever comes. `cpu` as a GPU is cores and memory only, and unknown without both. Beside a GPU, what is None
    of the two is not counted, and `made_of` says so: Modal bills what a run uses of it.
    """
    book = _books().get(backend)
    on_cpu = list(gpus) == ["cpu"]
    if book is None or not gpus or (on_cpu and None in {cpu, memory_gib}):
        return None
    asked = (
        None if on_cpu else _dearest(backend, gpus, count),
        _of(backend, CORE, cpu),
        _of(backend, GIB, memory_gib),
    )
    parts = [part for part in asked if part is not None]
    times = Decimal(book["region"]["at_most_times"] if in_a_region else 1)
    if any(part.row is None for part in parts):
        return None
    total = sum((part.usd_per_hour for part in parts), Decimal(0)) * nodes * times
    made_of = [" + ".join(part.text for part in parts)]
    if nodes > 1:
        made_of.append(f"times {nodes} machines")
    if in_a_region:
        made_of.append(f"times at most {times} for a region")
    missing = [word for word, number in (("cores", cpu), ("memory", memory_gib)) if number is None]
    if missing:
        made_of.append(f"{' and '.join(missing)} not counted")
    oldest = min((part.row for part in parts if part.row), key=lambda row: row.as_of)
    return Price(
        usd_per_hour=float(total),
        as_of=oldest.as_of,
        source=oldest.source,
        made_of="; ".join(made_of),
        whose=book["whose"],
        page=book["page"],
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """So many of a row; None where the list has no such row."""

    row: Row | None
    number: Decimal
    text: str

    @property
    def usd_per_hour(self) -> Decimal:
        return self.row.usd_per_hour * self.number if self.row else Decimal(0)


def _dearest(backend: str, gpus: Sequence[str], count: int) -> _Part:
    rows = [None if name in {CORE, GIB} else _row(backend, name) for name in gpus]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return _Part(None, Decimal(count), "")
    row = max(known, key=lambda row: row.usd_per_second)
    text = f"{row.name}:{count} at {usd(row.usd_per_hour)}"
    if len({row.usd_per_second for row in known}) > 1:
        text += f", the dearest of {len(known)}"
    return _Part(row, Decimal(count), text)


def _of(backend: str, name: str, number: float | None) -> _Part | None:
    """Cores or memory; None if nobody said how much."""
    if number is None:
        return None
    row = _row(backend, name)
    word = f"{name}s" if name == CORE and number != 1 else name
    text = f"{number:g} {word} at {usd(row.usd_per_hour)}" if row else ""
    return _Part(row, Decimal(str(number)), text)


def rows() -> Iterator[Row]:
    """All lists, as they are printed: a name that is billed as another one has a row too."""
    for backend, book in _books().items():
        names = dict.fromkeys([*book["rows"], *book["billed_as"]])
        for name in names:
            row = _row(backend, name)
            if row is not None:
                yield row


def pages() -> dict[str, str]:
    """Backend -> address of its own prices."""
    return {backend: book["page"] for backend, book in _books().items()}


def usd(amount: Decimal | float) -> str:
    """`$31.59`; below ten cents three digits that say something: `$0.0472`."""
    value = Decimal(str(amount))
    return f"${value:.3g}" if 0 < value < TEN_CENTS else f"${value:.2f}"


def usd_at_most(amount: Decimal) -> str:
    """`$15.80` for 15.7968: rounded up to the cent."""
    return f"${amount.quantize(CENT, rounding=ROUND_CEILING)}"


def _row(backend: str, name: str) -> Row | None:
    book = _books()[backend]
    listed = book["billed_as"].get(name, {}).get("name", name)
    entry = book["rows"].get(listed)
    if entry is None:
        return None
    return Row(backend, name, Decimal(entry["usd_per_second"]), entry["as_of"], entry["source"])


def _is_stale(as_of: str, today: date) -> bool:
    return (today - date.fromisoformat(as_of)).days > STALE_DAYS


@cache
def _books() -> dict[str, Any]:
    return dict(json.loads((files("ft.launcher") / "prices.json").read_text(encoding="utf-8")))
