"""What `ft preview` is told: texts that join to the text, flags that add up, numbers as numpy has them."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ft.recipes import prepared as cache
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.runtime import __main__ as verbs
from ft.runtime.data import preview
from ft.runtime.data.prepare import prepare

FAMILIES = ("smollm2", "deepseek", "qwen", "tekken")
SMOLLM2_LACKS = frozenset(b"\xf1\xf2\x04\x06\x13\x14\x16\x1d")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizers(repo: Path) -> dict[str, PreTrainedTokenizerBase]:
    folders = {name: f"tokenizers/{name}" for name in FAMILIES}
    folders["smollm2"] = "SmolLM2-135M-Instruct"
    found: dict[str, PreTrainedTokenizerBase] = {
        name: AutoTokenizer.from_pretrained(repo / ".quickstart" / folder)
        for name, folder in folders.items()
    }
    return found | {"sentencepiece": sentencepiece()}


def sentencepiece() -> PreTrainedTokenizerBase:
    """In the manner of Llama 2: a mark for blanks, one in front of the text, bytes for unknown letters."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "▁th", "▁the", "he"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("h", "e")]
    vocabulary = {word: number for number, word in enumerate(words)}
    found = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    found.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=found, **tokens)


# ------------------------------------------------------------------------------------- texts of tokens


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(TEXT, min_size=1, max_size=3), data=st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_the_texts_of_tokens_join_to_the_text(
    name: str, parts: list[str], data: Any, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers[name]
    special = data.draw(st.sampled_from(tokenizer.all_special_tokens))
    text = special.join(parts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = preview.texts_by(tokenizer)(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == special.join(read(name, part) for part in text.split(special))


def read(name: str, part: str) -> str:
    """What is left of a text between special tokens: what two tokenizers do before the model sees it."""
    if name == "qwen":
        return unicodedata.normalize("NFC", part)
    if name == "smollm2":
        # It has no token for these bytes and leaves them out.
        return bytes(byte for byte in part.encode() if byte not in SMOLLM2_LACKS).decode(
            "utf-8", "replace"
        )
    return part


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(TEXT, min_size=1, max_size=3))
def test_so_they_do_where_tokens_are_not_bytes(
    parts: list[str], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers["sentencepiece"]
    ids = tokenizer("</s>".join(parts), add_special_tokens=True)["input_ids"]
    texts = preview.texts_by(tokenizer)(ids)
    whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert "".join(texts) == whole


def test_a_character_that_is_several_tokens_stands_with_the_last_of_them(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    smollm2, llama = tokenizers["smollm2"], tokenizers["sentencepiece"]
    ids = smollm2("a 🦜<|im_end|>", add_special_tokens=False)["input_ids"]
    assert preview.texts_by(smollm2)(ids) == ["a", " ", "", "🦜", "<|im_end|>"]
    ids = llama("the é", add_special_tokens=False)["input_ids"]
    assert preview.texts_by(llama)(ids) == ["the", " ", "", "é"]


def test_half_a_character_is_shown_as_such(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    smollm2 = tokenizers["smollm2"]
    texts_of = preview.texts_by(smollm2)
    bird = smollm2("🦜", add_special_tokens=False)["input_ids"]
    end = smollm2.eos_token_id
    # Where a row was cut; where it begins; and where a special token comes in between.
    assert "".join(texts_of(bird[:-1])) == "\ufffd"
    assert "".join(texts_of(bird[-1:])) == "\ufffd"
    assert texts_of([*bird[:-1], end])[-2:] == ["\ufffd", "<|im_end|>"]


def test_a_number_without_a_token_has_a_text_all_the_same(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    assert preview.texts_by(tokenizers["smollm2"])([10_000_000]) == ["\ufffd"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40),
    st.frozensets(st.integers(0, 9)),
)
def test_pieces_are_the_tokens_in_runs(
    tokens: list[tuple[int, bool]], special: frozenset[int]
) -> None:
    ids = [number for number, _ in tokens]
    labels = [number if trained else -100 for number, trained in tokens]
    found = preview.pieces(ids, labels, [str(number) for number in ids], special)
    again = [
        (text, piece["trained"], piece["special"]) for piece in found for text in piece["texts"]
    ]
    assert again == [
        (str(number), trained and place > 0, number in special)
        for place, (number, trained) in enumerate(tokens)
    ]
    edges = [0, *(piece["end"] for piece in found)]
    assert [piece["start"] for piece in found] == edges[:-1]
    assert edges[-1] == len(tokens)
    flags = [(piece["trained"], piece["special"]) for piece in found]
    assert all(one != two for one, two in itertools.pairwise(flags))


# --------------------------------------------------------------------------------- numbers about all rows


@given(st.integers(1, 300), st.data())
def test_lengths_are_counted_as_numpy_counts_lists(sequence_len: int, data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(1, sequence_len), min_size=1, max_size=80))
    found = preview.length_statistics(np.array(lengths))
    assert found == {
        "min": min(lengths),
        "median": np.percentile(lengths, 50, method="inverted_cdf"),
        "p95": np.percentile(lengths, 95, method="inverted_cdf"),
        "max": max(lengths),
    }
    ordered = sorted(lengths)
    assert found["p95"] == ordered[-(-95 * len(lengths) // 100) - 1]
    bars = preview.histogram(np.array(lengths), sequence_len)
    edges = bars["edges"]
    assert (edges[0], edges[-1], len(edges)) == (0, sequence_len, len(bars["rows"]) + 1)
    assert len(bars["rows"]) <= preview.BINS
    assert edges == sorted(set(edges))
    assert bars["rows"] == [
        sum(low < length <= high for length in lengths) for low, high in itertools.pairwise(edges)
    ]


# -------------------------------------------------------------------------------------------- the verb

CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)


def chat(*turns: str) -> dict[str, Any]:
    """A conversation that the user begins."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


ROWS = [chat("Say it", "word " * (1 + n % 30) + str(n)) for n in range(100)]


class Run:
    """A run folder with a data file, and plans for it."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        (folder / "inputs").mkdir()
        self.write(ROWS)

    def write(self, rows: list[Any]) -> None:
        self.file = self.folder / "inputs" / "chat.jsonl"
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def plan(self, recipe: str) -> RunPlan:
        text = f"base_model: inputs/model\nlearning_rate: 0.001\nsequence_len: 512\n{recipe}\n"
        text += "datasets: [{path: inputs/chat.jsonl, type: chat_template}]\n"
        content = self.file.read_bytes()
        fact = FileFact(
            path=self.file,
            name=self.file.name,
            kind="data",
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
        )
        files: dict[Any, Any] = {("datasets", 0, "path"): fact}
        return resolve(normalize(loads(text)).flat, Facts(files=files, machine=CPU))


@pytest.fixture
def run(tmp_path: Path, smollm2: PreTrainedTokenizerBase) -> Run:
    return Run(tmp_path, smollm2)


def ask(
    run: Run, recipe: str, rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> dict[str, Any]:
    """The last answer of the verb."""
    monkeypatch.setattr(verbs, "load_tokenizer", lambda *_: run.tokenizer)
    monkeypatch.setattr(verbs, "die_with_parent", lambda **_: None)
    (run.folder / "plan.json").write_text(run.plan(recipe).to_json())
    root = run.folder / "cache"
    assert verbs.main(["preview", str(run.folder), "--root", str(root), "--rows", rows]) == 0
    *before, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {said["event"] for said in before} <= {"progress"}
    return last


def test_the_verb_tells_what_is_in_the_cache(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [{"messages": [{"role": "user"}]}, "nothing"]
    run.write([broken[0], *ROWS[:50], broken[1], chat("x", "word " * 600)])
    said = ask(run, "on_bad_row: skip\nval_set_size: 10", "0:3", capsys, monkeypatch)
    assert said.pop("event") == "preview"
    ((folder, meta),) = cache.entries(run.folder / "cache")
    whole = prepare(run.plan("on_bad_row: skip\nval_set_size: 0"), run.folder, run.tokenizer).train
    lengths = [len(row["input_ids"]) for row in whole]
    trained = sum(label != -100 for row in whole for label in row["labels"][1:])
    assert said["counts"] == meta.counts
    assert (said["train_rows"], said["eval_rows"]) == (40, 10)
    assert said["shares"]["trained"] == trained / sum(lengths)
    assert said["shares"]["kept"] == 50 / 53
    assert said["lengths"] == {
        "min": min(lengths), "median": sorted(lengths)[24], "p95": sorted(lengths)[47], "max": max(lengths),
    }  # fmt: skip
    assert sum(said["histogram"]["rows"]) == 50
    to_train = prepare(
        run.plan("on_bad_row: skip\nval_set_size: 10"), run.folder, run.tokenizer
    ).train
    packed = sum(len(row["input_ids"]) for row in to_train)
    assert said["shares"]["packed"] == packed / (said["packs"] * 512)
    assert [(bad["row"], bad["path"]) for bad in said["bad"]] == [
        (1, "inputs/chat.jsonl"), (52, "inputs/chat.jsonl")
    ]  # fmt: skip
    assert [row["row_id"] for row in said["rows"]] == [0, 1, 2]
    assert (said["folders"], said["was_there"]) == ([str(folder)], False)


def test_rows_are_shown_as_they_are_trained_on(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write([chat("Hi", "Grüße 🦜"), chat("a", "b", "c", "d")])
    template = "chat_template: chatml"
    said = ask(run, template, "1,0,7", capsys, monkeypatch)
    assert [row["row_id"] for row in said["rows"]] == [1, 0]
    two, one = said["rows"]
    assert one["tokens"] == len(run.tokenizer("".join(text_of(one)))["input_ids"])
    assert [(p["trained"], p["special"], "".join(p["texts"])) for p in one["pieces"]] == [
        (False, True, "<|im_start|>"),
        (False, False, "user\nHi"),
        (False, True, "<|im_end|>"),
        (False, False, "\n"),
        (False, True, "<|im_start|>"),
        (False, False, "assistant\n"),
        (True, False, "Grüße 🦜"),
        (True, True, "<|im_end|>"),
        (False, False, "\n"),
    ]
    assert one["trained_tokens"] == sum(p["end"] - p["start"] for p in one["pieces"][6:8])
    assert "".join(text_of(two)) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
    )
    assert ["".join(p["texts"]) for p in two["pieces"] if p["trained"] and not p["special"]] == [
        "b", "d"
    ]  # fmt: skip


def text_of(row: dict[str, Any]) -> list[str]:
    return [text for piece in row["pieces"] for text in piece["texts"]]


def test_rows_to_evaluate_on_say_so(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ask(run, "val_set_size: 20", "0:100", capsys, monkeypatch)
    to_evaluate = [row["row_id"] for row in said["rows"] if row["eval"]]
    data = prepare(run.plan("val_set_size: 20"), run.folder, run.tokenizer)
    assert data.eval is not None
    assert to_evaluate == data.eval["row_id"][:]
    # What would be packed are the rows to train on.
    tokens = sum(map(len, data.train["input_ids"][:]))
    assert tokens < said["counts"]["tokens"]
    assert said["shares"]["packed"] == tokens / (said["packs"] * said["sequence_len"])


def test_a_tokenizer_that_cannot_be_had_now_is_no_traceback(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("We couldn't connect.\nCheck your internet connection.")

    monkeypatch.setattr(verbs, "load_tokenizer", refuse)
    monkeypatch.setattr(verbs, "die_with_parent", lambda **_: None)
    (run.folder / "plan.json").write_text(run.plan("").to_json())
    assert verbs.main(["preview", str(run.folder), "--root", str(run.folder / "cache")]) == 78
    said = json.loads(capsys.readouterr().out)
    assert (said["event"], said["path"]) == ("error", "plan.json")
    assert said["reason"] == (
        "tokenizer_config: inputs/model cannot be read now: We couldn't connect."
    )
