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

STORES: Final[dict[str, tuple[str, ...]]] = {
    "": ("local",),
    "modal": ("modal",),
    **dict.fromkeys(("s3", "gs", "az", "r2"), ("sky", "modal")),
    "file": ("sky",),
}
"""Scheme of a store's name -> the backends that have such stores. A folder has no scheme;
`file://` is one that many machines mount.

What lies in a bucket says whose it is. The copy of a run of backend local may lie there as well, which its machine has.
"""


def keepers(store: str) -> tuple[str, ...]:
    """The backends that may have the store of this name. Raises: UsageError if none has."""
    scheme = store.partition("://")[0] if "://" in store else ""
    if scheme not in STORES:
        known = ", ".join(f"{name}://…" for name in STORES if name)
        raise UsageError(
            f"{store}: no backend has its stores at {scheme}://",
            hint=f"expected a folder, or {known}",
        )
    return STORES[scheme]


def backend(name: str) -> Backend:
    """Raises: UsageError for an unknown name, DependencyError if the vendor's extra is missing."""
    target = BACKENDS.get(name)
    if target is None:
        raise UsageError(f"backend {name!r} is not one of {', '.join(sorted(BACKENDS))}")
    module, _, attribute = target.partition(":")
    return cast("Backend", getattr(importlib.import_module(module), attribute)())
