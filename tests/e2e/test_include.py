"""Code of the user's, its files and `.ftignore`, from a laptop to the process that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def words_of(store: Path, attempt: int) -> Any:
    """What the model's code said in that attempt."""
    log = (store / "attempts" / str(attempt) / "rank0.log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("seen ")]
    return json.loads(line.removeprefix("seen "))


def test_every_attempt_finds_what_was_planned_where_the_recipe_names_it(lab: Any) -> None:
    """The first attempt overwrites a file and dies; the second one finds the file, and trains."""
    recipe = lab.coded_recipe(dies_at_first=True, cloud={"gpu": "cpu"})
    store = lab.start(recipe, "coded")
    outcome = lab.outcome("coded")
    assert (outcome["state"], outcome["reason"]) == ("SUCCEEDED", "done"), outcome
    expected = {
        "files": ["mine/__init__.py", "mine/run.sh", "peft.py", "prompts/x.txt"],
        "prompt": "as planned",
        "word": "from a module of the user's",
        "library": "peft",
        "runs": "it ran",
    }
    assert [words_of(store, attempt) for attempt in (1, 2)] == [expected, expected]
    assert (store / "work/prompts/x.txt").read_text() == "spoiled"
    (folder,) = store.glob("inputs/*-include")
    assert (folder / "prompts/x.txt").read_text() == "as planned"
