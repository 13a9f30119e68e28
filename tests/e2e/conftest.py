"""A tiny model with random weights and a real tokenizer, and the `ft` command in homes of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = Path(__file__).parent / "modal_server" / "harness.py"
SMOLLM2 = ROOT / ".quickstart" / "SmolLM2-135M-Instruct"


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
        patch.syspath_prepend(Path(__file__).parent)
        lab = importlib.import_module("sky_lab.lab")
        if infra := lab.elsewhere():
            yield lab.Elsewhere(infra)
            return
        try:
            with lab.raised() as found:
                for name, value in found.environment.items():
                    patch.setenv(name, value)
                yield found
        except lab.LabError as error:
            pytest.fail(str(error))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 1.6 M parameters, SmolLM2's tokenizer and template."""
    if not SMOLLM2.is_dir():
        pytest.fail("SmolLM2's tokenizer is not there: run `make model`")
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


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


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Lab:
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps(row) for row in chat_rows(40)]
    (data / "rows.jsonl").write_text("\n".join(rows) + "\n")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "FT_"))}
    folders = {"STATE": "state", "DATA": "share", "CACHE": "cache"}
    homes = {f"XDG_{kind}_HOME": str(tmp_path / name) for kind, name in folders.items()}
    return Lab(
        tmp_path,
        tiny_model,
        {**keep, **homes, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", "NO_COLOR": "1"},
    )
