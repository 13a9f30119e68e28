"""Gives an end without a name the one that its log tells. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ft.recipes.runstore import ExitCode, RankExit, Reason
from ft.runtime import signatures
from ft.runtime.ranks import end_of_log
from ft.runtime.signatures import Blame, Weight

BLAMED = {
    Blame.CONFIG: (ExitCode.CONFIG, Reason.CONFIG),
    Blame.BAD_NODE: (ExitCode.BAD_NODE, Reason.BAD_NODE),
    Blame.OOM: (ExitCode.DETERMINISTIC, Reason.OOM),
}
"""What a known cause makes of an end; the other kinds, symptoms and consequences only explain it."""

TRACEBACK = "Traceback (most recent call last)"
CHAINED = (
    "During handling of the above exception",
    "The above exception was the direct cause",
)


def named(end: RankExit, folder: Path) -> RankExit:
    """The end with its cause and the way out; as it is if nothing of it is known. `folder` is the attempt's."""
    if end.reason not in {Reason.UNCLASSIFIED, Reason.KILLED}:
        return end
    known = signatures.explain(end.message)
    if known is None and end.rank is not None:
        known = signatures.explain(last_words(end_of_log(folder, end.rank)))
    if known is None:
        return end
    message = f"{end.message}: {known.message}"
    # A death by signal is tried again, whatever the rank had to complain about before; and what may have another
    # rank's end behind it must not forbid that.
    blames = end.reason == Reason.UNCLASSIFIED or known.kind is Blame.BAD_NODE
    if known.kind not in BLAMED or known.weight is not Weight.CAUSE or not blames:
        return replace(end, message=message)
    code, reason = BLAMED[known.kind]
    return replace(end, exit_code=code, reason=reason, message=message)


def last_words(text: str) -> str:
    """From the last traceback on, or the first of a chain: what was warned of before is no cause."""
    start = text.rfind(TRACEBACK)
    while start > 0:
        before = text.rfind(TRACEBACK, 0, start)
        if before < 0 or not any(words in text[before:start] for words in CHAINED):
            break
        start = before
    return text[max(0, start) :]
