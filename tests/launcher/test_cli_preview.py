"""`ft preview`: what it shows of rows that are known to the letter, on screens of all kinds, and as a page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from ft.launcher import preparing
from ft.launcher.cli import app as ft_app
from ft.launcher.cli import console, preview
from ft.launcher.cli.preview_rows import EDGE, Gap, Piece, Row
from ft.launcher.cli.preview_text import Look, number_lines, row_lines, wrapped
from ft.launcher.cli.printable import columns, spelled_out
from ft.recipes.errors import FtError, UsageError

RECIPE = """\
base_model: %s
datasets: [{path: rows.jsonl, type: chat_template}]
chat_template: chatml
sequence_len: 64
on_bad_row: skip
learning_rate: 0.001
max_steps: 1
output_dir: out
cloud: {gpu: cpu}
"""

ROWS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Grüße 🦜"}]},
    {"messages": [{"role": "user"}]},
    {
        "messages": [
            {"role": "user", "content": "a <b>"},
            {"role": "assistant", "content": "b\n\x1b[31mc"},
            {"role": "user", "content": "d"},
            {"role": "assistant", "content": "[[e]]"},
        ]
    },
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y " * 60}]},
]

SHOWN = """\
[[[trained]]]  not trained  ↵ end of line

row 0  19 tokens, 8 trained (42.1%)
  <|im_start|>user↵
  Hi<|im_end|>↵
  <|im_start|>assistant↵
  [[[Grüße 🦜<|im_end|>]]]↵
  SPAN  TOKENS  TRAINED  BEGINS
  1     10–17   8        Grüße 🦜<|im_end|>

