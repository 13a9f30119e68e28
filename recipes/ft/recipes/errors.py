"""Every error that a user can cause, and the exit code of the CLI for each.

```
FtError                      what, where, what was expected, the way out
├── UsageError          2    the command line is wrong
├── RecipeError         2    the recipe is wrong: carries every Problem found, not the first
├── PlanError           3    a correct recipe that cannot run as asked, or not yet
├── DependencyError     4    credentials or an extra are missing; names the extra
├── SubmitError         5    the backend did not take the run; UnreachableError: it did not answer
├── RunFailedError      6    the run itself failed
├── RunCancelledError   7    somebody cancelled it
├── NotFoundError       8    no such run, recipe or file
├── DataRowError        9    a row of the data cannot be used; names file and row
├── WaitTimeoutError  124    it did not end in the time given
└── StoreError          5    the store of a run cannot be read or written
```

They are caught once, in `ft.launcher.cli.app`. Anything else is a bug and shows a traceback.
Exit 130 is Ctrl-C: the terminal lets go, the run lives on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath

KeyPath = tuple[str | int, ...]
"""Where a value stands in a recipe: ("datasets", 0, "path")."""


class Severity(StrEnum):
    """How much a problem matters: an error refuses the recipe (2), `planned` refuses to run it (3)."""

    ERROR = "error"
    PLANNED = "planned"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; `line` counts from 1, 0 means that no line is known (`--set`)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a recipe: where, what was expected, and the way out."""

    rule: str
    key: KeyPath
    message: str
    mark: Mark
    severity: Severity = Severity.ERROR
    keys: tuple[str, ...] = field(default=())
    """Other top-level keys that the message is about; used to silence a follow-up of a broken key."""

    @property
    def dotted(self) -> str:
        """The key as a user writes it after `--set`: `datasets.0.path`."""
        return ".".join(str(part) for part in self.key)

    def __str__(self) -> str:
        where = f"{self.mark}: {self.dotted}" if self.key else f"{self.mark}"
        rule = f"{self.rule} " if self.rule else ""
        return f"{where}: {rule}{self.message}"

    def to_json(self) -> dict[str, object]:
        return {
            "file": self.mark.file,
            "line": self.mark.line,
            "key": self.dotted,
            "rule": self.rule,
            "severity": str(self.severity),
            "message": self.message,
        }


class FtError(Exception):
    """Base of all errors that are a user's to mend. `hint` is the way out."""

    exit_code = 1
    problems: Sequence[Problem] = ()
    """What is wrong with the recipe, where it is that."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FtError):
    exit_code = 2


class RecipeError(FtError):
    """A recipe with problems; all of them, sorted by line."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sort_problems(problems)
        errors = sum(problem.severity is Severity.ERROR for problem in self.problems)
        super().__init__(f"{errors} problem{'s' if errors != 1 else ''}")


class PlanError(FtError):
    exit_code = 3

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Iterable[Problem] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = sort_problems(problems)


class DependencyError(FtError):
    """Something is not installed or not logged in. `extra` is what to install: `ft-launcher[extra]`."""

    exit_code = 4

    def __init__(self, message: str, *, extra: str | None = None, hint: str | None = None) -> None:
        super().__init__(
            message, hint=hint or (f"pip install 'ft-launcher[{extra}]'" if extra else None)
        )
        self.extra = extra


class SubmitError(FtError):
    exit_code = 5


class UnreachableError(SubmitError):
    """A backend did not answer, or would not. It says nothing about a run: what was begun goes on."""


class StoreError(FtError):
    exit_code = 5


class RunFailedError(FtError):
    exit_code = 6


class RunCancelledError(FtError):
    exit_code = 7


class DataRowError(FtError):
    """A file of data that cannot be read, or a row in it. `row` is None if no single one is to blame."""

    exit_code = 9

    def __init__(self, path: str, row: int | None, unit: str, reason: str, excerpt: str) -> None:
        where = path if row is None else f"{path}, {unit} {row}"
        begins = f" It begins: {excerpt}" if excerpt else ""
        hint = (
            "`on_bad_row: skip` leaves such rows out and counts them" if row is not None else None
        )
        super().__init__(f"{where}: {reason.rstrip('.')}.{begins}", hint=hint)
        self.path, self.row, self.unit, self.reason, self.excerpt = path, row, unit, reason, excerpt


class NotFoundError(FtError):
    exit_code = 8


class WaitTimeoutError(FtError):
    exit_code = 124


def sort_problems(problems: Iterable[Problem]) -> list[Problem]:
    """By file and line, then key; the order in which somebody walks through the file."""
    return sorted(
        problems, key=lambda p: (PurePath(p.mark.file).name, p.mark.line, p.dotted, p.rule)
    )
