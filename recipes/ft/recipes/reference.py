"""One description per word of the vocabulary, read off the schema and `vocabulary.py`; nothing is listed twice.

`ft schema --status`, `ft explain` and docs/keys.md print what stands here.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Final

from ft.recipes.foreign import meant_by
from ft.recipes.nearest import nearest
from ft.recipes.plugins import PLUGIN_OF
from ft.recipes.schema import PLUGIN, SECTION_OF, SECTIONS
from ft.recipes.schema.base import Key, KeyInfo, Section, Status, info_of
from ft.recipes.schema.docs import docs_of
from ft.recipes.schema.plugins import PLUGIN_SECTIONS, SECTION_OF_PLUGIN
from ft.recipes.schema.values import Limits
from ft.recipes.spelling import DATASET_LISTS
from ft.recipes.vocabulary import (
    ALIASES,
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    DATASET_TYPES,
    FSDP_PREFIX,
    FSDP_UNPREFIXED,
    IGNORED,
    REMOVED,
    RENAMED,
)

FSDP_BLOCK: Final = "fsdp_config"
_IN_LIST: Final = "[]"
"""Stands behind the key of a list of mappings: `datasets[].path`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What there is to say about one word."""

    key: str
    """Dotted: `fsdp_config.offload_params`, `datasets[].path`."""
    section: str
    """Section that it lives in (`plugin.liger` of a plugin), or that of the key it stands for; empty: none."""
    status: Status
    text: str
    type: str = ""
    """As a person writes it in YAML."""
    bounds: str = ""
    """`≥ 1`, `> 0, < 1`; empty where there are none."""
    default: Any = None
    """What an unset key means, as JSON; None where that depends on other keys or on the machine."""
    values: tuple[Any, ...] = ()
    """Values that have a name, or are known by one where any name may be written."""
    runs: tuple[Any, ...] | None = None
    """Values that run today; None: all that the type allows."""
    older: tuple[str, ...] = ()
    """Older spellings and second names of it."""
    instead: str = ""
    """What is done instead (`accepted`), or what to write instead of a word that is no key."""
    target: tuple[str, ...] = ()
    """Keys that an older spelling or a second name stands for."""
    plugin: str = ""
    """What has to stand in `plugins:`."""

    @property
    def is_nested(self) -> bool:
        """Whether it stands below another key."""
        return "." in self.key

    @property
    def is_key(self) -> bool:
        """Whether the schema has it; older spellings, ignored and removed words are none."""
        return self.status in KEY_STATUSES

    def status_of(self, value: Any) -> Status:
        """What becomes of this value."""
        runs = self.runs is None or value in self.runs
        return self.status if runs or self.status is not Status.IMPLEMENTED else Status.PLANNED

    @property
    def default_text(self) -> str:
        """The default as it stands in a docstring."""
        return shown_value(self.default) if self.default is not None else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "section": self.section,
            "status": str(self.status),
            "type": self.type,
            "bounds": self.bounds,
            "default": self.default,
            "values": list(self.values),
            "runs": None if self.runs is None else list(self.runs),
            "text": self.text,
            "older": list(self.older),
            "instead": self.instead,
            "target": list(self.target),
            "plugin": self.plugin,
        }


KEY_STATUSES: Final = (Status.IMPLEMENTED, Status.ACCEPTED, Status.PLANNED)
MEANING: Final[Mapping[Status, str]] = {
    Status.IMPLEMENTED: "does what it says",
    Status.ACCEPTED: "speed or memory only; the plain path is taken, with a warning",
    Status.PLANNED: "valid, but not runnable yet",
    Status.RENAMED: "older spellings, which `ft migrate` rewrites, and second names",
    Status.IGNORED: "has no effect, in Axolotl neither; a warning says so",
    Status.REMOVED: "an error, in Axolotl too",
}
NESTED: Final = "nested"


def counts() -> dict[str, dict[str, int]]:
    """Section -> number of its top-level keys by status, and of the keys below those under `nested`."""
    columns = [*map(str, KEY_STATUSES), NESTED]
    plugins = (f"{PLUGIN}.{name}" for name in PLUGIN_SECTIONS)
    found = {name: dict.fromkeys(columns, 0) for name in (*SECTIONS, *plugins)}
    for entry in entries().values():
        if entry.is_key:
            found[entry.section][NESTED if entry.is_nested else entry.status] += 1
    return found


def totals() -> dict[str, int]:
    """Number of top-level words by status, and of keys below others under `nested`."""
    found = dict.fromkeys([*map(str, Status), NESTED], 0)
    for entry in entries().values():
        if not entry.is_nested:
            found[entry.status] += 1
        elif entry.is_key:
            found[NESTED] += 1
    return found


@cache
def entries() -> Mapping[str, Entry]:
    """Every word -> its entry: keys by section, those of plugins, then words that are no keys."""
    older = _older()
    found: dict[str, Entry] = {}
    for name, section in SECTIONS.items():
        found |= _of_section(section, name, "", older)
    for name, plugin in PLUGIN_SECTIONS.items():
        found |= _of_section(plugin, f"{PLUGIN}.{name}", plugin.plugins[0], older)
    return found | {entry.key: entry for entry in _no_keys(found)}


def _of_section(
    section: type[Section], name: str, plugin: str, older: Mapping[str, list[str]]
) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for key, field, text, info in fields_below(section):
        found.setdefault(
            key,
            Entry(
                key=key,
                section=name,
                status=info.status,
                text=text,
                type=words(field.annotation),
                bounds=bounds([field.limits]),
                default=_as_json(info.default),
                values=_values(key, field.annotation),
                runs=info.runs,
                older=tuple(older.get(key, ())),
                instead=info.fallback,
                plugin=plugin,
            ),
        )
    return found


def fields_below(
    section: type[Section], prefix: str = "", around: KeyInfo | None = None
) -> Iterator[tuple[str, Key, str, KeyInfo]]:
    """Dotted key, field, docstring and declaration of every key of `section` and below.

    Below a key that does not run nothing does: its status is that of the key around it.
    """
    docs = docs_of(section)
    for key, field in section.model_fields.items():
        info = info_of(field)
        if around is not None and around.status is not Status.IMPLEMENTED:
            info = KeyInfo(around.status, info.default, None, around.fallback, False)
        yield f"{prefix}{key}", field, docs.get(key, ""), info
        for suffix, inner in nested(field.annotation):
            yield from fields_below(inner, f"{prefix}{key}{suffix}.", info)


def nested(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Sections that a value is made of, each with what stands behind the key: nothing, `[]`, or `.*` in a mapping."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield suffix, annotation
        return
    if origin is dict:
        yield from nested(arguments[1], f"{suffix}.*")
        return
    found: dict[type[Section], str] = {}
    for argument in arguments[:1] if origin is typing.Annotated else arguments:
        for behind, section in nested(argument, suffix + _IN_LIST if origin is tuple else suffix):
            # One mapping where a list may stand is a short form of it.
            if section not in found or behind.endswith(_IN_LIST):
                found[section] = behind
    for section, behind in found.items():
        yield behind, section


def _older() -> dict[str, list[str]]:
    """Key of today -> what else is read as it."""
    found: dict[str, list[str]] = {}
    for old, new in _renamed().items():
        for key in new:
            found.setdefault(key, []).append(old)
    return found


@cache
def _renamed() -> dict[str, tuple[str, ...]]:
    """Second name or older spelling -> keys of today."""
    found: dict[str, tuple[str, ...]] = {old: (new,) for old, new in {**ALIASES, **RENAMED}.items()}
    found |= dict.fromkeys(ATTENTION_FLAGS, ("attn_implementation",))
    found["batch_size"] = ("gradient_accumulation_steps",)
    found["gc_steps"] = ("torch_empty_cache_steps", "gc_collect_steps")
    keys = {key for section in SECTIONS.values() for key, *_ in fields_below(section)}
    for key in sorted(keys):
        block, _, inner = key.rpartition(".")
        if block == FSDP_BLOCK and inner not in FSDP_UNPREFIXED:
            found[f"{block}.{FSDP_PREFIX}{inner}"] = (key,)
    found[f"{FSDP_BLOCK}.version"] = (f"{FSDP_BLOCK}.fsdp_version",)
    for block in DATASET_LISTS:
        for old, (new, _) in DATASET_RENAMED.items():
            if (key := f"{block}{_IN_LIST}.{new}") in keys:
                found[f"{block}{_IN_LIST}.{old}"] = (key,)
    return found


def _no_keys(keys: Mapping[str, Entry]) -> Iterator[Entry]:
    """Words of the vocabulary that the schema does not have."""
    for old, new in _renamed().items():
        target = keys[new[0]]
        word = "A second name of" if old in ALIASES else "Older spelling of"
        names = " and ".join(f"`{key}`" for key in new)
        yield Entry(
            old,
            target.section,
            Status.RENAMED,
            f"{word} {names}.",
            type="`true` or `false`" if old in ATTENTION_FLAGS else target.type,
            bounds=target.bounds,
            instead=_instead(old, new),
            target=new,
            plugin=target.plugin,
        )
    for word, why in IGNORED.items():
        yield Entry(word, "", Status.IGNORED, "Has no effect.", instead=why)
    for word, why in REMOVED.items():
        yield Entry(word, "", Status.REMOVED, "Was taken away from Axolotl.", instead=why)


def _instead(old: str, new: tuple[str, ...]) -> str:
    """What to write instead of an older spelling; a second name may stay."""
    if old in ALIASES:
        return ""
    if old in ATTENTION_FLAGS:
        return f"write `attn_implementation: {ATTENTION_FLAGS[old]}`"
    if old == "batch_size":
        quotient = "`gradient_accumulation_steps`: batch_size / micro_batch_size"
        return f"write {quotient}, which must be whole; Axolotl rounds it down"
    inner = old.rpartition(".")[2]
    if inner in DATASET_RENAMED:
        key, sub = DATASET_RENAMED[inner]
        return f"write `{sub}` below `{key}`"
    return "write " + " and ".join(f"`{key}`" for key in new)


def _values(key: str, annotation: Any) -> tuple[Any, ...]:
    """Values that somebody may ask about: those of closed sets, and names that the vocabulary has for open ones."""
    found = tuple(dict.fromkeys(value for value in _literals(annotation)))
    block, _, inner = key.partition(f"{_IN_LIST}.")
    if block in DATASET_LISTS and inner == "type":
        return (*found, *sorted(DATASET_TYPES))
    return (*found, *SECTION_OF_PLUGIN) if key == "plugins" else found


def _literals(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
        return
    for argument in typing.get_args(annotation):
        yield from _literals(argument)


# ------------------------------------------------------------------------------------ types as words

_WORDS: Final[Mapping[Any, tuple[str, str]]] = {
    str: ("text", "texts"),
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    Any: ("anything", "anything"),
}
"""Type -> one of it, several of it."""
_SIGNS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def words(annotation: Any, *, many: bool = False) -> str:
    """A type as a person writes it in YAML."""
    parts = list(dict.fromkeys(_alternatives(annotation, many=many)))
    if set(parts) >= {"whole number", "number"}:
        parts.remove("whole number")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _alternatives(annotation: Any, *, many: bool) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, UnionType}:
        for argument in arguments:
            if argument is not NoneType:
                yield from _alternatives(argument, many=many)
    elif origin is typing.Literal:
        yield from (f"`{shown_value(value)}`" for value in arguments)
    elif annotation is bool:
        yield from ("`true`", "`false`")
    elif origin is typing.Annotated:
        limits = bounds(arguments[1:])
        yield f"{words(arguments[0], many=many)}{limits and f' {limits}'}"
    else:
        yield _plain_type(annotation, origin, arguments, many=many)


def _plain_type(annotation: Any, origin: Any, arguments: tuple[Any, ...], *, many: bool) -> str:
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"{'lists' if many else 'list'} of {count}{words(arguments[0], many=True)}"
    mapping = "mappings" if many else "mapping"
    if origin is dict:
        names, inner = arguments
        return mapping if inner is Any else f"{mapping} of {words(names)} to {words(inner)}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return mapping
    return _WORDS[annotation][many]


def bounds(marks: Iterable[object]) -> str:
    """Limits of a type: `≥ 1 and < 3`, `(not empty)`, `like` a regular expression."""
    found = []
    for limits in marks:
        if isinstance(limits, Limits):
            found += [
                f"{sign} {getattr(limits, name)}"
                for name, sign in _SIGNS.items()
                if getattr(limits, name) is not None
            ]
            if limits.min_length:
                found.append("(not empty)")
            if limits.pattern:
                found.append(f"like `{limits.pattern}`")
    return " and ".join(found)


def shown_value(value: Any) -> str:
    """A value as it is written in a recipe: `true`, `0.9`, `cosine`."""
    return value if isinstance(value, str) else json.dumps(_as_json(value))


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# -------------------------------------------------------------------------------------------- lookup

_INDEX: Final = re.compile(r"\[\d*\]|\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """What there is to say about a plugin."""

    spellings: tuple[str, ...]
    """What may stand in `plugins:`, the full path first."""
    text: str
    keys: tuple[str, ...]
    """Its top-level keys."""

    def to_json(self) -> dict[str, Any]:
        return {"spellings": list(self.spellings), "text": self.text, "keys": list(self.keys)}


@dataclass(frozen=True, slots=True)
class Found:
    """All that a word can mean."""

    word: str
    keys: tuple[Entry, ...]
    rule: RuleEntry | None
    plugin: PluginEntry | None
    values: tuple[Entry, ...]
    """Keys that have the word as one of their values."""

    def __bool__(self) -> bool:
        return bool(self.keys or self.rule or self.plugin or self.values)


def look_up(word: str) -> Found:
    """What `word` means: a key however it is spelled, the id of a rule, a plugin, a value."""
    keys = find(word) or find(word.lower())
    return Found(word, keys, rules().get(word.upper()), _plugin(word), with_value(word))


def find(word: str) -> tuple[Entry, ...]:
    """Entries that somebody means by `word`: the key itself, else nested keys whose last part it is.

    `datasets.0.path`, `datasets[0].path`, `datasets[].path` and `datasets.path` are all the same key.
    """
    known = entries()
    plain = plain_key(word)
    exact = tuple(entry for key, entry in known.items() if plain_key(key) == plain)
    return exact or tuple(e for key, e in known.items() if plain_key(key).endswith(f".{plain}"))


def below(key: str) -> tuple[str, ...]:
    """Names of the keys directly below a key."""
    parent = plain_key(key)
    found = (
        plain_key(entry.key).rpartition(".")
        for entry in entries().values()
        if entry.is_key and entry.is_nested
    )
    return tuple(name for block, _, name in found if block == parent)


def plain_key(word: str) -> str:
    """A dotted key without its indices: `datasets.path`."""
    return _INDEX.sub("", word.strip().removesuffix(":"))


def with_value(word: str) -> tuple[Entry, ...]:
    """Keys that have `word` as one of their named values."""
    return tuple(entry for entry in entries().values() if word in entry.values)


def near_words(word: str) -> list[str]:
    """Keys, rules and values that are spelled like `word`, the nearest first."""
    known: dict[str, None] = {}
    for key, entry in entries().items():
        plain = plain_key(key)
        known |= dict.fromkeys([plain, plain.rpartition(".")[2]])
        known |= dict.fromkeys(value for value in entry.values if isinstance(value, str))
    plain = plain_key(word).lower()
    found = dict.fromkeys([*meant_by(plain, known), *nearest(plain, known)])
    return list(found)[:3] or nearest(word.upper(), rules())


def _plugin(word: str) -> PluginEntry | None:
    """The plugin that is listed as `word`, or whose section is called that."""
    name = SECTION_OF_PLUGIN.get(word, word)
    if name not in PLUGIN_SECTIONS:
        return None
    section = PLUGIN_SECTIONS[name]
    return PluginEntry(section.plugins, title(section), tuple(section.model_fields))


def title(section: type[Section]) -> str:
    """The first paragraph of a section's docstring."""
    return " ".join((inspect.getdoc(section) or "").partition("\n\n")[0].split())


