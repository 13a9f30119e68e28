"""Keys about the finished model: its files, the merge, the hub."""

from typing import Literal

from ft.recipes.schema.base import Section, planned


class ExportKeys(Section):
    """What becomes of the result."""

    save_safetensors: bool | None = planned(default=True)
    """Write weights as safetensors; Axolotl refuses `false` as well. Default: `true`."""
    merge_method: Literal["memory_efficient", "legacy"] | None = planned(default="memory_efficient")
    """How an adapter is merged: file by file, or with the whole model in memory.
    Default: `memory_efficient`."""
    hub_model_id: str | None = planned(min_length=1)
    """Repository on the hub that the result and its checkpoints are pushed to. Default: nothing is pushed."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] | None = planned(
        default="every_save"
    )
    """What is pushed, and when; read with `hub_model_id`. Default: `every_save`."""
    hub_revision: str | None = planned(min_length=1)
    """Branch on the hub that is pushed to. Default: the hub's main branch."""
