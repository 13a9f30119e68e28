"""Gathers Facts: files, the model's config.json, the machine. The only laptop I/O on the way to a plan."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft.launcher.inputs import describe
from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import Recipe, resolve_path
from ft.recipes.normalize import Normalized
from ft.recipes.references import Reference, references
from ft.recipes.schema import FlatRecipe

PROBE_TIMEOUT_S = 10.0


def gather(normalized: Normalized, *, hashed: bool) -> Facts:
    """Look at what the recipe refers to. Without `hashed`, files are found but not read: enough to check."""
    flat, recipe = normalized.flat, normalized.recipe
    files = {ref.key: _file(ref, recipe, hashed=hashed) for ref in references(flat)}
    return Facts(files=files, model_config=_model_config(files), machine=machine_for(flat))


def _file(reference: Reference, recipe: Recipe, *, hashed: bool) -> FileFact | None:
    path = resolve_path(reference.value, recipe.folder)
    if path is None:
        return FileFact(reference.kind, None) if reference.must_be_local else None
    return describe(path, reference.kind) if hashed else FileFact(reference.kind, path)


def _model_config(files: Mapping[KeyPath, FileFact | None]) -> Mapping[str, Any] | None:
    fact = files.get(("base_model_config",)) or files.get(("base_model",))
    if fact is None or fact.path is None:
        return None
    try:
        config = json.loads((fact.path / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def machine_for(recipe: FlatRecipe) -> Machine | None:
    """The machine that `cloud.gpu` names, else this one; None where `cloud.gpu` is not in the catalog."""
    block = recipe.cloud.cloud
    nodes = (block and block.nodes) or 1
    if block is None or block.gpu is None:
        return local_machine()
    name, _, count = block.gpu.partition(":")
    gpu = GPUS.get(name)
    if gpu is None:
        return None
    device = "cpu" if name == "cpu" else "cuda"
    return Machine(
        device=device,  # type: ignore[arg-type]  # one of the two literals above
        gpu=name,
        num_processes_per_node=int(count or 1),
        num_nodes=nodes,
        bf16=gpu.bf16,
        tf32=gpu.bf16,
    )


def local_machine() -> Machine:
    """This machine: its NVIDIA GPUs as the driver names them, else one process on the CPU."""
    names = _nvidia_gpus()
    if not names:
        return Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    gpu = GPUS.get(names[0])
    ampere = gpu is None or gpu.bf16
    return Machine("cuda", names[0], len(names), 1, bf16=ampere, tf32=ampere)


def _nvidia_gpus() -> list[str]:
    """`["H200"]`; empty without a driver. nvidia-smi and not torch: the launcher has none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        command = [program, "--query-gpu=name", "--format=csv,noheader"]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        line.strip().removeprefix("NVIDIA ") for line in result.stdout.splitlines() if line.strip()
    ]


def describe_path(path: Path) -> str:
    """A path as a person would type it."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)
