"""pydantic's models of the sections: for the JSON Schema, and for the test that compares them with `values.py`."""

from __future__ import annotations

import typing
from functools import cache
from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from ft.recipes.schema.base import Section
from ft.recipes.schema.values import Also, Limits


def twin(section: type[Section]) -> type[BaseModel]:
    """The model that takes what `section` takes."""
    return _twin(section)  # type: ignore[arg-type]  # mypy asks an instance for its hash, not the class


@cache
def _twin(section: type[Section]) -> type[BaseModel]:
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    fields: dict[str, Any] = {
        name: (
            twin_type(key.annotation),
            Field(default=... if key.is_required else None, **_limits(key.limits)),
        )
        for name, key in section.model_fields.items()
    }
    return create_model(section.__name__, __config__=config, __doc__=section.__doc__, **fields)


def twin_type(annotation: Any) -> Any:
    """A type of the schema in pydantic's words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return twin(annotation)
    if origin is None or origin is typing.Literal:
        return annotation
    if origin is typing.Annotated:
        marks = [
            AfterValidator(mark.check) if isinstance(mark, Also) else Field(**_limits(mark))
            for mark in arguments[1:]
        ]
        return typing.Annotated[(twin_type(arguments[0]), *marks)]
    inner: Any = tuple(twin_type(argument) for argument in arguments)
    if origin is tuple:
        # A list in YAML.
        return typing.Annotated[origin[inner], Field(strict=False)]
    # Not with `|` one by one: what that makes may have the order of an equal union.
    return origin[inner] if origin is dict else typing.Union[inner]  # noqa: UP007


def _limits(limits: Limits) -> dict[str, Any]:
    given = limits.given()
    return {"strict": False, **given} if given.pop("is_name", False) else given
