"""RunPlan -> ImageSpec. Pure: the plan and the digest of the source decide, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ft.images import pins
from ft.images.dockerfile import SOURCE_ROOT
from ft.images.spec import ImageSpec
from ft.recipes.errors import PlanError

if TYPE_CHECKING:
    from ft.recipes.plan import RunPlan
    from ft.recipes.schema.cloud import ImageAdditions

_OUR_BASE: Final = pins.BASE_IMAGE.format(python=pins.PYTHON)
ENV = (
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("PYTHONPATH", SOURCE_ROOT),
    ("PYTHONUNBUFFERED", "1"),
)


def resolve(
    plan: RunPlan,
    *,
    source_sha256: str,
    additions: ImageAdditions | None = None,
    user: Literal["ft", "root"] = "ft",
) -> ImageSpec:
    """The image for `plan`. `source_sha256` is `bundle.source_digest()`, `additions` the recipe's `cloud.image`.

    Two plans that differ only in what they train (data, batch, steps) share an image.
    Raises: PlanError if no image can hold what the plan asks for.
    """
    return image_for(
        device=plan.parallel.device,
        num_nodes=plan.parallel.num_nodes,
        attn_implementation=plan.model.attn_implementation,
        source_sha256=source_sha256,
        additions=additions,
        user=user,
    )


def image_for(
    *,
    device: Literal["cpu", "cuda"],
    num_nodes: int,
    attn_implementation: str,
    source_sha256: str,
    additions: ImageAdditions | None = None,
    user: Literal["ft", "root"] = "ft",
) -> ImageSpec:
    """All that an image depends on. Raises: PlanError if no image can hold it."""
    if attn_implementation == "flash_attention_2":
        raise PlanError(
            "attn_implementation flash_attention_2: no image has flash attention yet",
            hint="use attn_implementation: sdpa, which needs no extra package",
        )
    base, _, digest = ((additions and additions.base) or _OUR_BASE).partition("@")
    try:
        return ImageSpec(
            device=device,
            base_image=base,
            base_digest=digest or None,
            python=pins.PYTHON,
            apt=_apt(device=device, num_nodes=num_nodes),
            lock=f"{device}-torch{pins.TORCH}-py{pins.PYTHON}",
            torch=f"torch=={pins.TORCH}",
            requirements=_exactly(pins.TRAIN),
            locked=pins.locked(pins.PYTHON),
            # Nobody types `ft` in a container that a vendor starts.
            command_line=_exactly(pins.COMMAND_LINE) if user == "ft" else (),
            user=user,
            more_apt=(additions and additions.apt) or (),
            more_pip=(additions and additions.pip) or (),
            commands=(additions and additions.commands) or (),
            env=ENV,
            source_sha256=source_sha256,
        )
    except ValueError as error:
        raise PlanError(f"cloud.image: {error}") from error


def _exactly(versions: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}=={version}" for name, version in versions.items())


def _apt(*, device: str, num_nodes: int) -> tuple[str, ...]:
    if device == "cpu":
        return pins.APT
    return pins.APT + pins.APT_CUDA + (pins.APT_MULTI_NODE if num_nodes > 1 else ())
