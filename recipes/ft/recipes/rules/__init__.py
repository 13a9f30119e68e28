"""Rules over several keys. Pure: `rule(recipe, facts) -> Iterable[Finding]`. They never write a value.

A rule that needs a fact which is not known is deferred and listed as such, never guessed.
Ids are for ever: a new rule takes the next free one, wherever its file is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ft.recipes.errors import KeyPath, Problem, Severity, sort_problems
from ft.recipes.facts import Facts
from ft.recipes.normalize import Normalized
from ft.recipes.rules import (
    adapters,
    attention,
    cloud,
    datasets,
    evaluation,
    families,
    formats,
    house,
    kernels,
    memory,
    method,
    optim,
    options,
    parallel,
    plugins,
    precision,
    quantization,
    streams,
    tokenizer,
)
from ft.recipes.rules.base import Rule
from ft.recipes.spelling import DATASET_LISTS

_ROOMS: Final = (
    adapters,
    attention,
    cloud,
    datasets,
    evaluation,
    families,
    formats,
    house,
    kernels,
    memory,
    method,
    optim,
    options,
    parallel,
    plugins,
    precision,
    quantization,
    streams,
    tokenizer,
)
RULES: Final[tuple[Rule, ...]] = tuple(
    sorted((rule for room in _ROOMS for rule in room.RULES), key=lambda rule: rule.id)
)


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known to be wrong, and which rules could not be asked."""

    problems: tuple[Problem, ...]
    deferred: tuple[str, ...]

    def of(self, severity: Severity) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity is severity]


def check(normalized: Normalized, facts: Facts) -> Report:
    """Problems of reading and of the rules together, sorted by line."""
    problems = list(normalized.problems)
    deferred: list[str] = []
    broken = _Broken(normalized)
    for rule in RULES:
        if any(getattr(facts, need) is None for need in rule.needs):
            deferred.append(rule.id)
            continue
        for finding in rule.check(normalized.flat, facts):
            key = normalized.as_written(finding.key)
            if broken.explains(key, finding.keys):
                continue
            message, severity = finding.message, finding.severity
            if "machine" in rule.needs and not facts.machine_is_named:
                message, severity = f"on this machine: {message}", Severity.WARNING
            mark = normalized.mark(key)
            problems.append(Problem(rule.id, key, message, mark, severity))
    return Report(tuple(sort_problems(problems)), tuple(deferred))


class _Broken:
    """The keys that have an error, and which findings only follow from those."""

    def __init__(self, normalized: Normalized) -> None:
        self._keys = normalized.broken_keys
        self._around = {key[:end] for key in self._keys for end in range(1, len(key) + 1)}
        self._tops = normalized.broken
        self._origin = normalized.origin

    def explains(self, key: KeyPath, others: tuple[str, ...]) -> bool:
        """`key` as it stands in the file, `others` are top-level. One data set does not speak for another."""
        tops = {str(self._origin.get((other,), (other,))[0]) for other in others}
        if key[0] not in DATASET_LISTS:
            tops.add(str(key[0]))
        elif key in self._around or any(key[:end] in self._keys for end in range(1, len(key))):
            return True
        return bool(tops & self._tops)
