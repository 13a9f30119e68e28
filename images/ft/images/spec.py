"""ImageSpec: what a run runs in, as a value. The same inputs, the same `content_hash`, anywhere."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from typing import Literal

from ft.recipes.secrecy import is_named_like_a_secret

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]*")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=<>~!,;\[\]#%&-]*")
"""It stands in quotes where the shell needs them."""
_ENV_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
COMMANDS = ("RUN", "ENV", "ARG", "WORKDIR", "SHELL")
"""Instructions that a recipe may add."""
_LOCKED = re.compile(r"[a-z0-9-]+==[A-Za-z0-9.+]+( --hash=sha256:[0-9a-f]{64})+")
_SORTED = ("apt", "requirements", "locked", "command_line", "more_apt", "env")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """Everything that decides what is in an image; nothing about where it is built.

    Raises: ValueError for a word that could break out of its Dockerfile line, for an environment
    variable that is named like a secret, and for a digest that is none.
    """

    device: Literal["cpu", "cuda"]
    base_image: str
    """Name and tag: `python:3.11-slim-bookworm`."""
    base_digest: str | None = None
    """`sha256:…` of the base image once somebody has fetched it; None: the tag decides."""
    python: str
    """`3.11`."""
    apt: tuple[str, ...] = ()
    """Debian packages, sorted."""
    lock: str
    """Name of the requirement set, for people: `cuda-torch2.13.0-py3.11`."""
    torch: str
    """The requirement that gets a layer of its own, because it is by far the largest."""
    requirements: tuple[str, ...] = ()
    """The other requirements, sorted."""
    locked: tuple[str, ...] = ()
    """The requirements and all below them but torch's own, as `name==version --hash=sha256:…`, sorted: pip then takes
    nothing else. Empty: it looks for what is below them by itself."""
    command_line: tuple[str, ...] = ()
    """What the `ft` command needs beside the requirements, sorted: only where people start containers by hand."""
    user: Literal["ft", "root"] = "ft"
    """Whose the container is: `ft`, user 1000, where people start it; `root` where a vendor's way in is root's."""
    more_apt: tuple[str, ...] = ()
    """`cloud.image.apt`: a layer of its own behind ours, so that ours are shared."""
    more_pip: tuple[str, ...] = ()
    """`cloud.image.pip`, as pip takes them; torch stays as it is."""
    commands: tuple[str, ...] = ()
    """`cloud.image.commands`: lines of a Dockerfile, in their order and to the letter."""
    env: tuple[tuple[str, str], ...] = ()
    """Constants, sorted by name. Whoever can pull an image can read its layers: never a secret."""
    source_sha256: str
    """Of the source bundle: `bundle.source_digest()`."""

    def __post_init__(self) -> None:
        for name in _SORTED:
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        for word in (self.base_image, self.python, self.lock, self.torch):
            _check_word(word)
        for word in (*self.requirements, *self.command_line, *self.apt, *self.more_apt):
            _check_word(word)
        for word in self.more_pip:
            _check_requirement(word)
        for line in self.locked:
            _check_locked(line)
        for command in self.commands:
            _check_command(command)
        for name, value in self.env:
            _check_env(name, value)
        if self.base_digest is not None and not _DIGEST.fullmatch(self.base_digest):
            raise ValueError(f"base_digest {self.base_digest!r}: expected sha256:<64 hex digits>")
        if not _SHA256.fullmatch(self.source_sha256):
            raise ValueError(f"source_sha256 {self.source_sha256!r}: expected 64 hex digits")

    @property
    def base(self) -> str:
        """What stands after FROM: the digest wins over the tag where it is known."""
        return f"{self.base_image}@{self.base_digest}" if self.base_digest else self.base_image

    @property
    def content_hash(self) -> str:
        """sha256 of the canonical JSON: keys sorted, no spaces."""
        text = json.dumps(self._values(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def environment_hash(self) -> str:
        """`content_hash` of all but the source: a new source leaves what was installed as it is."""
        return replace(self, source_sha256="0" * 64).content_hash

    def to_json(self) -> str:
        """For people and for the run record: fields in the order of the layers."""
        return json.dumps(self._values(), indent=2) + "\n"

    def _values(self) -> dict[str, object]:
        values: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"env": dict(self.env)}


def _check_word(word: str) -> None:
    if not _WORD.fullmatch(word):
        raise ValueError(f"{word!r}: only letters, digits and ._:/@+=- can stand in a Dockerfile")


def _check_requirement(word: str) -> None:
    if not _REQUIREMENT.fullmatch(word):
        raise ValueError(
            f"{word!r}: expected a requirement of pip without white space, such as scipy==1.15.3"
        )


def _check_locked(line: str) -> None:
    if not _LOCKED.fullmatch(line):
        raise ValueError(f"{line!r}: expected name==version --hash=sha256:<64 hex digits>")


def _check_command(command: str) -> None:
    word = command.split(" ", 1)[0]
    if word not in COMMANDS or "\n" in command:
        raise ValueError(
            f"{command!r}: expected one line that begins with {', '.join(COMMANDS)}; "
            "files of this machine have no way into the image"
        )


def _check_env(name: str, value: str) -> None:
    if not _ENV_NAME.fullmatch(name):
        raise ValueError(f"environment variable {name!r}: expected upper case letters, digits, _")
    if is_named_like_a_secret(name):
        raise ValueError(f"environment variable {name}: named like a secret, and images are public")
    if not value.isprintable():
        raise ValueError(f"environment variable {name}: expected one line of printable characters")
