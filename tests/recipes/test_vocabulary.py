"""The vocabulary as a whole: misspelt keys, round trips, and recipes that somebody broke at random."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft.recipes.errors import FtError, Severity
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import Recipe, loads
from ft.recipes.nearest import typing_errors
from ft.recipes.normalize import normalize
from ft.recipes.plugins import PLUGIN_OF
from ft.recipes.resolve import resolve
from ft.recipes.rules import check
from ft.recipes.schema import SECTION_OF
from ft.recipes.spelling import LEGACY
from ft.recipes.vocabulary import ALIASES, IGNORED, REMOVED

WORDS = {*SECTION_OF, *PLUGIN_OF, *LEGACY, *ALIASES, *IGNORED, *REMOVED}
MACHINE = Machine("cuda", "H100", 8, 1, bf16=True, tf32=True)
FACTS = Facts(files={}, machine=MACHINE)


def swap(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key) - 1)
    return key[:at] + key[at + 1] + key[at] + key[at + 2 :]


def drop(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key))
    return key[:at] + key[at + 1 :]


def double(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key))
    return key[:at] + key[at] + key[at:]


def replace(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key))
    return key[:at] + rng.choice(string.ascii_lowercase) + key[at + 1 :]


def dash(_: random.Random, key: str) -> str:
    return key.replace("_", "-")


def capital(_: random.Random, key: str) -> str:
    return key.title().replace("_", "")


MISTAKES: list[Callable[[random.Random, str], str]] = [swap, drop, double, replace, dash, capital]


def misspellings(count: int) -> Iterator[tuple[str, str]]:
    """(misspelt, meant). Left out is a word that is another word, or as few errors from another one."""
    rng, keys = random.Random(4), sorted({*SECTION_OF, *PLUGIN_OF})
    seen = set(WORDS)
    while count:
        key = rng.choice(keys)
        word = rng.choice(MISTAKES)(rng, key)
        plain = word.lower().replace("-", "_")
        errors = typing_errors(plain, key)
        others = WORDS - {key}
        is_clear = all(typing_errors(plain, other) > errors for other in others)
        if word not in seen and len(word) > 1 and is_clear:
            seen.add(word)
            count -= 1
            yield word, key


def test_each_of_200_misspelt_keys_is_an_error_that_names_the_right_one() -> None:
    wrong = []
    for word, meant in misspellings(200):
        (problem,) = normalize(loads(f"{word}: 1")).problems
        if (
            problem.severity is not Severity.ERROR
            or f"Did you mean `{meant}`?" not in problem.message
        ):
            wrong.append((word, meant, problem.message))
    assert wrong == []


# ------------------------------------------------------------------------------ round trips

GALLERY = Path(__file__).resolve().parents[2] / "recipes" / "ft" / "recipes" / "gallery"
FIXTURES = Path(__file__).with_name("rules")


def seeds() -> list[str]:
    """Recipes to start from: the gallery's, those of the rules, and Axolotl's where they are."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "axolotl" / "examples"
    folders = [GALLERY, FIXTURES, shared]
    return [path.read_text() for folder in folders for path in sorted(folder.rglob("*.y*ml"))]


def test_a_printed_recipe_is_read_as_the_same_recipe() -> None:
    for text in seeds():
        once = normalize(loads(text)).flat
        printed = yaml.safe_dump(once.flat(), sort_keys=False, allow_unicode=True)
        assert normalize(loads(printed)).flat == once, text
        as_json = json.dumps(once.flat())
        assert normalize(loads(as_json)).flat == once, text


def plan_hash(text: str) -> str:
    normalized = normalize(loads(text))
    report = check(normalized, FACTS)
    assert [p for p in report.problems if p.severity is not Severity.WARNING] == []
    return resolve(normalized.flat, FACTS).sha256


RUNNABLE = """\
base_model: some/model
datasets:
  - path: some/data
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles: {user: [user, human], assistant: [gpt], system: [system]}
  - {path: some/more, type: alpaca}
special_tokens: {pad_token: <pad>, eos_token: </s>}
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_modules: [q_proj, v_proj]
learning_rate: 2e-4
micro_batch_size: 2
cloud: {gpu: "H100:8", timeout: 6h}
"""


