"""What `ft doctor` looks at: this installation, one backend, and what would stop one recipe there. Starts nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ft.launcher.backends.base import Capability
from ft.launcher.backends.registry import backend as load_backend
from ft.launcher.cli import console
from ft.launcher.secrets import VARIABLE
from ft.recipes.errors import (
    DependencyError,
    FtError,
    PlanError,
    Problem,
    RecipeError,
    Severity,
    UsageError,
)
from ft.recipes.leftovers import leftovers_in

if TYPE_CHECKING:
    from ft.launcher.backends.base import Backend
    from ft.launcher.dispatch import Checked, Prepared

DISTRIBUTION: Final = "ft-launcher"
STRANGER: Final = "ft"
"""A distribution of this name is not ours, and its package `ft` would hide ours (decision 14)."""

EXTRAS: Final = {
    "train": "training on this machine",
    "modal": "backend modal",
    "sky": "backend sky",
}

CHECKPOINT_OVER_WEIGHTS: Final = 3
"""Of a model that is trained whole: its weights, and two moments of AdamW in the same numbers."""
MIN_FREE_BYTES: Final = 256 << 20
"""What the agent asks for before an attempt."""


class Level(StrEnum):
    """What a line means for the run."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


MARKS: Final = {Level.OK: "ok", Level.NOTE: "--", Level.WARN: "!!", Level.FAIL: "NO"}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at, and below a bad one the way to mend it."""

    name: str
    level: Level
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        ok = self.level is not Level.FAIL
        return {
            "name": self.name,
            "ok": ok,
            "level": str(self.level),
            "message": self.message,
            "fix": self.fix,
        }


@dataclass(slots=True)
class Diagnosis:
    """All lines under their headings; `error` is what stops a run, with the exit code that it would have."""

    backend: str
    recipe: str | None
    sections: dict[str, list[Line]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    error: FtError | None = None

    @property
    def lines(self) -> list[Line]:
        return [line for lines in self.sections.values() for line in lines]

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "recipe": self.recipe,
            "ok": self.error is None,
            "exit_code": self.error.exit_code if self.error else 0,
            "checks": [line.to_json() for line in self.lines],
            "problems": [problem.to_json() for problem in self.problems],
        }

    def text(self) -> Iterator[str]:
        """`ok  name  message`, wrapped to the width of the terminal."""
        for title, lines in self.sections.items():
            yield title
            for line in lines:
                margin = f"{MARKS[line.level]}  "
                yield from console.labelled(line.name, line.message, margin=margin)
                if line.fix:
                    yield from console.labelled("", f"-> {line.fix}", margin="    ")


@dataclass(frozen=True, slots=True)
class Asked:
    """A recipe as the command line names it, with what goes over it."""

    recipe: str
    overrides: tuple[str, ...]
    cloud: str | None
    backend: str | None


def examine(
    recipe: str | None,
    overrides: Sequence[str] = (),
    *,
    cloud: str | None = None,
    backend: str | None = None,
) -> Diagnosis:
    """Everything that can be known here and now. `recipe` is a path, or the name of one in the gallery.

    Raises: NotFoundError if there is no such recipe, UsageError for an unknown backend or a wrong `--set`.
    """
    from ft.launcher.cli import gallery

    env = dict(os.environ)
    named = None if recipe is None else gallery.shown(recipe)
    found = Diagnosis(backend or "local", named)
    found.sections["installed"] = installed()
    about_recipe: list[Line] = []
    asked, checked = None, None
    if recipe is not None:
        asked = Asked(recipe, tuple(overrides), cloud, backend)
        checked = _check(found, about_recipe, asked)
    target = _backend(found)
    # A process here inherits the environment, an image has its own.
    runs_here = target is not None and Capability.IMAGE not in target.capabilities
    if runs_here:
        machine = checked.facts.machine if checked is not None else None
        device = machine.device if machine is not None else "cuda"
        found.sections["environment"] = environment(env, device=device)
    if checked is not None:
        about_recipe += secrets(checked.facts.secrets or {}, found.backend, inherited=runs_here)
    if asked is not None:
        if target is not None and found.error is None:
            about_recipe += _prepare(found, asked, env if runs_here else None)
        found.sections[f"recipe {found.recipe}"] = about_recipe
    found.error = found.error or _missing(found)
    return found


def _missing(found: Diagnosis) -> DependencyError | None:
    names = [line.name for line in found.lines if line.level is Level.FAIL]
    if not names:
        return None
    # In their order, each once.
    return DependencyError(
        f"backend {found.backend} is not ready: {', '.join(dict.fromkeys(names))}"
    )


# ---------------------------------------------------------------------------- installation, backend


def installed() -> list[Line]:
    """Python, our own version, the packages of each extra, and a stranger that hides ours."""
    stranger = _version(STRANGER)
    lines = []
    if stranger is not None:
        message = f"{STRANGER} {stranger} is installed: another project, whose modules hide ours"
        fix = f"pip uninstall {STRANGER}, then install {DISTRIBUTION} again"
        lines.append(Line("package ft", Level.FAIL, message, fix))
    lines += [
        Line("python", Level.OK, sys.version.split()[0]),
        Line(
            DISTRIBUTION, Level.OK, _version(DISTRIBUTION) or "not installed: run from a checkout"
        ),
    ]
    return lines + [_extra(extra, why) for extra, why in EXTRAS.items()]


def _extra(extra: str, why: str) -> Line:
    """An extra that is missing is a note: whether it is needed, the backend says."""
    versions = {name: _version(name) for name in packages_of(extra)}
    missing = [name for name, version in versions.items() if version is None]
    name = f"extra {extra}"
    if not missing:
        there = ", ".join(f"{package} {version}" for package, version in versions.items())
        return Line(name, Level.OK, there)
    needed = f"{why} needs it: pip install '{DISTRIBUTION}[{extra}]'"
    return Line(name, Level.NOTE, f"without {', '.join(missing)}; {needed}")


def packages_of(extra: str) -> list[str]:
    """Names of the packages that `ft-launcher[extra]` brings; none if we are not installed."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    marker = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    return [
        re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements if marker.search(text)
    ]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _backend(found: Diagnosis) -> Backend | None:
    """Its own checks; None if its extra is missing. Raises: UsageError if there is no such backend."""
    title = f"backend {found.backend}"
    try:
        target = load_backend(found.backend)
        checks = target.check()
    except DependencyError as error:
        found.sections[title] = [Line("backend", Level.FAIL, error.message, error.hint or "")]
        return None
    said = {part for line in found.lines for part in line.message.split(", ")}
    found.sections[title] = [
        Line(c.name, Level.OK if c.ok else Level.FAIL, c.message, c.fix)
        for c in checks
        if not (c.ok and said.issuperset(c.message.split(", ")))
    ]
    return target


