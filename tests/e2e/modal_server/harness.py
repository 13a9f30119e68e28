"""Starts the loopback control plane for a test, and speaks its admin API. Needs nothing but the standard library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).resolve().parent


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

    def call(self, call_id: str) -> dict[str, Any]:
        return next(call for call in self.state()["calls"] if call["id"] == call_id)

    def fault(self, kind: str, **order: Any) -> dict[str, Any]:
        return self._ask("fault", {"kind": kind, **order})

    def grant(self, **order: Any) -> None:
        self._ask("grant", order)

    def modal(self, *words: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """The `modal` command."""
        command = [sys.executable, "-m", "modal", *words]
        environment = os.environ | self.environment | {"COLUMNS": "200"}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.ready['admin']}/{path}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {body}: {error.code} {error.read().decode()}") from error


def wait_for(what: Callable[[], Any], limit_s: float = 15.0) -> Any:
    """The first true value of `what`; asks again until the limit."""
    until = time.monotonic() + limit_s
    while not (value := what()):
        assert time.monotonic() < until, f"{what} stayed false for {limit_s} s"
        time.sleep(0.02)
    return value
