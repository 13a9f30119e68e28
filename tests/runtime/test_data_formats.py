"""What each format makes of an example, and how it names one that it cannot read."""

from __future__ import annotations

from typing import Any

import pytest

from ft.recipes.plan import DatasetPlan
from ft.runtime import registry
from ft.runtime.data.formats.input_output import RawInputOutputPrompter
from ft.runtime.data.row import DataError, MessagesRow, Row, RowError, Segment, SegmentsRow

SPEC = DatasetPlan(
    path="inputs/data.jsonl",
    type="chat_template",
    split="train",
    name=None,
    field="text",
    field_messages="messages",
    message_property_mappings={"role": "role", "content": "content"},
    roles={
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "system": "system",
        "tool": "tool",
    },
    roles_to_train=("assistant",),
    train_on_eos="turn",
)


def rows(name: str, example: dict[str, Any], **changes: Any) -> Row:
    row: Row = registry.target(registry.FORMATS, name)(example, SPEC.model_copy(update=changes))
    return row


def messages(*pairs: tuple[str, str], **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **columns}


def test_alpaca_with_an_input() -> None:
    row = rows("alpaca", {"instruction": "Add {x}.", "input": "1 2", "output": "3"})
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert row == SegmentsRow(
        (Segment(prompt, False), Segment("3", True)), special_tokens=True, eos=True
    )


@pytest.mark.parametrize("without", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_an_input(without: dict[str, Any]) -> None:
    row = rows(
        "alpaca", {"instruction": "Name a color.", "output": "Blue.", "text": "ignored", **without}
    )
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nName a color.\n\n### Response:\n"
    )
    assert row == SegmentsRow(
        (Segment(prompt, False), Segment("Blue.", True)), special_tokens=True, eos=True
    )


def test_completion_reads_its_field() -> None:
    row = rows("completion", {"body": "Once."}, field="body")
    assert row == SegmentsRow((Segment("Once.", True),), special_tokens=True, eos=True, chunks=True)


def test_input_output_keeps_segments_as_they_are() -> None:
    example = {"segments": [{"label": False, "text": "<s>Q: "}, {"label": True, "text": "A\n</s>"}]}
    expected = (Segment("<s>Q: ", False), Segment("A\n</s>", True))
    assert rows("input_output", example) == SegmentsRow(expected, special_tokens=False, eos=False)
    assert list(RawInputOutputPrompter().build_prompt(example)) == [
        (False, "<s>Q: "),
        (True, "A\n</s>"),
    ]


def test_chat_template_renames_roles_and_properties_and_keeps_the_rest() -> None:
    example = {
        "conversations": [
            {"from": "human", "value": "Hi", "weight": 0.5, "role": "x"},
            {"from": "gpt", "value": "Hello", "reasoning_content": None},
        ],
        "source": "web",
    }
    row = rows(
        "chat_template",
        example,
        field_messages="conversations",
        message_property_mappings={"role": "from", "content": "value"},
    )
    assert row == MessagesRow(
        (
            {"role": "user", "content": "Hi", "weight": 0.5},
            {"role": "assistant", "content": "Hello"},
        ),
        tools=None,
    )


def test_chat_template_reads_messages_that_are_json_text() -> None:
    row = rows("chat_template", {"messages": '[{"role": "user", "content": "H\\u00e9"}]'})
    assert row == MessagesRow(({"role": "user", "content": "Hé"},), tools=None)


