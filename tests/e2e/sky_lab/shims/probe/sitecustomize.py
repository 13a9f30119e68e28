"""OFFLINE SHIM for the network probe of SkyPilot's controller of managed jobs; on PYTHONPATH of the lab's API server.

Before it believes that a job's cluster is gone, the controller asks https://8.8.8.8 and https://1.1.1.1 whether the
network is there (`_TEST_IP_LIST`), and waits for ever if it is not: nothing would recover or end on a machine that has
only loopback. No setting leads around it, so here it asks the API server itself.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

PROBED = "sky.backends.backend_utils"


class _Finder(importlib.abc.MetaPathFinder):
    """Changes one list of one module as soon as that is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PROBED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            assert len(vars(module)["_TEST_IP_LIST"]) == 2, "another SkyPilot, another probe"
            port = os.environ["SKYPILOT_API_SERVER_LOCAL_PORT"]
            vars(module)["_TEST_IP_LIST"] = [f"http://127.0.0.1:{port}/api/health"]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