def environment(env: Mapping[str, str], *, device: str) -> list[Line]:
    """Variables that a run would inherit and that would hurt it."""
    lines = [
        Line("variable", Level.WARN, leftover.describe(env), leftover.way_out)
        for leftover in leftovers_in(env, device=device)
    ]
    return lines or [Line("variables", Level.OK, "nothing is left that slows a run down")]


# ------------------------------------------------------------------------------------------- recipe


def _check(found: Diagnosis, lines: list[Line], asked: Asked) -> Checked | None:
    """All problems of the recipe, as `ft check` names them; None if the file is no recipe at all."""
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery

    try:
        checked = dispatch.check(
            gallery.locate(asked.recipe),
            asked.overrides,
            cloud=asked.cloud,
            backend=asked.backend,
            here=True,
        )
        found.problems = tuple(checked.report.problems)
        found.backend, _ = dispatch.backend_of(checked.normalized)
    except RecipeError as error:
        checked, found.problems = None, tuple(error.problems)
    levels = {Severity.WARNING: Level.WARN}
    lines += [
        Line("recipe", levels.get(problem.severity, Level.FAIL), console.describe(problem))
        for problem in found.problems
    ]
    if checked is not None:
        lines += _deferred(checked)
    refused = dispatch.refusal(checked) if checked is not None else RecipeError(found.problems)
    if isinstance(refused, RecipeError):
        message = f"{found.recipe} is wrong: {console.count(found.problems)}"
        found.error = UsageError(message, hint=f"ft check {found.recipe}")
    elif refused is not None:
        found.error = PlanError(refused.message.replace("the recipe", str(found.recipe), 1))
    return checked


def secrets(named: Mapping[str, bool], backend: str, *, inherited: bool) -> Iterator[Line]:
    """Each secret that a recipe names, and where a run would find it. `inherited`: only in the environment here."""
    for name, is_here in named.items():
        way_out = f"export {name}=…" if VARIABLE.fullmatch(name) else ""
        if is_here:
            yield Line("secret", Level.OK, f"{name} is set here")
        elif inherited:
            message = f"{name} is not set here, and backend {backend} keeps no secrets"
            yield Line("secret", Level.WARN, message, way_out)
        else:
            message = f"{name} is not set here: expected at the backend"
            yield Line("secret", Level.NOTE, message, way_out)


def _deferred(checked: Checked) -> Iterator[Line]:
    from ft.launcher.cli.checking import FACTS
    from ft.recipes.rules import RULES

    for rule in RULES:
        if rule.id in checked.report.deferred:
            facts = " and ".join(FACTS.get(need, need) for need in rule.needs)
            yield Line("recipe", Level.NOTE, f"{rule.id} was not checked: it needs {facts}")


