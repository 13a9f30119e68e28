"""What each format makes of an example, and how it names one that it cannot read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.recipes.plan import DatasetPlan, UserDefinedPlan
from ft.runtime import registry
from ft.runtime.data.content import from_offsets, from_parts
from ft.runtime.data.formats import alpaca, alpaca_w_system
from ft.runtime.data.formats.input_output import RawInputOutputPrompter
from ft.runtime.data.row import (
    DataError,
    Detail,
    MessagesRow,
    Row,
    RowError,
    Segment,
    SegmentsRow,
    TokensRow,
)

SPEC = DatasetPlan(
    path="inputs/data.jsonl",
    type="chat_template",
    user_defined=None,
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
    train_on_eot="turn",
    message_field_training=None,
    message_field_training_detail=None,
    field_system="system",
    field_tools="tools",
    field_thinking="reasoning_content",
    template_thinking_key="reasoning_content",
    split_thinking=False,
    drop_system_message=False,
    chat_template="tokenizer_default",
    chat_template_jinja=None,
)


def rows(name: str, example: dict[str, Any], **changes: Any) -> Row:
    spec = SPEC.model_copy(update={"type": name, **changes})
    row: Row = registry.target(registry.FORMATS, name)(example, spec)
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


TASK = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."
CONCISE = "Below is an instruction from a USER that describes a task"
ADD = {"instruction": "Add {x}.", "output": "3"}
ADD_2 = {**ADD, "input": "1 2"}
ORCA = {"system_prompt": "Be kind.", "question": "Add.", "response": "3"}

WORDED: list[tuple[str, dict[str, Any], str, str]] = [
    ("alpaca:instruct", ADD, f"{TASK}. {REQUEST}\n\n### Instruction:\nAdd {{x}}.\n\n### Response:\n", "3"),
    ("alpaca:chat", ADD, f"SYSTEM: {TASK}. {REQUEST}\nUSER: Add {{x}}.\nASSISTANT:", "3"),
    ("alpaca:chat", ADD_2,
     f"SYSTEM: {TASK}, paired with an input that provides further context. {REQUEST}\n"
     "USER: Add {x}.\n1 2\nASSISTANT:", "3"),
    ("alpaca:chatml", ADD,
     f"<|im_start|>system\n{TASK}. {REQUEST}<|im_end|>\n<|im_start|>user\nAdd {{x}}.<|im_end|>\n"
     "<|im_start|>assistant\n", "3"),
    ("alpaca:chatml", ADD_2,
     f"<|im_start|>system\n{TASK}, paired with an input that provides further context. {REQUEST}<|im_end|>\n"
     "<|im_start|>user\nAdd {x}.\n1 2<|im_end|>\n<|im_start|>assistant\n", "3"),
    ("alpaca:phi", ADD,
     f"<|system|>\n{TASK}. {REQUEST}<|end|>\n<|user|>\nAdd {{x}}.<|end|>\n<|assistant|>\n", "3"),
    ("alpaca:phi", ADD_2,
     f"<|system|>\n{TASK}, paired with an input that provides further context. {REQUEST}<|end|>\n"
     "<|user|>\nAdd {x}.<|end|>1 2<|assistant|>", "3"),
    ("alpaca_instruct.load_no_prompt", ADD_2,
     "### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n### Response:\n", "3"),
    ("alpaca_chat.load_no_prompt", ADD, "USER: Add {x}.\nASSISTANT:", "3"),
    ("alpaca_chat.load_concise", ADD,
     f"SYSTEM: {CONCISE}. The ASSISTANT writes a response that appropriately and concisely completes the "
     "request.\n\n\nUSER: Add {x}.\nASSISTANT:", "3"),
    ("alpaca_chat.load_concise", ADD_2,
     f"SYSTEM: {CONCISE}, paired with an input that provides further context. The ASSISTANT writes a response that "
     "concisely and appropriately completes the request.\n\n\nUSER: Add {x}.\n1 2\nASSISTANT:", "3"),
    ("alpaca_chat.load_qa", {"question": "Why?", "answer": "So.", "input": "ignored"},
     f"SYSTEM: {CONCISE}. The ASSISTANT writes a response that appropriately and concisely completes the "
     "request.\n\n\nUSER: Why?\nASSISTANT:", "So."),
    ("alpaca_chat.load_camel_ai", {"message_1": "Why?", "message_2": "So."},
     f"SYSTEM: {CONCISE}. The ASSISTANT writes a response that appropriately and concisely completes the "
     "request.\n\n\nUSER: Why?\nASSISTANT:", "So."),
    ("gpteacher", {"instruction": "Add.", "input": None, "response": "3"},
     f"{TASK}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("oasst", {"INSTRUCTION": "Add.", "RESPONSE": "3"},
     f"{TASK}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("jeopardy", {"question": "It is wet.", "category": "Nature", "answer": "water"},
     f"{TASK}, paired with an input that provides further context. {REQUEST}\n\n"
     "### Instruction:\nIt is wet.\n\n### Input:\nNature\n\n### Response:\n", "what is water"),
    ("alpaca_w_system", {**ADD, "system": "Be {y}."}, "SYSTEM: Be {y}.\nUSER: Add {x}.\nASSISTANT:", "3"),
    ("alpaca_w_system.load_chat", {**ADD_2, "system": ""}, "USER: Add {x}.\n1 2\nASSISTANT:", "3"),
    ("alpaca_w_system.load_open_orca", ORCA, "### System:\nBe kind.\n### Human:\nAdd.\n### Assistant:\n", "3"),
    ("alpaca_w_system.load_open_orca", {**ORCA, "system_prompt": None}, "### Human:\nAdd.\n### Assistant:\n", "3"),
    ("alpaca_w_system.load_open_orca_chatml", ORCA,
     "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n", "3"),
    ("orcamini", ORCA, "### System:\nBe kind.\n\n### User:\nAdd.\n\n### Response:\n", "3"),
    ("orcamini", {**ORCA, "system_prompt": ""}, "### System:\n\n\n### User:\nAdd.\n\n### Response:\n", "3"),
    ("explainchoice", {"question": "Which?", "choices": ["a", "b"], "solution": None, "explanation": "b, as"},
     "Choose the answer that best answers the question. Explain your reasoning.\n\n\n"
     '### Instruction:\nWhich?\n\n### Input:\n- "a"\n- "b"\n\n### Response:\n', "b, as"),
    ("concisechoice", {"question": "Which?", "choices": ["a", "b"], "solution": "b"},
     "Choose the answer that best answers the question. Be concise in your response.\n\n"
     'USER: Which?\n- "a"\n- "b"\nASSISTANT:', "b"),
    ("summarizetldr", {"article": "Long.", "summary": "Short."},
     "USER: Summarize the following article as a TL;DR.\nLong.\nASSISTANT:", "Short."),
    ("context_qa", {"article": "Text.", "question": "Why?", "answer": "So."},
     "SYSTEM: Use the following contextual information to concisely answer the question.\n\n"
     "USER: Text.\n===\nWhy?\nASSISTANT:", "So."),
    ("context_qa.load_v2", {"context": "Text.", "question": "Why?", "answer": "So."},
     "Context: Text.\nQuestion: Why?\n", "Answer: So."),
    ("context_qa.load_404", {"article": "Text.", "unanswerable_question": "Why?"},
     "SYSTEM: Use the following contextual information to concisely answer the question.\n\n"
     "USER: Text.\n===\nWhy?\nASSISTANT:",
     "The context provided does not contain any information about your inquiry. "
     "Therefore, I'm unable to answer your question based on the given context."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "example", "prompt", "response"), WORDED)
def test_a_format_is_worded_as_axolotls(
    name: str, example: dict[str, Any], prompt: str, response: str
) -> None:
    expected = (Segment(prompt, False), Segment(response, True))
    assert rows(name, example) == SegmentsRow(expected, special_tokens=True, eos=True)


def test_every_instruction_format_was_looked_at() -> None:
    same = {"alpaca", "alpaca_chat", "alpaca_instruct"}
    types = {*alpaca.TYPES, *alpaca_w_system.TYPES} - same
    assert types <= {name for name, *_ in WORDED}
    assert (
        alpaca.TYPES["alpaca"] == alpaca.TYPES["alpaca_instruct"] == alpaca.TYPES["alpaca:instruct"]
    )
    assert alpaca.TYPES["alpaca_chat"] == alpaca.TYPES["alpaca:chat"]


OWN = UserDefinedPlan(
    system_prompt="Be kind.",
    system_format="<{system}>",
    format="{instruction} | {input}:",
    no_input_format="{instruction}:",
    field_instruction="ask",
    field_input="about",
    field_output="reply",
    field_system="persona",
)


@pytest.mark.parametrize(
    ("example", "prompt"),
    [
        ({"ask": "Why {it}?", "reply": "So."}, "<Be kind.>Why {it}?:"),
        ({"ask": "Why?", "about": "x", "reply": "So.", "persona": "P"}, "<P>Why? | x:"),
        ({"ask": "Why?", "about": "", "reply": "So.", "persona": None}, "<Be kind.>Why?:"),
    ],
)
def test_a_format_of_ones_own(example: dict[str, Any], prompt: str) -> None:
    row = rows("user_defined", example, user_defined=OWN)
    expected = (Segment(prompt, False), Segment("So.", True))
    assert row == SegmentsRow(expected, special_tokens=True, eos=True)


def test_a_format_of_ones_own_that_cannot_be_filled_in() -> None:
    own = OWN.model_copy(update={"no_input_format": "{instruction} {output}"})
    with pytest.raises(RowError, match=r"the format of the recipe cannot be filled in: 'output'\."):
        rows("user_defined", {"ask": "Why?", "reply": "So."}, user_defined=own)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, TokensRow([5, 6, 7], [-100, 6, 7])),
        ({"input_ids": [], "labels": []}, TokensRow([], [])),
        (
            {
                "input_ids": [0, 5, 6, 0, 0],
                "attention_mask": [0, 1, 1, 0, 0],
                "labels": [-100, -100, 6, -100, -100],
            },
            TokensRow([5, 6], [-100, 6]),
        ),
        (
            {"input_ids": [0], "attention_mask": [0], "labels": [-100]},
            TokensRow([], []),
        ),
    ],
)
def test_rows_that_are_tokens(example: dict[str, Any], expected: TokensRow) -> None:
    assert rows("pretokenized", example) == expected


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


def test_any_property_can_be_renamed_and_a_column_be_named() -> None:
    example = {
        "messages": [
            {"from": "user", "value": "Hi", "calls": None},
            {"from": "gpt", "value": "", "calls": [{"name": "f", "arguments": "{}"}], "name": "x"},
        ],
        "persona": "Be kind.",
        "functions": '[{"name": "f", "parameters": "{\\"type\\": \\"object\\"}", "default": null}]',
        "system": 3,
        "tools": 3,
    }
    row = rows(
        "chat_template",
        example,
        message_property_mappings={"role": "from", "content": "value", "tool_calls": "calls"},
        field_system="persona",
        field_tools="functions",
    )
    assert row == MessagesRow(
        (
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "f", "arguments": "{}"}],
                "name": "x",
            },
        ),
        # A null that somebody wrote into the JSON text means something.
        tools=({"name": "f", "parameters": {"type": "object"}, "default": None},),
    )


def test_system_messages_can_be_dropped() -> None:
    hi = {"role": "user", "content": "Hi"}
    for example in (
        messages(("system", "Be kind."), ("user", "Hi")),
        messages(("user", "Hi"), system="Be kind."),
        messages(("user", "Hi"), ("system", "Be kind.")),
    ):
        assert rows("chat_template", example, drop_system_message=True) == MessagesRow((hi,), None)


def test_thoughts_get_the_name_that_the_template_knows() -> None:
    said = {"role": "gpt", "content": "Yes", "why": "Hm.", "thinking": None}
    names = {"field_thinking": "why", "template_thinking_key": "thinking"}
    row = rows("chat_template", {"messages": [said]}, **names)
    assert row == MessagesRow(({"role": "assistant", "content": "Yes", "thinking": "Hm."},), None)
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "m."}]
    row = rows("chat_template", {"messages": [{**said, "why": parts, "content": None}]}, **names)
    assert row == MessagesRow(({"role": "assistant", "content": "", "thinking": "Hm."},), None)


@pytest.mark.parametrize(
    ("content", "thoughts", "rest"),
    [
        ("<think>\nHm.\n</think>\n\nYes ", "Hm.", "Yes "),
        ("\n<reasoning>Hm.</reasoning>Yes", "Hm.", "Yes"),
        (
            "<|begin_of_thought|>Hm.<|end_of_thought|>\n\n<|begin_of_solution|>\nYes\n<|end_of_solution|>",
            "Hm.",
            "Yes",
        ),
        ("<think></think>Yes", "", "Yes"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("No <think>Hm.</think>", None, "No <think>Hm.</think>"),
        ("<think>Hm.", None, "<think>Hm."),
        ("Yes", None, "Yes"),
    ],
)
def test_thoughts_are_split_off(content: str, thoughts: str | None, rest: str) -> None:
    example = messages(("user", content), ("gpt", content))
    row = rows("chat_template", example, split_thinking=True, template_thinking_key="thinking")
    said = {"role": "assistant", "content": rest}
    if thoughts is not None:
        said["thinking"] = thoughts
    assert row == MessagesRow(({"role": "user", "content": content}, said), None)
    assert rows("chat_template", example) != row or thoughts is None


def test_thoughts_that_are_there_are_not_looked_for() -> None:
    said = {"role": "gpt", "content": "<think>a</think>b", "reasoning_content": "c"}
    row = rows("chat_template", {"messages": [said]}, split_thinking=True)
    assert row == MessagesRow(({**said, "role": "assistant"},), None)


def test_a_message_says_whether_it_is_trained() -> None:
    flags = [None, True, False, 1, 0.0, float("nan")]
    example = {"messages": [{"role": "user", "content": "x", "on": flag} for flag in flags]}
    row = rows("chat_template", example, message_field_training="on")
    plain = {"role": "user", "content": "x"}
    assert row == MessagesRow((plain,) * 6, None, train=(None, True, False, True, False, None))
    without = rows("chat_template", messages(("user", "x")), message_field_training="on")
    assert without == MessagesRow((plain,), None)
    first = messages(("user", "x"), system="S")
    first["messages"][0]["on"] = True
    row = rows("chat_template", first, message_field_training="on")
    assert isinstance(row, MessagesRow)
    assert row.train == (None, True)


def test_a_message_says_which_parts_are_trained() -> None:
    detail = [
        {"begin_offset": 6, "end_offset": 8, "train": True},
        {"begin_offset": 0, "end_offset": 3, "train": True},
    ]
    said = {"role": "gpt", "content": "Hello there", "parts": detail}
    row = rows("chat_template", {"messages": [said]}, message_field_training_detail="parts")
    # Both ends are included in the data; what nobody names is not trained.
    details = (Detail(0, 4, True), Detail(4, 6, False), Detail(6, 9, True), Detail(9, 11, False))
    message = {"role": "assistant", "content": "Hello there"}
    assert row == MessagesRow((message,), None, details=(details,))
    for none in (None, [], "[]"):
        row = rows(
            "chat_template",
            {"messages": [{**said, "parts": none}]},
            message_field_training_detail="parts",
        )
        assert row == MessagesRow((message,), None)


def test_content_may_come_in_parts() -> None:
    parts = [
        {"type": "text", "text": "Hello ", "train": False},
        {"type": "text", "content": "there", "text": None},
        {"type": "text", "value": ""},
        {"value": "!", "weight": 0},
        {"text": "?", "weight": 1.0},
    ]
    example = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    example["messages"].append({"role": "gpt", "content": parts})
    # Parts that say nothing are trained, once one says something.
    details = (
        Detail(0, 6, False),
        Detail(6, 11, True),
        Detail(11, 12, False),
        Detail(12, 13, True),
    )
    assert rows("chat_template", example) == MessagesRow(
        ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there!?"}),
        None,
        details=(None, details),
    )


TEXTS = st.text(max_size=5)
PARTS = st.lists(
    st.tuples(TEXTS, st.sampled_from([True, False, None])), min_size=1, max_size=5
)  # fmt: skip


@given(PARTS)
def test_details_cover_the_content(parts: list[tuple[str, bool | None]]) -> None:
    content = from_parts([{"text": text, "train": train} for text, train in parts], "x")
    assert content.text == "".join(text for text, _ in parts)
    if all(train is None for _, train in parts):
        assert content.details is None
        return
    assert content.details is not None
    assert "".join(content.text[d.begin : d.end] for d in content.details) == content.text
    trained = "".join(content.text[d.begin : d.end] for d in content.details if d.train)
    assert trained == "".join(text for text, train in parts if train is not False)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n)), st.randoms())
    )
)
def test_named_parts_and_the_rest_cover_the_content(drawn: tuple[int, set[int], Any]) -> None:
    length, borders, random = drawn
    cuts = sorted(borders)
    spans = [(a, b - 1, random.random() < 0.5) for a, b in pairwise(cuts)]
    named = [{"begin_offset": a, "end_offset": b, "train": t} for a, b, t in spans]
    random.shuffle(named)
    details = from_offsets(named, length, "x")
    assert [c for d in details for c in range(d.begin, d.end)] == list(range(length))
    trained = {c for d in details if d.train for c in range(d.begin, d.end)}
    assert trained == {c for a, b, t in spans if t for c in range(a, b + 1)}


def test_what_arrow_fills_in_changes_nothing() -> None:
    """A table has every property in every row."""
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
    first = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "S", "train": False}]},
            {"role": "user", "content": [{"type": "text", "value": "Hi"}], "on": True},
            {"role": "gpt", "content": None, "tool_calls": [call]},
            {"role": "gpt", "content": [{"text": "Yes"}], "reasoning_content": "Hm."},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {"x": 1}}}}],
    }
    second = {
        "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
        "tools": [{"type": "function", "function": {"name": "g", "strict": True}}],
        "system": "S",
    }
    filled = pa.Table.from_pylist([{**first, "system": None}, second]).to_pylist()
    for plain, full in zip((first, second), filled, strict=True):
        assert full != plain
        one, other = (
            rows("chat_template", row, message_field_training="on") for row in (plain, full)
        )
        assert one == other
        assert repr(one) == repr(other)


@pytest.mark.parametrize(
    ("content", "changes", "reason"),
    [
        ([{"type": "image"}], {}, "part 1 is of type `image`; only text can be trained on yet."),
        (
            [{"text": "a"}, {"type": "text", "txt": "b"}],
            {},
            "part 2 has no text; it may stand in `text`, `content` or `value`.",
        ),
        ([{"text": 3}], {}, "part 1: `text` holds a number, expected text."),
        (["a"], {}, "item 1 is text, expected an object."),
        (
            [{"text": "a", "weight": 0.5}],
            {},
            "part 1: `weight` holds 0.5, expected true or false.",
        ),
        (
            [{"text": "<think>a</think>b", "train": True}],
            {"split_thinking": True},
            "parts of its content are trained, so its thoughts cannot be split off.",
        ),
    ],
)
def test_content_that_cannot_be_read_says_why(
    content: Any, changes: dict[str, Any], reason: str
) -> None:
    example = {"messages": [{"role": "user", "content": "x"}, {"role": "gpt", "content": content}]}
    with pytest.raises(RowError) as caught:
        rows("chat_template", example, **changes)
    assert str(caught.value).startswith("message 2: ")
    assert str(caught.value).endswith(reason)


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        ({"begin_offset": 0, "end_offset": 5, "train": True},
         "part 1 goes from 0 to 5, but the content has the characters 0 to 4."),
        ({"begin_offset": 3, "end_offset": 2, "train": True},
         "part 1 goes from 3 to 2, but the content has the characters 0 to 4."),
        ({"begin_offset": -1, "end_offset": 2, "train": True},
         "part 1: `begin_offset` holds -1, expected a character's number, from 0."),
        ({"begin_offset": 0, "end_offset": 1.5, "train": True},
         "part 1: `end_offset` holds a number, expected a character's number, from 0."),
        ({"begin_offset": 0, "end_offset": 1}, "part 1 has no `train`."),
        ({"begin_offset": 0, "end_offset": 1, "train": "yes"},
         "part 1: `train` holds text, expected true or false."),
    ],
)  # fmt: skip
def test_details_that_cannot_be_used_say_why(detail: dict[str, Any], reason: str) -> None:
    example = {"messages": [{"role": "gpt", "content": "Hello", "parts": [detail]}]}
    with pytest.raises(RowError) as caught:
        rows("chat_template", example, message_field_training_detail="parts")
    assert str(caught.value) == f"message 1: `parts`: {reason}"


def test_parts_must_not_overlap_or_be_named_twice() -> None:
    whole = {"begin_offset": 0, "end_offset": 4, "train": True}
    message = {"role": "gpt", "content": "Hello", "parts": [whole, {**whole, "begin_offset": 4}]}
    with pytest.raises(RowError, match="message 1: `parts`: two parts overlap at character 4"):
        rows("chat_template", {"messages": [message]}, message_field_training_detail="parts")
    message = {**message, "content": [{"text": "Hello", "train": True}], "parts": [whole]}
    with pytest.raises(RowError, match="and so do the parts of its content"):
        rows("chat_template", {"messages": [message]}, message_field_training_detail="parts")


@pytest.mark.parametrize(
    ("name", "example", "reason"),
    [
        (
            "gpteacher",
            {"instruction": "x"},
            "has no column `response`; its columns: `instruction`.",
        ),
        (
            "explainchoice",
            {"question": "x", "choices": "a"},
            "`choices` holds text, expected a list.",
        ),
        (
            "explainchoice",
            {"question": "x", "choices": ["a", 3]},
            "`choices`: item 2 is a number, expected text.",
        ),
        (
            "explainchoice",
            {"question": "x", "choices": ["a"]},
            "has no column `explanation`; its columns: `question`, `choices`.",
        ),
        ("alpaca_w_system", {**ADD, "system": 3}, "`system` holds a number, expected text."),
        (
            "pretokenized",
            {"text": "x"},
            "has no column `input_ids`; its columns: `text`. `type:` is not set.",
        ),
        (
            "pretokenized",
            {"input_ids": [1, 2], "labels": [1]},
            "`input_ids` has 2 items, `labels` has 1.",
        ),
        (
            "pretokenized",
            {"input_ids": [1, 2], "labels": [1, 3]},
            "`labels`: item 2 is 3, expected -100 or its token, 2.",
        ),
        (
            "pretokenized",
            {"input_ids": [1, 2.5], "labels": [1, 2]},
            "`input_ids`: item 2 is 2.5, expected a whole number.",
        ),
        (
            "pretokenized",
            {"input_ids": "1 2", "labels": []},
            "`input_ids` holds text, expected a list of numbers.",
        ),
        (
            "pretokenized",
            {"input_ids": [-1], "labels": [-1]},
            "`input_ids`: item 1 is -1, no token.",
        ),
        (
            "pretokenized",
            {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 0, 1]},
            "`attention_mask` has zeros between ones; only padding at the ends can be left out.",
        ),
        (
            "pretokenized",
            {"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 0]},
            "`attention_mask` is 0 where `labels` has a token to train on.",
        ),
        (
            "pretokenized",
            {"input_ids": [1], "labels": [1], "attention_mask": [2]},
            "`attention_mask` holds something else than 0 and 1.",
        ),
        (
            "chat_template",
            messages(("user", "Hi"), system=3),
            "`system` holds a number, expected text.",
        ),
        (
            "chat_template",
            messages(("user", "Hi"), tools=[{"function": {"parameters": "{"}}]),
            "`tools`: item 1: `parameters` holds text that is not JSON: ",
        ),
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
            {"messages": [{"role": "user", "content": {"text": "Hi"}}]},
            "message 1: `content` holds an object, expected text.",
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
