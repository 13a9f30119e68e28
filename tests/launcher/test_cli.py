"""The command line as a process: texts, exit codes, what it imports. No run is started."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
cloud:
  gpu: cpu
"""


MODEL_RULES = ["R014", "R077", "R154", "R155", "R157", "R162"]
"""They ask for the model's config.json."""
NO_CONFIG = "6 rules could not be checked here; --verbose says which"


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
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        program: str | None = None,
        stdin: str = "",
    ) -> Result:
        start = ["-c", program] if program else ["-m", "ft.launcher.cli.app"]
        done = subprocess.run(
            [sys.executable, "-P", *start, *arguments],
            cwd=self.folder,
            env=self.env(env),
            check=False,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "LC_ALL"}
        }
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


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ([], []),
        # Typer itself takes pydantic to make a command.
        (["cloud", "run"], ["pydantic"]),
    ],
)
def test_help_imports_nothing_heavy(ft: Ft, command: list[str], heavy: list[str]) -> None:
    program = f"""
import sys
from ft.launcher.cli.app import main
try:
    main({[*command, "--help"]})
except SystemExit:
    print("HEAVY", sorted({HEAVY}))
"""
    result = ft(program=program)
    assert result.out.splitlines()[0].startswith("Usage: ft")
    assert result.out.splitlines()[-1] == f"HEAVY {heavy}"


def on_terminal(
    ft: Ft, *arguments: str, env: Mapping[str, str] | None = None, code: int = 0
) -> str:
    """What `ft` writes to a terminal of 80 columns."""
    master, slave = pty.openpty()
    command = [sys.executable, "-P", "-m", "ft.launcher.cli.app", *arguments]
    process = subprocess.Popen(command, cwd=ft.folder, env=ft.env(env), stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(master, 65536):
            written += chunk
    except OSError:  # Linux says EIO when the other side has gone.
        pass
    finally:
        os.close(master)
    assert process.wait(timeout=60) == code
    return written.decode()


def test_help_on_a_terminal_has_boxes_and_swallows_nothing(ft: Ft) -> None:
    coloured = on_terminal(ft, "cloud", "run", "--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "\x1b[" in coloured
    lines = plain.splitlines()
    assert [line for line in lines if line.startswith("╭")] == [
        f"╭─ Arguments {'─' * 66}╮",
        f"╭─ Options {'─' * 68}╮",
    ]
    assert {len(line) for line in lines if line.startswith(("│", "╭", "╰"))} == {80}
    # Each column of help, put together again.
    said = " ".join(plain.replace("│", " ").split())
    for text in (
        "A recipe file, or the name of one in the gallery (ft recipes ls). [required]",
        "Where it runs; goes before cloud.backend of the recipe. Default: local.",
        "Inner keys: cloud.gpu=cpu:2, datasets.0.path=x.jsonl",
    ):
        assert text in said
    assert "[default: .]" in on_terminal(ft, "recipes", "copy", "--help")

    for env in ({"TERM": "dumb"}, {"LC_ALL": "C"}):
        assert on_terminal(ft, "--help", env=env).isascii()


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
        NO_CONFIG,
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
    [answer] = json.loads(result.out)["recipes"]
    assert answer == {
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
        "recipes": [
            {
                "recipe": "r.yml",
                "errors": 0,
                "planned": 0,
                "warnings": 0,
                "problems": [],
                "deferred": [{"rule": rule, "needs": ["model_config"]} for rule in MODEL_RULES],
            }
        ]
    }


def test_what_is_planned_or_only_a_warning_passes_the_check(ft: Ft) -> None:
    result = ft("check", "r.yml", "--set", "save_first_step=true", "--set", "debug=true")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "--set: debug: warning: ignored: Axolotl ignores it too.",
        "--set: save_first_step: not runnable yet",
        NO_CONFIG,
        "1 not runnable yet, 1 warning",
    ]
    planned = ft("plan", "r.yml", "--set", "save_first_step=true", "--set", "debug=true")
    assert (planned.code, planned.out) == (3, "")
    assert planned.err.splitlines() == [
        "--set: debug: warning: ignored: Axolotl ignores it too.",
        "--set: save_first_step: not runnable yet",
        "error: the recipe is right, but this version of ft cannot run it",
    ]


@pytest.mark.parametrize(
    "command", [["plan"], ["cloud", "run", "--dry-run"]], ids=lambda words: words[-1]
)
def test_warnings_are_said_wherever_a_recipe_is_used(ft: Ft, command: list[str]) -> None:
    (ft.folder / "w.yml").write_text(f"{RECIPE}debug: true\n")
    said = "warning: w.yml:16: debug: ignored: Axolotl ignores it too."
    people = ft(*command, "w.yml")
    assert people.code == 0
    assert [line for line in people.err.splitlines() if "warning:" in line] == [said]
    assert "warning:" not in people.out

    program = ft(*command, "w.yml", "--json")
    assert (program.code, program.err) == (0, f"{said}\n")
    assert isinstance(json.loads(program.out), dict)
    assert "warning:" not in ft(*command, "r.yml").err


def test_warnings_are_said_before_a_run_is_started(ft: Ft) -> None:
    for command in (["train"], ["cloud", "run", "-d"]):
        result = ft(*command, "r.yml", "--set", "debug=true", program=WITHOUT_TORCH)
        lines = result.err.splitlines()
        warning = lines.index("warning: --set: debug: ignored: Axolotl ignores it too.")
        assert warning < lines.index("error: training here needs torch")


def test_what_this_machine_cannot_do_is_a_warning_until_it_is_to_run_here(ft: Ft) -> None:
    (ft.folder / "m.yml").write_text(
        RECIPE.partition("cloud:")[0] + "attn_implementation: flash_attention_2\n"
    )
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    said = "R013 {}flash_attention_2 needs a GPU. On the CPU use sdpa."
    checked = ft("check", "m.yml", env=no_gpu)
    assert checked.out.splitlines() == [
        f"m.yml:14: attn_implementation: warning: {said.format('on this machine: ')}",
        NO_CONFIG,
        "1 warning",
    ]
    assert (checked.code, checked.err) == (0, "hint: ft plan m.yml\n")
    named = ft("check", "m.yml", "--set", "cloud.gpu=cpu")
    assert named.out.splitlines() == [
        f"m.yml:14: attn_implementation: {said.format('')}",
        NO_CONFIG,
        "1 problem",
    ]
    # What is not runnable yet is so on every machine, and goes before what this one cannot do; a mistake does not.
    packed = "--set: save_first_step: not runnable yet"
    planned, mistake = ["--set", "save_first_step=true"], ["--set", "seed=x"]
    not_a_number = "--set: seed: expected a whole number, got 'x'"
    kernel = f"m.yml:14: attn_implementation: {said.format('')}"
    neither = (
        "error: the recipe is right, but neither this version of ft nor this machine can run it"
    )
    named = ["--set", "cloud.gpu=cpu"]
    for command in (["plan"], ["train"], ["cloud", "run"]):
        for options, code, expected in (
            ([], 2, [kernel, "error: 1 problem"]),
            (planned, 3, [packed, kernel, neither]),
            (
                [*planned, *mistake],
                2,
                [packed, not_a_number, kernel, "error: 2 problems, 1 not runnable yet"],
            ),
            ([*planned, *named], 2, [packed, kernel, "error: 1 problem, 1 not runnable yet"]),
        ):
            refused = ft(*command, "m.yml", *options, env=no_gpu)
            assert (refused.code, refused.out, refused.err.splitlines()) == (code, "", expected)
    assert ft("doctor", "m.yml", *planned, env=no_gpu).code == 3


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "no problems"), (1, "1 problem"), (10, "10 problems"), (20, "20 problems"), (100, "100 problems")],
)  # fmt: skip
def test_problems_are_counted(ft: Ft, count: int, said: str) -> None:
    (ft.folder / "c.yml").write_text(RECIPE + "".join(f"xyzzyq{i}: 1\n" for i in range(count)))
    assert ft("check", "c.yml").out.splitlines()[-1] == said
    if count:
        assert ft("plan", "c.yml").err.splitlines()[-1] == f"error: {said}"


def test_verbose_names_the_rules_that_were_not_checked(ft: Ft) -> None:
    said = "were not checked: they need the model's config.json, which is not on this machine"
    rules = f"{', '.join(MODEL_RULES)} {said}"
    assert ft("check", "r.yml", "--verbose").out.splitlines() == [rules, "no problems"]
    several = ft("check", "r.yml", "r.yml", "--verbose").out.splitlines()
    assert several[-2:] == [rules, "2 recipes: 2 runnable, 0 not runnable yet, 0 with problems"]


