"""Which keys of a recipe cannot run yet, and which fall back: read off the schema, never listed twice."""

from __future__ import annotations

from collections.abc import Iterator

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.base import KeyInfo, Section, Status, info_of
from ft.recipes.schema.plugins import PLUGIN_SECTIONS, SECTION_OF_PLUGIN

Complaint = tuple[KeyPath, Severity, str]


def complaints(recipe: FlatRecipe) -> Iterator[Complaint]:
    """Keys that are `planned`, values that are, and keys that are only `accepted`, in the order of the sections.

    Then the plugins that change a run by being listed.
    """
    for section in recipe.sections().values():
        yield from _of_section(section, ())
    for index, plugin in enumerate(recipe.run.plugins or ()):
        name = SECTION_OF_PLUGIN.get(plugin, "")
        listing = PLUGIN_SECTIONS[name].listing if name else None
        off = name and getattr(recipe.plugin[name], PLUGIN_SECTIONS[name].switch, None) is False
        if listing is not None and not off:
            yield from _says(listing, ("plugins", index))


def _of_section(section: Section, path: KeyPath) -> Iterator[Complaint]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if value is None:
            continue
        info, at = info_of(field), (*path, key)
        if info.status is Status.IMPLEMENTED:
            if not info.is_runnable(value):
                yield at, Severity.PLANNED, _cannot(value)
            else:
                yield from _inside(value, at)
        elif info.asks_for_nothing(value):
            continue
        else:
            yield from _says(info, at)


def _says(info: KeyInfo, at: KeyPath) -> Iterator[Complaint]:
    """What to say about something at `at` that is no more than accepted or planned."""
    if info.status is Status.PLANNED:
        yield at, Severity.PLANNED, "not runnable yet"
    elif info.fallback:
        yield at, Severity.WARNING, f"has no effect here yet: {info.fallback}"


def _cannot(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return "not runnable yet"
    return f"not runnable yet: {value}"


def _inside(value: object, path: KeyPath) -> Iterator[Complaint]:
    if isinstance(value, Section):
        yield from _of_section(value, path)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            if isinstance(item, Section):
                yield from _of_section(item, (*path, index))
