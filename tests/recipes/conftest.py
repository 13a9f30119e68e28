"""Axolotl's public recipes, where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

AXOLOTL = Path(__file__).resolve().parents[3] / "shared" / "axolotl"


@pytest.fixture(scope="session")
def axolotl() -> Path:
    """Folder with `examples/` and `normalized.json`."""
    if not AXOLOTL.is_dir():
        pytest.skip("Axolotl's recipes are not beside this checkout (../shared/axolotl)")
    return AXOLOTL
