"""`type: input_output`: segments that are tokenized as they are, each with or without labels."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, RowError, Segment, SegmentsRow, kind


class RawInputOutputPrompter:
    """Reads `segments: [{label, text}]`, under the name and with the call that Axolotl's users know."""

    def build_prompt(self, source: Mapping[str, Any]) -> Generator[tuple[bool, str], None, None]:
        """Yields (label, text) for each segment. Raises: RowError that counts segments from 1."""
        segments = source.get("segments")
        if not isinstance(segments, list | tuple):
            raise RowError(f"`segments` holds {kind(segments)}, expected a list.")
        for number, segment in enumerate(segments, start=1):
            if not isinstance(segment, Mapping):
                raise RowError(f"segment {number} is {kind(segment)}, expected an object.")
            label, text = segment.get("label"), segment.get("text")
            if not isinstance(label, bool):
                raise RowError(
                    f"segment {number}: `label` holds {kind(label)}, expected true or false."
                )
            if not isinstance(text, str):
                raise RowError(f"segment {number}: `text` holds {kind(text)}, expected text.")
            yield label, text


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:  # noqa: ARG001  a format's signature
    """The segments; nothing is put in front, between or behind. Raises: RowError if one cannot be read."""
    pairs = RawInputOutputPrompter().build_prompt(example)
    segments = tuple(Segment(text, train=label) for label, text in pairs)
    if not segments:
        raise RowError("`segments` is an empty list.")
    return SegmentsRow(segments, special_tokens=False, eos=False)
