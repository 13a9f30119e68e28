"""The same rows whoever makes them: alone or together, in one process or several, now or found again."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ft.recipes import prepared as cache
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.references import references
from ft.recipes.resolve import resolve
from ft.runtime.data import apart, key
from ft.runtime.data.engine import Engine
from ft.runtime.data.prepare import PreparedData, Progress, prepare
from ft.runtime.data.render import Renderer
from ft.runtime.data.row import DataError
from ft.runtime.data.rows import Maker
from ft.runtime.data.sources import Chunk
from ft.runtime.data.work import Work

CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
WORDS = "one two three four five six seven eight nine ten".split()


def chat(*turns: str, **columns: Any) -> dict[str, Any]:
    """A conversation that the user begins."""
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)],
        **columns,
    }


ROWS = [
    chat(*(" ".join(WORDS[: 1 + (n + k) % 10]) for k in range(2 + 2 * (n % 3)))) for n in range(300)
]


class Run:
    """A run folder with data files, and plans for it."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.inputs = folder / "inputs"
        self.inputs.mkdir()

    def write(self, name: str, rows: list[Any]) -> Path:
        path = self.inputs / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def plan(self, recipe: str = "", *, name: str = "chat.jsonl", more: str = "") -> RunPlan:
        text = f"base_model: inputs/model\nlearning_rate: 0.001\n{recipe}\n"
        text += "" if "sequence_len" in recipe else "sequence_len: 512\n"
        text += f"datasets: [{{path: inputs/{name}, type: chat_template{more}}}]\n"
        flat = normalize(loads(text)).flat
        files = {
            reference.key: self._fact(reference.value.removeprefix("inputs/"))
            for reference in references(flat)
            if reference.kind == "data"
        }
        return resolve(flat, Facts(files=files, machine=CPU))

    def _fact(self, name: str) -> FileFact:
        content = (self.inputs / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return FileFact("data", self.inputs / name, name, digest, len(content))

    def work(self, plan: RunPlan | None = None) -> Work:
        return Work((plan or self.plan()).data, self.folder, self.tokenizer)

    def prepare(self, plan: RunPlan | None = None, **how: Any) -> PreparedData:
        return prepare(plan or self.plan(), self.folder, self.tokenizer, **how)


@pytest.fixture
def run(tmp_path: Path, smollm2: PreTrainedTokenizerBase) -> Run:
    found = Run(tmp_path, smollm2)
    found.write("chat.jsonl", ROWS)
    return found


def lists(rows: datasets.Dataset | None) -> list[tuple[int, list[int], list[int]]]:
    assert rows is not None
    return [(row["row_id"], row["input_ids"], row["labels"]) for row in rows]


def test_several_processes_make_the_same_rows_in_the_same_order(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ft.runtime.data.sources.CHUNK_BYTES", 4096)
    one, three = run.prepare(), run.prepare(num_processes=3)
    assert lists(one.train) == lists(three.train)
    assert one.counts == three.counts
    assert one.counts["kept"] == 300


def test_one_row_is_the_same_as_all_of_them(run: Run) -> None:
    plan = run.plan()
    spec = plan.data.datasets[0]
    maker = Maker(spec, plan.data, run.folder, run.tokenizer, Engine(run.tokenizer, fast=False))
    found = lists(run.prepare(plan).train)
    for index in range(0, 300, 17):
        (row,) = [maker.make(Chunk("x", "row", [1], [ROWS[index]]))]
        assert (index, row.ids.tolist(), row.labels.tolist()) == found[index]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=2, max_size=7
    )
)
def test_what_is_trained_reads_as_what_the_assistant_said(run: Run, turns: list[str]) -> None:
    """Its words and the end of its turn, to the letter; and every label is its id or -100."""
    plan = run.plan("chat_template: chatml")
    maker = Maker(
        plan.data.datasets[0],
        plan.data,
        run.folder,
        run.tokenizer,
        Engine(run.tokenizer, fast=False),
    )
    try:
        made = maker.make(Chunk("x", "row", [1], [chat(*turns)]))
    except DataError as error:
        # White space that a token takes in with the template's own: refused, never trained by guesswork.
        assert "meet inside the token" in error.reason
        return
    if not len(made.lengths):
        assert made.counts["untrained"] + made.counts["too_long"] == 1
        return
    assert set(made.labels[made.labels != -100] == made.ids[made.labels != -100]) <= {True}
    trained = run.tokenizer.decode(made.ids[made.labels != -100].tolist())
    said = "".join(f"{turn}<|im_end|>" for turn in turns[1::2])
    # The vocabulary of this tokenizer lacks some bytes of control characters.
    if run.tokenizer.decode(run.tokenizer(said)["input_ids"]) == said:
        assert trained == said


