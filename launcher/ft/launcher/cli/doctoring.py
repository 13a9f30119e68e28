"""What `ft cloud doctor` looks at, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, Final

from ft.launcher.backends.base import Check
from ft.launcher.backends.registry import backend as load_backend
from ft.launcher.cli import console

STRANGER: Final = "ft"
"""A distribution of this name is not ours, and its package `ft` would hide ours (decision 14)."""


def checks(backend: str) -> list[Check]:
    """Our own installation, then what the backend says. Raises: UsageError for an unknown backend."""
    found = load_backend(backend).check()
    stranger = _stranger()
    return [stranger, *found] if stranger is not None else found


def _stranger() -> Check | None:
    try:
        version = metadata.version(STRANGER)
    except metadata.PackageNotFoundError:
        return None
    return Check(
        "package ft",
        ok=False,
        message=f"{STRANGER} {version} is installed: another project, whose modules hide ours",
        fix="pip uninstall ft, then install ft-launcher again",
    )


def to_json(backend: str, found: Sequence[Check]) -> dict[str, Any]:
    return {
        "backend": backend,
        "ok": all(check.ok for check in found),
        "checks": [{"name": c.name, "ok": c.ok, "message": c.message, "fix": c.fix} for c in found],
    }


def lines(found: Sequence[Check]) -> Iterator[str]:
    """`ok  name  message`, wrapped; below a failed one the way to mend it."""
    for check in found:
        mark = "ok" if check.ok else "NO"
        yield from console.labelled(check.name, check.message, margin=f"{mark}  ")
        if check.fix:
            yield from console.labelled("", f"-> {check.fix}", margin="    ")
