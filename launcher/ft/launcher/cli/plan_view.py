"""A plan as text that fits 80 columns. Every number is written out with what it is made of."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ft.launcher import catalog_words
from ft.launcher.backends.base import DELIVERED
from ft.launcher.cli import console
from ft.launcher.cli.pricing import money, offers, warn_of_age
from ft.launcher.dispatch import Prepared
from ft.launcher.facts import describe_path
from ft.launcher.included import shown
from ft.recipes.errors import Severity
from ft.recipes.facts import Included
from ft.recipes.layout import steps_per_epoch, total_steps
from ft.recipes.plan import DataPlan, RunPlan
from ft.recipes.references import dataset_entries
from ft.recipes.schema.cloud import autostop_s
from ft.recipes.schema.dataset import DatasetKeys, UserDefinedType

LONG_ITEM: Final = 60
"""Lines of an image are for `--dry-run`."""
SHA256_DIGITS: Final = 64
MANY_FILES: Final = 20
WHY: Final = {
    "default": "nothing else was asked for",
    "cloud.backend": "`cloud.backend` in the recipe",
    "--backend": "asked for on the command line",
}


def short(prepared: Prepared, *, why: str | None = None) -> Iterator[str]:
    """A few lines before a run starts. `why` it runs where it does, if not the recipe decides."""
    plan = prepared.plan
    yield from console.labelled("model", f"{_model(prepared)}, {_adapter(plan)}")
    yield from console.labelled("data", _data_line(prepared))
    included = prepared.checked.facts.included
    if included is not None:
        yield from console.labelled("include", _included_line(included))
    yield from console.labelled("batch", _batch(plan))
    yield from console.labelled("steps", _steps(prepared))
    yield from console.labelled("output", describe_path(prepared.output_dir))
    for label, text in _spent(prepared):
        yield from console.labelled(label, text)
    yield from _cluster(prepared)
    environment = prepared.submission.request.get("environment")
    if environment:
        yield from console.labelled("environment", environment)
    faults = prepared.submission.request.get("simulate")
    if faults:
        yield from console.labelled("simulated", ", ".join(faults))
    origin = prepared.backend_origin
    if prepared.choice is not None:
        yield from offers(prepared.choice)
    yield f"backend {prepared.backend}: {why or WHY.get(origin, origin)}"


def full(prepared: Prepared) -> Iterator[str]:
    """Everything: what is trained, layout, steps, inputs, the request."""
    plan = prepared.plan
    yield "model"
    yield from _facts(
        ("base model", _model(prepared)),
        ("trained", _adapter(plan)),
        ("numbers", _numbers(plan)),
        ("optimizer", _optimizer(plan)),
    )
    yield "data"
    yield from _datasets(prepared)
    yield from _facts(("rows", _rows(plan.data)))
    yield "layout"
    yield from _facts(("world", _world(plan)), ("global batch", _batch(plan)))
    yield "steps"
    yield from _facts(("steps", _steps(prepared)), ("saved", _saves(plan)))
    spent = list(_spent(prepared))
    if spent:
        yield "money"
        yield from _facts(*spent)
    if prepared.choice is not None:
        yield from offers(prepared.choice)
    yield "inputs"
    yield from _inputs(plan)
    included = prepared.checked.facts.included
    if included is not None:
        yield "include"
        yield from _included(included)
    yield "request"
    yield from _cluster(prepared)
    yield from _request(prepared)
    yield f"backend: {prepared.backend} ({prepared.backend_origin})"


def warn(prepared: Prepared) -> None:
    """The warnings about the recipe, on stderr; what stops a run is raised before there is a plan."""
    for problem in prepared.checked.report.of(Severity.WARNING):
        console.warn(str(problem))
    if prepared.choice is not None:
        for text in catalog_words.warnings(prepared.choice):
            console.warn(text)
    warn_of_age(prepared.price)
    if (prepared.output_dir / DELIVERED).exists():
        console.warn(
            f"{prepared.output_dir} holds what an earlier run delivered; it will be replaced"
        )


def _spent(prepared: Prepared) -> Iterator[tuple[str, str]]:
    return money(prepared.price, prepared.plan, costs=prepared.costs, choice=prepared.choice)


def _facts(*facts: tuple[str, str]) -> Iterator[str]:
    for label, text in facts:
        yield from console.labelled(label, text)


def _model(prepared: Prepared) -> str:
    """As the recipe names it; a path as a person would type it."""
    fact = (prepared.checked.facts.files or {}).get(("base_model",))
    if fact is not None and fact.path is not None:
        return describe_path(fact.path)
    revision = prepared.plan.model.revision_of_model
    at = "" if revision == "main" else f" at {revision}"
    return f"{prepared.plan.model.base_model}{at}"


def _adapter(plan: RunPlan) -> str:
    adapter = plan.adapter
    if adapter.adapter == "full":
        return "all weights"
    targets = adapter.lora_target_modules
    if targets == "all-linear":
        where = "every linear layer"
    else:
        where = targets if isinstance(targets, str) else ", ".join(targets)
    return f"LoRA r={adapter.lora_r} alpha={adapter.lora_alpha} on {where}"


def _numbers(plan: RunPlan) -> str:
    precision = "bf16" if plan.model.bf16 else "fp32"
    tf32 = " with TF32" if plan.model.tf32 else ""
    saving = ", activations computed again" if plan.model.gradient_checkpointing else ""
    return f"{precision}{tf32}, attention {plan.model.attn_implementation}{saving}"


def _optimizer(plan: RunPlan) -> str:
    optim = plan.optim
    return f"{optim.optimizer}, learning rate {optim.learning_rate:g}, {optim.lr_scheduler}, seed {optim.seed}"


def _datasets(prepared: Prepared) -> Iterator[str]:
    """What rows are made of; what for, where some are only evaluated on."""
    header, rows = ["  DATA SET", "TYPE", "ROWS"], []
    files = prepared.checked.facts.files or {}
    flat = prepared.checked.normalized.flat
    for at, dataset in dataset_entries(flat):
        fact = files.get((*at, "path"))
        known = fact is not None and fact.num_rows is not None
        number = str(fact.num_rows) if fact is not None and known else "?"
        row = [f"  {dataset.path}", _type(dataset), number]
        rows.append([*row, "train" if at[0] == "datasets" else "evaluate"])
    if flat.data.test_datasets:
        header.append("USE")
    yield from console.table(header, [row[: len(header)] for row in rows], shrink=(0,))


def _type(dataset: DatasetKeys) -> str:
    """The format by its name in the catalog."""
    if isinstance(dataset.type, UserDefinedType):
        return "user_defined"
    return dataset.type or "pretokenized"


def _data_line(prepared: Prepared) -> str:
    data = prepared.checked.normalized.flat.data
    rows = "?" if prepared.num_rows is None else str(prepared.num_rows)
    paths, tests = (
        ", ".join(dataset.path for dataset in sets or ())
        for sets in (data.datasets, data.test_datasets)
    )
    evaluated = f"; evaluated on {tests}" if tests else ""
    return f"{paths}: {rows} rows, at most {prepared.plan.data.sequence_len} tokens each{evaluated}"


def _rows(data: DataPlan) -> str:
    too_long = {
        "drop": "dropped",
        "truncate": "cut off",
        "raise": "an error",
    }[data.excess_length_strategy]
    held_out = ""
    if data.val_set_size:
        share = data.val_set_size <= 1
        held_out = f"; {data.val_set_size:g}{' of the rows' if share else ' rows'} held out"
    return f"longer than {data.sequence_len} tokens: {too_long}{held_out}"


def _world(plan: RunPlan) -> str:
    """Processes, and the product that they are."""
    p = plan.parallel
    machines = console.plural(p.num_nodes, "machine")
    return (
        f"{p.world_size} = {p.dp_replicate_size} replicate × {p.dp_shard_size} shard × "
        f"{p.context_parallel_size} context × {p.tensor_parallel_size} tensor "
        f"({machines} with {p.gpu}:{p.num_processes_per_node})"
    )


def _batch(plan: RunPlan) -> str:
    """micro × accumulation × (world / (cp · tp))."""
    p, optim = plan.parallel, plan.optim
    divisor = f"({p.context_parallel_size} · {p.tensor_parallel_size})"
    unit = "packed row" if plan.data.sample_packing else "row"
    return (
        f"{console.plural(plan.global_batch_size, unit)} = {optim.micro_batch_size} micro × "
        f"{optim.gradient_accumulation_steps} accumulation × ({p.world_size} / {divisor})"
    )


def _steps(prepared: Prepared) -> str:
    """At most so many: which rows are too long, or share a packed one, is only known on the machine."""
    plan, rows = prepared.plan, _rows_to_train(prepared)
    optim = plan.optim
    epochs = console.plural(1, "epoch") if optim.num_epochs == 1 else f"{optim.num_epochs:g} epochs"
    if rows is None:
        most = f"at most {optim.max_steps}" if optim.max_steps else "?"
        return f"{most}: ? per epoch × {epochs}"
    all_epochs = total_steps(rows, plan.global_batch_size, optim.num_epochs, None)
    total = min(all_epochs, optim.max_steps or all_epochs)
    stop = f", stopped at max_steps {total}" if total < all_epochs else ""
    per_epoch = steps_per_epoch(rows, plan.global_batch_size)
    return (
        f"at most {total}: {per_epoch} per epoch ({rows} rows / {plan.global_batch_size}) × "
        f"{epochs}{stop}"
    )


def _rows_to_train(prepared: Prepared) -> int | None:
    """Rows that are left after holding out; an upper bound."""
    rows, held_out = prepared.num_rows, prepared.plan.data.val_set_size
    if rows is None:
        return None
    # As the runtime splits: a share is rounded up.
    count = math.ceil(round(held_out * rows, 9)) if held_out <= 1 else int(held_out)
    return max(1, rows - count)


def _saves(plan: RunPlan) -> str:
    checkpoint = plan.checkpoint
    every = (
        f"every {checkpoint.save_steps} steps"
        if checkpoint.save_steps
        else f"{console.plural(checkpoint.saves_per_epoch, 'time')} an epoch"
    )
    return f"{every}; the newest {checkpoint.save_total_limit} are kept"


def _inputs(plan: RunPlan) -> Iterator[str]:
    if not plan.inputs:
        yield "  none: nothing of this machine is needed"
        return
    rows = [(f"  {i.name}", i.kind, console.size(i.size), i.sha256[:12]) for i in plan.inputs]
    yield from console.table(("  INPUT", "KIND", "SIZE", "SHA256"), rows, shrink=(0,))


def _included(included: Included) -> Iterator[str]:
    """What the run finds in its working directory; of many files the first ones."""
    rows = [
        (f"  {shown(file.path)}", console.size(file.size)) for file in included.files[:MANY_FILES]
    ]
    yield from console.table(("  FILE", "SIZE"), rows, shrink=(0,))
    more = len(included.files) - MANY_FILES
    if more > 0:
        yield f"  and {more} more: --dry-run names all"
    yield from console.labelled("all", _included_line(included))


def _included_line(included: Included) -> str:
    files = console.plural(len(included.files), "file")
    return f"{files}, {console.size(included.size)}"


def _cluster(prepared: Prepared) -> Iterator[str]:
    """What a plain cluster is not: looked after by a controller."""
    block = prepared.checked.normalized.flat.cloud.cloud
    if block is None or block.cluster is None:
        return
    idle_s = autostop_s(block.autostop)
    bound = "there until `sky down`"
    if idle_s is not None:
        bound = f"taken down after {console.duration(idle_s)} without a job"
        bound += " if it is made now" if block.autostop is None else ""
    yield from console.labelled(
        "cluster",
        f"{block.cluster}, {bound}; one that is there already has its own price; "
        "a machine lost there is not replaced",
    )


def _request(prepared: Prepared) -> Iterator[str]:
    """What the backend is asked for; other backends have other keys. `--dry-run` has all of it, scripts too."""
    for key, value in prepared.submission.request.items():
        inner = value.items() if isinstance(value, Mapping) else ((key, value),)
        if key == "functions":
            for name, options in inner:
                yield from console.labelled(name, _said(options))
        elif key != "job" and (said := _said(value)):
            yield from console.labelled(key, said)
    yield from console.labelled("output", describe_path(prepared.output_dir))


def _said(value: object) -> str:
    """A part of a request in one line: a command as it is typed, of a mapping names and values."""
    if isinstance(value, Mapping):
        parts = [f"{name} {_nested(item)}" for name, item in value.items() if item not in ([], {})]
        return ", ".join(parts)
    text = shlex.join(value) if isinstance(value, list) else str(value)
    return text.replace(str(Path.home()), "~")


def _nested(value: object) -> str:
    if isinstance(value, Mapping):
        return f"({_said(value)})"
    if isinstance(value, list):
        long = any(len(str(item)) > LONG_ITEM for item in value)
        return str(len(value)) if long else " or ".join(map(str, value))
    text = str(value)
    if "\n" in text:
        return f"{text.count(chr(10))} lines"
    return text[:12] if len(text) == SHA256_DIGITS else text
