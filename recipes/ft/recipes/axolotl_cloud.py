"""Axolotl's cloud file (its `--cloud cloud.yaml`) as a `cloud:` block. Pure: no file, no environment, no default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath, Severity
from ft.recipes.nearest import asked, nearest
from ft.recipes.rules.base import Finding
from ft.recipes.secrecy import is_named_like_a_secret, is_rather_a_value
from ft.recipes.spelling import shown

GPU_NAMES: Final[Mapping[str, str]] = {
    "a10g": "A10",
    "a100": "A100-40GB",
    **{name.lower(): name for name in GPUS if name not in {"cpu", "A10G"}},
}
"""Axolotl's name of a GPU in small letters -> ours."""

NO_EFFECT: Final[Mapping[str, str]] = {
    "branch": "a branch of Axolotl, and `ft` trains with its own code. Take it out.",
    "docker_tag": "an image of Axolotl's, and `ft` makes its own. Take it out; what you miss in it goes into "
    "`cloud.image`.",
    "memory_preprocess": "rows are prepared on the machine that trains. Take it out; `memory` is that machine's.",
    "project_name": "Axolotl ignores it too. Take it out; `ft cloud run --name` names a run.",
    "spawn": "every run goes on without the terminal that started it. Take it out.",
    "timeout_preprocess": "rows are prepared on the machine that trains. Take it out; `timeout` is that machine's.",
}
"""Key that asks for what there is not here -> why, and what to do."""

_NAMES: Final = "a list of names, such as `- HF_TOKEN`"


@dataclass(frozen=True, slots=True)
class Translated:
    """What a cloud file of Axolotl's means here."""

    block: dict[str, Any]
    """For `cloud:`. What could not be read is not in it."""
    findings: tuple[Finding, ...]
    """In the order of the file; their keys are the file's."""


@dataclass(slots=True)
class _Draft:
    """A block in the making."""

    values: Mapping[str, Any]
    block: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def wrong(self, key: KeyPath, expected: str, value: object) -> None:
        self.findings.append(Finding(key, f"expected {expected}, got {shown(value)}"))

    def error(self, key: KeyPath, message: str) -> None:
        self.findings.append(Finding(key, message))

    def warn(self, key: KeyPath, message: str) -> None:
        self.findings.append(Finding(key, message, Severity.WARNING))


def translate(values: Mapping[str, Any]) -> Translated:
    """The block of a cloud file that was read as plain YAML, and everything about it that somebody should know.

    A key without a value is not set. The block has what the file says: its limits are the business of the rules.
    """
    given = {key: value for key, value in values.items() if value is not None and value != ""}
    draft = _Draft(given)
    if "provider" not in given:
        draft.block["backend"] = "modal"  # As in Axolotl.
    if "gpu" not in given:
        draft.error(("gpu",), "required; Axolotl ends without one too. Write `gpu: h100`.")
    for key in given:
        reader = _READERS.get(key)
        if reader is not None:
            reader(draft, key)
        elif key in NO_EFFECT:
            draft.warn((key,), f"has no effect: {NO_EFFECT[key]}")
        else:
            meant = nearest(str(key), [*_READERS, *NO_EFFECT], 1)
            draft.error((key,), f"unknown key.{asked(str(key), meant) if meant else ''}")
    return Translated(draft.block, tuple(draft.findings))


def _provider(draft: _Draft, key: str) -> None:
    name = draft.values[key]
    if name == "modal":
        draft.block["backend"] = "modal"
    elif name == "baseten":
        message = (
            "baseten is not supported. Use `backend: modal` or `sky` in a `cloud:` block, or "
            "`provider: modal` here."
        )
        draft.error((key,), message)
    else:
        draft.wrong((key,), "`modal`", name)


def _gpu(draft: _Draft, key: str) -> None:
    """`gpu: h100` and `gpu_count: 8` are `gpu: H100:8`."""
    name, count = draft.values[key], draft.values.get("gpu_count", 1)
    if not isinstance(name, str):
        draft.wrong((key,), "the name of a GPU, such as `h100`", name)
    elif ":" in name:
        draft.wrong((key,), "`gpu: NAME` and `gpu_count: COUNT`", name)
    elif name.lower() not in GPU_NAMES:
        meant = nearest(name, GPU_NAMES, 1)
        near = f". Did you mean `{meant[0]}`?" if meant else ""
        message = f"expected one of {', '.join(GPU_NAMES)}, got {shown(name)}{near}"
        draft.error((key,), message)
    elif _is_count(count):
        draft.block["gpu"] = f"{GPU_NAMES[name.lower()]}:{count}"


