"""`ft doctor` and `ft cloud doctor` as processes: what is installed, what would stop a recipe, how to mend it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.cli.doctoring import Level, Line, packages_of, secrets, weights_of

WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from importlib import metadata
version = metadata.version
def pretend(name):
    if name == {missing!r}:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = pretend
from ft.launcher.cli.app import main
main(sys.argv[1:])
"""

RECIPE = """\
base_model: someone/some-model
datasets:
  - path: rows.jsonl
    type: completion
adapter: lora
lora_r: 8
lora_alpha: 16
learning_rate: 1e-3
micro_batch_size: 2
num_epochs: 1
output_dir: ./out
cloud:
  gpu: cpu
"""
LOCAL_MODEL = RECIPE.replace("someone/some-model", "./model").replace(
    "adapter: lora\nlora_r: 8\nlora_alpha: 16\n", ""
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def line(self, name: str) -> dict[str, Any]:
        """The one check of this name."""
        [line] = [line for line in self.json["checks"] if line["name"] == name]
        assert isinstance(line, dict)
        return line

    def section(self, title: str) -> str:
        """The lines below `title` in the text for people."""
        lines = self.out.splitlines()
        below = lines[lines.index(title) + 1 :]
        headings = ("backend ", "environment", "recipe ", "installed")
        count = next((i for i, line in enumerate(below) if line.startswith(headings)), len(below))
        return "\n".join(below[:count])


@dataclass(frozen=True)
class Laptop:
    """Runs `ft` in `folder`, with state, data and the cache of the Hub of its own."""

    folder: Path

    def __call__(
        self, *arguments: str, env: Mapping[str, str] | None = None, without: str = ""
    ) -> Result:
        start = (
            ["-c", WITHOUT.format(missing=without)] if without else ["-m", "ft.launcher.cli.app"]
        )
        done = subprocess.run(
            [sys.executable, "-P", *start, *arguments],
            cwd=self.folder,
            env=self.env(env or {}),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def env(self, more: Mapping[str, str]) -> dict[str, str]:
        theirs = ("NCCL_", "TORCH_", "HF_", "CUDA_", "NO_COLOR", "FORCE_COLOR", "LC_ALL")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        homes = {
            f"XDG_{kind}_HOME": str(self.folder / kind.lower())
            for kind in ("STATE", "DATA", "CACHE")
        }
        return kept | homes | {"COLUMNS": "80", "TERM": "xterm-256color"} | dict(more)


@pytest.fixture
def ft(tmp_path: Path) -> Laptop:
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "full.yml").write_text(LOCAL_MODEL)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"dtype": "bfloat16", "vocab_size": 10}')
    (model / "model.safetensors").write_bytes(bytes(1_000_000))
    return Laptop(tmp_path)


def test_this_machine_is_well(ft: Laptop) -> None:
    result = ft("doctor", "--json")
    assert (result.code, result.err) == (0, "")
    found = result.json
    assert {key: found[key] for key in ("backend", "recipe", "ok", "exit_code", "problems")} == {
        "backend": "local",
        "recipe": None,
        "ok": True,
        "exit_code": 0,
        "problems": [],
    }
    assert [line["name"] for line in found["checks"]] == [
        "python", "ft-launcher", "extra train", "extra modal", "extra sky",
        "machine", "storage", "storage", "variables",
    ]  # fmt: skip
    assert result.line("python") == {
        "name": "python",
        "ok": True,
        "level": "ok",
        "message": sys.version.split()[0],
        "fix": "",
    }
    train = result.line("extra train")["message"]
    assert [part.split(" ")[0] for part in train.split(", ")] == packages_of("train")


def test_the_text_has_headings_and_fits_80_columns(ft: Laptop) -> None:
    result = ft("doctor")
    lines = [line for line in result.out.splitlines() if str(ft.folder) not in line]
    assert [line for line in lines if line[0] not in " okN-!"] == [
        "installed",
        "backend local",
        "environment",
    ]
    assert max(len(line) for line in lines) <= 80
    assert lines[1] == f"ok  python        {sys.version.split()[0]}"
    assert lines[-1] == "ok  variables     nothing is left that slows a run down"