def test_problems_on_a_terminal_are_coloured_and_wrapped_between_words(ft: Ft) -> None:
    (ft.folder / "w.yml").write_text(
        f"{RECIPE}attn_implementation: flash_attention_2\nsave_first_step: true\ndebug: true\n"
    )
    expected = [
        "<31>w.yml:16: attn_implementation:<0> R013 flash_attention_2 needs a GPU. On the CPU",
        "    use sdpa.",
        "<36>w.yml:17: save_first_step:<0> not runnable yet",
        "<33>w.yml:18: debug: warning:<0> ignored: Axolotl ignores it too.",
        "<2>6 rules could not be checked here; --verbose says which<0>",
        "1 problem, 1 not runnable yet, 1 warning",
    ]
    coloured = on_terminal(ft, "check", "w.yml", code=2).replace("\r", "").splitlines()
    assert [re.sub(r"\x1b\[(\d+)m", r"<\1>", line) for line in coloured] == expected
    plain = on_terminal(ft, "check", "w.yml", env={"NO_COLOR": "1"}, code=2).replace("\r", "")
    assert plain.splitlines() == [re.sub(r"<\d+>", "", line) for line in expected]
    # In a pipe a problem is a line.
    assert ft("check", "w.yml").out.splitlines()[0] == (
        "w.yml:16: attn_implementation: R013 flash_attention_2 needs a GPU. On the CPU use sdpa."
    )
    planned = on_terminal(ft, "plan", "w.yml", code=2).replace("\r", "")
    assert planned.splitlines()[:2] == coloured[:2]


# ------------------------------------------------------------------------------- check of several


@pytest.fixture
def several(ft: Ft) -> list[str]:
    """Recipes: one that runs, two that do not yet and have a warning, one with problems, one that is not there."""
    packed = "save_first_step: true\nwandb_project: x\n"
    (ft.folder / "p.yml").write_text(f"{RECIPE}{packed}debug: true\n")
    (ft.folder / "q.yml").write_text(f"extends: base.yml\n{RECIPE}")
    (ft.folder / "base.yml").write_text("trust_remote_code: true\n\nsave_first_step: true\n")
    (ft.folder / "bad.yml").write_text(f"{RECIPE}seed: x\nlora_rank: 3\nwandb_project: x\n")
    return ["r.yml", "p.yml", "q.yml", "bad.yml", "gone.yml"]


def test_check_of_several_is_a_table_with_sums(ft: Ft, several: list[str]) -> None:
    result = ft("check", *several)
    assert result.out.splitlines() == [
        "r.yml: runnable",
        "p.yml: not runnable yet, 1 warning",
        "  not runnable yet: save_first_step (16), wandb_project (17)",
        "  ignored: debug",
        "q.yml: not runnable yet, 1 warning",
        "  not runnable yet: save_first_step (base.yml:3)",
        "bad.yml: 2 problems",
        "  bad.yml:16: seed: expected a whole number, got 'x'",
        "  bad.yml:17: lora_rank: unknown key. Did you mean `lora_r`?",
        "  not runnable yet: wandb_project (18)",
        "gone.yml: 1 problem",
        "  gone.yml: does not exist",
        "",
        "5 recipes: 1 runnable, 2 not runnable yet, 2 with problems, 2 warnings",
        "in the way    save_first_step 2, wandb_project 2",
    ]
    assert (result.code, result.err) == (2, "")


def test_check_of_several_fails_only_for_problems(ft: Ft, several: list[str]) -> None:
    fine = ft("check", *several[:3])
    assert fine.out.splitlines()[-2:] == [
        "3 recipes: 1 runnable, 2 not runnable yet, 0 with problems, 2 warnings",
        "in the way    save_first_step 2, wandb_project 1",
    ]
    assert (fine.code, fine.err) == (0, "")
    runnable = ft("check", "r.yml", "smollm2/135m-lora-sft")
    assert runnable.out.splitlines()[-1] == (
        "2 recipes: 2 runnable, 0 not runnable yet, 0 with problems"
    )
    assert (runnable.code, runnable.err) == (0, "")
    # Said of each of them.
    assert ft("check", *several[:3], "--set", "seed=x").out.splitlines()[-2:] == [
        "3 recipes: 0 runnable, 0 not runnable yet, 3 with problems, 2 warnings",
        "in the way    save_first_step 2, wandb_project 1",
    ]


def test_check_as_json_is_a_list_of_what_one_says(ft: Ft, several: list[str]) -> None:
    result = ft("check", *several, "--json")
    assert (result.code, result.err) == (2, "")
    *found, gone = json.loads(result.out)["recipes"]
    alone = [ft("check", name, "--json") for name in several]
    assert [json.loads(one.out)["recipes"] for one in alone] == [[one] for one in (*found, gone)]
    assert [one.code for one in alone] == [0, 0, 0, 2, 8]
    counts = [(one["recipe"], one["errors"], one["planned"], one["warnings"]) for one in found]
    assert counts == [
        ("r.yml", 0, 0, 0),
        ("p.yml", 0, 2, 1),
        ("q.yml", 0, 1, 1),
        ("bad.yml", 2, 1, 0),
    ]
    assert gone == {
        "recipe": "gone.yml",
        "errors": 1,
        "planned": 0,
        "warnings": 0,
        "problems": [
            {
                "file": "gone.yml",
                "line": 0,
                "key": "",
                "rule": "",
                "severity": "error",
                "message": "does not exist",
            }
        ],
        "deferred": [],
    }
    fine = ft("check", *several[:3], "--json")
    assert (fine.code, fine.err) == (0, "")
    assert json.loads(fine.out) == {"recipes": found[:3]}
    # Nothing is wrong but that one is not there, among several as alone.
    assert ft("check", "r.yml", "gone.yml").code == 8
    assert ft("check", "gone.yml", "bad.yml").code == 2


# --------------------------------------------------------------------------------- resolve and plan


def test_resolve_prints_a_recipe(ft: Ft) -> None:
    flat = {
        "base_model": "someone/some-model",
        "datasets": [
            {
                "path": "rows.jsonl",
                "type": "completion",
                "message_property_mappings": {"role": "role", "content": "content"},
                "trust_remote_code": False,
            }
        ],
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "context_parallel_size": 1,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_epochs": 2.0,
        "learning_rate": 0.00001,
        "output_dir": "./out",
        "cloud": {"gpu": "cpu"},
    }
    # An older spelling, and a number that YAML 1.1 takes for text.
    options = ["--set", "sequence_parallel_degree=1", "--set", "learning_rate=1e-5"]
    printed = ft("resolve", "r.yml", *options)
    assert (printed.code, printed.err) == (
        0,
        "--set: sequence_parallel_degree: warning: older spelling of `context_parallel_size`; "
        "ft migrate rewrites it\n",
    )
    assert yaml.safe_load(printed.out) == flat
    assert list(yaml.safe_load(printed.out)) == list(flat)
    assert json.loads(ft("resolve", "r.yml", "--json", *options).out) == flat

    (ft.folder / "again.yml").write_text(printed.out)
    again = ft("resolve", "again.yml")
    assert (again.code, again.out, again.err) == (0, printed.out, "")
    assert ft("check", "again.yml").out.splitlines() == [NO_CONFIG, "no problems"]


CLOUD_FILE = """\
# As Axolotl has it.
secrets:
  - HF_TOKEN
gpu: h100
gpu_count: 8
timeout: 3600
"""


def test_a_cloud_file_of_axolotl_is_a_layer(ft: Ft) -> None:
    (ft.folder / "cloud.yaml").write_text(CLOUD_FILE)
    origin = ft(
        *("resolve", "r.yml", "--cloud", "cloud.yaml", "--set", "cloud.timeout=2h"),
        *("--origin", "--json"),
    )
    assert origin.code == 0
    found = {key: value for key, value in json.loads(origin.out).items() if "cloud." in key}
    assert found == {
        "cloud.backend": {"value": "modal", "origin": "cloud.yaml:1"},
        "cloud.gpu": {"value": "H100:8", "origin": "cloud.yaml:4"},
        "cloud.secrets": {"value": ["HF_TOKEN"], "origin": "cloud.yaml:2"},
        "cloud.timeout": {"value": "2h", "origin": "--set"},
    }
    (ft.folder / "cloud.yaml").write_text("provider: baseten\n")
    for command in (["check"], ["plan"], ["resolve"], ["cloud", "run", "--dry-run"]):
        refused = ft(*command, "r.yml", "--cloud", "cloud.yaml")
        said = (refused.out + refused.err).splitlines()[0]
        assert (refused.code, said.partition(". Use")[0]) == (
            2,
            "cloud.yaml:1: provider: baseten is not supported",
        )


def test_ft_train_says_where_a_cloud_file_goes(ft: Ft) -> None:
    result = ft("train", "r.yml", "--cloud", "my cloud.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: --cloud: `ft train` trains on this machine\n"
        "hint: ft cloud run r.yml --cloud 'my cloud.yaml'\n"
    )


