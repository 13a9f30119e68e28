"""Whole lists of ids and labels of one conversation, on tokenizers of three publishers.

The ids are what Hugging Face's `tokenizers` alone gives for the text written in the comments, where `_` is a space and
a character of several tokens stands once for each. Of them the assistant's words and the end of its turn are trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.resolve import resolve
from ft.runtime.data.prepare import build
from ft.runtime.data.table import Table
from ft.runtime.data.work import Work

MESSAGES: Final = [
    {"role": "system", "content": "Answer in one line."},
    {"role": "user", "content": "Who wrote “Faust”?"},
    {"role": "assistant", "content": "Goethe, in 1808."},
    {"role": "user", "content": "And 𝔘ntil when?"},
    {"role": "assistant", "content": "1832 — 🙂."},
]
Turns = list[tuple[bool, list[int]]]
"""Whether a stretch is trained, and its ids."""

# fmt: off
DEEPSEEK: Final[Turns] = [
    # <｜begin▁of▁sentence｜> Answer _in _one _line .
    (False, [0, 7805, 295, 834, 2562, 16]),
    # <｜User｜> Who _wrote _“ Fa ust ”? <｜Assistant｜>
    (False, [128803, 18387, 8398, 811, 50813, 583, 62251, 128804]),
    # Go ethe , _in _ 180 8 . <｜end▁of▁sentence｜>
    (True, [5188, 19464, 14, 295, 223, 5895, 26, 16, 1]),
    # <｜User｜> And _𝔘 𝔘 𝔘 nt il _when ? <｜Assistant｜>
    (False, [128803, 4195, 83689, 245, 249, 533, 321, 1082, 33, 128804]),
    # 183 2 _— _🙂 . <｜end▁of▁sentence｜>
    (True, [8491, 20, 2136, 68139, 16, 1]),
]
QWEN: Final[Turns] = [
    # <|im_start|> system \n Answer _in _one _line . <|im_end|> \n
    (False, [151644, 8948, 198, 16141, 304, 825, 1555, 13, 151645, 198]),
    # <|im_start|> user \n Who _wrote _“ Fa ust ”? <|im_end|> \n <|im_start|> assistant \n
    (False, [151644, 872, 198, 15191, 6139, 1036, 47234, 590, 72922, 151645, 198, 151644, 77091, 198]),
    # Go ethe , _in _ 1 8 0 8 . <|im_end|>
    (True, [10850, 18522, 11, 304, 220, 16, 23, 15, 23, 13, 151645]),
    # \n <|im_start|> user \n And _𝔘 𝔘 𝔘 nt il _when ? <|im_end|> \n <|im_start|> assistant \n
    (False, [198, 151644, 872, 198, 3036, 81250, 242, 246, 406, 321, 979, 30, 151645, 198, 151644, 77091, 198]),
    # 1 8 3 2 _— _🙂 . <|im_end|>
    (True, [16, 23, 18, 17, 1959, 27484, 13, 151645]),
    # \n
    (False, [198]),
]
TEKKEN: Final[Turns] = [  # This template and the next one move the system message to the last question.
    # <s>
    (False, [1]),
    # [INST] Who _wrote _“ Fa ust ” ? [/INST]
    (False, [3, 31500, 9956, 2129, 50056, 1616, 1414, 1063, 4]),
    # Go ethe , _in _ 1 8 0 8 . </s>
    (True, [13937, 42265, 1044, 1294, 1032, 1049, 1056, 1048, 1056, 1046, 2]),
    # [INST] Answer _in _one _line .\n\n And _𝔘 𝔘 𝔘 𝔘 ntil _when ? [/INST]
    (False, [3, 31106, 1294, 1925, 3110, 1338, 4998, 95750, 1157, 1148, 1152, 27802, 2200, 1063, 4]),
    # 1 8 3 2 _— _🙂 🙂 🙂 . </s>
    (True, [1049, 1056, 1051, 1050, 2251, 119685, 1153, 1130, 1046, 2]),
]
MISTRAL: Final[Turns] = [  # The blank behind [/INST] is the model's to write: the prompt ends before it.
    # <s>
    (False, [1]),
    # [INST] _Who _wrote _“ F a ust ” ? [/INST]
    (False, [3, 7294, 5445, 1749, 29533, 29476, 1237, 29606, 29572, 4]),
    # _Go ethe , _in _ 1 8 0 8 . </s>
    (True, [3955, 14102, 29493, 1065, 29473, 29508, 29551, 29502, 29551, 29491, 2]),
    # [INST] _Answer _in _one _line . \n \n And _ 𝔘 𝔘 𝔘 𝔘 ntil _when ? [/INST]
    (False, [3, 27075, 1065, 1392, 2175, 29491, 781, 781, 3235, 29473, 1011, 928, 919, 923, 13430, 1507, 29572, 4]),
    # _ 1 8 3 2 _— _ 🙂 . </s>
    (True, [29473, 29508, 29551, 29538, 29518, 1808, 29473, 30108, 29491, 2]),
]
# fmt: on
FAMILIES: Final = {
    "deepseek": ("deepseek_v3", MESSAGES, DEEPSEEK),
    "qwen": ("qwen_25", MESSAGES, QWEN),
    "tekken": ("mistral_v3_tekken", MESSAGES, TEKKEN),
    "mistral": ("mistral_v2v3", MESSAGES, MISTRAL),
}


def text_of(turns: Turns, tokenizer: Tokenizer) -> str:
    ids = [number for _, stretch in turns for number in stretch]
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("fast", [True, False], ids=["fastokens", "tokenizers"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_gives_these_tokens_and_labels(
    name: str, fast: bool, repo: Path, tmp_path: Path
) -> None:
    template, messages, turns = FAMILIES[name]
    folder = repo / ".quickstart" / "tokenizers" / name
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    recipe = (
        f"base_model: some/model\nlearning_rate: 0.001\nchat_template: {template}\n"
        "datasets: [{path: inputs/rows.jsonl, type: chat_template}]\n"
    )
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    plan = resolve(normalize(loads(recipe)).flat, Facts(files={}, machine=machine))
    table = Table()
    build(Work(plan.data, tmp_path, AutoTokenizer.from_pretrained(folder), fast=fast), table)
    [row] = table.dataset()
    assert row["input_ids"] == [number for _, ids in turns for number in ids]
    assert row["labels"] == [number if on else -100 for on, ids in turns for number in ids]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lists_are_what_the_library_alone_makes_of_the_text(name: str, repo: Path) -> None:
    """Read as text and tokenized whole, by nothing of ours: what is expected above is right."""
    _, messages, turns = FAMILIES[name]
    tokenizer = Tokenizer.from_file(
        str(repo / ".quickstart" / "tokenizers" / name / "tokenizer.json")
    )
    text = text_of(turns, tokenizer)
    assert tokenizer.encode(text, add_special_tokens=False).ids == [
        number for _, ids in turns for number in ids
    ]
    said = [one["content"] for one in messages if one["role"] == "assistant"]
    trained = [text_of([turn], tokenizer) for turn in turns if turn[0]]
    end = {"deepseek": "<｜end▁of▁sentence｜>", "qwen": "<|im_end|>"}.get(name, "</s>")
    # What SentencePiece writes at the beginning of a text is no blank, and is not decoded.
    assert [words.removeprefix(" ") for words in trained] == [words + end for words in said]
