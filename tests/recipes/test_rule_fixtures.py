"""Every rule has a recipe in rules/ that breaks it; the file says what must be said, word for word.

# expect error: R020.yml:7: save_steps: R020 …       one line per finding of that rule; or: expect nothing
# facts: {"model_config": {…}, "machine": "H100:8", "nodes": 2}
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ft.recipes.catalog import GPUS
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import load
from ft.recipes.normalize import normalize
from ft.recipes.rules import RULES, check

FOLDER = Path(__file__).with_name("rules")
FIXTURES = sorted(FOLDER.glob("R*.yml"))
EXPECT = re.compile(r"# expect (error|warning|planned): (.+)")


def facts_of(text: str) -> Facts:
    found = re.search(r"^# facts: (.+)$", text, re.MULTILINE)
    said = json.loads(found[1]) if found else {}
    machine = None
    if "machine" in said:
        name, _, count = said["machine"].partition(":")
        device = "cpu" if name == "cpu" else "cuda"
        bf16 = GPUS[name].bf16
        machine = Machine(device, name, int(count or 1), said.get("nodes", 1), bf16=bf16, tf32=bf16)
    return Facts(files={}, model_config=said.get("model_config"), machine=machine)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_fixture_gets_what_it_expects(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    text = path.read_text()
    expected = EXPECT.findall(text)
    assert expected or "# expect nothing" in text, "the fixture says nothing about what it expects"
    rule = path.stem[:4]
    problems = check(normalize(load(path.name)), facts_of(text)).problems
    found = [(str(p.severity), str(p)) for p in problems if p.rule == rule]
    assert found == expected


def test_every_rule_has_a_recipe_that_breaks_it_and_a_reason() -> None:
    broken = {path.stem[:4] for path in FIXTURES if EXPECT.search(path.read_text())}
    told_elsewhere = {f"R{number:03}" for number in range(1, 19)}  # test_rules.py
    assert {rule.id for rule in RULES} - broken - told_elsewhere == set()
    assert [rule.id for rule in RULES if not (rule.check.__doc__ or "").strip()] == []
    ids = [rule.id for rule in RULES]
    assert ids == sorted(set(ids))
