"""The one block that is ours: where the run goes."""

import re
from typing import Annotated, Final, Literal

from ft.recipes.schema.base import Section, implemented, limits

DURATION: Final = re.compile(r"([1-9][0-9]*)([smhd])")
UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(value: int | str) -> int:
    """Seconds of a number of seconds, or of `90m`, `6h`, `1d`. Raises: ValueError if it is neither."""
    if isinstance(value, int):
        return value
    found = DURATION.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no duration: expected seconds, or 90m, 6h, 1d")
    return int(found[1]) * UNIT_S[found[2]]


class CloudBlock(Section):
    """`cloud:` in a recipe."""

    backend: Literal["local", "modal", "sky"] | None = implemented(default="local", runs=("local",))
    """Where the run goes. Default: `local`."""
    gpu: str | None = implemented(pattern=r"^[A-Za-z0-9-]+(:[1-9][0-9]{0,3})?$")
    """Accelerators per machine, `NAME:COUNT`: `H100:8`, or `cpu:2` for two processes on the CPU.
    Default on `local`: what the machine has."""
    nodes: int | None = implemented(ge=1)
    """Machines. Default: 1."""
    store: str | None = None
    """Folder that holds the run: plan, inputs, checkpoints, status. Default: the user's data folder."""

    timeout: (
        Annotated[int, limits(ge=1)] | Annotated[str, limits(pattern=r"^[1-9][0-9]*[smhd]$")] | None
    ) = None
    """Longest time of one attempt: seconds, or `90m`, `6h`, `1d`. Shortly before, the run saves and a new
    attempt goes on from there. Default: no limit on `local`."""
    max_cost: float | None = implemented(gt=0)
    """US dollars for the whole run, all attempts together. Shortly before, the run saves and ends.
    Needs `price_per_hour` where the backend has no price. Default: no limit."""
    price_per_hour: float | None = implemented(gt=0)
    """US dollars for an hour of all machines of the run. Default: the backend's price; unknown on `local`."""


class CloudKeys(Section):
    """Where the run goes."""

    cloud: CloudBlock | None = None
    """Backend, machines and store of the run."""