# -------------------------------------------------------------------------------------------- the cache


def test_rows_are_found_again(run: Run, tmp_path: Path) -> None:
    root, calls = tmp_path / "root", list[Progress]()
    first = run.prepare(root=root, watch=calls.append)
    assert calls
    calls.clear()
    again = run.prepare(root=root, watch=calls.append)
    assert calls == []
    assert lists(first.train) == lists(again.train) == lists(run.prepare().train)
    assert first.counts == again.counts
    assert first.train._fingerprint == again.train._fingerprint


def entries(root: Path) -> int:
    return len(list(cache.entries(root)))


def test_one_other_byte_is_another_entry_and_a_touch_is_not(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run.prepare(root=root)
    file = run.inputs / "chat.jsonl"
    os.utime(file, (1, 1))
    run.prepare(root=root)
    assert entries(root) == 1
    text = file.read_text()
    file.write_text(text.replace("one two", "two one", 1))
    assert run.prepare(run.plan(), root=root).train[0] != run.prepare(root=None).train[1]
    assert entries(root) == 2
    file.write_text(text)
    run.prepare(root=root)
    assert entries(root) == 2


def test_another_name_and_folder_are_the_same_rows(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run.prepare(root=root)
    shutil.move(run.inputs / "chat.jsonl", run.inputs / "other.jsonl")
    run.prepare(run.plan(name="other.jsonl"), root=root)
    assert entries(root) == 1


@pytest.mark.parametrize(
    ("recipe", "more", "same"),
    [
        ("val_set_size: 0.1", "", True),
        ("seed: 7", "", True),
        ("shuffle_merged_datasets: false", "", True),
        ("micro_batch_size: 4", "", True),
        ("sequence_len: 600", "", False),
        ("min_sample_len: 3", "", False),
        ("excess_length_strategy: truncate", "", False),
        ("train_on_inputs: true", "", False),
        ("chat_template: chatml", "", False),
        ("", ", roles_to_train: [user]", False),
        ("", ", train_on_eos: last", False),
        ("", ", split: 'train[:50%]'", False),
    ],
)
def test_every_option_that_matters_is_part_of_the_key(
    run: Run, recipe: str, more: str, same: bool
) -> None:
    base = key.of(key.made_of(run.plan(), run.work()))
    plan = run.plan(recipe, more=more)
    assert (key.of(key.made_of(plan, run.work(plan))) == base) is same


TEST = "test_datasets: [{path: inputs/test.jsonl, type: chat_template}]"


def test_rows_to_evaluate_on_follow_those_to_train_on(run: Run, tmp_path: Path) -> None:
    run.write("test.jsonl", ROWS[1:3])
    alone = run.prepare()
    others = run.prepare(run.plan(name="test.jsonl"))
    for root in (None, tmp_path / "root"):
        data = run.prepare(run.plan(TEST), root=root)
        assert data.eval is not None
        assert lists(data.train) == lists(alone.train)
        count = len(alone.train)
        assert lists(data.eval) == [(count + n, *row) for n, *row in lists(others.train)]
        assert lists(data.rows) == lists(data.train) + lists(data.eval)
        assert data.counts == {
            name: alone.counts[name] + others.counts[name] for name in alone.counts
        }


def test_rows_to_evaluate_on_are_kept_for_themselves(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run.write("test.jsonl", ROWS[1:3])
    train = run.prepare(root=root)
    data = run.prepare(run.plan(TEST), root=root)
    assert (entries(root), data.was_there) == (2, False)
    assert data.folders[:1] == train.folders
    # Found as any rows of that file would be; a changed one makes only its own rows anew.
    assert run.prepare(run.plan(name="test.jsonl"), root=root).folders == data.folders[1:]
    assert run.prepare(run.plan(TEST), root=root).was_there
    run.write("test.jsonl", ROWS[1:2])
    again = run.prepare(run.plan(TEST), root=root)
    assert (entries(root), again.was_there, again.folders[0]) == (3, False, data.folders[0])
    assert again.eval is not None
    assert len(again.eval) == 1


def test_progress_goes_on_from_one_list_to_the_other(run: Run, tmp_path: Path) -> None:
    run.write("test.jsonl", ROWS[1:3])
    for kept in (False, True):
        seen: list[Progress] = []
        data = run.prepare(run.plan(TEST), watch=seen.append, root=tmp_path / "root")
        sizes = [(run.inputs / name).stat().st_size for name in ("chat.jsonl", "test.jsonl")]
        end = Progress(data.counts["read"], data.counts["tokens"], sum(sizes))
        assert seen == ([] if kept else [*seen[:-1], end])
        assert [at.bytes for at in seen] == sorted(at.bytes for at in seen)


def test_a_file_of_two_slices_is_read_twice(run: Run) -> None:
    two = "test_datasets: [{path: inputs/chat.jsonl, type: chat_template, split: 'train[200:]'}]"
    plan = run.plan(two, more=", split: 'train[:200]'")
    seen: list[Progress] = []
    data = run.prepare(plan, watch=seen.append)
    size = (run.inputs / "chat.jsonl").stat().st_size
    assert apart.data_bytes(plan) == 2 * size
    assert max(at.bytes for at in seen) <= 2 * size
    assert (len(data.train), len(data.eval or ())) == (200, 100)


def test_nothing_left_to_evaluate_on_is_an_error(run: Run) -> None:
    run.write("test.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    with pytest.raises(DataError) as caught:
        run.prepare(run.plan(TEST))
    assert str(caught.value) == (
        "inputs/test.jsonl: no row is left for evaluation, of 1 examples read: 1 untrained."
    )


DATED = (
    "chat_template_jinja: \"{{ strftime_now('%d %b %Y %H:%M') }} {% for m in messages %}"
    '{{ m.content }}{{ eos_token }}{% endfor %}"'
)


@pytest.mark.parametrize("rich", [False, True])
def test_a_template_writes_the_day_of_the_plan(run: Run, rich: bool) -> None:
    """Whatever day it is where rows are made, and whichever way they are rendered."""
    more = [{"role": "tool", "content": "x", "name": "f"}] if rich else []
    run.write("chat.jsonl", [{"messages": [*chat("a", "b")["messages"], *more]}])
    plan = run.plan(DATED)
    plan = plan.model_copy(
        update={"data": plan.data.model_copy(update={"date": date(2024, 2, 29)})}
    )
    [row] = run.prepare(plan).train
    assert run.tokenizer.decode(row["input_ids"]).startswith(
        "29 Feb 2024 00:00 a<|im_end|>b<|im_end|>"
    )


def test_the_day_holds_for_templates_by_name_and_for_nobody_else(run: Run) -> None:
    text = "{{ strftime_now('%Y') }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    named = copy.deepcopy(run.tokenizer)
    named.chat_template = {"default": text, "tool_use": text}
    messages = chat("a", "b")["messages"]
    for day in (date(2001, 1, 1), date(2002, 1, 1)):
        assert Renderer(named, None, day=day).render(messages, None) == f"{day.year} ab"
        assert Renderer(run.tokenizer, text, day=day).plain(messages) == f"{day.year} ab"
    year = str(date.today().year)
    assert Renderer(named, None).render(messages, None) == f"{year} ab"
    assert run.tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False) == (
        f"{year} ab"
    )


def test_the_day_is_part_of_the_key_where_a_template_asks_for_it(run: Run) -> None:
    for recipe, same in (("", True), (DATED, False)):
        plan = run.plan(recipe)
        later = plan.model_copy(
            update={"data": plan.data.model_copy(update={"date": date(2030, 1, 1)})}
        )
        names = {key.of(key.made_of(one, run.work(one))) for one in (plan, later)}
        assert (len(names) == 1) is same
        assert later.sha256 == plan.sha256


def test_the_tokenizer_is_part_of_the_key(run: Run, repo: Path) -> None:
    plan = run.plan("chat_template: chatml")
    base = key.made_of(plan, run.work(plan))
    qwen = AutoTokenizer.from_pretrained(repo / ".quickstart" / "tokenizers" / "qwen")
    other = key.made_of(plan, Work(plan.data, run.folder, qwen))
    assert base["tokenizer"] != other["tokenizer"]
    assert {**base, "tokenizer": ""} == {**other, "tokenizer": ""}


def test_a_process_of_its_own_makes_the_same_rows(run: Run, repo: Path, tmp_path: Path) -> None:
    (run.inputs / "model").symlink_to(repo / ".quickstart" / "SmolLM2-135M-Instruct")
    plan, root, told = run.plan(), tmp_path / "root", list[Any]()
    (run.folder / "plan.json").write_text(plan.to_json())
    apart.build_apart(run.folder, root, lambda: None, told.append)
    assert [said["event"] for said in told] == ["progress", "done"]
    assert told[-1]["counts"]["kept"] == 300
    calls: list[Progress] = []
    found = run.prepare(plan, root=root, watch=calls.append)
    assert calls == []
    assert lists(found.train) == lists(run.prepare().train)


def test_a_process_of_its_own_can_be_stopped_and_says_what_is_wrong(
    run: Run, repo: Path, tmp_path: Path
) -> None:
    (run.inputs / "model").symlink_to(repo / ".quickstart" / "SmolLM2-135M-Instruct")
    run.write("chat.jsonl", [*ROWS[:4], {"messages": 3}])
    (run.folder / "plan.json").write_text(run.plan().to_json())
    with pytest.raises(DataError) as caught:
        apart.build_apart(run.folder, tmp_path / "root", lambda: None)
    assert str(caught.value) == (
        "inputs/chat.jsonl, line 5: `messages` holds a number, expected a list. "
        'It begins: {"messages": 3}'
    )

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        apart.build_apart(run.folder, tmp_path / "root", stop)


# --------------------------------------------------------------------------------------------- bad data

BROKEN = [
    (b'{"messages": [}\n', "is not JSON: Expecting value at character 15"),
    (b'{"text": "Hi"}\n', "has no column `messages`; its columns: `text`."),
    (b'{"messages": "Hi"}\n', "`messages` holds text that is not JSON"),
    (
        b'{"messages": [{"role": "user", "content": NaN}]}\n',
        "message 1: `content` holds null, expected text.",
    ),
    (
        b'{"messages": [{"role": "robot", "content": "x"}]}\n',
        "message 1: unknown role `robot`.",
    ),
    (b'{"messages": [{"role": "user", "content": "\xff"}]}\n', "is not UTF-8 at byte 44"),
    (b"[1, 2]\n", "is a list, expected an object"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_bad_row_is_named_and_ends_the_preparation(run: Run, line: bytes, reason: str) -> None:
    good = [json.dumps(row).encode() + b"\n" for row in ROWS[:20]]
    (run.inputs / "chat.jsonl").write_bytes(b"".join([*good[:16], line, *good[16:]]))
    with pytest.raises(DataError) as caught:
        run.prepare(run.plan())
    error = caught.value
    assert (error.path, error.unit, error.row) == ("inputs/chat.jsonl", "line", 17)
    assert error.reason.startswith(reason)


def test_bad_rows_can_be_skipped_and_are_listed(run: Run, tmp_path: Path) -> None:
    good = [json.dumps(row).encode() + b"\n" for row in ROWS[:20]]
    lines = [*good[:16], *(line for line, _ in BROKEN), *good[16:]]
    (run.inputs / "chat.jsonl").write_bytes(b"".join(lines))
    plan, root = run.plan("on_bad_row: skip"), tmp_path / "root"
    prepared = run.prepare(plan, root=root)
    assert (prepared.counts["read"], prepared.counts["bad"], prepared.counts["kept"]) == (27, 7, 20)
    clean = Run(tmp_path / "clean", run.tokenizer) if (tmp_path / "clean").mkdir() is None else run
    clean.write("chat.jsonl", ROWS[:20])
    assert lists(prepared.train) == lists(clean.prepare(clean.plan()).train)
    ((folder, meta),) = cache.entries(root)
    bad = [json.loads(line) for line in (folder / cache.BAD).read_text().splitlines()]
    assert [row["row"] for row in bad] == list(range(17, 24))
    assert all(
        row["reason"].startswith(reason) for row, (_, reason) in zip(bad, BROKEN, strict=True)
    )
    assert meta.counts == prepared.counts


def test_a_shortened_entry_is_made_anew(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run.prepare(root=root)
    ((folder, _),) = cache.entries(root)
    rows = folder / cache.ROWS
    # Cut, an Arrow stream reads like a shorter one.
    rows.write_bytes(rows.read_bytes()[:-8])
    found = run.prepare(root=root)
    assert (found.was_there, len(found.train)) == (False, 300)


def test_several_processes_say_what_one_says(run: Run, smollm2: PreTrainedTokenizerBase) -> None:
    without = copy.deepcopy(smollm2)
    without.chat_template = None
    for num_processes in (1, 2):
        with pytest.raises(DataError, match="the tokenizer has no chat template"):
            prepare(run.plan(), run.folder, without, num_processes=num_processes)


def test_the_first_bad_row_is_the_one_that_is_named(run: Run, smollm2: Any) -> None:
    run.write("chat.jsonl", [*ROWS[:3], {"text": "no messages"}])
    (run.inputs / "broken.csv").write_text('messages\n"open')
    plan = run.plan()
    (one,) = plan.data.datasets
    two = one.model_copy(update={"path": "inputs/broken.csv"})
    data = plan.data.model_copy(update={"datasets": (one, two)})
    for num_processes in (1, 2):
        with pytest.raises(DataError) as caught:
            run.prepare(plan.model_copy(update={"data": data}), num_processes=num_processes)
        assert (caught.value.path, caught.value.row) == ("inputs/chat.jsonl", 4)


def test_a_place_that_cannot_keep_rows_is_no_end(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    found = run.prepare(root=tmp_path / "file" / "root")
    assert (len(found.train), found.folders) == (300, ())
    assert "cannot be kept" in caplog.text


def test_ids_that_are_no_tokens_are_named(run: Run) -> None:
    run.write("chat.jsonl", [{"input_ids": [1, 2, 2147483653], "labels": [1, 2, 2147483653]}])
    plan = run.plan()
    (spec,) = plan.data.datasets
    data = plan.data.model_copy(
        update={"datasets": (spec.model_copy(update={"type": "pretokenized"}),)}
    )
    with pytest.raises(DataError) as caught:
        run.prepare(plan.model_copy(update={"data": data}))
    assert caught.value.reason == (
        "`input_ids`: number 3 is 2147483653, and the tokenizer has the ids 0 to 49151."
    )


def test_a_template_may_add_to_the_list_of_messages(run: Run) -> None:
    template = (
        "{% set messages = [{'role': 'system', 'content': 'Be'}] + messages %}"
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    run.write("chat.jsonl", [chat("one", "two")])
    (row,) = run.prepare(run.plan(f"chat_template_jinja: {json.dumps(template)}")).train
    assert run.tokenizer.decode(row["input_ids"]).startswith("<|im_start|>Be<|im_end|><|im_start|>")


def test_a_very_long_line_is_a_row_like_any_other(run: Run) -> None:
    long = chat("Say it", "word " * 600_000)  # 3 MB
    run.write("chat.jsonl", [ROWS[0], long, ROWS[1]])
    assert run.prepare(run.plan()).counts["too_long"] == 1
    cut = run.prepare(run.plan("excess_length_strategy: truncate"))
    assert [len(row["input_ids"]) for row in cut.train][1] == 512
    with pytest.raises(DataError) as caught:
        run.prepare(run.plan("excess_length_strategy: raise"))
    assert (caught.value.row, caught.value.reason[:4]) == (2, "has ")


def test_a_border_inside_a_token_is_an_error_of_that_row_alone(run: Run) -> None:
    # The prompt ends in a blank, which joins the first word: what is trained would not be what is asked for.
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    recipe = f"chat_template_jinja: {json.dumps(template)}"
    run.write("chat.jsonl", [chat("a", "b"), chat("a", "\n c")])
    with pytest.raises(DataError) as caught:
        run.prepare(run.plan(recipe))
    assert caught.value.reason.startswith("what is trained and what is not meet inside the token")
    assert caught.value.row == 1
    with pytest.raises(DataError, match="no row is left for training, of 2 examples read: 2 bad"):
        run.prepare(run.plan(f"{recipe}\non_bad_row: skip"))


def test_counts_add_up(run: Run) -> None:
    run.write("chat.jsonl", [*ROWS[:50], chat("only a question", ""), chat("x", "word " * 600)])
    counts = run.prepare(run.plan("train_on_inputs: false")).counts
    assert counts["read"] == counts["bad"] + counts["rows"] == 52
    assert counts["rows"] == sum(counts[f] for f in ("too_long", "too_short", "untrained", "kept"))
    assert counts["too_long"] == 1
    rows = run.prepare(run.plan()).train
    labels = np.concatenate([np.array(row[1:]) for row in rows["labels"]])
    assert counts["trained_tokens"] == int((labels != -100).sum())
    assert counts["tokens"] == sum(map(len, rows["input_ids"]))
