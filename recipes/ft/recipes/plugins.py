"""Sections of keys that plugins add: those of Axolotl's plugins, and those that a user's own package declares.

A package declares its keys with an entry point of the group `ft.recipes.plugins`. Its name is the plugin as it
stands in `plugins:`, its value a `Section` class:

    [project.entry-points."ft.recipes.plugins"]
    "my_pkg.MyPlugin" = "my_pkg.recipe_keys:MyKeys"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ft.recipes.errors import KeyPath, Severity
from ft.recipes.nearest import typing_errors
from ft.recipes.schema import SECTION_OF
from ft.recipes.schema.base import Section
from ft.recipes.schema.plugins import PLUGIN_SECTIONS, SECTION_OF_PLUGIN

GROUP: Final = "ft.recipes.plugins"
FOLDER: Final = "axolotl.integrations."
"""Where Axolotl looks a short name up."""
MAX_TYPING_ERRORS: Final = 2
"""A class name with more differences is another class."""

PLUGIN_OF: Final[Mapping[str, str]] = {
    key: name for name, section in PLUGIN_SECTIONS.items() for key in section.model_fields
}
"""Key -> section of the built-in plugin that it belongs to."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What the `plugins:` of a recipe stand for."""

    sections: Mapping[str, type[Section]]
    """Name of the section -> its class."""
    complaints: tuple[tuple[KeyPath, Severity, str], ...]


def listed(plugins: object) -> Listed:
    """Look up every plugin of the list; only a package that is named there is imported."""
    sections: dict[str, type[Section]] = {}
    complaints: list[tuple[KeyPath, Severity, str]] = []
    for index, plugin in enumerate(plugins if isinstance(plugins, list) else []):
        if not isinstance(plugin, str):
            continue  # Its type is wrong; that is said where types are checked.
        at: KeyPath = ("plugins", index)
        name = SECTION_OF_PLUGIN.get(plugin)
        if name is not None:
            sections[name] = PLUGIN_SECTIONS[name]
            continue
        for severity, message, section in _of_package(plugin):
            if section is not None:
                sections[plugin] = section
            if message:
                complaints.append((at, severity, message))
    return Listed(sections, tuple(complaints))


def _misspelt(plugin: str) -> str:
    """The plugin of Axolotl that somebody meant; empty if it may well be another one."""
    # What all of them begin with would make any two alike.
    known = {spelling.removeprefix(FOLDER): spelling for spelling in SECTION_OF_PLUGIN}
    word = plugin.removeprefix(FOLDER)
    short = min(known, key=lambda name: typing_errors(word.lower(), name.lower()))
    if typing_errors(word.lower(), short.lower()) > MAX_TYPING_ERRORS:
        return ""
    return FOLDER + short if word != plugin else short


def _of_package(plugin: str) -> Iterator[tuple[Severity, str, type[Section] | None]]:
    """The section that an installed package declares for `plugin`, and what is wrong with it."""
    from importlib.metadata import entry_points

    found = list(entry_points(group=GROUP, name=plugin))
    if not found:
        if meant := _misspelt(plugin):
            message = f"no plugin of Axolotl. Did you mean `{meant}`?"
            if not plugin.startswith(FOLDER):
                message = f"{message} A plugin of your own declares its keys (entry point {GROUP})."
            yield Severity.ERROR, message, None
        else:
            message = "not runnable yet: a plugin that declares no keys (entry point " + GROUP + ")"
            yield Severity.PLANNED, message, None
        return
    try:
        section = found[0].load()
    except Exception as error:  # noqa: BLE001  # Whatever a stranger's module does when it is imported.
        yield Severity.ERROR, f"cannot be imported: {type(error).__name__}: {error}", None
        return
    if not (isinstance(section, type) and issubclass(section, Section)):
        yield (
            Severity.ERROR,
            f"{found[0].value} is no class made from ft.recipes.schema.base.Section",
            None,
        )
        return
    taken = sorted(key for key in section.model_fields if key in SECTION_OF or key in PLUGIN_OF)
    if taken:
        yield Severity.ERROR, f"declares keys that are there already: {', '.join(taken)}", None
        return
    yield (
        Severity.PLANNED,
        "not runnable yet: this version of ft calls no plugins of users",
        section,
    )
