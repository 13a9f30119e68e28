"""What a machine does that runs in our image: the file of variables really written, the check really run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ft.images.bundle import source_digest
from ft.images.dockerfile import VARIABLES, dockerfile
from ft.images.inside import ACTIVATION, check_script
from ft.images.spec import ImageSpec

NAMED = f"reg.example/team/ft@sha256:{'ab' * 32}"
SPEC = ImageSpec(
    device="cpu", base_image="python:3.11", python="3.11", lock="tiny", torch="torch==1.0", user="root",
    commands=("ENV TOOL=/opt/tool QUOTED=\"it's\"", "ENV PATH=/opt/tool/bin:$PATH", "ENV OLD a b", "RUN true"),
    env=(("PYTHONUNBUFFERED", "1"),), source_sha256=source_digest(),
)  # fmt: skip


@dataclass
class Container:
    """A folder that stands in for /opt, and the variables that a build of `SPEC` has."""

    folder: Path

    def shell(self, text: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", "-c", text.replace(VARIABLES, str(self.folder / "ft-image.sh"))]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def build(self, spec: ImageSpec) -> None:
        """What the RUN line of the Dockerfile does."""
        found = re.search(r"^RUN (python -c (?:.*\\\n)*.*ft-image\.sh)$", dockerfile(spec), re.M)
        assert found is not None
        env = {"PATH": self.path, "TOOL": "/opt/tool", "QUOTED": "it's", "OLD": "a b"}
        done = self.shell(found[1], **env, PYTHONUNBUFFERED="1", PIP_EXTRA_INDEX_URL="not ours")
        assert done.returncode == 0, done.stderr

    @property
    def path(self) -> str:
        """As it is in the image: with a program that the machine does not have."""
        return f"{Path(sys.executable).parent}:/usr/bin:/bin:/opt/tool/bin"

    def check(self, spec: ImageSpec) -> tuple[int, str]:
        """Exit code and the one line that is said, from a shell that knows nothing of the image."""
        rooms = os.environ.get("PYTHONPATH") or os.pathsep.join(sys.path)
        done = self.shell(check_script(spec, NAMED), PATH="/usr/bin:/bin", PYTHONPATH=rooms)
        assert done.stdout == ""
        return done.returncode, done.stderr.splitlines()[-1]


@pytest.fixture
def container(tmp_path: Path) -> Container:
    container = Container(tmp_path)
    container.build(SPEC)
    return container


def test_a_shell_gets_the_variables_that_the_image_has_and_no_others(container: Container) -> None:
    done = container.shell(
        f'{ACTIVATION}; printf "%s\\n" "$TOOL" "$QUOTED" "$OLD" "$PYTHONUNBUFFERED" "$PATH"',
        PATH="/machine/bin",
    )
    assert done.stdout.splitlines() == [
        "/opt/tool", "it's", "a b", "1", f"{container.path}:/machine/bin",
    ]  # fmt: skip
    text = (container.folder / "ft-image.sh").read_text()
    assert text.splitlines()[0] == f"ft_environment={SPEC.environment_hash}"
    assert "not ours" not in text, "arguments of a build may hold passwords"


def test_its_own_image_is_let_through_and_any_other_is_not(container: Container) -> None:
    assert container.check(SPEC) == (0, f"ft setup: this is image {SPEC.content_hash}")
    way_out = (
        "; build and push the recipe's with the ft that sends it (ft image build RECIPE; ft image push RECIPE "
        "REGISTRY/NAME --write), or take the key out"
    )
    more = replace(SPEC, more_pip=("einops",))
    assert container.check(more) == (
        78,
        f"ft setup: cloud.image.pushed: {NAMED} has environment {SPEC.environment_hash[:12]}, and the run needs "
        f"{more.environment_hash[:12]}{way_out}",
    )
    newer = replace(SPEC, source_sha256="0123456789abcdef" * 4)
    assert container.check(newer) == (
        78,
        f"ft setup: cloud.image.pushed: {NAMED} has source {SPEC.source_sha256[:12]}, and the run needs "
        f"0123456789ab{way_out}",
    )
    (container.folder / "ft-image.sh").unlink()
    assert container.check(SPEC) == (
        78,
        f"ft setup: cloud.image.pushed: {NAMED} is not what runs here, or no image of ft's for SkyPilot: "
        f"{container.folder}/ft-image.sh is missing{way_out}",
    )


def test_a_python_that_cannot_read_the_source_is_refused_too(container: Container) -> None:
    (container.folder / "ft-image.sh").write_text(
        f"ft_environment={SPEC.environment_hash}\nexport PYTHONPATH=/nowhere\nunset PATH\nPATH=/nowhere\n"
    )
    code, said = container.check(SPEC)
    assert code == 78
    assert "has a Python that cannot read the source of ft; build and push" in said


def test_an_image_for_a_vendor_has_no_user_of_its_own_and_nothing_for_people() -> None:
    lines = [line for line in dockerfile(SPEC).splitlines() if line]
    assert lines[-2:] == [
        f'LABEL ft.image="{SPEC.content_hash}" ft.source="{SPEC.source_sha256}"',
        "ADD ft-source.tar /opt/ft-source/",
    ]
    assert not re.search("USER|useradd|HOME|/ft/store|typer", dockerfile(SPEC))
    assert "USER 1000:1000" in dockerfile(replace(SPEC, user="ft"))