# --------------------------------------------------------------------------------------------- rules

_RULES: Final = ("ft.recipes.rules.", "ft.recipes.references")
"""Where rules and what they read with live."""
_INDEXES: Final = (SECTIONS, SECTION_OF, PLUGIN_SECTIONS, PLUGIN_OF)
"""Tables of all keys: who looks something up in them speaks of none."""
_MENTION: Final = re.compile(r"`([a-z_0-9]+)[`:]")
"""A key in a message or a docstring: `lora_r`, or the first word of `adapter: lora`."""


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """What there is to say about a rule."""

    id: str
    text: str
    needs: tuple[str, ...]
    """Facts without which it is deferred."""
    keys: tuple[str, ...]
    """Keys that its code or its messages name; one that it only reaches by a loop over a section is not there."""

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.id,
            "text": self.text,
            "needs": list(self.needs),
            "keys": list(self.keys),
        }


@cache
def rules() -> Mapping[str, RuleEntry]:
    """Id -> rule, in order."""
    from ft.recipes.rules import RULES

    found = {}
    for rule in RULES:
        named = _Named()
        named.look_at(rule.check)
        text = " ".join((inspect.getdoc(rule.check) or "").split())
        keys = tuple(entry.key for entry in entries().values() if named.is_about(entry))
        found[rule.id] = RuleEntry(rule.id, text, rule.needs, keys)
    return found


