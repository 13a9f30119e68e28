"""`ft preprocess` and `ft cache`: rows made on this machine, and what is kept of them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.cli import preprocess
from ft.recipes import prepared

RECIPE = """\
base_model: %s
datasets: [{path: rows.jsonl, type: chat_template}]
chat_template: chatml
sequence_len: 32
val_set_size: 2
learning_rate: 0.001
# What this machine lacks, and what cannot be trained yet: rows are rows all the same.
attn_implementation: flash_attention_2
load_in_4bit: true
adapter: qlora
lora_r: 8
lora_alpha: 16
cloud: {gpu: "H100:8"}
"""
WORDS = "one two three four five six seven eight nine ten".split()

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `ft` in a folder with a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "LC_ALL"}}
    env = {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "80", "NO_COLOR": "1"}

    def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ft.launcher.cli.app", *arguments], cwd=tmp_path, env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    return start


@pytest.fixture
def ft(command: Callable[..., subprocess.Popen[str]]) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        process = command(*arguments)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "ft" / "prepared"


def make(root: Path, key: str, *, age_s: float = 0.0) -> Path:
    """An entry as a run makes one."""

    def build(folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
        (folder / prepared.ROWS).write_bytes(b"r" * 1500)
        return {"kept": 1200, "tokens": 34567, "trained_tokens": 7}, {}

    folder, *_ = prepared.entry(root, key * 8, build)
    then = time.time() - age_s
    os.utime(folder / prepared.META, (then, then))
    return folder


def keys(root: Path) -> list[str]:
    return [meta.key[:4] for _, meta in prepared.entries(root)]


# ------------------------------------------------------------------------------------------- ft cache


def test_nothing_is_kept(ft: Run) -> None:
    done = ft("cache", "ls")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "nothing is kept",
        "hint: ft preprocess RECIPE  makes the rows of a recipe; so does every run",
    ]
    assert ft("cache", "ls", "--json").stdout == "[]\n"
    assert ft("cache", "prune").stderr == "nothing to remove\n"


def test_what_is_kept_is_listed_by_its_last_use(ft: Run, root: Path) -> None:
    make(root, "aaaa", age_s=7200)
    newest = make(root, "bbbb", age_s=60)
    size = sum(file.stat().st_size for file in newest.iterdir())
    done = ft("cache", "ls")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "KEY           ROWS   TOKENS  SIZE    USED",
        "bbbbbbbbbbbb  1,200  34,567  1.7 kB  1 min ago",
        "aaaaaaaaaaaa  1,200  34,567  1.7 kB  2 h ago",
    ]
    assert done.stderr == "3.4 kB in all\n"
    told = json.loads(ft("cache", "ls", "--json").stdout)
    assert [entry["key"][:4] for entry in told] == ["bbbb", "aaaa"]
    assert {k: v for k, v in told[0].items() if not k.endswith("_at")} == {
        "key": "b" * 32,
        "folder": str(newest),
        "size_bytes": size,
        "rows": 1200,
        "tokens": 34567,
        "trained_tokens": 7,
    }


def test_only_what_is_meant_is_removed(ft: Run, root: Path) -> None:
    for key, age_s in (("aaaa", 90 * 86400), ("bbbb", 40 * 86400), ("cccc", 60)):
        make(root, key, age_s=age_s)
    told = json.loads(ft("cache", "prune", "--older-than", "30d", "--keep", "2", "--json").stdout)
    assert ([entry["key"][:4] for entry in told["would_remove"]], told["removed"]) == (["aaaa"], [])
    assert keys(root) == ["aaaa", "bbbb", "cccc"]

    asked = ft("cache", "prune", "--older-than", "30d")
    assert asked.returncode == 2
    assert [line.split()[0] for line in asked.stdout.splitlines()] == ["KEY", "b" * 12, "a" * 12]
    assert asked.stderr.splitlines() == [
        "error: nobody is there to ask",
        "hint: --yes removes what is listed",
    ]
    assert keys(root) == ["aaaa", "bbbb", "cccc"]

    done = ft("cache", "prune", "--older-than", "30d", "--yes")
    assert (done.returncode, done.stderr) == (0, "removed 3.4 kB\n")
    assert keys(root) == ["cccc"]
    told = json.loads(ft("cache", "prune", "--yes", "--json").stdout)
    assert [key[:4] for key in told["removed"]] == ["cccc"]
    assert keys(root) == []


def test_what_killed_processes_left_goes_too(ft: Run, root: Path) -> None:
    make(root, "aaaa")
    left, busy = root / f"dead{prepared.UNFINISHED}1", root / f"busy{prepared.UNFINISHED}2"
    old, new = root / f"{prepared.STAGING}old", root / f"{prepared.STAGING}new"
    for folder in (left, busy, old, new):
        folder.mkdir()
    os.utime(old, (1, 1))
    with (root / f"busy{prepared.LOCK}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ft("cache", "prune", "--keep", "1", "--yes").stderr == "nothing to remove\n"
    assert [folder.exists() for folder in (left, busy, old, new)] == [False, True, False, True]
    assert keys(root) == ["aaaa"]


def test_a_time_that_is_none(ft: Run) -> None:
    done = ft("cache", "prune", "--older-than", "soon")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --older-than soon: expected 90m, 6h, 7d\n"


# -------------------------------------------------------------------------------------- ft preprocess


@pytest.fixture
def recipe(tmp_path: Path, repo: Path) -> Path:
    model = repo / ".quickstart" / "SmolLM2-135M-Instruct"
    if not (model / "tokenizer.json").is_file():
        pytest.fail(f"{model} is missing: run `make model`")
    (tmp_path / "r.yml").write_text(RECIPE % model)
    rows = [chat(" ".join(WORDS[: 1 + n % 10])) for n in range(10)] + [chat("word " * 40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "r.yml"


def chat(answer: str) -> dict[str, Any]:
    said = (("user", "Hi"), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.mark.slow
def test_rows_are_made_once_and_found_again(ft: Run, recipe: Path, root: Path) -> None:
    done = ft("preprocess", "r.yml")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # "Hi" is 6 tokens with its marks, an answer of n words n + 6, of which n + 1 are trained: 55 words in ten rows.
    assert lines[:4] == [
        "examples      11 read",
        "rows          10 kept, 2 of them to evaluate on",
        "left out      1 longer than sequence_len",
        "tokens        175, 65 of them trained (37.1%)",
    ]
    assert done.stderr == "hint: ft preview r.yml  shows what is trained\n"
    again = ft("preprocess", "r.yml")
    assert again.stdout.splitlines()[:5] == [*lines[:4], "time          found, made earlier"]
    told = json.loads(ft("preprocess", "r.yml", "--json").stdout)
    assert (told["was_there"], told["train_rows"], told["eval_rows"]) == (True, 8, 2)
    assert [str(folder) for folder, _ in prepared.entries(root)] == told["folders"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_made(
    command: Callable[..., subprocess.Popen[str]], recipe: Path, root: Path
) -> None:
    line = json.dumps(chat("word " * 10)) + "\n"
    (recipe.parent / "rows.jsonl").write_text(line * 300_000)
    process = command("preprocess", "r.yml", start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(root.glob(f"*{prepared.UNFINISHED}*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    while left := [path.name for path in root.iterdir() if not path.name.endswith(prepared.LOCK)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.mark.slow
def test_a_bad_row_names_the_file_of_the_user(ft: Run, recipe: Path) -> None:
    rows = recipe.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"messages": 3}\n')
    # `ft check` looks at the first rows and finds it; `--set` says to go on.
    done = ft("preprocess", "r.yml", "--set", "datasets.0.split=train[11:]")
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.splitlines()[0] == (
        f"error: {rows}, line 12: `messages` holds a number, expected a list. "
        'It begins: {"messages": 3}'
    )


# ------------------------------------------------------------------------------------------- progress


def answer(examples: int, num_bytes: int) -> dict[str, Any]:
    values = {"examples": examples, "tokens": examples * 1_000_000, "bytes": num_bytes}
    return {"event": "progress", **values, "total_bytes": 1000}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_rate_and_time_left_are_those_of_making_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    # 100 s of loading, then a chunk every 4 s.
    clock = iter([100.0, 104.0, 108.0])
    monkeypatch.setattr(preprocess.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(preprocess.console, "is_terminal", lambda _: is_terminal)
    monkeypatch.setenv("COLUMNS", "80")
    told = [answer(2, 200), answer(4, 400), answer(6, 600), {"event": "done", "seconds": 108}]
    assert preprocess.watched(told) == {"event": "done", "seconds": 108}
    lines = [
        " 40%  4 examples  4,000,000 tokens  0.50 M/s  12 s left",
        " 60%  6 examples  6,000,000 tokens  0.50 M/s  8.0 s left",
    ]
    new = "\r\033[K"
    shown = "".join(f"{new}{line}" for line in ["loading the tokenizer", *lines]) + new
    # Where nobody looks at a bar there is a line every five seconds.
    assert capsys.readouterr().err == (shown if is_terminal else f"{lines[1]}\n")
