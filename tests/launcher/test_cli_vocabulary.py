"""`ft schema` and `ft explain`: what they print, in 80 columns, and what they answer to programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from ft.launcher.cli import app as ft_app
from ft.launcher.cli import vocabulary
from ft.recipes import reference
from ft.recipes.errors import NotFoundError, UsageError
from ft.recipes.rules import RULES
from ft.recipes.schema.jsonschema import recipe_schema

Ft = Callable[..., Result]


@pytest.fixture
def ft(monkeypatch: pytest.MonkeyPatch) -> Ft:
    """The two commands in this process, not on a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("LC_ALL", raising=False)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(vocabulary.schema)
    app.command()(vocabulary.explain)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def as_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# -------------------------------------------------------------------------------------------- schema


def test_ft_has_both_commands() -> None:
    commands = ft_app.build().registered_commands
    assert {vocabulary.schema, vocabulary.explain} <= {command.callback for command in commands}


def test_importing_the_commands_is_light() -> None:
    code = "import sys, ft.launcher.cli.vocabulary; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_schema_counts_the_keys_and_says_how_to_go_on(ft: Ft) -> None:
    result = ft("schema")
    lines = result.stdout.splitlines()
    header, *rows, last = (line.split() for line in lines)
    assert header == ["SECTION", "IMPLEMENTED", "ACCEPTED", "PLANNED", "NESTED"]
    counts = reference.counts()
    assert rows == [
        [name, *(str(number or "-") for number in row.values())] for name, row in counts.items()
    ]
    totals = reference.totals()
    assert last == ["all", *(str(totals[column.lower()]) for column in header[1:])]
    assert max(map(len, lines)) <= 80
    assert "ft schema --status" in result.stderr
    assert "ft schema --json" in result.stderr


def test_schema_status_lists_every_top_level_word_once(ft: Ft) -> None:
    result = ft("schema", "--status")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    listed: dict[str, list[str]] = {}
    part = ""
    for line in lines[lines.index("") :]:
        if line.startswith("  "):
            listed[part] += [word for word in line.replace(",", " ").split() if word]
        elif line:
            part = line.partition(" ")[0]
            listed[part] = []
    partly = listed.pop("of")
    words = reference.entries().values()
    for status, found in listed.items():
        expected = sorted(e.key for e in words if e.status == status and not e.is_nested)
        assert found == expected
        assert f"{status} ({len(expected)}): " in result.stdout
    assert list(listed) == [
        "implemented", "accepted", "planned", "renamed", "ignored", "removed"
    ]  # fmt: skip
    assert {"adapter", "optimizer"} <= set(partly) <= set(listed["implemented"])


def test_schema_status_for_programs(ft: Ft) -> None:
    found = as_json(ft("schema", "--status", "--json"))
    assert list(found) == ["counts", "sections", "keys"]
    assert found["counts"] == reference.totals()
    assert found["sections"] == reference.counts()
    assert [entry["key"] for entry in found["keys"]] == list(reference.entries())
    [timeout] = [entry for entry in found["keys"] if entry["key"] == "ddp_timeout"]
    assert timeout == {
        "key": "ddp_timeout",
        "section": "parallel",
        "status": "implemented",
        "type": "whole number",
        "bounds": "≥ 1",
        "default": 600,
        "values": [],
        "runs": None,
        "text": "Seconds that a process waits for the others in a collective before the attempt ends. "
        "Default: `600`.",
        "older": [],
        "instead": "",
        "target": [],
        "plugin": "",
    }


def test_schema_for_editors(ft: Ft) -> None:
    assert as_json(ft("schema", "--json")) == recipe_schema()


# ------------------------------------------------------------------------------------------- explain

EXPLAINED = {
    "ddp_timeout": """\
ddp_timeout
  Seconds that a process waits for the others in a collective before the attempt
  ends. Default: `600`.

  value         whole number ≥ 1
  default       `600`
  status        implemented: does what it says
  section       parallel
""",
    "liger_rope": """\
liger_rope
  Fused rotary embedding. Default: off.

  value         `true` or `false`
  status        accepted, without effect yet: the model's own rotary embedding
                is used
  section       plugin.liger
  plugin        axolotl.integrations.liger.LigerPlugin
""",
    "llmcompressor": """\
llmcompressor
  Recipe and form of saving. Required where the plugin is listed.

  value         mapping
  status        planned: valid, but not runnable yet
  section       plugin.llm_compressor
  plugin        axolotl.integrations.llm_compressor.LLMCompressorPlugin
  keys below    recipe, save_compressed
""",
    "fsdp_config.fsdp_offload_params": """\
fsdp_config.fsdp_offload_params
  Older spelling of `fsdp_config.offload_params`.

  status        renamed: an older spelling, which `ft migrate` rewrites
  instead       write `fsdp_config.offload_params`
  section       parallel

fsdp_config.offload_params
  Keep parameters on the CPU while they are not needed. Default: off.

  value         `true` or `false`
  status        planned: valid, but not runnable yet
  section       parallel
  also read     fsdp_config.fsdp_offload_params
""",
    "eta_min": """\
eta_min
  Has no effect.

  status        ignored: has no effect, in Axolotl neither; a warning says so
  instead       Axolotl ignores it too; the key is `cosine_min_lr_ratio`
""",
    "rope_scaling": """\
rope_scaling
  Was taken away from Axolotl.

  status        removed: an error, in Axolotl too
  instead       write it below `model_config`
""",
    "liger.LigerPlugin": """\
axolotl.integrations.liger.LigerPlugin
  Liger's fused Triton kernels.

  in plugins    axolotl.integrations.liger.LigerPlugin or liger.LigerPlugin
  keys          liger_rope, liger_rms_norm, liger_rms_norm_gated,
                liger_layer_norm, liger_glu_activation, liger_cross_entropy,
                liger_fused_linear_cross_entropy, liger_use_token_scaling

liger.LigerPlugin is a value of
  plugins  runs
""",
    "bradley_terry.llama3": """\
bradley_terry.llama3 is a value of
  datasets[].type             valid, but not runnable yet
  test_datasets[].type        valid, but not runnable yet
  pretraining_dataset[].type  valid, but not runnable yet
""",
}


