"""Writes `dates-train.jsonl` and `dates-heldout.jsonl`: dates in many styles, as YYYY-MM-DD.

A task that a tiny model gets wrong before training and right after it, and whose answers can be
checked to the letter. The same bytes on every machine and every Python: month names are spelled out
here (no locale), and chance is drawn from `Random.random()` alone, the one method whose sequence
Python promises to keep.

    python make_dates.py [FOLDER]      FOLDER: where the two files go; default: beside this script
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random

SEED = 20260714
TRAIN_PER_STYLE = 64
HELDOUT_PER_STYLE = 12
FIRST_DAY = date(1900, 1, 1)
LAST_DAY = date(2049, 12, 31)

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

STYLES: tuple[Callable[[date], str], ...] = (
    lambda d: f"{month(d)} {ordinal(d.day)}, {d.year}",
    lambda d: f"{month(d)} {d.day}, {d.year}",
    lambda d: f"{d.day} {month(d)[:3]} {d.year}",
    lambda d: f"{d.day} {month(d)} {d.year}",
    lambda d: f"the {ordinal(d.day)} of {month(d)} {d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()]}, {d.day} {month(d)} {d.year}",
    lambda d: f"{d.day:02}-{month(d)[:3]}-{d.year}",
    lambda d: f"{d.year}, {month(d)} {d.day}",
    lambda d: f"{d.month:02}/{d.day:02}/{d.year} (month first)",
    lambda d: f"{d.day:02}.{d.month:02}.{d.year} (day first)",
)
"""Every way of writing a date; each gets the same number of rows."""

PHRASINGS = (
    "Give the date as YYYY-MM-DD: {}",
    "Convert to YYYY-MM-DD: {}",
    "Write {} as YYYY-MM-DD.",
    "What is {} in the form YYYY-MM-DD?",
)


def month(day: date) -> str:
    return MONTHS[day.month - 1]


def ordinal(number: int) -> str:
    """1 -> "1st", 12 -> "12th", 23 -> "23rd"; for 1 to 31."""
    suffix = "th" if number in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def below(chance: Random, limit: int) -> int:
    """A whole number from 0 to `limit` - 1."""
    return int(chance.random() * limit)


def different_days(chance: Random) -> Iterator[date]:
    """Days without a repetition: no held-out date was seen in training, in whatever style."""
    num_days = (LAST_DAY - FIRST_DAY).days + 1
    seen: set[int] = set()
    while True:
        offset = below(chance, num_days)
        if offset not in seen:
            seen.add(offset)
            yield FIRST_DAY + timedelta(days=offset)


def make_rows(chance: Random, days: Iterator[date], per_style: int) -> list[dict[str, object]]:
    """`per_style` rows of every style in a random order: one question and one answer each."""
    rows: list[tuple[float, dict[str, object]]] = []
    for style in STYLES:
        for _ in range(per_style):
            day = next(days)
            question = PHRASINGS[below(chance, len(PHRASINGS))].format(style(day))
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": day.isoformat()},
            ]
            rows.append((chance.random(), {"messages": messages}))
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])]


def write_jsonl(path: Path, rows: Sequence[dict[str, object]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def main(folder: Path) -> None:
    chance = Random(SEED)
    days = different_days(chance)
    write_jsonl(folder / "dates-train.jsonl", make_rows(chance, days, TRAIN_PER_STYLE))
    write_jsonl(folder / "dates-heldout.jsonl", make_rows(chance, days, HELDOUT_PER_STYLE))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
