"""From files to the rows of a run, with the tokenizer of SmolLM2."""

from __future__ import annotations

import copy
import json
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from ft.recipes.plan import DataPlan, DatasetPlan, OptimPlan, RunPlan
from ft.runtime.data.prepare import PreparedData, Progress, prepare, split
from ft.runtime.data.row import DataError

X = -100
EOS = 2
# "one two three four five" is 537 827 1296 1876 2531: a token a word.


def dataset(name: str, kind: str, **changes: Any) -> DatasetPlan:
    values = {
        "path": f"inputs/{name}",
        "type": kind,
        "split": "train",
        "name": None,
        "field": "text",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles": {"user": "user", "assistant": "assistant"},
        "roles_to_train": ("assistant",),
        "train_on_eos": "turn",
        "train_on_eot": "turn",
        "message_field_training": None,
        "message_field_training_detail": None,
        "field_system": "system",
        "field_tools": "tools",
        "field_thinking": "reasoning_content",
        "template_thinking_key": "reasoning_content",
        "split_thinking": False,
        "drop_system_message": False,
        "chat_template": "chatml",
        "chat_template_jinja": None,
        "user_defined": None,
    }
    return DatasetPlan.model_validate(values | changes)


def plan(*sets: DatasetPlan, seed: int = 42, **changes: Any) -> RunPlan:
    """The sections that the data preparation reads; the template is that of every data set."""
    own = {key: changes[key] for key in ("chat_template", "chat_template_jinja") if key in changes}
    sets = tuple(one.model_copy(update=own) for one in sets)
    values = {
        "datasets": sets,
        "test_datasets": (),
        "sequence_len": 8,
        "min_sample_len": 2,
        "excess_length_strategy": "drop",
        "train_on_inputs": False,
        "val_set_size": 0,
        "shuffle_merged_datasets": True,
        "chat_template": "chatml",
        "chat_template_jinja": None,
        "chat_template_kwargs": {},
        "default_system_message": None,
        "eot_tokens": (),
        "date": date(2026, 11, 28),
        "on_bad_row": "stop",
        "sample_packing": False,
        "eval_sample_packing": False,
        "sample_packing_sequentially": False,
        "sample_packing_group_size": None,
        "sample_packing_bin_size": None,
        "pad_to_sequence_len": False,
    }
    data = DataPlan.model_validate(values | changes)
    return RunPlan.model_construct(data=data, optim=OptimPlan.model_construct(seed=seed))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "inputs").mkdir()
    return tmp_path


def write(run: Path, name: str, *rows: Any) -> None:
    (run / "inputs" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def segments(*pairs: tuple[bool, str]) -> dict[str, Any]:
    return {"segments": [{"label": label, "text": text} for label, text in pairs]}


def chat(user: str, assistant: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages}


def rows_of(rows: datasets.Dataset) -> list[tuple[int, list[int], list[int]]]:
    return [(row["row_id"], row["input_ids"], row["labels"]) for row in rows]


def test_data_sets_of_all_formats_are_concatenated_in_their_order(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    write(run, "text.jsonl", {"text": "one two"}, {"text": "one two three four five"})
    write(run, "segments.jsonl", segments((False, "one"), (True, " two")))
    write(run, "alpaca.jsonl", {"instruction": "x", "output": "one"})
    write(run, "chat.jsonl", chat("one", "one two"))
    prepared = prepare(
        plan(
            dataset("text.jsonl", "completion"),
            dataset("chat.jsonl", "chat_template"),
            dataset("segments.jsonl", "input_output"),
            dataset("alpaca.jsonl", "alpaca"),
            sequence_len=40,
        ),
        run,
        smollm2,
    )
    alpaca = [
        *(19798, 314, 354, 5785, 338, 6601, 253, 3856, 30),  # "Below is an instruction … a task."
        *(
            9517,
            253,
            2426,
            338,
            13674,
            32873,
            260,
            3116,
            30,
            198,
            198,
        ),  # " Write a response … request.\n\n"
        *(3757, 20880, 42, 198, 104, 198, 198),  # "### Instruction:\nx\n\n"
        *(3757, 14212, 42, 198),  # "### Response:\n"
    ]
    one_two = [537, 827, EOS]
    five = [537, 827, 1296, 1876, 2531, EOS]
    #            <|im_start|> user \n    one <|im_end|> \n  <|im_start|> ass istant \n
    chat_prompt = [1, 4093, 198, 537, 2, 198, 1, 520, 9531, 198]
    assert rows_of(prepared.train) == [
        (0, one_two, one_two),
        (1, five, five),
        (2, [*chat_prompt, 537, 827, EOS, 198], [*[X] * 10, 537, 827, EOS, X]),
        (3, [537, 827], [X, 827]),
        (4, [*alpaca, 537, EOS], [*[X] * 31, 537, EOS]),
    ]
    assert prepared.eval is None
    assert prepared.counts == {
        "read": 5,
        "bad": 0,
        "rows": 5,
        "too_long": 0,
        "too_short": 0,
        "truncated": 0,
        "untrained": 0,
        "kept": 5,
        "tokens": 3 + 6 + 14 + 2 + 33,
        "trained_tokens": 2 + 5 + 3 + 1 + 2,  # never the first token of a row
    }
    assert prepared.train.features == datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            "labels": datasets.List(datasets.Value("int32")),
            "row_id": datasets.Value("int64"),
        }
    )


