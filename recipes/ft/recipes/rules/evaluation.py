"""Rules about evaluations and checkpoints: on which rows, how often, and which checkpoint is the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import effective, quoted, short, value_of
from ft.recipes.schema import FlatRecipe


def _evaluation_rows_once(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Evaluations use either rows held out from `datasets` or data sets of their own.

    With both, rows would be held out that nobody looks at.
    """
    size = recipe.data.val_set_size
    if size and recipe.data.test_datasets:
        message = f"{size:g} stands beside `test_datasets`; both say what is evaluated. Write 0."
        yield Finding(("val_set_size",), message, keys=("test_datasets",))


def _strategy_fits_cadence(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A strategy says by what checkpoints or evaluations are counted, a cadence how often they are.

    `steps` needs a number of steps, and the other strategies leave no room for one.
    """
    yield from _strategy(recipe, "save_strategy", "save_steps", "saves_per_epoch")
    yield from _strategy(recipe, "eval_strategy", "eval_steps", "evals_per_epoch")


def _strategy(recipe: FlatRecipe, key: str, steps: str, per_epoch: str) -> Iterator[Finding]:
    strategy = value_of(recipe, key)
    every, often = value_of(recipe, steps), value_of(recipe, per_epoch)
    if strategy is None:
        return
    if strategy == "steps":
        if every is None and not often:
            severity = Severity.WARNING if often is None else Severity.ERROR
            stands = "" if often is None else f" and {quoted(per_epoch, often)} beside it"
            message = f"`steps` without a number{stands}. Write `{steps}`, or take it out."
            yield Finding((key,), message, severity, keys=(steps, per_epoch))
    elif every is not None:
        message = f"`{strategy}` stands beside {quoted(steps, every)}. Write `{key}: steps`, or take one out."
        yield Finding((key,), message, keys=(steps,))
    elif often is not None and often != {"epoch": 1, "no": 0}.get(strategy):
        # In Axolotl a number of checkpoints goes before the strategy; of evaluations it is refused.
        severity = Severity.WARNING if key == "save_strategy" else Severity.ERROR
        message = f"`{strategy}` stands beside {quoted(per_epoch, often)}; both say how often. Take one out."
        yield Finding((key,), message, severity, keys=(per_epoch,))


def _has_rows(recipe: FlatRecipe) -> bool:
    """Whether there is anything to evaluate on."""
    return bool(recipe.data.val_set_size or recipe.data.test_datasets)


def _never_evaluates(recipe: FlatRecipe) -> str:
    """Why no evaluation is ever done; empty where some are."""
    checkpoint = recipe.checkpoint
    if checkpoint.eval_strategy == "no":
        return "`eval_strategy: no`"
    if checkpoint.evals_per_epoch == 0 and checkpoint.eval_steps is None:
        return "`evals_per_epoch: 0`"
    if not _has_rows(recipe):
        size = recipe.data.val_set_size
        return "no `val_set_size`" if size is None else quoted("val_set_size", size)
    return ""


EVALUATION_KEYS: Final = (
    *("val_set_size", "test_datasets", "eval_strategy", "eval_steps", "evals_per_epoch"),
)


def _evaluations_happen(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """What compares, measures or stops by evaluations does nothing if there are none.

    Rows that are kept for evaluations are then lost to training.
    """
    checkpoint = recipe.checkpoint
    never = _never_evaluates(recipe)
    scheduled = checkpoint.eval_steps or checkpoint.evals_per_epoch
    if checkpoint.do_bench_eval and not scheduled:
        message = "nothing says when the questions are asked. Write `evals_per_epoch: 1`."
        yield Finding(("do_bench_eval",), message, keys=EVALUATION_KEYS)
    if not never:
        return
    for key, value, severity in (
        ("early_stopping_patience", checkpoint.early_stopping_patience, Severity.ERROR),
        ("load_best_model_at_end", checkpoint.load_best_model_at_end, Severity.ERROR),
        ("save_strategy", checkpoint.save_strategy == "best", Severity.ERROR),
        (
            "eval_strategy",
            checkpoint.eval_strategy not in {None, "no"} and not _has_rows(recipe),
            Severity.ERROR,
        ),
        ("do_causal_lm_eval", checkpoint.do_causal_lm_eval, Severity.WARNING),
        ("eval_table_size", checkpoint.eval_table_size, Severity.WARNING),
    ):
        if value:
            shown = short(value_of(recipe, key))
            message = (
                f"`{shown}`, but nothing is ever evaluated: {never}. Mend that, or take it out."
            )
            yield Finding((key,), message, severity, keys=EVALUATION_KEYS)
    for key in ("val_set_size", "test_datasets"):
        if value_of(recipe, key):
            message = f"rows are kept that are never evaluated: {never}. Take one of the two out."
            yield Finding((key,), message, Severity.WARNING, keys=EVALUATION_KEYS)


def _cadence(recipe: FlatRecipe, steps: str, per_epoch: str) -> tuple[str, float, str]:
    """By what is counted, the number, and how the recipe says it."""
    every = value_of(recipe, steps)
    if every is not None:
        return ("steps" if every >= 1 else "share", every, quoted(steps, every))
    often = value_of(recipe, per_epoch)
    return (
        "epoch",
        often or 1,
        quoted(per_epoch, often) if often else f"no `{per_epoch}`, so once",
    )


def _best_is_saved(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The best model is found by an evaluation and loaded from a checkpoint of the same step.

    So every checkpoint has to fall on an evaluation.
    """
    checkpoint = recipe.checkpoint
    wishes = [
        key
        for key in ("load_best_model_at_end", "early_stopping_patience")
        if value_of(recipe, key)
    ]
    if not wishes or _never_evaluates(recipe) or checkpoint.save_strategy == "best":
        return
    cadences = ("save_steps", "saves_per_epoch", "eval_steps", "evals_per_epoch")
    if checkpoint.save_strategy == "no":
        why = "`save_strategy: no` keeps no model that could be the best. Take it out."
    elif _lacks_number(recipe, "save") or _lacks_number(recipe, "eval"):
        return  # Another rule says so.
    else:
        why = _misses_evaluations(recipe)
    if why:
        yield Finding((wishes[0],), why, keys=("save_strategy", *cadences, *EVALUATION_KEYS))


def _stops_by_a_count(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Patience is counted in evaluations, so it says something only where a recipe says how often those are.

    Axolotl refuses it without `save_steps` and `eval_steps`.
    """
    checkpoint = recipe.checkpoint
    if not checkpoint.early_stopping_patience or _never_evaluates(recipe):
        return
    evals = checkpoint.eval_steps or checkpoint.evals_per_epoch or checkpoint.eval_strategy
    saves = checkpoint.save_steps or checkpoint.saves_per_epoch or checkpoint.save_strategy
    lacking = [
        key for key, value in (("evals_per_epoch", evals), ("saves_per_epoch", saves)) if not value
    ]
    if lacking:
        write = " and ".join(f"`{key}: 1`" for key in lacking)
        message = (
            f"{checkpoint.early_stopping_patience} of what? Nothing says how often. Write {write}."
        )
        keys = ("eval_steps", "evals_per_epoch", "save_steps", "saves_per_epoch", *EVALUATION_KEYS)
        yield Finding(("early_stopping_patience",), message, keys=keys)


def _lacks_number(recipe: FlatRecipe, what: str) -> bool:
    """Whether a strategy is `steps`, and nobody says how many."""
    numbers = (value_of(recipe, f"{what}_steps"), value_of(recipe, f"{what}s_per_epoch"))
    return value_of(recipe, f"{what}_strategy") == "steps" and not any(numbers)


def _misses_evaluations(recipe: FlatRecipe) -> str:
    """Why some checkpoint falls on no evaluation; empty where each does."""
    unit, save, saves = _cadence(recipe, "save_steps", "saves_per_epoch")
    other, evaluate, evals = _cadence(recipe, "eval_steps", "evals_per_epoch")
    both = f"({saves}; {evals})"
    if unit != other:
        return f"saves and evaluations are counted in different ways {both}. Count both in steps, or both per epoch."
    long, short = (evaluate, save) if unit == "epoch" else (save, evaluate)
    times = long / short
    if abs(times - round(times)) < 1e-6 and round(times) >= 1:
        return ""
    key = "evals_per_epoch" if unit == "epoch" else "save_steps"
    return f"some checkpoints fall on no evaluation {both}. Write `{key}: {math.ceil(times) * short:g}`."


def _best_has_a_measure(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Which checkpoint is best depends on the measure, and on whether more of it is better: of a loss, less is."""
    checkpoint = recipe.checkpoint
    metric = checkpoint.metric_for_best_model
    if checkpoint.save_strategy == "best" and metric is None:
        message = "`best` by which measure? Write `metric_for_best_model: eval_loss`."
        yield Finding(("save_strategy",), message, keys=("metric_for_best_model",))
    if checkpoint.greater_is_better and (metric is None or metric.endswith("loss")):
        name = f"beside {quoted('metric_for_best_model', metric)}" if metric else "of the loss"
        message = f"`true` {name}: the worst checkpoint wins. Take it out."
        yield Finding(
            ("greater_is_better",), message, Severity.WARNING, keys=("metric_for_best_model",)
        )


def _measures_need_single_rows(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """To let the model complete a row, the row must stand alone; in a packed one several do."""
    if not recipe.data.eval_sample_packing:
        return
    packed = "sample_packing" if recipe.data.sample_packing else "eval_sample_packing"
    for key in ("do_causal_lm_eval", "eval_table_size"):
        if value_of(recipe, key):
            message = (
                f"rows are completed one by one, and `{packed}: true` packs them. "
                "Write `eval_sample_packing: false`."
            )
            yield Finding((key,), message, keys=("eval_sample_packing", "sample_packing"))


def _evaluations_fit_memory(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Logits take most of the memory of an evaluation and grow with its batch.

    A run can train for an hour and run out of memory when it first evaluates.
    """
    rows, micro = recipe.checkpoint.eval_batch_size, effective(recipe, "micro_batch_size")
    if rows is not None and rows > micro:
        said = quoted("micro_batch_size", micro)
        message = f"{rows} is more than {said}: an evaluation may run out of memory. Write {micro}."
        yield Finding(("eval_batch_size",), message, Severity.WARNING, keys=("micro_batch_size",))


def _checkpoints_are_there(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """The hub gets checkpoints, and a run that goes on by itself starts from one: they have to be written.

    One without optimizer state is no checkpoint to go on from.
    """
    checkpoint, export = recipe.checkpoint, recipe.export
    none = checkpoint.save_strategy == "no" and not checkpoint.saves_per_epoch
    if none and export.hub_model_id and export.hub_strategy != "end":
        message = (
            "`save_strategy: no` writes no checkpoint to push, only the finished model. "
            "Write `hub_strategy: end`."
        )
        yield Finding(
            ("hub_model_id",), message, Severity.WARNING, keys=("save_strategy", "hub_strategy")
        )
    if checkpoint.auto_resume_from_checkpoints and checkpoint.resume_from_checkpoint is None:
        why = "`save_strategy: no` writes none" if none else ""
        if checkpoint.save_only_model:
            why = why or "`save_only_model: true` writes none that has the optimizer's state"
        if why:
            message = f"goes on from a checkpoint, but {why}. Take one of them out."
            yield Finding(
                ("auto_resume_from_checkpoints",),
                message,
                Severity.WARNING,
                keys=("save_strategy", "save_only_model"),
            )


RULES: Final = (
    Rule("R031", _evaluation_rows_once),
    Rule("R036", _strategy_fits_cadence),
    Rule("R037", _evaluations_happen),
    Rule("R038", _best_is_saved),
    Rule("R039", _best_has_a_measure),
    Rule("R040", _measures_need_single_rows),
    Rule("R046", _evaluations_fit_memory),
    Rule("R049", _checkpoints_are_there),
    Rule("R139", _stops_by_a_count),
)
