"""Named chat templates, to the byte: golden renders, and the originals where a package has them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from ft.recipes.plan import DataPlan, DatasetPlan
from ft.recipes.schema.dataset import NAMED_TEMPLATES, ChatTemplateName
from ft.runtime.data import templates
from ft.runtime.data.row import DataError

BOS_EOS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek_v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma": ("<bos>", "<eos>"),
    "gemma3": ("<bos>", "<eos>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "phi_3": ("<s>", "<|endoftext|>"),
    "phi_35": ("<s>", "<|endoftext|>"),
}
"""Of the models that a template belongs to; `<s>` and `</s>` where it writes none, or many have them."""

FILES = [name for name in NAMED_TEMPLATES if name not in templates.SAME]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}  # fmt: skip
CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}},
}


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Contents of user and assistant in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*first, *({"role": roles[i % 2], "content": text} for i, text in enumerate(contents))]


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": turns("Hi there", "Hello")},
    "with system": {"messages": turns("Hi", "Hello", system="Be kind.")},
    "two turns": {"messages": turns("One?", "1", "Two?", "2\nlines")},
    "two turns with system": {"messages": turns("One?", "1", "Two?", "2", system="S")},
    "empty": {"messages": turns("", "", "", "")},
    "empty system": {"messages": turns("Hi", "Hello", system="")},
    "white space": {"messages": turns(" Hi \n", " Hello ", "x\t", "\n\nBye ")},
    "unicode": {"messages": turns("Grüße 你好 \n\n x", "été 🙂")},
    "marks in the data": {"messages": turns("{{ x }} {% y %}", "<|im_end|> </s>")},
    "prompt": {"messages": turns("Hi"), "prompt": True},
    "prompt with system": {"messages": turns("Hi", system="Be kind."), "prompt": True},
    "prompt after two turns": {"messages": turns("One?", "1", "Two?", system="S"), "prompt": True},
    "thoughts in the text": {
        "messages": turns("One?", "<think>\nh\n</think>\n\n1", "Two?", "<think>\ni\n</think>\n\n2")},
    "thoughts": {
        "messages": [*turns("One?"), {"role": "assistant", "content": "1", "reasoning_content": "hm"}]},
    "tools": {
        "messages": [
            *turns("Weather?", system="S"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "Sunny."}],
        "tools": [WEATHER]},
}  # fmt: skip

TRL = {
    "cohere": "cohere",
    "gemma": "gemma",
    "gemma3": "gemma3",
    "gpt_oss": "gptoss",
    "llama3": "llama3",
    "phi_3": "phi3",
    "phi_35": "phi3_5",
    "qwen3": "qwen3",
    "qwen3_5": "qwen3_5_think",
    "qwen_25": "qwen2_5",
}
"""Name -> TRL's file with the publisher's template."""


def render(template: str, name: str, conversation: dict[str, Any]) -> str:
    bos, eos = BOS_EOS.get(name, ("<s>", "</s>"))
    [text], _ = render_jinja_template(
        [conversation["messages"]],
        chat_template=template,
        tools=conversation.get("tools"),
        add_generation_prompt=conversation.get("prompt", False),
        bos_token=bos,
        eos_token=eos,
    )
    assert isinstance(text, str)
    return text


def outcome(template: str, name: str, conversation: dict[str, Any]) -> str:
    """The text in quotes, or that the template refuses."""
    try:
        return json.dumps(render(template, name, conversation), ensure_ascii=False)
    except (TemplateError, TypeError) as error:
        return f"refused: {error}"


@pytest.fixture
def on_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss writes the date."""

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Day:
            return cls(2026, 11, 28, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.mark.usefixtures("on_a_day")
@pytest.mark.parametrize("name", FILES)
def test_what_a_template_writes(name: str, golden: Callable[[str, str], None]) -> None:
    lines = [
        f"{title}: {outcome(templates.text(name), name, conversation)}\n"
        for title, conversation in CONVERSATIONS.items()
    ]
    golden(f"templates/{name}.txt", "".join(lines))


@pytest.mark.parametrize("name", TRL)
def test_a_publishers_template_is_as_trl_has_it(name: str) -> None:
    original = resources.files("trl") / "chat_templates" / f"{TRL[name]}.jinja"
    assert templates.text(name) == original.read_text(encoding="utf-8")


@pytest.mark.parametrize("title", CONVERSATIONS)
def test_deepseek_v3_is_r1_without_its_thought(title: str) -> None:
    """TRL's file is R1's: it begins a thought at the prompt, and its tools have arguments as text."""
    original = (resources.files("trl") / "chat_templates" / "deepseekv3.jinja").read_text("utf-8")
    conversation = CONVERSATIONS[title]
    as_text = json.loads(json.dumps(conversation))
    for message in as_text["messages"]:
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    expected = render(original, "deepseek_v3", as_text).removesuffix("<think>\n")
    assert render(templates.text("deepseek_v3"), "deepseek_v3", conversation) == expected
    assert render(templates.text("deepseek_v3"), "deepseek_v3", as_text) == expected


MISTRAL = json.loads(
    Path(__file__).with_name("golden").joinpath("mistral-common.json").read_text("utf-8")
)


@pytest.mark.parametrize("name", MISTRAL["texts"])
@pytest.mark.parametrize("title", MISTRAL["conversations"])
def test_mistral_is_as_mistral_common_writes_it(name: str, title: str) -> None:
    """`make_mistral_golden.py` asked the package, whose tokens are what Mistral's models were trained on."""
    messages = MISTRAL["conversations"][title]
    conversation = {"messages": messages, "prompt": messages[-1]["role"] == "user"}
    assert render(templates.text(name), name, conversation) == MISTRAL["texts"][name][title]


def test_every_name_has_a_text_and_every_file_a_name() -> None:
    folder = resources.files(templates)
    files = {
        one.name.removesuffix(".jinja") for one in folder.iterdir() if one.name.endswith(".jinja")
    }
    assert files == set(FILES)
    assert set(templates.SAME) < set(NAMED_TEMPLATES)
    assert set(templates.SAME.values()) <= files
    literal, _ = get_args(ChatTemplateName)
    assert set(NAMED_TEMPLATES) < set(get_args(literal))
    for name in NAMED_TEMPLATES:
        assert templates.text(name)


# ------------------------------------------------------------------------- which one a plan means


def chosen(
    tokenizer: PreTrainedTokenizerBase | None, folder: Path, name: str, jinja: str | None = None,
    system: str | None = None,
) -> str | None:  # fmt: skip
    data = DataPlan.model_construct(default_system_message=system)
    spec = DatasetPlan.model_construct(chat_template=name, chat_template_jinja=jinja)
    return templates.template_of(spec, data, folder, tokenizer)  # type: ignore[arg-type]  # most ask nothing of it


def test_the_template_of_a_name(tmp_path: Path) -> None:
    assert chosen(None, tmp_path, "tokenizer_default") is None
    assert chosen(None, tmp_path, "llama3") == templates.text("llama3")
    assert chosen(None, tmp_path, "aya") == templates.text("cohere")
    assert chosen(None, tmp_path, "jinja", "{{ messages }}") == "{{ messages }}"
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "mine.jinja").write_text("{# mine #}")
    assert chosen(None, tmp_path, "jinja", "inputs/mine.jinja") == "{# mine #}"
    with pytest.raises(DataError, match=r"inputs/other\.jinja: the chat template cannot be read"):
        chosen(None, tmp_path, "jinja", "inputs/other.jinja")


def test_a_fallback_is_taken_where_the_tokenizer_has_no_template(
    smollm2: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tokenizer_default_fallback_llama3"
    assert chosen(smollm2, tmp_path, name) is None
    monkeypatch.setattr(smollm2, "chat_template", None)
    assert chosen(smollm2, tmp_path, name) == templates.text("llama3")


def test_a_default_system_message_is_in_the_template(tmp_path: Path) -> None:
    message = "Say \"{{ hi }}\",\n\\n 'or' {% not %} é"
    template = chosen(None, tmp_path, "chatml", system=message)
    assert template is not None
    hi = "<|im_start|>user\nHi<|im_end|>\n"
    without, own = ({"messages": turns("Hi", system=system)} for system in (None, "S"))
    assert render(template, "chatml", without) == f"<|im_start|>system\n{message}<|im_end|>\n{hi}"
    assert render(template, "chatml", own) == f"<|im_start|>system\nS<|im_end|>\n{hi}"
    assert render(template, "chatml", {"messages": [], "prompt": True}) == (
        f"<|im_start|>system\n{message}<|im_end|>\n<|im_start|>assistant\n"
    )
