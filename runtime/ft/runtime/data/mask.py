"""Which tokens of a conversation are trained: by characters first, then by tokens, exactly.

The header of a turn is never trained, with all that the template puts between it and the words (an
empty thought, a channel) but for blanks that no prompt has, nor is what follows the terminator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.borders import Turn, trims
from ft.runtime.data.engine import Encoded, Engine, byte_places, utf8
from ft.runtime.data.frames import Frames
from ft.runtime.data.render import REASONING, Renderer
from ft.runtime.data.row import Detail, MessagesRow, RowError
from ft.runtime.data.tokenize import IGNORED, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NOWHERE = (1 << 62, -1)
"""What `Masked.leads` would say of a border that may not lie inside a token."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A rendered conversation. `spans`: what is trained, in bytes of the UTF-8 text, rising and apart.

    `soft`: borders that may lie inside a token, which then has no label: what a user said of single characters.
    `leads`: beginnings of spans that may lie inside a token, with two more bytes. A token that begins behind the first
    is trained; one that ends before the second, where words begin, is not.
    """

    text: str
    spans: list[tuple[int, int]]
    soft: frozenset[int] = frozenset()
    leads: Mapping[int, tuple[int, int]] = field(default_factory=dict)


class ChatTokenizer:
    """Conversations to tokens with one template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        eot_tokens: Sequence[str] = (),
        thinking_key: str = REASONING[0],
        day: date | None = None,
        engine: Engine | None = None,
    ) -> None:
        """`template` None means the tokenizer's own. The tokenizer must know offsets (`is_fast`).

        `kwargs`: what the template reads beside the messages. `eot_tokens`: terminators that follow
        `train_on_eot`, each of them one token of the vocabulary. `thinking_key`, `day`: as for Renderer.
        """
        self._engine = engine or Engine(tokenizer)
        self._eot_tokens = frozenset(eot_tokens)
        renderer = Renderer(
            tokenizer,
            template,
            kwargs=kwargs,
            eot_tokens=eot_tokens,
            thinking_key=thinking_key,
            day=day,
        )
        self._frames = Frames(renderer)

    def mask(self, row: MessagesRow, spec: DatasetPlan, *, train_on_inputs: bool) -> Masked:
        """The whole conversation, however long, and which of it is trained.

        That is the contents of `spec.roles_to_train` (`train_on_inputs`: of everybody) and terminators by
        `spec.train_on_eos`, or by `spec.train_on_eot` if they are one of `eot_tokens`: `turn` those of
        trained turns, `last` that of the last trained turn, `all` every one, `none` none. `row.train` and
        `row.details` go before the roles.
        Raises: RowError if a border is not certain.
        """
        text, turn_of = self._frames.place(row)
        utf8(text)
        trained = _trained_messages(row, spec, train_on_inputs=train_on_inputs)
        spans = self._spans(text, turn_of, row, trained, spec)
        soft = self._soft(turn_of, row, trained, spans)
        leads = {
            turn.start: (turn.lead, turn.words)
            for turn in map(turn_of, trained)
            if turn.lead < turn.words
        }
        if spans and not text.isascii():
            places = byte_places(text)
            spans = [(int(places[start]), int(places[end])) for start, end in spans]
            soft = {int(places[border]) for border in soft}
            leads = {
                int(places[start]): (int(places[lead]), int(places[words]))
                for start, (lead, words) in leads.items()
            }
        return Masked(text, spans, frozenset(soft), leads)

    def tokens(self, row: MessagesRow, spec: DatasetPlan, *, train_on_inputs: bool) -> Tokens:
        """One conversation on its own. Raises: RowError, also if a border lies inside a token."""
        masked = self.mask(row, spec, train_on_inputs=train_on_inputs)
        encoded = self._engine.encode([masked.text])
        labels, crossing = label(encoded, [masked])
        if crossing:
            raise RowError(crossed(masked.text, encoded, crossing[0]))
        return Tokens(encoded.ids.tolist(), labels.tolist())

    def _spans(
        self,
        text: str,
        turn_of: Callable[[int], Turn],
        row: MessagesRow,
        trained: list[int],
        spec: DatasetPlan,
    ) -> list[tuple[int, int]]:
        """Spans of characters with labels, in their order."""
        choices = {spec.train_on_eos, spec.train_on_eot}
        chosen, last = set(trained), trained[-1:]
        spans = []
        for index in range(len(row.messages)) if "all" in choices else trained:
            turn = turn_of(index)
            if index in chosen:
                details = row.details[index] if row.details else None
                if details is not None:
                    spans += parts(text, row.messages, index, turn, details)
                elif turn.words < turn.content_end:  # Blanks alone are no words.
                    spans.append((turn.start, turn.content_end))
            ends_in_eot = text[turn.content_end : turn.end].strip() in self._eot_tokens
            choice = spec.train_on_eot if ends_in_eot else spec.train_on_eos
            if (
                choice == "all"
                or (choice == "turn" and index in chosen)
                or (choice == "last" and last == [index])
            ):
                spans.append((turn.content_end, turn.end))
        return _joined(sorted(span for span in spans if span[0] < span[1]))

    @staticmethod
    def _soft(
        turn_of: Callable[[int], Turn],
        row: MessagesRow,
        trained: list[int],
        spans: Sequence[tuple[int, int]],
    ) -> set[int]:
        """Borders of spans inside the contents of messages with details."""
        if not any(row.details):
            return set()
        borders = {border for span in spans for border in span}
        turns = [turn_of(index) for index in trained if row.details[index] is not None]
        return {b for b in borders if any(turn.words < b < turn.content_end for turn in turns)}