row 1  37 tokens, 12 trained (32.4%)
  <|im_start|>user↵
  a <b><|im_end|>↵
  <|im_start|>assistant↵
  [[[b↵
  \\x1b[31mc<|im_end|>]]]↵
  <|im_start|>user↵
  d<|im_end|>↵
  <|im_start|>assistant↵
  [[[[[e]]<|im_end|>]]]↵
  SPAN  TOKENS  TRAINED  BEGINS
  1     13–20   8        b↵\\x1b[31mc<|im_end|>
  2     32–35   4        [[e]]<|im_end|>

"""

NUMBERS = """\
examples      4 read
rows          2 kept
left out      1 could not be read
left out      1 longer than sequence_len
tokens        56, 20 of them trained (35.7%)
unreadable    rows.jsonl, line 2: message 1: `content` holds null, expected
              text.
lengths       19 to 37 tokens; half of the rows have at most 19, 95% at most 37
packing       would fill 87.5% of 1 row of 64 tokens
time          found, made earlier
kept in       /cache/key

TOKENS  ROWS
  1–16     0
 17–20     1  ████████████████████████████████████████
 21–24     0
 25–28     0
 29–32     0
 33–36     0
 37–40     1  ████████████████████████████████████████
 41–64     0
"""


def write(folder: Path, model: str = "some/model") -> None:
    (folder / "recipe.yml").write_text(RECIPE % model)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


# ------------------------------------------------------------------------------- with the real runtime


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Callable[..., Any]:
    """`ft` as a process, in a folder with recipe and rows; the rows are made once."""
    folder = tmp_path_factory.mktemp("real")
    write(folder, str(repo / ".quickstart" / "SmolLM2-135M-Instruct"))
    roles = ("user", "assistant")
    odd = [
        {"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}
        for turns in (("a", "b"), ("\ud800\x9b2J", "b"))
    ]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    kept = {name: value for name, value in os.environ.items() if name != "LC_ALL"}
    env = kept | {"COLUMNS": "80", "XDG_CACHE_HOME": str(folder / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "ft.launcher.cli.app", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        # Where pytest put the folder is not what is tested.
        done.stdout = re.sub(rf"{folder}/cache[\w/]*", "/cache/key", done.stdout)
        done.stdout = done.stdout.replace(f"{folder}/", "")
        done.stderr = done.stderr.replace(f"{folder}/", "")
        return done

    return run


@pytest.mark.slow
def test_a_recipe_is_previewed_to_the_letter(real: Callable[..., Any]) -> None:
    told = json.loads(real("preview", "recipe.yml", "--json").stdout)
    assert {k: v for k, v in told.items() if k not in {"seconds", "was_there", "gates"}} == {
        k: v for k, v in TOLD.items() if k not in {"seconds", "was_there", "event"}
    }
    done = real("preview", "recipe.yml", "--fail-under", "trained=0.4")
    assert done.returncode == 1
    # The path of the file was longer before it was taken out, so that its line is wrapped elsewhere.
    assert done.stdout.startswith(SHOWN)
    assert done.stdout.split() == (SHOWN + NUMBERS).split()
    assert done.stderr == "error: --fail-under trained=0.4: 0.357142 of the tokens are trained\n"


@pytest.mark.slow
def test_a_bad_row_is_named_with_its_file_and_line(real: Callable[..., Any]) -> None:
    change = ("--set", "on_bad_row=stop", "--set", "datasets.0.path=odd.jsonl")
    done = real("preview", "recipe.yml", *change, "--html", "page.html")
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr == (
        "error: odd.jsonl, line 2: character 18 is half of a surrogate pair, no text. It begins: "
        '{"messages": [{"role": "user", "content": "\\ud800\\x9b2J"}, '
        '{"role": "assistant", "content": "b"}]}\n'
        "hint: `on_bad_row: skip` leaves such rows out and counts them\n"
    )


# --------------------------------------------------------------------------- with what the runtime says


def pieces(*kinds: tuple[str, list[str]]) -> list[dict[str, Any]]:
    """`t`: trained, `s`: special."""
    found, start = [], 0
    for kind, texts in kinds:
        end = start + len(texts)
        found.append(
            {
                "trained": "t" in kind,
                "special": "s" in kind,
                "start": start,
                "end": end,
                "texts": texts,
            }
        )
        start = end
    return found


def turn(role: list[str], content: list[str], trained: str = "") -> list[tuple[str, list[str]]]:
    header = [*role, "\n"]
    middle = [("", header), (trained, content)] if trained else [("", [*header, *content])]
    return [("s", ["<|im_start|>"]), *middle, (f"{trained}s", ["<|im_end|>"]), ("", ["\n"])]


USER, ASSISTANT = ["user"], ["ass", "istant"]

TOLD: dict[str, Any] = {
    "event": "preview",
    "counts": {
        "read": 4,
        "bad": 1,
        "rows": 3,
        "too_long": 1,
        "too_short": 0,
        "truncated": 0,
        "untrained": 0,
        "kept": 2,
        "tokens": 56,
        "trained_tokens": 20,
    },
    "train_rows": 2,
    "eval_rows": 0,
    "sequence_len": 64,
    "shares": {"trained": 20 / 56, "kept": 0.5, "packed": 0.875},
    "lengths": {"min": 19, "median": 19, "p95": 37, "max": 37},
    "histogram": {
        "edges": list(range(0, 65, 4)),
        "rows": [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    },
    "packs": 1,
    "bad": [
        {
            "path": "rows.jsonl",
            "unit": "line",
            "row": 2,
            "reason": "message 1: `content` holds null, expected text.",
            "excerpt": '{"messages": [{"role": "user"}]}',
        }
    ],
    "rows": [
        {
            "row_id": 0,
            "eval": False,
            "tokens": 19,
            "trained_tokens": 8,
            "pieces": pieces(
                *turn(USER, ["Hi"]),
                *turn(ASSISTANT, ["Gr", "ü", "ß", "e", " ", "", "🦜"], "t"),
            ),
        },
        {
            "row_id": 1,
            "eval": False,
            "tokens": 37,
            "trained_tokens": 12,
            "pieces": pieces(
                *turn(USER, ["a", " <", "b", ">"]),
                *turn(ASSISTANT, ["b", "\n", "\x1b", "[", "3", "1", "mc"], "t"),
                *turn(USER, ["d"]),
                *turn(ASSISTANT, ["[[", "e", "]]"], "t"),
            ),
        },
    ],
    "folders": ["/cache/key"],
    "was_there": True,
    "seconds": 0.1,
}

Ft = Callable[..., Result]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the runtime was asked; it answers with TOLD, or the rows of it that were asked for."""
    asked: list[tuple[str, ...]] = []

    def ask(verb: str, rows: object, *arguments: str) -> Iterator[Mapping[str, Any]]:
        asked.append((verb, *arguments))
        chosen = arguments[arguments.index("--rows") + 1]
        first, colon, end = chosen.partition(":")
        wanted = slice(int(first), int(end)) if colon else slice(int(first), int(first) + 1)
        yield {"event": "progress", "examples": 4, "tokens": 56, "bytes": 9, "total_bytes": 9}
        yield {**TOLD, "rows": TOLD["rows"][wanted]}

    monkeypatch.setattr(preparing, "ask", ask)
    return asked


@pytest.fixture
def ft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: object) -> Ft:
    """The command in this process, not on a terminal, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(preview.preview)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_ft_has_the_command() -> None:
    commands = ft_app.build().registered_commands
    assert preview.preview in {command.callback for command in commands}


def test_rows_then_numbers(ft: Ft, asked: list[tuple[str, ...]]) -> None:
    result = ft("recipe.yml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == SHOWN + NUMBERS
    assert ft("recipe.yml", "-n", "0", "--processes", "2").stdout == NUMBERS
    assert asked == [
        ("preview", "--rows", "0:5"),
        ("preview", "--rows", "0:0", "--processes", "2"),
    ]


def test_one_row_alone(ft: Ft, asked: list[tuple[str, ...]]) -> None:
    result = ft("recipe.yml", "--row", "0")
    # No bracket stands in this row.
    assert "\n  [[Grüße 🦜<|im_end|>]]↵\n" in result.stdout
    assert re.findall(r"^row \d", result.stdout, re.MULTILINE) == ["row 0"]
    assert asked == [("preview", "--rows", "0")]


def test_a_row_that_is_not_there(ft: Ft) -> None:
    result = ft("recipe.yml", "--row", "2")
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == "--row 2: there are 2 rows, 0 to 1"
    assert result.stdout == ""


def test_colours_on_a_terminal(ft: Ft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda _: True)
    shown = ft("recipe.yml").stdout
    assert (
        "  \x1b[2;7m<|im_start|>\x1b[0m\x1b[2massistant↵\x1b[0m\n"
        "  \x1b[32mGrüße 🦜\x1b[0m\x1b[32;7m<|im_end|>\x1b[0m\x1b[2m↵\x1b[0m\n"
    ) in shown
    assert "[[[" not in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert ft("recipe.yml").stdout == SHOWN + NUMBERS


def test_nothing_in_the_data_reaches_a_terminal_raw(
    ft: Ft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda _: True)
    ours = re.compile(r"\x1b\[[0-9;]*m")
    assert "\x1b[31m" not in ft("recipe.yml").stdout
    assert "\x1b" not in ours.sub("", ft("recipe.yml").stdout)


def test_a_terminal_of_ascii(ft: Ft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    shown = ft("recipe.yml").stdout
    assert shown.isascii()
    assert "\n  [[[Gr\\xfc\\xdfe \\U0001f99c<|im_end|>]]]\n" in shown
    assert "\n  1     13-20   8        b \\x1b[31mc<|im_end|>\n" in shown
    assert "\n 17-20     1  ########################################\n" in shown


def test_for_programs(ft: Ft) -> None:
    result = ft("recipe.yml", "--json", "--fail-under", "kept=0.5", "--fail-under", "packed=0.9")
    said = json.loads(result.stdout)
    assert said.pop("gates") == {
        "kept": {"at_least": 0.5, "found": 0.5, "passed": True},
        "packed": {"at_least": 0.9, "found": 0.875, "passed": False},
    }
    assert said == {key: value for key, value in TOLD.items() if key != "event"}
    assert isinstance(result.exception, FtError)
    assert result.exception.exit_code == 1
    assert result.exception.message == (
        "--fail-under packed=0.9: 0.875 of packed rows would be filled"
    )


def test_gates_that_hold(ft: Ft) -> None:
    result = ft("recipe.yml", "--fail-under", "trained=0.35", "--fail-under", "kept=0.5")
    assert (result.exit_code, result.stdout) == (0, SHOWN + NUMBERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--fail-under", "trainde=0.1"],
            "--fail-under 'trainde=0.1': expected NAME=SHARE, NAME one of trained, kept, packed",
        ),
        (
            ["--fail-under", "kept"],
            "--fail-under 'kept': expected NAME=SHARE, NAME one of trained, kept, packed",
        ),
        *(
            (
                ["--fail-under", f"kept={bad}"],
                f"--fail-under 'kept={bad}': expected a share from 0 to 1",
            )
            for bad in ("", "5%", "nan", "-0.1", "5", "inf")
        ),
        (["-n", "3", "--row", "1"], "--rows and --row: choose one of them"),
        (["--html", "."], "--html . is a folder, expected a file"),
        (["--html", "no/page.html"], "--html no/page.html: there is no folder no"),
    ],
)
def test_wrong_options_are_said_before_anything_is_made(
    arguments: list[str], message: str, ft: Ft, asked: list[tuple[str, ...]]
) -> None:
    result = ft("recipe.yml", *arguments)
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == message
    assert asked == []


def test_an_error_that_quotes_data_is_harmless(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show_error(
        FtError("rows.jsonl, line 1: begins with \x1b]0;title\x07, \x9b2J and \u202e")
    )
    assert capsys.readouterr().err == (
        "error: rows.jsonl, line 1: begins with \\x1b]0;title\\x07, \\x9b2J and \\u202e\n"
    )


def test_tab_offers_gates() -> None:
    assert preview._complete_gates("") == ["trained=", "kept=", "packed="]
    assert preview._complete_gates("p") == ["packed="]


# --------------------------------------------------------------------------------------------- the page


def test_the_page_is_one_well_formed_file_that_needs_nothing_else(ft: Ft, tmp_path: Path) -> None:
    result = ft("recipe.yml", "--html", "page.html")
    assert (result.stdout, result.stderr) == (NUMBERS, "the rows are in page.html\n")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    elements = list(root.iter())
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(e.tag for e in elements)
    named = {name for element in elements for name in element.attrib}
    assert {"src", "href"}.isdisjoint(named)
    assert not any(name.startswith("on") for name in named)
    assert re.findall(r"https?:|url\(|@import", text) == []
    assert "$" not in text


def test_the_page_shows_each_token(ft: Ft, tmp_path: Path) -> None:
    ft("recipe.yml", "--html", "page.html")
    root = ElementTree.fromstring((tmp_path / "page.html").read_text(encoding="utf-8"))
    one, two = root.findall(".//section")
    text = one.find("div[@class='text']")
    assert text is not None
    # The end of a line is shown by a sign in front of it.
    assert "".join(text.itertext()).replace("↵\n", "\n") == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nGrüße 🦜<|im_end|>\n"
    )
    trained = [e for e in text if "on" in e.get("class", "").split()]
    assert [(e.get("class"), "".join(e.itertext())) for e in trained] == [
        ("on", "Grüße 🦜"),
        ("on special", "<|im_end|>"),
    ]
    assert [(token.get("title"), token.text) for token in trained[0]] == [
        ("token 10", "Gr"),
        ("token 11", "ü"),
        ("token 12", "ß"),
        ("token 13", "e"),
        ("token 14", " "),
        ("tokens 15–16", "🦜"),
    ]
    assert "a <b>" in "".join(two.itertext())
    assert "\\x1b[31mc" in "".join(two.itertext())
    spans = [["".join(cell.itertext()) for cell in line] for line in two.findall(".//tr")]
    assert spans == [
        ["Span", "Tokens", "Trained", "Begins"],
        ["1", "13–20", "8", "b↵\\x1b[31mc<|im_end|>"],
        ["2", "32–35", "4", "[[e]]<|im_end|>"],
    ]
    shown = "".join(root.itertext())
    assert "message 1: `content` holds null, expected text." in shown
    assert '{"messages": [{"role": "user"}]}' in shown


@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=6))
def test_whatever_is_in_the_data_the_page_is_well_formed(texts: list[str]) -> None:
    from ft.launcher.cli.preview_html import page

    row = Row(0, False, len(texts), len(texts), [Piece(True, False, 0, len(texts), texts)])
    bad = [{**TOLD["bad"][0], "reason": texts[0], "excerpt": "".join(texts)}]
    root = ElementTree.fromstring(page(texts[0], {**TOLD, "bad": bad}, [row]).encode())
    shown = root.find(".//section/div")
    assert shown is not None
    assert "".join(shown.itertext()) == spelled_out("".join(texts)).replace("\n", "↵\n")


# -------------------------------------------------------------------------------------------- long rows


def row_of(*runs: tuple[bool, int]) -> Row:
    """Runs of tokens, each a word."""
    found, start = [], 0
    for trained, count in runs:
        texts = [f"{number} " for number in range(start, start + count)]
        found.append(Piece(trained, False, start, start + count, texts))
        start += count
    return Row(7, True, start, sum(count for trained, count in runs if trained), found)


def test_a_long_row_has_its_middle_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = row_of((False, 1298), (True, 1000), (False, 1))
    assert [part if isinstance(part, Gap) else (part.start, part.end) for part in row.abridged()] == [
        (0, EDGE),
        Gap(trained=False, tokens=1298 - 2 * EDGE),
        (1298 - EDGE, 1298),
        (1298, 1298 + EDGE),
        Gap(trained=True, tokens=1000 - 2 * EDGE),
        (2298 - EDGE, 2298),
        (2298, 2299),
    ]  # fmt: skip
    look = Look(colour=False, utf8=True)
    title, *lines = row_lines(row, look, whole=False)
    assert title == "row 7  2,299 tokens, 1,000 trained (43.5%), to evaluate on"
    assert "30 31  … 1,234 tokens … 1266" in " ".join(line.strip() for line in lines)
    assert max(map(len, lines)) <= 80
    whole = " ".join(row_lines(row, look, whole=True))
    assert "…" not in whole.partition("SPAN")[0]
    assert all(f" {number} " in whole for number in range(1, 1297))


def test_of_very_many_turns_the_first_and_last_are_shown() -> None:
    row = row_of(*[(bool(i % 2), 3) for i in range(101)])
    parts = row.abridged()
    (gap,) = [part for part in parts if isinstance(part, Gap)]
    assert gap == Gap(trained=False, tokens=3 * (101 - 8 - 5))
    lines = list(row_lines(row, Look(colour=False, utf8=True), whole=False))
    assert lines[-1] == "  … 30 more"
    assert len(list(row_lines(row, Look(colour=False, utf8=True), whole=True))) > 50


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200)), min_size=1, max_size=30))
def test_no_token_is_lost_or_told_twice(runs: list[tuple[bool, int]]) -> None:
    row = row_of(*runs)
    at = 0
    for part in row.abridged():
        if isinstance(part, Gap):
            at += part.tokens
        else:
            assert part.start == at
            assert part.text == "".join(f"{number} " for number in range(at, part.end))
            at = part.end
    assert at == row.tokens


# ------------------------------------------------------------------------------------------ plain text


@given(st.text(), st.integers(4, 30))
def test_lines_hold_the_whole_text_and_fit(text: str, room: int) -> None:
    shown = spelled_out(text)
    lines = [line.removeprefix("  ") for line in wrapped([(shown, ())], room)]
    assert "".join(lines) == shown.replace("\n", "")
    assert all(sum(map(columns, line)) <= room for line in lines)


def test_lines_break_at_blanks() -> None:
    assert list(wrapped([("one two three", ()), (" four\nfive", ())], 9)) == [
        "  one two ",
        "  three ",
        "  four",
        "  five",
    ]


def test_wide_characters_take_two_columns() -> None:
    assert list(wrapped([("漢字漢字", ())], 5)) == ["  漢字", "  漢字"]
    assert [columns(char) for char in "aé漢🦜\u0301\u200d"] == [1, 1, 2, 2, 0, 0]


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = spelled_out(text).replace("\n", "")
    assert all(ord(char) >= 32 and not 0x7F <= ord(char) < 0xA0 for char in shown)
    assert set(shown).isdisjoint("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2028\u2029\ufeff")
    assert spelled_out(shown) == shown


def test_what_is_part_of_a_script_stays() -> None:
    assert spelled_out("e\u0301 👩\u200d🔬 ک\u200cه\n") == "e\u0301 👩\u200d🔬 ک\u200cه\n"
    assert spelled_out("\t\r\x07\x7f\x85\xad\ufeff") == "\\t\\r\\x07\\x7f\\x85\\xad\\ufeff"


def test_numbers_of_many_bad_rows_and_of_those_to_evaluate_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    counts = {**TOLD["counts"], "bad": 1234, "truncated": 3}
    said = {**TOLD, "counts": counts, "eval_rows": 1, "was_there": False, "seconds": 75.0}
    lines = list(number_lines(said, Look(colour=False, utf8=True)))
    assert lines[1:5] == [
        "rows          2 kept, 1 of them to evaluate on",
        "left out      1,234 could not be read",
        "left out      1 longer than sequence_len",
        "cut           3 to sequence_len",
    ]
    assert "              … 1,233 more like these" in lines
    assert "time          1 min 15 s" in lines
