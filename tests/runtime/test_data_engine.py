"""Both engines give the same ids and places, on real tokenizers of four families."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ft.runtime.data import engine as engines
from ft.runtime.data.engine import (
    FAST,
    LIBRARY,
    Engine,
    EngineError,
    byte_places,
    utf8,
)
from ft.runtime.data.row import RowError
from ft.runtime.data.token_bytes import (
    BYTE_TOKENS,
    byte_lengths,
    contested,
    digits_as_tokens,
    has_other_digits,
    piece_lengths,
)

FAMILIES = ("smollm2", "deepseek", "qwen", "tekken")


def load(repo: Path, name: str) -> PreTrainedTokenizerBase:
    folder = repo / ".quickstart"
    folder /= "SmolLM2-135M-Instruct" if name == "smollm2" else f"tokenizers/{name}"
    if not (folder / "tokenizer.json").is_file():
        pytest.fail(f"{folder} is missing: run `make model`")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(repo: Path) -> dict[str, tuple[Engine, Engine]]:
    """name -> the fast engine and the library."""
    found = {}
    for name in FAMILIES:
        tokenizer = load(repo, name)
        fast, library = decided(tokenizer), Engine(tokenizer, fast=False)
        assert (fast.name, library.name) == (FAST, LIBRARY), name
        found[name] = fast, library
    return found


def decided(tokenizer: PreTrainedTokenizerBase, *, fast: bool = True) -> Engine:
    """As after many texts, none of which proved anything wrong."""
    engine = Engine(tokenizer, fast=fast)
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    engine._learn(values)
    if fast:
        engine._make_fast(values)
    engine._is_decided = True
    return engine


def covered(text: str, found: engines.Encoded) -> list[bytes]:
    """The bytes of each token."""
    whole = text.encode()
    return [whole[a:b] for a, b in zip(found.begins, found.ends, strict=True)]


# "e" and a combining accent are two characters until NFC makes one of them; ½ and ٣ are digits to a tokenizer.
TEXTS = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock.\n\n  Indented\tcode = [1, 2]\r\n",
    "Ünïcödé 日本語 العربية 🙂👩‍👩‍👧 ½ ٣ ²",
    "é café",
    "<|im_start|>user\nHi<|im_end|>\n<｜end▁of▁sentence｜>[INST] x [/INST]</s>",
    "\x00\x01\x13\x7f",
    "a" * 3000,
    "don't DON'T we'll 1a2b3c 3.14 1,000,000",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_both_engines_say_the_same(name: str, pairs: dict[str, tuple[Engine, Engine]]) -> None:
    fast, library = (engine.encode(TEXTS) for engine in pairs[name])
    assert fast.ids.tolist() == library.ids.tolist()
    assert fast.rows.tolist() == library.rows.tolist()
    assert fast.texts.tolist() == library.texts.tolist()
    assert fast.texts.tolist() == [0, *np.cumsum([len(text.encode()) for text in TEXTS])]
    for index, text in enumerate(TEXTS):
        own = slice(fast.rows[index], fast.rows[index + 1])
        # The library gives all tokens of one character the whole of it.
        places = zip(
            fast.begins[own], fast.ends[own], library.begins[own], library.ends[own], strict=True
        )
        assert all(a >= c and b <= d for a, b, c, d in places), text
        assert (np.diff(fast.begins[own]) >= 0).all()
        assert (np.diff(fast.ends[own]) >= 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_one_by_one_is_the_same_as_all_at_once(
    name: str, pairs: dict[str, tuple[Engine, Engine]]
) -> None:
    fast, _ = pairs[name]
    together = fast.encode(TEXTS)
    for index, text in enumerate(TEXTS):
        alone = fast.encode([text])
        own = slice(together.rows[index], together.rows[index + 1])
        assert alone.ids.tolist() == together.ids[own].tolist()
        assert (alone.begins + together.texts[index]).tolist() == together.begins[own].tolist()
        assert (alone.ends + together.texts[index]).tolist() == together.ends[own].tolist()


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=4))
def test_any_text(name: str, pairs: dict[str, tuple[Engine, Engine]], texts: list[str]) -> None:
    fast, library = (engine.encode(texts) for engine in pairs[name])
    assert fast.ids.tolist() == library.ids.tolist()
    assert fast.rows.tolist() == library.rows.tolist()


ALL = (*FAMILIES, "mistral", "mistral as gemma")


@pytest.fixture(scope="module")
def by_lengths(repo: Path) -> dict[str, tuple[Engine, Engine]]:
    """name -> the library without offsets, and with them."""
    found = {}
    for name in ALL:
        tokenizer = load(repo, name.partition(" as ")[0])
        if name.endswith("gemma"):
            tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
            split = pre_tokenizers.Split(" ", "merged_with_previous")
            tokenizer.backend_tokenizer.pre_tokenizer = split
        found[name] = decided(tokenizer, fast=False), Engine(tokenizer, fast=False)
        assert found[name][0]._lengths is not None, name
    return found


BLANKS = ["\n\nx", "日本", "é", " x", "  x", "a<s>b", "<s> [INST] a [/INST] b</s>", "▁x", "<0x41>"]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=4))
@example([*TEXTS, *BLANKS])
def test_the_library_with_and_without_offsets(
    name: str, by_lengths: dict[str, tuple[Engine, Engine]], texts: list[str]
) -> None:
    ours, theirs = (engine.encode(texts) for engine in by_lengths[name])
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.rows.tolist() == theirs.rows.tolist()
    assert ours.texts.tolist() == theirs.texts.tolist()
    assert by_lengths[name][0]._has_places(texts)


def test_places_that_are_not_the_librarys_are_given_up(repo: Path) -> None:
    engine = decided(load(repo, "mistral"), fast=False)
    engine.prove(["Hello you", "x"])
    assert engine._lengths is not None
    engine._lengths = engine._lengths.copy()
    # " you" shorter by a byte, " Hello" longer: the sum is right, the places are not.
    hello, you = engine.encode(["Hello you"]).ids
    engine._lengths[hello] += 1
    engine._lengths[you] -= 1
    engine.prove(["Hello you", "x"])
    assert engine._lengths is None
    assert covered("Hello you", engine.encode(["Hello you"])) == [b"Hello", b" you"]


def test_whole_lists(pairs: dict[str, tuple[Engine, Engine]]) -> None:
    text = "Hello world 12 é"
    found = {name: pairs[name][0].encode([text]) for name in FAMILIES}
    assert {name: one.ids.tolist() for name, one in found.items()} == {
        # "Hello" " world" " " "1" "2" " é"
        "smollm2": [19556, 905, 216, 33, 34, 26411],
        "deepseek": [19923, 2058, 223, 736, 2678],  # "12" is one token
        "qwen": [9707, 1879, 220, 16, 17, 3958],
        "tekken": [22177, 4304, 1032, 1049, 1050, 1782],
    }
    assert covered(text, found["qwen"]) == [b"Hello", b" world", b" ", b"1", b"2", " é".encode()]
    assert covered(text, found["deepseek"]) == [b"Hello", b" world", b" ", b"12", " é".encode()]


def test_a_text_that_a_normalizer_changes_goes_to_the_library(
    pairs: dict[str, tuple[Engine, Engine]],
) -> None:
    fast, library = pairs["qwen"]
    text = "cafe\u0301 au lait"
    assert not unicodedata.is_normalized("NFC", text)
    found, expected = fast.encode([text, "café"]), library.encode([text, "café"])
    assert found.ids.tolist() == expected.ids.tolist()
    # The places are those of the text as it is, not of the one that the normalizer made.
    assert b"".join(covered(text, fast.encode([text]))) == text.encode()


def test_the_fast_engine_is_taken_when_there_is_enough_text(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "WORTH_CHARACTERS", 100)
    engine = Engine(load(repo, "qwen"))
    engine.encode(["short"])
    assert engine.name == LIBRARY
    engine.encode(["long " * 20])
    assert engine.name == FAST
    assert Engine(load(repo, "qwen"), fast=False).name == LIBRARY


class Wrong:
    """An engine that gives another id for the letter x."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
        return self._engine.encode_batch_flat([text.replace("x", "y") for text in texts])


