"""The real tokenizer of the small model."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def smollm2(repo: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with its own chat template; one per module, so that no test sees another's changes."""
    folder = repo / ".quickstart" / "SmolLM2-135M-Instruct"
    if not (folder / "tokenizer.json").is_file():
        pytest.fail(f"{folder} is missing: run `make model`")
    return AutoTokenizer.from_pretrained(folder)
