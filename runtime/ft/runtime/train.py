"""The whole run on one rank: plan → tokenizer, model, rows → trainer → checkpoints → adapter."""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils.logging import disable_progress_bar

from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.prepared import default_root
from ft.recipes.runstore import FINAL, Adjust, ExitCode, RankExit, Reason, learnt_by_all
from ft.recipes.simulate import Simulation
from ft.recipes.store import LocalStore
from ft.runtime import registry
from ft.runtime.adjust import adjusted
from ft.runtime.callbacks.boundary import Boundary
from ft.runtime.callbacks.report import Report
from ft.runtime.checkpoint.weights import save_weights
from ft.runtime.checkpoint.write import Checkpoints
from ft.runtime.data.apart import build_apart, is_large
from ft.runtime.data.batches import MicroBatches, TokenCounts
from ft.runtime.data.collate import collator_of
from ft.runtime.data.order import Order, PackedOrder, eval_packs, order_of
from ft.runtime.data.prepare import PreparedData, prepare
from ft.runtime.data.templates import template_of
from ft.runtime.events import Events
from ft.runtime.export.final import publish
from ft.runtime.marks import Marks, Place
from ft.runtime.methods.sft import Parts, Schedule, StoreTrainer
from ft.runtime.model.load import load_model, parameter_counts
from ft.runtime.model.tokenizer import load_tokenizer
from ft.runtime.node import Rank
from ft.runtime.ranks import SCRATCH
from ft.runtime.simulate import Faults, faults_of
from ft.runtime.stop import EXIT_CODES, StopFlag, StoppedError, reason_of
from ft.runtime.world import World

log = logging.getLogger("ft.train")


@dataclass(frozen=True, slots=True)
class Job:
    """One rank's view of one attempt."""

    plan: RunPlan
    """As this attempt runs it, see `adjust`."""
    plan_sha256: str
    """Of the plan as it was made: checkpoints belong to that one."""
    left_out: frozenset[int]
    """Steps, counted from 1, that train nothing."""
    store: LocalStore
    world: World
    events: Events
    stop: StopFlag
    progress: list[int]
    """One element, the last finished step; also there for whoever catches what `train` raises."""
    scratch: Path
    """A folder of this rank that goes with the attempt."""
    faults: Faults
    exports: bool = True

    def check_stop(self) -> None:
        """Collective. Raises: StoppedError on every rank if one of them was asked to stop."""
        request = self.stop.request()
        (code,) = self.world.most([request.code if request else 0])
        if code:
            raise StoppedError(reason_of(code))


def train(
    store: LocalStore,
    rank: Rank,
    events: Events,
    stop: StopFlag,
    progress: list[int],
    *,
    simulations: tuple[Simulation, ...] = (),
    exports: bool = True,
) -> RankExit:
    """Train what `store/plan.json` says. Without `exports` somebody else makes the result of the last checkpoint.

    Raises: DataError, FtError, or whatever torch raises; `worker` gives each its exit code.
    """
    disable_progress_bar()
    plan = read_plan(store.plan_path)
    folder = store.attempt_folder(events.attempt)
    world = World(plan.parallel, rank, Marks(folder, rank.rank))
    adjust = learnt(store, world)
    scratch = folder / f"{SCRATCH}{rank.rank}"
    scratch.mkdir()
    job = Job(
        plan=adjusted(plan, adjust),
        plan_sha256=plan.sha256,
        left_out=frozenset(adjust.left_out),
        store=store,
        world=world,
        events=events,
        stop=stop,
        progress=progress,
        scratch=scratch,
        faults=faults_of(
            simulations,
            attempt=events.attempt,
            rank=rank.rank,
            world_size=rank.world_size,
            as_planned=adjust.micro_batch_size is None,
        ),
        exports=exports,
    )
    try:
        return run(job)
    except StoppedError as stopped:
        request = stop.request()
        because = f": {request.because}" if request and request.because else ""
        message = f"stopped before training began{because}"
        return RankExit(EXIT_CODES[stopped.reason], stopped.reason, message, progress[0])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def learnt(store: LocalStore, world: World) -> Adjust:
    """What earlier attempts found out on any node; from now on every node knows it. Collective."""
    mine = store.get_adjust()
    if world.num_nodes == 1:
        return mine
    adjust = learnt_by_all(Adjust.from_json(text) for text in world.from_nodes(mine.to_json()))
    if world.is_first_of_node and adjust != mine:
        # Its agent begins from here, should this attempt be too large as well.
        store.put_adjust(adjust)
    return adjust


