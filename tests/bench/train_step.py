"""Tokens per second of LoRA steps: ft's worker beside a bare TRL SFTTrainer, same model, same batches.

python tests/bench/train_step.py [--steps 16] [--rounds 3]       (needs `make model`)

Each side is a process of its own; the sides take turns, also at going first. The first steps of each are
left out. Both log every step and save nothing; ft also writes its events, counts tokens and
asks at each step whether to stop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".quickstart" / "SmolLM2-135M-Instruct"
DATA = ROOT / "recipes" / "ft" / "recipes" / "gallery" / "smollm2" / "dates-train.jsonl"
WARMUP_STEPS = 4

RECIPE = """\
base_model: {model}
datasets: [{{path: {data}, type: chat_template}}]
sequence_len: 256
adapter: lora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
micro_batch_size: 8
learning_rate: 2e-4
max_steps: {steps}
save_steps: 100000
save_total_limit: 1
seed: 1
cloud: {{gpu: cpu}}
"""


def plan_in(folder: Path, steps: int) -> Any:
    """The plan and its inputs, staged as the local backend does."""
    from ft.launcher.dispatch import prepare
    from ft.launcher.inputs import stage

    recipe = folder / "recipe.yml"
    recipe.write_text(RECIPE.format(model=MODEL, data=DATA, steps=steps))
    prepared = prepare(str(recipe))
    for upload in prepared.submission.uploads:
        stage(upload, folder / "inputs")
    (folder / "plan.json").write_text(prepared.submission.plan_json)
    return prepared.plan


def run_ft(folder: Path, steps: int) -> list[tuple[float, int]]:
    """(seconds, tokens) of each step of the real worker."""
    from ft.recipes.store import LocalStore
    from ft.runtime.events import Events
    from ft.runtime.node import Rank
    from ft.runtime.stop import StopFlag
    from ft.runtime.train import train

    plan_in(folder, steps)
    store = LocalStore(folder)
    store.attempt_folder(1).mkdir(parents=True)
    train(store, Rank(0, 0, 1), Events(store, 1, speaks=True), StopFlag(), [0])
    done = [event for event in store.events()[0] if event.kind == "step"]
    times = [event.time for event in done]
    tokens = [event.data["tokens"] for event in done]
    return [
        (b - a, m - n) for a, b, n, m in zip(times, times[1:], tokens, tokens[1:], strict=False)
    ]


def run_trl(folder: Path, steps: int) -> list[tuple[float, int]]:
    """(seconds, tokens) of each step of a plain SFTTrainer over the same rows in the same order."""
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from ft.runtime.data.order import Order
    from ft.runtime.data.prepare import prepare
    from ft.runtime.model.load import load_model
    from ft.runtime.model.tokenizer import load_tokenizer

    plan = plan_in(folder, steps)
    tokenizer = load_tokenizer(plan, folder)
    rows = prepare(plan, folder, tokenizer).train
    order = Order(len(rows), plan.global_batch_size, plan.optim.seed, shuffle=True)
    chosen = [int(row) for step in range(steps) for row in order.rows_of_step(step)]
    rows = rows.select(chosen).remove_columns(["row_id"])
    lengths = [len(ids) for ids in rows["input_ids"]]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                self.times.append(time.time())

    clock = Clock()
    trainer = SFTTrainer(
        model=load_model(plan, folder),
        args=SFTConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=plan.optim.micro_batch_size, max_steps=steps,
            learning_rate=2e-4, lr_scheduler_type="cosine", logging_steps=1, save_strategy="no", report_to=[],
            use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None, seed=1, disable_tqdm=True,
            train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    batch = plan.global_batch_size
    tokens = [sum(lengths[i * batch : (i + 1) * batch]) for i in range(steps)]
    return [(b - a, n) for a, b, n in zip(clock.times, clock.times[1:], tokens[1:], strict=False)]


def side(name: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {"ft": run_ft, "trl": run_trl}[name](Path(folder), steps)
    print("RESULT " + json.dumps(found))


def measured(name: str, steps: int) -> float:
    """Tokens per second over the steps after the warm-up."""
    command = [sys.executable, __file__, "--side", name, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
    counted = json.loads(line.removeprefix("RESULT "))[WARMUP_STEPS - 1 :]
    return sum(tokens for _, tokens in counted) / sum(seconds for seconds, _ in counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["ft", "trl"])
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, arguments.steps)
        return
    rates: dict[str, list[float]] = {"ft": [], "trl": []}
    for turn in range(arguments.rounds):
        # The side that goes first has the colder machine: they take that in turns too.
        for name in sorted(rates, reverse=bool(turn % 2)):
            rates[name].append(measured(name, arguments.steps))
    print(f"{'side':<6} {'min tok/s':>10} {'median':>8} {'max':>8}")
    for name, found in rates.items():
        print(f"{name:<6} {min(found):10.1f} {statistics.median(found):8.1f} {max(found):8.1f}")
    ratios = [a / b for a, b in zip(rates["ft"], rates["trl"], strict=True)]
    print(
        f"ft / trl, round by round: {', '.join(f'{r:.3f}' for r in ratios)}; median {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
