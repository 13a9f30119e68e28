"""Keys about what is optimised: the training method."""

from __future__ import annotations

from ft.recipes.schema.base import Section


class MethodKeys(Section):
    """How the model learns. Empty for now: supervised fine-tuning is what a recipe without `rl:` means."""
