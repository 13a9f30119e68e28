"""Every recipe key, once: `SECTION_OF` says in which section it lives."""

from typing import Any, Final

from pydantic import Field, SerializeAsAny, field_validator

from ft.recipes.schema.adapter import AdapterKeys
from ft.recipes.schema.base import Section
from ft.recipes.schema.checkpoint import CheckpointKeys
from ft.recipes.schema.cloud import CloudKeys
from ft.recipes.schema.data import DataKeys
from ft.recipes.schema.export import ExportKeys
from ft.recipes.schema.kernels import KernelKeys
from ft.recipes.schema.method import MethodKeys
from ft.recipes.schema.model import ModelKeys
from ft.recipes.schema.optim import OptimKeys
from ft.recipes.schema.parallel import ParallelKeys
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.schema.quantization import QuantizationKeys
from ft.recipes.schema.run import RunKeys
from ft.recipes.schema.tracking import TrackingKeys

PLUGIN: Final = "plugin"
"""The one field of a FlatRecipe that is no section of its own."""


class FlatRecipe(Section):
    """A recipe in current spelling, typed, nothing decided: what is not set is `None`, `auto` stays `auto`."""

    model: ModelKeys = Field(default_factory=ModelKeys.model_construct)
    data: DataKeys = Field(default_factory=DataKeys.model_construct)
    method: MethodKeys = Field(default_factory=MethodKeys.model_construct)
    adapter: AdapterKeys = Field(default_factory=AdapterKeys.model_construct)
    quantization: QuantizationKeys = Field(default_factory=QuantizationKeys.model_construct)
    kernels: KernelKeys = Field(default_factory=KernelKeys.model_construct)
    parallel: ParallelKeys = Field(default_factory=ParallelKeys.model_construct)
    optim: OptimKeys = Field(default_factory=OptimKeys.model_construct)
    checkpoint: CheckpointKeys = Field(default_factory=CheckpointKeys.model_construct)
    tracking: TrackingKeys = Field(default_factory=TrackingKeys.model_construct)
    export: ExportKeys = Field(default_factory=ExportKeys.model_construct)
    run: RunKeys = Field(default_factory=RunKeys.model_construct)
    cloud: CloudKeys = Field(default_factory=CloudKeys.model_construct)
    plugin: dict[str, SerializeAsAny[Section]] = Field(default_factory=dict)
    """Sections of the plugins that the recipe lists."""

    @field_validator(PLUGIN, mode="before")
    @classmethod
    def _typed_plugins(cls, value: dict[str, Any]) -> dict[str, Section]:
        return {
            name: keys if isinstance(keys, Section) else PLUGIN_SECTIONS[name].model_validate(keys)
            for name, keys in value.items()
        }

    def sections(self) -> dict[str, Section]:
        """Name -> section; those of plugins last, as `plugin.NAME`."""
        core = {name: getattr(self, name) for name in SECTIONS}
        return core | {f"{PLUGIN}.{name}": keys for name, keys in self.plugin.items()}

    def flat(self) -> dict[str, Any]:
        """What `ft resolve` prints: key -> JSON value in the order of the sections; unset keys are absent."""
        flat: dict[str, Any] = {}
        for section in self.sections().values():
            if section.model_fields_set:  # An empty one was never built, and need not be.
                flat |= section.model_dump(mode="json", exclude_none=True)
        return flat


SECTIONS: Final[dict[str, type[Section]]] = {
    name: field.annotation  # type: ignore[misc]  # every field of FlatRecipe but one is a Section class
    for name, field in FlatRecipe.model_fields.items()
    if name != PLUGIN
}
SECTION_OF: Final[dict[str, str]] = {
    key: name for name, section in SECTIONS.items() for key in section.model_fields
}