def test_an_engine_that_gives_other_ids_is_not_taken(repo: Path) -> None:
    engine = decided(load(repo, "qwen"))
    engine._fast = Wrong(engine._fast)
    engine.prove(["a b c"])
    assert engine.name == FAST
    engine.prove(["a x c"])
    assert engine.name == LIBRARY


def test_an_engine_that_was_trusted_too_early_is_found(repo: Path) -> None:
    engine = decided(load(repo, "qwen"))
    engine._fast = Wrong(engine._fast)
    engine.encode(["a b c"])
    with pytest.raises(EngineError, match="disagree about 'a x c'"):
        engine.encode(["a x c"])


# ------------------------------------------------------------------------ which tokenizers are byte-level


def state(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer of three tokens."""
    values: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [
            {"id": 3, "content": "<é>", "lstrip": False, "rstrip": False, "single_word": False}
        ],
        "model": {"type": "BPE", "vocab": {"a": 0, "Ġa": 1, "Ã©": 2}},
    }
    return values | changes


def test_lengths_in_bytes() -> None:
    lengths = byte_lengths(state())
    assert lengths is not None
    # "a", " a", "é" as two bytes, and an added token as it is spelled.
    assert lengths.tolist() == [1, 2, 2, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}],
            }
        },
        {
            "normalizer": {"type": "NFC"},
            "added_tokens": [
                {"id": 3, "content": "e\u0301", "lstrip": False, "rstrip": False}
                | {"single_word": False, "normalized": True}
            ],
        },
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"model": {"type": "Unigram", "vocab": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "dropout": 0.1}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "byte_fallback": True}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "unk_token": "a"}},
        {"model": {"type": "BPE", "vocab": {"▁a": 0}}},
        {
            "added_tokens": [
                {"id": 3, "content": "<x>", "lstrip": False, "rstrip": True, "single_word": False}
            ]
        },
    ],
)
def test_tokens_that_are_not_the_bytes_of_a_text(changes: dict[str, Any]) -> None:
    assert byte_lengths(state(**changes)) is None


def pieces(**changes: Any) -> dict[str, Any]:
    """A tokenizer of SentencePiece's kind with three tokens beside the bytes."""
    vocabulary = {token: number for number, token in enumerate([*BYTE_TOKENS, "a", "▁a", "▁▁é"])}
    values: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
        "added_tokens": [
            {"id": 259, "content": "<é>", "lstrip": False, "rstrip": False, "single_word": False}
        ],
        "model": {"type": "BPE", "vocab": vocabulary, "byte_fallback": True},
    }
    return values | changes