def _prepare(found: Diagnosis, asked: Asked, env: Mapping[str, str] | None) -> Iterator[Line]:
    """What `--dry-run` would do, as far as it gets. `env` if the run would be a process of this machine."""
    from ft.launcher import dispatch
    from ft.launcher.cli import gallery

    try:
        prepared = dispatch.prepare(
            gallery.locate(asked.recipe),
            asked.overrides,
            cloud=asked.cloud,
            backend=asked.backend,
        )
    except PlanError as error:
        yield Line("plan", Level.FAIL, error.message, error.hint or "")
        found.error = PlanError(f"{found.recipe} cannot run on backend {found.backend}")
        return
    parallel = prepared.plan.parallel
    ranks = "1 process" if parallel.world_size == 1 else f"{parallel.world_size} processes"
    machines = console.plural(parallel.num_nodes, "machine")
    per_node = f"{parallel.gpu}:{parallel.num_processes_per_node}"
    yield Line("plan", Level.OK, f"{ranks}, on {machines} with {per_node}")
    if env is not None:
        model = model_folder(prepared, env)
        yield _model(prepared, model, env)
        yield _disk(prepared, model)


def model_folder(prepared: Prepared, env: Mapping[str, str]) -> Path | None:
    """Where the base model lies on this machine: the recipe's own folder, or the cache of the Hub."""
    fact = (prepared.checked.facts.files or {}).get(("base_model",))
    if fact is not None:
        return fact.path
    name = prepared.plan.model.base_model.replace("/", "--")
    snapshots = _hub_cache(env) / f"models--{name}" / "snapshots"
    folders = list(snapshots.iterdir()) if snapshots.is_dir() else []
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def _hub_cache(env: Mapping[str, str]) -> Path:
    """As huggingface_hub finds it."""
    if env.get("HF_HUB_CACHE"):
        return Path(env["HF_HUB_CACHE"])
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"


def _model(prepared: Prepared, folder: Path | None, env: Mapping[str, str]) -> Line:
    name = prepared.plan.model.base_model
    if (prepared.checked.facts.files or {}).get(("base_model",)) is not None:
        return Line("model", Level.OK, "it lies on this machine")
    if folder is not None:
        return Line("model", Level.OK, f"{name} is in the cache of the Hub")
    if env.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        message = f"{name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it"
        return Line(
            "model", Level.FAIL, message, "unset HF_HUB_OFFLINE, or --set base_model=FOLDER"
        )
    return Line("model", Level.NOTE, f"{name} is fetched from the Hub when the run starts")


def _disk(prepared: Prepared, model: Path | None) -> Line:
    """Free space for the store against what the run may leave there."""
    store = Path(str(prepared.submission.request.get("store", "")).partition("{run}")[0])
    nearest = next((p for p in (store, *store.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(nearest).free
    need, why = disk_need(prepared, model)
    here = f"{console.size(free)} free at {store}"
    if need is None:
        return Line("disk", Level.NOTE, f"{here}; {why}")
    message = f"{here}, about {console.size(need)} needed: {why}"
    if free >= need:
        return Line("disk", Level.OK, message)
    return Line(
        "disk", Level.FAIL, message, "--set save_total_limit=1, or --set cloud.store=FOLDER"
    )


def disk_need(prepared: Prepared, model: Path | None) -> tuple[int | None, str]:
    """Bytes that the store may take, roughly, and what they are made of; None if they cannot be known."""
    plan = prepared.plan
    inputs = sum(upload.size for upload in prepared.submission.uploads)
    if plan.adapter.adapter != "full":
        return inputs + MIN_FREE_BYTES, "its inputs, and adapters, which are small"
    weights = weights_of(model, bf16=plan.model.bf16) if model is not None else None
    if weights is None:
        return None, "how large its checkpoints will be is not known before the model is here"
    # One more than are kept, while the next one is written; and the finished model.
    checkpoints = plan.checkpoint.save_total_limit + 1
    need = inputs + weights * (CHECKPOINT_OVER_WEIGHTS * checkpoints + 1)
    return need, f"{checkpoints} checkpoints of the whole model with its optimizer, and the result"


def weights_of(model: Path, *, bf16: bool) -> int | None:
    """Bytes of the weights in the numbers that they are trained in; None if `model` has no weights."""
    files = list(model.glob("*.safetensors")) or list(model.glob("pytorch_model*.bin"))
    if not files:
        return None
    stored = sum(file.stat().st_size for file in files)
    try:
        config = json.loads((model / "config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    dtype = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    stored_width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(str(dtype), 2 if bf16 else 4)
    return stored * (2 if bf16 else 4) // stored_width