def test_both_names_are_one_command(ft: Laptop) -> None:
    assert ft("cloud", "doctor", "r.yml").out == ft("doctor", "r.yml").out


def test_a_missing_package_is_named_with_the_command_that_brings_it(ft: Laptop) -> None:
    result = ft("doctor", without="torch")
    assert result.code == 4
    lines = result.out.splitlines()
    found = lines.index("NO  packages      missing: torch")
    assert lines[found + 1] == f"{'':18}-> pip install 'ft-launcher[train]'"
    assert result.err == "error: backend local is not ready: packages\n"
    extra = " ".join(" ".join(lines[lines.index("installed") :]).split())
    assert re.search(
        r"-- extra train without torch; training on this machine needs it: "
        r"pip install 'ft-launcher\[train\]' (--|ok) extra modal",
        extra,
    )


def test_the_stranger_called_ft(ft: Laptop) -> None:
    folder = ft.folder / "site/ft-0.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: ft\nVersion: 0.9\n")
    result = ft("doctor", env={"PYTHONPATH": str(folder.parent)})
    assert result.code == 4
    assert result.out.startswith(
        "installed\n"
        "NO  package ft    ft 0.9 is installed: another project, whose modules hide ours\n"
        f"{'':18}-> pip uninstall ft, then install ft-launcher again\n"
    )
    assert result.err == "error: backend local is not ready: package ft\n"


def test_harmful_variables_are_warnings_with_the_way_out(ft: Laptop) -> None:
    env = {"NCCL_P2P_DISABLE": "1", "NCCL_TIMEOUT": "3600", "NCCL_DEBUG": "INFO"}
    result = ft("doctor", env=env)
    assert (result.code, result.err) == (0, "")
    assert result.section("environment") == (
        "!!  variable      NCCL_P2P_DISABLE=1 keeps GPUs from talking to each other\n"
        "                  directly, over NVLink or PCIe: all goes through memory of the\n"
        "                  host\n"
        "                  -> unset NCCL_P2P_DISABLE\n"
        "!!  variable      NCCL_TIMEOUT=3600 is read by nobody: NCCL has no such variable\n"
        "                  -> unset NCCL_TIMEOUT; `ddp_timeout` in the recipe is the time\n"
        "                  that a rank waits for the others"
    )
    # This recipe trains on the CPU, where there is no NCCL.
    assert ft("doctor", "r.yml", env=env).section("environment") == (
        "ok  variables     nothing is left that slows a run down"
    )


# ------------------------------------------------------------------------------------------- recipes


def test_a_recipe_that_will_run(ft: Laptop) -> None:
    result = ft("doctor", "r.yml", "--json")
    assert (result.code, result.err) == (0, "")
    assert (result.json["recipe"], result.json["ok"]) == ("r.yml", True)
    assert result.line("plan")["message"] == "1 process, on 1 machine with cpu:1"
    model = result.line("model")
    assert (model["level"], model["message"]) == (
        "note",
        "someone/some-model is fetched from the Hub when the run starts",
    )
    disk = result.line("disk")
    assert disk["level"] == "ok"
    # 256 MiB and the two rows.
    assert disk["message"].endswith(
        "about 268.4 MB needed: its inputs, and adapters, which are small"
    )
    assert not (ft.folder / "state").exists()
    assert not (ft.folder / "data").exists()


