"""The recipes of the gallery: they run as they are, and what their headers say follows from their keys."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.layout import total_steps
from ft.recipes.load import load
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.plan import RunPlan
from ft.recipes.references import references
from ft.recipes.resolve import resolve
from ft.recipes.rules import check
from ft.recipes.schema import SECTION_OF, SECTIONS
from ft.recipes.schema.cloud import gpu_choices
from ft.recipes.schema.jsonschema import recipe_schema

GALLERY = Path(str(files("ft.recipes") / "gallery"))
PATHS = sorted(GALLERY.glob("*/*.yml"))
FIRST = "smollm2/135m-lora-sft"
"""Brings its own rows; the first run, on any machine."""
SCHEMA_COMMENT = "# yaml-language-server: $schema=../schema.json"
SCHEMA_COMMAND = "ft schema --json > recipes/ft/recipes/gallery/schema.json"
"""Writes the file that the comment names, from the root of the checkout."""
LABEL = re.compile(r"# (?P<label>[A-Z][A-Za-z ]*):\s+(?P<text>.+)")


def name_of(path: Path) -> str:
    return path.relative_to(GALLERY).with_suffix("").as_posix()


every_recipe = pytest.mark.parametrize("path", PATHS, ids=name_of)
from_the_hub = pytest.mark.parametrize(
    "path", [path for path in PATHS if name_of(path) != FIRST], ids=name_of
)


def comment(path: Path) -> list[str]:
    """The lines of the comment at the top, the first two of which have places of their own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]


