"""The command line as a process: texts, exit codes, what it imports. No run is started."""

from __future__ import annotations

import json
import os
import pty
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
cloud:
  gpu: cpu
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
            check=False,
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


def on_terminal(ft: Ft, *arguments: str, env: Mapping[str, str] | None = None) -> str:
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
    assert process.wait(timeout=60) == 0
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


@pytest.mark.parametrize(
    "command", [["plan"], ["cloud", "run", "--dry-run"]], ids=lambda words: words[-1]
)
def test_warnings_are_said_wherever_a_recipe_is_used(ft: Ft, command: list[str]) -> None:
    (ft.folder / "w.yml").write_text(f"{RECIPE}strict: false\n")
    said = "warning: w.yml:16: strict: ignored: unknown keys are always errors here."
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
        result = ft(*command, "r.yml", "--set", "strict=false", program=WITHOUT_TORCH)
        lines = result.err.splitlines()
        warning = lines.index(
            "warning: --set: strict: ignored: unknown keys are always errors here."
        )
        assert warning < lines.index("error: training here needs torch")


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
        "cloud": {"gpu": "cpu"},
    }
    # An older spelling, and a number that YAML 1.1 takes for text.
    options = ["--set", "sequence_parallel_degree=1", "--set", "learning_rate=1e-5"]
    printed = ft("resolve", "r.yml", *options)
    assert (printed.code, printed.err) == (0, "")
    assert yaml.safe_load(printed.out) == flat
    assert json.loads(ft("resolve", "r.yml", "--json", *options).out) == flat

    (ft.folder / "again.yml").write_text(printed.out)
    assert ft("resolve", "again.yml").out == printed.out


def test_resolve_keeps_what_is_not_runnable_yet(ft: Ft) -> None:
    planned = (
        "sample_packing: true\n"
        "adapter: qlora\n"
        "cloud: {backend: modal, gpu: cpu}\n"
        "model_kwargs: {since: 2026-11-23}\n"
    )
    kept = RECIPE.replace("adapter: lora\n", "").partition("cloud:")[0]
    (ft.folder / "p.yml").write_text(kept + planned)
    result = ft("resolve", "p.yml")
    assert result.code == 0
    assert [line.split(": ")[1] for line in result.err.splitlines()] == [
        "sample_packing",
        "adapter",
        "cloud.backend",
        "model_kwargs",
    ]
    assert all("not runnable yet" in line for line in result.err.splitlines())
    resolved = yaml.safe_load(result.out)
    assert list(resolved)[-4:] == ["cloud", "sample_packing", "model_kwargs", "adapter"]
    assert resolved["cloud"] == {"gpu": "cpu", "backend": "modal"}
    assert (resolved["sample_packing"], resolved["adapter"]) == (True, "qlora")
    as_json = json.loads(ft("resolve", "p.yml", "--json").out)
    assert as_json == {**resolved, "model_kwargs": {"since": "2026-11-23"}}

    # What was printed is no other recipe: it is refused as the first one is.
    (ft.folder / "again.yml").write_text(result.out)
    assert ft("plan", "again.yml").code == ft("plan", "p.yml").code == 3
    assert ft("resolve", "again.yml").out == result.out


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
    assert result.err == "hint: ft train r.yml\n"


def test_plan_does_not_guess_rows(ft: Ft) -> None:
    result = ft("plan", "r.yml", "--set", "datasets.0.path=someone/some-data")
    assert "  someone/some-data  completion  ?" in result.out.splitlines()
    assert "  steps         ?: ? per epoch × 2 epochs" in result.out.splitlines()
    assert "  none: nothing of this machine is needed" in result.out.splitlines()


def test_dry_run_prints_the_request_and_starts_nothing(ft: Ft) -> None:
    result = ft("cloud", "run", "r.yml", "--dry-run", "--json")
    assert (result.code, result.err) == (0, "")
    submission = json.loads(result.out)
    assert sorted(submission) == ["backend", "plan", "request", "uploads"]
    assert submission["backend"] == "local"
    assert submission["request"]["store"] == f"{ft.folder}/data/ft/store/{{run}}"
    assert [upload["source"] for upload in submission["uploads"]] == [f"{ft.folder}/rows.jsonl"]
    assert not (ft.folder / "state").exists()
    assert not (ft.folder / "data").exists()

    people = ft("cloud", "run", "r.yml", "--dry-run")
    assert people.out == result.out
    assert people.err.splitlines()[-1] == "backend local: nothing else was asked for"


