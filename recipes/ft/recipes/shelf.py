"""The gallery as a place where `extends:` finds recipes by name."""

from __future__ import annotations

from pathlib import Path

from ft.recipes.errors import UsageError
from ft.recipes.paths import expand


def in_gallery(name: str, folder: Path) -> str | None:
    """File of the gallery's recipe `name`; None if there is none, or a file of that name in `folder` goes first."""
    try:
        if (folder / expand(name)).exists():
            return None
    except (
        UsageError,
        ValueError,
        OSError,
    ):  # No name of a file at all; that is said where it is opened.
        return None
    family, _, stem = name.partition("/")
    if not family or not stem or not {*family, *stem}.isdisjoint("/\\:") or ".." in (family, stem):
        return None
    path = Path(__file__).with_name("gallery") / family / f"{stem}.yml"
    return str(path) if path.is_file() else None
