"""The finished adapter or model, with its tokenizer, published as `final`."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ft.recipes.plan import RunPlan
from ft.recipes.runstore import FINAL, Manifest, write_atomic
from ft.recipes.store import LocalStore


def publish(
    staged: Path,
    tokenizer: PreTrainedTokenizerBase,
    store: LocalStore,
    plan: RunPlan,
    *,
    plan_sha256: str,
    step: int,
    attempt: int,
) -> Manifest:
    """The weights that lie in `staged`, with their tokenizer: what `from_pretrained` loads, and what is served.

    On rank 0 only. `plan_sha256` is of the plan as it was made, `plan` as this attempt runs it.
    """
    # How this machine came by it is no property of the tokenizer: the same run gives the same files everywhere.
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(staged)
    _name_base_model(staged / "adapter_config.json", plan.model.base_model)
    return store.publish(
        staged, FINAL, step=step, attempt=attempt, plan_sha256=plan_sha256, meta={"step": step}
    )


def _name_base_model(config: Path, base_model: str) -> None:
    """The plan's name of the base model, as a folder of this machine means nothing elsewhere; names in order."""
    if config.is_file():
        values = json.loads(config.read_text())
        values["base_model_name_or_path"] = base_model
        if isinstance(values.get("target_modules"), list):
            # peft keeps a set: without an order the same run would give another file each time.
            values["target_modules"].sort()
        write_atomic(config, json.dumps(values, indent=2, sort_keys=True) + "\n")
