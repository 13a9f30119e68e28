"""Which secrets this machine has, and that no value survives in what is printed or kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ft.launcher.secrets import MIN_CHARACTERS, Redactor, split, values

ENV = {
    "HF_TOKEN": "hf-not-a-real-one",
    "WANDB_API_KEY": "",
    "BLANK": " \n",
    "lower": "never looked at",
    "_X9": "v",
    "9X": "no name of a variable",
}


def test_the_names_that_are_set_here_and_those_of_the_backend() -> None:
    names = "wandb HF_TOKEN WANDB_API_KEY BLANK lower _X9 9X GONE HF_TOKEN wandb".split()
    assert split(names, ENV) == (
        ("HF_TOKEN", "_X9"),
        ("wandb", "WANDB_API_KEY", "BLANK", "lower", "9X", "GONE"),
    )
    assert values(names, ENV) == {"HF_TOKEN": "hf-not-a-real-one", "_X9": "v"}
    assert split([], ENV) == ((), ())
    assert values([], ENV) == {}


def test_nothing_prints_a_value() -> None:
    found = values(["HF_TOKEN", "_X9"], ENV)
    redactor = Redactor(found.values())
    for shown in (repr(found), str(found), f"{found}", repr(redactor), str(redactor), f"{[redactor]}"):  # fmt: skip
        assert "not-a-real-one" not in shown
    assert (repr(found), repr(redactor)) == ("Values(HF_TOKEN, _X9)", "Redactor()")
    with pytest.raises(TypeError):
        vars(redactor)  # There is no other way to print what it has.


@pytest.mark.parametrize(
    ("secrets", "text", "expected"),
    [
        (["abcdef"], "abcdef", "***"),
        (["abcdef"], "xabcdefabcdefy abcde", "x***y abcde"),
        (["abcde"], "abcde", "abcde"),
        (["", " ", " " * 9], f"as it was{' ' * 20}", f"as it was{' ' * 20}"),
        (["{\n        a long line\n        \n}"], "        a long line", "        ***"),
        (["abcdef", "defghi"], "abcdefghi", "***"),
        (["abcdef", "abcdefghi"], "abcdefghi", "***"),
        (["aaaaaa"], "aaaaaaaa", "***"),
        (["abcdef", "x***y!"], "xabcdefy!", "***"),
        (["abcdef\n"], "token=abcdef.", "token=***."),
        (["one line\nanother line"], "another line\nline", "***\nline"),
        (['pass"word'], '{"a": "pass\\"word"}', '{"a": "***"}'),
        (["päßwort"], '{"a": "p\\u00e4\\u00dfwort", "b": "päßwort"}', '{"a": "***", "b": "***"}'),
        (["a/b+c d"], "https://host/?key=a%2Fb%2Bc%20d&x", "https://host/?key=***&x"),
    ],
)
def test_what_is_hidden(secrets: list[str], text: str, expected: str) -> None:
    assert Redactor(secrets).text(text) == expected


def test_json_is_hidden_in_texts_and_keys_and_keeps_its_form() -> None:
    value = {"a": ["xabcdef", 123456, None, True, 1.5, {"abcdef": ("abcdef",)}], "b": {}}
    before = json.dumps(value)
    assert Redactor(["abcdef", "123456"]).json(value) == {
        "a": ["x***", 123456, None, True, 1.5, {"***": ["***"]}],
        "b": {},
    }
    assert json.dumps(value) == before


# Few letters, those that take part in hiding and in escapes among them: what is drawn then overlaps.
LETTERS = st.sampled_from('ab*"\\\né%')
TEXTS = st.text(LETTERS, max_size=12) | st.text(max_size=12)
SECRETS = st.lists(
    (
        st.text(LETTERS, min_size=MIN_CHARACTERS, max_size=9) | st.text(min_size=MIN_CHARACTERS)
    ).filter(str.strip),
    min_size=1,
    max_size=3,
)


@st.composite
def planted(draw: st.DrawFn) -> tuple[list[str], str]:
    """Secrets, and a text that has some of them anywhere in it."""
    secrets = draw(SECRETS)
    pieces = draw(st.lists(st.sampled_from(secrets) | TEXTS, min_size=1, max_size=6))
    return secrets, "".join(pieces)


@given(planted())
@example((["******"], "************"))
@example((["ab****", "******"], "ab************"))
def test_no_value_survives_in_any_position(drawn: tuple[list[str], str]) -> None:
    secrets, text = drawn
    redactor = Redactor(secrets)
    hidden = redactor.text(text)
    assert [secret for secret in secrets if secret in hidden] == []
    assert redactor.text(hidden) == hidden
    # As a program writes it into a file, and hides afterwards.
    for written in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        told = redactor.text(written)
        assert [s for s in secrets if s in told or json.dumps(s)[1:-1] in told] == []


@given(SECRETS, TEXTS)
def test_a_text_without_them_stays_as_it_is(secrets: list[str], text: str) -> None:
    """What has no secret, no line of one, and nothing that a program writes in another way."""
    lines = {part.strip() for secret in secrets for part in (secret, *secret.splitlines())}
    lines |= {*secrets}
    assume(not any(line in text for line in lines if len(line) >= MIN_CHARACTERS))
    assume(not {*text} & {*'%"\\'})
    assert Redactor(secrets).text(text) == text


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for key, item in value.items() if isinstance(value, dict) else ():
        yield key
        yield from texts_of(item)
    for item in value if isinstance(value, list) else ():
        yield from texts_of(item)


@given(st.data(), SECRETS)
def test_no_value_survives_in_json(data: st.DataObject, secrets: list[str]) -> None:
    text = st.builds(lambda a, s, b: a + s + b, TEXTS, st.sampled_from(secrets), TEXTS)
    leaves = text | TEXTS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    value = data.draw(
        st.recursive(
            leaves,
            lambda inner: st.lists(inner) | st.dictionaries(text | TEXTS, inner),
            max_leaves=8,
        )
    )
    found = [*texts_of(Redactor(secrets).json(value))]
    assert [text for text in found if any(secret in text for secret in secrets)] == []
