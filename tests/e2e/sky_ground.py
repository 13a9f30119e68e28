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

from laptop import make_data

REPO = Path(__file__).resolve().parents[2]
PROJECT = REPO / ".venv" / "bin" / "python"
IN_PROJECT = REPO / "tests" / "e2e" / "sky_lab" / "in_project.py"
SECRET = "planted-s3-secret"


@dataclass(frozen=True)
class SkyGround:
    """See `Ground` of life_cycle.py. Nothing that `ft` prints here has the secret of the bucket in it."""

    lab: Any
    folder: Path
    model: Path
    s3: dict[str, str]
    env: dict[str, str]
    backend: str = "sky"

    def at(self, folder: Path) -> SkyGround:
        """Another laptop, with no runs yet."""
        make_data(folder)
        return replace(self, folder=folder, env={**self.env, **homes(folder)})

    def recipe(self, nodes: int = 1, **changes: Any) -> Path:
        """Backend `local` takes it too, with warnings of keys that only `sky` reads; they are what a move needs."""
        cloud: dict[str, Any] = {
            "gpu": "cpu:1",
            "store_bucket": "s3://bucket-one/team",
            "region": self.lab.infra,
            "memory": 1,
            "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
            "env": {
                "AWS_ENDPOINT_URL": self.s3["AWS_ENDPOINT_URL"],
                "AWS_REGION": self.s3["AWS_REGION"],
                "FT_SETUP_ROOT": str(self.root),
            },
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

    @property
    def root(self) -> Path:
        """Where nodes look for what `setup` would install."""
        return Path(self.lab.shared) / "environments"

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
        assert SECRET not in done.stdout + done.stderr
        return done


def homes(folder: Path) -> dict[str, str]:
    return {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CACHE")}


@contextlib.contextmanager
def raised(lab: Any, folder: Path) -> Iterator[SkyGround]:
    """In an empty folder; nodes find what `setup` would install for one node and for two."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "FT_", "AWS_"))}
    plain = {"HF_HUB_OFFLINE": "1", "COLUMNS": "80", "NO_COLOR": "1"}
    server = subprocess.Popen(
        [str(PROJECT), str(IN_PROJECT), "serve", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**keep, **plain},
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        s3 = json.loads(server.stdout.readline())
        env = {**keep, **lab.environment, **homes(folder), **s3, **plain}
        ground = SkyGround(lab, folder, folder / "tiny", s3, env)
        for nodes in (1, 2):
            words = ["environment", str(ground.recipe(nodes)), str(ground.root)]
            subprocess.run([PROJECT, IN_PROJECT, *words], cwd=folder, env=env, check=True)
        yield ground
    finally:
        server.stdin.close()
        server.wait()
