"""The command line as a process: texts, exit codes, what it imports. No run is started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ft.recipes.plan import RunPlan

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from ft.launcher.cli.app import main
main(sys.argv[1:])
"""

RECIPE = """\
# Two rows, for tests.
base_model: someone/some-model
datasets:
  - path: rows.jsonl
    type: completion
adapter: lora
lora_r: 8
lora_alpha: 16
learning_rate: 1e-3
micro_batch_size: 2
gradient_accumulation_steps: 3
num_epochs: 2
output_dir: ./out
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Ft:
    """Runs `ft` as a user does: in `folder`, not on a terminal, with folders of its own for its state."""

    folder: Path

    def __call__(
        self, *arguments: str, env: Mapping[str, str] | None = None, program: str | None = None
    ) -> Result:
        start = ["-c", program] if program else ["-m", "ft.launcher.cli.app"]
        done = subprocess.run(
            [sys.executable, "-P", *start, *arguments],
            cwd=self.folder,
            env=self.env(env),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "LC_ALL"}}
        homes = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("STATE", "DATA")}
        return kept | homes | {"COLUMNS": "80", "TERM": "xterm-256color", **(more or {})}


@pytest.fixture
def ft(tmp_path: Path) -> Ft:
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    return Ft(tmp_path)


# ------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--help"], "help.txt"),
        (["cloud", "run", "--help"], "help-cloud-run.txt"),
    ],
)
def test_help_is_what_was_reviewed(
    ft: Ft, golden: Callable[[str, str], None], arguments: list[str], name: str
) -> None:
    result = ft(*arguments, env={"TERM": "dumb"})
    assert (result.code, result.err) == (0, "")
    golden(name, result.out)


HEAVY = "{'pydantic', 'yaml', 'rich', 'torch', 'modal', 'sky'} & set(sys.modules)"


@pytest.mark.parametrize("arguments", [["--help"], ["cloud", "--help"], ["cloud", "run", "--help"]])
def test_help_imports_nothing_heavy(ft: Ft, arguments: list[str]) -> None:
    program = f"""
import sys
from ft.launcher.cli.app import main
try:
    main({arguments!r})
except SystemExit:
    print("HEAVY", sorted({HEAVY}))
"""
    result = ft(program=program)
    assert result.out.splitlines()[0].startswith("Usage: ft")
    assert result.out.splitlines()[-1] == "HEAVY []"


def test_version(ft: Ft) -> None:
    result = ft("-v")
    assert result.code == 0
    assert re.fullmatch(r"ft-launcher \d+\.\d+\.\d+\S*\n", result.out)


# ------------------------------------------------------------------------------------------ check


def test_three_problems_at_once(ft: Ft) -> None:
    (ft.folder / "bad.yml").write_text(
        "base_model: someone/some-model\n"
        "lora_rank: 16\n"
        "micro_batch_size: two\n"
        "learning_rate: 1e-4\n"
        "datasets:\n"
        "  - path: gone.jsonl\n"
        "    type: completion\n"
    )
    result = ft("check", "bad.yml")
    assert result.out.splitlines() == [
        "bad.yml:2: lora_rank: unknown key. Did you mean `lora_r`?",
        "bad.yml:3: micro_batch_size: expected a whole number, got 'two'",
        "bad.yml:6: datasets.0.path: R002 gone.jsonl does not exist, neither in the current folder "
        "nor beside the recipe. Mend the path.",
        "R014 was not checked: it needs the model's config.json, which is not on this machine",
        "3 problems",
    ]
    assert (result.code, result.err) == (2, "")

    trained = ft("train", "bad.yml")
    assert (trained.code, trained.out) == (2, "")
    assert trained.err.splitlines() == [*result.out.splitlines()[:3], "error: 3 problems"]


def test_check_json_has_the_same_form_whatever_is_wrong(ft: Ft) -> None:
    (ft.folder / "bad.yml").write_text("- a\n- b\n")
    result = ft("check", "bad.yml", "--json")
    assert result.code == 2
    assert json.loads(result.out) == {
        "recipe": "bad.yml",
        "errors": 1,
        "planned": 0,
        "warnings": 0,
        "problems": [
            {
                "file": "bad.yml",
                "line": 1,
                "key": "",
                "rule": "",
                "severity": "error",
                "message": "expected `key: value` lines, got list",
            }
        ],
        "deferred": [],
    }
    good = json.loads(ft("check", "r.yml", "--json").out)
    assert good == {
        "recipe": "r.yml",
        "errors": 0,
        "planned": 0,
        "warnings": 0,
        "problems": [],
        "deferred": [{"rule": "R014", "needs": ["model_config"]}],
    }


def test_what_is_planned_or_only_a_warning_passes_the_check(ft: Ft) -> None:
    result = ft("check", "r.yml", "--set", "sample_packing=true", "--set", "strict=false")
    assert result.code == 0
    assert result.out.splitlines() == [
        "--set: sample_packing: not runnable yet: a key of Axolotl that this version of ft cannot do",
        "--set: strict: warning: ignored: unknown keys are always errors here.",
        "R014 was not checked: it needs the model's config.json, which is not on this machine",
        "1 not runnable yet, 1 warning",
    ]
    planned = ft("plan", "r.yml", "--set", "sample_packing=true")
    assert planned.code == 3
    assert planned.err.startswith("error: --set: sample_packing: not runnable yet")


# --------------------------------------------------------------------------------- resolve and plan


def test_resolve_prints_a_recipe(ft: Ft) -> None:
    flat = {
        "base_model": "someone/some-model",
        "datasets": [{"path": "rows.jsonl", "type": "completion"}],
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "context_parallel_size": 1,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_epochs": 2.0,
        "learning_rate": 0.00001,
        "output_dir": "./out",
    }
    # An older spelling, and a number that YAML 1.1 takes for text.
    options = ["--set", "sequence_parallel_degree=1", "--set", "learning_rate=1e-5"]
    printed = ft("resolve", "r.yml", *options)
    assert (printed.code, printed.err) == (0, "")
    assert yaml.safe_load(printed.out) == flat
    assert json.loads(ft("resolve", "r.yml", "--json", *options).out) == flat

    (ft.folder / "again.yml").write_text(printed.out)
    assert ft("resolve", "again.yml").out == printed.out


def test_plan_json_is_the_plan(ft: Ft) -> None:
    result = ft("plan", "r.yml", "--json")
    assert (result.code, result.err) == (0, "")
    plan = RunPlan.from_json(result.out)
    assert plan.to_json() == result.out
    assert (plan.optim.micro_batch_size, plan.adapter.lora_r) == (2, 8)


def test_plan_writes_out_what_its_numbers_are_made_of(ft: Ft) -> None:
    result = ft("plan", "r.yml", "--set", "cloud.gpu=cpu:2")
    assert result.code == 3
    assert result.err.splitlines() == [
        "error: cloud.gpu cpu:2: this machine has cpu:1",
        "hint: --set cloud.gpu=cpu  trains on the CPU",
    ] or result.err == ""


def test_ascii_where_the_terminal_wants_it(ft: Ft) -> None:
    result = ft("plan", "r.yml", env={"LC_ALL": "C"})
    assert result.code == 0
    assert result.out.isascii()
    assert "6 rows = 2 micro x 3 accumulation x (1 / (1 * 1))" in result.out
