"""Axolotl's cloud file: each key has a place in `cloud:`, or is named with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ft.recipes.axolotl_cloud import NO_EFFECT, Translated, translate
from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.load import loads
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


def read(text: str) -> Translated:
    return translate(yaml.safe_load(text))


def without_effect(key: str) -> Finding:
    return Finding((key,), f"has no effect: {NO_EFFECT[key]}", Severity.WARNING)


def test_a_whole_file() -> None:
    assert read(WHOLE) == Translated(
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
        "cloud": read(WHOLE).block,
    }
    report = check(normalize(loads(yaml.safe_dump(recipe))), Facts(files={}))
    assert {problem.severity for problem in report.problems} == {Severity.PLANNED}


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("gpu: l40s", {"backend": "modal", "gpu": "L40S:1"}),
        ("gpu: A100\ngpu_count: 2", {"backend": "modal", "gpu": "A100-40GB:2"}),
        ("gpu: a100-80gb", {"backend": "modal", "gpu": "A100-80GB:1"}),
        ("gpu: a10g", {"backend": "modal", "gpu": "A10:1"}),
        ("gpu: a10", {"backend": "modal", "gpu": "A10:1"}),
        ("gpu: h200\nnode_count: 2", {"backend": "modal", "gpu": "H200:1", "nodes": 2}),
        ("gpu: t4\nsecrets:\nbranch: ''", {"backend": "modal", "gpu": "T4:1"}),
        ("gpu: t4\ndockerfile_commands: RUN true",
         {"backend": "modal", "gpu": "T4:1", "image": {"commands": ["RUN true"]}}),
    ],
)  # fmt: skip
def test_what_is_fine(text: str, block: dict[str, Any]) -> None:
    assert read(text) == Translated(block, ())


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("provider: baseten", "provider",
         "baseten is not supported. Use `backend: modal` or `sky` in a `cloud:` block, or `provider: modal` here."),
        ("provider: aws", "provider", "expected `modal`, got 'aws'"),
        ("gpu: ''", "gpu", "required; Axolotl ends without one too. Write `gpu: h100`."),
        ("gpu: h100:8", "gpu", "expected `gpu: NAME` and `gpu_count: COUNT`, got 'h100:8'"),
        ("gpu: h10", "gpu", "expected one of a10g, a100, t4, l4, a10, l40s, a100-40gb, a100-80gb, h100, h200, b200, "
         "got 'h10'. Did you mean `h100`?"),
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
        ("region: us-east", "region", "unknown key."),
    ],
)  # fmt: skip
def test_what_is_wrong(text: str, key: str, message: str) -> None:
    found = read(text if "gpu:" in text else f"gpu: h100\n{text}").findings
    assert [(".".join(map(str, one.key)), one.message, one.severity) for one in found] == [
        (key, message, Severity.ERROR)
    ]


def test_every_key_of_public_cloud_files_is_known() -> None:
    keys = (
        "branch dockerfile_commands gpu gpu_count memory memory_preprocess node_count project_name provider secrets "
        "timeout timeout_preprocess volumes"
    ).split()
    said = translate(dict.fromkeys(keys, 0)).findings
    assert [finding for finding in said if "unknown" in finding.message] == []
