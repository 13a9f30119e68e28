"""Axolotl's cloud file (its `--cloud cloud.yaml`) as a `cloud:` block, which is a layer over the recipe's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath, Mark, NotFoundError, Problem, Severity
from ft.recipes.load import Recipe, loads
from ft.recipes.meant import is_set, whole
from ft.recipes.nearest import asked, nearest
from ft.recipes.rules.base import Finding
from ft.recipes.rules.cloud import MODAL_GPUS
from ft.recipes.schema.cloud import CloudBlock
from ft.recipes.secrecy import (
    holds_a_secret,
    is_named_like_a_secret,
    is_plain,
    is_rather_a_value,
)
from ft.recipes.sources import open_source
from ft.recipes.spelling import shown

GPU_NAMES: Final[Mapping[str, str]] = {
    "a10g": "A10",
    "a100": "A100-40GB",
    **{name.lower(): name for name in GPUS if name in MODAL_GPUS},
}
"""Axolotl's name of a GPU in small letters -> ours. The file is for Modal: what that does not have is no choice."""

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

OWN_IMAGE: Final = ("image", "image_build", "image_registry")
"""Keys for an image of the user's own, with code of his own: without it another thing would run."""

_PROVIDERS: Final = ("baseten", "nebius")
"""Where Axolotl goes, and we do not."""
_NAMES: Final = "a list of names, such as `- HF_TOKEN`"


@dataclass(frozen=True, slots=True)
class Translated:
    """What a cloud file of Axolotl's means here."""

    block: dict[str, Any]
    """For `cloud:`. What could not be read is not in it."""
    findings: tuple[Finding, ...]
    """In the order of the file; their keys are the file's."""
    sources: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    """Key of the block -> the key of the file that it comes from. What lies below has the same names in both."""


@dataclass(slots=True)
class _Draft:
    """A block in the making."""

    values: Mapping[str, Any]
    block: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    sources: dict[KeyPath, KeyPath] = field(default_factory=dict)

    def put(self, key: str, value: object, *, source: str) -> None:
        self.block[key] = value
        self.sources[key,] = (source,)

    def add(self, key: str, value: object, *, source: KeyPath) -> None:
        """One more element of a list."""
        values = self.block.setdefault(key, [])
        self.sources.setdefault((key,), source[:1])
        self.sources[key, len(values)] = source
        values.append(value)

    def wrong(self, key: KeyPath, expected: str, value: object) -> None:
        got = "" if holds_a_secret(str(value)) else f", got {shown(value)}"
        self.findings.append(Finding(key, f"expected {expected}{got}"))

    def error(self, key: KeyPath, message: str) -> None:
        self.findings.append(Finding(key, message))

    def warn(self, key: KeyPath, message: str) -> None:
        self.findings.append(Finding(key, message, Severity.WARNING))


def layer(name: str) -> Recipe:
    """The cloud file `name` as a recipe with nothing but a `cloud:` block, whose marks are lines of that file.

    Raises: NotFoundError if there is no such file, RecipeError if it is not a YAML mapping.
    """
    try:
        source = open_source(name)
    except NotFoundError as error:
        raise NotFoundError(f"--cloud: {error.message}") from error
    file = loads(source.text, source=source.name, folder=source.folder)
    found = translate(file.values)
    marks: dict[KeyPath, Mark] = {}
    for key, at in sorted(found.sources.items(), key=lambda pair: len(pair[0])):
        marks |= {
            (*key, *below[len(at) :]): mark
            for below, mark in file.marks.items()
            if below[: len(at)] == at
        }
        marks[key] = file.mark(at)
    problems = [
        *file.problems,
        *(file.problem("", one.key, one.message, severity=one.severity) for one in found.findings),
    ]
    return replace(
        file,
        values={"cloud": found.block},
        marks={("cloud",): Mark(source.name, 1)}
        | {("cloud", *key): mark for key, mark in marks.items()},
        problems=tuple(_about_the_block(problem) for problem in problems),
        folders={source.name: source.folder},
    )


def _about_the_block(problem: Problem) -> Problem:
    """What a rule says of the block while the file has an error would be noise."""
    return replace(problem, keys=("cloud",)) if problem.severity is Severity.ERROR else problem


def translate(values: Mapping[str, Any]) -> Translated:
    """The block of a cloud file that was read as plain YAML, and everything about it that somebody should know.

    A key without a value is not set. The block has what the file says: its limits are the business of the rules.
    """
    draft = _Draft({key: value for key, value in values.items() if is_set(value)})
    provider = draft.values.get("provider", "modal")  # As in Axolotl.
    if provider != "modal":
        _other_provider(draft, provider)
        return Translated({}, tuple(draft.findings))
    draft.put("backend", "modal", source="provider")
    if "gpu" not in draft.values:
        draft.error(("gpu",), "required; Axolotl ends without one too. Write `gpu: h100`.")
    for key in draft.values:
        reader = _READERS.get(key)
        if reader is not None:
            reader(draft, key)
        elif key in NO_EFFECT:
            draft.warn((key,), f"has no effect: {NO_EFFECT[key]}")
        elif key in OWN_IMAGE:
            message = (
                "an image of your own is not supported: `ft` makes one, with its own code. Take it out; what you "
                "miss in it goes into `cloud.image` of the recipe."
            )
            draft.error((key,), message)
        elif key != "provider":
            draft.error((key,), f"unknown key.{_meant(key)}")
    return Translated(draft.block, tuple(draft.findings), draft.sources)