def test_resolve_keeps_what_is_not_runnable_yet(ft: Ft) -> None:
    planned = (
        "sample_packing: true\n"
        "adapter: qlora\n"
        "load_in_4bit: true\n"
        "cloud: {backend: sky, gpu: cpu, store_bucket: 's3://my-runs'}\n"
        "model_kwargs: {since: 2026-11-23}\n"
    )
    kept = RECIPE.replace("adapter: lora\n", "").partition("cloud:")[0]
    (ft.folder / "p.yml").write_text(kept + planned)
    result = ft("resolve", "p.yml")
    assert result.code == 0
    assert result.err.splitlines() == [
        "p.yml:14: adapter: not runnable yet: qlora",
        "p.yml:15: load_in_4bit: not runnable yet",
        "p.yml:17: model_kwargs: not runnable yet",
    ]
    resolved = yaml.safe_load(result.out)
    # In the order of the sections, with what `sample_packing` brings along.
    assert list(resolved) == [
        *("base_model", "overrides_of_model_kwargs", "datasets"),
        *("sample_packing", "eval_sample_packing", "pad_to_sequence_len"),
        *("adapter", "lora_r", "lora_alpha", "load_in_4bit"),
        *("micro_batch_size", "gradient_accumulation_steps", "num_epochs", "learning_rate"),
        *("output_dir", "cloud"),
    ]
    assert resolved["cloud"] == {"backend": "sky", "gpu": "cpu", "store_bucket": "s3://my-runs"}
    assert (resolved["sample_packing"], resolved["adapter"]) == (True, "qlora")
    assert resolved["eval_sample_packing"] is resolved["pad_to_sequence_len"] is True
    as_json = json.loads(ft("resolve", "p.yml", "--json").out)
    assert as_json == {**resolved, "overrides_of_model_kwargs": {"since": "2026-11-23"}}

    # What was printed is no other recipe: it is refused as the first one is.
    (ft.folder / "again.yml").write_text(result.out)
    assert ft("plan", "again.yml").code == ft("plan", "p.yml").code == 3
    assert ft("resolve", "again.yml").out == result.out


LAYERS = {
    "base/model.yml": """\
base_model: someone/some-model
datasets:
  - path: rows.jsonl
    type: completion
learning_rate: 1e-3
num_epochs: 2
cloud:
  gpu: cpu
  timeout: 2h
""",
    "base/lora.yml": """\
adapter: lora
lora_r: 8
lora_alpha: 16
num_epochs: 3
""",
    "r.yml": """\
extends: [base/model.yml, base/lora.yml]
sequence_parallel_degree: 1
lora_r: 4
cloud:
  timeout: 3h
""",
}
"""`r.yml` over two others; the rows lie beside the first one only."""


@pytest.fixture
def layers(ft: Ft) -> Ft:
    for name, text in LAYERS.items():
        (ft.folder / name).parent.mkdir(exist_ok=True)
        (ft.folder / name).write_text(text)
    (ft.folder / "rows.jsonl").rename(ft.folder / "base/rows.jsonl")
    return ft


def test_resolve_origin_names_the_place_that_decided(layers: Ft) -> None:
    options = ["--set", "seed=1", "--set", "cloud.gpu=cpu:2"]
    wide = layers("resolve", "r.yml", "--origin", *options, env={"COLUMNS": "120"})
    assert wide.out.splitlines() == [
        "r.yml                                         VALUE               FROM",
        "base_model                                    someone/some-model  base/model.yml:1",
        "datasets.0.path                               rows.jsonl          base/model.yml:3",
        "datasets.0.type                               completion          base/model.yml:4",
        "datasets.0.message_property_mappings.role     role                "
        "follows from datasets, base/model.yml:2",
        "datasets.0.message_property_mappings.content  content             "
        "follows from datasets, base/model.yml:2",
        "datasets.0.trust_remote_code                  false               "
        "follows from datasets, base/model.yml:2",
        "adapter                                       lora                base/lora.yml:1",
        "lora_r                                        4                   line 3",
        "lora_alpha                                    16                  base/lora.yml:3",
        "context_parallel_size                         1                   "
        "line 2 as sequence_parallel_degree",
        "num_epochs                                    3.0                 base/lora.yml:4",
        "learning_rate                                 0.001               base/model.yml:5",
        "seed                                          1                   --set",
        "cloud.gpu                                     cpu:2               --set",
        "cloud.timeout                                 3h                  line 5",
    ]
    assert (wide.code, wide.err) == (
        0,
        "r.yml:2: sequence_parallel_degree: warning: older spelling of `context_parallel_size`; "
        "ft migrate rewrites it\n",
    )
    # Programs get everything. On a terminal keys are whole, and the rest fits.
    assert layers("resolve", "r.yml", "--origin", *options).out == wide.out
    shown = on_terminal(layers, "resolve", "r.yml", "--origin", *options)
    narrow = [line for line in shown.splitlines() if "warning:" not in line][-16:]
    assert max(map(len, narrow)) <= 80
    assert [line.split()[0] for line in narrow] == [
        line.split()[0] for line in wide.out.splitlines()
    ]
    assert (
        narrow[4]
        == "datasets.0.message_property_mappings.role     role              follows from da…"
    )

    as_json = json.loads(layers("resolve", "r.yml", "--origin", "--json", *options).out)
    assert as_json == {
        "base_model": {"value": "someone/some-model", "origin": "base/model.yml:1"},
        "datasets.0.path": {"value": "rows.jsonl", "origin": "base/model.yml:3"},
        "datasets.0.type": {"value": "completion", "origin": "base/model.yml:4"},
        "datasets.0.message_property_mappings.role": {
            "value": "role",
            "origin": "follows from datasets, base/model.yml:2",
        },
        "datasets.0.message_property_mappings.content": {
            "value": "content",
            "origin": "follows from datasets, base/model.yml:2",
        },
        "datasets.0.trust_remote_code": {
            "value": False,
            "origin": "follows from datasets, base/model.yml:2",
        },
        "adapter": {"value": "lora", "origin": "base/lora.yml:1"},
        "lora_r": {"value": 4, "origin": "r.yml:3"},
        "lora_alpha": {"value": 16, "origin": "base/lora.yml:3"},
        "context_parallel_size": {"value": 1, "origin": "r.yml:2 as sequence_parallel_degree"},
        "num_epochs": {"value": 3.0, "origin": "base/lora.yml:4"},
        "learning_rate": {"value": 0.001, "origin": "base/model.yml:5"},
        "seed": {"value": 1, "origin": "--set"},
        "cloud.gpu": {"value": "cpu:2", "origin": "--set"},
        "cloud.timeout": {"value": "3h", "origin": "r.yml:5"},
    }


def test_resolve_origin_of_what_a_key_brings_along(ft: Ft) -> None:
    (ft.folder / "p.yml").write_text(f"{RECIPE}sample_packing: true\n")
    found = json.loads(ft("resolve", "p.yml", "--origin", "--json").out)
    assert {key: value for key, value in found.items() if "len" in key or "packing" in key} == {
        "sample_packing": {"value": True, "origin": "p.yml:16"},
        "eval_sample_packing": {"value": True, "origin": "follows from sample_packing, p.yml:16"},
        "pad_to_sequence_len": {"value": True, "origin": "follows from sample_packing, p.yml:16"},
    }


def test_resolve_origin_refuses_a_recipe_with_problems(ft: Ft) -> None:
    result = ft("resolve", "r.yml", "--origin", "--set", "adaptor=lora")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "--set: adaptor: unknown key. Did you mean `adapter`?\nerror: 1 problem\n"
    )


def test_plan_json_is_the_plan(ft: Ft) -> None:
    result = ft("plan", "r.yml", "--json")
    assert (result.code, result.err) == (0, "")
    plan = RunPlan.from_json(result.out)
    assert plan.to_json() == result.out
    assert (plan.optim.micro_batch_size, plan.adapter.lora_r) == (2, 8)


def test_plan_writes_out_what_its_numbers_are_made_of(ft: Ft) -> None:
    (ft.folder / "rows.jsonl").write_text('{"text": "a"}\n' * 100)
    options = ["--set", "cloud.gpu=cpu:4", "--set", "tensor_parallel_size=1"]
    result = ft("plan", "r.yml", "--set", "val_set_size=0.1", *options)
    assert result.code == 0
    lines = result.out.splitlines()
    start = lines.index("data")
    # 100 rows, a tenth held out: 90; 2 · 3 · 4 = 24 rows a step; ceil(90 / 24) = 4, twice.
    assert lines[start : lines.index("inputs")] == [
        "data",
        "  DATA SET    TYPE        ROWS",
        "  rows.jsonl  completion  100",
        "  rows          longer than 512 tokens: dropped; 0.1 of the rows held out",
        "layout",
        "  world         4 = 4 replicate × 1 shard × 1 context × 1 tensor (1 machine with",
        "                cpu:4)",
        "  global batch  24 rows = 2 micro × 3 accumulation × (4 / (1 · 1))",
        "steps",
        "  steps         at most 8: 4 per epoch (90 rows / 24) × 2 epochs",
        "  saved         1 time an epoch; the newest 4 are kept",
    ]
    assert lines[-1] == "backend: local (default)"
    assert max(len(line) for line in lines[: lines.index("request")]) <= 80
    assert result.err == f"hint: ft train r.yml --set val_set_size=0.1 {' '.join(options)}\n"


