"""The README's commands work as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def commands(readme: Path) -> list[list[str]]:
    """The command lines of each ```bash block, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(), flags=re.S)
    return [
        [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]
        for block in blocks
    ]


def test_the_recipe_of_the_readme_is_right(repo: Path, lab: Any) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (repo / "README.md").read_text(), flags=re.S)
    (lab.folder / "dates-train.jsonl").write_text('{"messages": []}\n')
    (lab.folder / "readme.yml").write_text(text)
    done = lab.ft("check", "readme.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_on_recipes_works(repo: Path, lab: Any) -> None:
    _, recipes, migrating, _ = commands(repo / "README.md")
    assert (len(recipes), len(migrating)) == (9, 4)
    for line in recipes + migrating:
        command, _, file = line.partition(" > ")
        program, *arguments = shlex.split(command)
        assert program == "ft"
        if "--cloud" in arguments:
            # As somebody comes from Axolotl: a recipe without a word on machines, and a file beside it.
            shutil.copyfile(lab.folder / "135m-lora-sft.yml", lab.folder / "config.yml")
            (lab.folder / "cloud.yaml").write_text("provider: modal\ngpu: h100\ngpu_count: 2\n")
        if arguments[:2] == ["cloud", "run"]:
            arguments.append("--dry-run")  # It would be sent.
        if arguments[0] in {"preview", "preprocess"}:
            # They read the tokenizer, which tests do not download.
            arguments += ["--set", f"base_model={lab.model}"]
        done = lab.ft(*arguments)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert done.stdout.strip() or done.stderr.strip()
        if file:
            (lab.folder / file).write_text(done.stdout)
    schema = json.loads((lab.folder / "recipe.schema.json").read_text())
    assert {"base_model", "datasets", "cloud"} <= schema["properties"].keys()


def test_every_command_on_runs_works(repo: Path, lab: Any) -> None:
    lab.recipe(max_steps=2, save_steps=2)
    *_, runs = commands(repo / "README.md")
    assert len(runs) == 12
    for line in runs:
        program, *arguments = shlex.split(line)
        assert program == "ft"
        done = lab.ft(*arguments)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    states = [run["state"] for run in json.loads(lab.ft("cloud", "ls", "--json").stdout)]
    assert states == ["SUCCEEDED", "SUCCEEDED"]


@pytest.mark.timeout(1500)
def test_make_quickstart_teaches_the_small_model(repo: Path) -> None:
    """The whole way with the real model: at least nine of ten held-out dates are right afterwards."""
    first, *_ = commands(repo / "README.md")
    assert first == ["make quickstart", "make test"]
    assert (repo / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
    done = subprocess.run(
        ["make", "quickstart"], cwd=repo, capture_output=True, text=True, timeout=1400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((repo / ".quickstart" / "evaluation.json").read_text())
    assert found["accuracy_before"] < 0.5
    assert found["accuracy_after"] >= 0.9
    assert str(repo / "outputs" / "smollm2-dates") in done.stdout + done.stderr
