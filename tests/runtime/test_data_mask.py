"""Masks of conversations, with the tokenizer of SmolLM2. Whole lists; X is a token without a label."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from ft.recipes.plan import DatasetPlan
from ft.runtime.data import templates
from ft.runtime.data.mask import ChatTokenizer
from ft.runtime.data.row import Detail, MessagesRow, RowError
from ft.runtime.data.tokenize import IGNORED, Tokens

X = IGNORED
SPEC = DatasetPlan(
    path="inputs/data.jsonl",
    type="chat_template",
    user_defined=None,
    split="train",
    name=None,
    field="text",
    field_messages="messages",
    message_property_mappings={"role": "role", "content": "content"},
    roles={"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
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


def conversation(*pairs: tuple[str, str]) -> MessagesRow:
    return MessagesRow(
        tuple({"role": role, "content": content} for role, content in pairs), tools=None
    )


def tokens(
    tokenizer: PreTrainedTokenizerBase,
    row: MessagesRow,
    template: str | None = None,
    *,
    train_on_inputs: bool = False,
    **changes: Any,
) -> Tokens:
    spec = SPEC.model_copy(update=changes)
    return ChatTokenizer(tokenizer, template).tokens(row, spec, train_on_inputs=train_on_inputs)


def trained(tokenizer: PreTrainedTokenizerBase, found: Tokens) -> list[str]:
    """The texts that have labels, one for each run of tokens."""
    runs: list[list[int]] = [[]]
    for token, label in zip(found.input_ids, found.labels, strict=True):
        assert label in (token, X)
        if label != X:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


# What the template of SmolLM2 puts in front of a conversation without a system message.
SYSTEM = [
    *(1, 9690, 198),  # <|im_start|> "system" "\n"
    *(
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
    ),  # "You are a helpful … SmolLM,"
    *(7018, 411, 407, 19712, 8182),  # " trained by Hugging Face"
    *(2, 198),  # <|im_end|> "\n"
]
NO_SYSTEM = [X] * 21
USER = [1, 4093, 198]  # <|im_start|> "user" "\n"
ASSISTANT = [1, 520, 9531, 198]  # <|im_start|> "ass" "istant" "\n"
END = [2, 198]  # <|im_end|> "\n"
HI, HELLO, BYE, CIAO = (
    [26843],
    [19556, 17],
    [3087, 85],
    [51, 28467, 30],
)  # "Hello" "!", "By" "e", "C" "iao" "."

TWO_TURNS = conversation(
    ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "Ciao.")
)
TWO_TURNS_IDS = [
    *SYSTEM,
    *(*USER, *HI, *END),
    *(*ASSISTANT, *HELLO, *END),
    *(*USER, *BYE, *END),
    *(*ASSISTANT, *CIAO, *END),
]


@pytest.mark.parametrize(
    ("train_on_eos", "user_end", "first_end", "last_end"),
    [
        ("turn", X, 2, 2),
        ("all", 2, 2, 2),
        ("last", X, X, 2),
        ("none", X, X, X),
    ],
)
def test_contents_of_the_assistant_and_terminators_are_trained(
    smollm2: PreTrainedTokenizerBase,
    train_on_eos: str,
    user_end: int,
    first_end: int,
    last_end: int,
) -> None:
    labels = [
        *NO_SYSTEM,  # of the template, not a message: not even `all` trains its end
        *(X, X, X, X, user_end, X),  # <|im_start|> user \n Hi <|im_end|> \n
        *(X, X, X, X, 19556, 17, first_end, X),  # <|im_start|> ass istant \n Hello ! <|im_end|> \n
        *(X, X, X, X, X, user_end, X),  # <|im_start|> user \n By e <|im_end|> \n
        *(
            X,
            X,
            X,
            X,
            51,
            28467,
            30,
            last_end,
            X,
        ),  # <|im_start|> ass istant \n C iao . <|im_end|> \n
    ]
    assert tokens(smollm2, TWO_TURNS, train_on_eos=train_on_eos) == Tokens(TWO_TURNS_IDS, labels)


BOTH_TRAINED = [
    *NO_SYSTEM,
    *(X, X, X, 26843, 2, X),
    *(X, X, X, X, 19556, 17, 2, X),
    *(X, X, X, 3087, 85, 2, X),
    *(X, X, X, X, 51, 28467, 30, 2, X),
]


def test_the_roles_that_are_trained(smollm2: PreTrainedTokenizerBase) -> None:
    both = tokens(smollm2, TWO_TURNS, roles_to_train=("user", "assistant"))
    assert both == Tokens(TWO_TURNS_IDS, BOTH_TRAINED)
    as_in_the_data = tokens(smollm2, TWO_TURNS, roles_to_train=("human", "gpt"))
    assert as_in_the_data == Tokens(TWO_TURNS_IDS, BOTH_TRAINED)
    nobody = tokens(smollm2, TWO_TURNS, roles_to_train=("tool",))
    assert nobody == Tokens(TWO_TURNS_IDS, [X] * len(TWO_TURNS_IDS))


def test_train_on_inputs_trains_every_turn(smollm2: PreTrainedTokenizerBase) -> None:
    assert tokens(smollm2, TWO_TURNS, train_on_inputs=True) == Tokens(TWO_TURNS_IDS, BOTH_TRAINED)


@pytest.mark.parametrize("train_on_eos", ["turn", "last"])
def test_a_last_turn_of_the_user_is_not_trained(
    smollm2: PreTrainedTokenizerBase, train_on_eos: str
) -> None:
    row = conversation(("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"))
    ids = [*SYSTEM, *USER, *HI, *END, *ASSISTANT, *HELLO, *END, *USER, *BYE, *END]
    labels = [*NO_SYSTEM, *[X] * 6, *(X, X, X, X, 19556, 17, 2, X), *[X] * 7]
    assert tokens(smollm2, row, train_on_eos=train_on_eos) == Tokens(ids, labels)


def test_a_system_message_replaces_the_one_of_the_template(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    row = conversation(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"))
    ids = [1, 9690, 198, 6077, 1942, 30, *END, *USER, *HI, *END, *ASSISTANT, *HELLO, *END]
    labels = [*[X] * 8, *[X] * 6, *(X, X, X, X, 19556, 17, 2, X)]
    assert tokens(smollm2, row) == Tokens(ids, labels)


def test_an_empty_turn_trains_its_terminator(smollm2: PreTrainedTokenizerBase) -> None:
    row = conversation(("user", "Hi"), ("assistant", ""), ("user", "Bye"), ("assistant", ""))
    ids = [*SYSTEM, *USER, *HI, *END, *ASSISTANT, *END, *USER, *BYE, *END, *ASSISTANT, *END]
    end = [X, X, X, X, 2, X]
    assert tokens(smollm2, row) == Tokens(ids, [*NO_SYSTEM, *[X] * 6, *end, *[X] * 7, *end])


def test_the_assistant_may_speak_first(smollm2: PreTrainedTokenizerBase) -> None:
    row = conversation(("assistant", "Hello!"), ("user", "Hi"))
    ids = [*SYSTEM, *ASSISTANT, *HELLO, *END, *USER, *HI, *END]
    assert tokens(smollm2, row) == Tokens(
        ids, [*NO_SYSTEM, *(X, X, X, X, 19556, 17, 2, X), *[X] * 6]
    )


def test_a_character_of_several_tokens_is_trained_as_a_whole(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    row = conversation(("user", "Hi"), ("assistant", "🙂 ok"))
    answer = [10813, 38887, 10907]  # two tokens of the face, " ok"
    ids = [*SYSTEM, *USER, *HI, *END, *ASSISTANT, *answer, *END]
    assert tokens(smollm2, row) == Tokens(ids, [*NO_SYSTEM, *[X] * 6, *[X] * 4, *answer, 2, X])


def test_white_space_of_a_content_is_trained_where_the_template_keeps_it(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    found = tokens(smollm2, conversation(("user", "Hi"), ("assistant", " Hello! \n")))
    assert trained(smollm2, found) == [" Hello! \n<|im_end|>"]


def test_chatml_has_no_system_message_of_its_own(smollm2: PreTrainedTokenizerBase) -> None:
    ids = TWO_TURNS_IDS[len(SYSTEM) :]
    labels = [
        *[X] * 6,
        *(X, X, X, X, 19556, 17, 2, X),
        *[X] * 7,
        *(X, X, X, X, 51, 28467, 30, 2, X),
    ]
    assert tokens(smollm2, TWO_TURNS, templates.text("chatml")) == Tokens(ids, labels)


# One paragraph a message, in the form `ROLE:\ncontent<end>\n`, with or without a generation prompt.
PLAIN = "{% for m in messages %}{{ m.role | upper + ':\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
WITH_PROMPT = PLAIN + "{% if add_generation_prompt %}{{ 'ASSISTANT:\\n' }}{% endif %}"


@pytest.mark.parametrize("template", [PLAIN, WITH_PROMPT])
@pytest.mark.parametrize("content", ["A", "ASSISTANT:", "USER:\nHi", "", "<|im_end|>"])
def test_a_content_that_looks_like_the_template_is_told_apart(
    smollm2: PreTrainedTokenizerBase, template: str, content: str
) -> None:
    row = conversation(
        ("user", content), ("assistant", content), ("user", "x"), ("assistant", content)
    )
    found = tokens(smollm2, row, template)
    assert trained(smollm2, found) == [f"{content}<|im_end|>"] * 2
    assert smollm2.decode(found.input_ids) == (
        f"USER:\n{content}<|im_end|>\nASSISTANT:\n{content}<|im_end|>\n"
        f"USER:\nx<|im_end|>\nASSISTANT:\n{content}<|im_end|>\n"
    )


def test_a_template_may_have_no_header_at_all(smollm2: PreTrainedTokenizerBase) -> None:
    # In the way of Mistral: the end of the user's turn is all that announces the assistant.
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    found = tokens(smollm2, conversation(("user", "Hi"), ("assistant", "Yes")), template)
    #      "["  "INST" "]" "Hi"   "["  "/"  "INST" "]"
    ids = [75, 39637, 77, 26843, 75, 31, 39637, 77, 10539, 2]  # "Yes" <|im_end|>
    assert found == Tokens(ids, [*[X] * 8, 10539, 2])


def test_a_terminator_need_not_be_a_special_token(smollm2: PreTrainedTokenizerBase) -> None:
    template = "{% for m in messages %}{{ '### ' + m.role + '\\n' + m.content + '\\n### end\\n' }}{% endfor %}"
    row = conversation(("user", "Hi"), ("assistant", "Yes"), ("user", "x"))
    assert trained(smollm2, tokens(smollm2, row, template)) == ["Yes\n### end"]
    assert trained(smollm2, tokens(smollm2, row, template, train_on_eos="none")) == ["Yes"]


def test_a_template_that_ends_without_a_terminator_trains_the_content(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    template = "{% for m in messages %}{{ m.role + ':\\n' + m.content + '\\n' }}{% endfor %}"
    row = conversation(("user", "Hi"), ("assistant", "Yes"), ("user", "x"))
    assert trained(smollm2, tokens(smollm2, row, template)) == ["Yes"]


def test_white_space_that_a_template_trims_leaves_no_doubt(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    # Llama 3 and Gemma do so: what is cut is not in the text, what is left is trained.
    template = WITH_PROMPT.replace("m.content", "m.content | trim")
    row = conversation(
        ("user", " Hi\n"), ("assistant", "\n Yes \n"), ("user", "x"), ("assistant", "\t")
    )
    assert trained(smollm2, tokens(smollm2, row, template)) == ["Yes<|im_end|>", "<|im_end|>"]


CUTS_WORDS = WITH_PROMPT.replace("m.content", "m.content[:5]")
CUTS_THOUGHTS = WITH_PROMPT.replace(
    "m.content", "(m.content if loop.last else m.content.split('</think>')[-1])"
)
LOWERS = WITH_PROMPT.replace("m.content", "m.content | lower")
SILENT = WITH_PROMPT.replace("m.content", "''")
TWICE = WITH_PROMPT.replace("m.content", "m.content + m.content")
REVERSED = WITH_PROMPT.replace("in messages", "in messages | reverse")
ASSISTANT_LAST = "{% for m in messages | sort(attribute='role', reverse=true) %}{{ m.content + eos_token }}{% endfor %}"
SAME_HEADER_REVERSED = (
    "{% for m in messages | reverse %}{{ 'A:' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
BARE_REVERSED = "{% for m in messages | reverse %}{{ m.content + eos_token }}{% endfor %}"
CHANGED = r"message 2 \(assistant\): the template changes its content, so its borders"


@pytest.mark.parametrize(
    ("template", "row", "reason"),
    [
        (CUTS_WORDS, conversation(("user", "Hi"), ("assistant", "Hello!")), CHANGED),
        (LOWERS, conversation(("user", "Hi"), ("assistant", "Hello!")), CHANGED),
        (SILENT, conversation(("user", "Hi"), ("assistant", "Hello!")), CHANGED),
        (TWICE, conversation(("user", "Hi"), ("assistant", "Hello!")), CHANGED),
        (
            CUTS_THOUGHTS,
            conversation(("user", "Hi"), ("assistant", "<think>x</think>y"), ("user", "z")),
            CHANGED,
        ),
        (
            REVERSED,
            conversation(("user", "Hi"), ("assistant", "Hello!")),
            r"message 2 \(assistant\): the template does not write the messages in their order",
        ),
        (
            REVERSED,
            conversation(("assistant", "Hello!"), ("user", "Hi")),
            r"message 1 \(assistant\): the template ends it differently once others follow",
        ),
        (
            BARE_REVERSED,
            conversation(("user", "Hi"), ("assistant", "Hi")),
            r"message 2 \(assistant\): the template does not write the messages in their order",
        ),
        # The texts of the parts begin alike; only where a content moves when it is replaced tells.
        (
            SAME_HEADER_REVERSED,
            conversation(("user", "Hi"), ("assistant", "Hi")),
            r"message 2 \(assistant\): the template does not write the messages in their order",
        ),
        (
            ASSISTANT_LAST,
            conversation(("user", "Hi"), ("assistant", "Hi"), ("user", "Hi")),
            r"message 2 \(assistant\): the template does not write the messages in their order",
        ),
        (
            "{{ raise_exception('Only user and assistant roles are supported!') }}",
            conversation(("user", "Hi")),
            "the chat template fails: Only user and assistant roles are supported!",
        ),
        (
            "{% for %}",
            conversation(("user", "Hi")),
            "the chat template fails: Expected an expression",
        ),
        (
            "{{ messages[0].content + 1 }}",
            conversation(("user", "Hi")),
            "the chat template fails: can only concatenate str",
        ),
    ],
)
def test_a_mask_that_is_not_certain_is_an_error(
    smollm2: PreTrainedTokenizerBase, template: str, row: MessagesRow, reason: str
) -> None:
    with pytest.raises(RowError, match=reason):
        tokens(smollm2, row, template)


BLANK = PLAIN.replace(":\\n", ": ")
YES = [23824, 42, 21041, 2, 198, 15844, 9814, 17321, 42, 9230, 2, 198]
"""USER : _Hi <|im_end|> \\n ASS IST ANT : _Yes <|im_end|> \\n"""


@pytest.mark.parametrize("prompt", ["", "{% if add_generation_prompt %}ASSISTANT:{% endif %}"])
def test_the_blank_in_front_of_the_words_is_trained_with_them(
    smollm2: PreTrainedTokenizerBase, prompt: str
) -> None:
    # The prompt ends before the blank, so " Yes" is what the model has to write.
    found = tokens(smollm2, conversation(("user", "Hi"), ("assistant", "Yes")), BLANK + prompt)
    assert found == Tokens(YES, [*[X] * 9, 9230, 2, X])


def test_a_border_inside_a_token_is_an_error(smollm2: PreTrainedTokenizerBase) -> None:
    # The prompt "ASSISTANT: " ends in a token of its own, and the model would never be asked for " Yes".
    prompt = "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    with pytest.raises(RowError, match="meet inside the token ' Yes'"):
        tokens(smollm2, conversation(("user", "Hi"), ("assistant", "Yes")), BLANK + prompt)


MOVES = (
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}"
    "{% for m in messages if m.role != 'system' %}{{ m.role | upper }}: "
    "{% if m == last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
    "{{ m.content + eos_token }}{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
FOUR = (("user", "One"), ("assistant", "1"), ("user", "Two"), ("assistant", "2"))


def said(tokenizer: PreTrainedTokenizerBase, found: Tokens) -> list[str]:
    """The stretches that are trained, as text."""
    runs = itertools.groupby(
        zip(found.input_ids, found.labels, strict=True), lambda pair: pair[1] != X
    )
    return [tokenizer.decode([token for token, _ in run]) for trained, run in runs if trained]


def test_a_moved_system_message_changes_no_mask(smollm2: PreTrainedTokenizerBase) -> None:
    for prompt, blank in ((ASKS, ""), (ASKS.replace(": ", ":"), " "), ("", " ")):
        expected = [f"{blank}1<|im_end|>", f"{blank}2<|im_end|>"]
        for system in ((), (("system", "Be kind."),)):
            found = tokens(smollm2, conversation(*system, *FOUR), MOVES + prompt)
            assert said(smollm2, found) == expected
    row = conversation(("system", "Be kind."), *FOUR[:1], ("assistant", "Yes"), *FOUR[2:])
    with pytest.raises(RowError, match="meet inside the token ' Yes'"):
        tokens(smollm2, row, MOVES + ASKS)


def test_a_moved_system_message_has_no_terminator(smollm2: PreTrainedTokenizerBase) -> None:
    row = conversation(("system", "Be kind."), *FOUR)
    found = tokens(smollm2, row, MOVES, train_on_eos="all")
    assert said(smollm2, found) == ["<|im_end|>", " 1<|im_end|>", "<|im_end|>", " 2<|im_end|>"]


def test_a_prompt_that_goes_on_with_a_thought_ends_behind_its_blank(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    prompt = "{% if add_generation_prompt %}ASSISTANT: <think>\\n{% endif %}"
    found = tokens(smollm2, conversation(("user", "Hi"), ("assistant", "1")), BLANK + prompt)
    assert said(smollm2, found) == ["1<|im_end|>"]


@pytest.mark.parametrize(
    ("prompt", "blank"), [(ASKS, ""), (ASKS.replace(": ", ":"), " "), ("", " ")]
)
def test_an_answer_to_nothing_stands_behind_the_same_prompt(
    smollm2: PreTrainedTokenizerBase, prompt: str, blank: str
) -> None:
    row = conversation(("assistant", "1"), *FOUR[2:])
    found = tokens(smollm2, row, BLANK + prompt)
    assert said(smollm2, found) == [f"{blank}1<|im_end|>", f"{blank}2<|im_end|>"]


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (((0, 3, True), (3, 7, True)), [" Yes sir<|im_end|>"]),
        (((0, 3, True), (3, 7, False)), [" Yes", "<|im_end|>"]),
        (((0, 3, False), (3, 7, True)), [" sir<|im_end|>"]),
    ],
)
def test_parts_from_the_first_word_on_have_its_blank(
    smollm2: PreTrainedTokenizerBase, details: Any, expected: list[str]
) -> None:
    row = conversation(("user", "Hi"), ("assistant", "Yes sir"))
    row = dataclasses.replace(row, details=(None, tuple(Detail(*one) for one in details)))
    assert said(smollm2, tokens(smollm2, row, BLANK)) == expected


def test_a_blank_without_words_is_not_trained(smollm2: PreTrainedTokenizerBase) -> None:
    row = conversation(("user", "Hi"), ("assistant", ""))
    assert said(smollm2, tokens(smollm2, row, BLANK)) == ["<|im_end|>"]


def test_a_mark_that_takes_the_blank_behind_it_keeps_it(smollm2: PreTrainedTokenizerBase) -> None:
    # As marks of Phi 3 do.
    tokenizer = copy.deepcopy(smollm2)
    mark = AddedToken("<|mark|>", rstrip=True, special=True)
    tokenizer.add_tokens([mark], special_tokens=True)
    template = "{% for m in messages %}{{ '<|mark|> ' + m.content + eos_token }}{% endfor %}"
    found = tokens(tokenizer, conversation(("user", "Hi"), ("assistant", "Yes")), template)
    assert said(tokenizer, found) == ["Yes<|im_end|>"]
    assert tokenizer.decode(found.input_ids[:1]).startswith("<|mark|>")


def test_white_space_outside_of_offsets_belongs_to_the_token(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    # The tokenizer of Llama 3 gives " Yes" the offsets of "Yes".
    from tokenizers.processors import ByteLevel

    tokenizer = copy.deepcopy(smollm2)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    encoded = tokenizer(": Yes", return_offsets_mapping=True)
    assert encoded["offset_mapping"] == [(0, 1), (2, 5)]
    found = tokens(tokenizer, conversation(("user", "Hi"), ("assistant", "Yes")), BLANK)
    assert found == Tokens(YES, [*[X] * 9, 9230, 2, X])
    assert tokens(tokenizer, TWO_TURNS) == tokens(smollm2, TWO_TURNS)


def shipped(name: str) -> str:
    """A template of a model that people use, as TRL ships it."""
    [folder] = importlib.util.find_spec("trl").submodule_search_locations
    return (Path(folder) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def with_marks(smollm2: PreTrainedTokenizerBase, *marks: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the special tokens that a template writes, as its own tokenizer has them."""
    tokenizer = copy.deepcopy(smollm2)
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    return tokenizer