def _meant(key: str) -> str:
    if key == "cloud" or key in CloudBlock.model_fields:
        what = "a block" if key == "cloud" else "a key of the `cloud:` block"
        return f" This is {what} of a recipe, and `--cloud` reads Axolotl's file. Write it in the recipe."
    near = nearest(key, [*_READERS, *NO_EFFECT, "provider"], 1)
    return asked(key, near) if near else ""


def _other_provider(draft: _Draft, name: object) -> None:
    """The other keys are that provider's; to speak of them would be noise."""
    if name in _PROVIDERS:
        message = (
            f"{name} is not supported. Use `provider: modal` here, or `backend: modal` or `sky` in the `cloud:` "
            "block of the recipe."
        )
        draft.error(("provider",), message)
    else:
        draft.wrong(("provider",), "`modal`", name)


def _gpu(draft: _Draft, key: str) -> None:
    """`gpu: h100` and `gpu_count: 8` are `gpu: H100:8`."""
    name, count = draft.values[key], _count(draft.values.get("gpu_count", 1))
    if not isinstance(name, str):
        draft.wrong((key,), "the name of a GPU, such as `h100`", name)
    elif ":" in name:
        draft.wrong((key,), "`gpu: NAME` and `gpu_count: COUNT`", name)
    elif name.lower() not in GPU_NAMES:
        meant = nearest(name, GPU_NAMES, 1)
        near = f". Did you mean `{meant[0]}`?" if meant else ""
        message = f"expected one of {', '.join(GPU_NAMES)}, got {shown(name)}{near}"
        draft.error((key,), message)
    elif count is not None:
        draft.put("gpu", f"{GPU_NAMES[name.lower()]}:{count}", source=key)


def _gpu_count(draft: _Draft, key: str) -> None:
    if _count(draft.values[key]) is None:
        draft.wrong((key,), "a whole number from 1", draft.values[key])


def _count(value: object) -> int | None:
    """The whole number from 1 that `value` stands for; Axolotl reads it as text too."""
    count = whole(value)
    return count if count is not None and count >= 1 else None


def _number(name: str) -> Callable[[_Draft, str], None]:
    """A reader of a whole number from 1, which `name` has here in the same unit."""

    def read(draft: _Draft, key: str) -> None:
        count = _count(draft.values[key])
        if count is None:
            draft.wrong((key,), "a whole number from 1", draft.values[key])
        else:
            draft.put(name, count, source=key)

    return read


def _commands(draft: _Draft, key: str) -> None:
    lines = draft.values[key]
    lines = [lines] if isinstance(lines, str) else lines
    if isinstance(lines, list) and lines and all(isinstance(line, str) and line for line in lines):
        draft.put("image", {"commands": lines}, source=key)
        draft.sources["image", "commands"] = (key,)
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
            draft.add("volumes", volume, source=(key, index))
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
            _add_secret(draft, name, at)
            if not is_named_like_a_secret(name):
                message = (
                    f"{name} comes from this machine, so it goes as a secret. If everybody may read it, write "
                    f"`{name}: VALUE`."
                )
                draft.warn(at, message)
        elif (is_named_like_a_secret(name) and not is_plain(value)) or holds_a_secret(value):
            _value_of_a_secret(draft, at, name)
        else:
            draft.block.setdefault("env", {})[name] = value
            draft.sources.setdefault(("env",), (key,))
            draft.sources["env", name] = at


def _secrets(draft: _Draft, key: str) -> None:
    for at, name, value in _variables(draft, key):
        if value is None:
            _add_secret(draft, name, at)
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
                if is_rather_a_value(name):
                    draft.error(at, f"expected {_NAMES}, never a value alone")
                elif value is None or isinstance(value, str):
                    yield (*at, name), name, value
                else:
                    draft.error((*at, name), "expected text. Quotes make it text.")
        else:
            draft.error(at, f"expected {_NAMES}, never a value alone")


def _add_secret(draft: _Draft, name: str, at: KeyPath) -> None:
    if name not in draft.block.get("secrets", ()):
        draft.add("secrets", name, source=at)


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
    "secrets": _secrets,
    "timeout": _number("timeout"),
    "volumes": _volumes,
}
"""Key of a cloud file -> what reads it into the block."""
