"""Every recipe key, once: `SECTION_OF` says in which section it lives."""

from typing import Any, Final, Self

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

    model: ModelKeys
    data: DataKeys
    method: MethodKeys
    adapter: AdapterKeys
    quantization: QuantizationKeys
    kernels: KernelKeys
    parallel: ParallelKeys
    optim: OptimKeys
    checkpoint: CheckpointKeys
    tracking: TrackingKeys
    export: ExportKeys
    run: RunKeys
    cloud: CloudKeys
    plugin: dict[str, Section]
    """Sections of the plugins that the recipe lists."""

    @classmethod
    def model_validate(cls, values: object) -> Self:
        """The recipe of `{section: {key: value}}`; a section that is not there is empty. Raises: MismatchError."""
        given = values if isinstance(values, dict) else {}
        plugins: dict[str, Any] = given.get(PLUGIN, {})
        empty: dict[str, Any] = {name: {} for name in SECTIONS}
        return (
            super()
            .model_validate({**empty, **given, PLUGIN: {}})
            .with_plugins(
                {
                    name: keys
                    if isinstance(keys, Section)
                    else PLUGIN_SECTIONS[name].model_validate(keys)
                    for name, keys in plugins.items()
                }
            )
        )

    def with_plugins(self, plugins: dict[str, Section]) -> Self:
        """This recipe with the sections of the plugins that it lists."""
        return self.model_construct(
            **{name: getattr(self, name) for name in SECTIONS}, plugin=plugins
        )

    def sections(self) -> dict[str, Section]:
        """Name -> section; those of plugins last, as `plugin.NAME`."""
        core = {name: getattr(self, name) for name in SECTIONS}
        return core | {f"{PLUGIN}.{name}": keys for name, keys in self.plugin.items()}

    def flat(self) -> dict[str, Any]:
        """What `ft resolve` prints: key -> JSON value in the order of the sections; unset keys are absent."""
        flat: dict[str, Any] = {}
        for section in self.sections().values():
            if section.model_fields_set:
                flat |= section.model_dump(mode="json", exclude_none=True)
        return flat


SECTIONS: Final[dict[str, type[Section]]] = {
    name: field.annotation for name, field in FlatRecipe.model_fields.items() if name != PLUGIN
}
SECTION_OF: Final[dict[str, str]] = {
    key: name for name, section in SECTIONS.items() for key in section.model_fields
}