def test_plan_tells_rows_to_train_on_from_rows_to_evaluate_on(ft: Ft) -> None:
    (ft.folder / "test.jsonl").write_text('{"text": "b"}\n' * 7)
    tests = "test_datasets=[{path: test.jsonl, type: completion}]"
    result = ft("plan", "r.yml", "--set", tests)
    assert result.code == 0
    lines = result.out.splitlines()
    start = lines.index("data")
    assert lines[start : start + 4] == [
        "data",
        "  DATA SET    TYPE        ROWS  USE",
        "  rows.jsonl  completion  2     train",
        "  test.jsonl  completion  7     evaluate",
    ]
    # Steps are of what is trained on.
    assert "(2 rows / " in result.out
    shown = ft("cloud", "run", "r.yml", "--dry-run", "--set", tests)
    said = "rows.jsonl: 2 rows, at most 512 tokens each; evaluated on test.jsonl"
    assert said in " ".join(shown.err.split())


def test_plan_does_not_guess_rows(ft: Ft) -> None:
    result = ft("plan", "r.yml", "--set", "datasets.0.path=someone/some-data")
    assert "  someone/some-data  completion  ?" in result.out.splitlines()
    assert "  steps         ?: ? per epoch × 2 epochs" in result.out.splitlines()
    assert "  none: nothing of this machine is needed" in result.out.splitlines()


def test_dry_run_prints_the_request_and_starts_nothing(ft: Ft) -> None:
    result = ft("cloud", "run", "r.yml", "--dry-run", "--json")
    assert (result.code, result.err) == (0, "")
    submission = json.loads(result.out)
    assert sorted(submission) == ["backend", "cloud", "plan", "request", "uploads"]
    assert submission["backend"] == "local"
    assert submission["request"]["store"] == f"{ft.folder}/data/ft/store/{{run}}"
    assert [upload["source"] for upload in submission["uploads"]] == [f"{ft.folder}/rows.jsonl"]
    assert not (ft.folder / "state").exists()
    assert not (ft.folder / "data").exists()

    people = ft("cloud", "run", "r.yml", "--dry-run")
    assert people.out == result.out
    assert people.err.splitlines()[-1] == "backend local: nothing else was asked for"


def test_a_dry_run_needs_no_shared_folder(ft: Ft) -> None:
    words = ("cloud", "run", "r.yml", "--backend", "sky", "--set", f"cloud.store={ft.folder}/nfs/")
    result = ft(*words, "--dry-run", "--json")
    assert result.code == 0, result.err
    request = json.loads(result.out)["request"]
    assert request["store"] == request["job"]["store"] == f"file://{ft.folder}/nfs/{{run}}"
    assert not (ft.folder / "nfs").exists()


def test_ascii_where_the_terminal_wants_it(ft: Ft) -> None:
    result = ft("plan", "r.yml", env={"LC_ALL": "C"})
    assert result.code == 0
    assert result.out.isascii()
    assert "6 rows = 2 micro x 3 accumulation x (1 / (1 * 1))" in result.out


# ------------------------------------------------------------------------------------------ extends


def test_a_recipe_goes_over_those_that_it_extends(layers: Ft) -> None:
    # The later of two bases wins, mappings are merged, and rows lie beside the file that names them.
    resolved = yaml.safe_load(layers("resolve", "r.yml").out)
    assert (resolved["num_epochs"], resolved["lora_r"]) == (3.0, 4)
    assert resolved["cloud"] == {"gpu": "cpu", "timeout": "3h"}
    plan = json.loads(layers("cloud", "run", "r.yml", "--dry-run", "--json").out)
    assert [upload["source"] for upload in plan["uploads"]] == [f"{layers.folder}/base/rows.jsonl"]
    checked = layers("check", "r.yml")
    assert checked.out.splitlines() == [
        "r.yml:2: sequence_parallel_degree: warning: older spelling of `context_parallel_size`; "
        "ft migrate rewrites it",
        NO_CONFIG,
        "1 warning",
    ]
    assert (checked.code, checked.err) == (0, "hint: ft plan r.yml\n")


def test_an_override_goes_over_an_older_spelling_and_is_named(layers: Ft) -> None:
    (layers.folder / "old.yml").write_text(
        "extends: r.yml\nflash_attention: true\nbatch_size: 64\nsaves_per_epoch: 2\n"
        "evaluation_strategy: steps\nwarmup_ratio: 0.1\n"
    )
    (layers.folder / "new.yml").write_text(
        "extends: old.yml\nattn_implementation: sdpa\nsave_steps: 5\ncontext_parallel_size: 2\n"
    )
    options = [
        "--set",
        "gradient_accumulation_steps=3",
        "--set",
        "eval_strategy=no",
        "--set",
        "warmup_steps=0",
    ]
    options += ["--set", "datasets.0.path=other.jsonl"]
    result = layers("resolve", "new.yml", "--origin", "--json", *options)
    assert (result.code, result.err.splitlines()) == (
        0,
        [
            "--set: eval_strategy: not runnable yet",
            "new.yml:4: context_parallel_size: not runnable yet",
        ],
    )
    found = json.loads(result.out)
    named = ("attn_implementation", "save_steps", "context_parallel_size", "gradient_accumulation_steps",
             "eval_strategy", "warmup_steps", "datasets.0.path")  # fmt: skip
    assert {key: found[key] for key in named} == {
        "attn_implementation": {"value": "sdpa", "origin": "new.yml:2"},
        "save_steps": {"value": 5, "origin": "new.yml:3"},
        "context_parallel_size": {"value": 2, "origin": "new.yml:4"},
        "gradient_accumulation_steps": {"value": 3, "origin": "--set"},
        "eval_strategy": {"value": "no", "origin": "--set"},
        "warmup_steps": {"value": 0, "origin": "--set"},
        "datasets.0.path": {"value": "other.jsonl", "origin": "--set"},
    }
    assert not {"saves_per_epoch", "warmup_ratio", "batch_size"} & set(found)


def test_a_list_replaces_the_one_that_it_extends(layers: Ft) -> None:
    (layers.folder / "own.jsonl").write_text('{"text": "one"}\n')
    (layers.folder / "l.yml").write_text(
        "extends: r.yml\ndatasets: [{path: own.jsonl, type: completion, field: body}]\n"
    )
    resolved = json.loads(layers("resolve", "l.yml", "--json").out)
    assert [dataset["path"] for dataset in resolved["datasets"]] == ["own.jsonl"]
    # Each problem has the file and line that it stands in; `lora_r` of `r.yml` covers the broken one.
    lora = LAYERS["base/lora.yml"].replace("lora_r: 8", "lora_r: x").replace("num_epochs", "epochs")
    (layers.folder / "base/lora.yml").write_text(lora)
    result = layers("check", "l.yml")
    assert result.out.splitlines() == [
        "l.yml:2: datasets.0: R018 own.jsonl, line 1: has no column `body`; its columns: `text`. "
        "`field` names another one.",
        "base/lora.yml:4: epochs: unknown key. Did you mean `num_epochs`?",
        "r.yml:2: sequence_parallel_degree: warning: older spelling of `context_parallel_size`; "
        "ft migrate rewrites it",
        NO_CONFIG,
        "2 problems, 1 warning",
    ]
    assert (result.code, result.err) == (2, "")


def test_a_recipe_extends_one_of_the_gallery_by_its_name(layers: Ft) -> None:
    (layers.folder / "g.yml").write_text("extends: smollm2/135m-lora-sft\nlora_r: 4\n")
    resolved = json.loads(layers("resolve", "g.yml", "--json").out)
    assert (resolved["base_model"], resolved["lora_r"]) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        4,
    )
    # A file of that name goes first, and what is neither is said so.
    (layers.folder / "smollm2").mkdir()
    (layers.folder / "smollm2/135m-lora-sft").write_text("lora_alpha: 2\n")
    assert json.loads(layers("resolve", "g.yml", "--json").out) == {"lora_alpha": 2, "lora_r": 4}
    for name in ("smollm2/nothing", "smollm2", "../gallery/smollm2/135m-lora-sft"):
        (layers.folder / "g.yml").write_text(f"extends: {name}\n")
        result = layers("check", "g.yml")
        assert result.code == 2
        assert result.out.startswith(f"g.yml:1: extends: {name} ")


