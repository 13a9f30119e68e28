"""`ft image`: what it prints, and what it refuses before anything is built, pushed or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ft.images.bundle import source_digest
from ft.launcher import dispatch
from ft.launcher.cli import plan_view
from ft.launcher.recipe_image import image_of

DIGEST = "sha256:" + "ab" * 32
RECIPE = """\
base_model: some/model
datasets:
  - {path: nowhere.jsonl, type: alpaca}
learning_rate: 1e-4
cloud:
  backend: modal
  gpu: H100:8
"""
ON_SKY = ("--set", "cloud.backend=sky", "--set", "cloud.store_bucket=s3://my-runs")


@dataclass
class Ft:
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ft.launcher.cli.app", "image", *arguments],
            cwd=self.folder, env={**os.environ, "COLUMNS": "80", **self.env},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture
def ft(tmp_path: Path) -> Ft:
    """Where there is no builder."""
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    return Ft(tmp_path, {"PATH": str(tmp_path / "bin")})


def shown(text: str) -> str:
    """Without what changes with every line of ours."""
    spec = text.split("\n", 1)[0].removeprefix("image ")
    return text.replace(spec, "HASH").replace(source_digest()[:12], "SOURCE")


def test_show_says_all_that_is_in_it(ft: Ft, golden: Callable[[str, str], None]) -> None:
    golden("image-show.txt", shown(ft("show", "r.yml").stdout))
    pinned = (
        "--set",
        f"cloud.image.base=python:3.11@{DIGEST}",
        "--set",
        "cloud.image.apt=[ffmpeg]",
    )
    lines = ft("show", "r.yml", "--variant", "cpu", *pinned).stdout.splitlines()
    assert lines[1:3] == [
        "  variant       cpu (--variant cpu); --variant train is the other one",
        f"  base          python:3.11@{DIGEST}",
    ]
    assert "  recipe's      ffmpeg" in lines


def test_dockerfile_and_json_are_of_the_same_image(ft: Ft) -> None:
    said = json.loads(ft("show", "r.yml", "--json").stdout)
    assert ft("show", "r.yml", "--dockerfile").stdout == said["dockerfile"]
    assert said["dockerfile"].splitlines()[0].endswith(f", image {said['content_hash']}")
    assert (said["tag"], said["variant"]) == (f"ft:{said['content_hash'][:12]}", "train")
    assert (said["built_by"], said["size_bytes"]) == (None, None)
    assert (
        "--dockerfile and --json: expected one"
        in ft("show", "r.yml", "--json", "--dockerfile", code=2).stderr
    )


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("cloud.gpu=cpu:2",),
        ("cloud.nodes=2", "cloud.image.pip=[einops]", f"cloud.image.base=x:1@{DIGEST}"),
        (*ON_SKY[1::2], f"cloud.image.pushed=reg.example/x:1@{DIGEST}", "cloud.gpu=cpu:2"),
    ],
)
def test_it_is_the_image_of_the_run(tmp_path: Path, changes: tuple[str, ...]) -> None:
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    here = (*changes, f"datasets.0.path={tmp_path / 'rows.jsonl'}", f"output_dir={tmp_path}/out")
    prepared = dispatch.prepare(str(tmp_path / "r.yml"), here)
    assert prepared.image == image_of(str(tmp_path / "r.yml"), changes).spec


def test_a_plan_says_whether_machines_run_in_the_pushed_image(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    here = (
        *ON_SKY[1::2],
        f"datasets.0.path={tmp_path / 'rows.jsonl'}",
        f"output_dir={tmp_path}/out",
    )

    def said(*changes: str) -> str:
        lines = plan_view.short(dispatch.prepare(str(tmp_path / "r.yml"), (*here, *changes)))
        return " ".join(" ".join(lines).split())

    pushed = f"cloud.image.pushed=reg.example/x:1@{DIGEST}"
    assert "environment the pushed image; nothing is installed: SkyPilot" in said(pushed)
    assert "environment set up without the pushed image: SkyPilot runs no containers on verda" in (
        said(pushed, "cloud.region=verda")
    )
    assert "environment" not in said()


def test_without_a_builder_nothing_is_built(ft: Ft) -> None:
    said = ft("build", "r.yml", code=4).stderr
    assert "none of docker, podman, buildah is here to build an image" in said
    assert (
        "buildah is here to build an image"
        in ft("build", "r.yml", "--builder", "buildah", code=4).stderr
    )
    assert "--builder kaniko: expected auto, docker, podman, buildah" in (
        ft("build", "r.yml", "--builder", "kaniko", code=2).stderr
    )
    assert (
        "none of docker, podman, buildah is here"
        in ft("push", "r.yml", "reg.example/x", code=4).stderr
    )


def program(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_docker_without_its_daemon_is_passed_over(ft: Ft) -> None:
    program(ft.folder, "docker", "exit 1")
    assert "docker does not answer" in ft("build", "r.yml", "--builder", "docker", code=4).stderr
    program(ft.folder, "podman", '[ "$1" = --version ] || { echo no space left; exit 125; }')
    failed = ft("build", "r.yml", "--json", code=5)
    assert "podman builds ft:" in failed.stderr
    assert "no space left" in failed.stderr
    assert json.loads(failed.stdout)["error"]["message"] == "podman ended with 125"
    missing = ft("push", "r.yml", "reg.example/x", code=8)
    assert "is not built on this machine" in missing.stderr
    assert "hint: ft image build r.yml" in missing.stderr


PUSHER = """\
case "$1 $2" in
  "image inspect") case "$*" in *ft.image*) echo "$LABEL";; esac; exit 0;;
  push*) while [ $# -gt 0 ]; do [ "$1" = --digestfile ] && echo "$DIGEST" >"$2"; shift; done;;
esac"""
"""podman that has each image, with this label, and pushes to a registry that answers this digest."""


def test_what_was_pushed_is_written_into_the_recipe(ft: Ft) -> None:
    program(ft.folder, "podman", PUSHER)
    said = json.loads(ft("show", "r.yml", *ON_SKY, "--json").stdout)
    ft.env |= {"LABEL": said["content_hash"], "DIGEST": DIGEST}
    target = "reg.example/team/ft"
    tagged = f"{target}:{said['content_hash'][:12]}@{DIGEST}"

    plain = ft("push", "r.yml", target, *ON_SKY)
    assert plain.stdout == f"{tagged}\n"
    assert "with --write it stands in the recipe, as cloud.image.pushed" in plain.stderr
    assert (ft.folder / "r.yml").read_text() == RECIPE

    done = ft("push", "r.yml", target, *ON_SKY, "--write", "--json")
    assert json.loads(done.stdout) == {
        "image": tagged.partition("@")[0],
        "digest": DIGEST,
        "content_hash": said["content_hash"],
        "written": True,
    }
    written = RECIPE.replace("cloud:\n", f"cloud:\n  image:\n    pushed: {tagged}\n")
    assert (ft.folder / "r.yml").read_text() == written
    again = json.loads(ft("show", "r.yml", *ON_SKY, "--json").stdout)
    assert again["content_hash"] == said["content_hash"], "where it lies is no part of what it is"


def test_what_no_machine_would_take_is_not_written(ft: Ft) -> None:
    program(ft.folder, "podman", PUSHER)
    ft.env |= {"LABEL": "1234", "DIGEST": DIGEST}
    words = ("push", "r.yml", "reg.example/team/ft", "--write")
    people = ft(*words, code=2).stderr
    assert "cloud.image.pushed is read by backend sky" in people
    assert "hint: --set cloud.backend=sky" in people
    assert "a run of the recipe gets variant train (cloud.gpu)" in (
        ft(*words, *ON_SKY, "--variant", "cpu", code=2).stderr
    )
    assert "mine:1 is another image than this recipe's" in (
        ft(*words, *ON_SKY, "--tag", "mine:1", code=2).stderr
    )
    assert "with these --set it is another image than runs of the recipe get" in (
        ft(*words, *ON_SKY, "--set", "cloud.image.pip=[scipy==1.15.3]", code=2).stderr
    )
    content = json.loads(ft("show", "r.yml", *ON_SKY, "--json").stdout)["content_hash"]
    ft.env |= {"LABEL": content, "DIGEST": ""}
    silent = ft(*words, *ON_SKY, code=5).stderr
    assert "did not say with which digest" in silent
    gallery = ft("push", "smollm2/135m-lora-sft", "reg.example/team/ft", "--write", code=2).stderr
    assert "--write writes a file, and this is none" in gallery
    assert (ft.folder / "r.yml").read_text() == RECIPE


def test_an_image_for_skypilot_is_roots(ft: Ft) -> None:
    lines = ft("show", "r.yml", *ON_SKY).stdout.splitlines()
    assert "  ft command    none: nobody types in it" in lines
    at = next(i for i, line in enumerate(lines) if line.startswith("  user"))
    assert " ".join(" ".join(lines[at : at + 2]).split()) == (
        "user root, as cloud.backend comes in; --set cloud.backend=local is one for people"
    )


def test_push_wants_the_name_of_an_image(ft: Ft) -> None:
    program(ft.folder, "podman", "exit 0")
    assert "'A B' is no name of an image" in ft("push", "r.yml", "A B", code=2).stderr
    assert (
        "the digest is what the registry answers"
        in ft("push", "r.yml", f"a:b@{DIGEST}", code=2).stderr
    )
    assert "did not say with which digest" in ft("push", "r.yml", "reg.example/x:1", code=5).stderr


def test_a_pin_that_cannot_be_fetched_is_not_written(ft: Ft) -> None:
    recipe = ft.folder / "r.yml"
    here = "cloud.image.base=127.0.0.1:1/python:3.11"
    failed = ft("pin", "r.yml", "--set", here, "--write", code=5)
    assert (
        "127.0.0.1:1 does not answer: [Errno 111] Connection refused; nothing is pinned"
        in failed.stderr
    )
    assert recipe.read_text() == RECIPE
    gallery = "smollm2/135m-lora-sft"
    assert f"ft recipes copy {gallery}" in ft("pin", gallery, "--write", code=2).stderr
    assert "--write writes a file, and this is none" in ft("pin", "-", "--write", code=2).stderr


def test_a_recipe_with_a_secret_in_its_image_is_refused(ft: Ft) -> None:
    secret = "ENV HF_TOKEN=hf_abcdefghijklmnopqrstu"
    failed = ft("show", "r.yml", "--set", f'cloud.image.commands=["{secret}"]', code=2)
    assert "hf_abc" not in failed.stdout + failed.stderr
    assert "expected train or cpu" in ft("show", "r.yml", "--variant", "tpu", code=2).stderr
