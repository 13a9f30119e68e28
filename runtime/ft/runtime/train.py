"""The whole run on one rank: plan → tokenizer, model, rows → trainer → checkpoints → adapter."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import datasets
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import ExitCode, RankExit, Reason
from ft.recipes.store import LocalStore
from ft.runtime import registry
from ft.runtime.callbacks.report import Report, StopFlag
from ft.runtime.checkpoint.write import Checkpoints, Counters
from ft.runtime.data.batches import MicroBatches
from ft.runtime.data.order import Order
from ft.runtime.data.prepare import PreparedData, prepare
from ft.runtime.events import Events
from ft.runtime.export.final import export
from ft.runtime.methods.sft import Parts, Schedule
from ft.runtime.model.load import load_model, parameter_counts
from ft.runtime.model.tokenizer import load_tokenizer
from ft.runtime.node import Rank
from ft.runtime.world import World

log = logging.getLogger("ft.train")


def train(store: LocalStore, attempt: int, rank: Rank, events: Events, progress: list[int]) -> RankExit:
    """Train what `store/plan.json` says. `progress[0]` follows the steps, also when this raises.

    Raises: DataError, FtError, or whatever torch raises; `worker` gives each its exit code.
    """
    stop = StopFlag()
    stop.listen()
    disable_progress_bar()
    plan = read_plan(store.plan_path)
    world = World(plan.parallel, rank)
    scratch = Path(tempfile.mkdtemp(prefix="ft-"))
    try:
        return _train(plan, store, attempt, world, events, stop, progress, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _train(
    plan: RunPlan,
    store: LocalStore,
    attempt: int,
    world: World,
    events: Events,
    stop: StopFlag,
    progress: list[int],
    scratch: Path,
) -> RankExit:
    with events.phase("load"):
        tokenizer = load_tokenizer(plan, store.root)
        model = load_model(plan, store.root)
        # After loading, which draws random numbers in some versions of the library, and before the adapter does.
        set_seed(plan.optim.seed)
        model = registry.target(registry.ADAPTERS, plan.adapter.adapter)(model, plan.adapter)
        trainable, total = parameter_counts(model)
        events.log(f"{trainable:,} of {total:,} parameters are trained")
    with events.phase("data"):
        data = shared_data(plan, store, tokenizer, world, events, scratch)
    schedule = Schedule.of(plan, len(data.train), evaluates=data.eval is not None)
    checkpoints = Checkpoints(
        store, events, world, plan_sha256=plan.sha256, keep=plan.checkpoint.save_total_limit
    )
    parts = Parts(
        model=model,
        tokenizer=tokenizer,
        rows=data.train,
        eval_rows=data.eval,
        batches=micro_batches(plan, data, tokenizer.pad_token_id, schedule, world, store, attempt),
        schedule=schedule,
        checkpoints=checkpoints,
        world=world,
        scratch=scratch,
    )
    trainer = registry.target(registry.METHODS, plan.method.method)(plan, parts)
    trainer.add_callback(Report(trainer, events, stop, progress))
    resume_from = checkpoints.newest()
    if resume_from is not None:
        step = int(resume_from.name.removeprefix("step-"))
        parts.counters.read(resume_from)
        parts.batches.first_step = progress[0] = step
        events.emit("resume", step=step, name=resume_from.name)
    with events.phase("train"):
        if progress[0] < schedule.total_steps:
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        else:
            # Killed between the last checkpoint and the export: nothing is left to train.
            trainer._load_from_checkpoint(str(resume_from))
    if trainer.stopped:
        message = f"saved at step {progress[0]} and stopped on request"
        return RankExit(ExitCode.PREEMPTED, Reason.PREEMPTED, message, progress[0])
    with events.phase("export"):
        if world.is_main:
            unwrapped = trainer.accelerator.unwrap_model(trainer.model)
            manifest = export(unwrapped, tokenizer, store, plan, step=progress[0], attempt=attempt)
            events.emit("final", name=manifest.name, bytes=manifest.size)
        world.barrier()
    return RankExit(ExitCode.DONE, Reason.DONE, "done", progress[0])


def shared_data(
    plan: RunPlan, store: LocalStore, tokenizer: object, world: World, events: Events, scratch: Path
) -> PreparedData:
    """Prepared once per node, by its first rank; the others map the same Arrow files into memory."""
    if world.size == 1:
        data = prepare(plan, store.root, tokenizer)
        events.emit("rows", **data.counts)
        return data
    folder = Path(world.from_main(str(scratch))) / f"node{world.rank - world.local_rank}"
    data = None
    if world.local_rank == 0:
        data = prepare(plan, store.root, tokenizer)
        data.train.save_to_disk(str(folder / "train"))
        if data.eval is not None:
            data.eval.save_to_disk(str(folder / "eval"))
        events.emit("rows", **data.counts)
    world.barrier()
    if data is None:
        held_out = folder / "eval"
        data = PreparedData(
            train=datasets.load_from_disk(str(folder / "train")),
            eval=datasets.load_from_disk(str(held_out)) if held_out.is_dir() else None,
            counts={},
        )
    world.barrier()
    return data


def micro_batches(
    plan: RunPlan,
    data: PreparedData,
    pad_token_id: int,
    schedule: Schedule,
    world: World,
    store: LocalStore,
    attempt: int,
) -> MicroBatches:
    """This rank's share of every step. Tensor and context parallel peers read the same rows."""
    optim, parallel = plan.optim, plan.parallel
    peers = parallel.context_parallel_size * parallel.tensor_parallel_size
    order = Order(
        len(data.train), plan.global_batch_size, optim.seed, shuffle=plan.data.shuffle_merged_datasets
    )
    return MicroBatches(
        data.train,
        order,
        accumulation=optim.gradient_accumulation_steps,
        micro_batch_size=optim.micro_batch_size,
        rank=world.rank // peers,
        data_parallel_size=parallel.data_parallel_size,
        pad_token_id=pad_token_id,
        total_steps=schedule.total_steps,
        rows_log=store.attempt_folder(attempt) / f"rank{world.rank}.rows.jsonl",
    )
