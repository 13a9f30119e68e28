"""Versions that an image is built with, as data. A test compares them with `constraints.txt`."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

PYTHON: Final = "3.11"
BASE_IMAGE: Final = "python:{python}-slim-bookworm"
"""CUDA comes with torch's own wheels, the driver from the host: no CUDA base image is needed."""

TORCH: Final = "2.13.0"
"""Without a local version (`+cpu`), so that an index that offers the smaller build may serve it."""

TRAIN: Final[dict[str, str]] = {
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "fastokens": "0.3.5",
    "huggingface-hub": "2.4.0",
    "jinja2": "3.1.6",
    "numpy": "2.4.6",
    "obstore": "0.12.1",
    "orjson": "3.13.0",
    "peft": "0.21.2",
    "pyarrow": "26.0.1",
    "pydantic": "2.14.3",
    "pyyaml": "6.0.3",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "transformers": "5.23.0",
    "trl": "1.16.0",
}
"""What the runtime imports, and what decides the numbers below it."""


def locked(python: str) -> tuple[str, ...]:
    """`TRAIN` and all below it but torch's own, with hashes that the package index gave."""
    text = (files("ft.images") / "locks" / f"py{python}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


COMMAND_LINE: Final[dict[str, str]] = {"rich": "15.0.0", "typer": "0.29.2"}
"""What `ft` imports where somebody types it; a run in the cloud needs neither."""

APT: Final = ("ca-certificates",)
APT_CUDA: Final = ("gcc", "libc6-dev")
"""Triton compiles a small C launcher for each kernel at run time."""
APT_MULTI_NODE: Final = ("ibverbs-providers", "libibverbs1")
"""NCCL opens them by name; without them it falls back to TCP in silence."""
