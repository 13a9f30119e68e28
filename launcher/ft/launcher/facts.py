"""Gathers Facts: files, the model's config.json, the machine. The only laptop I/O on the way to a plan."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ft.launcher import secrets
from ft.launcher.included import Entry, find
from ft.launcher.inputs import describe, described
from ft.launcher.samples import complaints
from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath
from ft.recipes.facts import Facts, FileFact, Included, Machine
from ft.recipes.load import resolve_path
from ft.recipes.normalize import Normalized
from ft.recipes.references import Reference, references
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.cloud import CloudBlock, gpu_choices
from ft.recipes.secrecy import names_a_secret

PROBE_TIMEOUT_S = 10.0
AMPERE = 8
DRIVER_NAMES: Final[Mapping[str, str]] = {
    "GeForce RTX 3090": "RTX3090",
    "GeForce RTX 4090": "RTX4090",
    "GeForce RTX 5090": "RTX5090",
    "RTX 6000 Ada Generation": "RTX6000-Ada",
    "RTX A6000": "A6000",
    "RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "RTX PRO 6000 Blackwell Workstation Edition": "RTX-PRO-6000",
    "RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX-PRO-6000",
}
"""The driver's name where it does not begin with ours -> ours. Whole names: a `GeForce RTX 3090 Ti` or a `GeForce
RTX 4090 Laptop GPU` is another card."""


def gather(normalized: Normalized, *, hashed: bool, here: bool) -> Facts:
    """Look at what the recipe refers to. Without `hashed`, only the first rows of data are read: enough to check.

    `here`: the run will go to this machine if the recipe names none.
    """
    flat = normalized.flat
    files = {ref.key: _file(ref, normalized, hashed=hashed) for ref in references(flat)}
    block = flat.cloud.cloud
    included = _included(normalized)
    if included is not None and hashed:
        included = described(included)
    return Facts(
        files=files,
        included=included,
        model_config=_model_config(files),
        machine=machine_for(flat),
        machine_is_named=here or (block is not None and block.gpu is not None),
        price_per_hour=_price_per_hour(block),
        secrets=secrets_here(flat, os.environ),
    )


def _included(normalized: Normalized) -> Included | None:
    block = normalized.flat.cloud.cloud
    if block is None or not block.include:
        return None
    here = Path.cwd()
    entries = []
    for index, text in enumerate(block.include):
        key = ("cloud", "include", index)
        entries.append(Entry(key, text, (here, normalized.folder_of(key).absolute())))
    return find(entries)


def _price_per_hour(block: CloudBlock | None) -> float | None:
    """By the list of the backend that somebody named; a recipe without one needs no list to be read."""
    if block is None or (name := block.backend) is None:
        return None
    from ft.launcher.prices import price_for

    price = price_for(block, name)
    return price.usd_per_hour if price else None


def secrets_here(recipe: FlatRecipe, env: Mapping[str, str]) -> dict[str, bool]:
    """Each secret that the recipe names -> whether `env` has its value. What is no name is no secret's."""
    block = recipe.cloud.cloud
    names = [name for name in (block and block.secrets) or () if names_a_secret(name)]
    here, at_backend = secrets.split(names, env)
    found = {**dict.fromkeys(here, True), **dict.fromkeys(at_backend, False)}
    return {name: found[name] for name in names}


def _file(reference: Reference, normalized: Normalized, *, hashed: bool) -> FileFact | None:
    path = resolve_path(reference.value, normalized.folder_of(reference.key))
    if path is None:
        return FileFact(reference.kind, None) if reference.must_be_local else None
    if hashed:
        return describe(path, reference.kind)
    dataset = None
    if reference.kind == "data" and _rows_are_judged(normalized.flat):
        dataset = getattr(normalized.flat.data, str(reference.key[0]))[reference.key[1]]
    return FileFact(reference.kind, path, complaints=complaints(reference, path, dataset))


def _rows_are_judged(recipe: FlatRecipe) -> bool:
    """Whether a row that its format cannot read ends the run; preferences and scores have other columns."""
    method = recipe.method
    scored = method.rl or method.reward_model or method.process_reward_model
    return not scored and recipe.data.on_bad_row != "skip"


def _model_config(files: Mapping[KeyPath, FileFact | None]) -> Mapping[str, Any] | None:
    fact = files.get(("base_model_config",)) or files.get(("base_model",))
    if fact is None or fact.path is None:
        return None
    try:
        config = json.loads((fact.path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def machine_for(recipe: FlatRecipe) -> Machine | None:
    """The machine that `cloud.gpu` names, else this one; None where `cloud.gpu` is not in the catalog.

    Of several choices it is the first: they have as many GPUs each.
    """
    block = recipe.cloud.cloud
    nodes = (block and block.nodes) or 1
    choice = next(gpu_choices(block.gpu if block else None), None)
    if choice is None:
        return replace(local_machine(), num_nodes=nodes)
    gpu = GPUS.get(choice.name)
    if gpu is None:
        return None
    device = "cpu" if gpu.name == "cpu" else "cuda"
    return Machine(
        device=device,  # type: ignore[arg-type]  # one of the two literals above
        gpu=gpu.name,
        num_processes_per_node=choice.count,
        num_nodes=nodes,
        bf16=gpu.bf16,
        tf32=gpu.bf16,
    )


def local_machine() -> Machine:
    """This machine: its visible NVIDIA GPUs of the first one's kind, else one process on the CPU."""
    return machine_of(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def machine_of(listing: str, visible: str | None) -> Machine:
    """`listing` has a line `index, uuid, name, MiB, compute capability` per GPU; `visible` as CUDA reads it."""
    gpus = [
        [part.strip() for part in line.split(",")] for line in listing.splitlines() if line.strip()
    ]
    if visible is not None:
        wanted = [item.strip() for item in visible.split(",")]
        gpus = [
            gpu
            for gpu in gpus
            if gpu[0] in wanted or any(w and gpu[1].startswith(w) for w in wanted)
        ]
    if not gpus:
        return Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    _, _, name, mib, capability = gpus[0]
    # bfloat16 and TF32 came with Ampere, compute capability 8.
    ampere = capability.partition(".")[0].isdigit() and int(capability.partition(".")[0]) >= AMPERE
    count = sum(gpu[2] == name for gpu in gpus)
    return Machine("cuda", catalog_name(name, mib), count, 1, bf16=ampere, tf32=ampere)


def catalog_name(driver_name: str, mib: str) -> str:
    """`NVIDIA A100-SXM4-80GB` -> `A100-80GB`; a GPU that the catalog does not have keeps its own name."""
    short = driver_name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    if short in DRIVER_NAMES:
        return DRIVER_NAMES[short]
    family = re.split(r"[ -]", short)[0]
    # Only a size may follow: an `RTX A5000` is of no family, least of all of the RTX-PRO-6000's.
    names = [name for name in GPUS if re.fullmatch(rf"{re.escape(family)}(-\d+GB)?", name)]
    if len(names) > 1 and mib.isdigit():
        # The same chip with two sizes of memory: the nearer one.
        names.sort(key=lambda name: abs(GPUS[name].memory_gib - int(mib) / 1024))
    return names[0] if names else short


def _nvidia_smi() -> str:
    """What the driver says of its GPUs; empty without one. nvidia-smi and not torch: the launcher has none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    fields = "--query-gpu=index,uuid,name,memory.total,compute_cap"
    command = [program, fields, "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def describe_path(path: Path) -> str:
    """A path as a person would type it."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)
