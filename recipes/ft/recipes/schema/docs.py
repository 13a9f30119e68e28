"""What the docstring under a key says. Read from the source when somebody asks: every start would pay for it else."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache

from ft.recipes.schema.base import Section


def docs_of(section: type[Section]) -> dict[str, str]:
    """Key -> its docstring as one paragraph; those of the classes that it is made from too."""
    return _docs_of(section)  # type: ignore[arg-type]  # mypy asks an instance for its hash, not the class


@cache
def _docs_of(section: type[Section]) -> dict[str, str]:
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if issubclass(cls, Section) and cls is not Section:
            found |= _docs(cls.__module__).get(cls.__qualname__, {})
    return found


@cache
def _docs(module: str) -> dict[str, dict[str, str]]:
    """Class -> key -> docstring, of one module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: dict(_keys(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _keys(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            yield statement.target.id, " ".join(after.value.value.split())