@pytest.mark.parametrize("word", EXPLAINED)
def test_explain_to_the_letter(word: str, ft: Ft, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any new rule may name one of these keys.
    monkeypatch.setattr(reference, "rules_about", lambda _: ())
    result = ft("explain", word)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == EXPLAINED[word]


def test_explain_a_key_lists_the_rules_that_name_it(ft: Ft) -> None:
    rules = ft("explain", "trust_remote_code").stdout.partition("  rules         ")[2]
    assert tuple(rules.replace(",", " ").split()) == reference.rules_about("trust_remote_code")
    assert "R015" in rules


@pytest.mark.parametrize("spelling", ["R017", "r017"])
def test_explain_a_rule(spelling: str, ft: Ft) -> None:
    [rule] = [rule for rule in RULES if rule.id == "R017"]
    name, *text, needs, keys = ft("explain", spelling).stdout.splitlines()
    assert name == "R017"
    assert " ".join(" ".join(text).split()) == " ".join((rule.check.__doc__ or "").split())
    assert needs == "  needs         the recipe alone"
    assert keys == "  keys          cloud, cloud.max_cost, cloud.price_per_hour"


def test_explain_several_words_one_after_the_other(ft: Ft) -> None:
    both = ft("explain", "eta_min", "rope_scaling").stdout
    assert both == f"{EXPLAINED['eta_min']}\n{EXPLAINED['rope_scaling']}"


def test_explain_a_name_that_stands_in_many_places(ft: Ft) -> None:
    places = [entry.key for entry in reference.find("name")]
    assert len(places) > vocabulary.MAX_IN_FULL
    result = ft("explain", "name")
    assert result.stdout.splitlines() == [
        f"name stands in {len(places)} places:", *(f"  {place}" for place in places)
    ]  # fmt: skip
    assert result.stderr == "hint: ft explain datasets.name  says what it does there\n"


def test_every_word_can_be_explained_in_80_columns(ft: Ft) -> None:
    for word in reference.entries():
        result = ft("explain", word)
        lines = result.stdout.splitlines()
        assert result.exit_code == 0
        assert lines[0] == word
        # One word alone may be longer: a regular expression, a path of modules.
        assert [line for line in lines if len(line) > 80 and " " in line[16:]] == []


def test_explain_for_programs(ft: Ft) -> None:
    key, rule, value = as_json(ft("explain", "--json", "gc_steps", "r014", "qlora"))
    assert key == {
        "word": "gc_steps",
        "kind": "key",
        **reference.entries()["gc_steps"].to_json(),
        "rules": [],
    }
    assert key["target"] == ["torch_empty_cache_steps", "gc_collect_steps"]
    assert rule == {"word": "r014", "kind": "rule", **reference.rules()["R014"].to_json()}
    assert rule["needs"] == ["model_config"]
    assert value == {"word": "qlora", "kind": "value", "key": "adapter", "status": "planned"}


def test_explain_names_what_is_like_an_unknown_word(ft: Ft) -> None:
    result = ft("explain", "lora_r", "lora_alph", "xyzzy")
    assert isinstance(result.exception, NotFoundError)
    assert result.stdout == ""
    assert result.exception.message == (
        "lora_alph: no key, rule or value of a recipe. Did you mean `lora_alpha`?\n"
        "xyzzy: no key, rule or value of a recipe."
    )
    assert result.exception.hint == "ft schema --status  lists all keys"


def test_rules_are_listed(ft: Ft) -> None:
    header, *lines = ft("explain", "--rules").stdout.splitlines()
    assert header == "RULE  WHY"
    assert lines == [f"{rule.id}  {rule.text}" for rule in reference.rules().values()]
    assert as_json(ft("explain", "--rules", "--json")) == [
        rule.to_json() for rule in reference.rules().values()
    ]
    unknown = ft("explain", "R999")
    assert isinstance(unknown.exception, NotFoundError)
    assert unknown.exception.message.startswith("R999: no key, rule or value of a recipe.")
    assert unknown.exception.hint == "ft explain --rules  lists all rules"
    for nothing in (ft("explain"), ft("explain", "--rules", "lora_r")):
        assert isinstance(nothing.exception, UsageError)
        assert nothing.exception.message == "expected words to explain, or --rules"
    answer = ft("explain", "xyzzy", "--json")
    assert json.loads(answer.stdout) == {
        "error": {
            "message": "xyzzy: no key, rule or value of a recipe.",
            "hint": "ft schema --status  lists all keys",
            "exit_code": 8,
        },
        "problems": [],
    }


def test_tab_offers_keys_and_rules() -> None:
    offered = vocabulary.known_words
    assert offered("lora_al") == ["lora_alpha", "lora_alpha_pattern"]
    assert "datasets.path" in offered("datasets.")
    assert "datasets[].path" not in offered("")
    assert "R003" in offered("r00")
    assert "R003" not in offered("")
    assert offered("xyzzy") == []
