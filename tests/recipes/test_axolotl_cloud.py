"""Axolotl's cloud file: each key has a place in `cloud:`, or is named with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ft.recipes.axolotl_cloud import NO_EFFECT, OWN_IMAGE, layer, translate
from ft.recipes.errors import NotFoundError, RecipeError, Severity, UsageError
from ft.recipes.facts import Facts
from ft.recipes.load import load, loads
from ft.recipes.normalize import normalize
from ft.recipes.rules import check
from ft.recipes.rules.base import Finding

WHOLE = """\
provider: modal
project_name: mine
volumes:
  - name: axolotl-data
    mount: /workspace/data
  - name: axolotl-artifacts
    mount: /workspace/artifacts
env:
  - NCCL_DEBUG: INFO
  - HF_HOME
  - WANDB_API_KEY
secrets:
  - HF_TOKEN
  - WANDB_API_KEY
branch:
docker_tag: main-py3.11-cu128-2.9.1
dockerfile_commands:
  - RUN make -C /opt
gpu: h100
gpu_count: 8
memory: 128
timeout: 86400
memory_preprocess: 32
timeout_preprocess: 14400
spawn: true
"""


def read(text: str) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    found = translate(yaml.safe_load(text))
    return found.block, found.findings


def without_effect(key: str) -> Finding:
    return Finding((key,), f"has no effect: {NO_EFFECT[key]}", Severity.WARNING)


def test_a_whole_file() -> None:
    assert read(WHOLE) == (
        {
            "backend": "modal",
            "volumes": [
                {"name": "axolotl-data", "mount": "/workspace/data"},
                {"name": "axolotl-artifacts", "mount": "/workspace/artifacts"},
            ],
            "env": {"NCCL_DEBUG": "INFO"},
            "secrets": ["HF_HOME", "WANDB_API_KEY", "HF_TOKEN"],
            "image": {"commands": ["RUN make -C /opt"]},
            "gpu": "H100:8",
            "memory": 128,
            "timeout": 86400,
        },
        (
            without_effect("project_name"),
            Finding(
                ("volumes",),
                "Axolotl makes a volume that is not there, `ft` does not: make it first. What the run itself writes "
                "goes into `cloud.store_volume`, not here.",
                Severity.WARNING,
            ),
            Finding(
                ("env", 1),
                "HF_HOME comes from this machine, so it goes as a secret. If everybody may read it, write "
                "`HF_HOME: VALUE`.",
                Severity.WARNING,
            ),
            without_effect("docker_tag"),
            without_effect("memory_preprocess"),
            without_effect("timeout_preprocess"),
            without_effect("spawn"),
        ),
    )


def test_the_block_is_one_that_a_recipe_takes() -> None:
    recipe = {
        "base_model": "some/model",
        "datasets": [{"path": "some/data", "type": "alpaca"}],
        "learning_rate": 2e-4,
        "cloud": read(WHOLE)[0],
    }
    report = check(normalize(loads(yaml.safe_dump(recipe))), Facts(files={}))
    assert report.problems == ()


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("gpu: l40s", {"backend": "modal", "gpu": "L40S:1"}),
        ("gpu: rtx-pro-6000", {"backend": "modal", "gpu": "RTX-PRO-6000:1"}),
        ("gpu: A100\ngpu_count: 2", {"backend": "modal", "gpu": "A100-40GB:2"}),
        ("gpu: a100-80gb", {"backend": "modal", "gpu": "A100-80GB:1"}),
        ("gpu: a10g", {"backend": "modal", "gpu": "A10:1"}),
        ("gpu: a10", {"backend": "modal", "gpu": "A10:1"}),
        ("gpu: h200\nnode_count: 2", {"backend": "modal", "gpu": "H200:1", "nodes": 2}),
        ("gpu: t4\nsecrets:\nbranch: ''", {"backend": "modal", "gpu": "T4:1"}),
        ("gpu: t4\ngpu_count: '2'\nmemory: '64'", {"backend": "modal", "gpu": "T4:2", "memory": 64}),
        ("gpu: t4\nprovider: modal\nenv: [HF_TOKEN_PATH: /key, USE_TOKEN: 'true']",
         {"backend": "modal", "gpu": "T4:1", "env": {"HF_TOKEN_PATH": "/key", "USE_TOKEN": "true"}}),
        ("gpu: t4\ndockerfile_commands: RUN true",
         {"backend": "modal", "gpu": "T4:1", "image": {"commands": ["RUN true"]}}),
    ],
)  # fmt: skip
def test_what_is_fine(text: str, block: dict[str, Any]) -> None:
    assert read(text) == (block, ())


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("provider: baseten", "provider",
         "baseten is not supported. Use `provider: modal` here, or `backend: modal` or `sky` in the `cloud:` block of "
         "the recipe."),
        ("provider: nebius\nplatform: gpu-h100-sxm", "provider",
         "nebius is not supported. Use `provider: modal` here, or `backend: modal` or `sky` in the `cloud:` block of "
         "the recipe."),
        ("provider: aws", "provider", "expected `modal`, got 'aws'"),
        ("gpu: ''", "gpu", "required; Axolotl ends without one too. Write `gpu: h100`."),
        ("gpu: h100:8", "gpu", "expected `gpu: NAME` and `gpu_count: COUNT`, got 'h100:8'"),
        ("gpu: h10", "gpu", "expected one of a10g, a100, t4, l4, a10, l40s, rtx-pro-6000, a100-40gb, a100-80gb, h100, "
         "h200, b200, got 'h10'. Did you mean `h100`?"),
        ("gpu: [h100]", "gpu", "expected the name of a GPU, such as `h100`, got ['h100']"),
        ("gpu_count: 0", "gpu_count", "expected a whole number from 1, got 0"),
        ("gpu_count: true", "gpu_count", "expected a whole number from 1, got true"),
        ("memory: 128GB", "memory", "expected a whole number from 1, got '128GB'"),
        ("timeout: 1h", "timeout", "expected a whole number from 1, got '1h'"),
        ("volumes: data", "volumes", "expected a list of `{name: …, mount: …}`, got 'data'"),
        ("volumes: [{name: data}]", "volumes.0", "expected `{name: …, mount: …}`, got {'name': 'data'}"),
        ("dockerfile_commands: {RUN: x}", "dockerfile_commands",
         "expected a list of lines of a Dockerfile, got {'RUN': 'x'}"),
        ("secrets: {HF_TOKEN: x}", "secrets", "expected a list of names, such as `- HF_TOKEN`"),
        ("secrets: [{HF_TOKEN: not-a-real-one}]", "secrets.0.HF_TOKEN",
         "names, never values: write `- HF_TOKEN`, and set it where `ft` is started. "
         "Change the secret: it was in a file."),
        ("secrets: [HF_TOKEN=not-a-real-one]", "secrets.0",
         "expected a list of names, such as `- HF_TOKEN`, never a value alone"),
        ("env: [{WANDB_API_KEY: not-a-real-one}]", "env.0.WANDB_API_KEY",
         "names, never values: write `- WANDB_API_KEY`, and set it where `ft` is started. "
         "Change the secret: it was in a file."),
        ("env: [{NCCL_DEBUG: 1}]", "env.0.NCCL_DEBUG", "expected text. Quotes make it text."),
        ("volume: [x]", "volume", "unknown key. Did you mean `volumes`?"),
        ("colour: red", "colour", "unknown key."),
        ("region: us-east", "region",
         "unknown key. This is a key of the `cloud:` block of a recipe, and `--cloud` reads Axolotl's file. "
         "Write it in the recipe."),
        ("cloud: {gpu: H100}", "cloud",
         "unknown key. This is a block of a recipe, and `--cloud` reads Axolotl's file. Write it in the recipe."),
        *((f"{key}: x", key,
           "an image of your own is not supported: `ft` makes one, with its own code. Take it out; what you miss in it "
           "goes into `cloud.image` of the recipe.") for key in OWN_IMAGE),
        ("dockerfile_commands: {ENV: hf_abcdefghijklmnopqrstuv}", "dockerfile_commands",
         "expected a list of lines of a Dockerfile"),
        ("secrets: [{hf_abcdefghijklmnopqrstuv: x}]", "secrets.0",
         "expected a list of names, such as `- HF_TOKEN`, never a value alone"),
        ("env: [{ADDRESS: 'https://me:hf_abcdefghijklmnopqrstuv@host'}]", "env.0.ADDRESS",
         "names, never values: write `- ADDRESS`, and set it where `ft` is started. "
         "Change the secret: it was in a file."),
    ],
)  # fmt: skip
def test_what_is_wrong(text: str, key: str, message: str) -> None:
    found = read(text if text.startswith("gpu:") else f"gpu: h100\n{text}")[1]
    assert [(".".join(map(str, one.key)), one.message, one.severity) for one in found] == [
        (key, message, Severity.ERROR)
    ]


def test_every_key_of_public_cloud_files_is_known() -> None:
    keys = (
        "branch dockerfile_commands gpu gpu_count image image_build image_registry memory memory_preprocess node_count "
        "project_name secrets timeout timeout_preprocess volumes"
    ).split()
    said = translate(dict.fromkeys(keys, 0)).findings
    assert [finding for finding in said if "unknown" in finding.message] == []


# --------------------------------------------------------------------------------------- as a layer

RECIPE = """\
base_model: some/model
datasets: [{path: some/data, type: alpaca}]
learning_rate: 2e-4
cloud:
  backend: sky
  gpu: [H200:4, H100:4]
  env: {MINE: '1', NCCL_DEBUG: WARN}
  secrets: [OTHER]
  retries: 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "cloud.yaml").write_text(WHOLE)
    return tmp_path


