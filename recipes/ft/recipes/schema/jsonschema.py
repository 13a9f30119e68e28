"""The schema as JSON Schema, for editors: what may stand in a recipe file, with the help of each key.

Written for draft-07, which the YAML language server reads. It is as strict as the types are, and knows older
spellings. What goes over several keys is for `ft check`, which also reads `"16"` as a number and `lora_r: ""` as
not set: an editor says what one should write.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Final

from pydantic import TypeAdapter

from ft.recipes.schema import SECTIONS
from ft.recipes.schema.base import KeyInfo, Section, Status, info_of, nested_sections
from ft.recipes.schema.docs import docs_of
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.schema.twin import twin, twin_type
from ft.recipes.vocabulary import (
    ALIASES,
    ATTENTION_FLAGS,
    DATASET_RENAMED,
    FSDP_PREFIX,
    FSDP_UNPREFIXED,
    IGNORED,
    REMOVED,
    RENAMED,
)

Schema = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_DEFINITIONS: Final = "definitions"
"""Where draft-07 keeps what `$ref` names; pydantic's `$defs` came later."""
_NOISE: Final = frozenset({"title", "default", "ft"})
"""What pydantic writes beside a type: names in title case, null as the default, our own marker."""
_BOUNDS: Final = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
"""What pydantic leaves as it is where a type is a union -> the keyword, for those members that are numbers."""
_THOUSAND: Final = 1000
_GROUPED: Final = "^[-+]?[0-9]+(_[0-9]+)+$"
_GROUPED_NUMBER: Final = r"^[-+]?[0-9]+(_[0-9]+)+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"
_ABOUT: Final = ("description", "default", "deprecated", "deprecationMessage")
_EMPTY: Final[Schema] = {"type": "string", "maxLength": 0}
"""`key: ""` is how recipes say that a text is not set."""
_FILE: Final[Schema] = {"type": "string", "minLength": 1}


def recipe_schema() -> Schema:
    """JSON Schema of a recipe file."""
    properties: Schema = {}
    definitions: Schema = {}
    plugins = [(section, section.plugins[0]) for section in PLUGIN_SECTIONS.values()]
    for section, plugin in [*((section, "") for section in SECTIONS.values()), *plugins]:
        whole = twin(section).model_json_schema(ref_template=f"#/{_DEFINITIONS}/{{model}}")
        for key, prop in _properties(section, whole, plugin).items():
            properties[key] = _or_empty(prop)
        for inner in _inner(section):
            definition = _plain(whole["$defs"][inner.__name__])
            below = _properties(inner, whole["$defs"][inner.__name__], "")
            definition["properties"] = {key: _or_empty(prop) for key, prop in below.items()}
            if definitions.setdefault(inner.__name__, definition) != definition:
                raise AssertionError(f"two blocks are called {inner.__name__}")
    properties["extends"] = _extends(properties["extends"]["description"])
    _sourced(definitions)
    _misread(properties)
    _older_below(definitions)
    return {
        "$schema": DRAFT,
        "title": "ft recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": _underscores_in("properties", properties | dict(_older(properties))),
        _DEFINITIONS: {name: _with_underscores(block) for name, block in definitions.items()},
    }


def _inner(section: type[Section]) -> Iterator[type[Section]]:
    """All blocks below a section, the outer ones first."""
    for field in section.model_fields.values():
        for inner in nested_sections(field.annotation):
            yield inner
            yield from _inner(inner)


def _properties(section: type[Section], schema: Schema, plugin: str) -> dict[str, Schema]:
    docs = docs_of(section)
    found = {}
    for key, field in section.model_fields.items():
        info = info_of(field)
        prop = _with_names(_plain(schema["properties"][key]), field.annotation)
        prop["description"] = " ".join([docs.get(key, ""), *_status(info, plugin)]).strip()
        if info.default is not None:
            prop["default"] = (
                list(info.default) if isinstance(info.default, tuple) else info.default
            )
        found[key] = prop
    return found


