"""The vocabulary as a whole: misspelt keys, round trips, and recipes that somebody broke at random."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from itertools import islice
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
from ft.recipes.reference import Entry, entries
from ft.recipes.resolve import resolve
from ft.recipes.rules import RULES, check
from ft.recipes.schema import SECTION_OF
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
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


def misspellings(
    rng: random.Random, keys: Sequence[str], others: Collection[str]
) -> Iterator[tuple[str, str]]:
    """(misspelt, meant), without end. Left out is a word that is another word, or as few errors from another one."""
    seen = set(others)
    while True:
        key = rng.choice(keys)
        word = rng.choice(MISTAKES)(rng, key)
        plain = word.lower().replace("-", "_")
        errors = typing_errors(plain, key)
        # As many letters more or less are as many errors: most words need not be compared.
        near = [other for other in others if abs(len(other) - len(plain)) <= errors]
        is_clear = all(typing_errors(plain, other) > errors for other in near if other != key)
        if word not in seen and len(word) > 1 and is_clear:
            seen.add(word)
            yield word, key


def test_each_of_200_misspelt_keys_is_an_error_that_names_the_right_one() -> None:
    wrong = []
    keys = sorted({*SECTION_OF, *PLUGIN_OF})
    for word, meant in islice(misspellings(random.Random(4), keys, WORDS), 200):
        (problem,) = normalize(loads(f"{word}: 1")).problems
        if (
            problem.severity is not Severity.ERROR
            or f"Did you mean `{meant}`?" not in problem.message
        ):
            wrong.append((word, meant, problem.message))
    assert wrong == []


def blocks() -> dict[str, dict[str, Entry]]:
    """Block (`fsdp_config`, `datasets[].type`) -> what may stand in it, older spellings too."""
    found: dict[str, dict[str, Entry]] = {}
    for key, entry in entries().items():
        block, _, name = key.rpartition(".")
        if block:
            found.setdefault(block, {})[name] = entry
    return found


def recipe_with(block: str, name: str) -> dict[str, Any]:
    """A recipe in which `name: 1` stands in `block`, whose plugin is listed."""
    value: Any = {name: 1}
    for part in reversed(block.split(".")):
        value = {
            "x" if part == "*" else part.removesuffix("[]"): [value]
            if part.endswith("[]")
            else value
        }
    top = block.split(".", maxsplit=1)[0].removesuffix("[]")
    if top in PLUGIN_OF:
        value["plugins"] = [PLUGIN_SECTIONS[PLUGIN_OF[top]].plugins[0]]
    return value  # type: ignore[no-any-return]  # a mapping by now


def test_so_is_each_of_10_misspelt_keys_of_every_block() -> None:
    wrong, asked = [], Counter[str]()
    for block, inside in sorted(blocks().items()):
        # Of a word like `fsdp_version` beside `version` nobody knows which one was meant.
        keys = sorted(name for name, entry in inside.items() if entry.is_key and len(name) > 2)
        words = misspellings(random.Random(4), keys, inside)
        for word, meant in islice(words, 10) if keys else ():
            problems = normalize(loads(json.dumps(recipe_with(block, word)))).problems
            said = [p for p in problems if p.key[-1:] == (word,)]
            asked[block] += 1
            if [p.severity for p in said] != [
                Severity.ERROR
            ] or f"Did you mean `{meant}`?" not in said[0].message:
                wrong.append((block, word, meant, [str(p) for p in said]))
    assert wrong == []
    some = {
        "cloud",
        "datasets[]",
        "datasets[].type",
        "fsdp_config",
        "special_tokens",
        "test_datasets[]",
        "trl",
        "vllm",
    }
    assert some <= asked.keys()
    assert (len(asked), asked.total()) == (30, 300)


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


MODELS: list[dict[str, Any]] = [
    {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 2048, "vocab_size": 1000, "tie_word_embeddings": True,
    },
    {
        "model_type": "mixtral", "num_attention_heads": 32, "num_local_experts": 8, "num_experts_per_tok": 2,
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    },
    {
        "model_type": "qwen3_vl", "text_config": {"num_attention_heads": 16, "num_experts": 6, "vocab_size": 50},
        "vision_config": {"num_attention_heads": 3}, "tie_word_embeddings": False,
    },
    {"model_type": "gpt_neox", "num_attention_heads": 9, "max_position_embeddings": 8, "tie_word_embeddings": True},
    {},
]  # fmt: skip
"""What a model's config.json may hold, as far as a rule looks at it."""
MACHINES = [
    MACHINE,
    None,
    Machine("cpu", "cpu", 2, 1, bf16=False, tf32=False),
    Machine("cuda", "T4", 3, 2, bf16=False, tf32=False),
    Machine("cuda", "H100", 1, 7, bf16=True, tf32=True),
]


def some_facts(rng: random.Random) -> Facts:
    """Half of the time those without a model; else one whose config.json somebody broke, on some machine."""
    if rng.random() < 0.5:
        return FACTS
    config = deepcopy(rng.choice(MODELS))
    for _ in range(rng.randint(0, 3)):
        place = rng.choice(
            [config, *(value for value in config.values() if isinstance(value, dict))]
        )
        known = list(place) + list(rng.choice(MODELS))
        if known:
            place[rng.choice(known)] = deepcopy(rng.choice([*ODD, 2, 4, 7, 64]))
    named = rng.random() < 0.5
    return Facts(
        files={}, model_config=config, machine=rng.choice(MACHINES), machine_is_named=named
    )


ASK_THE_MODEL = {rule.id for rule in RULES if "model_config" in rule.needs}


@pytest.mark.parametrize("seed", range(8))
def test_ten_thousand_broken_recipes_give_a_plan_or_problems(seed: int) -> None:
    rng, texts = random.Random(seed), seeds()
    found: Counter[str] = Counter()
    for _ in range(1250):
        text = mutated(rng, rng.choice([*texts, RUNNABLE, RUNNABLE]))
        facts = some_facts(rng)
        found["plans"] += outcome(text, facts, found)
    assert found["plans"] > 0
    assert found["with a model"] > 300


def outcome(text: str, facts: Facts, found: Counter[str]) -> bool:
    """Whether there is a plan; else there are problems that say why. Anything else is a traceback."""
    try:
        recipe: Recipe = loads(text, source="r.yml")
    except FtError as error:
        assert str(error)
        return False
    normalized = normalize(recipe)
    report = check(normalized, facts)
    assert all(str(problem) and problem.to_json() for problem in report.problems)
    asked = ASK_THE_MODEL - set(report.deferred)
    assert asked == (ASK_THE_MODEL if facts.model_config is not None else set())
    found["with a model"] += facts.model_config is not None
    if facts.machine is None or any(p.severity is not Severity.WARNING for p in report.problems):
        return False
    resolve(normalized.flat, facts)
    return True


def test_a_model_type_that_is_no_text_is_no_traceback() -> None:
    text = "base_model: a/b\nadapter: lora\nlora_r: 8\nlora_alpha: 8\ntokens: [<x>]\n"
    facts = Facts(files={}, model_config={"model_type": ["gpt_neox"]}, machine=MACHINE)
    said = [p.message for p in check(normalize(loads(text)), facts).problems if p.rule == "R075"]
    assert said == [
        "new tokens stay untrained with `adapter: lora`. Write `lora_modules_to_save: [embed_tokens, lm_head]`."
    ]
