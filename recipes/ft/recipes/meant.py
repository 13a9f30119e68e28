"""What a person means who writes a number or a switch in another form: `"16"`, `16.0`, `"true"`, `false` for 0."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 40
"""A longer text is no number that somebody wrote."""
_WHOLE: Final = re.compile(r"[-+]?[0-9][0-9_]*")
_EXACT: Final = 2**53
"""Up to here a float names one whole number."""
_NUMBER: Final = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?")
_SWITCH: Final = {
    **dict.fromkeys(("true", "yes", "on", "1", 1), True),
    **dict.fromkeys(("false", "no", "off", "0", 0), False),
}


def is_set(value: object) -> bool:
    """`key:` without a value, and `key: ""` as Axolotl's examples write it, mean that it is not set."""
    return value is not None and value != ""


def whole(value: object) -> int | None:
    """The whole number that `value` stands for; None where it stands for none, or for several."""
    if isinstance(value, bool):
        return None if value else 0  # "Off", as Axolotl reads it too.
    if isinstance(value, int):
        return value
    if isinstance(value, float) and abs(value) < _EXACT and value == int(value):
        return int(value)
    if isinstance(value, str) and len(value) <= MAX_CHARACTERS and _WHOLE.fullmatch(value):
        return _decimal(value.replace("_", ""))
    return None


def number(value: str) -> float | None:
    """The number that a text stands for."""
    if len(value) <= MAX_CHARACTERS and _NUMBER.fullmatch(value):
        return float(value.replace("_", ""))
    return None


def switch(value: object) -> bool | None:
    """True or false, whichever `value` stands for; None where it stands for neither."""
    if isinstance(value, str):
        return _SWITCH.get(value.lower()) if len(value) <= MAX_CHARACTERS else None
    return _SWITCH.get(value) if isinstance(value, int) else None


def _decimal(digits: str) -> int | None:
    """None for `010`, which is 8 to one reader and 10 to another."""
    value = int(digits)
    octal = digits.lstrip("+-").startswith("0") and not {"8", "9"} & set(digits)
    return None if octal and int(digits, 8) != value else value