def shuffled(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: shuffled(rng, value[key]) for key in keys}
    return [shuffled(rng, item) for item in value] if isinstance(value, list) else value


def test_neither_the_order_of_keys_nor_comments_change_the_plan() -> None:
    expected, values = plan_hash(RUNNABLE), yaml.safe_load(RUNNABLE)
    for seed in range(20):
        rng = random.Random(seed)
        lines = yaml.safe_dump(shuffled(rng, values), sort_keys=False).splitlines()
        noisy = [f"{line}  # {rng.random()}" for line in lines]
        noisy.insert(rng.randrange(len(noisy)), "# a line of its own\n")
        assert plan_hash("\n".join(noisy)) == expected
    for old, new in (
        ("lora_r: 16", "lora_r: 8"), ("[user, human]", "[user]"), ("role: from", "role: role"), ("<pad>", "</s>"),
        ("[q_proj, v_proj]", "[v_proj]"), ("some/more", "some/less"),
    ):  # fmt: skip
        assert plan_hash(RUNNABLE.replace(old, new)) != expected, new


# ------------------------------------------------------------------------------ broken at random

ODD = [
    None, True, False, 0, -1, 1, 3.5, 1e400, float("nan"), "", "auto", "x", "3", "1e-4", "no", "org/name", "a.b",
    [], {}, [1], ["a"], [None], [{}], {"a": 1}, [[1]], "2026-11-24", "\u0000", "x" * 3000, 10**30, [{"path": 1}],
]  # fmt: skip


def mutated(rng: random.Random, text: str) -> str:
    """One to three changes somewhere: a value, a key, a line, a character."""
    for _ in range(rng.randint(1, 3)):
        text = rng.choice([_other_value, _other_key, _other_line, _other_character])(rng, text)
    return text


def _other_value(rng: random.Random, text: str) -> str:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    here: Any = values
    while isinstance(here, dict | list) and here:
        key = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        if not isinstance(here[key], dict | list) or not here[key] or rng.random() < 0.3:
            here[key] = rng.choice(ODD)
            break
        here = here[key]
    return yaml.safe_dump(values, allow_unicode=True)


def _other_key(rng: random.Random, text: str) -> str:
    key = rng.choice(sorted(WORDS))
    return f"{text}\n{key}: {json.dumps(rng.choice(ODD))}\n"


def _other_line(rng: random.Random, text: str) -> str:
    lines = text.splitlines() or [""]
    at = rng.randrange(len(lines))
    new = rng.choice(
        [[], [lines[at]] * 2, [f"  {lines[at]}"], [lines[at].lstrip()], [f"\t{lines[at]}"]]
    )
    return "\n".join([*lines[:at], *new, *lines[at + 1 :]])


def _other_character(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return (
        text[:at]
        + rng.choice(list(":-[]{},&*!|>'\"#%@`?\n \t~0e_<"))
        + text[at + rng.randint(0, 1) :]
    )


@pytest.mark.parametrize("seed", range(8))
def test_ten_thousand_broken_recipes_give_a_plan_or_problems(seed: int) -> None:
    rng, texts, plans = random.Random(seed), seeds(), 0
    for _ in range(1250):
        text = mutated(rng, rng.choice([*texts, RUNNABLE, RUNNABLE]))
        plans += outcome(text)
    assert plans > 0


def outcome(text: str) -> bool:
    """Whether there is a plan; else there are problems that say why. Anything else is a traceback."""
    try:
        recipe: Recipe = loads(text, source="r.yml")
    except FtError as error:
        assert str(error)
        return False
    normalized = normalize(recipe)
    report = check(normalized, FACTS)
    assert all(str(problem) and problem.to_json() for problem in report.problems)
    if any(problem.severity is not Severity.WARNING for problem in report.problems):
        return False
    resolve(normalized.flat, FACTS)
    return True
