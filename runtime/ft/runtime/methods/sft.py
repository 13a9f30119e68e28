"""Supervised fine-tuning: TRL's SFTTrainer on rows of ours, in an order of ours, saving into the store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from ft.recipes import layout
from ft.recipes.plan import RunPlan
from ft.runtime.checkpoint.weights import save_weights
from ft.runtime.checkpoint.write import Checkpoints, Counters
from ft.runtime.data.batches import MicroBatches, TokenCounts, batch_of
from ft.runtime.data.pack import Packs
from ft.runtime.marks import Place
from ft.runtime.model.isolation import assert_apart
from ft.runtime.simulate import Faults
from ft.runtime.world import World

log = logging.getLogger("ft.sft")


@dataclass(frozen=True, slots=True)
class Cadence:
    """After which steps something is done: every so many of the run, else so many times in each epoch."""

    every: int | None
    per_epoch: int
    """0: never. Counts where `every` is None."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of the run, now that the rows are counted."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    saves: Cadence
    evals: Cadence
    """Never, where there is nothing to evaluate on."""

    def is_due(self, cadence: Cadence, step: int) -> bool:
        """`step` counts from 1 over the run; after its last one everything is due that is ever done."""
        if cadence.every is None and not cadence.per_epoch:
            return False
        if step == self.total_steps:
            return True
        if cadence.every is not None:
            return step % cadence.every == 0
        in_epoch = (step - 1) % self.steps_per_epoch + 1
        return layout.is_due(in_epoch, times=cadence.per_epoch, steps=self.steps_per_epoch)

    @classmethod
    def of(cls, plan: RunPlan, num_rows: int, *, evaluates: bool) -> Schedule:
        """Where every epoch has `num_rows` rows, or packs of rows."""
        steps = layout.steps_per_epoch(num_rows, plan.global_batch_size)
        return cls.of_epochs(plan, lambda _: steps, evaluates=evaluates)

    @classmethod
    def of_epochs(
        cls, plan: RunPlan, steps_in_epoch: Callable[[int], int], *, evaluates: bool
    ) -> Schedule:
        """Where epochs may differ: what is said per epoch is of the first."""
        optim, keys = plan.optim, plan.checkpoint
        per_epoch = steps_in_epoch(0)
        total = layout.steps_of_epochs(steps_in_epoch, optim.num_epochs, optim.max_steps)
        return cls(
            steps_per_epoch=per_epoch,
            total_steps=total,
            warmup_steps=layout.warmup_steps(
                total,
                steps=optim.warmup_steps,
                ratio=optim.warmup_ratio,
                at_most=optim.warmup_at_most_steps,
            ),
            saves=Cadence(keys.save_steps, keys.saves_per_epoch),
            evals=Cadence(keys.eval_steps, keys.evals_per_epoch) if evaluates else Cadence(None, 0),
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What `build` puts together."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    rows: datasets.Dataset
    eval_rows: datasets.Dataset | None
    eval_packs: Packs | None
    """Of `eval_rows`; None: they stay for themselves."""
    counts: TokenCounts
    """Of `rows`."""
    batches: MicroBatches
    schedule: Schedule
    checkpoints: Checkpoints
    world: World
    scratch: Path
    faults: Faults = field(default_factory=Faults)
    counters: Counters = field(default_factory=Counters)


def build(plan: RunPlan, parts: Parts) -> StoreTrainer:
    """The trainer, ready for `.train()`."""
    return StoreTrainer(plan, parts)


def arguments(plan: RunPlan, schedule: Schedule, scratch: Path) -> SFTConfig:
    """Every argument that a key decides, and every default of the library that we do not want."""
    optim = plan.optim
    return SFTConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=optim.micro_batch_size,
        per_device_eval_batch_size=plan.checkpoint.eval_batch_size,
        gradient_accumulation_steps=optim.gradient_accumulation_steps,
        max_steps=schedule.total_steps,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=optim.lr_scheduler,
        warmup_steps=schedule.warmup_steps,
        optim=optim.optimizer,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_epsilon=optim.adam_epsilon,
        max_grad_norm=optim.max_grad_norm,
        seed=optim.seed,
        data_seed=optim.seed,
        bf16=plan.model.bf16,
        fp16=False,
        tf32=plan.model.tf32 or None,
        use_cpu=plan.parallel.device == "cpu",
        gradient_checkpointing=plan.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={
            "use_reentrant": plan.model.gradient_checkpointing_use_reentrant
        },
        logging_strategy="steps",
        logging_steps=plan.checkpoint.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        include_num_input_tokens_seen="no",
    )


