"""ImageSpec, its Dockerfile and its JSON: same inputs, same hash, and nothing secret."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.images import pins
from ft.images.dockerfile import dockerfile, layers
from ft.images.resolve import resolve
from ft.images.spec import ImageSpec
from ft.recipes.errors import PlanError
from ft.recipes.facts import Facts, Machine
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve as resolve_plan
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.cloud import ImageAdditions

SOURCE = "0123456789abcdef" * 4


def plan(
    device: Literal["cpu", "cuda"] = "cpu", num_nodes: int = 1, **sections: dict[str, object]
) -> RunPlan:
    """The plan of a recipe that sets nothing but `sections`, on such machines."""
    machine = Machine(device, "H100" if device == "cuda" else "cpu", 1, num_nodes, False, False)
    recipe = FlatRecipe.model_validate(
        {"model": {"base_model": "a/b"}, "optim": {"learning_rate": 1e-4}, **sections}
    )
    return resolve_plan(recipe, Facts(files={}, machine=machine))


CPU = plan()
CUDA = plan("cuda")
CUDA_NODES = plan("cuda", num_nodes=2)


@pytest.mark.parametrize(
    ("name", "run_plan"), [("cpu", CPU), ("cuda", CUDA), ("cuda-multi-node", CUDA_NODES)]
)
def test_dockerfile_and_json_are_the_golden_ones(
    name: str, run_plan: RunPlan, golden: Callable[[str, str], None]
) -> None:
    spec = resolve(run_plan, source_sha256=SOURCE)
    golden(f"{name}.Dockerfile", dockerfile(spec))
    golden(f"{name}.json", spec.to_json())


def test_what_is_trained_does_not_change_the_image() -> None:
    other = plan(
        model={"base_model": "x/y"}, optim={"learning_rate": 1.0, "seed": 1, "micro_batch_size": 7}
    )
    assert other != CPU
    assert resolve(other, source_sha256=SOURCE) == resolve(CPU, source_sha256=SOURCE)


def test_device_and_source_change_the_image() -> None:
    specs = [
        resolve(CPU, source_sha256=SOURCE),
        resolve(CUDA, source_sha256=SOURCE),
        resolve(CUDA_NODES, source_sha256=SOURCE),
        resolve(CPU, source_sha256=SOURCE[::-1]),
    ]
    assert len({spec.content_hash for spec in specs}) == 4


def test_flash_attention_is_refused_with_a_way_out() -> None:
    with pytest.raises(PlanError) as caught:
        resolve(
            plan("cuda", model={"base_model": "a/b", "attn_implementation": "flash_attention_2"}),
            source_sha256=SOURCE,
        )
    assert caught.value.message == (
        "attn_implementation flash_attention_2: no image has flash attention yet"
    )
    assert caught.value.hint == "use attn_implementation: sdpa, which needs no extra package"


def test_content_hash_covers_every_field() -> None:
    spec = resolve(CUDA, source_sha256=SOURCE)
    changed: dict[str, object] = {
        "device": "cpu",
        "base_image": "python:3.12-slim-bookworm",
        "base_digest": "sha256:" + SOURCE,
        "python": "3.12",
        "apt": ("git",),
        "lock": "other",
        "torch": "torch==2.12.0",
        "requirements": ("trl==1.15.0",),
        "locked": (f"trl==1.15.0 --hash=sha256:{SOURCE}",),
        "command_line": ("typer==0.1",),
        "user": "root",
        "more_apt": ("ffmpeg",),
        "more_pip": ("scipy>=1.15",),
        "commands": ("RUN true",),
        "env": (("A", "b"),),
        "source_sha256": SOURCE[::-1],
    }
    assert set(changed) == {field.name for field in dataclasses.fields(ImageSpec)}
    hashes = {
        dataclasses.replace(spec, **{name: value}).content_hash for name, value in changed.items()
    }
    assert len(hashes | {spec.content_hash}) == 17


WORDS = st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), max_size=5)
VALUES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=20).filter(
    str.isprintable
)
ENVS = st.dictionaries(st.from_regex(r"[B-J][B-J0-9_]{0,6}", fullmatch=True), VALUES, max_size=4)


def image(apt: list[str], requirements: list[str], env: dict[str, str]) -> ImageSpec:
    return ImageSpec(
        device="cpu",
        base_image="python:3.11",
        python="3.11",
        apt=tuple(apt),
        lock="lock",
        torch="torch==2.13.0",
        requirements=tuple(requirements),
        env=tuple(env.items()),
        source_sha256=SOURCE,
    )


@given(apt=WORDS, requirements=WORDS, env=ENVS)
def test_order_of_the_inputs_does_not_matter(
    apt: list[str], requirements: list[str], env: dict[str, str]
) -> None:
    one = image(apt, requirements, env)
    other = image(apt[::-1], requirements[::-1], dict(reversed(env.items())))
    assert one == other
    assert one.content_hash == other.content_hash
    assert dockerfile(one) == dockerfile(other)
    assert json.loads(one.to_json())["env"] == env


@given(env=ENVS)
def test_every_env_value_stays_on_its_own_line(env: dict[str, str]) -> None:
    lines = [line for line in dockerfile(image([], [], env)).splitlines() if line.startswith("ENV")]
    read = {}
    for line in lines:
        match = re.fullmatch(r'ENV ([A-Z0-9_]+)="((?:[^"\\$]|\\.)*)"', line)
        assert match, line
        read[match[1]] = re.sub(r"\\(.)", r"\1", match[2])
    assert read == {**env, "HOME": "/home/ft", "XDG_CACHE_HOME": "/ft/cache"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_image": "python:3.11\nRUN curl"}, "only letters, digits"),
        ({"apt": ("git; rm -r /",)}, "only letters, digits"),
        ({"requirements": ("--index-url=http://x",)}, "only letters, digits"),
        ({"torch": "torch>=2"}, "only letters, digits"),
        ({"env": (("HF_TOKEN", "x"),)}, "named like a secret"),
        ({"env": (("AWS_SECRET_ACCESS_KEY", "x"),)}, "named like a secret"),
        ({"env": (("WANDB_API_KEY", "x"),)}, "named like a secret"),
        ({"env": (("path", "x"),)}, "expected upper case letters"),
        ({"env": (("A", "b\nRUN curl"),)}, "expected one line"),
        ({"locked": ("trl==1.0",)}, "expected name==version --hash"),
        ({"more_apt": ("git; rm",)}, "only letters, digits"),
        ({"more_pip": ("scipy >= 1",)}, "expected a requirement of pip"),
        ({"more_pip": ("--index-url=http://x",)}, "expected a requirement of pip"),
        ({"commands": ("COPY a b",)}, "expected one line that begins with RUN"),
        ({"commands": ("RUN a\nFROM b",)}, "expected one line that begins with RUN"),
        ({"base_digest": SOURCE}, "expected sha256:<64 hex digits>"),
        ({"source_sha256": "abc"}, "expected 64 hex digits"),
    ],
)
def test_what_cannot_be_in_an_image_is_refused(changes: dict[str, object], message: str) -> None:
    spec = resolve(CPU, source_sha256=SOURCE)
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(spec, **changes)


def test_a_known_digest_stands_after_from() -> None:
    spec = dataclasses.replace(resolve(CPU, source_sha256=SOURCE), base_digest="sha256:" + SOURCE)
    assert f"\nFROM python:3.11-slim-bookworm@sha256:{SOURCE}\n" in dockerfile(spec)


def test_a_container_is_not_roots_and_a_vendors_layers_say_nothing_of_users() -> None:
    spec = resolve(CUDA, source_sha256=SOURCE)
    instructions = [line for line in dockerfile(spec).splitlines() if re.match("[A-Z]", line)]
    assert [line for line in instructions if line.startswith("USER")] == ["USER 1000:1000"]
    # Root's work comes before, and what is unpacked is root's: the container cannot change it.
    after = instructions[instructions.index("USER 1000:1000") + 1 :]
    assert [line.split()[0] for line in after] == ["WORKDIR", "LABEL", "ADD"]
    text = "\n".join(layers(spec))
    assert not re.search("USER|useradd|HOME|typer|/ft/", text)


def test_the_environment_of_the_process_never_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve(CUDA, source_sha256=SOURCE)
    secret = "hf_dont-show-me"
    for name in ("HF_TOKEN", "PYTHONPATH", "PIP_EXTRA_INDEX_URL", "PYTHONUNBUFFERED", "PYTHON"):
        monkeypatch.setenv(name, secret)
    after = resolve(CUDA, source_sha256=SOURCE)
    assert after == before
    assert secret not in dockerfile(after) + after.to_json()


def test_versions_are_the_ones_that_the_tests_run_with(repo: Path) -> None:
    lines = (repo / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    pinned = {**pins.TRAIN, **pins.COMMAND_LINE, "torch": pins.TORCH}
    assert pinned == {name: constraints.get(name) for name in pinned}


def test_the_lock_holds_every_requirement_with_hashes_and_no_torch() -> None:
    spec = resolve(CPU, source_sha256=SOURCE)
    found = dict(line.split(" ")[0].split("==") for line in spec.locked)
    assert {name: found.get(name) for name in pins.TRAIN} == pins.TRAIN
    assert "torch" not in found
    assert spec.locked == resolve(CUDA, source_sha256=SOURCE).locked
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", line) for line in spec.locked)


def test_the_image_holds_what_the_runtime_is_declared_to_need(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    train = project["optional-dependencies"]["train"]
    declared = {re.split(r"[<>=]", requirement)[0] for requirement in train}
    # pathspec: the launcher's. Everything else that is declared is in the image.
    core = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    core -= {"pathspec"}
    assert core - set(pins.TRAIN) == set(pins.COMMAND_LINE)
    assert declared | core <= {"torch", *pins.TRAIN, *pins.COMMAND_LINE}


def test_import_is_light() -> None:
    code = (
        "import sys, ft.images.resolve, ft.images.bundle, ft.images.dockerfile;"
        "print(sorted({'torch', 'modal', 'sky', 'pydantic', 'yaml', 'typer'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
    assert done.stdout == "[]\n"


def test_additions_of_a_recipe_come_behind_what_all_runs_share() -> None:
    additions = ImageAdditions(
        apt=("ffmpeg",), pip=("scipy>=1.15,<2", "einops"), commands=("RUN echo $HOME",)
    )
    spec = resolve(CPU, source_sha256=SOURCE, additions=additions)
    shared = layers(resolve(CPU, source_sha256=SOURCE))
    assert shared[-1].splitlines() == [f'ENV {name}="{value}"' for name, value in spec.env]
    pip = "RUN python -m pip install --no-cache-dir --disable-pip-version-check"
    assert layers(spec) == [
        *shared[:-1],
        "RUN apt-get update && apt-get install -y --no-install-recommends \\\n    ffmpeg"
        " \\\n    && rm -rf /var/lib/apt/lists/*",
        f"{pip} \\\n    torch==2.13.0 \\\n    'scipy>=1.15,<2' \\\n    einops",
        "RUN echo $HOME",
        shared[-1],
    ]
    text = dockerfile(spec)
    assert all(line in text for layer in layers(spec) for line in layer.splitlines())


def test_an_addition_that_cannot_be_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match=r"cloud\.image: 'COPY a /b': expected one line"):
        resolve(CPU, source_sha256=SOURCE, additions=ImageAdditions(commands=("COPY a /b",)))