@pytest.mark.parametrize(
    ("name", "marks", "ends"),
    [
        ("llama3", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
        ("gemma3", ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
        ("qwen2_5", [], "<|im_end|>"),
        ("qwen3", [], "<|im_end|>"),
        ("qwen3_5_think", [], "<|im_end|>"),
        ("qwen3_instruct_2507", [], "<|im_end|>"),
        ("phi3_5", ["<|user|>", "<|assistant|>", "<|end|>"], "<|end|>"),
        (
            "deepseekv3",
            ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
            "<｜end▁of▁sentence｜>",
        ),
    ],
)
def test_templates_that_people_use(
    smollm2: PreTrainedTokenizerBase, name: str, marks: list[str], ends: str
) -> None:
    tokenizer = with_marks(smollm2, *marks)
    found = tokens(tokenizer, TWO_TURNS, shipped(name))
    assert trained(tokenizer, found) == [f"Hello!{ends}", f"Ciao.{ends}"]


def test_a_thought_is_trained_where_the_template_writes_it(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    first = {"role": "assistant", "content": "Hello!", "reasoning_content": "Greet."}
    last = {"role": "assistant", "content": "Ciao.", "reasoning_content": "Leave."}
    users = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Bye"}]
    row = MessagesRow((users[0], first, users[1], last), tools=None)
    # Qwen 3 leaves the thoughts of earlier turns out.
    assert trained(smollm2, tokens(smollm2, row, shipped("qwen3"))) == [
        "Hello!<|im_end|>",
        "<think>\nLeave.\n</think>\n\nCiao.<|im_end|>",
    ]


def test_a_thought_inside_the_content(smollm2: PreTrainedTokenizerBase) -> None:
    row = conversation(("user", "Hi"), ("assistant", "<think>\nGreet.\n</think>\n\nHello!"))
    thought = "<think>\nGreet.\n</think>\n\nHello!<|im_end|>"
    assert trained(smollm2, tokens(smollm2, row, shipped("qwen3"))) == [thought]
    # The generation prompt of Qwen 3.5 opens the thought, so the model never writes that.
    assert trained(smollm2, tokens(smollm2, row, shipped("qwen3_5_think"))) == [
        thought.removeprefix("<think>\n")
    ]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
CALLS = MessagesRow(
    (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sun."},
    ),
    TOOLS,
)


def test_tool_calls_are_trained(smollm2: PreTrainedTokenizerBase) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
    template = shipped("qwen2_5")
    assert trained(smollm2, tokens(smollm2, CALLS, template)) == [
        f"{call}<|im_end|>",
        "Sun.<|im_end|>",
    ]
    assert trained(smollm2, tokens(smollm2, CALLS, template, train_on_eos="none")) == [call, "Sun."]


def test_tool_calls_that_the_template_leaves_out_are_an_error(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(
        RowError, match=r"message 2 \(assistant\): the template does not write its tool calls"
    ):
        tokens(smollm2, CALLS)


def test_tool_calls_without_a_generation_prompt_are_an_error(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    # The header would be trained: nothing says where it ends.
    template = PLAIN.replace("m.content", "(m.tool_calls | default(m.content) | string)")
    reason = r"message 2 \(assistant\): where its tool calls or its reasoning begin and end is not certain"
    with pytest.raises(RowError, match=reason):
        tokens(smollm2, CALLS, template)
    prompted = WITH_PROMPT.replace("m.content", "(m.tool_calls | default(m.content) | string)")
    assert trained(smollm2, tokens(smollm2, CALLS, prompted)) == [
        f"{[CALL]}<|im_end|>",
        "Sun.<|im_end|>",
    ]


def test_a_mark_inside_of_a_tool_call_is_no_terminator(smollm2: PreTrainedTokenizerBase) -> None:
    template = (
        "{% for m in messages %}{{ m.role | upper + ':\\n' }}{% if m.tool_calls %}<|endoftext|>call\n"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:\\n' }}{% endif %}"
    )
    found = tokens(smollm2, CALLS, template, train_on_eos="none")
    assert trained(smollm2, found) == ["<|endoftext|>call", "Sun."]


# Not any character: the vocabulary of this tokenizer has no token for some bytes, and leaves them out.
CONTENTS = st.text("abA1.<|>/ \n\t'é漢🙂", max_size=12)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    contents=st.lists(CONTENTS, min_size=1, max_size=5),
    train_on_eos=st.sampled_from(["turn", "none"]),
)
def test_what_is_trained_is_what_the_assistant_says(
    smollm2: PreTrainedTokenizerBase, contents: list[str], train_on_eos: str
) -> None:
    roles = ["user", "assistant"] * 3
    row = conversation(*zip(roles, contents, strict=False))
    said = [text for role, text in zip(roles, contents, strict=False) if role == "assistant"]
    try:
        found = tokens(smollm2, row, train_on_eos=train_on_eos)
    except RowError as error:
        # Line feeds of header and content may be one token.
        assert "meet inside the token" in str(error)
        assert any(text[:1].isspace() for text in said)
        return
    end = "<|im_end|>" if train_on_eos == "turn" else ""
    assert "".join(trained(smollm2, found)) == "".join(text + end for text in said)
