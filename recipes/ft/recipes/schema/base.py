"""What all sections share: frozen, strict, no unknown key. `None` is "not set" and nothing else.

A key is declared with its status, which is data that `ft check`, `ft schema` and the docs read:

    micro_batch_size: int | None = implemented(default=1, ge=1)
    optimizer: Literal["adamw_torch", "muon"] | None = implemented(runs=("adamw_torch",))
    liger_rope: bool | None = accepted("the model's own rotary embedding is used")
    qlora_sharded_model_loading: bool | None = planned(default=False)
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

T = TypeVar("T")

Seq = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in YAML, a tuple once it is read, so that a frozen model really is frozen."""


class Section(BaseModel):
    """A group of recipe keys that one room reads. The key is the attribute; the docstring is its help (`docs.py`)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )


class Status(StrEnum):
    """What becomes of a key that somebody sets. The last three are words of Axolotl that no section has."""

    IMPLEMENTED = "implemented"
    """Does what it says; a test flips it and sees the difference."""
    ACCEPTED = "accepted"
    """Makes a run faster or smaller elsewhere; here the plain path is taken, and one warning says so."""
    PLANNED = "planned"
    """Valid, and not runnable yet: `ft check` says so, everything that would run refuses with 3."""
    IGNORED = "ignored"
    """Axolotl ignores it too: a warning."""
    RENAMED = "renamed"
    """An older spelling, read as today's."""
    REMOVED = "removed"
    """Axolotl refuses it too; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What the declaration of a key says beside its type and bounds."""

    status: Status
    default: Any
    """What an unset key means, as JSON; None where that depends on other keys or on the machine."""
    runs: tuple[Any, ...] | None
    """Values that run; None: all that the type allows."""
    fallback: str
    """`accepted`: what is done instead."""
    is_off_when_false: bool
    """Whether `false` asks for nothing, so that a key that cannot run yet is no obstacle."""

    def is_off(self, value: object) -> bool:
        """Whether `value` only says that nothing is wanted."""
        return value is False and self.is_off_when_false

    def asks_for_nothing(self, value: object) -> bool:
        """Whether setting the key to `value` changes nothing."""
        if self.is_off(value):
            return True
        return self.default is not None and _same(value, self.default)

    def is_runnable(self, value: object) -> bool:
        """Whether the value runs, as far as it is not a section: its keys say that themselves."""
        if self.runs is None or isinstance(value, Section):
            return True
        return any(_same(value, one) for one in self.runs)


def _same(one: object, other: object) -> bool:
    """Equal, and not just because Python counts true as 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_EXTRA: Final = "ft"
_NO_PLUGINS: Final = "PYDANTIC_DISABLE_PLUGINS"


def _declare(info: KeyInfo, bounds: dict[str, Any]) -> Any:
    return Field(default=None, json_schema_extra={_EXTRA: info}, **bounds)  # type: ignore[dict-item]  # read by `info_of` only


def implemented(*, default: Any = None, runs: Iterable[Any] | None = None, **bounds: Any) -> Any:
    """A key that works. `runs`: those of its values that do, where others are only `planned`."""
    values = None if runs is None else tuple(runs)
    return _declare(KeyInfo(Status.IMPLEMENTED, default, values, "", False), bounds)


def accepted(fallback: str, *, default: Any = None, **bounds: Any) -> Any:
    """A pure speed key that falls back to the plain path; `fallback` says to which, for the warning."""
    return _declare(KeyInfo(Status.ACCEPTED, default, None, fallback, True), bounds)


def planned(*, default: Any = None, false_is_off: bool | None = None, **bounds: Any) -> Any:
    """Valid vocabulary that does not run yet. `false_is_off=False`: to say `false` is a wish as well.

    It is one where the default is true, unless `false_is_off=True`: the key switches off what does not run.
    """
    off = default is not True if false_is_off is None else false_is_off
    return _declare(KeyInfo(Status.PLANNED, default, None, "", off), bounds)


_PLAIN: Final = KeyInfo(Status.IMPLEMENTED, None, None, "", False)


def info_of(field: FieldInfo) -> KeyInfo:
    """The declaration of a field; one without a marker is implemented."""
    extra: Any = field.json_schema_extra
    info: KeyInfo = extra.get(_EXTRA, _PLAIN) if isinstance(extra, dict) else _PLAIN
    return info


def built(section: type[Section]) -> None:
    """Make a section ready to validate, without asking every installed distribution for plugins of pydantic.

    That takes longer than all the rest of reading a recipe. Nothing in a recipe is a plugin's to look at.
    """
    if section.__pydantic_complete__:
        return
    before = os.environ.get(_NO_PLUGINS)
    os.environ[_NO_PLUGINS] = "__all__"
    try:
        section.model_rebuild()
    finally:
        if before is None:
            del os.environ[_NO_PLUGINS]
        else:
            os.environ[_NO_PLUGINS] = before


def nested_sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a value of this type is made of: itself, elements, members of a union."""
    if get_origin(annotation) is None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield annotation
        return
    for argument in get_args(annotation):
        if argument is not NoneType:
            yield from nested_sections(argument)
