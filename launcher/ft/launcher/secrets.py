"""Secrets of a run: which of them this machine has, and that no value of one is ever written down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from ft.recipes.errors import SubmitError

VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
"""A name that is looked for in this machine's environment; any other is only the backend's."""
MIN_CHARACTERS: Final = 6
"""A shorter value is no secret, and would take words out of every text."""
HIDDEN: Final = "***"


class Values(dict[str, str]):
    """Name -> value. What it is printed as has the names alone."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


def split(names: Sequence[str], env: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names whose value `env` has, and those that the backend must keep; each once, in their order."""
    once = dict.fromkeys(names)
    here = tuple(name for name in once if VARIABLE.fullmatch(name) and env.get(name, "").strip())
    return here, tuple(name for name in once if name not in here)


def values(names: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """The values that `env` has, by their names. To be handed to the backend, and to a Redactor; never to a file."""
    here, _ = split(names, env)
    return Values((name, env[name]) for name in here)


def planned_values(names: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """The values of secrets that were here when a run was planned. Raises: SubmitError if one is not any more."""
    found = values(names, env)
    missing = [name for name in names if name not in found]
    if missing:
        raise SubmitError(
            f"cloud.secrets: {missing[0]} was set when the run was planned, and is not set now",
            hint=f"export {missing[0]}=…, and the same command again",
        )
    return found


class Redactor:
    """Replaces secrets in what is printed or kept: errors, logs, records.

    A value of at least six characters is found as it is, without the white space around it, as JSON and as an address
    write it; and each line of one that has several, since logs are read by lines. A number is never a secret.
    Not found: what else a program makes of a value, such as base64.
    """

    __slots__ = ("_forms",)

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._forms = sorted(form for form in forms if len(form) >= MIN_CHARACTERS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def text(self, text: str) -> str:
        """`text` with `***` wherever a secret stands, or several that share letters."""
        # What is put in may make up one of them with what stands around it. Each round makes the text shorter.
        while spans := sorted(self._spans(text)):
            text = _covered(text, spans)
        return text

    def json(self, value: Any) -> Any:
        """A copy of plain JSON in which each text, keys as well, went through `text`."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.json(key): self.json(item) for key, item in value.items()}
        return [self.json(item) for item in value] if isinstance(value, list | tuple) else value

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        for form in self._forms:
            start = text.find(form)
            while start >= 0:
                yield start, start + len(form)
                start = text.find(form, start + 1)


def _forms(secret: str) -> Iterator[str]:
    """How a text may have `secret` in it."""
    if not secret.strip():
        return  # Blanks would take the white space out of every text.
    for plain in (secret, *(line.strip() for line in (secret, *secret.splitlines()))):
        yield plain
        yield json.dumps(plain)[1:-1]
        yield json.dumps(plain, ensure_ascii=False)[1:-1]
        yield quote(plain, safe="", errors="replace")


def _covered(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`spans` are sorted; those that touch become one."""
    parts, done, start, end = [], 0, *spans[0]
    for first, last in spans[1:]:
        if first > end:
            parts += [text[done:start], HIDDEN]
            done, start = end, first
        end = max(end, last)
    return "".join([*parts, text[done:start], HIDDEN, text[end:]])
