"""Files of every kind, read with their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import DataError
from ft.runtime.data.sources import Example, chunks, examples


def plan(path: str, split: str = "train") -> DatasetPlan:
    return DatasetPlan(
        path=path,
        type="completion",
        user_defined=None,
        split=split,
        name=None,
        field="text",
        field_messages="messages",
        message_property_mappings={"role": "role", "content": "content"},
        roles={"user": "user"},
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


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder


def read(inputs: Path, name: str, split: str = "train") -> list[Example]:
    return list(examples(plan(f"inputs/{name}", split), inputs.parent))


def texts(inputs: Path, name: str, split: str = "train") -> list[Any]:
    return [example.value["text"] for example in read(inputs, name, split)]


def error_of(inputs: Path, name: str, split: str = "train") -> tuple[int | None, str, str, str]:
    with pytest.raises(DataError) as caught:
        read(inputs, name, split)
    error = caught.value
    assert error.path.startswith("inputs/"), error.path
    return error.row, error.unit, error.reason, error.excerpt


TABLE = pa.table({"text": ["a", "b", "c"], "other": [1, 2, None]})


def write_jsonl(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def write_arrow_file(path: Path) -> None:
    with pa.ipc.new_file(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)


def write_arrow_stream(path: Path) -> None:
    with pa.ipc.new_stream(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.parquet", lambda path: pa.parquet.write_table(TABLE, path, row_group_size=2)),
        ("rows.arrow", write_arrow_file),
        ("rows.arrow", write_arrow_stream),
        ("rows.json", lambda path: path.write_text(json.dumps(TABLE.to_pylist(), indent=1))),
        (
            "rows.json",
            lambda path: path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n'),
        ),
        ("rows.jsonl", lambda path: path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}')),
        ("rows.csv", lambda path: path.write_text("text,other\na,1\nb,2\nc,\n")),
        ("rows.txt", lambda path: path.write_text("a\nb\nc\n")),
        (
            "ROWS.JSONL",
            lambda path: path.write_text('{"text":"a"}\r\n{"text":"b"}\r\n{"text":"c"}\r\n'),
        ),
        ("rows.csv", lambda path: path.write_bytes(b"\xef\xbb\xbftext\r\na\r\nb\r\nc\r\n")),
        (
            "rows.jsonl",
            lambda path: path.write_bytes(b'\xef\xbb\xbf{"text":"a"}\n{"text":"b"}\n{"text":"c"}'),
        ),
        ("saved", lambda path: datasets.Dataset(TABLE).save_to_disk(path)),
    ],
)
def test_a_file_of_every_kind(inputs: Path, name: str, write: Any) -> None:
    write(inputs / name)
    found = read(inputs, name)
    assert [example.value["text"] for example in found] == ["a", "b", "c"]
    assert [(example.path, example.row) for example in found] == [
        (f"inputs/{name}", n) for n in (1, 2, 3)
    ]


def test_values_keep_their_kinds(inputs: Path) -> None:
    value = {"text": "é\u2028\n", "n": 1, "list": [{"a": None}], "b": False}
    (inputs / "a.jsonl").write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read(inputs, "a.jsonl")[0].value == value
    (inputs / "a.csv").write_text('text,n\n"two\nlines, ""quoted""",1\n')
    assert read(inputs, "a.csv")[0].value == {"text": 'two\nlines, "quoted"', "n": "1"}


def test_blank_lines_are_counted_but_not_read(inputs: Path) -> None:
    (inputs / "a.jsonl").write_text('\n{"text": "a"}\n   \n{"text": "b"}\n\n')
    assert [(e.row, e.value["text"]) for e in read(inputs, "a.jsonl")] == [(2, "a"), (4, "b")]
    (inputs / "a.txt").write_text("a\n\nb\n")
    assert texts(inputs, "a.txt") == ["a", "", "b"]


