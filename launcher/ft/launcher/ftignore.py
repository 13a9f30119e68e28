"""`.ftignore`: what of an included folder stays at home. It is read as git reads a `.gitignore`, but always by case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

FTIGNORE: Final = ".ftignore"


@dataclass(frozen=True, slots=True)
class Line:
    """A pattern, and the folder whose `.ftignore` it is of."""

    folder: str
    pattern: GitIgnoreSpecPattern
    only_folders: bool

    def is_of(self, path: str, *, is_folder: bool) -> bool:
        """Whether it names `path` itself; what lies in a folder that it names is not asked for."""
        if self.only_folders and not is_folder:
            return False
        found = self.pattern.match_file(path.removeprefix(f"{self.folder}/"))
        # The one group of these expressions is the slash behind a folder: then it was one above that matched.
        return found is not None and found.match.lastindex is None


@dataclass(frozen=True, slots=True)
class Ignored:
    """The lines of every `.ftignore` from the top down to a folder. Of those that name a path the last one counts."""

    lines: tuple[Line, ...] = ()

    def leaves_out(self, path: str, *, is_folder: bool) -> bool:
        """Whether `path` stays at home. Folders above it have been asked about, and do not."""
        for line in reversed(self.lines):
            if line.is_of(path, is_folder=is_folder):
                return line.pattern.include is True
        return False

    def with_file(self, folder: str, content: bytes) -> tuple[Ignored, list[str]]:
        """And the lines of the `.ftignore` in `folder`. Also what is wrong with them, as `3: [a is no pattern`."""
        lines, wrong = list(self.lines), []
        # File names are read the same way: a pattern may hold what is no UTF-8.
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        for number, written in enumerate(text.split("\n"), 1):
            stripped = _stripped(written)
            if not stripped or stripped.startswith("#"):
                continue
            pattern = _pattern(stripped.removesuffix("/"))
            if pattern is None:
                wrong.append(f"{number}: {stripped!a} is no pattern")
            else:
                lines.append(Line(folder, pattern, stripped.endswith("/")))
        return Ignored(tuple(lines)), wrong


def _stripped(line: str) -> str:
    """Without the end of a line of Windows, and without blanks at its end unless a backslash keeps them."""
    line = line.removesuffix("\r")
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    return line


def _pattern(text: str) -> GitIgnoreSpecPattern | None:
    """None where git takes a line for nothing in silence: `[a`, `!`, a backslash at the end."""
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    try:
        pattern = GitIgnoreSpecPattern(text)
    except (ValueError, re.error):
        return None
    return None if pattern.include is None else pattern