GEMMA = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@pytest.mark.parametrize("changes", [{}, {"normalizer": GEMMA, "pre_tokenizer": None}])
def test_lengths_of_pieces(changes: dict[str, Any]) -> None:
    lengths = piece_lengths(pieces(**changes))
    assert lengths is not None
    # A token for each byte; "a", " a", "  é", and an added token as it is spelled.
    assert lengths.tolist() == [*[1] * 256, 1, 2, 4, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": GEMMA},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}},
        {"model": {"type": "Unigram", "vocab": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "byte_fallback": True}},
        {"model": pieces()["model"] | {"byte_fallback": False}},
        {"model": pieces()["model"] | {"dropout": 0.1}},
        {
            "added_tokens": [
                {"id": 3, "content": "▁▁", "lstrip": False, "rstrip": False, "single_word": False}
            ]
        },
        {
            "added_tokens": [
                {"id": 3, "content": "<x>", "lstrip": True, "rstrip": False, "single_word": False}
            ]
        },
    ],
)
def test_pieces_that_are_not_the_bytes_of_a_text(changes: dict[str, Any]) -> None:
    assert piece_lengths(pieces(**changes)) is None


def test_added_tokens_that_could_claim_the_same_characters(repo: Path) -> None:
    tokenizer = load(repo, "smollm2")
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|x|>", "<|res_10|>")]
    tokenizer.add_tokens(special)
    tokenizer.add_tokens([AddedToken("v2<", normalized=True), AddedToken("a1b2", normalized=True)])
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    # "v2<" and "a1b2" have digits, which are tokens to the fast engine; "v2<" ends as "<|x|>" begins.
    by_digits = digits_as_tokens(values)
    assert by_digits is not None
    assert sorted(contested(by_digits["added_tokens"])) == ["a1b2", "v2<"]
    assert contested(values["added_tokens"]) == ["v2<"]
    fast, library = decided(tokenizer), Engine(tokenizer, fast=False)
    assert fast.name == FAST
    texts = ["v2<|x|>", "v2<|res_10|>1", "a1b2 a1b3", "plain 12", "<|res_10|>"]
    found, expected = fast.encode(texts), library.encode(texts)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.rows.tolist() == expected.rows.tolist()


def test_a_tokenizer_that_splits_special_tokens_stays_with_the_library(repo: Path) -> None:
    tokenizer = load(repo, "qwen")
    tokenizer.split_special_tokens = True
    engine = Engine(tokenizer)
    engine._characters = engines.WORTH_CHARACTERS
    found = engine.encode(["x<|im_end|>"])
    assert engine.name == LIBRARY
    assert found.ids.tolist() == tokenizer("x<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(found.ids) > 2


def test_digits_become_tokens_only_where_they_are_split_alone(repo: Path) -> None:
    smollm2 = json.loads((repo / ".quickstart/SmolLM2-135M-Instruct/tokenizer.json").read_text())
    changed = digits_as_tokens(smollm2)
    assert changed is not None
    assert changed["pre_tokenizer"]["type"] == "ByteLevel"
    assert [token["content"] for token in changed["added_tokens"][-10:]] == list("0123456789")
    assert digits_as_tokens(state()) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0123 abc é 日本 🙂", False),
        ("½", True),
        ("٣", True),
        ("²", True),
        ("Ⅷ", True),
        ("一", False),
    ],
)
def test_digits_that_are_not_ascii(text: str, expected: bool) -> None:
    assert has_other_digits(text) is expected


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_places_of_characters(text: str) -> None:
    expected = [len(text[:index].encode()) for index in range(len(text) + 1)]
    assert byte_places(text).tolist() == expected


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    utf8("fine 🙂")
    with pytest.raises(RowError, match="character 3 is half of a surrogate pair"):
        utf8("ab\ud83d")
