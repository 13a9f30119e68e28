r"""Which tokens of a rendered conversation are trained: by characters first, then by tokens, exactly.

A turn is `header content terminator`, for ChatML `<|im_start|>assistant\n`, the words, `<|im_end|>`.
The header is never trained, with all that the template puts between it and the words (an empty
thought, a channel), nor is what follows the terminator.
Every border is derived from renders of the same conversation. One that cannot be is a RowError: a
turn that is trained by guesswork, or silently not at all, costs more than a row that is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Detail, MessagesRow, RowError
from ft.runtime.data.tokenize import IGNORED, Tokens, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"
"""The role whose header a template writes as the generation prompt."""

REASONING = ("reasoning_content", "reasoning", "thinking")

# Two contents that differ in their first and their last character: what the renders of both share in
# front and behind is what the template writes around any content.
PROBES = ("one", "two")

# What a template can raise on odd data; jinja runs Python expressions.
RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True)
class Turn:
    """Borders in characters: header before `start`, terminator from `content_end` to `end`."""

    start: int
    content_end: int
    end: int


class ChatTokenizer:
    """Conversations to tokens with one template; compiled templates are cached by transformers."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        eot_tokens: Sequence[str] = (),
    ) -> None:
        """`template` None means the tokenizer's own. The tokenizer must know offsets (`is_fast`).

        `kwargs`: what the template reads beside the messages. `eot_tokens`: terminators that follow
        `train_on_eot`, each of them one token of the vocabulary.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._kwargs = dict(kwargs or {})
        self.eot_tokens = frozenset(eot_tokens)
        added = (
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        )
        special = sorted(
            {*tokenizer.all_special_tokens, *added, *eot_tokens}, key=len, reverse=True
        )
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def tokens(self, row: MessagesRow, spec: DatasetPlan, *, train_on_inputs: bool) -> Tokens:
        """The whole conversation, however long.

        Labels are on the contents of `spec.roles_to_train` (`train_on_inputs`: of everybody) and on
        terminators by `spec.train_on_eos`, or by `spec.train_on_eot` if they are one of `eot_tokens`:
        `turn` those of trained turns, `last` that of the last trained turn, `all` every one, `none` none.
        `row.train` and `row.details` go before the roles.
        Raises: RowError if a border is not certain or lies inside a token.
        """
        conversation = Conversation(self, row)
        encoded = encode(conversation.text, self._tokenizer, offsets=True)
        trained = _trained_messages(row, spec, train_on_inputs=train_on_inputs)
        spans = _trained_spans(conversation, row, trained, spec)
        labels = _labels(conversation.text, encoded["input_ids"], encoded["offset_mapping"], spans)
        return Tokens(encoded["input_ids"], labels)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        prompt: bool = False,
    ) -> str:
        """The text of `messages`, with `prompt` up to where the assistant speaks next.

        Raises: RowError with what the template says.
        """
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=self._template,
                add_generation_prompt=prompt,
                tokenize=False,
                **self._kwargs,
            )
        except RENDER_ERRORS as error:
            raise RowError(f"the chat template fails: {error}") from error

    def special_in(self, text: str, start: int, end: int) -> list[re.Match[str]]:
        """Special tokens between two characters, in their order."""
        return list(self._special.finditer(text, start, end))


class Conversation:
    """One conversation, rendered as a whole, and the borders of its turns."""

    def __init__(self, chat: ChatTokenizer, row: MessagesRow) -> None:
        self._chat = chat
        self._tools = row.tools
        self.messages = row.messages

    @cached_property
    def text(self) -> str:
        return self._chat.render(self.messages, self._tools)

    def turn(self, index: int) -> Turn:
        """Borders of `messages[index]`. Raises: RowError naming the message, counted from 1."""
        message = self.messages[index]
        if message.get("tool_calls") and not self._writes(index, ("tool_calls",)):
            raise self._error(index, "the template does not write its tool calls")
        prompt = self._prompt_end(index)
        stop = self._stop(index)
        if self._writes(index, ("tool_calls", *REASONING)):
            return self._rich_turn(index, prompt, stop)
        found = self._content(index, prompt, stop)
        if found is None:
            raise self._error(
                index,
                "the template changes its content, so its borders in the text are not certain",
            )
        start, content_end = found
        before = self._before_end(index) if prompt is None else 0
        if (
            start < before
            or content_end < (prompt or 0)
            or (stop is not None and content_end > stop)
        ):
            raise self._error(index, "the template does not write the messages in their order")
        end = self._terminator_end(index, content_end, stop)
        return Turn(max(start, prompt or 0), content_end, end)

    def ends_in_eot(self, turn: Turn) -> bool:
        """Whether the terminator is one of `eot_tokens`."""
        return self.text[turn.content_end : turn.end].strip() in self._chat.eot_tokens

    def parts(self, index: int, turn: Turn, details: Sequence[Detail]) -> list[tuple[int, int]]:
        """Trained parts of the content. Raises: RowError if the content is not in the text as it is."""
        content = self.messages[index]["content"]
        for written in _trims(content):
            if written and self.text.endswith(written, turn.start, turn.content_end):
                begin = turn.content_end - len(written) - content.index(written)
                return [
                    (
                        max(begin + detail.begin, turn.start),
                        min(begin + detail.end, turn.content_end),
                    )
                    for detail in details
                    if detail.train
                ]
        raise self._error(index, "where the parts of its content stand in the text is not certain")

    def _before_end(self, index: int) -> int:
        """Where the messages before this one end, written on their own.

        Raises: RowError if the conversation does not begin with them: what the model would be trained on
        is then not what it gets at inference.
        """
        if index == 0:
            return 0
        before = self._chat.render(self.messages[:index], self._tools)
        if not self.text.startswith(before):
            raise self._error(
                index,
                "the template writes the messages before it differently once this one follows",
            )
        return len(before)

    def _prompt_end(self, index: int) -> int | None:
        """Where the generation prompt ends that the conversation goes on from; None if it does not.

        Only for the assistant, and only a prompt that says who speaks: some templates write none. One
        that opens a thought (`<think>`) is none to go on from either, if the turn has no thought.
        """
        if index == 0 or self.messages[index]["role"] != ASSISTANT:
            return None
        before = self.messages[:index]
        prompt = self._chat.render(before, self._tools, prompt=True)
        if not self.text.startswith(prompt) or prompt == self._chat.render(before, self._tools):
            return None
        return len(prompt)

    def _stop(self, index: int) -> int | None:
        """Where the text of this turn ends, None if the template writes it differently in a longer one."""
        if index == len(self.messages) - 1:
            return len(self.text)
        until = self._chat.render(self.messages[: index + 1], self._tools)
        return len(until) if self.text.startswith(until) else None

    def _writes(self, index: int, keys: tuple[str, ...]) -> bool:
        """Whether the text would be another one if this message had none of `keys`."""
        message = self.messages[index]
        if not any(message.get(key) for key in keys):
            return False
        without = {key: value for key, value in message.items() if key not in keys}
        try:
            return self._with(index, without) != self.text
        except RowError:
            # The template insists on them, as Mistral's does when a tool's answer follows.
            return True

    def _with(self, index: int, message: Mapping[str, Any]) -> str:
        """The conversation with another message in that place."""
        return self._chat.render(
            [*self.messages[:index], message, *self.messages[index + 1 :]], self._tools
        )

    def _content(self, index: int, prompt: int | None, stop: int | None) -> tuple[int, int] | None:
        """Borders of the content; None if it is not in the text, or not as it is.

        Renders of the conversation with two other contents in its place share what stands around it.
        """
        message = self.messages[index]
        one, other = (self._with(index, {**message, "content": probe}) for probe in PROBES)
        front = one[: _shared(one, other)]
        behind = one[len(one) - _shared(one[::-1], other[::-1]) :]
        for content in _trims(message["content"]):
            if front + content + behind == self.text:
                return len(front), len(front) + len(content)
        # Of a template that looks into the content, such as for `</think>`, only what stands behind is
        # the same. The content must then follow the generation prompt, or begin with its last characters.
        end = len(self.text) - len(behind)
        if prompt is None or stop is None or not self.text.endswith(behind):
            return None
        for content in _trims(message["content"]):
            if end - len(content) <= prompt < end and self.text.endswith(content, 0, end):
                return end - len(content), end
        return None

    def _terminator_end(self, index: int, content_end: int, stop: int | None) -> int:
        """The end of the first special token behind the content; without one, of the last word."""
        limit = content_end + self._shared_end(index, content_end) if stop is None else stop
        special = self._chat.special_in(self.text, content_end, limit)
        if special:
            return special[0].end()
        if stop is None:
            raise self._error(index, "the template ends it differently once others follow")
        return max(content_end, len(self.text[:stop].rstrip()))

    def _shared_end(self, index: int, content_end: int) -> int:
        """How many characters behind the content are the same when this message is the last one."""
        alone = Conversation(self._chat, MessagesRow(self.messages[: index + 1], self._tools))
        found = alone._content(index, None, None)
        # Of a first message nothing else says that the text before its content is the same.
        if found is None or (index == 0 and not self.text.startswith(alone.text[: found[0]])):
            return 0
        return _shared(alone.text[found[1] :], self.text[content_end:])

    def _rich_turn(self, index: int, prompt: int | None, stop: int | None) -> Turn:
        """A turn with tool calls or reasoning: all that the model has to write after the prompt."""
        if prompt is None or stop is None:
            raise self._error(
                index, "where its tool calls or its reasoning begin and end is not certain"
            )
        if self.messages[index]["content"].strip() not in self.text[prompt:stop]:
            raise self._error(index, "the template changes its content")
        end = max(prompt, len(self.text[:stop].rstrip()))
        special = self._chat.special_in(self.text, prompt, end)
        closes = bool(special) and special[-1].end() == end
        return Turn(prompt, special[-1].start() if closes else end, end)

    def _error(self, index: int, reason: str) -> RowError:
        return RowError(f"message {index + 1} ({self.messages[index]['role']}): {reason}.")


def _shared(one: str, other: str) -> int:
    """Length of the common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _trims(content: str) -> list[str]:
    """`content` as it is, or as templates trim it: what is cut is not in the text, so nothing is unsure."""
    return list(dict.fromkeys((content, content.rstrip(), content.lstrip(), content.strip())))


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


