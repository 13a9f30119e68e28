"""The rows of a recipe, prepared on this machine: what `ft preprocess` and `ft preview` start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ft.launcher import dispatch, local_python
from ft.launcher.backends.base import Upload
from ft.launcher.inputs import describe, stage, uploads_of
from ft.recipes.errors import DataRowError, FtError, PlanError, RecipeError, Severity
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import resolve_path
from ft.recipes.normalize import Normalized
from ft.recipes.plan import RunPlan
from ft.recipes.prepared import STAGING, default_root
from ft.recipes.references import references
from ft.recipes.resolve import resolve
from ft.recipes.schema import SECTION_OF, SECTIONS, FlatRecipe
from ft.recipes.schema.model import ModelKeys
from ft.recipes.schema.optim import OptimKeys

HERE: Final = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
"""Rows are the same on every machine."""

TOKENIZER_KEYS: Final = (
    "base_model",
    "tokenizer_config",
    "revision_of_model",
    "trust_remote_code",
    "special_tokens",
)
"""Of the keys about the model, those that decide rows; the others may be what this version cannot run yet."""

STOP_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What is to be prepared."""

    plan: RunPlan
    uploads: tuple[Upload, ...]
    normalized: Normalized


def look(path: str, overrides: Sequence[str]) -> Rows:
    """The part of a recipe that decides its rows, and the files that it reads.

    A recipe for GPUs that this machine lacks, or for what cannot be trained yet, has rows all the same.
    Raises: RecipeError with every problem; PlanError if its data cannot be prepared yet.
    """
    checked = dispatch.check(path, overrides)
    if checked.report.of(Severity.ERROR):
        raise RecipeError(checked.report.problems)
    planned = [
        p for p in checked.report.of(Severity.PLANNED) if p.key and _decides_rows(str(p.key[0]))
    ]
    if planned:
        lines = "\n".join(str(problem) for problem in planned)
        raise PlanError(f"{lines}\nThis version of ft cannot prepare such rows yet.")
    flat = checked.normalized.flat
    files = {
        ref.key: describe(found, ref.kind)
        for ref in references(flat)
        if ref.kind != "model"
        and (found := resolve_path(ref.value, checked.normalized.folder_of(ref.key))) is not None
    }
    facts = Facts(files=dict(files), machine=HERE)
    plan = resolve(_rows_alone(checked.normalized), facts)
    return Rows(plan, uploads_of(facts), checked.normalized)


def _decides_rows(key: str) -> bool:
    return SECTION_OF.get(key) == "data" or key in TOKENIZER_KEYS or "token" in key


def _rows_alone(normalized: Normalized) -> FlatRecipe:
    """The recipe without what does not decide a row. Its tokenizer is read where it lies: no weights are hashed."""
    flat = normalized.flat
    values = {key: getattr(flat.model, key) for key in TOKENIZER_KEYS}
    for ref in references(flat):
        key = str(ref.key[0])
        if ref.kind == "model" and key in values:
            found = resolve_path(ref.value, normalized.folder_of(ref.key))
            values[key] = str(found.absolute()) if found is not None else ref.value
    empty = FlatRecipe.model_validate({})
    sections = {name: getattr(empty, name) for name in SECTIONS}
    optim = OptimKeys.model_construct(seed=flat.optim.seed)  # It decides which rows are held out.
    sections.update(model=ModelKeys.model_construct(**values), data=flat.data, optim=optim)
    return FlatRecipe.model_construct(**sections, plugin={})


@contextmanager
def run_folder(rows: Rows) -> Iterator[Path]:
    """A folder with the plan and its inputs, beside the cache; it goes away again."""
    root = default_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=root, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for upload in rows.uploads:
            stage(upload, folder / "inputs")
        (folder / "plan.json").write_text(rows.plan.to_json(), encoding="utf-8")
        yield folder


def ask(verb: str, rows: Rows, *arguments: str) -> Iterator[Mapping[str, Any]]:
    """What the runtime answers, line by line. Ctrl-C ends it; nothing half-made is left.

    Raises: DataRowError naming the user's file and the row; PlanError if the tokenizer cannot be had.
    """
    local_python.require_train()
    with run_folder(rows) as folder:
        command = [
            *local_python.runtime_command(verb),
            str(folder),
            "--root",
            str(default_root()),
            *arguments,
        ]
        dies = local_python.die_with(os.getpid(), signal.SIGTERM)
        with (
            tempfile.TemporaryFile("w+") as words,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                preexec_fn=dies,  # noqa: PLW1509  only a system call
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.startswith("{"):
                        yield _told(json.loads(line), rows)
                code = process.wait()
            finally:
                if process.poll() is None:
                    _end(process)
            words.seek(0)
            said = words.read().strip()[-2000:]
        if code:
            raise FtError(f"preparing rows failed with exit code {code}: {said}")


def _told(said: Mapping[str, Any], rows: Rows) -> Mapping[str, Any]:
    if said["event"] == "preview":
        bad = [{**row, "path": _named(row["path"], rows)} for row in said["bad"]]
        return {**said, "bad": bad}
    if said["event"] != "error":
        return said
    if said["path"] == "plan.json":
        hint = "a folder on this machine does as well: --set base_model=FOLDER"
        raise PlanError(said["reason"], hint=hint if "tokenizer" in said["reason"] else None)
    path = _named(said["path"], rows)
    raise DataRowError(path, said["row"], said["unit"], said["reason"], said["excerpt"])


def _named(path: str, rows: Rows) -> str:
    """The user's file, of which `path` is the copy in the run folder."""
    names = {f"inputs/{upload.name}": str(upload.source) for upload in rows.uploads}
    staged = next((name for name in names if path.startswith(name)), None)
    return path if staged is None else path.replace(staged, names[staged], 1)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
