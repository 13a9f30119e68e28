"""SkyPilot's catalogs where it keeps them on this machine, `catalogs/v8/CLOUD/vms.csv`; no SkyPilot, no network."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Final

from ft.launcher.sky_clouds import LACKS, is_cpu_machine

VMS: Final = "vms.csv"
COLUMNS: Final = (
    "InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "Price", "SpotPrice", "Region",
)  # fmt: skip
ZONE: Final = "AvailabilityZone"
ZONE_NAME: Final = "AvailabilityZoneName"
NOTHING: Final = frozenset(
    {"", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
"""What SkyPilot reads as no value."""


class UnreadableCatalogError(Exception):
    """A catalog that says nothing; the message has its path and what is wrong."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine that can be rented at a place. Money is for one machine and one hour; None is unknown."""

    cloud: str
    region: str
    zone: str | None
    """None where every zone of the region is meant, or the cloud has none."""
    instance_type: str
    """Empty for a GPU that Google Cloud sells apart from its machine."""
    accelerator: str | None
    count: float
    vcpus: float | None
    memory_gib: float | None
    usd_per_hour: Decimal | None
    """On demand."""
    spot_usd_per_hour: Decimal | None

    def price(self, *, spot: bool) -> Decimal | None:
        return self.spot_usd_per_hour if spot else self.usd_per_hour


@dataclass(frozen=True, slots=True)
class Catalog:
    """What one cloud has, as far as somebody asked."""

    cloud: str
    as_of: str
    """Day on which SkyPilot fetched it; ISO."""
    has_zones: bool
    are_zones_ids: bool
    """AWS numbers zones, an account names them: the names are known once SkyPilot has asked the account."""
    places: frozenset[str]
    """Regions in lower case, and zones, of whatever it has."""
    offers: tuple[Offer, ...]


def folder() -> Path:
    """Where SkyPilot 0.14 keeps catalogs."""
    return Path(os.environ.get("SKY_RUNTIME_DIR", "~")).expanduser() / ".sky/catalogs/v8"


def present() -> list[str]:
    """Clouds with a catalog on this machine."""
    return [cloud for cloud in LACKS if (folder() / cloud / VMS).is_file()]


def read(cloud: str, accelerator: str | None) -> Catalog | None:
    """Machines whose GPU has `accelerator` in its name, without one those for CPU work; None if there is no catalog.

    Raises: UnreadableCatalogError.
    """
    path = folder() / cloud / VMS
    try:
        name = accelerator and accelerator.casefold()
        return _read(path, path.stat().st_mtime_ns, cloud, name, _zone_names(path.parent))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableCatalogError(f"{path}: {reason}") from error


def _zone_names(folder_: Path) -> tuple[tuple[str, str], ...]:
    """Of the account that SkyPilot asked last, AWS's number of a zone with its name; empty if it asked none."""
    mappings = sorted(folder_.glob("az_mappings-*.csv"), key=lambda path: path.stat().st_mtime)
    if not mappings:
        return ()
    with mappings[-1].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return tuple((row.get(ZONE) or "", row.get(ZONE_NAME) or "") for row in rows)


@lru_cache(maxsize=128)
def _read(
    path: Path,
    changed_ns: int,
    cloud: str,
    accelerator: str | None,
    zone_names: tuple[tuple[str, str], ...],
) -> Catalog:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        names = reader.fieldnames or ()
        missing = [column for column in COLUMNS if column not in names]
        if missing:
            raise UnreadableCatalogError(f"{path} has no column {', '.join(missing)}")
        places: set[str] = set()
        rows = _placed(reader, dict(zone_names), places)
        offers = tuple(_offers(rows, reader, path, cloud, accelerator))
    as_of = date.fromtimestamp(changed_ns / 1e9).isoformat()
    are_ids = cloud == "aws" and not zone_names
    return Catalog(cloud, as_of, ZONE in names, are_ids, frozenset(places), offers)


def _placed(
    rows: Iterable[dict[str, str]], zone_names: Mapping[str, str], places: set[str]
) -> Iterator[dict[str, str]]:
    """Rows with the account's names of zones, without those that it does not have; `places` gets where they are."""
    for row in rows:
        if zone_names:
            if row.get(ZONE) not in zone_names:
                continue
            row[ZONE] = zone_names[row[ZONE]]
        places.update(((row.get("Region") or "").lower(), row.get(ZONE) or ""))
        yield row


def _offers(
    rows: Iterable[Mapping[str, str | None]],
    reader: csv.DictReader[str],
    path: Path,
    cloud: str,
    accelerator: str | None,
) -> Iterator[Offer]:
    for row in rows:
        name, machine = _text(row, "AcceleratorName"), _text(row, "InstanceType") or ""
        is_host = cloud == "gcp" and not name
        if accelerator is None:
            wanted = is_cpu_machine(cloud, machine)
        else:
            wanted = is_host or accelerator in (name or "").casefold()
        region = _text(row, "Region")
        if not wanted or region is None:
            continue
        try:
            yield Offer(
                cloud,
                region,
                _text(row, ZONE),
                machine,
                name,
                float(_number(row, "AcceleratorCount") or 0),
                _float(row, "vCPUs"),
                _float(row, "MemoryGiB"),
                _number(row, "Price"),
                _number(row, "SpotPrice"),
            )
        except ValueError as error:
            raise UnreadableCatalogError(f"{path}:{reader.line_num}: {error}") from error


def _text(row: Mapping[str, str | None], column: str) -> str | None:
    text = row.get(column)
    return None if text is None or text in NOTHING else text


def _number(row: Mapping[str, str | None], column: str) -> Decimal | None:
    text = _text(row, column)
    if text is None:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number < 0:
        raise ValueError(f"{column} {text!r} is no number")
    return number


def _float(row: Mapping[str, str | None], column: str) -> float | None:
    number = _number(row, column)
    return None if number is None else float(number)
