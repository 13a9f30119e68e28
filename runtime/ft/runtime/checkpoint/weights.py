"""Weights on disk."""

from __future__ import annotations

from pathlib import Path

import torch


def save_weights(model: torch.nn.Module, folder: Path) -> None:
    """The adapter, or all weights, as safetensors. No model card: it would name a folder of this machine."""
    model.save_pretrained(folder)  # type: ignore[operator]  # PreTrainedModel and PeftModel both have it
    (folder / "README.md").unlink(missing_ok=True)
