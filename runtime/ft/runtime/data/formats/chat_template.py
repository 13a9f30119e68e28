"""`type: chat_template`: messages with roles, in the names that the chat template knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.content import (
    Content,
    flag,
    from_offsets,
    from_parts,
    objects,
    parsed,
    split_thoughts,
    without_nulls,
)
from ft.runtime.data.row import Detail, MessagesRow, Row, RowError, is_missing, kind, optional_text

ASSISTANT = "assistant"
SYSTEM = "system"
PLAIN = ("role", "content")


class _Message(NamedTuple):
    properties: dict[str, Any]
    train: bool | None
    details: tuple[Detail, ...] | None


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """The conversation in column `field_messages`, which may hold a list or a list as JSON text.

    Roles are renamed by `spec.roles`, properties by `message_property_mappings`; the others are kept,
    null ones left out. Text in column `field_system` becomes the first message, unless the conversation
    begins with a system one; `drop_system_message` leaves both out.
    Raises: RowError naming the message, counted from 1.
    """
    if spec.field_messages not in example:
        columns = ", ".join(f"`{name}`" for name in example) or "none"
        raise RowError(f"has no column `{spec.field_messages}`; its columns: {columns}.")
    found = objects(example[spec.field_messages], f"`{spec.field_messages}`")
    if not found:
        raise RowError(f"`{spec.field_messages}` is an empty list.")
    messages = _plain(found, spec)
    if messages is None:
        messages = [_message(number, one, spec) for number, one in enumerate(found, start=1)]
    system = optional_text(example, spec.field_system)
    if system and messages[0].properties["role"] != SYSTEM:
        messages.insert(0, _Message({"role": SYSTEM, "content": system}, None, None))
    if spec.drop_system_message:
        messages = [one for one in messages if one.properties["role"] != SYSTEM]
        if not messages:
            raise RowError("has nothing but a system message, and `drop_system_message` is set.")
    train = tuple(one.train for one in messages)
    details = tuple(one.details for one in messages)
    return MessagesRow(
        tuple(one.properties for one in messages),
        _tools(example.get(spec.field_tools), f"`{spec.field_tools}`"),
        train if any(one is not None for one in train) else (),
        details if any(one is not None for one in details) else (),
    )


def _plain(found: list[Mapping[str, Any]], spec: DatasetPlan) -> list[_Message] | None:
    """Messages of a role and a text and nothing else, as most are; None if one of them is not."""
    names, roles = spec.message_property_mappings, spec.roles
    if spec.split_thinking or len(names) != len(PLAIN):
        return None
    role_name, content_name = names["role"], names["content"]
    fields = {spec.field_thinking, spec.message_field_training, spec.message_field_training_detail}
    if fields & {role_name, content_name}:
        return None
    messages = []
    for message in found:
        role, content = message.get(role_name), message.get(content_name)
        if len(message) != len(PLAIN) or type(content) is not str or type(role) is not str:
            return None
        if role not in roles:
            return None
        messages.append(_Message({"role": roles[role], "content": content}, None, None))
    return messages


def _tools(value: object, what: str) -> tuple[Mapping[str, Any], ...] | None:
    """Tools as objects; those that stand in JSON text keep the nulls that somebody wrote there."""
    if not value or is_missing(value):
        return None
    listed = objects(value, what)
    tools = listed if isinstance(value, str) else without_nulls(listed)
    return tuple(_tool(number, tool, what) for number, tool in enumerate(tools, start=1)) or None


def _tool(number: int, tool: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """A tool with its `parameters` as an object, also where they are JSON text."""
    function = tool.get("function")
    inner = function if isinstance(function, Mapping) else tool
    if not isinstance(inner.get("parameters"), str):
        return tool
    here = f"{what}: item {number}: `parameters`"
    inner = {**inner, "parameters": parsed(inner["parameters"], here)}
    return {**tool, "function": inner} if isinstance(function, Mapping) else inner


def _message(number: int, found: Mapping[str, Any], spec: DatasetPlan) -> _Message:
    here = f"message {number}"
    properties = _renamed(found, spec)
    properties["role"] = _role(here, properties.get("role"), spec)
    if properties.get("tool_calls"):
        calls = objects(properties["tool_calls"], f"{here}: `tool_calls`")
        properties["tool_calls"] = [_tool_call(here, call) for call in calls]
    thoughts = spec.template_thinking_key
    if isinstance(properties.get(thoughts), list | tuple):
        properties[thoughts] = _thoughts(here, properties[thoughts], spec.field_thinking)
    content = _content(here, properties, spec)
    details = _details(here, found, content, spec)
    properties["content"] = content.text
    if spec.split_thinking and properties["role"] == ASSISTANT and not properties.get(thoughts):
        _split_off(here, properties, thoughts, details)
    field = spec.message_field_training
    train = flag(found.get(field), f"{here}: `{field}`") if field else None
    return _Message(properties, train, details)


def _renamed(found: Mapping[str, Any], spec: DatasetPlan) -> dict[str, Any]:
    """The properties in the names of the template, without nulls and without what only says what is trained."""
    names = spec.message_property_mappings
    flags = {spec.message_field_training, spec.message_field_training_detail}
    others = {
        key: value
        for key, value in found.items()
        if key not in names.values() and key != spec.field_thinking and key not in flags
    }
    ours = {ours: found.get(theirs) for ours, theirs in names.items()}
    if spec.field_thinking in found and spec.template_thinking_key not in names:
        ours[spec.template_thinking_key] = found[spec.field_thinking]
    return without_nulls({**others, **ours})


def _role(here: str, role: object, spec: DatasetPlan) -> str:
    if isinstance(role, str) and role in spec.roles:
        return spec.roles[role]
    known = ", ".join(f"`{name}`" for name in spec.roles)
    theirs = spec.message_property_mappings["role"]
    said = f"unknown role `{role}`" if isinstance(role, str) else f"`{theirs}` holds {kind(role)}"
    raise RowError(f"{here}: {said}. Known roles: {known}; add it under `roles:`.")


def _content(here: str, properties: Mapping[str, Any], spec: DatasetPlan) -> Content:
    value = properties.get("content")
    theirs = spec.message_property_mappings["content"]
    if isinstance(value, list | tuple):
        return from_parts(objects(value, f"{here}: `{theirs}`"), f"{here}: `{theirs}`")
    if isinstance(value, str):
        return Content(value, None)
    if value is None and (
        properties.get("tool_calls") or properties.get(spec.template_thinking_key)
    ):
        # Templates join it to text: null would break them, and both mean "said nothing".
        return Content("", None)
    raise RowError(f"{here}: `{theirs}` holds {kind(value)}, expected text.")


def _details(
    here: str, found: Mapping[str, Any], content: Content, spec: DatasetPlan
) -> tuple[Detail, ...] | None:
    """Which parts are trained, by the content itself or by the property that the recipe names."""
    field = spec.message_field_training_detail
    value = found.get(field) if field else None
    what = f"{here}: `{field}`"
    listed = [] if is_missing(value) else objects(value, what)
    if not listed:
        return content.details
    if content.details is not None:
        raise RowError(f"{what} says what is trained, and so do the parts of its content.")
    return from_offsets(without_nulls(listed), len(content.text), what)


def _split_off(
    here: str, properties: dict[str, Any], thoughts: str, details: tuple[Detail, ...] | None
) -> None:
    split = split_thoughts(properties["content"])
    if split is None:
        return
    if details is not None:
        raise RowError(
            f"{here}: parts of its content are trained, so its thoughts cannot be split off."
        )
    properties[thoughts], properties["content"] = split


def _thoughts(here: str, value: object, field: str) -> str:
    thoughts = from_parts(objects(value, f"{here}: `{field}`"), f"{here}: `{field}`")
    if thoughts.details is not None:
        raise RowError(f"{here}: `{field}`: parts of thoughts cannot be trained apart yet.")
    return thoughts.text


def _tool_call(here: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object: a template would put quotes around their JSON text."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = parsed(function["arguments"], "")
    except RowError as error:
        reason = error.__cause__
        raise RowError(f"{here}: the arguments of a tool call are not JSON: {reason}.") from error
    return {**call, "function": {**function, "arguments": arguments}}
