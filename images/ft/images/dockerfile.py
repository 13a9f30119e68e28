"""ImageSpec -> Dockerfile. What changes rarely comes first: a new source rebuilds one layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ft.images.spec import ImageSpec

SOURCE_FILE: Final = "ft-source.tar"
"""Name of `bundle.bundle_bytes()` in the build context."""
SOURCE_ROOT: Final = "/opt/ft-source"
"""Where it is unpacked; stands in PYTHONPATH."""

_INDENT = " \\\n    "
_PIP_INSTALL = "python -m pip install --no-cache-dir --disable-pip-version-check"


def dockerfile(spec: ImageSpec) -> str:
    """Dockerfile text, a function of `spec` alone. Its context needs one file: `SOURCE_FILE`."""
    return "\n".join(f"{line}\n" for line in _instructions(spec))


def _instructions(spec: ImageSpec) -> Iterator[str]:
    yield f"# {spec.lock}, image {spec.content_hash}"
    yield f"FROM {spec.base}"
    if spec.apt:
        yield (
            f"RUN apt-get update && apt-get install -y --no-install-recommends{_list(spec.apt)}"
            " \\\n    && rm -rf /var/lib/apt/lists/*"
        )
    if spec.device == "cpu":
        yield (
            "# With an index of CPU builds torch comes without CUDA. No passwords in its address:\n"
            "# build arguments stay readable in the image.\n"
            "ARG PIP_EXTRA_INDEX_URL"
        )
    yield f"RUN {_PIP_INSTALL}{_list([spec.torch])}"
    if spec.device == "cuda":
        yield (
            "# A CPU build would be found out only when the GPUs are already paid for.\n"
            "RUN python -c 'import torch; assert torch.version.cuda, torch.__version__'"
        )
    if spec.requirements:
        yield f"RUN {_PIP_INSTALL}{_list([spec.torch, *spec.requirements])}"
    for name, value in spec.env:
        yield f"ENV {name}={_quoted(value)}"
    yield f'LABEL ft.image="{spec.content_hash}" ft.source="{spec.source_sha256}"'
    yield f"ADD {SOURCE_FILE} {SOURCE_ROOT}/"


def _list(words: Iterable[str]) -> str:
    return "".join(f"{_INDENT}{word}" for word in words)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
