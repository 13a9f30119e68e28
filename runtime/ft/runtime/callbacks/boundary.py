"""What all ranks agree on at a step boundary: whether its numbers are finite, to save, and to stop after it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ft.recipes.runstore import Reason
from ft.runtime.callbacks.finite import BadSteps, go_back
from ft.runtime.events import Events
from ft.runtime.marks import Place
from ft.runtime.methods.sft import StoreTrainer
from ft.runtime.stop import Request, StopFlag, reason_of

log = logging.getLogger("ft.train")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why training ends before its last step, and whether there is time to save."""

    request: Request
    saves: bool
    left_s: float | None
    """Until the end of the grace; None without one."""

    @property
    def why(self) -> str:
        return self.request.because or WHY[Reason(self.request.reason)]

    def message(self, step: int, newest_step: int, save_seconds: float) -> str:
        """What became of it. `newest_step` is that of the newest whole checkpoint, 0 without one."""
        if newest_step == step:
            return f"saved at step {step} and stopped: {self.why}"
        kept = f"step {newest_step} is saved" if newest_step else "nothing is saved yet"
        if self.saves:
            return (
                f"stopped at step {step}, whose checkpoint could not be written: {self.why}; {kept}"
            )
        left_s = self.left_s or 0.0
        time_left = "no time was left for that"
        if left_s > 0:
            time_left = f"it takes about {save_seconds:.0f} s and {left_s:.0f} s were left"
        return f"stopped at step {step} without saving, {time_left}: {self.why}; {kept}"


WHY = {
    Reason.PREEMPTED: "a signal asked for it",
    Reason.HAND_OFF: "the next attempt goes on",
    Reason.CANCELLED: "it was cancelled",
    Reason.USER: "the user interrupted it",
}


class Boundary(TrainerCallback):
    """One agreement per step. It goes before the report, which has nothing to evaluate for a run that ends."""

    def __init__(self, trainer: StoreTrainer, events: Events, stop: StopFlag) -> None:
        self.trainer, self.events, self.stop = trainer, events, stop
        self.parts = trainer.parts
        self.ending: Ending | None = None
        self.left_out = False
        """Whether the step that has just ended updated no weight."""
        self._bad = BadSteps()
        self._stop_code = 0
        self._loss_before = torch.zeros(())

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._loss_before = self.trainer.loss_sum.clone()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last moment to keep bad numbers out of the weights."""
        del args, control
        step = state.global_step + 1
        self.parts.world.marks.at(Place.AGREE, step)
        planned = step in self.parts.batches.left_out
        bad = not planned and not self.trainer.is_finite()
        request = self.stop.request()
        worst, self._stop_code = self.parts.world.most([int(bad), request.code if request else 0])
        self.left_out = planned or bool(worst)
        if self.left_out:
            self.trainer.leave_step_out(self._loss_before)
        if worst:
            self._note_bad(step)

    def _note_bad(self, step: int) -> None:
        """Raises: AttemptError on every rank once there have been too many."""
        rows = self.parts.batches.row_ids_of_step(step)
        message = f"step {step}: loss or gradient is not finite; no update from its rows {rows}"
        log.warning("%s", message)
        self.events.log(message, level="warning")
        if self._bad.note(step):
            checkpoints = self.parts.checkpoints
            go_back(checkpoints.store, self.parts.world, self._bad.steps, checkpoints.newest_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        del args
        schedule = self.parts.schedule
        control.should_save = schedule.is_due(schedule.saves, state.global_step)
        if self._stop_code and state.global_step < state.max_steps:
            self.ending = self._decide()
            what = "saving and stopping" if self.ending.saves else "stopping without saving"
            log.info("%s at step %d: %s", what, state.global_step, self.ending.why)
            self.parts.checkpoints.ending = True
            control.should_save = self.ending.saves
            control.should_training_stop = True
        return control

    def _decide(self) -> Ending:
        """Collective. One rank without the time to save is enough: half a checkpoint helps nobody."""
        request = self.stop.request() or Request(reason_of(self._stop_code))
        left_s = None if request.until is None else request.until - time.time()
        late = left_s is not None and left_s < self.parts.checkpoints.save_seconds
        return Ending(request, not self.parts.world.any(late), left_s)