def test_a_recipe_of_the_gallery(ft: Laptop) -> None:
    result = ft("doctor", "smollm2/135m-lora-sft", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.line("plan")["level"] == "ok"


def test_a_wrong_recipe_is_told_with_its_lines(ft: Laptop) -> None:
    text = RECIPE.replace("lora_r:", "lora_rank:").replace("batch_size: 2", "batch_size: 0")
    (ft.folder / "r.yml").write_text(text)
    result = ft("doctor", "r.yml")
    assert result.code == 2
    assert result.section("recipe r.yml").splitlines()[:4] == [
        "NO  recipe        r.yml:6: lora_rank: unknown key. Did you mean `lora_r`?",
        "NO  recipe        r.yml:9: micro_batch_size: expected greater than or equal to",
        "                  1, got 0",
        "--  recipe        R014 was not checked: it needs the model's config.json, which",
    ]
    assert result.err == "error: r.yml is wrong: 2 problems\nhint: ft check r.yml\n"
    as_json = ft("doctor", "r.yml", "--json").json
    assert (as_json["ok"], as_json["exit_code"]) == (False, 2)
    assert [problem["line"] for problem in as_json["problems"]] == [6, 9]
    # The rest is told all the same.
    assert "machine" in [line["name"] for line in as_json["checks"]]


def test_what_is_no_recipe_at_all(ft: Laptop) -> None:
    (ft.folder / "r.yml").write_text("- a\n")
    result = ft("doctor", "r.yml")
    assert result.code == 2
    assert result.section("recipe r.yml") == (
        "NO  recipe        r.yml:1: expected `key: value` lines, got list"
    )


def test_a_gpu_that_is_not_here(ft: Laptop) -> None:
    result = ft("doctor", "r.yml", "--set", "cloud.gpu=B200:64")
    assert result.code == 3
    lines = result.section("recipe r.yml").splitlines()
    assert lines[-2].startswith("NO  plan          cloud.gpu B200:64: this machine has ")
    assert lines[-1] == f"{'':18}-> --set cloud.gpu=cpu  trains on the CPU"
    assert result.err == "error: r.yml cannot run on backend local\n"


def test_a_key_that_is_not_runnable_yet(ft: Laptop) -> None:
    result = ft("doctor", "r.yml", "--set", "save_first_step=true", "--json")
    assert result.code == 3
    [planned] = [line for line in result.json["checks"] if line["level"] == "fail"]
    assert planned["name"] == "recipe"
    assert "save_first_step" in planned["message"]
    assert result.err == "error: r.yml is right, but this version of ft cannot run it\n"


def test_a_model_that_may_not_be_fetched(ft: Laptop) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    result = ft("doctor", "r.yml", "--json", env=offline)
    assert result.code == 4
    assert result.line("model") == {
        "name": "model",
        "ok": False,
        "level": "fail",
        "message": "someone/some-model is not on this machine, and HF_HUB_OFFLINE forbids to fetch it",
        "fix": "unset HF_HUB_OFFLINE, or --set base_model=FOLDER",
    }
    snapshot = ft.folder / "cache/huggingface/hub/models--someone--some-model/snapshots/0123abc"
    snapshot.mkdir(parents=True)
    assert ft("doctor", "r.yml", "--json", env=offline).line("model")["message"] == (
        "someone/some-model is in the cache of the Hub"
    )


def test_disk_for_a_model_that_is_trained_whole(ft: Laptop) -> None:
    result = ft("doctor", "full.yml", "--json", "--set", "save_total_limit=2")
    assert result.code == 0
    disk = result.line("disk")
    # Stored: 1 MB in bf16; on the CPU it is trained in fp32, so 2 MB. A checkpoint has three times that, three of
    # them 18 MB; the result 2 MB; the inputs 1 MB and a few bytes.
    assert disk["message"].endswith(
        "about 21.0 MB needed: 3 checkpoints of the whole model with its optimizer, and the result"
    )
    many = ft("doctor", "full.yml", "--json", "--set", "save_total_limit=1000000000")
    assert many.code == 4
    disk = many.line("disk")
    assert (disk["level"], disk["fix"]) == (
        "fail",
        "--set save_total_limit=1, or --set cloud.store=FOLDER",
    )
    assert many.err == "error: backend local is not ready: disk\n"


def test_weights_count_in_the_numbers_that_they_are_trained_in(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(400))
    assert (weights_of(tmp_path, bf16=True), weights_of(tmp_path, bf16=False)) == (400, 400)
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    assert (weights_of(tmp_path, bf16=True), weights_of(tmp_path, bf16=False)) == (200, 400)
    (tmp_path / "model.safetensors").unlink()
    assert weights_of(tmp_path, bf16=True) is None


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--set", "num_epochs=2"], 2, "error: --set changes a recipe: name one\n"),
        (["--cloud", "cloud.yaml"], 2, "error: --cloud changes a recipe: name one\n"),
        (["r.yml", "--cloud", "gone.yaml"], 8, "error: --cloud: gone.yaml does not exist\n"),
        (
            ["nothing/of-the-kind"],
            8,
            "error: no recipe 'nothing/of-the-kind' in the gallery\nhint: ft recipes ls  lists them\n",
        ),
    ],
)
def test_wrong_commands(ft: Laptop, arguments: list[str], code: int, error: str) -> None:
    result = ft("doctor", *arguments)
    assert (result.code, result.out, result.err) == (code, "", error)


