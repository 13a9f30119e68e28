"""Paths as a user writes them. Light: completion asks for them."""

from __future__ import annotations

from pathlib import Path

from ft.recipes.errors import UsageError


def expand(path: str) -> Path:
    """`~` and `~user` at the front of `path` become that home. Raises: UsageError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # What pathlib says of a home it cannot find.
        user = path.partition("/")[0]
        raise UsageError(
            f"{user}: no such user; ~ at the front means a home folder",
            hint=f"a file of that name is written ./{path}",
        ) from None