def test_a_long_text_is_several_rows_of_one_example(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    write(run, "text.jsonl", {"text": "one two three four five"}, {"text": ""}, {"text": "one two"})
    prepared = prepare(plan(dataset("text.jsonl", "completion"), sequence_len=5), run, smollm2)
    # 5 words and an EOS are 5 + 1 tokens. A lone EOS is shorter than min_sample_len, and so is "".
    assert rows_of(prepared.train) == [
        (0, [537, 827, 1296, 1876, 2531], [537, 827, 1296, 1876, 2531]),
        (1, [537, 827, EOS], [537, 827, EOS]),
    ]
    assert prepared.counts == {
        "read": 3,
        "bad": 0,
        "rows": 4,
        "too_long": 0,
        "too_short": 2,
        "truncated": 0,
        "untrained": 0,
        "kept": 2,
        "tokens": 8,
        "trained_tokens": 6,
    }


LENGTHS = [
    segments((True, "one")),  # 1: too short
    segments((False, "one"), (True, " two")),  # 2: shortest
    segments((False, "one two"), (False, " three")),  # 3, nothing trained
    segments((False, "one two"), (True, " three four")),  # 4: longest
    segments((False, "one two"), (True, " three four five")),  # 5: too long
    segments((False, "one two three four"), (True, " five")),  # 5: too long, its label is cut off
    segments((False, "")),  # 0
]


@pytest.mark.parametrize(
    ("strategy", "last", "counts"),
    [
        ("drop", [], {"too_long": 2, "truncated": 0, "untrained": 1, "kept": 2}),
        (
            "truncate",
            [(2, [537, 827, 1296, 1876], [X, X, 1296, 1876])],
            {"too_long": 0, "truncated": 2, "untrained": 2, "kept": 3},
        ),
    ],
)
def test_length_and_labels_decide_what_is_kept(
    run: Path,
    smollm2: PreTrainedTokenizerBase,
    strategy: str,
    last: list[Any],
    counts: dict[str, int],
) -> None:
    write(run, "a.jsonl", *LENGTHS)
    setup = plan(
        dataset("a.jsonl", "input_output"), sequence_len=4, excess_length_strategy=strategy
    )
    prepared = prepare(setup, run, smollm2)
    assert rows_of(prepared.train) == [
        (0, [537, 827], [X, 827]),
        (1, [537, 827, 1296, 1876], [X, X, 1296, 1876]),
        *last,
    ]
    found = prepared.counts
    assert {name: found[name] for name in counts} == counts
    assert (found["read"], found["rows"], found["too_short"]) == (7, 7, 2)
    assert found["rows"] == sum(found[f] for f in ("too_long", "too_short", "untrained", "kept"))


def test_a_long_row_can_be_an_error_with_its_place(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    write(run, "a.jsonl", *LENGTHS)
    setup = plan(dataset("a.jsonl", "input_output"), sequence_len=4, excess_length_strategy="raise")
    with pytest.raises(DataError) as caught:
        prepare(setup, run, smollm2)
    error = caught.value
    assert (error.path, error.row, error.unit) == ("inputs/a.jsonl", 5, "line")
    assert error.reason.startswith("has 5 tokens, more than `sequence_len` 4.")


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("alpaca", {"instruction": "x"}, "has no column `output`; its columns: `instruction`."),
        (
            "chat_template",
            {"messages": [{"role": "bot", "content": "Hi"}]},
            "message 1: unknown role `bot`. Known roles: `user`, `assistant`; add it under `roles:`.",
        ),
        ("completion", {"text": "a\ud83d"}, "character 2 is half of a surrogate pair, no text."),
    ],
)
def test_a_bad_row_is_named(
    run: Path, smollm2: PreTrainedTokenizerBase, kind: str, row: Any, reason: str
) -> None:
    good = {"instruction": "x", "output": "y", "text": "one two", **chat("one", "two")}
    write(run, "a.jsonl", *[good] * 16, row)
    with pytest.raises(DataError) as caught:
        prepare(plan(dataset("a.jsonl", kind), sequence_len=64), run, smollm2)
    error = caught.value
    assert (error.path, error.row, error.unit, error.reason) == (
        "inputs/a.jsonl",
        17,
        "line",
        reason,
    )
    assert error.excerpt.startswith("{")