EXTENDS: list[tuple[dict[str, str], str]] = [
    ({"e.yml": "seed: 1\nextends: gone.yml\n"}, "e.yml:2: extends: gone.yml does not exist"),
    ({"e.yml": "extends: [r.yml, gone.yml]\n"}, "e.yml:1: extends: gone.yml does not exist"),
    ({"e.yml": "extends: e.yml\n"}, "e.yml:1: extends: extends itself: e.yml -> e.yml"),
    (
        {"e.yml": "extends: sub/f.yml\n", "sub/f.yml": "seed: 1\nextends: ../e.yml\n"},
        "sub/f.yml:2: extends: extends itself: e.yml -> sub/f.yml -> ../e.yml",
    ),
    (
        {"e.yml": "extends: f.yml\n", "f.yml": "extends: gone.yml\n"},
        "f.yml:1: extends: gone.yml does not exist",
    ),
    ({"e.yml": "extends: .\n"}, "e.yml:1: extends: . is a folder"),
    (
        {"e.yml": "extends: 3\n"},
        "e.yml:1: extends: expected a recipe file or address, or a list of them",
    ),
    (
        {"e.yml": "extends: [r.yml, {a: b}]\n"},
        "e.yml:1: extends: expected a recipe file or address, or a list of them",
    ),
    (
        {"e.yml": "extends: http://example.com/r.yml\n"},
        "e.yml:1: extends: http://example.com/r.yml: a recipe is fetched over https only",
    ),
    (
        {"e.yml": "extends: f.yml\n", "f.yml": "a: [\n"},
        "f.yml:2: not YAML: did not find expected node content (while parsing a flow node)",
    ),
    (
        {
            "e.yml": "extends: 0.yml\n",
            **{f"{i}.yml": f"extends: {i + 1}.yml\n" for i in range(20)},
        },
        "14.yml:1: extends: more than 16 files extend each other",
    ),
]


@pytest.mark.parametrize(("files", "said"), EXTENDS)
def test_a_base_that_cannot_be_is_explained(ft: Ft, files: dict[str, str], said: str) -> None:
    (ft.folder / "sub").mkdir()
    for name, text in files.items():
        (ft.folder / name).write_text(text)
    result = ft("check", "e.yml")
    assert (result.code, result.out, result.err) == (2, f"{said}\n1 problem\n", "")
    planned = ft("plan", "e.yml")
    assert (planned.code, planned.out, planned.err) == (2, "", f"{said}\nerror: 1 problem\n")


# --------------------------------------------------------------------------------------------- diff


def test_diff_says_what_two_recipes_disagree_on(ft: Ft) -> None:
    other = RECIPE.replace("lora_r: 8", "lora_r: 16").replace("num_epochs: 2\n", "")
    (ft.folder / "s.yml").write_text(f"seed: 1\n{other}  nodes: 1\n")
    result = ft("diff", "r.yml", "s.yml")
    assert result.out.splitlines() == [
        "--- r.yml",
        "+++ s.yml",
        "- lora_r: 8",
        "+ lora_r: 16",
        "- num_epochs: 2.0",
        "+ seed: 1",
        "+ cloud.nodes: 1",
    ]
    assert (result.code, result.err) == (1, "")
    as_json = ft("diff", "r.yml", "s.yml", "--json")
    assert (as_json.code, as_json.err) == (1, "")
    assert json.loads(as_json.out) == [
        {"key": "lora_r", "one": 8, "other": 16},
        {"key": "num_epochs", "one": 2.0},
        {"key": "seed", "other": 1},
        {"key": "cloud.nodes", "other": 1},
    ]


def test_diff_sees_no_spelling_order_or_comments(ft: Ft) -> None:
    lines = RECIPE.replace("1e-3", "'0.0010'").replace("num_epochs: 2", "num_epochs: 2.0")
    head, _, tail = lines.partition("adapter: lora\n")
    (ft.folder / "s.yml").write_text(f"# Others.\nadapter: lora\n{head}{tail}seed:\n")
    (ft.folder / "old.yml").write_text(
        RECIPE.replace("gradient_accumulation_steps: 3", "batch_size: 6")
    )
    for other in ("r.yml", "s.yml", "old.yml"):
        same = ft("diff", "r.yml", other)
        assert (same.code, same.out) == (0, f"r.yml and {other} mean the same\n")
        as_json = ft("diff", "r.yml", other, "--json")
        assert (as_json.code, json.loads(as_json.out)) == (0, [])
    (ft.folder / "on.yml").write_text(f"{RECIPE}sample_packing: true\n")
    assert ft("diff", "r.yml", "on.yml").out.splitlines()[2:] == [
        "+ sample_packing: true",
        "+ eval_sample_packing: true",
        "+ pad_to_sequence_len: true",
    ]


@pytest.mark.parametrize(
    ("one", "other", "code", "said"),
    [
        ("r.yml", "gone.yml", 8, "error: gone.yml does not exist\nhint: ft recipes ls  lists recipes to start from\n"),
        ("bad.yml", "r.yml", 2, "bad.yml:1: lora_rank: unknown key. Did you mean `lora_r`?\nerror: 1 problem\n"),
        ("r.yml", "list.yml", 2, "list.yml:1: expected `key: value` lines, got list\nerror: 1 problem\n"),
    ],
)  # fmt: skip
def test_diff_of_what_is_no_recipe(ft: Ft, one: str, other: str, code: int, said: str) -> None:
    (ft.folder / "bad.yml").write_text("lora_rank: 3\n")
    (ft.folder / "list.yml").write_text("- a\n")
    result = ft("diff", one, other)
    assert (result.code, result.out, result.err) == (code, "", said)
    as_json = ft("diff", one, other, "--json")
    assert (as_json.code, as_json.err) == (code, said)
    answer = json.loads(as_json.out)
    *problems, message = said.partition("\nhint")[0].splitlines()
    assert answer["error"]["exit_code"] == code
    assert f"error: {answer['error']['message']}" == message
    assert [f"{p['file']}:{p['line']}: {p['key']}{p['key'] and ': '}{p['message']}"
            for p in answer["problems"]] == problems  # fmt: skip


# ------------------------------------------------------------------------- standard input, addresses


def test_a_recipe_from_standard_input(ft: Ft) -> None:
    checked = ft("check", "-", stdin=RECIPE)
    assert checked.out.splitlines() == [NO_CONFIG, "no problems"]
    # No hint: standard input has been read.
    assert (checked.code, checked.err) == (0, "")
    bad = ft("check", "-", stdin=f"{RECIPE}lora_rank: 3\n")
    assert bad.out.splitlines() == [
        "<stdin>:16: lora_rank: unknown key. Did you mean `lora_r`?",
        NO_CONFIG,
        "1 problem",
    ]
    assert (bad.code, bad.err) == (2, "")
    [report] = json.loads(ft("check", "-", "--json", stdin="seed: x\n").out)["recipes"]
    assert (report["recipe"], report["problems"][-1]["file"]) == ("-", "<stdin>")
    long = ft("check", "-", stdin="# x\n" * 300_000)
    assert long.out == ("<stdin>:1: too long for a recipe: more than 1048576 bytes\n1 problem\n")


def test_standard_input_wherever_a_recipe_is_read(ft: Ft) -> None:
    assert ft("resolve", "-", stdin=RECIPE).out == ft("resolve", "r.yml").out
    assert ft("plan", "-", "--json", stdin=RECIPE).out == ft("plan", "r.yml", "--json").out
    assert ft("plan", "-", stdin=RECIPE).err == ""
    for command in ("check", "diff"):
        twice = ft(command, "-", "-", stdin=RECIPE)
        said = "error: standard input can be read once: name - only once\n"
        assert (twice.code, twice.out, twice.err) == (2, "", said)
    same = ft("diff", "-", "r.yml", stdin=RECIPE)
    assert (same.code, same.out) == (0, "- and r.yml mean the same\n")
    over = ft("resolve", "-", "--json", stdin="extends: r.yml\nlora_r: 4\n")
    assert json.loads(over.out)["lora_r"] == 4


@dataclass(frozen=True)
class Web:
    """A server on this machine: `pages` by path; a text that begins with `->` leads there."""

    address: str
    pages: dict[str, bytes]
    asked: list[str]


@contextmanager
def serving(scheme: str = "http", context: ssl.SSLContext | None = None) -> Iterator[Web]:
    pages: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            page = pages.get(self.path)
            if page is None:
                self.send_error(404)
            elif page.startswith(b"->"):
                self.send_response(302)
                self.send_header("Location", page[2:].decode())
                self.end_headers()
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Web(f"{scheme}://127.0.0.1:{server.server_port}", pages, asked)
        server.shutdown()
        thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as found:
        yield found


DIRECT = {"no_proxy": "*", "NO_PROXY": "*"}