def _gpu_count(draft: _Draft, key: str) -> None:
    if not _is_count(draft.values[key]):
        draft.wrong((key,), "a whole number from 1", draft.values[key])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(name: str) -> Callable[[_Draft, str], None]:
    """A reader of a whole number from 1, which `name` has here in the same unit."""

    def read(draft: _Draft, key: str) -> None:
        if _is_count(draft.values[key]):
            draft.block[name] = draft.values[key]
        else:
            draft.wrong((key,), "a whole number from 1", draft.values[key])

    return read


def _commands(draft: _Draft, key: str) -> None:
    lines = draft.values[key]
    lines = [lines] if isinstance(lines, str) else lines
    if isinstance(lines, list) and lines and all(isinstance(line, str) and line for line in lines):
        draft.block["image"] = {"commands": lines}
    else:
        draft.wrong((key,), "a list of lines of a Dockerfile", lines)


def _volumes(draft: _Draft, key: str) -> None:
    volumes = draft.values[key]
    if not isinstance(volumes, list):
        draft.wrong((key,), "a list of `{name: …, mount: …}`", volumes)
        return
    for index, volume in enumerate(volumes):
        is_whole = isinstance(volume, dict) and all(
            isinstance(volume.get(part), str) and volume[part] for part in ("name", "mount")
        )
        if is_whole and len(volume) == 2:
            found = {"name": volume["name"], "mount": volume["mount"]}
            draft.block.setdefault("volumes", []).append(found)
        else:
            draft.wrong((key, index), "`{name: …, mount: …}`", volume)
    if "volumes" in draft.block:
        message = (
            "Axolotl makes a volume that is not there, `ft` does not: make it first. What the run itself writes goes "
            "into `cloud.store_volume`, not here."
        )
        draft.warn((key,), message)


def _env(draft: _Draft, key: str) -> None:
    """A name alone has the value of this machine, and may be secret; a name with a value is for everybody."""
    for at, name, value in _variables(draft, key):
        if value is None:
            _add_secret(draft, name)
            if not is_named_like_a_secret(name):
                message = (
                    f"{name} comes from this machine, so it goes as a secret. If everybody may read it, write "
                    f"`{name}: VALUE`."
                )
                draft.warn(at, message)
        elif is_named_like_a_secret(name) or is_rather_a_value(value):
            _value_of_a_secret(draft, at, name)
        else:
            draft.block.setdefault("env", {})[name] = value


def _secrets(draft: _Draft, key: str) -> None:
    for at, name, value in _variables(draft, key):
        if value is None:
            _add_secret(draft, name)
        else:
            _value_of_a_secret(draft, at, name)


def _variables(draft: _Draft, key: str) -> Iterator[tuple[KeyPath, str, str | None]]:
    """Where it stands, the name, and the value if there is one. What is wrong is never repeated: it may be secret."""
    items = draft.values[key]
    if not isinstance(items, list):
        draft.error((key,), f"expected {_NAMES}")
        return
    for index, item in enumerate(items):
        at: KeyPath = (key, index)
        if isinstance(item, str) and item and "=" not in item and not is_rather_a_value(item):
            yield at, item, None
        elif isinstance(item, dict) and item:
            for name, value in item.items():
                if value is None or isinstance(value, str):
                    yield (*at, str(name)), str(name), value
                else:
                    draft.error((*at, str(name)), "expected text. Quotes make it text.")
        else:
            draft.error(at, f"expected {_NAMES}, never a value alone")


def _add_secret(draft: _Draft, name: str) -> None:
    names = draft.block.setdefault("secrets", [])
    if name not in names:
        names.append(name)


def _value_of_a_secret(draft: _Draft, at: KeyPath, name: str) -> None:
    way_out = f"write `- {name}`, and set it where `ft` is started"
    message = f"names, never values: {way_out}. Change the secret: it was in a file."
    draft.error(at, message)


_READERS: Final[Mapping[str, Callable[[_Draft, str], None]]] = {
    "dockerfile_commands": _commands,
    "env": _env,
    "gpu": _gpu,
    "gpu_count": _gpu_count,
    "memory": _number("memory"),  # GB there, GiB here: Modal counts in MiB.
    "node_count": _number("nodes"),
    "provider": _provider,
    "secrets": _secrets,
    "timeout": _number("timeout"),
    "volumes": _volumes,
}
"""Key of a cloud file -> what reads it into the block."""