def test_ascii_where_the_terminal_wants_it(ft: Ft) -> None:
    result = ft("plan", "r.yml", env={"LC_ALL": "C"})
    assert result.code == 0
    assert result.out.isascii()
    assert "6 rows = 2 micro x 3 accumulation x (1 / (1 * 1))" in result.out


# ----------------------------------------------------------------------------------------- gallery


def test_every_recipe_of_the_gallery_is_listed_and_shown(ft: Ft, repo: Path) -> None:
    gallery = repo / "recipes/ft/recipes/gallery"
    files = {f"{path.parent.name}/{path.stem}": path for path in gallery.glob("*/*.yml")}
    assert "smollm2/135m-lora-sft" in files
    result = ft("recipes", "ls")
    header, *rows = result.out.splitlines()
    assert header.split("  ")[0] == "RECIPE"
    assert [row.split("  ")[0] for row in rows] == sorted(files)
    assert all(len(row) <= 80 and "  " in row for row in rows)
    name, path = next(iter(files.items()))
    assert ft("recipes", "show", name).out == path.read_text()

    listed = json.loads(ft("recipes", "ls", "--json").out)
    assert [(entry["name"], entry["path"]) for entry in listed] == sorted(
        (name, str(path)) for name, path in files.items()
    )
    assert [" ".join(row.split()) for row in rows if not row.endswith("…")] == [
        f"{entry['name']} {entry['title']}"
        for entry, row in zip(listed, rows, strict=True)
        if not row.endswith("…")
    ]
    shown = json.loads(ft("recipes", "show", name, "--json").out)
    entry = next(entry for entry in listed if entry["name"] == name)
    assert shown == {**entry, "text": path.read_text()}


def test_a_copy_has_its_data_beside_it_and_is_never_overwritten(ft: Ft, repo: Path) -> None:
    source = repo / "recipes/ft/recipes/gallery/smollm2"
    name, target = "smollm2/135m-lora-sft", ft.folder / "mine"
    result = ft("recipes", "copy", name, "mine")
    assert (result.code, result.err) == (0, "hint: ft train mine/135m-lora-sft.yml\n")
    assert result.out.splitlines() == ["mine/135m-lora-sft.yml", "mine/dates-train.jsonl"]
    for file in ("135m-lora-sft.yml", "dates-train.jsonl"):
        assert (target / file).read_bytes() == (source / file).read_bytes()
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
    assert (target / "135m-lora-sft.yml").read_bytes() == (
        source / "135m-lora-sft.yml"
    ).read_bytes()


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
    (["plan", "empty.yml"], 2, "error: 3 problems"),
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
    (["plan", "r.yml", "--set", "cloud.nodes=2"], 3, "backend local is this one machine"),
    (["cloud", "run", "r.yml", "--name", "@last"], 2, "--name '@last': expected letters"),
    (["cloud", "status", "20261123"], 8, "no run '20261123'"),
    (["cloud", "logs", "@last"], 8, "there is no run yet"),
    (["cloud", "logs", "x", "--tail", "-1"], 2, "--tail"),
    (["recipes", "copy", "smollm2/135m-lora-sft", "rows.jsonl/x"], 2, "cannot be written"),
    (["cloud", "run", "r.yml", "--set", "cloud.store=/dev/null"], 5, "/dev/null"),
    (["chek"], 2, "Did you mean 'check'?"),
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
def check(*_):
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


def test_completion_of_recipes_and_backends(ft: Ft) -> None:
    (ft.folder / "sub").mkdir()
    (ft.folder / "sub/deep.yaml").write_text("")
    assert complete(ft, "ft check ") == ["r.yml", "sub/", "smollm2/135m-lora-sft"]
    assert complete(ft, "ft plan sub/") == ["sub/deep.yaml"]
    assert complete(ft, "ft train smol") == ["smollm2/135m-lora-sft"]
    assert complete(ft, "ft recipes copy sm") == ["smollm2/135m-lora-sft"]
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


def test_letters_that_the_terminal_cannot_show_are_escaped(ft: Ft) -> None:
    (ft.folder / "r.yml").write_text(RECIPE + "größe: 1\n")
    result = ft("check", "r.yml", env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 2
    assert "gr\\xf6\\xdfe" in result.out
    assert "Traceback" not in result.err
    shown = ft("check", "r.yml", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert shown.code == 2
    assert "größe" in json.dumps(json.loads(shown.out), ensure_ascii=False)
