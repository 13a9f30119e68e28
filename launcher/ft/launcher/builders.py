"""docker, podman and buildah: one Dockerfile, built and pushed by whichever is there, with its own logins."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import IO, Final

from ft.launcher.image_registry import is_loopback, parse
from ft.recipes.errors import DependencyError, NotFoundError, SubmitError, UsageError

ASK_TIMEOUT_S: Final = 30.0
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Builder:
    """What a program is asked; `{image}` and the like are filled in."""

    name: str
    answers: tuple[str, ...]
    """Ends with 0 where it can build: docker is often there without its daemon."""
    build: tuple[str, ...]
    has: tuple[str, ...]
    """Ends with 0 where the image is there."""
    label: tuple[str, ...]
    """Prints the label `ft.image` of an image."""
    size: tuple[str, ...] = ()
    """Prints bytes; nothing if it cannot say."""


BUILDERS: Final = (
    Builder(
        "docker",
        answers=("version", "--format", "{{.Server.Version}}"),
        build=("build",),
        has=("image", "inspect", "--format", "{{.Id}}"),
        label=("image", "inspect", "--format", '{{index .Config.Labels "ft.image"}}'),
        size=("image", "inspect", "--format", "{{.Size}}"),
    ),
    Builder(
        "podman",
        answers=("--version",),
        build=("build",),
        has=("image", "exists"),
        label=("image", "inspect", "--format", '{{index .Config.Labels "ft.image"}}'),
        size=("image", "inspect", "--format", "{{.Size}}"),
    ),
    Builder(
        "buildah",
        answers=("--version",),
        build=("bud", "--layers"),
        has=("inspect", "--type", "image", "--format", "{{.FromImageID}}"),
        label=(
            "inspect",
            "--type",
            "image",
            "--format",
            '{{index .OCIv1.Config.Labels "ft.image"}}',
        ),
    ),
)
NAMES: Final = tuple(builder.name for builder in BUILDERS)


def find(name: str = AUTO) -> Builder:
    """The builder of this name; for `auto` the first that answers.

    Raises: UsageError for a name that none has, DependencyError if it is not there or does not answer.
    """
    if name != AUTO and name not in NAMES:
        raise UsageError(f"--builder {name}: expected {AUTO}, {', '.join(NAMES)}")
    found = there(name)
    if found:
        return found[0]
    if name != AUTO and which(name):
        raise DependencyError(f"{name} does not answer", hint=f"{name} version  says why")
    what = f"{name} is" if name != AUTO else f"none of {', '.join(NAMES)} is"
    raise DependencyError(
        f"{what} here to build an image",
        hint="install podman or buildah, or start docker's daemon; `ft image show --dockerfile` needs none",
    )


def there(name: str = AUTO) -> list[Builder]:
    """The builders that answer on this machine."""
    wanted = [builder for builder in BUILDERS if name in {AUTO, builder.name}]
    return [b for b in wanted if which(b.name) and _ask(b, b.answers) is not None]


def with_image(image: str, name: str = AUTO) -> Builder | None:
    """The first builder that has `image`, such as `ft:2db5fd54a660`."""
    return next((b for b in there(name) if _ask(b, (*b.has, image)) is not None), None)


def size_of(builder: Builder, image: str) -> int | None:
    """Bytes; None if the builder cannot say."""
    said = _ask(builder, (*builder.size, image)) if builder.size else None
    return int(said) if said and said.isdigit() else None


def content_hash_of(builder: Builder, image: str) -> str | None:
    """Of an image that `ft` has built, by its label; else None."""
    return _ask(builder, (*builder.label, image)) or None


def build(builder: Builder, context: Path, tag: str, more: Sequence[str] = ()) -> str:
    """Build what lies in `context`, `more` being the builder's own arguments. Returns the id of the image.

    What the builder says goes to standard error as it comes. Raises: SubmitError if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="ft-image-") as folder:
        written = Path(folder) / "id"
        options = ["--tag", tag, "--file", str(context / "Dockerfile"), "--iidfile", str(written)]
        command = [builder.name, *builder.build, *options, *more, str(context)]
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
        ).returncode
        if code:
            raise SubmitError(
                f"{builder.name} ended with {code}",
                hint="what went wrong stands in its last lines above",
            )
        return _written(written)


def push(builder: Builder, image: str, target: str) -> str:
    """Push a built image as `target`, with the logins that the builder has. Returns the registry's digest.

    Raises: UsageError if `target` is no name in a registry, SubmitError if the registry does not take it.
    """
    reference = parse(target)
    if reference.digest:
        raise UsageError(f"{target}: the digest is what the registry answers; name a tag")
    if builder.name == "docker":
        _push_step(["docker", "tag", image, target], reference.host)
        lines = _push_step(["docker", "push", target], reference.host)
        found = re.findall(r"digest: (sha256:[0-9a-f]{64})", "\n".join(lines))
        digest = found[-1] if found else ""
    else:
        # As docker does it: a registry on this machine has no TLS.
        plain = ["--tls-verify=false"] if is_loopback(reference.host) else []
        with tempfile.TemporaryDirectory(prefix="ft-image-") as folder:
            written = Path(folder) / "digest"
            options = [*plain, "--digestfile", str(written)]
            _push_step(
                [builder.name, "push", *options, image, f"docker://{target}"], reference.host
            )
            digest = _written(written)
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise SubmitError(f"{builder.name} has pushed {target}, and did not say with which digest")
    return digest


def built(image: str, name: str, *, how: str) -> Builder:
    """The builder that has `image`. Raises: NotFoundError with `how` to build it, and what `find` raises."""
    find(name)
    builder = with_image(image, name)
    if builder is None:
        raise NotFoundError(f"{image} is not built on this machine", hint=how)
    return builder


def _written(path: Path) -> str:
    """What a builder has left there; empty if it left nothing."""
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _push_step(command: list[str], host: str) -> list[str]:
    """Its lines, which standard error has got as they came."""
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        output: IO[str] = process.stdout  # type: ignore[assignment]  # a pipe was asked for
        for line in output:
            sys.stderr.write(line)
            lines.append(line)
    if process.returncode:
        raise SubmitError(
            f"{command[0]} {command[1]} ended with {process.returncode}",
            hint=f"{command[0]} login {host}  if the registry did not let it in",
        )
    return lines


def _ask(builder: Builder, arguments: Sequence[str]) -> str | None:
    """What it prints; None if it says no."""
    try:
        done = subprocess.run(
            [builder.name, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