def test_a_recipe_at_an_address(ft: Ft, web: Web) -> None:
    web.pages["/a/r.yml"] = RECIPE.encode()
    web.pages["/a/bad.yml"] = f"{RECIPE}lora_rank: 3\n".encode()
    web.pages["/moved.yml"] = b"->/a/r.yml"
    sha256 = hashlib.sha256(RECIPE.encode()).hexdigest()
    for name in ("/a/r.yml", f"/a/r.yml#sha256={sha256}", "/moved.yml"):
        address = f"{web.address}{name}"
        checked = ft("check", address, env=DIRECT)
        assert checked.out.splitlines() == [NO_CONFIG, "no problems"]
        assert (checked.code, checked.err) == (0, f"hint: ft plan {address}\n")
    # The fragment stays here.
    assert web.asked == ["/a/r.yml", "/a/r.yml", "/moved.yml", "/a/r.yml"]

    bad = ft("check", f"{web.address}/a/bad.yml", env=DIRECT)
    assert bad.out.splitlines() == [
        f"{web.address}/a/bad.yml:16: lora_rank: unknown key. Did you mean `lora_r`?",
        NO_CONFIG,
        "1 problem",
    ]
    # Relative paths are those of the current folder.
    plan = ft("plan", f"{web.address}/a/r.yml", "--json", env=DIRECT)
    assert (plan.code, plan.out) == (0, ft("plan", "r.yml", "--json").out)


def test_an_address_is_repeated_without_what_may_be_secret_in_it(ft: Ft, web: Web) -> None:
    web.pages["/r.yml?token=secret"] = RECIPE.encode()
    address, shown = f"{web.address}/r.yml?token=secret", f"{web.address}/r.yml?…"
    checked = ft("check", address, env=DIRECT)
    assert (checked.code, checked.err) == (0, f"hint: ft plan {shown}\n")
    (told,) = json.loads(ft("check", address, "--json", env=DIRECT).out)["recipes"]
    assert told["recipe"] == shown
    login = web.address.replace("http://", "http://user:secret@")
    for command in (("check", "r.yml"), ("diff", "r.yml"), ("plan",), ("migrate",), ("doctor",)):
        for named in (address, f"{login}/r.yml"):
            done = ft(*command, named, env=DIRECT)
            assert "secret" not in done.out + done.err, (command, done)


def test_a_pin_behind_a_blank_is_no_pin(ft: Ft, web: Web) -> None:
    web.pages["/r.yml"] = RECIPE.encode()
    address = f"{web.address}/r.yml"
    said = "extends: warning: `#sha256=` after a blank is a comment: this address is not pinned. Take the blank out."
    for text, line in (
        (f"extends: {address} #sha256=00\n", 1),
        (f'seed: 1\nextends: "{address}"  # sha256=00\n', 2),
        (f"extends:\n  # ours\n  - {address} #sha256=00\n", 3),
    ):
        (ft.folder / "e.yml").write_text(text)
        checked = ft("check", "e.yml", env=DIRECT)
        assert checked.out.splitlines() == [f"e.yml:{line}: {said}", NO_CONFIG, "1 warning"]
    (ft.folder / "e.yml").write_text(f"# {address} #sha256=00\nextends: {address}  # ours\n")
    assert ft("check", "e.yml", env=DIRECT).out.splitlines() == [NO_CONFIG, "no problems"]


def test_a_recipe_at_an_address_extends_what_lies_beside_it(ft: Ft, web: Web) -> None:
    web.pages["/a/r.yml"] = RECIPE.encode()
    web.pages["/a/b/over.yml"] = b"extends: ../r.yml\nlora_r: 4\n"
    (ft.folder / "over.yml").write_text(f"extends: {web.address}/a/b/over.yml\nlora_alpha: 8\n")
    origins = json.loads(ft("resolve", "over.yml", "--origin", "--json", env=DIRECT).out)
    assert {key: origins[key]["origin"] for key in ("adapter", "lora_r", "lora_alpha")} == {
        "adapter": f"{web.address}/a/r.yml:6",
        "lora_r": f"{web.address}/a/b/over.yml:2",
        "lora_alpha": "over.yml:2",
    }
    web.pages["/a/r.yml"] = b"extends: b/over.yml\n"
    circle = ft("check", "over.yml", env=DIRECT)
    names = " -> ".join(
        ["over.yml", *(f"{web.address}/a/{name}" for name in ("b/over.yml", "r.yml", "b/over.yml"))]
    )
    assert circle.out == (f"{web.address}/a/r.yml:1: extends: extends itself: {names}\n1 problem\n")
    # Whoever wrote it does not get to read files of this machine.
    web.pages["/a/r.yml"] = b"extends: file:///etc/hostname\n"
    local = ft("check", f"{web.address}/a/r.yml", env=DIRECT)
    assert (local.code, local.out) == (
        2,
        f"{web.address}/a/r.yml:1: extends: file:///etc/hostname: a recipe is fetched over https "
        "only\n1 problem\n",
    )
    del web.pages["/a/r.yml"]
    gone = ft("check", "over.yml", env=DIRECT)
    assert (gone.code, gone.out) == (
        2,
        f"{web.address}/a/b/over.yml:1: extends: {web.address}/a/r.yml: the server says "
        "404 Not Found\n1 problem\n",
    )


PAGE = b"\n<!DOCTYPE html>\n<html><body>r.yml</body></html>\n"
ADDRESSES: list[tuple[str, int, str]] = [
    ("{web}/gone.yml", 8, "{web}/gone.yml: the server says 404 Not Found"),
    (
        "{web}/page",
        2,
        "{web}/page is a web page, not a recipe\n"
        "hint: on GitHub that is the link behind the button Raw",
    ),
    (
        "{web}/r.yml#sha256={zeros}",
        2,
        "{web}/r.yml has changed: its sha256 is {sha256}, expected {zeros}",
    ),
    (
        "{web}/r.yml#main",
        2,
        "{web}/r.yml: expected #sha256=<64 hex digits> after the address, or nothing",
    ),
    (
        "{web}/to-file",
        2,
        "{web}/to-file leads to where no recipe may be fetched from",
    ),
    (
        "http://example.com/r.yml",
        2,
        "http://example.com/r.yml: a recipe is fetched over https only\nhint: https://…",
    ),
    ("{web}/circle", 2, "{web}/circle leads in a circle, or to too many addresses"),
    *(
        (
            f"{scheme}://me:secret@{host}/r.yml",
            2,
            f"{scheme}://{host}/r.yml: an address with a user or a password is not fetched\n"
            "hint: curl -u USER -o recipe.yml ADDRESS",
        )
        for scheme, host in (("https", "example.com"), ("http", "127.0.0.1:1"))
    ),
    (
        "https://me:secret@[::1/r.yml",
        2,
        "(no address): a recipe is fetched over https only\nhint: https://…",
    ),
    ("s3://b/r.yml", 2, "s3://b/r.yml: a recipe is fetched over https only\nhint: https://…"),
    (
        "https://127.0.0.1:1/r.yml",
        8,
        "https://127.0.0.1:1/r.yml cannot be fetched: [Errno 111] Connection refused",
    ),
]


@pytest.mark.parametrize(("address", "code", "said"), ADDRESSES)
def test_an_address_without_a_recipe_is_explained(
    ft: Ft, web: Web, address: str, code: int, said: str
) -> None:
    web.pages["/r.yml"] = RECIPE.encode()
    web.pages["/page"] = PAGE
    web.pages["/circle"] = b"->/circle"
    web.pages["/to-file"] = b"->file:///etc/hostname"
    sha256 = hashlib.sha256(RECIPE.encode()).hexdigest()
    names = {"web": web.address, "zeros": "0" * 64, "sha256": sha256}
    result = ft("check", address.format(**names), env=DIRECT)
    assert (result.code, result.out) == (code, "")
    assert result.err == f"error: {said.format(**names)}\n"
    for more in (["--json"], ["r.yml"]):
        shown = ft("check", address.format(**names), *more, env=DIRECT)
        assert shown.code == code
        assert "secret" not in shown.out + shown.err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_an_address_that_leaves_https_is_refused(ft: Ft, web: Web) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    files = ["-keyout", "key.pem", "-out", "own.pem"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *files, *name], cwd=ft.folder, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ft.folder / "own.pem", ft.folder / "key.pem")
    trusting = {**DIRECT, "SSL_CERT_FILE": str(ft.folder / "own.pem")}
    web.pages["/r.yml"] = RECIPE.encode()
    with serving("https", context) as secure:
        secure.pages["/r.yml"] = RECIPE.encode()
        secure.pages["/moved"] = b"->/r.yml"
        secure.pages["/down"] = f"->{web.address}/r.yml".encode()
        for path in ("/r.yml", "/moved"):
            assert ft("check", f"{secure.address}{path}", env=trusting).code == 0
        down = ft("check", f"{secure.address}/down", env=trusting)
        assert (down.code, down.out, down.err) == (
            2,
            "",
            f"error: {secure.address}/down leads to {web.address}/r.yml: "
            "a recipe is fetched over https only\n",
        )
        unknown = ft("check", f"{secure.address}/r.yml", env=DIRECT)
        assert (unknown.code, unknown.out) == (8, "")
        assert "CERTIFICATE_VERIFY_FAILED" in unknown.err