def test_a_long_csv_value_is_read(inputs: Path) -> None:
    (inputs / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert texts(inputs, "a.csv") == ["x" * 200_000]


def test_rows_are_read_one_by_one(inputs: Path) -> None:
    # The second line is broken: the first one comes all the same.
    (inputs / "a.jsonl").write_text('{"text": "a"}\n{\n')
    rows = examples(plan("inputs/a.jsonl"), inputs.parent)
    assert next(rows).value == {"text": "a"}
    with pytest.raises(DataError, match="line 2"):
        next(rows)


LINES = '{"text": "a"}\n' * 16


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        (
            "a.jsonl",
            LINES + '{"text": "b"\n',
            (17, "line", "is not JSON: Expecting ',' delimiter at character 13", '{"text": "b"'),
        ),
        ("a.jsonl", LINES + "[1]\n", (17, "line", "is a list, expected an object", "[1]")),
        (
            "a.jsonl",
            LINES + "[" * 100_000,
            (17, "line", "is not JSON: maximum recursion depth exceeded while decoding", "[" * 200),
        ),
        (
            "a.jsonl",
            LINES.encode() + b'{"text": "\xff"}\n',
            (17, "line", "is not UTF-8 at byte 11", '{"text": "\\xff"}'),
        ),
        ("a.txt", b"a\n\xff\n", (2, "line", "is not UTF-8 at byte 1", "\\xff")),
        (
            "a.json",
            '[\n {"text": "a"},\n {"text": }\n]',
            (3, "line", "is not JSON: Expecting value at character 11", ' {"text": }'),
        ),
        ("a.json", '[{"text": "a"}, "b"]', (2, "row", "is text, expected an object", '"b"')),
        (
            "a.csv",
            "text,n\na,1\nb\n",
            (2, "row", "has fewer values than the header has columns", '{"text": "b", "n": null}'),
        ),
        (
            "a.csv",
            "text,n\na,1\nb,2,3\n",
            (
                2,
                "row",
                "has more values than the header has columns",
                '{"text": "b", "n": "2", "null": ["3"]}',
            ),
        ),
        ("a.csv", 'text\na\n"b', (2, "row", "is not CSV in UTF-8: unexpected end of data", "")),
        ("a.parquet", b"PAR1", (None, "row", "Parquet file size is 4 bytes", "")),
        ("a.arrow", b"nothing", (None, "row", "", "")),
    ],
)
def test_a_broken_file_names_the_place(
    inputs: Path, name: str, content: str | bytes, error: tuple[int | None, str, str, str]
) -> None:
    (inputs / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    row, unit, reason, excerpt = error_of(inputs, name)
    assert (row, unit, excerpt) == (error[0], error[1], error[3])
    assert reason.startswith(error[2]), reason


def test_a_file_that_is_not_there(inputs: Path) -> None:
    assert error_of(inputs, "a.jsonl") == (None, "row", "is not in the run folder", "")
    (inputs / "folder").mkdir()
    (inputs / "folder" / "README.md").write_text("# Data")
    row, _, reason, _ = error_of(inputs, "folder")
    assert (row, reason) == (
        None,
        "a folder without data files (.json, .jsonl, .parquet, .arrow, .csv, .txt)",
    )


def test_a_folder_is_read_by_name(inputs: Path) -> None:
    write_jsonl(inputs / "chats" / "b.jsonl", "b")
    write_jsonl(inputs / "chats" / "a.jsonl", "a1", "a2")
    (inputs / "chats" / "c.csv").write_text("text\nc\n")
    (inputs / "chats" / "README.md").write_text("# Data")
    (inputs / "chats" / "dataset_infos.json").write_text("{}")
    (inputs / "chats" / ".a.jsonl").write_text("broken")
    found = read(inputs, "chats")
    assert [(e.path, e.row, e.value["text"]) for e in found] == [
        ("inputs/chats/a.jsonl", 1, "a1"),
        ("inputs/chats/a.jsonl", 2, "a2"),
        ("inputs/chats/b.jsonl", 1, "b"),
        ("inputs/chats/c.csv", 1, "c"),
    ]


def test_names_of_files_and_folders_say_the_split(inputs: Path) -> None:
    write_jsonl(inputs / "test" / "data" / "train-00000-of-00001.jsonl", "a")
    write_jsonl(inputs / "test" / "data" / "more.jsonl", "b")
    write_jsonl(inputs / "test" / "validation" / "x.jsonl", "v")
    write_jsonl(inputs / "test" / "contest_eval.jsonl", "t")
    assert texts(inputs, "test") == ["b", "a"]
    assert texts(inputs, "test", "validation") == ["v"]
    assert texts(inputs, "test", "test") == ["t"]
    assert texts(inputs, "test", "test+train[:1]") == ["t", "b"]
    row, _, reason, _ = error_of(inputs, "test", "dev")
    assert (row, reason) == (None, "has no split `dev`; it has `test`, `train`, `validation`")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "abcdefgh"),
        ("train[:3]", "abc"),
        ("train[2:4]", "cd"),
        ("train[-2:]", "gh"),
        ("train[:100]", "abcdefgh"),
        ("train[:10%]", "a"),  # 0.8 rows, rounded
        ("train[50%:]", "efgh"),
        ("train[:25%]+train[-1:]", "abh"),
        ("train[8:]", ""),
    ],
)
def test_a_part_of_a_split(inputs: Path, split: str, expected: str) -> None:
    write_jsonl(inputs / "a.jsonl", *"abcdefgh")
    assert texts(inputs, "a.jsonl", split) == list(expected)


