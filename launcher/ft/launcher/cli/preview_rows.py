"""Rows as the runtime tells them: pieces of tokens, spans that are trained, and what is left of a long row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

EDGE: Final = 32
"""Tokens that are shown at either end of a long stretch."""
FIRST_RUNS: Final = 8
LAST_RUNS: Final = 4
"""Stretches of trained and not trained tokens that are shown of a row that has very many."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start:end` of a row, all of one kind. `texts`: one of each token, "" before the last of a character."""

    trained: bool
    special: bool
    start: int
    end: int
    texts: Sequence[str]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def cut(self, start: int, end: int) -> Piece:
        """Its tokens that lie in `start:end`."""
        first, last = max(start, self.start), min(end, self.end)
        texts = self.texts[first - self.start : last - self.start]
        return Piece(self.trained, self.special, first, last, texts)


@dataclass(frozen=True, slots=True)
class Gap:
    """Tokens that are not shown; `trained`: all of them."""

    trained: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    row_id: int
    eval: bool
    tokens: int
    trained_tokens: int
    pieces: Sequence[Piece]

    @classmethod
    def told(cls, said: Mapping[str, Any]) -> Row:
        return cls(**{**said, "pieces": [Piece(**piece) for piece in said["pieces"]]})

    @property
    def title(self) -> str:
        """`row 3  49 tokens, 11 trained (22.4%)`."""
        share = self.trained_tokens / max(self.tokens, 1)
        use = ", to evaluate on" if self.eval else ""
        return (
            f"row {self.row_id}  {self.tokens:,} tokens, {self.trained_tokens:,} trained "
            f"({share:.1%}){use}"
        )

    def runs(self) -> Iterator[Piece]:
        """Pieces that are trained, or not, as one, whatever is special in them."""
        for trained, group in itertools.groupby(self.pieces, lambda piece: piece.trained):
            run = list(group)
            texts = [text for piece in run for text in piece.texts]
            yield Piece(trained, False, run[0].start, run[-1].end, texts)

    def spans(self) -> list[Piece]:
        """What is trained: mostly one span for each turn."""
        return [run for run in self.runs() if run.trained]

    def abridged(self) -> list[Piece | Gap]:
        """Its pieces, with the ends of long stretches only, and the first and last ones of very many."""
        runs = list(self.runs())
        shown: list[Piece | Gap] = []
        at = 0
        for start, end in _kept(runs):
            if at < start:
                whole = any(run.trained and run.start < at and start < run.end for run in runs)
                shown.append(Gap(whole, start - at))
            inside = [p for p in self.pieces if p.start < end and start < p.end]
            shown += [piece.cut(start, end) for piece in inside]
            at = end
        return shown


def _kept(runs: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Ranges of tokens."""
    if len(runs) > FIRST_RUNS + LAST_RUNS + 1:
        last = runs[-LAST_RUNS:]
        if last[0].trained:
            # With what it answers.
            last = runs[-LAST_RUNS - 1 :]
        runs = [*runs[:FIRST_RUNS], *last]
    for run in runs:
        # What is left out is at least as long as one end.
        if run.end - run.start < 3 * EDGE:
            yield run.start, run.end
        else:
            yield run.start, run.start + EDGE
            yield run.end - EDGE, run.end
