"""The result of a run that is trained, out of its last checkpoint: no model is loaded, and no GPU is needed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ft.recipes.errors import StoreError
from ft.recipes.plan import RunPlan
from ft.recipes.runstore import FINAL, MANIFEST, Manifest
from ft.recipes.store import LocalStore
from ft.runtime.checkpoint.write import COUNTERS
from ft.runtime.export.final import publish

FOR_A_RESUME = re.compile(
    rf"optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state.*\.pth|trainer_state\.json|{re.escape(COUNTERS)}"
)
"""What a checkpoint has beside the weights: all else is what `save_weights` wrote."""


def export_checkpoint(
    store: LocalStore, plan: RunPlan, tokenizer: PreTrainedTokenizerBase, *, step: int, attempt: int
) -> Manifest:
    """The same files, byte for byte, as an attempt leaves that exports the model it has trained to `step`.

    Raises: StoreError if that is not the newest one that is whole.
    """
    folder, passed = store.newest_checkpoint(plan_sha256=plan.sha256)
    if folder is None or Manifest.from_json((folder / MANIFEST).read_bytes()).step != step:
        why = f": {passed[0]}" if passed else ""
        raise StoreError(f"there is no whole checkpoint of step {step} to export{why}")
    staged = store.staging(FINAL)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name != MANIFEST and not FOR_A_RESUME.fullmatch(name.as_posix()):
            _give(path, staged / name)
    return publish(
        staged, tokenizer, store, plan, plan_sha256=plan.sha256, step=step, attempt=attempt
    )


def _give(path: Path, to: Path) -> None:
    """As a link, where the disk has them: what is published is never written again."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, to)
