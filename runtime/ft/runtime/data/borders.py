r"""Where each turn of a rendered conversation begins and ends, by characters, exactly.

A turn is `header content terminator`, for ChatML `<|im_start|>assistant\n`, the words, `<|im_end|>`.
Every border is derived from renders of the same conversation. One that cannot be is a RowError: a
turn that is trained by guesswork, or silently not at all, costs more than a row that is named.
This is the long way, several renders for each turn; `frames` has the short one, proved by this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ft.runtime.data.render import Renderer
from ft.runtime.data.row import MessagesRow, RowError

ASSISTANT = "assistant"
"""The role whose header a template writes as the generation prompt."""

# Two contents that differ in their first and their last character: what the renders of both share in
# front and behind is what the template writes around any content.
PROBES = ("one", "two")


@dataclass(frozen=True, slots=True)
class Turn:
    """Borders in characters: header before `start`, words from `words` to `content_end`, terminator up to `end`.

    Blanks that the template writes in front of the words are the model's to write, unless the prompt ends behind them,
    and most tokenizers put them into the first word: `start` is in front of them. What other white space there is,
    from `lead` to `start`, is not trained, unless a token holds both it and words.
    """

    start: int
    content_end: int
    end: int
    lead: int
    words: int


class Conversation:
    """One conversation, rendered as a whole, and the borders of its turns."""

    def __init__(self, chat: Renderer, row: MessagesRow) -> None:
        self._chat = chat
        self._tools = row.tools
        self._beginnings: dict[tuple[int, bool], str] = {}
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
        if self._writes(index, ("tool_calls", *self._chat.thinking_keys)):
            return self._rich_turn(index, prompt, stop)
        found = self._content(index, prompt, stop)
        if found is None:
            raise self._error(
                index,
                "the template changes its content, so its borders in the text are not certain",
            )
        start, content_end = found
        before = self._before_end(index) if prompt is None else 0
        moved = index == 0 and stop is not None and content_end > stop
        if (
            start < before
            or content_end < (prompt or 0)
            or (stop is not None and content_end > stop and not moved)
        ):
            raise self._error(index, "the template does not write the messages in their order")
        if moved:
            self._has_no_terminator(index, content_end)
            return Turn(start, content_end, content_end, start, start)
        end = self._terminator_end(index, content_end, stop)
        words = max(start, prompt or 0)
        start, lead = self._blanks(index, words, prompt or before)
        return Turn(start, content_end, end, lead, words)

    def _blanks(self, index: int, words: int, given: int) -> tuple[int, int]:
        """Where blanks and where white space in front of the words begin, as far as the model has to write them.

        `given`: the end of what is certainly there when it begins to write.
        """
        head = self.text[:words]
        if self.messages[index]["role"] == ASSISTANT:
            given = max(given, self._prompted(index, head))
        # White space may be that of the content before, in which no turn begins.
        last = self.messages[index - 1]["content"] if index else "-"
        if last[-1:].strip() == "" and head.rstrip().endswith(last.rstrip()):
            found = self._content(index - 1, None, None)
            given = max(given, min(found[1], words) if found else words)
        start, lead = (max(len(part), given) for part in (head.rstrip(" "), head.rstrip()))
        return min(start, words), min(lead, words)

    def _prompted(self, index: int, head: str) -> int:
        """Where the prompt of this turn ends in the text in front of its words; 0 if there is none.

        Also where the text before it is another one than the prompt's, or the prompt goes on with a thought.
        """
        if index:
            prompt, before = self._beginning(index, prompt=True), self._beginning(index)
        else:
            # An answer to nothing stands behind the same prompt as any other.
            question = [{"role": "user", "content": PROBES[0]}]
            try:
                prompt = self._chat.render(question, None, prompt=True)
                before = self._chat.render(question, None)
            except RowError:
                return 0
        own = prompt[len(before) :] if prompt.startswith(before) else ""
        for end in range(len(head), len(head.rstrip()) - 1, -1):
            for length in range(len(own), 0, -1):
                if head.endswith(own[:length], 0, end) and own[:length].strip():
                    return end
        return 0

    def _before_end(self, index: int) -> int:
        """Where the messages before this one end, written on their own.

        Where the conversation does not begin with them, the end of the content before: Mistral's templates move the
        system message to the last question, and what they write around a content is exact all the same.
        Raises: RowError if that is not certain either.
        """
        if index == 0:
            return 0
        before = self._beginning(index)
        if self.text.startswith(before):
            return len(before)
        found = self._content(index - 1, None, None)
        if found is None:
            raise self._error(
                index,
                "the template writes the messages before it differently once this one follows",
            )
        return found[1]

    def _prompt_end(self, index: int) -> int | None:
        """Where the generation prompt ends that the conversation goes on from; None if it does not.

        Only for the assistant, and only a prompt that says who speaks: some templates write none. One
        that opens a thought (`<think>`) is none to go on from either, if the turn has no thought.
        """
        if index == 0 or self.messages[index]["role"] != ASSISTANT:
            return None
        prompt = self._beginning(index, prompt=True)
        if not self.text.startswith(prompt) or prompt == self._beginning(index):
            return None
        return len(prompt)

    def _stop(self, index: int) -> int | None:
        """Where the text of this turn ends, None if the template writes it differently in a longer one."""
        if index == len(self.messages) - 1:
            return len(self.text)
        until = self._beginning(index + 1)
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

    def _beginning(self, count: int, *, prompt: bool = False) -> str:
        """The first `count` messages on their own; rendered once, for several turns ask for it."""
        found = self._beginnings.get((count, prompt))
        if found is None:
            found = self._chat.render(self.messages[:count], self._tools, prompt=prompt)
            self._beginnings[count, prompt] = found
        return found

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
        for content in trims(message["content"]):
            if front + content + behind == self.text:
                return len(front), len(front) + len(content)
        # Of a template that looks into the content, such as for `</think>`, only what stands behind is
        # the same. The content must then follow the generation prompt, or begin with its last characters.
        end = len(self.text) - len(behind)
        if prompt is None or stop is None or not self.text.endswith(behind):
            return None
        for content in trims(message["content"]):
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

    def _has_no_terminator(self, index: int, content_end: int) -> None:
        """Of a system message that stands within another one, as Mistral's does. Raises: RowError."""
        others = (self._content(i, None, None) for i in range(len(self.messages)) if i != index)
        behind = [found[0] for found in others if found and found[0] >= content_end]
        limit = min(behind, default=len(self.text))
        if self._chat.special_in(self.text, content_end, limit):
            raise self._error(index, "where it ends is not certain, for the template moves it")

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
        return Turn(prompt, special[-1].start() if closes else end, end, prompt, prompt)

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


def trims(content: str) -> list[str]:
    """`content` as it is, or as templates trim it: what is cut is not in the text, so nothing is unsure."""
    trimmed = (
        content, content.rstrip(" "), content.lstrip(" "), content.strip(" "),
        content.rstrip(), content.lstrip(), content.strip(),
    )  # fmt: skip
    return list(dict.fromkeys(trimmed))