def test_a_backend_that_is_asked_for_is_the_one_that_is_looked_at(ft: Laptop) -> None:
    # Longer than an attempt may be on the backend that the recipe names.
    (ft.folder / "r.yml").write_text(f"{RECIPE}  backend: modal\n  timeout: 3d\n")
    found = ft("doctor", "r.yml", "--backend", "local", "--json").json
    assert (found["backend"], found["problems"]) == ("local", [])
    assert "backend local" in ft("doctor", "r.yml", "--backend", "local").out.splitlines()


def test_a_cloud_file_is_looked_at_too(ft: Laptop) -> None:
    (ft.folder / "cloud.yaml").write_text("gpu: h100\ntimeout: 1h\n")
    result = ft("doctor", "r.yml", "--cloud", "cloud.yaml", "--backend", "local", "--json")
    said = [line["message"] for line in result.json["checks"] if line["level"] == "fail"]
    assert (result.code, said) == (
        2,
        ["cloud.yaml:2: timeout: expected a whole number from 1, got '1h'"],
    )


def test_secrets_are_named_and_never_shown(ft: Laptop) -> None:
    named = (
        "  secrets: [A_TOKEN, B_TOKEN, kept, A_TOKEN, hf_abcdefghijklmnopqrstuv, C=value-of-c]\n"
    )
    (ft.folder / "r.yml").write_text(RECIPE + named)
    result = ft("doctor", "r.yml", "--json", env={"A_TOKEN": "not-a-real-one", "B_TOKEN": " "})
    lines = [
        (line["level"], line["message"], line["fix"])
        for line in result.json["checks"]
        if line["name"] == "secret"
    ]
    assert lines == [
        ("ok", "A_TOKEN is set here", ""),
        ("warn", "B_TOKEN is not set here, and backend local keeps no secrets", "export B_TOKEN=…"),
        ("warn", "kept is not set here, and backend local keeps no secrets", ""),
    ]
    for value in ("not-a-real-one", "hf_abc", "value-of-c"):
        assert value not in result.out + result.err


def test_secrets_that_the_backend_may_keep() -> None:
    named = {"A_TOKEN": True, "B_TOKEN": False, "kept": False}
    assert [*secrets(named, "modal", inherited=False)] == [
        Line("secret", Level.OK, "A_TOKEN is set here"),
        Line(
            "secret",
            Level.NOTE,
            "B_TOKEN is not set here: expected at the backend",
            "export B_TOKEN=…",
        ),
        Line("secret", Level.NOTE, "kept is not set here: expected at the backend"),
    ]


def test_an_unknown_backend(ft: Laptop) -> None:
    result = ft("cloud", "doctor", "--backend", "moon")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: backend 'moon' is not one of local")
