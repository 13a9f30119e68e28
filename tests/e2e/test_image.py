"""Images really built and run: a Dockerfile of ours, podman and buildah, and a registry on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft.launcher import dispatch
from ft.launcher.backends import sky_request
from ft.launcher.bucket_store import RunBucket
from ft.launcher.copies import open_copy

pytestmark = pytest.mark.image

SECRET = "hf_" + "NeverInAnImage" * 2
BASE = "docker.io/library/python:3.11-slim-bookworm"
PULL_NOTHING = ("--pull=never", "--isolation", "chroot")


def _load_lab() -> Any:
    path = Path(__file__).with_name("container_lab.py")
    spec = importlib.util.spec_from_file_location("container_lab", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # A dataclass looks for its module there.
    spec.loader.exec_module(module)
    return module


container_lab = _load_lab()


@pytest.fixture(scope="module")
def engine() -> Any:
    missing = container_lab.missing()
    if missing or os.geteuid() != 0:
        pytest.fail(f"as root: apt-get install {' '.join(missing)}; `make e2e-image` does it")
    engine = container_lab.Engine(Path.home() / ".cache" / "ft" / "e2e-image")
    engine.configure()
    engine.import_base(BASE)
    return engine


@dataclass
class Built:
    """An image of the small recipe, as `ft image build` left it."""

    lab: Any
    engine: Any
    recipe: Path
    more: list[str]
    tag: str
    said: dict[str, Any]
    log: str

    def ft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.lab.ft(*arguments)

    def run(self, *command: str, options: tuple[str, ...] = (), check: bool = True) -> str:
        return self.engine.run(
            "podman", "run", "--rm", "--network=none", *options, self.tag, *command, check=check
        )


@pytest.fixture
def built(lab: Any, engine: Any, tmp_path: Path) -> Built:
    lab.env |= {**engine.env, "HF_TOKEN": SECRET}
    recipe = lab.recipe(
        cloud={"gpu": "cpu", "secrets": ["HF_TOKEN"]}, max_steps=2, save_steps=2, base_model="model"
    )
    shutil.copytree(lab.model, tmp_path / "model")
    more = [*PULL_NOTHING, *container_lab.pip_volumes(tmp_path)]
    done = lab.ft(
        "image", "build", str(recipe), "--builder", "podman", "--json", "--", *more, timeout_s=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)
    return Built(lab, engine, recipe, more, said["tag"], said, done.stderr)


@pytest.mark.timeout(1800)
def test_ft_train_runs_in_the_built_image_as_a_user_of_its_own(
    built: Built, tmp_path: Path
) -> None:
    """And what else an image promises: one build takes minutes."""
    _holds_no_secret(built)
    _is_the_same_with_another_builder(built)
    _trains(built, tmp_path)
    _has_the_same_hash_on_another_machine(built)
    _is_pushed_and_its_base_is_pinned(built, tmp_path)


def _holds_no_secret(built: Built) -> None:
    told = built.engine.run("podman", "history", "--no-trunc", "--format", "json", built.tag)
    told += built.engine.run("podman", "image", "inspect", built.tag)
    assert "ft.image" in told
    assert SECRET not in told + built.log
    places = ("/etc", "/ft", "/home", "/opt", "/root", "/usr/local/bin", "/var")
    assert built.run("grep", "-rlsF", SECRET, *places, options=("--user=0",), check=False) == ""
    # Mounts of a build are no part of what it leaves.
    assert built.run("sh", "-c", "ls -A /etc/pip.conf 2>/dev/null || true").strip() in {
        "",
        "/etc/pip.conf",
    }
    assert built.run("sh", "-c", "cat /etc/pip.conf 2>/dev/null || true") == ""


def _is_the_same_with_another_builder(built: Built) -> None:
    done = built.ft(
        "image",
        "build",
        str(built.recipe),
        "--builder",
        "buildah",
        "--tag",
        "ft-e2e:buildah",
        "--",
        *built.more,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("ft-e2e:buildah  sha256:")
    config = "{{json .Config}}"
    by_podman, by_buildah = (
        json.loads(built.engine.run("podman", "image", "inspect", "--format", config, tag))
        for tag in (built.tag, "ft-e2e:buildah")
    )
    assert by_podman["User"] == "1000:1000"
    assert by_podman["Labels"]["ft.image"] == built.said["content_hash"]
    names = ("User", "Env", "WorkingDir", "Cmd")
    assert {n: by_podman.get(n) for n in names} == {n: by_buildah.get(n) for n in names}


def _trains(built: Built, tmp_path: Path) -> None:
    store = tmp_path / "mounted"
    (store / "store").mkdir(parents=True)
    work = tmp_path / "work"
    work.mkdir()
    for name in ("recipe.yml", "data", "model"):
        shutil.move(tmp_path / name, work / name)
    for path in (store, store / "store", work, *work.rglob("*")):
        os.chown(path, 1000, 1000)
    options = (
        "--volume",
        f"{store}/store:/ft/store",
        "--volume",
        f"{work}:/work",
        "--workdir",
        "/work",
    )
    said = built.run(
        "sh", "-euc",
        "id -u; ! touch /opt/ft-source/new 2>/dev/null; grep ^CapEff /proc/self/status;"
        "ft train recipe.yml --set cloud.store=/ft/store 2>&1",
        options=options,
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[:2] == ["1000", "CapEff:\t0000000000000000"], said
    final = sorted((store / "store").glob("*/final/adapter_model.safetensors"))
    assert len(final) == 1, said
    assert (work / "out" / "adapter_model.safetensors").read_bytes() == final[0].read_bytes()
    owners = {path.stat().st_uid for root in (store, work) for path in root.rglob("*")}
    assert owners == {1000}
    shutil.move(work / "recipe.yml", tmp_path / "recipe.yml")


def _has_the_same_hash_on_another_machine(built: Built) -> None:
    """The container is one: another file system, user, home, time zone, and a package without a checkout."""
    options = (
        "--volume",
        f"{built.recipe}:/tmp/other.yml:ro",
        "--env",
        "TZ=Asia/Tokyo",
        "--env",
        "LC_ALL=C",
    )
    there = json.loads(
        built.run("ft", "image", "show", "/tmp/other.yml", "--json", options=options)
    )
    here = json.loads(built.ft("image", "show", str(built.recipe), "--json").stdout)
    assert there["spec"] == here["spec"]
    assert there["content_hash"] == here["content_hash"] == built.said["content_hash"]
    assert there["dockerfile"] == here["dockerfile"]
    assert (there["built_by"], here["built_by"]) == (None, "podman")
    assert here["size_bytes"] > 100_000_000


def _is_pushed_and_its_base_is_pinned(built: Built, tmp_path: Path) -> None:
    """What is pushed is the base, as a team would keep it: it is smaller by a gigabyte."""
    recipe = built.recipe
    with container_lab.registry(tmp_path) as host:
        base = f"{host}/team/python:3.11"
        done = built.ft("image", "push", str(recipe), base, "--tag", BASE)
        assert done.returncode == 0, done.stderr
        name, _, digest = done.stdout.strip().partition("@")
        assert name == base

        lines = "cloud:\n  gpu: cpu\n  image:\n    base: {} # ours\nbase_model: a/b\nlearning_rate: 1e-4\n"
        lines += "datasets: [{{path: a.jsonl, type: alpaca}}]\n"
        recipe.write_text(lines.format(base))
        pinned = built.ft("image", "pin", str(recipe), "--write", "--json")
        assert pinned.returncode == 0, pinned.stderr
        assert json.loads(pinned.stdout) == {
            "base": f"{base}@{digest}",
            "was": base,
            "written": True,
        }
        assert recipe.read_text() == lines.format(f"{base}@{digest}")
        text = built.ft("image", "show", str(recipe), "--dockerfile").stdout
        assert f"FROM {base}@{digest}" in text.splitlines()
        # A builder takes it from there by this digest.
        built.engine.run(
            "podman", "pull", "--quiet", "--tls-verify=false", f"{host}/team/python@{digest}"
        )
        again = built.ft("image", "pin", str(recipe), "--write")
        assert again.stdout == f"{base}@{digest}\n"
    before = recipe.read_text()
    gone = built.ft("image", "pin", str(recipe), "--write")
    assert gone.returncode == 5
    assert f"{host} does not answer" in gone.stderr
    assert recipe.read_text() == before


@pytest.mark.timeout(1800)
def test_a_node_of_skypilots_trains_in_an_image_for_it_and_refuses_another(
    lab: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SkyPilot is given, `setup` and `run`, in a shell that came in by ssh; no SkyPilot is here."""
    monkeypatch.chdir(lab.folder)
    lab.env |= engine.env
    (tmp_path / "shared").mkdir()
    cloud = {
        "backend": "sky",
        "gpu": "cpu:1",
        "region": "kubernetes",
        "store": str(tmp_path / "shared"),
    }
    recipe = lab.recipe(cloud=cloud, max_steps=2, save_steps=2)
    recipe.write_text(yaml.safe_dump(json.loads(recipe.read_text())))
    more = [*PULL_NOTHING, *container_lab.pip_volumes(tmp_path)]
    done = lab.ft(
        "image", "build", str(recipe), "--builder", "podman", "--json", "--", *more, timeout_s=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    built = json.loads(done.stdout)
    user = engine.run("podman", "image", "inspect", "--format", "{{.Config.User}}", built["tag"])
    assert user.strip() == "", "root's"

    other = _is_pushed_and_written(lab, engine, recipe, tmp_path, built["content_hash"])
    asked = _sent(recipe, tmp_path, "run-1")
    assert _in_container(engine, built["tag"], asked, tmp_path) == 0
    copy = open_copy(asked["store"])
    assert json.loads(copy.read("outcome.json"))["state"] == "SUCCEEDED"
    assert "final/adapter_model.safetensors" in [file.path for file in copy.listed("final")]

    refused = "cloud.image.pushed: .* has environment .*, and the run needs .*; build and push"
    another = _sent(recipe, tmp_path, "run-2", "cloud.image.pip=[einops]")
    assert _in_container(engine, built["tag"], another, tmp_path, said=refused) == 78
    missing = "/opt/ft-image.sh is missing; build and push"
    assert _in_container(engine, other, asked, tmp_path, said=missing) == 78


def _is_pushed_and_written(
    lab: Any, engine: Any, recipe: Path, tmp_path: Path, content_hash: str
) -> str:
    """With an image that says of itself that it is the recipe's: it is smaller by a gigabyte. Returns its name."""
    context = tmp_path / "label"
    context.mkdir()
    (context / "Dockerfile").write_text(f'FROM {BASE}\nLABEL ft.image="{content_hash}"\n')
    name = "ft-e2e:label"
    engine.run("podman", "build", "--tag", name, *PULL_NOTHING, str(context))
    before = recipe.read_text()
    with container_lab.registry(tmp_path) as host:
        words = (
            "image",
            "push",
            str(recipe),
            f"{host}/team/ft:1",
            "--builder",
            "podman",
            "--write",
        )
        wrong = lab.ft(*words, "--tag", BASE)
        assert wrong.returncode == 2
        assert f"{BASE} is another image than this recipe's" in wrong.stderr
        assert recipe.read_text() == before
        done = lab.ft(*words, "--tag", name)
        assert done.returncode == 0, done.stderr
        pushed = done.stdout.strip()
        assert yaml.safe_load(recipe.read_text())["cloud"]["image"] == {"pushed": pushed}
        by_digest = f"{host}/team/ft@{pushed.partition('@')[2]}"
        engine.run("podman", "pull", "--quiet", "--tls-verify=false", by_digest)
    return by_digest


def _sent(recipe: Path, folder: Path, run: str, *changes: str) -> dict[str, Any]:
    """The request of a run whose plan and inputs lie where nodes look for them."""
    prepared = dispatch.prepare(str(recipe), changes)
    asked: dict[str, Any] = sky_request.filled(prepared.submission.request, run, str(folder))
    image_id = asked["task"]["resources"]["image_id"]
    assert image_id.startswith("docker:127.0.0.1:")
    assert "/team/ft@sha256:" in image_id
    RunBucket(asked["store"]).upload(prepared.submission.uploads, prepared.submission.plan_json)
    return asked


def _in_container(
    engine: Any, image: str, asked: dict[str, Any], folder: Path, *, said: str = ""
) -> int:
    """The exit code of `setup` and `run`, with SkyPilot's variables and none of the image's."""
    variables = {
        "HOME": "/root",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_TASK_ID": "sky-managed-2026-11-30-07-45-12-345678_ft-run_1-0",
        "SKYPILOT_MANAGED_JOB_ID": "1",
    }
    task = sky_request.task_of(asked)
    (folder / "task.sh").write_text(
        "".join(f"bash -c {shlex.quote(task[part])} || exit $?\n" for part in ("setup", "run"))
    )
    mounts = [
        f"--volume={folder / 'shared'}:{folder / 'shared'}",
        f"--volume={folder}/task.sh:/task.sh",
    ]
    shell = [
        "env",
        "-i",
        *(f"{name}={value}" for name, value in variables.items()),
        "bash",
        "/task.sh",
    ]
    done = subprocess.run(
        ["podman", "run", "--rm", "--network=none", *mounts, image, *shell],
        env={**os.environ, **engine.env}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert re.search(said, done.stderr), done.stderr[-4000:]
    return done.returncode