def parts(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    index: int,
    turn: Turn,
    details: Sequence[Detail],
) -> list[tuple[int, int]]:
    """Trained parts of a content. Raises: RowError if the content is not in the text as it is."""
    content = messages[index]["content"]
    for written in trims(content):
        if written and text.endswith(written, turn.start, turn.content_end):
            begin = turn.content_end - len(written) - content.index(written)
            own = [
                (begin + d.begin, min(begin + d.end, turn.content_end)) for d in details if d.train
            ]
            # What is trained from its first word on is trained with the blanks before it.
            return [
                (start if start > turn.words else turn.start, end)
                for start, end in own
                if end > turn.words
            ]
    reason = "where the parts of its content stand in the text is not certain"
    raise RowError(f"message {index + 1} ({messages[index]['role']}): {reason}.")


def _trained_messages(row: MessagesRow, spec: DatasetPlan, *, train_on_inputs: bool) -> list[int]:
    """Indices of the messages that are trained, at least in part."""
    # As in Axolotl, a role may be named as in the data or as in the template.
    chosen = {spec.roles.get(role, role) for role in spec.roles_to_train}
    return [
        index
        for index, message in enumerate(row.messages)
        if _is_trained(row, index, train_on_inputs or message["role"] in chosen)
    ]


def _is_trained(row: MessagesRow, index: int, by_role: bool) -> bool:
    flag = row.train[index] if row.train else None
    if flag is not None:
        return flag
    details = row.details[index] if row.details else None
    return by_role if details is None else any(detail.train for detail in details)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without the borders between those that touch."""
    joined: list[tuple[int, int]] = []
    for span in spans:
        touches = joined and joined[-1][1] == span[0]
        joined.append((joined.pop()[0], span[1]) if touches else span)
    return joined


# --------------------------------------------------------------------------------- from bytes to tokens


@dataclass(frozen=True, slots=True)
class Crossing:
    """A border that lies inside a token."""

    text: int
    """Number of the text."""
    token: int
    """Number of the token among all."""


def label(encoded: Encoded, masked: Sequence[Masked]) -> tuple[np.ndarray, list[Crossing]]:
    """Labels of all tokens, int32: ids inside the spans of their text, IGNORED outside; and borders inside a token.

    Of a text with such a border the labels mean nothing.
    """
    flat = [border for one in masked for span in one.spans for border in span]
    owners = np.repeat(np.arange(len(masked)), [2 * len(one.spans) for one in masked])
    borders = np.array(flat, np.int64) + encoded.texts[:-1][owners]
    # The first token that begins at or behind each border; the one before it may still reach over it.
    tokens = np.searchsorted(encoded.begins, borders, side="left")
    reached = encoded.ends[np.maximum(tokens - 1, 0)] if len(encoded.ends) else tokens
    crossing = []
    for i in np.flatnonzero((tokens > 0) & (reached > borders)).tolist():
        owner, token = int(owners[i]), int(tokens[i]) - 1
        lead, words = masked[owner].leads.get(flat[i], NOWHERE) if i % 2 == 0 else NOWHERE
        if encoded.begins[token] - encoded.texts[owner] >= lead:
            tokens[i] = token
        elif encoded.ends[token] - encoded.texts[owner] <= words:
            continue  # The blanks belong to a mark of the template.
        elif flat[i] not in masked[owner].soft:
            crossing.append(Crossing(owner, token))
        elif i % 2:
            # Trained to the middle of the token: it is left out, as it is where training begins in its middle.
            tokens[i] = max(tokens[i] - 1, tokens[i - 1])
    return np.where(inside(tokens, len(encoded.ids)), encoded.ids, np.int32(IGNORED)), crossing


def inside(borders: np.ndarray, size: int) -> np.ndarray:
    """Of `size` tokens, whether they lie between borders 0 and 1, 2 and 3, …; spans are apart."""
    steps = np.zeros(size + 1, np.int8)
    # Borders of different texts may fall together, an end and a beginning, which cancel out.
    np.add.at(steps, borders[0::2], 1)
    np.subtract.at(steps, borders[1::2], 1)
    found: np.ndarray = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)
    return found


def crossed(text: str, encoded: Encoded, crossing: Crossing) -> str:
    """Why a text cannot be labelled."""
    start = encoded.texts[crossing.text]
    begin, end = (int(at[crossing.token] - start) for at in (encoded.begins, encoded.ends))
    token = text.encode()[begin:end].decode("utf-8", "replace")
    return (
        f"what is trained and what is not meet inside the token {token!r}: a message begins or "
        "ends with white space, or the tokenizer does not know the template's marks."
    )
