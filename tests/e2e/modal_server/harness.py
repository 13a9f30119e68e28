"""What tests talk to: the loopback control plane, started here, with its admin API, or a server that is there already.

Needs nothing but the standard library; `AnyServer` needs pytest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

SERVER = Path(__file__).resolve().parent
WHICH = "FT_MODAL_SERVER"
"""Environment variable: the address of a server that is there already, or `live` for Modal itself."""
LIVE = "live"
BEFORE = frozenset(
    {
        *("fault", "grant", "requests", "records", "objects", "call"),
        *("state_folder", "ready", "Loopback"),
    }
)
"""What only a loopback server of our own has, and without which a test is about nothing."""
ADMIN = BEFORE | {"state"}
"""What only it answers; a test may do without `state` until it looks back at its end."""


def server(state_folder: Path) -> Loopback | AnyServer:
    """A loopback server of our own, unless the environment names another one."""
    address = os.environ.get(WHICH, "")
    return AnyServer.at(address) if address else Loopback.start(state_folder)


@dataclass
class Loopback:
    """A running server. Every request that it got is in `requests.jsonl` in its state folder."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    state_folder: Path

    @staticmethod
    def start(state_folder: Path, *options: str, python: str = sys.executable) -> Loopback:
        """Returns once it answers. Raises: RuntimeError with what it printed if it does not start."""
        command = [python, str(SERVER), "--state", str(state_folder), "--die-with-parent", *options]
        log = state_folder.parent / f"{state_folder.name}.log"
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the server did not start:\n{log.read_text(encoding='utf-8')[-2000:]}"
            )
        return Loopback(process, json.loads(line), state_folder)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: the server, any token, and no configuration of the user's."""
        return {
            "MODAL_SERVER_URL": self.ready["url"],
            "MODAL_TOKEN_ID": "ak-loopback",
            "MODAL_TOKEN_SECRET": "as-loopback",
            "MODAL_CONFIG_PATH": str(self.state_folder / "no-config.toml"),
        }

    def requests(self, rpc: str) -> list[dict[str, Any]]:
        """The requests of one RPC, as JSON of their protobuf."""
        return [line["request"] for line in self.records(rpc)]

    def records(self, rpc: str) -> list[dict[str, Any]]:
        return self._ask(f"requests?rpc={rpc}")

    def state(self) -> dict[str, Any]:
        return self._ask("state")

    def objects(self) -> dict[str, Any]:
        """Images, secrets and volumes, by their ids."""
        return self._ask("objects")

    def call(self, call_id: str) -> dict[str, Any]:
        return next(call for call in self.state()["calls"] if call["id"] == call_id)

    def fault(self, kind: str, **order: Any) -> dict[str, Any]:
        return self._ask("fault", {"kind": kind, **order})

    def grant(self, **order: Any) -> None:
        self._ask("grant", order)

    def modal(self, *words: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """The `modal` command."""
        return run_modal(self.environment, *words, timeout_s=timeout_s)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.ready['admin']}/{path}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {body}: {error.code} {error.read().decode()}") from error


@dataclass
class AnyServer:
    """A server that is there already. A client can talk to it, and that is all: what else is asked skips the test."""

    address: str
    environment: dict[str, str]
    """What a client needs besides the environment of this process."""
    made: str = ""
    """The environment on the server that is ours, so that tests meet nobody's apps and volumes."""

    @staticmethod
    def at(address: str) -> AnyServer:
        """Raises: RuntimeError with what the client says if no environment can be made there."""
        if address == LIVE:
            os.environ.pop("MODAL_SERVER_URL", None)
            environment = {}
        else:
            keys = ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")
            environment = {key: os.environ.get(key, "any") for key in keys}
            environment |= {"MODAL_SERVER_URL": address, "MODAL_CONFIG_PATH": os.devnull}
        if os.environ.get("MODAL_ENVIRONMENT"):
            return AnyServer(address, environment)
        made = f"ft-tests-{uuid.uuid4().hex[:8]}"
        done = run_modal(environment, "environment", "create", made, timeout_s=60)
        if done.returncode:
            raise RuntimeError(f"{address}: no environment for tests: {done.stdout}{done.stderr}")
        return AnyServer(address, environment | {"MODAL_ENVIRONMENT": made}, made)

    def stop(self) -> None:
        """Take our environment away with all that is in it; a loopback server keeps it until it ends."""
        if self.made:
            self.modal("environment", "delete", self.made, "--yes", timeout_s=120)

    def modal(self, *words: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """The `modal` command."""
        return run_modal(self.environment, *words, timeout_s=timeout_s)

    def __getattr__(self, name: str) -> NoReturn:
        if name not in ADMIN:
            raise AttributeError(name)
        import pytest

        pytest.skip(f"all well so far; what is left asks {name} of a loopback server of our own")


def run_modal(
    environment: Mapping[str, str], *words: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modal", *words]
    env = {**os.environ, **environment, "COLUMNS": "200"}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def wait_for(what: Callable[[], Any], limit_s: float = 15.0) -> Any:
    """The first true value of `what`; asks again until the limit."""
    until = time.monotonic() + limit_s
    while not (value := what()):
        assert time.monotonic() < until, f"{what} stayed false for {limit_s} s"
        time.sleep(0.02)
    return value
