"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.schema import FlatRecipe


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says, before it gets an id and a line. `keys` are the other top-level keys it speaks of."""

    key: KeyPath
    message: str
    severity: Severity = Severity.ERROR
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """`check` is pure; its docstring says why the rule is there and is what `ft explain ID` prints."""

    id: str
    check: Callable[[FlatRecipe, Facts], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    """Facts without which the rule is deferred."""
