"""Step events, counters, clocks and evaluation: what is told of a step once it has ended."""

from __future__ import annotations

import logging
import math
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ft.runtime.callbacks.boundary import Boundary
from ft.runtime.events import Events
from ft.runtime.methods.sft import StoreTrainer
from ft.runtime.parallel.check import assert_parallel

log = logging.getLogger("ft.train")


PROGRESS_S = 1.0


@dataclass(slots=True)
class Window:
    """The steps since the last `step` event."""

    steps: int = 0
    left_out: int = 0
    """Of them, those that updated nothing: they have no loss."""
    seconds: float = 0.0
    """Of the steps alone, without evaluation and saving."""
    tokens: int = 0


class Report(TrainerCallback):
    """Counts, tells and evaluates. `progress[0]` is the last finished step, for an error message."""

    def __init__(
        self, trainer: StoreTrainer, events: Events, boundary: Boundary, progress: list[int]
    ) -> None:
        self.trainer, self.events, self.boundary = trainer, events, boundary
        self.progress = progress
        parts = trainer.parts
        self.parts = parts
        self._window = Window()
        self._told_at = self._step_began = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        assert_parallel(self.trainer.model_wrapped, self.parts.world)
        self._step_began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = state.global_step
        self._count(step)
        self.progress[0] = step
        schedule = self.parts.schedule
        if schedule.is_due(schedule.evals, step) and self.boundary.ending is None:
            self._evaluate(step)
        # Where it is logged, the `step` event says it.
        if not control.should_log:
            self._tell_progress(step, state.max_steps, last=control.should_training_stop)
        return control

    def on_save(self, *_: Any, **__: Any) -> None:
        """A checkpoint was written between two steps; its time is not the next step's."""
        self._step_began = time.monotonic()

    def _count(self, step: int) -> None:
        """Add the step that has just ended to the run's counters and to the window."""
        counters, window = self.parts.counters, self._window
        tokens, trained = self.parts.counts.of_rows(self.parts.batches.order.rows_of_step(step - 1))
        now = time.monotonic()
        seconds = now - self._step_began
        self._step_began = now
        if self.boundary.left_out:
            window.left_out += 1
        else:
            counters.tokens += tokens
            counters.trained_tokens += trained
        counters.train_seconds += seconds
        window.steps += 1
        window.seconds += seconds
        window.tokens += tokens

    def _tell_progress(self, step: int, total_steps: int, *, last: bool) -> None:
        now = time.monotonic()
        if last or step == total_steps or now - self._told_at >= PROGRESS_S:
            self.events.emit("progress", step=step, total_steps=total_steps)
            self._told_at = now

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
        counters, step, window = self.parts.counters, state.global_step, self._window
        seconds = max(window.seconds, 1e-9)
        event = {
            "step": step,
            "total_steps": state.max_steps,
            "epoch": round(self.parts.batches.order.epochs_done(step), 4),
            "loss": self._mean_loss(logs["loss"]),
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": _finite(logs.get("grad_norm")),
            "tokens_per_s": round(window.tokens / seconds, 1),
            "step_time_s": round(seconds / max(window.steps, 1), 4),
            "tokens": counters.tokens,
            "trained_tokens": counters.trained_tokens,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.events.emit("step", **event)
        log.info("step %d/%d loss %s", step, state.max_steps, event["loss"])
        self._window = Window()
        self._told_at = time.monotonic()

    def _mean_loss(self, over_all: float) -> float | None:
        """Over the steps that have one; None if none has. `over_all` counts the others as 0."""
        trained = self._window.steps - self._window.left_out
        return over_all * self._window.steps / trained if trained else None

    def _evaluate(self, step: int) -> None:
        with self.events.phase("eval"):
            loss, tokens = self.trainer.evaluate_loss()
        self.events.emit("eval", step=step, loss=loss, trained_tokens=tokens)
        log.info("eval at step %d: loss %.4f over %d tokens", step, loss, tokens)
        self._step_began = time.monotonic()


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def peak_memory_bytes() -> int:
    """Of the GPU's allocator, or the resident set of this process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