def header(path: Path) -> dict[str, str]:
    """Label -> what it says, in one line; the lines of `Run` stay apart."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in comment(path)[2:]:
        match = LABEL.fullmatch(line)
        if match:
            lines = found.setdefault(match["label"], [])
        if line != "#":
            lines.append(match["text"] if match else line.removeprefix("#").strip())
    return {label: ("\n" if label == "Run" else " ").join(texts) for label, texts in found.items()}


def facts_of(normalized: Normalized, folder: Path) -> Facts:
    """The GPU that the recipe names; files where they lie beside it, everything else on the hub."""
    found: dict[KeyPath, FileFact | None] = {}
    for reference in references(normalized.flat):
        path = folder / reference.value
        is_here = path.is_file()
        size = path.stat().st_size if is_here else 0
        fact = FileFact(reference.kind, path, path.name, "0" * 64, size)
        found[reference.key] = fact if is_here else None
    block = normalized.flat.cloud.cloud
    named = next(gpu_choices(block.gpu if block else None), None)
    gpu = GPUS[named.name if named else "cpu"]
    machine = Machine(
        "cpu" if gpu.name == "cpu" else "cuda", gpu.name, 1, 1, bf16=gpu.bf16, tf32=gpu.bf16
    )
    return Facts(files=found, machine=machine, machine_is_named=True)


def plan_of(path: Path) -> RunPlan:
    normalized = normalize(load(path))
    return resolve(normalized.flat, facts_of(normalized, path.parent))


def test_there_is_one_for_each_family_and_size() -> None:
    assert 12 <= len(PATHS) <= 15
    families = {path.parent.name for path in PATHS}
    assert families >= {"smollm2", "qwen2.5", "qwen3", "llama-3", "mistral"}
    assert {path.stem.split("-")[-2] for path in PATHS} == {"lora", "full"}


@every_recipe
def test_nothing_is_wrong_with_it_and_all_of_it_runs(path: Path) -> None:
    normalized = normalize(load(path))
    # Those of `normalize` are among them.
    assert check(normalized, facts_of(normalized, path.parent)).problems == ()
    plan_of(path)


@every_recipe
def test_its_name_says_what_it_does(path: Path) -> None:
    match = re.fullmatch(
        r"(?P<size>[a-z0-9.-]*?[0-9.]+[bm](-v[0-9.]+)?)-(?P<how>lora|full)-sft", path.stem
    )
    assert match is not None
    plan = plan_of(path)
    assert plan.adapter.adapter == match["how"]
    model = plan.model.base_model.lower()
    [*numbers] = re.findall(r"[0-9.]+", match["size"])
    # phi-4 does not say how large it is.
    assert "phi-4" in model or all(number in model for number in numbers)
    assert path.parent.name.replace("llama-3", "llama") in model
    recipe = normalize(load(path)).flat
    folder = "smollm2-dates" if name_of(path) == FIRST else name_of(path).replace("/", "-")
    assert recipe.checkpoint.output_dir == f"./outputs/{folder}"


@every_recipe
def test_its_keys_are_in_the_order_of_the_sections(path: Path) -> None:
    keys = re.findall(r"^([a-z_0-9]+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    sections = list(SECTIONS)
    places = [sections.index(SECTION_OF[key]) for key in keys]
    assert places == sorted(places)


@every_recipe
def test_its_header_answers_what_one_asks(path: Path) -> None:
    lines = comment(path)
    assert lines[0] == SCHEMA_COMMENT
    title = lines[1].removeprefix("# ")
    assert title and not LABEL.fullmatch(lines[1])
    said = [line for line in lines[1:] if line != "#"]
    assert 6 <= len(said) <= 12
    assert max(map(len, lines)) <= 110
    labels = set(header(path))
    assert labels >= {"What for", "Expect", "Run", "Change"}
    assert len(labels & {"GPU", "Machine"}) == 1
    copies, runs = header(path)["Run"].splitlines()
    assert copies == f"ft recipes copy {name_of(path)}"
    assert re.fullmatch(rf"ft (cloud run|train) {re.escape(path.name)}", runs)
    keys = re.findall(r"`([a-z_]+)", header(path)["Change"])
    assert 2 <= len(keys) <= 4
    assert [key for key in keys if key not in SECTION_OF] == []


@from_the_hub
def test_the_gpu_of_the_header_is_that_of_the_recipe_and_large_enough(path: Path) -> None:
    recipe, text = normalize(load(path)).flat, header(path)["GPU"]
    assert recipe.cloud.cloud is not None
    gpu = GPUS[next(gpu_choices(recipe.cloud.cloud.gpu)).name]
    assert text.startswith((f"{gpu.name}. ", f"{gpu.name} with {gpu.memory_gib} GB. "))
    assert "computed, not measured" in text
    [peak] = re.findall(r"Peak (\d+) GiB", text)
    # A vendor's GB is less than a GiB; CUDA and fragments of memory want their share.
    assert float(peak) < 0.8 * gpu.memory_gib * 1e9 / 2**30


@from_the_hub
def test_the_numbers_of_a_step_are_those_of_the_keys(path: Path) -> None:
    recipe, plan, text = normalize(load(path)).flat, plan_of(path), header(path)["Expect"]
    batch = plan.global_batch_size
    tokens = batch * plan.data.sequence_len
    held_out = plan.data.val_set_size
    if plan.optim.max_steps is not None:
        steps = f"{plan.optim.max_steps:,} steps"
    else:
        [dataset] = plan.data.datasets
        [rows] = re.findall(r"train\[:(\d+)\]", dataset.split)
        assert held_out > 1
        count = total_steps(int(rows) - int(held_out), batch, plan.optim.num_epochs, None)
        steps = f"at most {count:,} steps"
    assert f"A step is {batch} rows, at most {tokens:,} tokens; {steps}." in text
    # Whoever takes a checkpoint out of the middle knows what it was worth.
    every = plan.checkpoint.save_steps
    assert every == plan.checkpoint.eval_steps
    assert held_out
    assert f"Saves and tells the held-out loss every {every} steps" in text
    gated = path.parent.name == "llama-3"
    assert ("is gated" in text) == gated
    assert recipe.optim.seed is not None


@from_the_hub
def test_weights_that_are_all_trained_are_kept_in_fp32(path: Path) -> None:
    # In bf16 a step of 2e-5 is less than half of the last bit of most weights, and lost.
    plan = plan_of(path)
    assert plan.model.bf16 == (plan.adapter.adapter == "lora")


def test_the_schema_beside_the_recipes_is_up_to_date() -> None:
    written = json.loads((GALLERY / "schema.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(recipe_schema())), f"run `{SCHEMA_COMMAND}`"
