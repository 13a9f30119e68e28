"""`type: chat_template`: messages with roles, in the names that the chat template knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import MessagesRow, Row, RowError, kind


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """The conversation in column `field_messages`, which may hold a list or a list as JSON text.

    Roles are renamed by `spec.roles`, `role` and `content` are taken from the properties that
    `message_property_mappings` names; other properties are kept, null ones left out. A column
    `system` with text becomes the first message, unless the conversation begins with a system one.
    Raises: RowError naming the message, counted from 1.
    """
    if spec.field_messages not in example:
        columns = ", ".join(f"`{name}`" for name in example) or "none"
        raise RowError(f"has no column `{spec.field_messages}`; its columns: {columns}.")
    found = _objects(example[spec.field_messages], f"`{spec.field_messages}`")
    if not found:
        raise RowError(f"`{spec.field_messages}` is an empty list.")
    messages = [_message(number, message, spec) for number, message in enumerate(found, start=1)]
    system = example.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    tools = _objects(example["tools"], "`tools`") if example.get("tools") else None
    return MessagesRow(tuple(messages), tuple(_without_nulls(t) for t in tools) if tools else None)


def _objects(value: object, what: str) -> list[Mapping[str, Any]]:
    """A list of objects, from one or from its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{what} holds text that is not JSON: {error}.") from error
    if not isinstance(value, list | tuple):
        raise RowError(f"{what} holds {kind(value)}, expected a list.")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            raise RowError(f"{what}: item {number} is {kind(item)}, expected an object.")
    return list(value)


def _message(number: int, found: Mapping[str, Any], spec: DatasetPlan) -> dict[str, Any]:
    names = spec.message_property_mappings
    properties = {ours: found.get(theirs) for ours, theirs in names.items()}
    others = {key: value for key, value in found.items() if key not in names.values()}
    message = _without_nulls({**others, **properties})
    if message.get("tool_calls"):
        calls = _objects(message["tool_calls"], f"message {number}: `tool_calls`")
        message["tool_calls"] = [_tool_call(number, call) for call in calls]
    role = message.get("role")
    if not isinstance(role, str) or role not in spec.roles:
        known = ", ".join(f"`{name}`" for name in spec.roles)
        said = (
            f"unknown role `{role}`"
            if isinstance(role, str)
            else f"`{names['role']}` holds {kind(role)}"
        )
        raise RowError(f"message {number}: {said}. Known roles: {known}; add it under `roles:`.")
    message["role"] = spec.roles[role]
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        # Templates join it to text: null would break them, and both mean "said nothing".
        message["content"] = ""
    elif not isinstance(content, str):
        raise RowError(
            f"message {number}: `{names['content']}` holds {kind(content)}, expected text."
        )
    return message


def _tool_call(number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object: a template would put quotes around their JSON text."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError) as error:
        raise RowError(
            f"message {number}: the arguments of a tool call are not JSON: {error}."
        ) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _without_nulls(value: Any) -> Any:
    """Arrow fills in every property that any row has; a template would take such a null for a value."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value
