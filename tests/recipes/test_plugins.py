"""Keys of plugins: Axolotl's own, and those that a user's installed package declares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ft.recipes.errors import Severity
from ft.recipes.load import loads
from ft.recipes.normalize import Normalized, normalize

LIGER = "plugins: [axolotl.integrations.liger.LigerPlugin]\n"


def of(text: str) -> Normalized:
    return normalize(loads(text, source="r.yml"))


def said(text: str) -> list[tuple[Severity, str]]:
    return [(problem.severity, str(problem)) for problem in of(text).problems]


def test_a_key_of_a_plugin_counts_where_the_plugin_is_listed() -> None:
    assert of(LIGER + "liger_rope: true").flat.flat() == {
        "plugins": ["axolotl.integrations.liger.LigerPlugin"],
        "liger_rope": True,
    }
    assert said("liger_rope: true") == [
        (
            Severity.ERROR,
            "r.yml:1: liger_rope: belongs to a plugin. Add `- axolotl.integrations.liger.LigerPlugin` to `plugins`.",
        )
    ]
    assert said("liger_rope: false") == []


def test_a_key_of_a_plugin_is_typed_like_any_other() -> None:
    ((severity, text),) = said(LIGER + "liger_rope: maybe")
    assert (severity, text) == (
        Severity.ERROR,
        "r.yml:2: liger_rope: expected true or false, got 'maybe'",
    )


def test_a_misspelt_plugin_is_named() -> None:
    assert said("plugins: [axolotl.integrations.ligr.LigerPlugin]") == [
        (
            Severity.ERROR,
            "r.yml:1: plugins.0: no plugin of Axolotl. Did you mean `axolotl.integrations.liger.LigerPlugin`?",
        )
    ]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip installs it: a module, and beside it its metadata with entry points."""
    (tmp_path / "my_keys.py").write_text(
        '''
from ft.recipes.schema.base import Section, planned

class MyKeys(Section):
    my_weight: float | None = planned(ge=0)
    """Weight of my loss. Default: none."""

class Taken(Section):
    lora_r: int | None = planned()

no_section = 3
'''
    )
    info = tmp_path / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ft.recipes.plugins]\nmy_pkg.MyPlugin = my_keys:MyKeys\nmy_pkg.Taken = my_keys:Taken\n"
        "my_pkg.Gone = my_keys:Gone\nmy_pkg.Three = my_keys:no_section\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_keys", None)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_a_package_adds_a_section_by_an_entry_point() -> None:
    recipe = "plugins: [my_pkg.MyPlugin]\nmy_weight: "
    assert of(recipe + "0.5").flat.flat() == {"plugins": ["my_pkg.MyPlugin"], "my_weight": 0.5}
    assert said(recipe + "-1")[-1] == (
        Severity.ERROR,
        "r.yml:2: my_weight: expected greater than or equal to 0, got -1",
    )
    assert said("plugins: [my_pkg.MyPlugin]\nmy_wieght: 1")[-1] == (
        Severity.ERROR,
        "r.yml:2: my_wieght: unknown key. Did you mean `my_weight`?",
    )
    # Nobody calls it yet, so nothing may run that lists it.
    assert (
        Severity.PLANNED,
        "r.yml:1: plugins.0: not runnable yet: this version of ft calls no plugins of users",
    ) in said(recipe + "0.5")


@pytest.mark.usefixtures("package")
def test_a_package_that_the_recipe_does_not_list_is_not_imported() -> None:
    of("base_model: x\nplugins: [axolotl.integrations.liger.LigerPlugin]")
    assert "my_keys" not in sys.modules
    assert [text for _, text in said("my_weight: 1")] == ["r.yml:1: my_weight: unknown key."]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        ("Taken", "declares keys that are there already: lora_r"),
        ("Gone", "cannot be imported: AttributeError: module 'my_keys' has no attribute 'Gone'"),
        ("Three", "my_keys:no_section is no class made from ft.recipes.schema.base.Section"),
    ],
)
def test_a_package_that_cannot_be_used_says_why(plugin: str, expected: str) -> None:
    assert said(f"plugins: [my_pkg.{plugin}]") == [
        (Severity.ERROR, f"r.yml:1: plugins.0: {expected}")
    ]


def test_a_plugin_that_nobody_knows_is_not_runnable_yet() -> None:
    ((severity, text),) = said("plugins: [my_pkg.Unknown]")
    assert severity is Severity.PLANNED
    assert text.startswith("r.yml:1: plugins.0: not runnable yet: a plugin that declares no keys")
