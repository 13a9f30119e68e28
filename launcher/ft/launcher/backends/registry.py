"""name -> "module:attr". A vendor's module is imported when it is used, never for `--help` (decision 10)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, cast

from ft.recipes.errors import UsageError

if TYPE_CHECKING:
    from ft.launcher.backends.base import Backend

BACKENDS: Final[dict[str, str]] = {
    "local": "ft.launcher.backends.local:LocalBackend",
    "modal": "ft.launcher.backends.modal_:ModalBackend",
    "sky": "ft.launcher.backends.sky:SkyBackend",
}


def backend(name: str) -> Backend:
    """Raises: UsageError for an unknown name, DependencyError if the vendor's extra is missing."""
    target = BACKENDS.get(name)
    if target is None:
        raise UsageError(f"backend {name!r} is not one of {', '.join(sorted(BACKENDS))}")
    module, _, attribute = target.partition(":")
    return cast("Backend", getattr(importlib.import_module(module), attribute)())