def _status(info: KeyInfo, plugin: str) -> Iterator[str]:
    if plugin:
        yield f"Needs `{plugin}` in `plugins`."
    if info.status is Status.PLANNED:
        yield "Not runnable yet."
    elif info.status is Status.ACCEPTED:
        yield f"Falls back: {info.fallback}."
    elif info.runs is not None:
        named = ", ".join(f"`{str(v).lower() if isinstance(v, bool) else v}`" for v in info.runs)
        yield f"Runs today: {named}."


def _plain(schema: Any) -> Any:
    """`schema` in words of draft-07, without pydantic's noise; null may stand for any value of a mapping."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain(value)
        for key, value in schema.items()
        if key not in _NOISE and key not in _BOUNDS and key != "properties"
    }
    if "prefixItems" in plain:
        plain["items"] = plain.pop("prefixItems")
    if isinstance(plain.get("additionalProperties"), dict):
        plain["additionalProperties"] = _any_of(plain["additionalProperties"], {"type": "null"})
    for name in (name for name in _BOUNDS if name in schema):
        for member in plain.get("anyOf", [plain]):
            if member.get("type") in {"integer", "number"}:
                member[_BOUNDS[name]] = schema[name]
    return plain


def _with_names(schema: Schema, annotation: Any) -> Schema:
    """Say which names a mapping may have where they are numbers or a few words; pydantic leaves that out."""
    for member in typing.get_args(annotation):
        arguments = typing.get_args(member)
        if typing.get_origin(member) is not dict or arguments[0] is str:
            continue
        kinds = TypeAdapter(twin_type(arguments[0])).json_schema()
        names = [
            {"pattern": "^[0-9]+$"} if kind.get("type") == "integer" else _plain(kind)
            for kind in kinds.get("anyOf", [kinds])
        ]
        for one in schema["anyOf"]:
            if one.get("type") == "object":
                one["propertyNames"] = {"anyOf": names}
                # pydantic's way to say of which form the names are.
                for values in one.pop("patternProperties", {}).values():
                    one["additionalProperties"] = _any_of(values, {"type": "null"})
    return schema


def _any_of(schema: Schema, also: Schema) -> Schema:
    """`schema`, or `also`; what is said about the key stays outside."""
    about: Schema = {key: schema[key] for key in _ABOUT if key in schema}
    members = schema.get("anyOf") or [{k: v for k, v in schema.items() if k not in about}]
    return {"anyOf": [*members, also], **about}


def _or_empty(schema: Schema) -> Schema:
    """Let a key that takes only some texts be empty too."""
    texts = [one for one in schema.get("anyOf", [schema]) if one.get("type") == "string"]
    if not texts or {"type": "string"} in texts:
        return schema
    return _any_of(schema, _EMPTY)


def _misread(properties: dict[str, Schema]) -> None:
    """Values that `ft` mends: YAML 1.1 reads `no` as false, recipes write `false` for 0 steps, and `DROP`."""
    for key in ("save_strategy", "eval_strategy", "jagged_restart_anneal_steps"):
        properties[key] = _any_of(properties[key], {"enum": [False]})
    key = "excess_length_strategy"
    values = [value for member in properties[key]["anyOf"] for value in member.get("enum", ())]
    letters = "|".join("".join(f"[{c.upper()}{c}]" for c in value) for value in values)
    properties[key] = _any_of(properties[key], {"type": "string", "pattern": f"^({letters})$"})


def _with_underscores(schema: Schema, *, is_member: bool = False) -> Schema:
    """Let large numbers have underscores: `500_000` is one to `ft`, and text to an editor, which reads YAML 1.2.

    `is_member` of a union: what is added stands beside it.
    """
    plain = {word: _underscores_in(word, value) for word, value in schema.items()}
    members = plain.get("anyOf", [plain])
    kinds = {kind for member in members for kind in _kinds_of_large(member)}
    if is_member or not kinds or {"type": "string"} in members:
        return plain
    pattern = _GROUPED_NUMBER if "number" in kinds else _GROUPED
    return _any_of(plain, {"type": "string", "pattern": pattern})


def _underscores_in(word: str, value: Any) -> Any:
    """The value of a keyword, with underscores in the schemas that it holds."""
    if word == "properties":
        return {key: _with_underscores(inner) for key, inner in value.items()}
    if word == "anyOf":
        return [_with_underscores(member, is_member=True) for member in value]
    if word in {"items", "additionalProperties"}:
        if isinstance(value, list):
            return [_with_underscores(item) for item in value]
        return _with_underscores(value) if isinstance(value, dict) else value
    return value


def _kinds_of_large(member: Schema) -> Iterator[str]:
    """`integer` or `number` where a thousand would be allowed."""
    kinds: str | list[str] = member.get("type", [])
    limit = member.get("maximum") or member.get("exclusiveMaximum") or _THOUSAND
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind in {"integer", "number"} and limit >= _THOUSAND:
            yield kind


def _extends(text: str) -> Schema:
    """`extends: ""` is no way to say that nothing is extended."""
    return {
        "anyOf": [_FILE, {"type": "array", "items": _FILE}, {"type": "null"}],
        "description": text,
    }


def _sourced(definitions: dict[str, Schema]) -> None:
    """A data set is where `path` says, or `data_files`."""
    for definition in definitions.values():
        if {"path", "data_files"} <= definition["properties"].keys():
            definition["required"].remove("path")
            definition["anyOf"] = [{"required": ["path"]}, {"required": ["data_files"]}]


# ------------------------------------------------------------------------------------ older spellings


def _older(properties: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Words that are read, or that are known not to be keys."""
    for old, new in ALIASES.items():
        about = f"{properties[new]['description']} A second name of `{new}`."
        yield old, {**properties[new], "description": about}
    for old, new in RENAMED.items():
        yield old, _old(properties[new], f"Older spelling: write `{new}`.")
    for flag, value in ATTENTION_FLAGS.items():
        text = f"Older spelling: write `attn_implementation: {value}`."
        yield flag, _old({"type": ["boolean", "null"]}, text)
    both = "Older spelling: write `torch_empty_cache_steps` and `gc_collect_steps`."
    yield "gc_steps", _old(properties["torch_empty_cache_steps"], both)
    text = "Older spelling: write `gradient_accumulation_steps`, this by `micro_batch_size`."
    yield "batch_size", _old({"type": ["integer", "null"], "minimum": 1}, text)
    for word, why in IGNORED.items():
        yield word, _old({}, f"Ignored. {why}.")
    for word, why in REMOVED.items():
        # Nothing but "not set" and "off" is valid; the text is what an editor shows.
        yield word, _old({"enum": [None, "", False]}, f"Was removed: {why}.")


def _old(schema: Schema, text: str) -> Schema:
    kept = {key: value for key, value in schema.items() if key != "default"}
    # The YAML language server warns with the second; other editors know the first.
    return {**kept, "description": text, "deprecated": True, "deprecationMessage": text}


def _older_below(definitions: dict[str, Schema]) -> None:
    """Add older spellings within blocks: prefixed keys of `fsdp_config`, two keys of data sets."""
    [fsdp] = nested_sections(SECTIONS["parallel"].model_fields["fsdp_config"].annotation)
    properties = definitions[fsdp.__name__]["properties"]
    older = {
        f"{FSDP_PREFIX}{key}": _old(prop, f"Older spelling: write `{key}`.")
        for key, prop in properties.items()
        if key not in FSDP_UNPREFIXED
    }
    version = _old(properties["fsdp_version"], "Older spelling: write `fsdp_version`.")
    properties |= {**older, "version": version}
    for old, (new, sub) in DATASET_RENAMED.items():
        for definition in definitions.values():
            if new in definition["properties"]:
                text = f"Older spelling: write `{sub}` below `{new}`."
                definition["properties"][old] = _old({"type": ["string", "null"]}, text)