@pytest.mark.parametrize("split", ["test", "train[", "train[:x]", "train[:200%]", ""])
def test_a_split_that_is_not_there(inputs: Path, split: str) -> None:
    write_jsonl(inputs / "a.jsonl", "a")
    row, _, reason, _ = error_of(inputs, "a.jsonl", split)
    assert (row, reason) == (None, f"has no split `{split}`; it has `train`")


def test_a_saved_data_set_with_splits(inputs: Path) -> None:
    splits = {
        "train": datasets.Dataset.from_dict({"text": ["a"]}),
        "test": datasets.Dataset.from_dict({"text": ["b"]}),
    }
    datasets.DatasetDict(splits).save_to_disk(inputs / "saved")
    assert texts(inputs, "saved") == ["a"]
    assert texts(inputs, "saved", "test") == ["b"]


def test_a_hub_data_set_that_is_not_in_the_cache() -> None:
    # The session is offline: `HF_HUB_OFFLINE` is set for all tests.
    with pytest.raises(DataError) as caught:
        list(examples(plan("nobody/nothing"), Path()))
    assert str(caught.value) == (
        "nobody/nothing: is not in the cache, and HF_HUB_OFFLINE forbids to fetch it."
    )


def test_an_excerpt_is_the_row_as_json(inputs: Path) -> None:
    write_jsonl(inputs / "a.jsonl", "é")
    error = read(inputs, "a.jsonl")[0].error("is odd")
    assert str(error) == 'inputs/a.jsonl, line 1: is odd. It begins: {"text": "é"}'


def as_csv(rows: list[dict[str, str]], path: Path) -> None:
    path.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))


def as_arrow(rows: list[dict[str, str]], path: Path) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", lambda rows, path: path.write_text("\n".join(map(json.dumps, rows)))),
        ("rows.json", lambda rows, path: path.write_text(json.dumps(rows))),
        (
            "rows.parquet",
            lambda rows, path: pa.parquet.write_table(pa.Table.from_pylist(rows), path),
        ),
        ("rows.arrow", as_arrow),
        ("rows.csv", as_csv),
        (
            "saved",
            lambda rows, path: datasets.Dataset.from_list(rows).save_to_disk(path),
        ),
    ],
)
def test_a_chunk_is_small_also_where_rows_are_large(
    inputs: Path, name: str, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ft.runtime.data.sources.CHUNK_BYTES", 10_000)
    # Some that fill a chunk, one that is larger than any, and 1,500 small ones: more than a chunk has at most.
    lengths = [3_000] * 20 + [50_000] + [2] * 1_500
    write([{"text": "x" * length} for length in lengths], inputs / name)
    found = list(chunks(plan(f"inputs/{name}"), inputs.parent))
    read = [one for chunk in found for one in chunk.examples() if isinstance(one, Example)]
    assert [len(example.value["text"]) for example in read] == lengths
    assert [example.row for example in read] == list(range(1, 1_522))
    for chunk in found:
        sizes = [len(one.value["text"]) for one in chunk.examples() if isinstance(one, Example)]
        assert sum(sizes[:-1]) < 10_000
        assert len(sizes) <= 1_000 or name.endswith(".jsonl")
