"""A laptop of a test's own: a tiny model with random weights and a real tokenizer, data, a recipe, `ft` and its homes.

Imports neither torch nor ft at once: the environment of SkyPilot has no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SMOLLM2 = Path(__file__).parents[2] / ".quickstart" / "SmolLM2-135M-Instruct"


def make_tiny_model(folder: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of different lengths, each unlike the others."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {n} " + "and again " * (n % 7)},
                {"role": "assistant", "content": " ".join(str(n * k) for k in range(1, 3 + n % 5))},
            ]
        }
        for n in range(count)
    ]


OWN = """
import json, os, peft, signal, subprocess, sys
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from mine import WORD

prompt = Path("prompts/x.txt")
seen = {
    "files": sorted(str(path) for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc"),
    "prompt": prompt.read_text(),
    "word": WORD,
    "library": peft.__name__,
    "runs": subprocess.check_output(["mine/run.sh"], text=True).strip(),
}
print("seen", json.dumps(seen), flush=True)
prompt.write_text("spoiled")
if DIES and sys.argv[sys.argv.index("--attempt") + 1] == "1":
    os.kill(os.getpid(), signal.SIGKILL)


class OwnConfig(LlamaConfig):
    model_type = "own"


class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""
"""A model's code that needs what lies beside the recipe."""
TIRING = """
import time
from transformers import LlamaConfig, LlamaForCausalLM


class TiringConfig(LlamaConfig):
    model_type = "tiring"


class Tiring(LlamaForCausalLM):
    config_class = TiringConfig

    def __init__(self, config):
        super().__init__(config)
        self.batches = 0
        self.model.register_forward_pre_hook(self.wait)

    def wait(self, module, inputs):
        self.batches += module.training
        if self.batches > FRESH:
            time.sleep(SECONDS)
"""
"""A model's code that bounds how many steps an attempt makes in its time, on however fast a machine."""


@dataclass
class Lab:
    """A folder with data and recipe, and `ft` with homes of its own."""

    folder: Path
    model: Path
    env: dict[str, str] = field(default_factory=dict)

    def recipe(self, **changes: Any) -> Path:
        """A LoRA recipe in JSON, which is YAML; `None` takes a key out."""
        values = {
            "base_model": str(self.model),
            "datasets": [{"path": "data/rows.jsonl", "type": "chat_template"}],
            "sequence_len": 256,
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 12,
            "num_epochs": 10,
            "learning_rate": 0.01,
            "save_steps": 2,
            "output_dir": "out",
            "cloud": {"gpu": "cpu"},
        }
        values.update(changes)
        path = self.folder / "recipe.yml"
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}, indent=1))
        return path

    def coded_recipe(self, *, dies_at_first: bool, cloud: dict[str, Any]) -> Path:
        """A recipe that includes what the code of its model needs: a text, a module, a program, a `peft.py`."""
        model, files = self.folder / "coded", {
            "prompts/x.txt": "as planned",
            "prompts/secret.log": "not for others",
            "prompts/.ftignore": "*.log\n",
            "mine/__init__.py": "WORD = \"from a module of the user's\"\n",
            "mine/run.sh": "#!/bin/sh\necho it ran\n",
            "peft.py": "raise ImportError('not the library')\n",
        }  # fmt: skip
        shutil.copytree(self.model, model)
        config = json.loads((model / "config.json").read_text())
        auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
        (model / "config.json").write_text(
            json.dumps({**config, "model_type": "own", "auto_map": auto})
        )
        (model / "own.py").write_text(OWN.replace("DIES", str(dies_at_first)))
        for path, text in files.items():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_text(text)
        (self.folder / "mine/run.sh").chmod(0o755)
        cloud = {**cloud, "include": ["prompts", "mine/", "*.py"]}
        changes = {"base_model": str(model), "trust_remote_code": True, "max_steps": 2}
        return self.recipe(**changes, cloud=cloud)

    def tiring_model(self, fresh: int, step_s: float) -> dict[str, Any]:
        """Changes of the recipe: the same is computed, but each step of an attempt after `fresh` takes `step_s`."""
        model, batches = self.folder / "tiring", 2  # Of a step.
        shutil.copytree(self.model, model)
        config = json.loads((model / "config.json").read_text())
        auto = {"AutoConfig": "tiring.TiringConfig", "AutoModelForCausalLM": "tiring.Tiring"}
        (model / "config.json").write_text(
            json.dumps({**config, "model_type": "tiring", "auto_map": auto})
        )
        code = TIRING.replace("FRESH", str(fresh * batches))
        (model / "tiring.py").write_text(code.replace("SECONDS", str(step_s / batches)))
        return {"base_model": str(model), "trust_remote_code": True}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ft.launcher.cli.app", *arguments]

    def ft(self, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, recipe: Path, name: str) -> Path:
        """`ft cloud run --detach`; returns the run's store."""
        done = self.ft(
            "cloud", "run", str(recipe), "--backend", "local", "--name", name, "--detach"
        )
        assert done.returncode == 0, done.stderr
        return self.store_of(name)

    def record(self, name: str) -> dict[str, Any]:
        runs = self.folder / "state" / "ft" / "runs"
        records = [json.loads(path.read_text()) for path in runs.glob("*/record.json")]
        (found,) = [record for record in records if record["name"] == name]
        return found

    def store_of(self, name: str) -> Path:
        return Path(self.record(name)["store"])

    def outcome(self, name: str, timeout_s: float = 600) -> dict[str, Any]:
        """Wait for the end of a run."""
        path = self.folder / "state" / "ft" / "runs" / self.record(name)["id"] / "outcome.json"
        self.wait_for(path.exists, timeout_s)
        return json.loads(path.read_text())

    @staticmethod
    def wait_for(condition: Callable[[], Any], timeout_s: float = 240) -> Any:
        """The first true value of `condition`."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"nothing within {timeout_s} s"
            time.sleep(0.05)
        return value

    @staticmethod
    def events(store: Path) -> list[dict[str, Any]]:
        path = store / "events.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def losses(self, store: Path) -> dict[int, float]:
        """Step -> loss; a step that was done twice counts as it was done last."""
        return {
            e["data"]["step"]: e["data"]["loss"] for e in self.events(store) if e["kind"] == "step"
        }

    @staticmethod
    def rows_of(store: Path, attempt: int, rank: int) -> list[dict[str, Any]]:
        """What a rank really read: step and row ids, one entry per micro batch."""
        path = store / "attempts" / str(attempt) / f"rank{rank}.rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def make_data(folder: Path) -> None:
    """The rows that every recipe here trains."""
    rows = [json.dumps(row) for row in chat_rows(40)]
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").write_text("\n".join(rows) + "\n")


def make_lab(folder: Path, model: Path) -> Lab:
    """In an empty folder."""
    make_data(folder)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "FT_"))}
    folders = {"STATE": "state", "DATA": "share", "CACHE": "cache"}
    homes = {f"XDG_{kind}_HOME": str(folder / name) for kind, name in folders.items()}
    return Lab(
        folder,
        model,
        {**keep, **homes, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", "NO_COLOR": "1"},
    )