def test_it_goes_over_the_recipe_and_below_the_command_line(folder: Path) -> None:
    recipe = load("r.yml", ["cloud.memory=64"], cloud=layer("cloud.yaml"), backend="local")
    normalized = normalize(recipe)
    assert normalized.flat.flat()["cloud"] == {
        "backend": "local",
        "gpu": "H100:8",
        "memory": 64.0,
        "volumes": [
            {"name": "axolotl-data", "mount": "/workspace/data"},
            {"name": "axolotl-artifacts", "mount": "/workspace/artifacts"},
        ],
        "timeout": 86400,
        "retries": 1,
        "secrets": ["HF_HOME", "WANDB_API_KEY", "HF_TOKEN"],
        "env": {"MINE": "1", "NCCL_DEBUG": "INFO"},
        "image": {"commands": ["RUN make -C /opt"]},
    }
    assert (recipe.source, recipe.folder, recipe.cloud_file) == ("r.yml", folder, "cloud.yaml")
    keys = [
        ("base_model",), ("cloud",), ("cloud", "backend"), ("cloud", "gpu"), ("cloud", "memory"), ("cloud", "retries"),
        ("cloud", "volumes"), ("cloud", "volumes", 1), ("cloud", "volumes", 1, "mount"), ("cloud", "env"),
        ("cloud", "env", "MINE"), ("cloud", "env", "NCCL_DEBUG"), ("cloud", "secrets"), ("cloud", "secrets", 0),
        ("cloud", "secrets", 2), ("cloud", "image"), ("cloud", "image", "commands", 0), ("cloud", "nodes"),
    ]  # fmt: skip
    assert [str(normalized.mark(key)) for key in keys] == [
        "r.yml:1", "cloud.yaml:1", "--backend", "cloud.yaml:19", "--set", "r.yml:9",
        "cloud.yaml:3", "cloud.yaml:6", "cloud.yaml:7", "cloud.yaml:8",
        "r.yml:7", "cloud.yaml:9", "cloud.yaml:8", "cloud.yaml:10",
        "cloud.yaml:13", "cloud.yaml:17", "cloud.yaml:18", "cloud.yaml:1",
    ]  # fmt: skip