# ----------------------------------------------------------------------------------------- gallery


def test_every_recipe_of_the_gallery_is_listed_and_shown(ft: Ft, repo: Path) -> None:
    gallery = repo / "recipes/ft/recipes/gallery"
    files = {f"{path.parent.name}/{path.stem}": path for path in gallery.glob("*/*.yml")}
    assert "smollm2/135m-lora-sft" in files
    result = ft("recipes", "ls")
    header, *rows = result.out.splitlines()
    assert header.split("  ")[0] == "RECIPE"
    assert [row.split("  ")[0] for row in rows] == sorted(files)
    assert len(result.err.removesuffix("\n")) <= 80
    name, path = next(iter(files.items()))
    # As it is copied: without the line about a schema that lies in the gallery only.
    modeline, _, text = path.read_text().partition("\n")
    assert modeline == "# yaml-language-server: $schema=../schema.json"
    assert ft("recipes", "show", name).out == text

    listed = json.loads(ft("recipes", "ls", "--json").out)
    assert [(entry["name"], entry["path"]) for entry in listed] == sorted(
        (name, str(path)) for name, path in files.items()
    )
    sentences = [f"{entry['name']} {entry['title']}" for entry in listed]
    assert [" ".join(row.split()) for row in rows] == sentences
    shown = on_terminal(ft, "recipes", "ls").replace("\x1b[2m", "").splitlines()
    assert max(map(len, shown)) <= 80
    assert " ".join(" ".join(shown[1:]).split()).startswith(" ".join(sentences))
    shown = json.loads(ft("recipes", "show", name, "--json").out)
    entry = next(entry for entry in listed if entry["name"] == name)
    assert shown == {**entry, "text": text}


def test_a_copy_has_its_data_beside_it_and_is_never_overwritten(ft: Ft, repo: Path) -> None:
    source = repo / "recipes/ft/recipes/gallery/smollm2"
    name, target = "smollm2/135m-lora-sft", ft.folder / "mine"
    result = ft("recipes", "copy", name, "mine")
    assert (result.code, result.err) == (0, "hint: ft train mine/135m-lora-sft.yml\n")
    assert result.out.splitlines() == ["mine/135m-lora-sft.yml", "mine/dates-train.jsonl"]
    data, recipe = "dates-train.jsonl", "135m-lora-sft.yml"
    assert (target / data).read_bytes() == (source / data).read_bytes()
    # All but the line that says where the gallery's own schema is.
    modeline, _, rest = (source / recipe).read_text().partition("\n")
    assert modeline == "# yaml-language-server: $schema=../schema.json"
    assert (target / recipe).read_text() == rest
    assert ft("check", "mine/135m-lora-sft.yml").code == 0
    assert ft("recipes", "copy", name, "mine").code == 0  # The same bytes are no conflict.

    (target / "135m-lora-sft.yml").write_text("mine: true\n")
    again = ft("recipes", "copy", name, "mine")
    assert again.code == 2
    assert again.err.splitlines() == [
        "error: mine/135m-lora-sft.yml: there already, and different",
        "hint: --force overwrites",
    ]
    assert (target / "135m-lora-sft.yml").read_text() == "mine: true\n"
    assert ft("recipes", "copy", name, "mine", "--force").code == 0
    assert (target / recipe).read_text() == rest


# ------------------------------------------------------------------------------------ errors, edges


