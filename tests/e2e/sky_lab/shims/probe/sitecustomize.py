"""OFFLINE SHIMS for SkyPilot's controller of managed jobs; on PYTHONPATH of the lab's API server.

The probe of the network: before it believes that a job's cluster is gone, the controller asks https://8.8.8.8 and
https://1.1.1.1 whether the network is there (`_TEST_IP_LIST`), and waits for ever if it is not: nothing would recover
or end on a machine that has only loopback. No setting leads around it, so here it asks the API server itself.

The time between two looks at a job, 15 s: here 5 s, so that a test waits less for what is there already.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def probe_loopback(module: dict[str, Any]) -> None:
    assert len(module["_TEST_IP_LIST"]) == 2, "another SkyPilot, another probe"
    port = os.environ["SKYPILOT_API_SERVER_LOCAL_PORT"]
    module["_TEST_IP_LIST"] = [f"http://127.0.0.1:{port}/api/health"]


def look_often(module: dict[str, Any]) -> None:
    assert module["JOB_STATUS_CHECK_GAP_SECONDS"] == 15, "another SkyPilot, other looks"
    module["JOB_STATUS_CHECK_GAP_SECONDS"] = 5


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "sky.backends.backend_utils": probe_loopback,
    "sky.jobs.utils": look_often,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Changes one value of a module as soon as that is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = CHANGES.pop(fullname, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            change(vars(module))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