def test_a_mask_that_is_not_certain_is_named(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    (run / "inputs" / "lower.jinja").write_text(
        "{% for m in messages %}{{ m.content | lower + eos_token }}{% endfor %}"
    )
    write(run, "a.jsonl", chat("one", "two"), chat("one", "Two"))
    setup = plan(
        dataset("a.jsonl", "chat_template"),
        chat_template="jinja",
        chat_template_jinja="inputs/lower.jinja",
    )
    with pytest.raises(
        DataError, match=r"a\.jsonl, line 2: message 2 \(assistant\): the template changes"
    ):
        prepare(setup, run, smollm2)


def test_a_template_may_stand_in_the_plan(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    write(run, "a.jsonl", chat("one", "one"))
    setup = plan(
        dataset("a.jsonl", "chat_template"),
        chat_template="jinja",
        chat_template_jinja="{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    )
    prepared = prepare(setup, run, smollm2)
    assert rows_of(prepared.train) == [(0, [537, EOS, 537, EOS], [X, X, 537, EOS])]


def test_the_template_of_the_tokenizer(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    write(run, "a.jsonl", chat("one", "one"))
    setup = plan(
        dataset("a.jsonl", "chat_template"), chat_template="tokenizer_default", sequence_len=64
    )
    # The system message of its own is 21 tokens, the user's turn 6, the assistant's 7.
    assert prepare(setup, run, smollm2).counts["tokens"] == 34
    without = copy.deepcopy(smollm2)
    without.chat_template = None
    with pytest.raises(
        DataError, match="the tokenizer has no chat template; set `chat_template: chatml`"
    ):
        prepare(setup, run, without)


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        ([], {}, "no row is left for training, of 0 examples read"),
        (
            [segments((True, "one")), segments((False, "one two"))],
            {},
            "no row is left for training, of 2 examples read: 1 too short, 1 untrained",
        ),
        (
            [segments((False, "one"), (True, " two"))] * 2,
            {"val_set_size": 2},
            "`val_set_size` holds out all 2 rows, none are left for training",
        ),
        (
            [segments((False, "one"), (True, " two"))] * 2,
            {"val_set_size": 0.9},
            "`val_set_size` holds out all 2 rows, none are left for training",
        ),
    ],
)
def test_nothing_to_train_on(
    run: Path,
    smollm2: PreTrainedTokenizerBase,
    rows: list[Any],
    changes: dict[str, Any],
    reason: str,
) -> None:
    write(run, "a.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        prepare(plan(dataset("a.jsonl", "input_output"), **changes), run, smollm2)
    assert (caught.value.path, caught.value.reason) == ("inputs/a.jsonl", reason)


# Of 10 rows with seed 42: those with the lowest random bits, whose first bytes are
# 77 0b 98 1b f9 77 d5 15 a0 2d.
HELD_OUT = [1, 3, 7]


def numbered(
    run: Path, smollm2: PreTrainedTokenizerBase, count: int, **changes: Any
) -> PreparedData:
    write(run, "n.jsonl", *(segments((False, "one"), (True, f" {n}")) for n in range(count)))
    return prepare(plan(dataset("n.jsonl", "input_output"), **changes), run, smollm2)


def test_held_out_rows_keep_their_ids_and_their_order(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    prepared = numbered(run, smollm2, 10, val_set_size=0.25)
    assert prepared.eval is not None
    # 2.5 rows are 3.
    assert prepared.eval["row_id"][:] == HELD_OUT
    assert prepared.train["row_id"][:] == [n for n in range(10) if n not in HELD_OUT]
    assert prepared.counts["kept"] == 10
    for part in (prepared.train, prepared.eval):
        said = [smollm2.decode(ids) for ids in part["input_ids"]]
        assert said == [f"one {n}" for n in part["row_id"]]


def test_the_seed_alone_decides_what_is_held_out(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    first = numbered(run, smollm2, 10, val_set_size=3)
    again = numbered(run, smollm2, 10, val_set_size=3)
    other = numbered(run, smollm2, 10, val_set_size=3, seed=1)
    assert first.eval is not None
    assert again.eval is not None
    assert other.eval is not None
    assert rows_of(first.eval) == rows_of(again.eval)
    assert rows_of(first.train) == rows_of(again.train)
    assert first.eval["row_id"][:] == HELD_OUT
    assert other.eval["row_id"][:] != HELD_OUT


@given(
    rows=st.integers(0, 60),
    size=st.one_of(st.integers(0, 70), st.floats(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_loses_no_row(rows: int, size: float, seed: int) -> None:
    train, held_out = split(rows, size, seed)
    assert sorted([*train, *held_out]) == list(range(rows))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()


@pytest.mark.parametrize(
    ("rows", "size", "held_out"),
    [
        (10, 0, 0),
        (10, 0.0, 0),
        (10, 0.01, 1),  # a share is rounded up
        (10, 0.1, 1),
        (10, 0.30000000000000004, 3),  # 0.1 + 0.2
        (10, 0.31, 4),
        (10, 1, 10),  # a share up to 1 …
        (10, 1.0, 10),
        (10, 2, 2),  # … a count above
        (10, 50, 10),
    ],
)
def test_the_size_of_a_split(rows: int, size: float, held_out: int) -> None:
    assert [len(part) for part in split(rows, size, 0)] == [rows - held_out, held_out]


def test_progress_is_told_after_every_chunk(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    write(run, "a.jsonl", *[segments((False, "one"), (True, " two"))] * 600)
    size = (run / "inputs" / "a.jsonl").stat().st_size
    calls: list[Progress] = []
    prepare(plan(dataset("a.jsonl", "input_output")), run, smollm2, calls.append)
    assert calls == [Progress(600, 1200, size)]


def test_many_rows_keep_their_numbers(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    # More than one Arrow batch, and rows of different length on both sides of the border.
    count = 4096 + 10
    write(
        run,
        "a.jsonl",
        *(segments((False, "one"), (True, " two" * (1 + n % 3))) for n in range(count)),
    )
    rows = prepare(plan(dataset("a.jsonl", "input_output")), run, smollm2).train
    assert rows["row_id"][:] == list(range(count))
    assert [len(ids) for ids in rows["input_ids"]] == [2 + n % 3 for n in range(count)]
    assert rows[4096] == {"row_id": 4096, "input_ids": [537, 827, 827], "labels": [X, 827, 827]}


def test_the_same_rows_are_the_same_data_set(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    before = sorted(run.rglob("*"))
    first, again = (numbered(run, smollm2, 5).train._fingerprint for _ in range(2))
    other = numbered(run, smollm2, 6).train._fingerprint
    assert first == again != other
    assert [path.name for path in sorted(run.rglob("*")) if path not in before] == ["n.jsonl"]


def test_rows_can_be_saved_and_loaded(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    # How the ranks of a node share them.
    prepared = numbered(run, smollm2, 10, val_set_size=3)
    prepared.train.save_to_disk(run / "train")
    assert rows_of(datasets.load_from_disk(run / "train")) == rows_of(prepared.train)


def test_a_token_that_ends_a_turn_is_one_of_the_vocabulary(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    write(run, "a.jsonl", chat("one", "two"))
    setup = plan(dataset("a.jsonl", "chat_template"), eot_tokens=("<|im_end|>", "<end_of_turn>"))
    with pytest.raises(DataError) as caught:
        prepare(setup, run, smollm2)
    assert caught.value.reason == (
        "`eot_tokens`: '<end_of_turn>' is not one token of the vocabulary; take it out, or add it with `tokens`"
    )


def test_bad_rows_can_be_left_out_and_are_counted(
    run: Path, smollm2: PreTrainedTokenizerBase
) -> None:
    write(run, "a.jsonl", {"text": "one two"}, {"txt": "x"}, {"text": 3}, {"text": "one"})
    prepared = prepare(plan(dataset("a.jsonl", "completion"), on_bad_row="skip"), run, smollm2)
    assert rows_of(prepared.train) == [
        (0, [537, 827, EOS], [537, 827, EOS]),
        (1, [537, EOS], [537, EOS]),
    ]
    found = prepared.counts
    assert (found["read"], found["bad"], found["rows"], found["kept"]) == (4, 2, 2, 2)
    write(run, "a.jsonl", {"txt": "x"})
    with pytest.raises(DataError, match="no row is left for training, of 1 examples read: 1 bad"):
        prepare(plan(dataset("a.jsonl", "completion"), on_bad_row="skip"), run, smollm2)


def test_tokens_stay_as_they_are(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    row = {"input_ids": [0, 537, 827], "labels": [X, X, 827], "attention_mask": [0, 1, 1]}
    write(run, "a.jsonl", row)
    prepared = prepare(plan(dataset("a.jsonl", "pretokenized")), run, smollm2)
    assert rows_of(prepared.train) == [(0, [537, 827], [X, 827])]


def test_each_data_set_has_its_own_template(run: Path, smollm2: PreTrainedTokenizerBase) -> None:
    write(run, "a.jsonl", chat("one", "two"))
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    own = {"chat_template": "jinja", "chat_template_jinja": template}
    sets = [dataset("a.jsonl", "chat_template"), dataset("a.jsonl", "chat_template", **own)]
    setup = plan(*sets)
    setup = RunPlan.model_construct(
        data=setup.data.model_copy(update={"datasets": tuple(sets), "sequence_len": 64}),
        optim=setup.optim,
    )
    prepared = prepare(setup, run, smollm2)
    assert [len(row[1]) for row in rows_of(prepared.train)] == [13, 4]