def rules_about(key: str) -> tuple[str, ...]:
    """Ids of the rules that name a key."""
    return tuple(rule.id for rule in rules().values() if key in rule.keys)


class _Named:
    """Words in the code of a rule that may be keys."""

    def __init__(self) -> None:
        self._attributes: set[str] = set()
        """`adapter.lora_r`: each with what stands before it, which is its section if it is a top-level key."""
        self._texts: set[str] = set()
        self._messages: set[str] = set()
        self._seen: set[object] = set()

    def is_about(self, entry: Entry) -> bool:
        if not entry.is_key:
            return False
        top, _, inner = entry.key.rpartition(".")
        if inner and top:
            block = top.partition(".")[0].removesuffix(_IN_LIST)
            attributes = {name.rpartition(".")[2] for name in self._attributes}
            named = inner in attributes or self._is_in_table(inner)
            return named and self._is_top(block, entries()[block].section)
        return self._is_top(entry.key, entry.section)

    def _is_top(self, key: str, section: str) -> bool:
        attribute = f"{section}.{key}" in self._attributes
        return attribute or key in self._messages or self._is_in_table(key)

    def _is_in_table(self, key: str) -> bool:
        # `chat_template` in a table is as likely the format of a data set.
        return key in self._texts and not with_value(key)

    def look_at(self, function: Any) -> None:
        """Read the code of a function, of those of other rules that it calls, and the tables that it looks into."""
        if isinstance(function, partial):
            self._texts.update(_texts([*function.args, *function.keywords.values()]))
            function = function.func
        if function in self._seen or not inspect.isfunction(function):
            return
        self._seen.add(function)
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
        # `name.split(":")` is no key.
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self._texts.add(node.value)
                self._messages.update(_MENTION.findall(node.value))
            elif isinstance(node, ast.Attribute) and id(node) not in called:
                before = node.value
                owner = getattr(before, "attr", None) or getattr(before, "id", "")
                self._attributes.add(f"{owner}.{node.attr}")
        outside = inspect.getclosurevars(function)
        for value in (*outside.globals.values(), *outside.nonlocals.values()):
            if inspect.isfunction(value) and value.__module__.startswith(_RULES):
                self.look_at(value)
            elif not any(value is index for index in _INDEXES):
                self._texts.update(_texts(value))


def _texts(value: object) -> Iterator[str]:
    """All texts in a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from _texts(item)
