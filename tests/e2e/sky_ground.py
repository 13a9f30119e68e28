"""What tests of the backend on SkyPilot stand on: a lab, a bucket on loopback, a folder, and `ft` in two environments.

The process of such a test is in the environment of SkyPilot, which has no torch; what needs it, the project's own
Python runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from laptop import make_data

REPO = Path(__file__).resolve().parents[2]
PROJECT = REPO / ".venv" / "bin" / "python"
IN_PROJECT = REPO / "tests" / "e2e" / "sky_lab" / "in_project.py"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""What opens the bucket: secrets of a run, by name."""
PLACE = ("AWS_ENDPOINT_URL", "AWS_REGION", "FT_SETUP_ROOT")
"""What else a node has to know, if it is said here."""
THREADS = "1"
"""Of a rank: all nodes are this machine, and sums depend on it."""


@dataclass(frozen=True)
class SkyGround:
    """See `Ground` of life_cycle.py. Nothing that `ft` prints here has the secret of the bucket in it."""

    lab: Any
    folder: Path
    model: Path
    store: str
    env: dict[str, str]
    more: dict[str, Any]
    """Of the recipe's `cloud`."""
    backend: str = "sky"
    accumulation: int = 12

    def at(self, folder: Path) -> SkyGround:
        """Another laptop, with no runs yet."""
        make_data(folder)
        return replace(self, folder=folder, env={**self.env, **homes(folder)})

    def recipe(self, nodes: int = 1, **changes: Any) -> Path:
        """Backend `local` takes it too, with warnings of keys that only `sky` reads; they are what a move needs."""
        cloud: dict[str, Any] = {
            "gpu": "cpu:1",
            "store_bucket": self.store,
            "region": self.lab.infra,
            "secrets": [name for name in KEYS if name in self.env],
            "env": {
                **{name: self.env[name] for name in PLACE if name in self.env},
                "OMP_NUM_THREADS": THREADS,
            },
            **self.more,
            **({"nodes": nodes} if nodes > 1 else {}),
        }
        values = {
            "base_model": str(self.model), "sequence_len": 256,
            "datasets": [{"path": "data/rows.jsonl", "type": "chat_template"}],
            "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1,
            "micro_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 12, "num_epochs": 10,
            "learning_rate": 0.01, "save_steps": 2, "output_dir": "out", **changes,
            "cloud": cloud | changes.get("cloud", {}),
        }  # fmt: skip
        path = self.folder / "recipe.yml"
        path.write_text(json.dumps(values, indent=1))
        return path

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ft.launcher.cli.app", *words]

    def ft(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(self.command(*words))

    def here(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run([str(PROJECT), "-m", "ft.launcher.cli.app", *words])

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*words), cwd=self.folder, env=self.env,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600, check=False
        )  # fmt: skip
        self.has_no_secret(done.stdout + done.stderr)
        return done

    def has_no_secret(self, text: str) -> None:
        assert self.env["AWS_SECRET_ACCESS_KEY"] not in text


def homes(folder: Path) -> dict[str, str]:
    return {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CACHE")}


@contextlib.contextmanager
def raised(lab: Any, folder: Path) -> Iterator[SkyGround]:
    """In an empty folder. On infra of the user's with the bucket that the user names; skips without."""
    if getattr(lab, "store", None) is None:
        with _bucket_here(folder) as s3:
            yield from _in_lab(lab, folder, s3)
        return
    if not lab.store:
        pytest.skip(
            f"needs E2E_SKY_STORE=s3://BUCKET/PREFIX, which {lab.infra} and this machine reach"
        )
    with _bucket_here(folder):  # Not that one, but the model and the data.
        kept = {name: os.environ[name] for name in (*KEYS, *PLACE) if name in os.environ}
        yield SkyGround(
            lab, folder, folder / "tiny", lab.store, _env(lab, folder, kept), {"memory": 4}
        )


def _in_lab(lab: Any, folder: Path, s3: dict[str, str]) -> Iterator[SkyGround]:
    """Nodes find what `setup` would install for one node and for two."""
    root = Path(lab.shared) / "environments"
    env = _env(lab, folder, {**s3, "FT_SETUP_ROOT": str(root)})
    ground = SkyGround(lab, folder, folder / "tiny", "s3://bucket-one/team", env, {"memory": 1})
    for nodes in (1, 2):
        words = ["environment", str(ground.recipe(nodes)), str(root)]
        subprocess.run([PROJECT, IN_PROJECT, *words], cwd=folder, env=env, check=True)
    yield ground


def _env(lab: Any, folder: Path, more: dict[str, str]) -> dict[str, str]:
    return {**_plain(), **lab.environment, **homes(folder), **more}


def _plain() -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "FT_", "AWS_"))}
    calm = {"HF_HUB_OFFLINE": "1", "COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": THREADS}
    return {**keep, **calm}


@contextlib.contextmanager
def _bucket_here(folder: Path) -> Iterator[dict[str, str]]:
    """A model and data in the folder, and the variables of a bucket on loopback."""
    server = subprocess.Popen(
        [str(PROJECT), str(IN_PROJECT), "serve", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_plain(),
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield json.loads(server.stdout.readline())
    finally:
        server.stdin.close()
        server.wait()