class StoreTrainer(SFTTrainer):
    """SFTTrainer whose rows, order and checkpoints are ours (decisions 6 and 12)."""

    def __init__(self, plan: RunPlan, parts: Parts) -> None:
        self.parts = parts
        self.plan = plan
        self.pre_clip_norm: torch.Tensor | float = 0.0
        """Of the step that is under way, before clipping."""
        super().__init__(
            model=parts.model,
            args=arguments(plan, parts.schedule, parts.scratch),
            train_dataset=parts.rows,
            processing_class=parts.tokenizer,
        )
        if plan.data.sample_packing or plan.data.eval_sample_packing:
            assert_apart(self.model, end_to_end=parts.batches.collator.end_to_end)
        self.remove_callback(PrinterCallback)  # Our own report says it, with more digits.

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Micro batches of this rank. Not given to accelerate, which would shard them a second time."""
        return self.parts.batches.loader()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro batch, forward and backward."""
        step = self.state.global_step + 1
        self.parts.world.marks.at(Place.COMPUTE, step)
        self.parts.faults.before_step(step)
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        step = self.state.global_step + 1
        if isinstance(found, tuple):
            return (self.parts.faults.loss(step, found[0]), *found[1:])
        return self.parts.faults.loss(step, found)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.pre_clip_norm = super()._get_grad_norm(*args, **kwargs)
        return self.pre_clip_norm

    def is_finite(self) -> bool:
        """Loss and gradients of the step that is under way, on this rank. One synchronization with the device."""
        norm = torch.as_tensor(self.pre_clip_norm, device=self._tr_loss.device)
        return bool(torch.isfinite(self._tr_loss + norm).item())

    def leave_step_out(self, loss_before: torch.Tensor) -> None:
        """No update from the gradients that are there: an optimizer passes over a weight without one.

        Its state and the weights stay bit for bit; the learning rate goes on, it is a function of the step.
        """
        for parameter in self.model.parameters():
            parameter.grad = None
        self._tr_loss = loss_before.clone()

    @property
    def loss_sum(self) -> torch.Tensor:
        """Of the steps since the last one that was logged."""
        return self._tr_loss

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Publish through the store instead of `output_dir/checkpoint-N`."""
        del model, trial
        self.parts.checkpoints.save(self.state.global_step, self._write_checkpoint)

    def _write_checkpoint(self, folder: Path) -> None:
        """What this rank has of it."""
        parts = self.parts
        if parts.world.is_main:
            save_weights(self.accelerator.unwrap_model(self.model), folder)
            self.state.save_to_json(str(folder / "trainer_state.json"))
            parts.counters.save_seconds = parts.checkpoints.save_seconds
            parts.counters.write(folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))

    def evaluate_loss(self) -> tuple[float, int]:
        """Mean loss per trained token over the held-out rows of all ranks, and the number of those tokens."""
        parts = self.parts
        rows, packs = parts.eval_rows, parts.eval_packs
        assert rows is not None
        units = np.arange(len(rows)) if packs is None else packs
        size, world = self.plan.checkpoint.eval_batch_size, parts.world
        sums = [0.0, 0.0]
        world.marks.at(Place.EVAL, self.state.global_step)
        self.model.eval()
        for start in range(world.rank * size, len(units), size * world.size):
            batch = batch_of(rows, units[start : start + size], parts.batches.collator)
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model(**inputs, use_cache=False, fused_lm_head=True)
            sums[0] -= outputs.log_probs.double().sum().item()
            sums[1] += outputs.label_mask.sum().item()
        self.model.train()
        total = world.sum(sums)
        return total[0] / max(total[1], 1.0), int(total[1])
