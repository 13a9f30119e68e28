"""Seconds of LoRA steps: ft's worker beside a bare TRL SFTTrainer, same model, same batches.

python tests/bench/train_step.py [--steps 24]       (needs `make model`)

Each side is a process of its own, and only one of them works at a time: after every step it waits for its next turn.
So each pair of steps sees the same machine, and it takes turns who goes first. The first steps are left out. Both log
every step and save nothing; ft also writes its events, counts tokens and asks at each step whether to stop.
"""

from __future__ import annotations

import argparse
import os
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
SETTLE_S = 0.3
"""Threads of the side that has just stopped still spin for a while."""

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


class Turns:
    """One side's half of the conversation: how long its step took, then a wait for the next turn."""

    def __init__(self, say: int, hear: int) -> None:
        self.say, self.hear = os.fdopen(say, "w"), os.fdopen(hear)
        self.began = time.perf_counter()

    def over(self) -> None:
        """The step is done and logged: the same moment on both sides."""
        print(time.perf_counter() - self.began, file=self.say, flush=True)
        self.hear.readline()
        self.began = time.perf_counter()


def run_ft(folder: Path, steps: int, turns: Turns) -> None:
    """The real worker."""
    from ft.recipes.store import LocalStore
    from ft.runtime.events import Events
    from ft.runtime.node import Rank
    from ft.runtime.stop import StopFlag
    from ft.runtime.train import train

    class Paced(Events):
        def emit(self, kind: str, **data: Any) -> None:
            super().emit(kind, **data)
            if kind == "step":
                turns.over()

    plan_in(folder, steps)
    store = LocalStore(folder)
    store.attempt_folder(1).mkdir(parents=True)
    train(store, Rank(0, 0, 1), Paced(store, 1, speaks=True), StopFlag(), [0])


def run_trl(folder: Path, steps: int, turns: Turns) -> None:
    """A plain SFTTrainer over the same rows in the same order."""
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

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                turns.over()

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
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()


def side(name: str, steps: int, turns: Turns) -> None:
    with tempfile.TemporaryDirectory() as folder:
        {"ft": run_ft, "trl": run_trl}[name](Path(folder), steps, turns)


class Side:
    """The other half of the conversation."""

    def __init__(self, name: str, steps: int) -> None:
        self.name = name
        say, hear = os.pipe(), os.pipe()
        command = [sys.executable, __file__, "--side", name, "--steps", str(steps)]
        command += ["--turns", str(say[1]), str(hear[0])]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, pass_fds=(say[1], hear[0])
        )  # fmt: skip
        os.close(say[1])
        os.close(hear[0])
        self.said, self.go = os.fdopen(say[0]), os.fdopen(hear[1], "w")

    def step(self) -> float:
        """Seconds of the step that ends now. It stands still from here on."""
        line = self.said.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            sys.exit(f"{self.name} failed:\n{self.log.read()}")
        return float(line)

    def next(self) -> float:
        print("go", file=self.go, flush=True)
        return self.step()

    def end(self) -> None:
        """What follows the last step is not measured."""
        self.go.close()
        self.process.wait()


def measure(steps: int) -> dict[str, list[float]]:
    """Seconds of each step after the warm-up, of each side."""
    sides, found = [], {}
    for name in ("ft", "trl"):
        sides.append(Side(name, steps))
        sides[-1].step()
        found[name] = []
    for step in range(2, steps + 1):
        for each in reversed(sides) if step % 2 else sides:
            time.sleep(SETTLE_S)
            found[each.name].append(each.next())
        print(
            f"step {step:>3} of {steps}: "
            + ", ".join(f"{n} {v[-1]:.3f} s" for n, v in found.items()),
            flush=True,
        )
    for each in sides:
        each.end()
    return {name: times[WARMUP_STEPS - 1 :] for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--side", choices=["ft", "trl"])
    parser.add_argument("--turns", type=int, nargs=2)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, arguments.steps, Turns(*arguments.turns))
        return
    found = measure(arguments.steps)
    print(f"{'side':<6} {'min s':>8} {'median':>8} {'max':>8} {'all':>8}")
    for name, times in found.items():
        print(
            f"{name:<6} {min(times):8.3f} {statistics.median(times):8.3f} {max(times):8.3f} {sum(times):8.2f}"
        )
    ratios = sorted(b / a for a, b in zip(found["ft"], found["trl"], strict=True))
    quarter = len(ratios) // 4
    print(
        f"throughput ft / trl over {len(ratios)} pairs of steps: median {statistics.median(ratios):.3f}, middle half "
        f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}, of all time {sum(found['trl']) / sum(found['ft']):.3f}"
    )


if __name__ == "__main__":
    main()
