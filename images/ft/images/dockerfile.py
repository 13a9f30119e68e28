"""ImageSpec -> Dockerfile. What changes rarely comes first: a new source rebuilds one layer."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Final

from ft.images.commands import names_set
from ft.images.spec import ImageSpec

SOURCE_FILE: Final = "ft-source.tar"
"""Name of `bundle.bundle_bytes()` in the build context."""
SOURCE_ROOT: Final = "/opt/ft-source"
"""Where it is unpacked; stands in PYTHONPATH."""

USER_ID: Final = 1000
"""Of the user that an image runs as: on most machines with Linux the first person's, whose folders are mounted."""
HOME: Final = "/home/ft"
STORE: Final = "/ft/store"
CACHE: Final = "/ft/cache"
"""Folders of that user: a run's stores, and models with prepared rows."""

VARIABLES: Final = "/opt/ft-image.sh"
"""What a shell reads that came in by ssh, where ENV is not known: which environment this is, and its variables."""

PIP_INDEX_ARGUMENT: Final = "ARG PIP_EXTRA_INDEX_URL"

HAS_CUDA: Final = "import torch; assert torch.version.cuda, torch.__version__"
"""A CPU build would be found out only when the GPUs are already paid for."""

LOCKED: Final = "--no-deps --require-hashes -r /dev/stdin"
"""How pip takes a lock: each line of it, if what arrives has its hash, and nothing besides."""

_INDENT = " \\\n    "
_PIP_INSTALL = "python -m pip install --no-cache-dir --disable-pip-version-check"


def dockerfile(spec: ImageSpec) -> str:
    """Dockerfile text, a function of `spec` alone. Its context needs one file: `SOURCE_FILE`."""
    return "\n".join(f"{line}\n" for line in _instructions(spec))


def layers(spec: ImageSpec) -> list[str]:
    """The instructions that make layers on `spec.base`, for a vendor that builds one after the other.

    Without the source, which such a vendor mounts: no layer is built again when only the source is new. And without
    the user and the command line: the vendor's own way in is root's, and its volumes too.
    """
    built = [_without_comments(line) for line in _built(spec)]
    env = [line for line in built if line.startswith("ENV ") and line not in spec.commands]
    # An argument of the build ends with its layer, and nobody can give it one here.
    rest = [line for line in built if line and line != PIP_INDEX_ARGUMENT and line not in env]
    return [*rest, "\n".join(env)] if env else rest


def _instructions(spec: ImageSpec) -> Iterator[str]:
    yield f"# {spec.lock}, image {spec.content_hash}"
    yield f"FROM {spec.base}"
    yield from _built(spec)
    yield _variables(spec)
    if spec.user == "ft":
        yield from _for_people(spec)
    yield f'LABEL ft.image="{spec.content_hash}" ft.source="{spec.source_sha256}"'
    yield f"ADD {SOURCE_FILE} {SOURCE_ROOT}/"


def _built(spec: ImageSpec) -> Iterator[str]:
    if spec.apt:
        yield _apt_install(spec.apt)
    if spec.device == "cpu":
        yield (
            "# With an index of CPU builds torch comes without CUDA. No passwords in its address:\n"
            "# build arguments stay readable in the image.\n"
            f"{PIP_INDEX_ARGUMENT}"
        )
    yield f"RUN {_PIP_INSTALL}{_list([spec.torch])}"
    if spec.device == "cuda":
        yield (
            "# A CPU build would be found out only when the GPUs are already paid for.\n"
            f"RUN python -c '{HAS_CUDA}'"
        )
    if spec.locked:
        lines = _list(shlex.quote(line) for line in spec.locked)
        yield f"RUN printf '%s\\n'{lines} \\\n    | {_PIP_INSTALL} {LOCKED}"
    elif spec.requirements:
        yield f"RUN {_PIP_INSTALL}{_list([spec.torch, *spec.requirements])}"
    if spec.more_apt:
        yield _apt_install(spec.more_apt)
    if spec.more_pip:
        yield f"RUN {_PIP_INSTALL}{_list([spec.torch, *map(shlex.quote, spec.more_pip)])}"
    yield from spec.commands
    for name, value in spec.env:
        yield f"ENV {name}={_quoted(value)}"


def _variables(spec: ImageSpec) -> str:
    """By name: the build's own environment may hold arguments that are nobody's business."""
    names = dict.fromkeys((*names_set(spec.commands), *(name for name, _ in spec.env)))
    names.pop("PATH", None)
    return (
        "# For shells that come in by ssh: they know nothing of ENV.\n"
        "RUN python -c 'import os, shlex; e, q = os.environ, shlex.quote; \\\n"
        f'    print("ft_environment={spec.environment_hash}"); \\\n'
        '    print("export PATH=" + q(e["PATH"]) + ":\\"$PATH\\""); \\\n'
        f'    [print("export " + n + "=" + q(e[n])) for n in "{" ".join(names)}".split()]\' \\\n'
        f"    >{VARIABLES}"
    )


def _for_people(spec: ImageSpec) -> Iterator[str]:
    """What a container is that somebody starts by hand: no root, with `ft` on its path."""
    if spec.command_line:
        yield f"RUN {_PIP_INSTALL}{_list(spec.command_line)}"
    yield (
        "# A number, so that a cluster can see that it is not root's.\n"
        f"RUN groupadd --non-unique --gid {USER_ID} ft \\\n"
        f"    && useradd --non-unique --uid {USER_ID} --gid {USER_ID} --create-home --home-dir {HOME} ft \\\n"
        f"    && install -d -o {USER_ID} -g {USER_ID} {STORE} {CACHE} \\\n"
        f"    && printf '#!/bin/sh\\nexec python -P -m ft.launcher.cli.app \"$@\"\\n' >/usr/local/bin/ft \\\n"
        "    && chmod 755 /usr/local/bin/ft"
    )
    yield f'ENV HOME="{HOME}"'
    yield f'ENV XDG_CACHE_HOME="{CACHE}"'
    yield f"USER {USER_ID}:{USER_ID}"
    yield f"WORKDIR {HOME}"


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _apt_install(packages: Iterable[str]) -> str:
    return (
        f"RUN apt-get update && apt-get install -y --no-install-recommends{_list(packages)}"
        " \\\n    && rm -rf /var/lib/apt/lists/*"
    )


def _list(words: Iterable[str]) -> str:
    return "".join(f"{_INDENT}{word}" for word in words)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
