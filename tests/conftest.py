"""What all tests share: golden files, no network, no traces in the user's folders."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent

# Before any test module imports a library that reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


# A slow example on a busy machine is no failure.
settings.register_profile("ft", deadline=None)
settings.load_profile("ft")


def pytest_configure(config: pytest.Config) -> None:
    _keep_to_one_processor()
    sys.addaudithook(_loopback_only)
    # A shell that starts tests in the background makes them ignore SIGINT, and with them all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _keep_to_one_processor() -> None:
    """Side by side, each with what it starts: threads of torch that share processors mostly wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    processors = sorted(os.sched_getaffinity(0))
    if worker is not None and len(processors) > 1:
        os.sched_setaffinity(0, {processors[int(worker[2:]) % len(processors)]})


_live = threading.Event()
"""Set while a test runs that is to talk to Modal itself, or to infra of the user's."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Where tests of a vendor are given the vendor itself, or a server elsewhere, they may talk to it; no other may."""
    server = os.environ.get("FT_MODAL_SERVER", "")
    host = urlsplit(server).hostname or server
    modal = host and not _is_loopback(host) and item.get_closest_marker("modal")
    if modal or (os.environ.get("E2E_SKY_INFRA") and item.get_closest_marker("sky")):
        _live.set()
    try:
        return (yield)
    finally:
        _live.clear()


def _loopback_only(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse to talk to another machine; a hook sees every library, and cannot be undone by one."""
    if event not in {"socket.connect", "socket.sendto"} or _live.is_set():
        return
    address = arguments[1]
    if not isinstance(address, tuple):
        return  # A Unix socket.
    host = str(address[0])
    if not _is_loopback(host):
        raise PermissionError(f"a test wanted to talk to {host}: only loopback is allowed")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session", autouse=True)
def _own_folders() -> Iterator[None]:
    """Run records, stores and caches of this session, for what the tests start as well."""
    with (
        tempfile.TemporaryDirectory(prefix="ft-tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for kind in ("STATE", "DATA", "CACHE", "CONFIG"):
            patch.setenv(f"XDG_{kind}_HOME", f"{folder}/{kind.lower()}")
        yield


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def tree_files() -> list[str]:
    """What a commit of everything would hold: tracked files and new ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    names = {name for name in listed.split("\0") if name}
    return sorted(name for name in names if os.path.lexists(REPO / name))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: `text` is what `golden/<name>` holds; `make golden` writes it."""
    folder = request.path.parent / "golden"

    def check(name: str, text: str) -> None:
        path = folder / name
        if os.environ.get("FT_UPDATE_GOLDEN") == "1":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing: run `make golden` and review what it writes"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(scope="session")
def object_store_module() -> ModuleType:
    """`object_store.py`: the S3 server, and its faults."""
    spec = importlib.util.spec_from_file_location("object_store", REPO / "tests/object_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # A dataclass looks for its module there.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _object_store(object_store_module: ModuleType) -> Iterator[Any]:
    server = object_store_module.ObjectStore()
    yield server
    server.stop()


@pytest.fixture
def object_store(_object_store: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An S3 server with an empty bucket `bucket-one`, found by the variables of this process."""
    import boto3

    for name, value in _object_store.environment.items():
        monkeypatch.setenv(name, value)
    _object_store.fault = None
    bucket = boto3.resource("s3").Bucket("bucket-one")
    bucket.create()
    bucket.objects.all().delete()
    _object_store.log.clear()
    return _object_store
