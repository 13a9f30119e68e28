"""`cloud.image.commands` for a shell: what a line of a Dockerfile does, on a machine without containers.

RUN is run and ENV exported. The others mean nothing outside of a build: PlanError.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ft.recipes.errors import PlanError

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE: Final = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\})")
_MEANT_BY_A_SHELL: Final = re.compile(r'[\\"$`]')


@dataclass(frozen=True, slots=True)
class Run:
    """A command for `sh -c`."""

    command: str


@dataclass(frozen=True, slots=True)
class Export:
    """A line `export NAME="…"`; what it names in `$` is looked up when it is read."""

    line: str


def steps(commands: Iterable[str]) -> tuple[Run | Export, ...]:
    """What a shell does for these lines, in their order. Raises: PlanError for one that only a build can obey."""
    return tuple(step for command in commands for step in _of(command))


def names_set(commands: Iterable[str]) -> tuple[str, ...]:
    """Names of the variables that the ENV lines among these set, each once; of a line that cannot be read, none."""
    found: dict[str, None] = {}
    for command in commands:
        word, _, rest = command.partition(" ")
        if word == "ENV":
            words = list(_words(rest.strip()))
            are_pairs = bool(words) and "=" in words[0]
            names = [text.partition("=")[0] for text in (words if are_pairs else words[:1])]
            found.update((name, None) for name in names if _NAME.fullmatch(name))
    return tuple(found)


def _of(command: str) -> Iterator[Run | Export]:
    word, _, rest = command.partition(" ")
    rest = rest.strip()
    if word == "RUN":
        yield Run(_to_run(command, rest))
    elif word == "ENV":
        for name, value in _assignments(command, rest):
            if not _NAME.fullmatch(name):
                raise _refused(command, f"{name!r} is no name of a variable")
            yield Export(f'export {name}="{_for_a_shell(command, value)}"')
    else:
        raise _refused(command, f"{word} is for the build of an image, and here is none")


def _to_run(command: str, rest: str) -> str:
    if rest.startswith("--"):
        raise _refused(command, "options of RUN are for the build of an image, and here is none")
    if not rest.startswith("["):
        return rest
    try:
        words = json.loads(rest)
    except ValueError:
        return rest  # As a Dockerfile has it: then it is a line for the shell, which knows `[`.
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _refused(command, "expected a list of texts")
    return shlex.join(words)


def _assignments(command: str, rest: str) -> Iterator[tuple[str, str]]:
    """Names and values, these as they stand there: `A=1 B="x y"`, or the older `A x y`."""
    words = list(_words(rest))
    if not words or "=" not in words[0]:
        name, _, value = rest.partition(" ")
        yield name, value.strip()
        return
    for text in words:
        name, equals, value = text.partition("=")
        if not equals:
            raise _refused(command, f"expected NAME=VALUE, got {text!r}")
        yield name, value


def _words(text: str) -> Iterator[str]:
    """Split at blanks that stand neither in quotes nor behind a backslash; all of them stay as they are."""
    for found in re.finditer(r"""(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^\s])+""", text):
        yield found[0]


def _for_a_shell(command: str, value: str) -> str:
    """What stands between double quotes in a shell for `value` of an ENV line."""
    done, quote, at = "", "", 0
    while at < len(value):
        char = value[at]
        variable = _VARIABLE.match(value, at) if quote != "'" else None
        if variable is not None:
            done += _looked_up(command, variable[1] or variable[2])
            at = variable.end()
            continue
        at += 1
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == "\\" and quote != "'" and at < len(value):
            is_escape = not quote or value[at] in '"$\\'
            done += _literal(value[at] if is_escape else char + value[at])
            at += 1
        else:
            done += _literal(char)
    if quote:
        raise _refused(command, f"a quote {quote} is open")
    return done


def _looked_up(command: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _refused(command, f"${{{name}}}: expected the name of a variable alone")
    return f"${{{name}-}}"


def _literal(text: str) -> str:
    return _MEANT_BY_A_SHELL.sub(lambda found: "\\" + found[0], text)


def _refused(command: str, why: str) -> PlanError:
    return PlanError(
        f"cloud.image.commands: {command!r}: {why}",
        hint="without a container there are `RUN COMMAND` and `ENV NAME=VALUE`",
    )
