"""What all sections share: frozen, strict, no unknown key. `None` is "not set" and nothing else.

A key is declared with its status, which is data that `ft check`, `ft schema` and the docs read:

    micro_batch_size: int | None = implemented(default=1, ge=1)
    optimizer: Literal["adamw_torch", "muon"] | None = implemented(runs=("adamw_torch",))
    liger_rope: bool | None = accepted("the model's own rotary embedding is used")
    qlora_sharded_model_loading: bool | None = planned(default=False)
"""

import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from types import NoneType
from typing import Any, ClassVar, Final, NoReturn, Self, TypeVar, get_args, get_origin

from ft.recipes.errors import KeyPath
from ft.recipes.schema.values import FAILED, Check, Limits, Mismatch, check_of

T = TypeVar("T")

Seq = tuple[T, ...]
"""A list in YAML, a tuple once it is read, so that a frozen section really is frozen."""


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


@dataclass(frozen=True, slots=True)
class _Declared:
    """What stands behind a key in its section."""

    info: KeyInfo
    limits: Limits


_NO_LIMITS: Final = Limits()


def limits(**bounds: Any) -> Limits:
    """What is asked of a part of a type: `Seq[Annotated[int, …]]`. Of the whole `implemented` and its like ask."""
    return Limits(**bounds)


def _declare(info: KeyInfo, bounds: dict[str, Any]) -> Any:
    return _Declared(info, Limits(**bounds) if bounds else _NO_LIMITS)


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


_NOTHING: Final = _Declared(KeyInfo(Status.IMPLEMENTED, None, None, "", False), _NO_LIMITS)
"""What a key says that has no more than a type."""


class Key:
    """One key of a section."""

    __slots__ = ("_check", "annotation", "info", "is_required", "limits")

    def __init__(self, annotation: Any, declared: object) -> None:
        self.annotation = annotation
        given = declared if isinstance(declared, _Declared) else _NOTHING
        self.info = given.info
        self.limits = given.limits
        self.is_required = declared is _REQUIRED
        self._check: Check | None = None

    def check(self, value: object, at: KeyPath, found: list[Mismatch]) -> Any:
        """The typed value, or FAILED with what is wrong added to `found`."""
        if self._check is None:
            # Most keys of most recipes are not set: only those that are need one.
            self._check = check_of(self.annotation, [self.limits])
        return self._check(value, at, found)


_REQUIRED: Final = object()


def info_of(key: Key) -> KeyInfo:
    """The declaration of a key; one without a marker is implemented."""
    return key.info


class MismatchError(ValueError):
    """Values that are not what a section asks for."""

    def __init__(self, section: str, mismatches: list[Mismatch]) -> None:
        lines = (f"{'.'.join(map(str, one.at))}: {one.message}" for one in mismatches)
        super().__init__("\n".join([f"{section}:", *lines]))
        self.mismatches = mismatches


class Section:
    """A group of recipe keys that one room reads. The key is the attribute; the docstring is its help (`docs.py`).

    It has as much of the interface of pydantic's BaseModel as somebody needs, see `values.py`.
    """

    model_fields: ClassVar[Mapping[str, Key]] = {}
    """Every key, those of the classes that it is made from first."""
    _unset: ClassVar[Mapping[str, Any]] = {}
    model_fields_set: frozenset[str]
    """Keys that somebody set."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own: dict[str, Any] = cls.__annotations__
        if any(isinstance(annotation, str) for annotation in own.values()):
            hints = typing.get_type_hints(cls, include_extras=True)
            own = {name: hints[name] for name in own}
        found = dict(cls.model_fields)
        for name, annotation in own.items():
            if get_origin(annotation) is not ClassVar and annotation is not ClassVar:
                declared = cls.__dict__.get(name, _REQUIRED)
                if not (
                    declared is None or declared is _REQUIRED or isinstance(declared, _Declared)
                ):
                    raise TypeError(f"{name}: write `{name}: … | None = planned(default=…)`")
                found[name] = Key(annotation, declared)
                if name in cls.__dict__:
                    delattr(cls, name)  # What an instance lacks shall not be found here.
        cls.model_fields = found
        cls._unset = {name: None for name, key in found.items() if not key.is_required}

    def __init__(self, **values: Any) -> None:
        """Raises: MismatchError."""
        self.__dict__.update(self.model_validate(values).__dict__)

    @classmethod
    def model_construct(cls, **values: Any) -> Self:
        """A section with these values, which somebody has checked."""
        self = object.__new__(cls)
        self.__dict__.update(cls._unset, **values, model_fields_set=frozenset(values))
        return self

    @classmethod
    def model_validate(cls, values: object) -> Self:
        """The section that plain values make. Raises: MismatchError with all that is wrong."""
        found: list[Mismatch] = []
        typed: Self = cls.checked(values, (), found)
        if found:
            raise MismatchError(cls.__name__, found)
        return typed

    @classmethod
    def checked(cls, values: object, at: KeyPath, found: list[Mismatch]) -> Any:
        """As `values.Check` says; `at` is where the section stands."""
        if isinstance(values, cls):
            return values
        if not isinstance(values, dict):
            message = f"Input should be a valid dictionary or instance of {cls.__name__}"
            found.append(Mismatch("model_type", at, message, values))
            return FAILED
        before, typed = len(found), {}
        for name, key in cls.model_fields.items():
            if name in values:
                typed[name] = key.check(values[name], (*at, name), found)
            elif key.is_required:
                found.append(Mismatch("missing", (*at, name), "Field required", values))
        for name in values:
            if name not in cls.model_fields:
                message = "Extra inputs are not permitted"
                found.append(Mismatch("extra_forbidden", (*at, name), message, values[name]))
        return cls.model_construct(**typed) if len(found) == before else FAILED

    def model_dump(self, *, mode: str = "python", exclude_none: bool = False) -> dict[str, Any]:
        """Plain values of all keys; with `mode="json"` such as JSON has."""
        return {
            name: _plain(value, mode, exclude_none=exclude_none)
            for name, value in self._values()
            if value is not None or not exclude_none
        }

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(value == other.__dict__[name] for name, value in self._values())

    def __hash__(self) -> int:
        return hash(tuple(value for _, value in self._values()))

    def _values(self) -> Iterator[tuple[str, Any]]:
        return ((name, self.__dict__[name]) for name in type(self).model_fields)

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in self._values() if value is not None)
        return f"{type(self).__name__}({', '.join(given)})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name}: a section is never changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name}: a section is never changed")


def _plain(value: Any, mode: str, *, exclude_none: bool) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode=mode, exclude_none=exclude_none)
    if isinstance(value, dict):
        inner = {key: _plain(item, mode, exclude_none=exclude_none) for key, item in value.items()}
        return {str(key): item for key, item in inner.items()} if mode == "json" else inner
    if isinstance(value, tuple | list):
        items = [_plain(item, mode, exclude_none=exclude_none) for item in value]
        return items if mode == "json" else type(value)(items)
    if isinstance(value, date) and mode == "json":
        return value.isoformat().replace("+00:00", "Z")
    return value


def nested_sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a value of this type is made of: itself, elements, members of a union."""
    if get_origin(annotation) is None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield annotation
        return
    for argument in get_args(annotation):
        if argument is not NoneType:
            yield from nested_sections(argument)
