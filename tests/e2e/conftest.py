"""A tiny model with random weights and a real tokenizer, and the `ft` command in homes of its own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
import sky_ground as sky_ground_module
from laptop import SMOLLM2, Lab, make_lab, make_tiny_model

HARNESS = Path(__file__).parent / "modal_server" / "harness.py"


def _load_harness() -> Any:
    spec = importlib.util.spec_from_file_location("modal_server_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # A dataclass looks for its module there.
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a server that is there already, skip what needs one of our own, before it starts anything."""
    harness = _load_harness()
    address = os.environ.get(harness.WHICH)
    if not address:
        return
    for item in items:
        if item.get_closest_marker("modal") and isinstance(item, pytest.Function):
            needed = sorted(_names_in(item.function) & harness.BEFORE)
            if needed:
                reason = f"needs {', '.join(needed)} of a loopback server of our own"
                item.add_marker(pytest.mark.skip(reason=reason))


def _names_in(function: Callable[..., Any]) -> set[str]:
    """Every global and attribute that a test names, or a function or a method of its module that it names."""
    module = function.__globals__
    classes = [
        v for v in module.values() if isinstance(v, type) and v.__module__ == function.__module__
    ]
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in set(code.co_names) - names:
            names.add(name)
            found = [module.get(name), *(vars(one).get(name) for one in classes)]
            codes += [f.__code__ for f in found if isinstance(f, FunctionType)]
    return names


@pytest.fixture(scope="session")
def modal_harness() -> Any:
    """What starts the loopback control plane of Modal, and asks it."""
    if importlib.util.find_spec("modal") is None:
        pytest.fail("modal is not installed here: pip install -e '.[modal]'")
    return _load_harness()


@pytest.fixture(scope="session")
def sky_lab() -> Iterator[Any]:
    """SkyPilot on a Slurm cluster on loopback, for all tests of a session; or the infra that the user names.

    This process is its client: `import sky` only after this.
    """
    if importlib.util.find_spec("sky") is None:
        pytest.fail("SkyPilot is not installed here: `make e2e-sky` has an environment of its own")
    with pytest.MonkeyPatch.context() as patch:
        lab = importlib.import_module("sky_lab.lab")
        if found := lab.elsewhere():
            yield found
            return
        try:
            with lab.raised() as found:
                for name, value in found.environment.items():
                    patch.setenv(name, value)
                yield found
        except lab.LabError as error:
            pytest.fail(str(error))


@pytest.fixture(scope="session")
def sky_ground(sky_lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sky_ground_module.raised(sky_lab, tmp_path_factory.mktemp("ground")) as ground:
        yield ground


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 1.6 M parameters, SmolLM2's tokenizer and template."""
    if not SMOLLM2.is_dir():
        pytest.fail("SmolLM2's tokenizer is not there: run `make model`")
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Lab:
    return make_lab(tmp_path, tiny_model)
