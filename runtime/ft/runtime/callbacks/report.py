"""Step events, counters, evaluation and the stop flag: what happens at a step boundary."""

from __future__ import annotations

import logging
import resource
import signal
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ft.runtime.data.batches import TokenCounts
from ft.runtime.events import Events
from ft.runtime.methods.sft import StoreTrainer
from ft.runtime.parallel.check import assert_parallel

log = logging.getLogger("ft.train")


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; read at step boundaries, where all ranks agree on it."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self._note)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        log.info("got %s: will save at the end of this step", signal.Signals(signum).name)
        self.requested = True


class Report(TrainerCallback):
    """Counts, tells, evaluates and stops. `progress[0]` is the last finished step, for an error message."""

    def __init__(
        self, trainer: StoreTrainer, events: Events, stop: StopFlag, progress: list[int]
    ) -> None:
        self.trainer, self.events, self.stop, self.progress = trainer, events, stop, progress
        parts = trainer.parts
        self.parts = parts
        self.counts = TokenCounts.of(parts.rows)
        self._step_began = self._logged_at = time.monotonic()
        self._logged_tokens = parts.counters.tokens

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        assert_parallel(self.trainer.model_wrapped, self.parts.world)
        self._step_began = self._logged_at = time.monotonic()
        self._logged_tokens = self.parts.counters.tokens

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step, counters, order = state.global_step, self.parts.counters, self.parts.batches.order
        tokens, trained = self.counts.of_rows(order.rows_of_step(step - 1))
        counters.tokens += tokens
        counters.trained_tokens += trained
        now = time.monotonic()
        counters.train_seconds += now - self._step_began
        self._step_began = now
        self.progress[0] = step
        eval_steps = self.parts.schedule.eval_steps
        if eval_steps and (step % eval_steps == 0 or step == state.max_steps):
            self._evaluate(step)
        if step < state.max_steps and self.parts.world.any(self.stop.requested):
            self.trainer.stopped = True
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        now, counters, step = time.monotonic(), self.parts.counters, state.global_step
        seconds = max(now - self._logged_at, 1e-9)
        event = {
            "step": step,
            "total_steps": state.max_steps,
            "epoch": round(step / self.parts.schedule.steps_per_epoch, 4),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_s": round((counters.tokens - self._logged_tokens) / seconds, 1),
            "step_time_s": round(seconds / args.logging_steps, 4),
            "tokens": counters.tokens,
            "trained_tokens": counters.trained_tokens,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.events.emit("step", **event)
        log.info("step %d/%d loss %.4f", step, state.max_steps, logs["loss"])
        self._logged_at, self._logged_tokens = now, counters.tokens

    def _evaluate(self, step: int) -> None:
        with self.events.phase("eval"):
            loss, tokens = self.trainer.evaluate_loss()
        self.events.emit("eval", step=step, loss=loss, trained_tokens=tokens)
        log.info("eval at step %d: loss %.4f over %d tokens", step, loss, tokens)
        self.events.emit("phase", name="train", mark="begin")


def peak_memory_bytes() -> int:
    """Of the GPU's allocator, or the resident set of this process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
