"""One description per word: complete, true to the schema, found however somebody spells it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Literal

import pytest

from ft.recipes import reference, vocabulary
from ft.recipes.errors import Severity
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.reference import Entry, bounds, entries, find, words
from ft.recipes.rules import RULES
from ft.recipes.schema import SECTIONS
from ft.recipes.schema.base import Section, Seq, Status, implemented, info_of, limits, planned
from ft.recipes.schema.docs import docs_of
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.spelling import LEGACY

ALL = {**SECTIONS, **{f"plugin.{name}": section for name, section in PLUGIN_SECTIONS.items()}}
TOP = [(name, key) for name, section in ALL.items() for key in section.model_fields]


def keys() -> list[Entry]:
    return [entry for entry in entries().values() if entry.is_key]


# -------------------------------------------------------------------------------------- completeness


def test_every_key_of_the_schema_has_an_entry() -> None:
    found = [(entry.section, entry.key) for entry in keys() if not entry.is_nested]
    assert found == TOP


def test_an_entry_says_what_the_declaration_says() -> None:
    for name, key in TOP:
        entry, field = entries()[key], ALL[name].model_fields[key]
        info = info_of(field)
        assert entry.status is info.status, key
        assert entry.runs == info.runs, key
        assert entry.text == docs_of(ALL[name])[key], key


def test_nested_keys_are_there_by_their_dotted_name() -> None:
    some = {
        "cloud.gpu",
        "datasets[].path",
        "datasets[].type.format",
        "fsdp_config.offload_params",
        "gradient_checkpointing_kwargs.use_reentrant",
        "mora.use_mora",
        "pretraining_dataset[].path",
        "test_datasets[].path",
    }
    assert some <= {entry.key for entry in keys() if entry.is_nested}


def test_every_word_of_the_vocabulary_has_an_entry() -> None:
    older = {*vocabulary.ALIASES, *LEGACY, "fsdp_config.version", "fsdp_config.fsdp_offload_params"}
    older |= {f"datasets[].{key}" for key in vocabulary.DATASET_RENAMED}
    expected = dict.fromkeys(older, Status.RENAMED)
    expected |= dict.fromkeys(vocabulary.IGNORED, Status.IGNORED)
    expected |= dict.fromkeys(vocabulary.REMOVED, Status.REMOVED)
    assert {word: entries()[word].status for word in expected if word in entries()} == expected


def test_what_an_older_spelling_stands_for_is_a_key_that_knows_it() -> None:
    older = [entry for entry in entries().values() if entry.status is Status.RENAMED]
    assert older
    for entry in older:
        assert entry.target
        for target in entry.target:
            assert entries()[target].is_key
            assert entry.key in entries()[target].older


def test_words_that_are_no_keys_say_what_to_write() -> None:
    silent = [e.key for e in entries().values() if not e.is_key and not e.instead]
    assert sorted(silent) == sorted(vocabulary.ALIASES)


def test_every_entry_has_a_text_that_tells_its_default() -> None:
    assert [entry.key for entry in entries().values() if not entry.text] == []
    wrong = [
        entry.key
        for entry in keys()
        if entry.default is not None and f"Default: `{entry.default_text}`" not in entry.text
    ]
    assert wrong == []


def test_every_entry_is_json() -> None:
    for entry in entries().values():
        assert json.loads(json.dumps(entry.to_json()))["key"] == entry.key


def test_the_counts_add_up() -> None:
    by_section, totals = reference.counts(), reference.totals()
    assert list(by_section) == list(ALL)
    statuses = Counter(str(info_of(ALL[name].model_fields[key]).status) for name, key in TOP)
    assert {word: totals[word] for word in statuses} == statuses
    for column in ("implemented", "accepted", "planned", "nested"):
        assert sum(row[column] for row in by_section.values()) == totals[column]
    assert totals["nested"] == sum(entry.is_nested for entry in keys())
    assert totals["renamed"] == len(LEGACY) + len(vocabulary.ALIASES)
    assert totals["ignored"] == len(vocabulary.IGNORED)
    assert totals["removed"] == len(vocabulary.REMOVED)


# -------------------------------------------------------------------- the status is what `ft check` says


SAYS = {Status.PLANNED: Severity.PLANNED, Status.ACCEPTED: Severity.WARNING}
SWITCHES = [
    entry
    for entry in entries().values()
    if entry.type == "`true` or `false`" and not entry.is_nested and entry.default is not True
]


@pytest.mark.parametrize("entry", SWITCHES, ids=lambda entry: entry.key)
def test_the_status_of_a_switch_is_what_happens(entry: Entry) -> None:
    listed = f"plugins: ['{entry.plugin}']\n" if entry.plugin else ""
    problems = normalize(loads(f"{listed}{entry.key}: true\n")).problems
    said = {problem.severity for problem in problems if problem.key == (entry.key,)}
    if entry.is_key:
        assert said == ({SAYS[entry.status]} if entry.status in SAYS else set())
    else:
        assert Severity.WARNING in said  # An older spelling; what it says may not run either.


@pytest.mark.parametrize("word", [*vocabulary.IGNORED, *vocabulary.REMOVED])
def test_ignored_is_a_warning_and_removed_an_error(word: str) -> None:
    [problem] = normalize(loads(f"{word}: 1\n")).problems
    ignored = entries()[word].status is Status.IGNORED
    assert problem.severity is (Severity.WARNING if ignored else Severity.ERROR)
    assert entries()[word].instead in problem.message


# --------------------------------------------------------------------------------------------- words


class Block(Section):
    path: str
    """A path."""


class Sample(Section):
    """A title.

    And more."""

    blocks: Seq[Block] | Block | str | None = implemented(min_length=1)
    """Blocks."""
    later: Block | None = planned()
    """Later."""
    named: dict[str, Block] | None = implemented()
    """By name."""


POSITIVE = Annotated[int, limits(ge=1)]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str | None, "text"),
        (int | float | None, "number"),
        (bool | None, "`true` or `false`"),
        (bool | Literal["auto"] | None, "`true`, `false` or `auto`"),
        (Literal["a", "b", "c"] | None, "`a`, `b` or `c`"),
        (Literal[False, 4] | None, "`false` or `4`"),
        (Seq[str] | str | None, "list of texts or text"),
        (Seq[tuple[int, int]] | None, "list of lists of 2 whole numbers"),
        (Seq[POSITIVE] | None, "list of whole numbers ≥ 1"),
        (
            POSITIVE | Annotated[float, limits(gt=0, lt=1)] | None,
            "whole number ≥ 1 or number > 0 and < 1",
        ),
        (Annotated[str, limits(pattern="^a|b$")] | None, "text like `^a|b$`"),
        (dict[str, Seq[str]] | None, "mapping of text to list of texts"),
        (dict[str, Any] | None, "mapping"),
        (Seq[dict[str, Any]] | None, "list of mappings"),
        (Seq[Block] | Block | None, "list of mappings or mapping"),
        (Any, "anything"),
    ],
)
def test_a_type_in_words(annotation: Any, expected: str) -> None:
    assert words(annotation) == expected


def test_bounds_in_words() -> None:
    assert bounds([Sample.model_fields["blocks"].limits]) == "(not empty)"
    assert bounds([Sample.model_fields["later"].limits]) == ""
    assert entries()["seed"].bounds == "≥ 0 and < 4294967296"


def test_what_stands_below_a_key() -> None:
    below = {key: info.status for key, _, _, info in reference.fields_below(Sample)}
    assert below == {
        "blocks": Status.IMPLEMENTED,
        "blocks[].path": Status.IMPLEMENTED,
        "later": Status.PLANNED,
        "later.path": Status.PLANNED,  # Nothing reads it.
        "named": Status.IMPLEMENTED,
        "named.*.path": Status.IMPLEMENTED,
    }
    assert reference.title(Sample) == "A title."


# -------------------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lora_r", ["lora_r"]),
        ("lora_r:", ["lora_r"]),
        ("datasets.path", ["datasets[].path"]),
        ("datasets[].path", ["datasets[].path"]),
        ("datasets.0.path", ["datasets[].path"]),
        ("datasets[12].type.format", ["datasets[].type.format"]),
        ("offload_params", ["fsdp_config.offload_params"]),
        ("path", ["datasets[].path", "test_datasets[].path", "pretraining_dataset[].path"]),
        ("chat_template", ["chat_template"]),
        ("xyzzy", []),
        ("", []),
        (".", []),
    ],
)
def test_a_key_is_found_however_it_is_spelled(word: str, expected: list[str]) -> None:
    assert [entry.key for entry in find(word)] == expected


def test_every_word_finds_itself() -> None:
    for key, entry in entries().items():
        assert find(key) == (entry,)
        assert find(reference.plain_key(key)) == (entry,)


def test_a_value_is_found_with_what_becomes_of_it() -> None:
    found = {entry.key: entry.status_of("chatml") for entry in reference.with_value("chatml")}
    assert found["chat_template"] is Status.IMPLEMENTED
    assert found["datasets[].type"] is Status.PLANNED
    assert [entry.key for entry in reference.with_value("qlora")] == ["adapter"]
    [plugins] = reference.with_value("liger.LigerPlugin")
    assert plugins.key == "plugins"


def test_near_words() -> None:
    assert "lora_r" in reference.near_words("lora_rank")
    assert reference.near_words("dataset.path")[0] == "datasets.path"
    assert reference.near_words("qlora_")[0] == "qlora"
    assert reference.near_words("xyzzy") == []


def test_the_keys_below_a_key() -> None:
    assert reference.below("gradient_checkpointing_kwargs")[0] == "use_reentrant"
    assert "path" in reference.below("datasets")
    assert "format" not in reference.below("datasets")
    assert reference.below("lora_r") == ()


# --------------------------------------------------------------------------------------------- rules


def test_every_rule_has_an_entry() -> None:
    assert [(rule.id, rule.needs) for rule in reference.rules().values()] == [
        (rule.id, rule.needs) for rule in RULES
    ]
    for rule in RULES:
        text = " ".join((rule.check.__doc__ or "").split())
        assert reference.rules()[rule.id].text == text


@pytest.mark.parametrize(
    ("rule", "some", "not_these"),
    [
        # By a table; by attributes and a loop over names; by attributes of a block of the same name.
        ("R003", {"save_steps", "saves_per_epoch", "warmup_ratio"}, {"learning_rate"}),
        ("R004", {"adapter", "lora_r", "lora_alpha"}, {"lora_dropout"}),
        ("R017", {"cloud", "cloud.max_cost", "cloud.price_per_hour"}, {"cloud.gpu"}),
        # `chat_template` is a type of a data set there, `machine.device` no key.
        ("R008", {"datasets[].roles", "test_datasets[].roles"}, {"chat_template"}),
        ("R013", {"attn_implementation", "tf32"}, {"device"}),
        # By a reader that rules share.
        ("R020", {"datasets[].type", "test_datasets[].type"}, {"datasets[].split"}),
    ],
)
def test_a_rule_knows_its_keys(rule: str, some: set[str], not_these: set[str]) -> None:
    named = set(reference.rules()[rule].keys)
    assert some <= named
    assert not not_these & named


def test_no_rule_is_about_everything() -> None:
    # A reader that looks a key up in a table of all keys does not speak of them.
    assert {
        rule.id: len(rule.keys) for rule in reference.rules().values() if len(rule.keys) > 100
    } == {}


def test_a_key_knows_its_rules() -> None:
    assert "R015" in reference.rules_about("trust_remote_code")
    assert reference.rules_about("nemo_gym_head_port") == ()