def test_what_is_wrong_names_its_line(folder: Path) -> None:
    (folder / "cloud.yaml").write_text(
        "gpu: b200\ngpu_count: 8\ngpu_count: 4\ntimeout: 1h\nenv: [1A: x]\nvolumes:\n- {}\n- {name: a,\n mount: b}\n"
    )
    problems = check(normalize(load("r.yml", cloud=layer("cloud.yaml"))), Facts(files={})).problems
    assert [str(problem) for problem in problems if problem.severity is Severity.ERROR] == [
        "cloud.yaml:3: gpu_count: the key stands twice; first in line 2. Keep one.",
        "cloud.yaml:4: timeout: expected a whole number from 1, got '1h'",
        "cloud.yaml:5: cloud.env.1A: expected a name of letters, digits and _ that begins with no digit",
        "cloud.yaml:7: volumes.0: expected `{name: …, mount: …}`, got {}",
        "cloud.yaml:9: cloud.volumes.0.mount: expected an absolute path such as /data, got 'b'",
    ]


def test_rules_name_its_lines(folder: Path) -> None:
    (folder / "cloud.yaml").write_text("gpu: a10g\ngpu_count: 8\ntimeout: 100000\n")
    problems = check(normalize(load("r.yml", cloud=layer("cloud.yaml"))), Facts(files={})).problems
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    assert [(str(problem.mark), problem.dotted, problem.rule) for problem in errors] == [
        ("cloud.yaml:1", "cloud.gpu", "R185"),
        ("cloud.yaml:3", "cloud.timeout", "R187"),
    ]


