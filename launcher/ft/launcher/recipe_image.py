"""Recipe -> the image that its run gets, without its data, its model or a machine: none of them is in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ft.images import bundle
from ft.images.dockerfile import SOURCE_FILE, dockerfile
from ft.images.resolve import image_for
from ft.images.spec import ImageSpec
from ft.launcher.backends.base import user_of_image
from ft.launcher.backends.registry import backend as load_backend
from ft.recipes import rules
from ft.recipes.errors import RecipeError, Severity, UsageError
from ft.recipes.facts import Facts
from ft.recipes.load import load
from ft.recipes.normalize import Normalized, normalize
from ft.recipes.schema.cloud import CloudBlock, gpu_choices

VARIANTS: Final = {"train": "cuda", "cpu": "cpu"}
"""Name for people -> device."""
SHOWN_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class RecipeImage:
    """The image of a recipe, and why it is this one."""

    normalized: Normalized
    spec: ImageSpec
    variant: str
    why: str
    """What decided the variant."""

    @property
    def tag(self) -> str:
        """How a builder calls it: by its content, so that the same name is the same image."""
        return f"ft:{self.spec.content_hash[:SHOWN_DIGITS]}"


def image_of(
    path: str, overrides: Sequence[str] = (), *, variant: str | None = None
) -> RecipeImage:
    """The image that a backend with images would run `path` in.

    Without `cloud.gpu` and without `variant` it is the one for GPUs, whatever this machine has. Where `cloud.backend`
    takes it from a registry, the container is root's.
    Raises: RecipeError with what is wrong beyond files and machines, PlanError if no image can hold it, UsageError.
    """
    if variant is not None and variant not in VARIANTS:
        raise UsageError(f"--variant {variant}: expected {' or '.join(VARIANTS)}")
    normalized = normalize(load(path, overrides))
    report = rules.check(normalized, Facts())
    if report.of(Severity.ERROR):
        raise RecipeError(report.problems)
    flat = normalized.flat
    block = flat.cloud.cloud or CloudBlock()
    choice = next(gpu_choices(block.gpu), None)
    if variant is not None:
        why = f"--variant {variant}"
    elif choice is not None:
        variant, why = "cpu" if choice.name == "cpu" else "train", "cloud.gpu"
    else:
        variant, why = "train", "the recipe names no GPU"
    device: Literal["cpu", "cuda"] = "cpu" if variant == "cpu" else "cuda"
    spec = image_for(
        device=device,
        num_nodes=block.nodes or 1,
        attn_implementation=flat.model.attn_implementation or "sdpa",
        source_sha256=bundle.source_digest(),
        additions=block.image,
        user=user_of_image(load_backend(block.backend or "local").capabilities),
    )
    return RecipeImage(normalized, spec, variant, why)


def write_context(spec: ImageSpec, folder: Path) -> None:
    """All that a build may see: the Dockerfile and the source."""
    (folder / "Dockerfile").write_text(dockerfile(spec), encoding="utf-8")
    (folder / SOURCE_FILE).write_bytes(bundle.bundle_bytes())
