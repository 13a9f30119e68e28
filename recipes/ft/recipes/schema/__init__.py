"""Every recipe key, once: `SECTION_OF` says in which section it lives."""

from __future__ import annotations

from typing import Final

from ft.recipes.schema.adapter import AdapterKeys
from ft.recipes.schema.base import Section
from ft.recipes.schema.checkpoint import CheckpointKeys
from ft.recipes.schema.cloud import CloudKeys
from ft.recipes.schema.data import DataKeys
from ft.recipes.schema.method import MethodKeys
from ft.recipes.schema.model import ModelKeys
from ft.recipes.schema.optim import OptimKeys
from ft.recipes.schema.parallel import ParallelKeys


class FlatRecipe(Section):
    """A recipe in current spelling, typed, nothing decided: what is not set is `None`, `auto` stays `auto`."""

    model: ModelKeys = ModelKeys()
    data: DataKeys = DataKeys()
    method: MethodKeys = MethodKeys()
    adapter: AdapterKeys = AdapterKeys()
    parallel: ParallelKeys = ParallelKeys()
    optim: OptimKeys = OptimKeys()
    checkpoint: CheckpointKeys = CheckpointKeys()
    cloud: CloudKeys = CloudKeys()

    def flat(self) -> dict[str, object]:
        """What `ft resolve` prints: key -> JSON value in the order of the sections; unset keys are absent."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        return {key: value for section in dumped.values() for key, value in section.items()}


SECTIONS: Final[dict[str, type[Section]]] = {
    name: field.annotation  # type: ignore[misc]  # every field of FlatRecipe is a Section class
    for name, field in FlatRecipe.model_fields.items()
}
SECTION_OF: Final[dict[str, str]] = {
    key: name for name, section in SECTIONS.items() for key in section.model_fields
}
