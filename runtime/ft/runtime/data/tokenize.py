"""Token ids and labels of one row."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = -100
"""Label of a token that is not trained; cross entropy leaves it out."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row: `labels[i]` is `input_ids[i]` or IGNORED. Not shifted; the loss does that."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens that the loss is a mean of. The first one has nothing before it to be predicted from."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORED)
