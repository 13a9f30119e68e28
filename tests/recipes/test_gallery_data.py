"""The data of the SmolLM2 gallery recipe: made again byte by byte, right, and without leakage."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date, datetime
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from ft.recipes.schema import SECTION_OF

FOLDER = Path(str(files("ft.recipes") / "gallery" / "smollm2"))
TRAIN, HELDOUT = "dates-train.jsonl", "dates-heldout.jsonl"
QUESTIONS = (
    r"Give the date as YYYY-MM-DD: (?P<date>.+)",
    r"Convert to YYYY-MM-DD: (?P<date>.+)",
    r"Write (?P<date>.+) as YYYY-MM-DD\.",
    r"What is (?P<date>.+) in the form YYYY-MM-DD\?",
)
ORDINALS = r"(1|21|31)st|(2|22)nd|(3|23)rd|([4-9]|1\d|20|2[4-9]|30)th"
STRPTIME_FORMATS = (
    "%B %d, %Y",
    "%d %b %Y",
    "%d %B %Y",
    "the %d of %B %Y",
    "%A, %d %B %Y",
    "%d-%b-%Y",
    "%Y, %B %d",
    "%m/%d/%Y (month first)",
    "%d.%m.%Y (day first)",
)


def pairs(name: str) -> list[tuple[str, str]]:
    """(question, answer) of every row; a row of another shape fails the test."""
    found = []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert list(row) == ["messages"]
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        found.append((question["content"], answer["content"]))
    return found


def written_date(question: str) -> str:
    """The date as it stands in the question."""
    matches = [match for pattern in QUESTIONS if (match := re.fullmatch(pattern, question))]
    assert len(matches) == 1, question
    return matches[0]["date"]


def day_meant(written: str) -> date:
    """What strptime makes of a written date; it knows nothing of how the generator wrote it."""
    plain = re.sub(rf"\b({ORDINALS})\b", lambda match: match[0][:-2], written)
    for form in STRPTIME_FORMATS:
        try:
            moment = datetime.strptime(plain, form)
        except ValueError:
            continue
        # strptime reads a weekday and ignores whether it is the right one.
        assert "%A" not in form or plain.startswith(f"{moment:%A}, ")
        return moment.date()
    raise AssertionError(f"not a date: {written!r}")


def shape(written: str) -> str:
    """`March 3rd, 1987` -> `A 9th, 9`."""
    ordinals = re.sub(r"\d+(st|nd|rd|th)\b", "9th", written)
    return re.sub(r"\d+", "9", re.sub(r"[A-Z][a-z]+", "A", ordinals))


def test_generator_writes_the_committed_bytes(tmp_path: Path) -> None:
    # Another hash seed, locale and time zone than this process has: none of them may matter.
    environment = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Pacific/Kiritimati"}
    subprocess.run(
        [sys.executable, FOLDER / "make_dates.py", tmp_path], check=True, env=environment
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [HELDOUT, TRAIN]
    for name in (TRAIN, HELDOUT):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


@pytest.mark.parametrize(("name", "rows_per_style"), [(TRAIN, 64), (HELDOUT, 12)])
def test_every_style_has_the_same_number_of_rows(name: str, rows_per_style: int) -> None:
    shapes = Counter(shape(written_date(question)) for question, _ in pairs(name))
    assert shapes == {
        "A 9th, 9": rows_per_style,
        "A 9, 9": rows_per_style,
        # With the short and with the long name of the month.
        "9 A 9": 2 * rows_per_style,
        "the 9th of A 9": rows_per_style,
        "A, 9 A 9": rows_per_style,
        "9-A-9": rows_per_style,
        "9, A 9": rows_per_style,
        "9/9/9 (month first)": rows_per_style,
        "9.9.9 (day first)": rows_per_style,
    }


@pytest.mark.parametrize("name", [TRAIN, HELDOUT])
def test_every_answer_is_the_date_of_its_question(name: str) -> None:
    wrong = [
        (question, answer)
        for question, answer in pairs(name)
        if day_meant(written_date(question)).strftime("%Y-%m-%d") != answer
    ]
    assert wrong == []


def test_day_meant_rejects_a_wrong_weekday_and_a_wrong_ordinal() -> None:
    # 1987-03-03 was a Tuesday.
    assert day_meant("Tuesday, 3 March 1987") == date(1987, 3, 3)
    for wrong in ("Monday, 3 March 1987", "March 3th, 1987", "March 12nd, 1987", "31 June 1987"):
        with pytest.raises(AssertionError):
            day_meant(wrong)


def test_no_date_is_in_both_files_or_twice_in_one() -> None:
    answers = [answer for name in (TRAIN, HELDOUT) for _, answer in pairs(name)]
    assert len(answers) == 640 + 120
    assert [answer for answer, count in Counter(answers).items() if count > 1] == []


def test_recipe_uses_known_keys_and_names_the_training_file() -> None:
    recipe = yaml.safe_load((FOLDER / "135m-lora-sft.yml").read_text(encoding="utf-8"))
    assert [key for key in recipe if key not in SECTION_OF] == []
    assert [dataset["path"] for dataset in recipe["datasets"]] == [TRAIN]
    # Not one row is seen twice: the accuracy on held-out dates comes from a single pass.
    rows_trained = (
        recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"] * recipe["max_steps"]
    )
    assert rows_trained == 480