def test_a_system_column_is_the_first_message_unless_there_is_one() -> None:
    row = rows("chat_template", messages(("user", "Hi"), system="Be kind."))
    assert row == MessagesRow(
        ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}), tools=None
    )
    both = rows("chat_template", messages(("system", "Mine."), ("user", "Hi"), system="Be kind."))
    assert both == MessagesRow(
        ({"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}), tools=None
    )


def test_tool_calls_have_objects_as_arguments_and_tools_no_nulls() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    row = rows(
        "chat_template",
        {
            "messages": [
                {"role": "user", "content": "Go", "tool_calls": None},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": None}}],
        },
    )
    assert row == MessagesRow(
        (
            {"role": "user", "content": "Go"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
                ],
            },
        ),
        tools=({"type": "function", "function": {"name": "f"}},),
    )


@pytest.mark.parametrize(
    ("name", "example", "reason"),
    [
        (
            "alpaca",
            {"prompt": "x", "y": 1},
            "has no column `instruction`; its columns: `prompt`, `y`.",
        ),
        ("alpaca", {}, "has no column `instruction`; its columns: none."),
        ("alpaca", {"instruction": "x", "output": None}, "`output` holds null, expected text."),
        (
            "alpaca",
            {"instruction": ["x"], "output": ""},
            "`instruction` holds a list, expected text.",
        ),
        (
            "alpaca",
            {"instruction": "x", "output": "", "input": 4},
            "`input` holds a number, expected text.",
        ),
        ("completion", {"txt": "x"}, "has no column `text`; its columns: `txt`."),
        ("completion", {"text": True}, "`text` holds true or false, expected text."),
        ("input_output", {"segments": "x"}, "`segments` holds text, expected a list."),
        ("input_output", {}, "`segments` holds null, expected a list."),
        ("input_output", {"segments": []}, "`segments` is an empty list."),
        ("input_output", {"segments": ["x"]}, "segment 1 is text, expected an object."),
        (
            "input_output",
            {"segments": [{"label": True, "text": "x"}, {"label": 1, "text": "x"}]},
            "segment 2: `label` holds a number, expected true or false.",
        ),
        (
            "input_output",
            {"segments": [{"label": True, "txt": "x"}]},
            "segment 1: `text` holds null, expected text.",
        ),
        ("chat_template", {"chat": []}, "has no column `messages`; its columns: `chat`."),
        ("chat_template", {"messages": []}, "`messages` is an empty list."),
        (
            "chat_template",
            {"messages": {"role": "user"}},
            "`messages` holds an object, expected a list.",
        ),
        ("chat_template", {"messages": "{"}, "`messages` holds text that is not JSON: "),
        ("chat_template", {"messages": '"x"'}, "`messages` holds text, expected a list."),
        ("chat_template", {"messages": ["x"]}, "`messages`: item 1 is text, expected an object."),
        (
            "chat_template",
            messages(("user", "Hi"), ("bot", "Hello")),
            "message 2: unknown role `bot`. Known roles: `human`, `user`, `gpt`, `assistant`, `system`, "
            "`tool`; add it under `roles:`.",
        ),
        (
            "chat_template",
            {"messages": [{"role": ["user"], "content": "Hi"}]},
            "message 1: `role` holds a list. Known roles: `human`, `user`, `gpt`, `assistant`, `system`, "
            "`tool`; add it under `roles:`.",
        ),
        (
            "chat_template",
            {"messages": [{"role": "user"}]},
            "message 1: `content` holds null, expected text.",
        ),
        (
            "chat_template",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            "message 1: `content` holds a list, expected text.",
        ),
        (
            "chat_template",
            {"messages": [{"role": "gpt", "tool_calls": [{"function": {"arguments": "{"}}]}]},
            "message 1: the arguments of a tool call are not JSON: ",
        ),
        (
            "chat_template",
            {"messages": [{"role": "gpt", "tool_calls": ["f()"]}]},
            "message 1: `tool_calls`: item 1 is text, expected an object.",
        ),
        (
            "chat_template",
            messages(("user", "Hi"), tools="["),
            "`tools` holds text that is not JSON: ",
        ),
    ],
)
def test_an_example_that_cannot_be_read_says_why(
    name: str, example: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RowError) as caught:
        rows(name, example)
    text = str(caught.value)
    assert text == reason or (reason.endswith(": ") and text.startswith(reason))


def test_a_data_error_names_the_place() -> None:
    error = DataError(
        "inputs/a.jsonl", 17, "x" * 300, "is not JSON: no value at character 3", unit="line"
    )
    assert (error.path, error.row, error.excerpt, error.reason) == (
        "inputs/a.jsonl",
        17,
        "x" * 200,
        "is not JSON: no value at character 3",
    )
    assert str(error) == (
        "inputs/a.jsonl, line 17: is not JSON: no value at character 3. It begins: " + "x" * 200
    )
    assert str(DataError("inputs/a", None, "", "is empty.")) == "inputs/a: is empty."


def test_a_data_error_can_always_be_printed() -> None:
    assert str(DataError("a", 1, '{"text": "\ud83d"}', "is bad")).encode() == (
        b'a, row 1: is bad. It begins: {"text": "\\ud83d"}'
    )