def test_another_provider_is_one_problem(folder: Path) -> None:
    (folder / "cloud.yaml").write_text("provider: baseten\ngpu: h100\n")
    (folder / "r.yml").write_text(RECIPE.partition("cloud:")[0] + "cloud: {region: here}\n")
    problems = check(normalize(load("r.yml", cloud=layer("cloud.yaml"))), Facts(files={})).problems
    assert [(str(problem.mark), problem.dotted) for problem in problems
            if problem.severity is not Severity.PLANNED] == [("cloud.yaml:1", "provider")]  # fmt: skip


def test_an_empty_file_asks_for_a_gpu(folder: Path) -> None:
    (folder / "cloud.yaml").write_text("# nothing\n")
    assert [str(problem) for problem in layer("cloud.yaml").problems] == [
        "cloud.yaml:1: gpu: required; Axolotl ends without one too. Write `gpu: h100`."
    ]


def test_what_is_no_cloud_file_at_all(folder: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        layer("gone.yaml")
    assert (missing.value.message, missing.value.hint) == (
        "--cloud: gone.yaml does not exist",
        None,
    )
    (folder / "cloud.yaml").write_text("- gpu: h100\n")
    with pytest.raises(RecipeError) as listed:
        layer("cloud.yaml")
    assert [str(problem) for problem in listed.value.problems] == [
        "cloud.yaml:1: expected `key: value` lines, got list"
    ]


def test_an_empty_recipe_is_none_with_a_cloud_file(folder: Path) -> None:
    (folder / "r.yml").write_text("")
    with pytest.raises(RecipeError) as caught:
        load("r.yml", cloud=layer("cloud.yaml"))
    assert caught.value.problems[0].message.startswith("the file is empty")


def test_standard_input_is_one_of_the_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from io import BytesIO, TextIOWrapper

    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"gpu: h100\n")))
    cloud = layer("-")
    assert load("r.yml", cloud=cloud).values["cloud"]["gpu"] == "H100:1"
    with pytest.raises(UsageError, match="standard input can be read once"):
        load("-", cloud=cloud)


def test_cloud_files_of_axolotl(axolotl: Path) -> None:
    """Its examples, where this machine has them: each is read, or refused for its provider alone."""
    files = sorted(path for path in axolotl.glob("examples/cloud/*.y*ml"))
    if not files:
        pytest.skip("the copy of Axolotl's examples here has no examples/cloud")
    for path in files:
        errors = [p for p in layer(str(path)).problems if p.severity is Severity.ERROR]
        assert [p.dotted for p in errors] in ([], ["provider"]), path
