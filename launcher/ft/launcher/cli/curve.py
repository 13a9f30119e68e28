"""A loss curve made of characters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

WIDTH = 76
HEIGHT = 12
MIN_COLUMNS = 10
LABEL_WIDTH = 8
TOO_LARGE = 1e30
"""Not a loss any more, nor is NaN or infinity; one such point would press all others flat."""

BRAILLE_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of a dot in a Braille cell by column and row; the cell is U+2800 plus the bits."""


def render(
    points: Mapping[int, float], *, width: int = WIDTH, height: int = HEIGHT, unicode: bool = True
) -> list[str]:
    """Lines of a curve step -> value; empty with fewer than two points that can be drawn.

    At most `width` characters wide; `height` lines for the curve, and two for the steps below it.
    Many steps in one column are averaged; between steps that are far apart the line is straight.
    """
    finite = sorted((step, value) for step, value in points.items() if abs(value) < TOO_LARGE)
    if len(finite) < 2:
        return []
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    cell_width, cell_height = (2, 4) if unicode else (1, 1)
    columns = max(MIN_COLUMNS, width - LABEL_WIDTH - 2)
    heights = _resample(steps, values, columns * cell_width)
    labels = _labels(min(heights), max(heights), height)
    dots = _dots(_levels(heights, height * cell_height))
    rows = _braille(dots, columns, height) if unicode else _ascii(dots, columns, height)
    tick, bar, corner, line = ("┤", "│", "└", "─") if unicode else ("+", "|", "+", "-")
    lines = [
        f"{labels.get(row, ''):>{LABEL_WIDTH}} {tick if row in labels else bar}{text}".rstrip()
        for row, text in enumerate(rows)
    ]
    margin = " " * LABEL_WIDTH
    lines.append(f"{margin} {corner}{line * columns}")
    lines.append(f"{margin}  {_axis(steps[0], steps[-1], columns)}")
    return lines


def _labels(low: float, high: float, height: int) -> dict[int, str]:
    """Row -> value there: top, middle and bottom; of a flat line only the middle."""
    middle = height // 2
    if high == low:
        return {middle: f"{high:.4g}"}
    values = {0: high, middle: high - (high - low) * middle / (height - 1), height - 1: low}
    decimals = min(6, max(0, 2 - math.floor(math.log10(high - low))))
    return {row: _fit(value, decimals) for row, value in values.items()}


def _fit(value: float, decimals: int) -> str:
    ways = (f"{value:.{decimals}f}", f"{value:.1e}", f"{value:.0e}")
    return next((text for text in ways if len(text) <= LABEL_WIDTH), ways[-1])


def _resample(steps: Sequence[int], values: Sequence[float], count: int) -> list[float]:
    """`count` values, evenly spaced over the steps: means where steps are dense, else straight lines."""
    first, last = steps[0], steps[-1]
    sums, numbers = [0.0] * count, [0] * count
    for step, value in zip(steps, values, strict=True):
        column = round((step - first) / (last - first) * (count - 1))
        sums[column] += value
        numbers[column] += 1
    known = [column for column in range(count) if numbers[column]]
    means = {column: sums[column] / numbers[column] for column in known}
    out = [means[known[0]]]
    for left, right in pairwise(known):
        slope = (means[right] - means[left]) / (right - left)
        out += [means[left] + slope * (column - left) for column in range(left + 1, right + 1)]
    return out


def _levels(heights: Sequence[float], count: int) -> list[int]:
    """Row of each value, counted from the top; a flat line is in the middle."""
    low, high = min(heights), max(heights)
    if high == low:
        return [count // 2] * len(heights)
    return [round((high - value) / (high - low) * (count - 1)) for value in heights]


def _dots(levels: Sequence[int]) -> set[tuple[int, int]]:
    """(column, row) of every dot; neighbours are joined by a vertical stroke."""
    dots = {(0, levels[0])}
    for column, (before, here) in enumerate(pairwise(levels), start=1):
        toward = 1 if here > before else -1
        start = here if here == before else before + toward
        dots |= {(column, row) for row in range(start, here + toward, toward)}
    return dots


def _braille(dots: set[tuple[int, int]], columns: int, height: int) -> list[str]:
    cells = [[0] * columns for _ in range(height)]
    for column, row in dots:
        cells[row // 4][column // 2] |= BRAILLE_DOTS[column % 2][row % 4]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in row) for row in cells]


def _ascii(dots: set[tuple[int, int]], columns: int, height: int) -> list[str]:
    return [
        "".join("*" if (column, row) in dots else " " for column in range(columns))
        for row in range(height)
    ]


def _axis(first: int, last: int, columns: int) -> str:
    left, right = str(first), str(last)
    return left + "step".center(columns - len(left) - len(right)) + right