BAD_INPUT: list[tuple[list[str], int, str]] = [
    (["check", "gone.yml"], 8, "gone.yml does not exist"),
    (["check", "."], 8, ". is a folder"),
    (["train", "smollm2/135m-lora-sfft"], 8, "Did you mean smollm2/135m-lora-sft?"),
    (["recipes", "show", "nothing/like-it"], 8, "no recipe 'nothing/like-it' in the gallery"),
    (["plan", "binary.yml"], 2, "binary.yml:1: not UTF-8 text"),
    (["plan", "tab.yml"], 2, "tab.yml:2: a tab; YAML is indented with spaces"),
    (["plan", "list.yml"], 2, "list.yml:1: expected `key: value` lines, got list"),
    (["plan", "tag.yml"], 2, "a recipe is data, it cannot run code"),
    (
        ["plan", "empty.yml"],
        2,
        "empty.yml:1: the file is empty; a recipe has at least `base_model`",
    ),
    (["resolve", "r.yml", "--set", "adaptor=lora"], 2, "--set: adaptor: unknown key."),
    (["plan", "r.yml", "--set", "seed"], 2, "--set seed: expected key=value"),
    (["plan", "r.yml", "--set", "datasets.7.path=x"], 2, "7 is not one of the 1 elements"),
    (["plan", "r.yml", "--set", "cloud.gpu=cpu:3", "--set", "dp_shard_size=2"], 2, "R011 "),
    (["plan", "r.yml", "--set", "num_epochs=1e308"], 2, "num_epochs: expected less than or equal"),
    (["check", "~nouser/r.yml"], 2, "error: ~nouser: no such user"),
    (["resolve", "r.yml", "--set", "datasets.0.path=~nouser/x"], 0, ""),
    (["plan", "r.yml", "--set", "datasets.0.path=~nouser/x"], 2, "R002 ~nouser/x does not exist"),
    (["plan", "r.yml", "--set", 'datasets.0.path="a\\0.jsonl"'], 2, "R002 "),
    (["plan", "r.yml", "--backend", "moon"], 2, "backend 'moon' is not one of local"),
    (["plan", "r.yml", "--cloud", "gone.yaml"], 8, "--cloud: gone.yaml does not exist"),
    (
        ["cloud", "run", "r.yml", "--cloud", "list.yml"],
        2,
        "list.yml:1: expected `key: value` lines",
    ),
    (["check", "-", "--cloud", "-"], 2, "standard input can be read once"),
    (
        ["check", "r.yml", "r.yml", "--cloud", "-"],
        2,
        "standard input can be read once, for one recipe",
    ),
    (
        ["plan", "r.yml", "--backend", "sky"],
        2,
        "cloud.store_bucket: R195 required with `backend: sky`",
    ),
    (
        [
            "cloud",
            "run",
            "r.yml",
            "--simulate",
            "kill@5s",
            "--set",
            "cloud.store_bucket=s3://my-runs",
        ],
        3,
        "--simulate: a run that lies in a bucket is not rehearsed",
    ),
    (["plan", "r.yml", "--set", "cloud.nodes=2"], 3, "backend local is this one machine"),
    (["cloud", "run", "r.yml", "--name", "@last"], 2, "--name '@last': expected letters"),
    (["cloud", "status", "20261123"], 8, "no run '20261123'"),
    (["cloud", "logs", "@last"], 8, "there is no run yet"),
    (["cloud", "logs", "x", "--tail", "-1"], 2, "--tail"),
    (["recipes", "copy", "smollm2/135m-lora-sft", "rows.jsonl/x"], 2, "cannot be written"),
    (["cloud", "run", "r.yml", "--set", "cloud.store=/dev/null"], 5, "/dev/null"),
    (["chek"], 2, "Did you mean 'check'"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    BAD_INPUT,
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_is_explained_without_a_traceback(
    ft: Ft, arguments: list[str], code: int, says: str
) -> None:
    (ft.folder / "binary.yml").write_bytes(b"\xff\xfe\x00")
    (ft.folder / "tab.yml").write_text("a: 1\n\tb: 2\n")
    (ft.folder / "list.yml").write_text("- a\n")
    (ft.folder / "tag.yml").write_text("a: !!python/name:os.system\n")
    (ft.folder / "empty.yml").write_text("")
    result = ft(*arguments)
    assert result.code == code
    assert says in result.err + (result.out if arguments[0] == "check" else "")
    assert "Traceback" not in result.err
    assert "\x1b" not in result.out + result.err


def test_a_state_folder_that_is_none_is_named(ft: Ft) -> None:
    (ft.folder / "file").write_text("")
    result = ft("cloud", "run", "r.yml", "-d", env={"XDG_STATE_HOME": str(ft.folder / "file")})
    assert result.code == 5
    assert result.err.splitlines()[-1] == f"error: {ft.folder}/file/ft/runs: Not a directory"


def test_a_bug_shows_its_traceback(ft: Ft) -> None:
    result = ft(
        program="""
from ft.launcher import dispatch
from ft.launcher.cli.app import main
def check(*_, **__):
    raise RuntimeError("a bug of ours")
dispatch.check = check
main(["check", "r.yml"])
"""
    )
    assert result.code == 1
    assert result.err.startswith("Traceback (most recent call last):")
    assert result.err.endswith("RuntimeError: a bug of ours\n")


def test_a_reader_that_leaves_is_no_error(ft: Ft) -> None:
    command = [sys.executable, "-P", "-m", "ft.launcher.cli.app", "plan", "r.yml", "--json"]
    process = subprocess.Popen(
        command, cwd=ft.folder, env=ft.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == -13


# ----------------------------------------------------------------------- missing and foreign packages


def test_without_the_extra_no_run_is_left_that_would_start_later(ft: Ft) -> None:
    result = ft("cloud", "run", "r.yml", "-d", program=WITHOUT_TORCH)
    assert result.code == 4
    assert result.err.splitlines()[-2:] == [
        "error: training here needs torch",
        "hint: pip install 'ft-launcher[train]'",
    ]
    listed = json.loads(ft("cloud", "ls", "--json").out)
    assert [(run["state"], run["step"]) for run in listed] == [("FAILED", None)]
    assert not (ft.folder / "data").exists()
    attached = ft("cloud", "attach", "@last")
    assert attached.code == 5
    assert attached.err.splitlines() == [
        f"error: run {listed[0]['id']} never started: training here needs torch",
        "hint: ft cloud run r.yml",
    ]


@pytest.mark.parametrize(
    ("backend", "more", "said"),
    [
        (
            "modal",
            [],
            [
                "error: backend modal: token: there is none",
                "hint: modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
            ],
        ),
        (
            "sky",
            ["--set", "cloud.store_bucket=s3://some-bucket"],
            ["error: backend sky needs skypilot", "hint: pip install 'ft-launcher[sky]'"],
        ),
    ],
)
def test_what_is_missing_to_send_a_run_is_said_before_anybody_is_asked(
    ft: Ft, backend: str, more: list[str], said: list[str]
) -> None:
    """SkyPilot is not installed beside what trains, and there is a home without a token of Modal's."""
    words = ["cloud", "run", "r.yml", "--backend", backend, "--set", "cloud.gpu=T4:1", *more]
    result = ft(*words, "-d")
    assert result.code == 4
    assert result.err.splitlines()[-2:] == said
    assert "[y/N]" not in result.out + result.err
    assert json.loads(ft("cloud", "ls", "--json").out) == []
    assert ft(*words, "--dry-run").code == 0, "to see the request nothing is needed"


def test_the_way_on_from_a_plan_is_to_run_what_was_planned(ft: Ft) -> None:
    sets = ["--set", "cloud.gpu=cpu:2", "--set", "cloud.store_bucket=s3://some-bucket"]
    planned = ft("plan", "r.yml", "--backend", "sky", "--set", "max_steps=2", *sets)
    assert planned.code == 0, planned.err
    assert planned.err.splitlines()[-1] == (
        "hint: ft cloud run r.yml --backend sky --set max_steps=2 --set cloud.gpu=cpu:2 "
        "--set cloud.store_bucket=s3://some-bucket"
    )
    (task,) = [line for line in planned.out.splitlines() if line.lstrip().startswith("task")]
    assert "--require-hashes" not in planned.out, "a script is for --dry-run"
    assert "num_nodes 1" in task


# --------------------------------------------------------------------------------------- completion


def complete(ft: Ft, words: str, env: Mapping[str, str] | None = None) -> list[str]:
    given = {
        "_FT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = ft(env={**given, **(env or {})})
    assert (result.code, result.err) == (0, "")
    return result.out.split()


def test_completion_of_recipes_and_backends(ft: Ft, repo: Path) -> None:
    files = (repo / "recipes/ft/recipes/gallery").glob("*/*.yml")
    gallery = sorted(f"{path.parent.name}/{path.stem}" for path in files)
    small = [name for name in gallery if name.startswith("smollm2/")]
    assert "smollm2/135m-lora-sft" in small
    (ft.folder / "sub").mkdir()
    (ft.folder / "sub/deep.yaml").write_text("")
    assert complete(ft, "ft check ") == ["r.yml", "sub/", *gallery]
    assert complete(ft, "ft check r.yml sub/") == ["sub/deep.yaml"]
    assert complete(ft, "ft diff r.yml smol") == small
    assert complete(ft, "ft plan sub/") == ["sub/deep.yaml"]
    assert complete(ft, "ft train smol") == small
    assert complete(ft, "ft recipes copy sm") == small
    assert complete(ft, "ft cloud run r.yml --backend ") == ["local"]


def test_completion_of_runs_is_light_and_never_raises(ft: Ft) -> None:
    assert complete(ft, "ft cloud attach ") == ["@last"]
    (ft.folder / "file").write_text("")
    assert complete(ft, "ft cloud attach ", {"XDG_STATE_HOME": str(ft.folder / "file")}) == [
        "@last"
    ]
    result = ft(
        program=f"import sys\nfrom ft.launcher.cli import complete\ncomplete.runs('')\nprint({HEAVY})"
    )
    assert result.out == "set()\n"


# ------------------------------------------------------------------------------- terminals of all kinds


EVIL = 'wandb_name: "\\e[31mred\\n\\u202ex"\n'
IN_LETTERS = r'"\u001b[31mred\n\u202ex"'


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["resolve", "e.yml", "--origin"], f"wandb_name{' ' * 36}{IN_LETTERS}  line 16"),
        (["diff", "r.yml", "e.yml"], f"+ wandb_name: {IN_LETTERS}"),
        (["check", "\x1b[31m.yml"], r"error: \x1b[31m.yml does not exist"),
        (["check", "r.yml", "\x1b[31m.yml"], r"\x1b[31m.yml: 1 problem"),
        (["explain", "\x1b[31m"], r"error: \x1b[31m: no key, rule or value of a recipe."),
        (["migrate", "\x1b[31m.yml"], r"error: \x1b[31m.yml does not exist"),
        (["plan", "\x1b[31m/e.yml", "--json"], r'"message": "\u001b[31m/e.yml does not exist"'),
        (["cloud", "status", "\x1b[31m"], r"\x1b[31m"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)  # fmt: skip
def test_nothing_of_a_recipe_moves_the_cursor(ft: Ft, command: list[str], said: str) -> None:
    (ft.folder / "e.yml").write_text(f"{RECIPE}{EVIL}")
    result = ft(*command)
    assert said in result.out + result.err
    assert set(filter(lambda c: not c.isprintable(), result.out + result.err)) <= {"\n"}


def test_resolve_is_yaml_for_a_program_and_safe_for_a_terminal(ft: Ft) -> None:
    (ft.folder / "e.yml").write_text(f"{RECIPE}{EVIL}")
    values = yaml.safe_load(ft("resolve", "e.yml").out)
    assert values["wandb_name"] == "\x1b[31mred\n\u202ex"
    shown = on_terminal(ft, "resolve", "e.yml", env={"NO_COLOR": "1"})
    assert 'wandb_name: "\\e[31mred\\n\\u202ex"\r\n' in shown
    assert "\u202e" not in shown


def test_a_table_of_plan_shows_other_peoples_letters(ft: Ft) -> None:
    name = "a\x1b[31m\tb.jsonl"
    (ft.folder / "rows.jsonl").rename(ft.folder / name)
    result = ft("plan", "r.yml", "--set", f'datasets.0.path="{name}"'.replace("\x1b", "\\e"))
    assert "  a\\x1b[31m\\tb.jsonl  completion  2" in result.out.splitlines()
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    [["check", "r.yml"], ["check", "r.yml", "--json"], ["schema", "--json"], ["plan", "r.yml", "--json"], ["--help"]],
    ids=" ".join,
)  # fmt: skip
def test_a_full_disk_is_one_line(ft: Ft, command: list[str], unbuffered: str) -> None:
    start = [sys.executable, "-P", "-m", "ft.launcher.cli.app"]
    env = ft.env({"PYTHONUNBUFFERED": unbuffered})
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*start, *command], cwd=ft.folder, env=env, stdout=full, stderr=subprocess.PIPE,
            check=False, text=True,
        )  # fmt: skip
        assert done.stderr == "error: standard output: No space left on device\n"
        assert done.returncode == 5
        # Without a place for messages the exit code is what is left.
        silent = subprocess.run(
            [*start, "check", "gone.yml"], cwd=ft.folder, env=env, stderr=full, check=False
        )
        assert silent.returncode == 8


def test_letters_that_the_terminal_cannot_show_are_escaped(ft: Ft) -> None:
    (ft.folder / "r.yml").write_text(RECIPE + "größe: 1\n")
    result = ft("check", "r.yml", env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 2
    assert "gr\\xf6\\xdfe" in result.out
    assert "Traceback" not in result.err
    shown = ft("check", "r.yml", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert shown.code == 2
    assert "größe" in json.dumps(json.loads(shown.out), ensure_ascii=False)
