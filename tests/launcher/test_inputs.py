"""Files that travel: named by their bytes, staged whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ft.launcher import inputs
from ft.launcher.backends.base import Upload
from ft.launcher.inputs import count_rows, describe, stage
from ft.recipes.digest import digest_of
from ft.recipes.errors import SubmitError


def upload(path: Path) -> Upload:
    fact = describe(path, "data")
    return Upload(path, fact.name, fact.sha256, fact.size)


def test_a_file_is_named_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "my rows (1).jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    sha256 = hashlib.sha256(b'{"a": 1}\n\n{"a": 2}\n').hexdigest()
    fact = describe(path, "data")
    assert (fact.name, fact.sha256, fact.size, fact.num_rows) == (
        f"{sha256[:12]}-my-rows-1-.jsonl",
        sha256,
        19,
        2,
    )


def test_rows_are_counted_where_a_line_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert count_rows(tmp_path / "a.json") is None
    assert count_rows(tmp_path) is None


def test_a_folder_has_one_digest_and_caches_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("1")
    (tmp_path / "a").write_text("2")
    one, two = hashlib.sha256(b"2").hexdigest(), hashlib.sha256(b"1").hexdigest()
    expected = hashlib.sha256(f"a\0{one}\nb/x\0{two}\n".encode()).hexdigest()
    assert digest_of(tmp_path) == expected
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("x")
    assert digest_of(tmp_path) == expected


@pytest.mark.parametrize("copy_below", [0, 1 << 30])
def test_a_staged_file_is_there_when_the_original_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_below: int
) -> None:
    monkeypatch.setattr(inputs, "COPY_BELOW_BYTES", copy_below)
    source = tmp_path / "rows.jsonl"
    source.write_text("x")
    item = upload(source)
    stage(item, tmp_path / "inputs")
    source.unlink()
    assert (tmp_path / "inputs" / item.name).read_text() == "x"
    stage(item, tmp_path / "inputs")
    assert [p.name for p in (tmp_path / "inputs").iterdir()] == [item.name]


def test_a_small_file_does_not_follow_a_later_edit_in_place(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("x")
    item = upload(source)
    stage(item, tmp_path / "inputs")
    with source.open("a") as stream:
        stream.write("y")
    assert (tmp_path / "inputs" / item.name).read_text() == "x"


def test_a_folder_is_staged_with_its_tree(tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "w").write_text("1")
    (source / "config.json").write_text("{}")
    item = upload(source)
    stage(item, tmp_path / "inputs")
    assert digest_of(tmp_path / "inputs" / item.name) == item.sha256
    assert (tmp_path / "inputs" / item.name / "sub" / "w").read_text() == "1"


def test_what_changed_or_went_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("x")
    item = upload(source)
    source.write_text("z")
    with pytest.raises(SubmitError, match="has changed since the run was planned"):
        stage(item, tmp_path / "inputs")
    source.unlink()
    with pytest.raises(SubmitError, match="is gone since the run was planned"):
        stage(item, tmp_path / "inputs")
    assert list((tmp_path / "inputs").iterdir()) == []
