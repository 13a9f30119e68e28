"""What a rule and `resolve` may know beyond the recipe. Each fact may be unknown: None, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from ft.recipes.errors import KeyPath


@dataclass(frozen=True, slots=True)
class FileFact:
    """A local file or folder that the recipe refers to."""

    kind: Literal["data", "model", "template"]
    path: Path | None
    """Where it lies on this laptop; None: it should be there and is not."""
    name: str = ""
    """Its name in `inputs/`; empty until it was hashed."""
    sha256: str = ""
    size: int = 0
    """Bytes."""
    num_rows: int | None = None
    """Rows of a JSON Lines file; None where counting would need a reader."""
    complaints: tuple[str, ...] = ()
    """Why a run would certainly refuse it; whole sentences that name the file, and the row."""


@dataclass(frozen=True, slots=True)
class IncludedFile:
    """A file that `cloud.include` names."""

    path: str
    """Where the run finds it, from its working directory; with forward slashes."""
    source: Path
    """Where it lies on this laptop."""
    size: int
    """Bytes."""
    is_executable: bool
    sha256: str = ""
    """Empty until it was hashed."""


@dataclass(frozen=True, slots=True)
class Included:
    """All that `cloud.include` names: one folder of the run."""

    files: tuple[IncludedFile, ...]
    """Sorted by the parts of their paths, each once."""
    complaints: tuple[tuple[KeyPath, str], ...] = ()
    """What cannot go along: the entry, and a whole sentence with the reason and the way out."""
    name: str = ""
    """Its name in `inputs/`; empty until it was hashed."""
    sha256: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machines that the run will get, all of one kind."""

    device: Literal["cpu", "cuda"]
    gpu: str
    num_processes_per_node: int
    num_nodes: int
    bf16: bool
    tf32: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """`files`: key of the recipe -> file, or None for a hub id. `model_config`: the model's `config.json`."""

    files: Mapping[KeyPath, FileFact | None] | None = None
    included: Included | None = None
    """What `cloud.include` names; None where it names nothing, or nobody has looked."""
    model_config: Mapping[str, Any] | None = None
    machine: Machine | None = None
    machine_is_named: bool = True
    """Whether the recipe says where it runs; else `machine` is the one where somebody looks at it."""
    price_per_hour: float | None = None
    """US dollars for an hour of all machines by the backend's own list; the recipe's price goes before it."""
    secrets: Mapping[str, bool] | None = None
    """Name of a secret that the recipe asks for -> whether this machine's environment has it. Never its value."""
    today: date = field(default_factory=date.today)
    """Chat templates may write the day, and every attempt of a run has to write the same."""
    notes: tuple[str, ...] = field(default=())
    """What could not be found out, and why."""
