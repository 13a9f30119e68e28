"""What Tab offers. Reads a few folders, imports nothing heavy and never raises: a shell is waiting."""

from __future__ import annotations

import os
from pathlib import Path

RECIPE_SUFFIXES = (".yml", ".yaml")


def recipes(incomplete: str) -> list[str]:
    """Recipe files and folders at the path so far, then names in the gallery."""
    from ft.launcher.cli import gallery

    try:
        names = [entry.name for entry in gallery.entries()]
    except (OSError, ValueError):
        names = []
    return [*_files(incomplete), *(name for name in names if name.startswith(incomplete))]


def yaml_files(incomplete: str) -> list[str]:
    """YAML files and folders at the path so far."""
    return _files(incomplete)


def gallery_names(incomplete: str) -> list[str]:
    """Names in the gallery."""
    from ft.launcher.cli import gallery

    try:
        return [entry.name for entry in gallery.entries() if entry.name.startswith(incomplete)]
    except (OSError, ValueError):
        return []


def runs(incomplete: str) -> list[str]:
    """`@last`, then ids and names, the newest first."""
    from ft.launcher.runs import Runs

    try:
        records = Runs().all()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return []
    names = dict.fromkeys(name for record in reversed(records) for name in (record.name, record.id))
    return [name for name in ("@last", *names) if name.startswith(incomplete)]


def backends(incomplete: str) -> list[str]:
    """Names of backends."""
    from ft.recipes.catalog import BACKENDS

    return [name for name in BACKENDS if name.startswith(incomplete)]


def stores(incomplete: str) -> list[str]:
    """Folders at the path so far, then how the name of a store elsewhere begins."""
    from ft.launcher.backends.registry import STORES

    schemes = [f"{scheme}://" for scheme in STORES if scheme]
    folders = [name for name in _files(incomplete) if name.endswith("/")]
    return [*folders, *(scheme for scheme in schemes if scheme.startswith(incomplete))]


def faults(incomplete: str) -> list[str]:
    """Faults that can be ordered, each with a place to begin with."""
    from ft.recipes.simulate import EXAMPLES

    return [fault for fault in EXAMPLES.split(", ") if fault.startswith(incomplete)]


def sources(incomplete: str) -> list[str]:
    """Whose lines `ft cloud logs` can show."""
    names = ("agent", "rank0", "supervisor")
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str) -> list[str]:
    folder, _, start = incomplete.rpartition("/")
    prefix = f"{folder}/" if "/" in incomplete else ""
    found = []
    try:
        with os.scandir(Path(prefix).expanduser()) as listing:
            for item in listing:
                if not item.name.startswith(start) or (item.name.startswith(".") and not start):
                    continue
                if item.is_dir():
                    found.append(f"{prefix}{item.name}/")
                elif item.name.endswith(RECIPE_SUFFIXES):
                    found.append(f"{prefix}{item.name}")
    except (OSError, ValueError, RuntimeError):
        return []
    return sorted(found)