def run(job: Job) -> RankExit:
    """Load, prepare, train from the newest checkpoint, export. Raises: StoppedError before the first step."""
    job.check_stop()
    plan, events = job.plan, job.events
    job.world.marks.at(Place.LOAD)
    with events.phase("load"):
        tokenizer = load_tokenizer(plan, job.store.root)
        model = load_model(plan, job.store.root)
        # After loading, which draws random numbers for some models, and before the adapter does.
        set_seed(plan.optim.seed)
        model = registry.target(registry.ADAPTERS, plan.adapter.adapter)(model, plan.adapter)
        trainable, total = parameter_counts(model)
        events.log(f"{trainable:,} of {total:,} parameters are trained")
    job.check_stop()
    job.world.marks.at(Place.DATA)
    with events.phase("data"):
        data = shared_rows(job, tokenizer)
        # Afterwards: a data set may ask whether the tokenizer has a template of its own.
        template = template_of(plan.data, plan.data, job.store.root, tokenizer)
        if template is not None:
            tokenizer.chat_template = (
                template  # What it was trained with is what it must be served with.
            )
    trainer, boundary = build_trainer(job, model, tokenizer, data)
    resume_from = restore(job, trainer)
    job.check_stop()
    with events.phase("train"):
        if job.progress[0] < trainer.parts.schedule.total_steps:
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        else:
            # Killed between the last checkpoint and the export: nothing is left to train.
            trainer._load_from_checkpoint(str(resume_from))
    step = job.progress[0]
    if boundary.ending is not None:
        request, saved = boundary.ending.request, trainer.parts.checkpoints
        message = boundary.ending.message(step, saved.newest_step, saved.save_seconds)
        return RankExit(request.exit_code, Reason(request.reason), message, step)
    if not job.exports and trainer.parts.checkpoints.newest_step == step:
        return RankExit(ExitCode.DONE, Reason.DONE, "trained, and saved to be exported", step)
    job.world.marks.at(Place.EXPORT, step)
    with events.phase("export"):
        if job.world.is_main:
            staged = job.store.staging(FINAL)
            save_weights(trainer.accelerator.unwrap_model(trainer.model), staged)
            manifest = publish(
                staged,
                tokenizer,
                job.store,
                plan,
                plan_sha256=job.plan_sha256,
                step=step,
                attempt=events.attempt,
            )
            events.emit("final", name=manifest.name, bytes=manifest.size)
        job.world.barrier()
    return RankExit(ExitCode.DONE, Reason.DONE, "done", step)


def build_trainer(
    job: Job, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, data: PreparedData
) -> tuple[StoreTrainer, Boundary]:
    """Everything put together; the method decides what the trainer is."""
    plan = job.plan
    counts = TokenCounts.of(data.train)
    order = order_of(plan, counts.tokens)
    schedule = Schedule.of_epochs(plan, order.steps_in_epoch, evaluates=data.eval is not None)
    keep = plan.checkpoint.save_total_limit
    parts = Parts(
        model=model,
        tokenizer=tokenizer,
        rows=data.train,
        eval_rows=data.eval,
        eval_packs=eval_packs(plan.data, TokenCounts.of(data.eval).tokens) if data.eval else None,
        counts=counts,
        batches=micro_batches(job, data, order, tokenizer.pad_token_id, schedule.total_steps),
        schedule=schedule,
        checkpoints=Checkpoints(
            job.store,
            job.events,
            job.world,
            job.faults,
            plan_sha256=job.plan_sha256,
            keep=keep,
        ),
        world=job.world,
        scratch=job.scratch,
        faults=job.faults,
    )
    trainer: StoreTrainer = registry.target(registry.METHODS, plan.method.method)(plan, parts)
    boundary = Boundary(trainer, job.events, job.stop)
    trainer.add_callback(boundary)
    trainer.add_callback(Report(trainer, job.events, boundary, job.progress))
    return trainer, boundary


def restore(job: Job, trainer: StoreTrainer) -> Path | None:
    """Find the newest valid checkpoint and set counters and data order to it; the trainer loads the rest."""
    resume_from = trainer.parts.checkpoints.newest()
    if resume_from is not None:
        step = int(resume_from.name.removeprefix("step-"))
        trainer.parts.counters.read(resume_from)
        trainer.parts.checkpoints.save_seconds = trainer.parts.counters.save_seconds
        trainer.parts.batches.first_step = job.progress[0] = step
        job.events.emit("resume", step=step, name=resume_from.name)
    return resume_from


def shared_rows(job: Job, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Prepared once per node, by its first rank, or found there from an earlier run; the others map the same files.

    Raises: StoppedError, also while it is being prepared.
    """
    world, root, data = job.world, default_root(), None
    stop = partial(stop_here, job.stop)
    if world.is_first_of_node:
        with contextlib.suppress(StoppedError):
            if is_large(job.plan):
                # Memory that comes back, and processes that inherit neither threads nor a GPU.
                build_apart(job.store.root, root, stop)
            data = prepare(job.plan, job.store.root, tokenizer, lambda _: stop(), root=root)
            job.events.emit("rows", **data.counts)
    world.barrier()
    job.check_stop()
    if data is None:
        data = prepare(job.plan, job.store.root, tokenizer, root=root)
    world.barrier()
    return data


def stop_here(stop: StopFlag) -> None:
    """Raises: StoppedError if this rank was asked to stop; it has to tell the others."""
    if stop.requested:
        raise StoppedError


def micro_batches(
    job: Job,
    data: PreparedData,
    order: Order | PackedOrder,
    pad_token_id: int,
    total_steps: int,
) -> MicroBatches:
    """This rank's share of every step. Tensor and context parallel peers read the same rows."""
    optim, parallel, rank = job.plan.optim, job.plan.parallel, job.world.rank
    peers = parallel.context_parallel_size * parallel.tensor_parallel_size
    return MicroBatches(
        data.train,
        order,
        accumulation=optim.gradient_accumulation_steps,
        micro_batch_size=optim.micro_batch_size,
        rank=rank // peers,
        data_parallel_size=parallel.data_parallel_size,
        collator=collator_of(job.plan, pad_token_id),
        total_steps=total_steps,
        rows_log=job.store.attempt_folder(job.events.attempt) / f"rank{rank}.rows.jsonl",
        left_out=job.left_out,
        marks=job.world.marks,
    )
