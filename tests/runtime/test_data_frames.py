"""One render says of a conversation what the long way says, for every named template and any roles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from ft.recipes.schema.dataset import NAMED_TEMPLATES
from ft.runtime.data.borders import Conversation, Turn
from ft.runtime.data.frames import Frame, Frames, frame_of
from ft.runtime.data.render import Renderer
from ft.runtime.data.row import MessagesRow, RowError
from ft.runtime.data.templates import text as template_text

ROLES = ("system", "user", "assistant")
WORDS = ["one", "two three", " padded ", "", "<|im_end|>", "<think>a</think>b", "é\n\nñ", "[INST]"]


def row(roles: Sequence[str], contents: Sequence[str]) -> MessagesRow:
    pairs = zip(roles, contents, strict=True)
    return MessagesRow(tuple({"role": r, "content": c} for r, c in pairs), None)


def long_way(renderer: Renderer, messages: MessagesRow) -> list[Turn | str]:
    conversation = Conversation(renderer, messages)
    return [_turn(conversation.turn, index) for index in range(len(messages.messages))]


def _turn(turn_of: Any, index: int) -> Turn | str:
    try:
        turn: Turn = turn_of(index)
    except RowError as error:
        return str(error)
    return turn


def alternating(count: int, *, system: bool) -> list[str]:
    return ["system"] * system + [("user", "assistant")[i % 2] for i in range(count)]


conversations = st.one_of(
    st.lists(st.sampled_from(ROLES), min_size=1, max_size=5),
    st.builds(lambda n, s: alternating(n, system=s), st.integers(1, 14), st.booleans()),
)


@pytest.mark.parametrize("name", [None, *NAMED_TEMPLATES])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_short_way_says_what_the_long_way_says(
    smollm2: PreTrainedTokenizerBase, name: str | None, data: st.DataObject
) -> None:
    renderer = Renderer(smollm2, template_text(name) if name else None)
    frames = Frames(renderer)
    roles = data.draw(conversations)
    # The first conversation of its kind is compared anyway; what counts are those after it.
    for _ in range(3):
        contents = data.draw(
            st.lists(st.sampled_from(WORDS), min_size=len(roles), max_size=len(roles))
        )
        messages = row(roles, contents)
        try:
            text, turn_of = frames.place(messages)
        except RowError as error:
            with pytest.raises(RowError) as caught:
                _ = Conversation(renderer, messages).text
            assert str(caught.value) == str(error)
            continue
        assert text == renderer.render(messages.messages, None)
        assert [_turn(turn_of, i) for i in range(len(roles))] == long_way(renderer, messages)


def test_long_conversations_have_the_frame_of_short_ones(smollm2: PreTrainedTokenizerBase) -> None:
    renderer = Renderer(smollm2, template_text("chatml"))
    frames = Frames(renderer)
    for count in range(2, 41):
        roles = alternating(count, system=count % 3 == 0)
        messages = row(roles, [f"words {i} of {count}" for i in range(len(roles))])
        text, turn_of = frames.place(messages)
        assert [turn_of(i) for i in range(len(roles))] == long_way(renderer, messages)
        assert text == renderer.render(messages.messages, None)
    # At most eight messages in the two roles, with and without a system message, ending in either.
    assert max(len(base) for base in frames._tried) == 9
    assert len(frames._tried) <= 16


def test_the_frame_of_chatml(smollm2: PreTrainedTokenizerBase) -> None:
    frame = frame_of(("user", "assistant"), Renderer(smollm2, template_text("chatml")))
    assert isinstance(frame, Frame)
    user, assistant = frame.slots
    assert (user.before, user.message, user.end) == ("<|im_start|>user\n", 0, len("<|im_end|>"))
    assert assistant.before == "<|im_end|>\n<|im_start|>assistant\n"
    assert frame.after == "<|im_end|>\n"


@pytest.mark.parametrize(
    "template",
    [
        # Contents twice, in capitals, cut, in another order of the text, or only the first of them.
        "{% for m in messages %}{{ m.content }}{{ m.content }}{{ eos_token }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:3] }}{{ eos_token }}{% endfor %}",
        "{{ messages[0].content }}{{ eos_token }}",
    ],
)
def test_templates_that_change_contents_have_no_frame(
    smollm2: PreTrainedTokenizerBase, template: str
) -> None:
    assert frame_of(("user", "assistant"), Renderer(smollm2, template)) is None


@pytest.mark.parametrize(
    ("template", "trimmed"),
    [
        ("{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}", " a \n"),
        ("{% for m in messages %}[{{ m.content | trim }}]{{ eos_token }}{% endfor %}", "a"),
        ("{% for m in messages %}[{{ m.content.lstrip() }}]{{ eos_token }}{% endfor %}", "a \n"),
        ("{% for m in messages %}[{{ m.content.rstrip() }}]{{ eos_token }}{% endfor %}", " a"),
    ],
)
def test_what_a_template_trims_is_known(
    smollm2: PreTrainedTokenizerBase, template: str, trimmed: str
) -> None:
    frame = frame_of(("user",), Renderer(smollm2, template))
    assert frame is not None
    text = f"[{trimmed}]<|im_end|>"
    turns = frame.turns([" a \n"], text)
    assert turns == [Turn(1, 1 + len(trimmed), len(text), 1, 1)]
    assert frame.turns([" b \n"], text) is None
