"""Segments to ids and labels, with the tokenizer of SmolLM2. Whole lists; X is a token without a label."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from ft.recipes.plan import DataPlan, DatasetPlan
from ft.runtime.data.engine import Engine
from ft.runtime.data.row import RowError, Segment, SegmentsRow
from ft.runtime.data.rows import Made, Maker, chunked, limited, trained_tokens
from ft.runtime.data.tokenize import IGNORED, Tokens

X = IGNORED
EOS = 2


@pytest.fixture(scope="module")
def with_bos(smollm2: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same vocabulary in a tokenizer that puts a BOS (1) in front of a text and an EOS behind it."""
    tokenizer = copy.deepcopy(smollm2)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", EOS)],
    )
    assert tokenizer("Hi")["input_ids"] == [1, 26843, EOS]
    return tokenizer


PROMPT = "### Instruction:\nName a color.\n\n### Response:\n"
PROMPT_IDS = [
    *(3757, 20880, 42, 198),  # "###" " Instruction" ":" "\n"
    *(5820, 253, 2380, 30, 198, 198),  # "Name" " a" " color" "." "\n" "\n"
    *(3757, 14212, 42, 198),  # "###" " Response" ":" "\n"
]
ALPACA = SegmentsRow(
    (Segment(PROMPT, False), Segment("Blue.", True)), special_tokens=True, eos=True
)


def tokens(
    row: SegmentsRow, tokenizer: PreTrainedTokenizerBase, *, train_on_inputs: bool = False
) -> Tokens:
    spec = DatasetPlan.model_construct(type="input_output")
    data = DataPlan.model_construct(train_on_inputs=train_on_inputs, on_bad_row="stop")
    return Maker(spec, data, Path(), tokenizer, Engine(tokenizer)).tokens(row)


def test_a_response_is_trained_with_its_eos_and_the_prompt_is_not(
    smollm2: PreTrainedTokenizerBase,
) -> None:
    ids = [*PROMPT_IDS, 23390, 30, EOS]  # "Blue" "."
    assert tokens(ALPACA, smollm2) == Tokens(ids, [X] * 14 + [23390, 30, EOS])


def test_train_on_inputs_trains_the_prompt_too(smollm2: PreTrainedTokenizerBase) -> None:
    ids = [*PROMPT_IDS, 23390, 30, EOS]
    assert tokens(ALPACA, smollm2, train_on_inputs=True) == Tokens(ids, ids)


def test_a_bos_stands_in_front_once_and_no_eos_before_the_response(
    with_bos: PreTrainedTokenizerBase,
) -> None:
    ids = [1, *PROMPT_IDS, 23390, 30, EOS]
    assert tokens(ALPACA, with_bos) == Tokens(ids, [X] * 15 + [23390, 30, EOS])


def test_an_eos_that_is_there_is_not_doubled(smollm2: PreTrainedTokenizerBase) -> None:
    row = SegmentsRow(
        (Segment("Q", False), Segment(" no<|im_end|>", True)), special_tokens=True, eos=True
    )
    assert tokens(row, smollm2) == Tokens([65, 787, EOS], [X, 787, EOS])


def test_an_empty_response_is_an_eos(smollm2: PreTrainedTokenizerBase) -> None:
    row = SegmentsRow((Segment("Q", False), Segment("", True)), special_tokens=True, eos=True)
    assert tokens(row, smollm2) == Tokens([65, EOS], [X, EOS])


TEXT = SegmentsRow(
    (Segment("one two three four five", True),), special_tokens=True, eos=True, chunks=True
)
TEXT_IDS = [537, 827, 1296, 1876, 2531]  # one token a word


def test_a_text_is_trained_as_a_whole(
    smollm2: PreTrainedTokenizerBase, with_bos: PreTrainedTokenizerBase
) -> None:
    assert tokens(TEXT, smollm2) == Tokens([*TEXT_IDS, EOS], [*TEXT_IDS, EOS])
    assert tokens(TEXT, with_bos) == Tokens([1, *TEXT_IDS, EOS], [1, *TEXT_IDS, EOS])


@pytest.mark.parametrize(
    ("size", "lengths"), [(6, [6]), (5, [5, 1]), (4, [4, 2]), (2, [2, 2, 2]), (1, [1] * 6)]
)
def test_a_long_row_is_cut_into_several(size: int, lengths: list[int]) -> None:
    ids = np.arange(7, dtype=np.int32)
    made = Made(ids, ids, np.array([0, 6, 1]), np.array([1, 2, 3]))
    cut = chunked(made, np.array([True, True, True]), size)
    assert cut.lengths.tolist() == [0, *lengths, 1]
    assert cut.examples.tolist() == [1, *[2] * len(lengths), 3]
    # One that is not cut stays as it is.
    assert chunked(made, np.array([True, False, True]), size).lengths.tolist() == [0, 6, 1]


def test_rows_are_cut_to_their_limits() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6], np.int32)
    labels = np.array([X, 2, 3, X, 5, 6], np.int32)
    made = Made(ids, labels, np.array([3, 0, 1, 2]), np.array([1, 2, 3, 4]))
    found = limited(made, np.array([2, 0, 0, 2]))
    assert (found.ids.tolist(), found.labels.tolist()) == ([1, 2, 5, 6], [X, 2, 5, 6])
    assert (found.lengths.tolist(), found.examples.tolist()) == ([2, 2], [1, 4])
    assert limited(made, np.zeros(4, np.int64)).ids.tolist() == []


def test_the_first_token_of_a_row_is_never_counted_as_trained() -> None:
    labels = np.array([1, X, 3, X, 5, X], np.int32)
    assert trained_tokens(labels, np.array([3, 0, 2, 1])).tolist() == [1, 0, 1, 0]


def test_segments_get_nothing_added(with_bos: PreTrainedTokenizerBase) -> None:
    segments = (Segment("Q: ", False), Segment("A: yes", True), Segment(" no", False))
    row = SegmentsRow(segments, special_tokens=False, eos=False)
    ids = [
        *(65, 42, 216),  # "Q" ":" " ": the space does not join the next segment
        *(49, 42, 9805),  # "A" ":" " yes"
        787,  # " no"
    ]
    assert tokens(row, with_bos) == Tokens(ids, [X, X, X, 49, 42, 9805, X])
    assert tokens(row, with_bos, train_on_inputs=True) == Tokens(ids, ids)


def test_no_text_is_a_row_of_no_tokens(smollm2: PreTrainedTokenizerBase) -> None:
    row = SegmentsRow((Segment("", True),), special_tokens=False, eos=False)
    assert tokens(row, smollm2) == Tokens([], [])


def test_trained_tokens_leave_out_the_first_one() -> None:
    # Nothing stands before it to predict it from.
    assert Tokens([5, 6, 7], [5, 6, X]).trained == 1
    assert Tokens([5], [5]).trained == 0


def test_half_a_surrogate_pair_is_refused(smollm2: PreTrainedTokenizerBase) -> None:
    row = SegmentsRow((Segment("ab\ud83d", True),), special_tokens=True, eos=True)
    with pytest.raises(RowError, match="character 3 is half of a surrogate pair"):
        tokens(row, smollm2)


def test_a_tokenizer_without_an_eos_is_refused(smollm2: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(smollm2)
    tokenizer.eos_token = None
    with pytest.raises(RowError, match="the tokenizer has no EOS token; set `special_tokens"):
        tokens(TEXT, tokenizer)
