"""What the launcher asks of the runtime on its own machine: `python -m ft.runtime VERB RUN_FOLDER`.

The run folder holds `plan.json` and `inputs/`. Answers are lines of JSON on standard output: any number of
{"event": "progress", "examples", "tokens", "bytes", "total_bytes"}, then {"event": "done", …} ({"event": "preview", …})
or {"event": "error", "path", "unit", "row", "reason", "excerpt"}, which is exit code 79 (78 if the plan is to blame).
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.recipes import prepared as cache
from ft.recipes.errors import PlanError, StoreError
from ft.recipes.plan import RunPlan, read_plan
from ft.recipes.runstore import INPUTS, ExitCode
from ft.recipes.store import LocalStore
from ft.runtime.data import preview as previewing
from ft.runtime.data.apart import data_bytes, processes_for
from ft.runtime.data.prepare import PreparedData, Progress, prepare
from ft.runtime.data.row import DataError
from ft.runtime.data.templates import template_of
from ft.runtime.ends import AttemptError
from ft.runtime.events import Events
from ft.runtime.model.source import reading
from ft.runtime.model.tokenizer import load_tokenizer
from ft.runtime.node import die_with_parent
from ft.runtime.work import enter, lay_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNUSED = ("*.gguf", "*.onnx", "*.pt", "*.pth", "*.h5", "*.msgpack", "onnx/*", "original/*")
"""Other forms of the same weights that lie beside those that are loaded."""
STOPS = (signal.SIGINT, signal.SIGTERM)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ft.runtime")
    parser.add_argument("verb", choices=["preprocess", "preview", "export"])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--root", type=Path, default=cache.default_root())
    parser.add_argument(
        "--processes", type=int, help="default: as many as the machine and the data allow"
    )
    parser.add_argument(
        "--fetch", action="store_true", help="preprocess: also fetch the model into the cache"
    )
    parser.add_argument("--step", type=int, help="export: the last one of the run")
    parser.add_argument("--rows", type=numbers, default=(), help="preview: row ids, 0,1,2 or 0:3")
    arguments = parser.parse_args(argv)
    die_with_parent(signum=signal.SIGTERM)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        run_folder, root = arguments.run_folder.absolute(), arguments.root.absolute()
        plan = read_plan(run_folder / "plan.json")
        if any(item.kind == "include" for item in plan.inputs):
            # Code of a tokenizer finds here what it finds where it is trained.
            enter(lay_out(plan, run_folder))
        work = (plan, run_folder, root, arguments.processes)
        if arguments.verb == "preview":
            preview(*work, arguments.rows)
        elif arguments.verb == "export":
            export(plan, run_folder, arguments.step)
        else:
            if arguments.fetch:
                fetch_model(plan)
            preprocess(*work)
    except PlanError as error:
        say("error", path="plan.json", unit="row", row=None, reason=error.message, excerpt="")
        return int(ExitCode.CONFIG)
    except AttemptError as error:
        say("error", path="cloud.include", unit="row", row=None, reason=error.message, excerpt="")
        return int(error.exit_code)
    except DataError as error:
        say("error", **json.loads(error.to_json()))
        return int(ExitCode.DETERMINISTIC)
    except StoreError as error:
        say("error", path="checkpoints", unit="row", row=None, reason=error.message, excerpt="")
        return int(ExitCode.UNCLASSIFIED)
    return 0


def stop_once(signum: int, _frame: object) -> None:
    """End, and take away what is half made; a second signal must not end that."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + signum)


def numbers(text: str) -> Sequence[int]:
    """`0,1,2`, or `0:3` for the same."""
    first, colon, end = text.partition(":")
    return range(int(first), int(end)) if colon else [int(part) for part in text.split(",")]


def preprocess(plan: RunPlan, run_folder: Path, root: Path, processes: int | None) -> None:
    """Make the rows, or find them."""
    data, seconds = made(plan, run_folder, tokenizer_of(plan, run_folder), root, processes)
    say(
        "done",
        counts=data.counts,
        train_rows=len(data.train),
        eval_rows=0 if data.eval is None else len(data.eval),
        folders=[str(folder) for folder in data.folders],
        was_there=data.was_there,
        seconds=seconds,
    )


def fetch_model(plan: RunPlan) -> None:
    """Put what the model needs into the Hub's cache, where ranks find it; a model that travels is there already.

    Raises: PlanError if there is no such model; what the network raises, where another attempt may do better.
    """
    from huggingface_hub import snapshot_download

    sources = {plan.model.base_model, plan.model.base_model_config}
    for source in sorted(s for s in sources if not s.startswith(f"{INPUTS}/")):
        with reading("base_model", source):
            snapshot_download(source, revision=plan.model.revision_of_model, ignore_patterns=UNUSED)


def preview(
    plan: RunPlan, run_folder: Path, root: Path, processes: int | None, rows: Sequence[int]
) -> None:
    """The same, then what the rows look like."""
    tokenizer = tokenizer_of(plan, run_folder)
    data, seconds = made(plan, run_folder, tokenizer, root, processes)
    found = previewing.preview(plan, data, tokenizer, rows)
    folders = [str(folder) for folder in data.folders]
    say("preview", **found, folders=folders, was_there=data.was_there, seconds=seconds)


def export(plan: RunPlan, run_folder: Path, step: int) -> None:
    """Publish the result of a run that is trained, as the last attempt would have.

    Raises: StoreError without a whole checkpoint of `step`, OSError where another attempt may do better.
    """
    from ft.runtime.export.of_checkpoint import export_checkpoint  # torch: seconds

    store, tokenizer = LocalStore(run_folder), load_tokenizer(plan, run_folder)
    template = template_of(plan.data, plan.data, run_folder, tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    events = Events(store, max(store.attempts(), default=0), speaks=True)
    manifest = export_checkpoint(store, plan, tokenizer, step=step, attempt=events.attempt)
    events.emit("final", name=manifest.name, bytes=manifest.size)
    say("done", counts={"bytes": manifest.size})


def tokenizer_of(plan: RunPlan, run_folder: Path) -> PreTrainedTokenizerBase:
    """Raises: PlanError if it cannot be had, also where another attempt may do better: nobody makes one here."""
    try:
        return load_tokenizer(plan, run_folder)
    except OSError as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        source = plan.model.tokenizer_config
        raise PlanError(f"tokenizer_config: {source} cannot be read now: {why}") from error


def made(
    plan: RunPlan,
    run_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    processes: int | None,
) -> tuple[PreparedData, float]:
    """The rows, and the seconds that it took; tells how far it is."""
    total = data_bytes(plan)

    def watch(at: Progress) -> None:
        say("progress", examples=at.examples, tokens=at.tokens, bytes=at.bytes, total_bytes=total)

    began = time.monotonic()
    data = prepare(
        plan,
        run_folder,
        tokenizer,
        watch,
        root=root,
        num_processes=processes or processes_for(plan),
    )
    return data, round(time.monotonic() - began, 3)


def say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)  # noqa: T201  it is asked to


if __name__ == "__main__":
    for each in STOPS:
        signal.signal(each, stop_once)
    sys.exit(main())