def _trained_spans(
    conversation: Conversation, row: MessagesRow, trained: list[int], spec: DatasetPlan
) -> list[tuple[int, int]]:
    """Spans of characters with labels, in their order."""
    choices = {spec.train_on_eos, spec.train_on_eot}
    spans = []
    for index in range(len(row.messages)) if "all" in choices else trained:
        turn = conversation.turn(index)
        if index in trained:
            details = row.details[index] if row.details else None
            spans += (
                [(turn.start, turn.content_end)]
                if details is None
                else conversation.parts(index, turn, details)
            )
        choice = spec.train_on_eot if conversation.ends_in_eot(turn) else spec.train_on_eos
        if {
            "all": True,
            "turn": index in trained,
            "last": trained[-1:] == [index],
            "none": False,
        }[choice]:
            spans.append((turn.content_end, turn.end))
    return _joined(sorted(span for span in spans if span[0] < span[1]))


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without the borders between those that touch."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        begin = joined.pop()[0] if joined and joined[-1][1] == start else start
        joined.append((begin, end))
    return joined


def _labels(
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
) -> list[int]:
    """`ids` inside the spans, IGNORED outside. Raises: RowError if a border lies inside a token."""
    if not spans:
        return [IGNORED] * len(ids)
    begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    # Byte-level tokenizers may leave white space out of the offsets of the token that begins with it.
    reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    starts = np.minimum(begins, reached)
    borders = np.array(spans).ravel()
    passed = np.searchsorted(borders, starts, side="right")
    following = np.append(borders, len(text))[passed]
    [crossing] = np.nonzero(following < ends)
    if crossing.size:
        token = text[starts[crossing[0]] : ends[crossing[0]]]
        raise RowError(
            f"what is trained and what is not meet inside the token {token!r}: a message begins or "
            "ends with white space, or the tokenizer does not know the template's marks."
        )
    labels: list[int] = np.where(passed % 2, ids, IGNORED).tolist()
    return labels
