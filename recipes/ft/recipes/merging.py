"""One JSON mapping over another, as RFC 7396 has it: what a recipe says in a vendor's own words is put in last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping: mappings are merged key by key, `null` takes a key out, anything else is replaced as a whole.

    Shares nothing with its arguments, which stay as they are. A `null` in a list, or in `base`, is a value.
    """
    found = {key: _copy(value) for key, value in base.items() if key not in over}
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = base.get(key)
            found[key] = merged(below if isinstance(below, Mapping) else {}, value)
        elif value is not None:
            found[key] = _copy(value)
    # In the order of `base`, what is new after it.
    order = [*base, *(key for key in over if key not in base)]
    return {key: found[key] for key in order if key in found}


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value
