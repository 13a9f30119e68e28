"""Conversations become text by a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from ft.runtime.data.row import RowError
from ft.runtime.data.templates import CLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template can raise on odd data; jinja runs Python expressions.
RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Properties in which templates look for thoughts."""

PLAIN = frozenset({"role", "content"})

Messages = Sequence[Mapping[str, Any]]


class Renderer:
    """One template, compiled once."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        eot_tokens: Sequence[str] = (),
        thinking_key: str = REASONING[0],
        day: date | None = None,
    ) -> None:
        """`template` None means the tokenizer's own. `kwargs`: what it reads beside messages and tools.

        `eot_tokens`: texts that end a turn, beside the special tokens of the tokenizer. `thinking_key`: the
        property of a message that holds thoughts, if it is not one of REASONING. `day`: what a template writes
        that asks for the time, as midnight; None: whenever it is rendered.
        """
        self.thinking_keys = tuple(dict.fromkeys((*REASONING, thinking_key)))
        self._tokenizer = tokenizer
        self._template = template
        self._kwargs = dict(kwargs or {})
        self._clock = None if day is None else datetime(day.year, day.month, day.day).strftime
        self._compiled: Any = None
        own = template if template is not None else tokenizer.chat_template
        # A tokenizer may have several by name, of which the library takes one for each conversation.
        texts = own.values() if isinstance(own, dict) else [own or ""]
        self._dated = [text for text in texts if CLOCK in text] if day is not None else []
        if isinstance(own, str):
            # Private, and the one place where the environment of transformers' templates is made. What it gives for
            # plain messages is compared with the public way in `frames`, on real conversations.
            # One that is no template says so when it is asked to render.
            with suppress(TemplateError):
                self._compiled = chat_template_utils._compile_jinja_template(own)
        self._values = {**tokenizer.special_tokens_map, **self._kwargs}
        added = (
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        )
        special = {*tokenizer.all_special_tokens, *added, *eot_tokens}
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def render(self, messages: Messages, tools: Messages | None, *, prompt: bool = False) -> str:
        """The text of `messages`, with `prompt` up to where the assistant speaks next.

        Raises: RowError with what the template says.
        """
        try:
            with self._clocked():
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

    def plain(self, messages: Messages) -> str:
        """As `render` for messages of role and text alone, without what the library does for all others.

        Raises: RowError with what the template says.
        """
        if self._compiled is None:
            return self.render(messages, None)
        try:
            with self._clocked():
                return self._compiled.render(
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    add_generation_prompt=False,
                    **self._values,
                )
        except RENDER_ERRORS as error:
            raise RowError(f"the chat template fails: {error}") from error

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        """Templates are asked for the day of the plan. The library keeps one compiled for each text, for everybody."""
        compiled = [chat_template_utils._compile_jinja_template(text) for text in self._dated]
        before = [template.globals.get(CLOCK) for template in compiled]
        try:
            for template in compiled:
                template.globals[CLOCK] = self._clock
            yield
        finally:
            for template, clock in zip(compiled, before, strict=True):
                template.globals[CLOCK] = clock

    def special_in(self, text: str, start: int, end: int) -> list[re.Match[str]]:
        """Special tokens between two characters, in their order."""
        return list(self._special.finditer(text, start, end))


def is_plain(messages: Messages, tools: Messages | None) -> bool:
    """Whether every message is a role and a text, and there are no tools."""
    if tools:
        return False
    return all(
        len(message) == 2 and message.keys() == PLAIN and type(message["content"]) is str
        for message in messages
    )
