"""How many held-out questions a model answers to the letter, before and after training.

    python quickstart/evaluate.py MODEL_DIR ADAPTER_DIR HELDOUT.jsonl [--show 5] [--json FILE]

HELDOUT.jsonl: rows `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`; the last
message is the expected answer, the ones before it are the question. "Before" is the model alone,
"after" is the model with its adapter. Answers are greedy. Progress goes to stderr, tables to stdout.

Exit codes: 0 measured, whatever the result; 2 an argument or a file is wrong; 4 a library is
missing; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 40
MAX_NEW_TOKENS = 16
"""A date and its end token are 11 tokens; more can only be wrong."""

WIDTH = 80
"""Columns of the tables."""


class EvaluationError(Exception):
    """An argument or a file that cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One held-out question."""

    messages: tuple[dict[str, str], ...]
    """The conversation up to the answer."""
    expected: str

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True, slots=True)
class Result:
    """What `--json` writes."""

    rows: int
    correct_before: int
    correct_after: int
    accuracy_before: float
    accuracy_after: float
    answers: tuple[dict[str, str], ...]
    """question, expected, before and after, in the order of the file."""


def is_exact(answer: str, expected: str) -> bool:
    """The answer is the expected text and nothing else; only white space around it is forgiven."""
    return answer.strip() == expected.strip()


def read_rows(path: Path) -> list[Row]:
    """Raises: EvaluationError naming the line that is not a conversation with an answer."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: {error}") from error
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise EvaluationError(f"{path}: no rows")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        messages = [
            {"role": str(m["role"]), "content": str(m["content"])}
            for m in json.loads(line)["messages"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f'{where}: expected {{"messages": [{{"role": …, "content": …}}, …]}}'
        ) from error
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise EvaluationError(
            f"{where}: expected a question and, as the last message, the assistant's answer"
        )
    return Row(tuple(messages[:-1]), messages[-1]["content"])


def load(model_dir: Path, adapter_dir: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model with the adapter around it, in float32 on the CPU, and the adapter's tokenizer.

    That one carries the chat template of the training; before and after are asked in the same words.

    Raises: EvaluationError if a folder holds no model or no adapter; ImportError if a library is
    missing.
    """
    for folder, file in ((model_dir, "config.json"), (adapter_dir, "adapter_config.json")):
        if not (folder / file).is_file():
            raise EvaluationError(f"{folder}: no {file} there")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    # transformers warns about a name of its own.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(adapter_dir, padding_side="left")
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(adapter_dir))
    except (OSError, ValueError, RuntimeError) as error:
        raise EvaluationError(f"{adapter_dir} on {model_dir}: {error}") from error
    model.eval()
    return model, tokenizer


def answer_all(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, label: str
) -> list[str]:
    """Greedy answers in the order of `rows`."""
    prompts = [
        tokenizer.apply_chat_template(
            list(row.messages), tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    # Rows of one length go together: less padding to compute.
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    answers = [""] * len(rows)
    done = 0
    for indices in batches(order, BATCH_SIZE):
        progress(f"{label}: {done}/{len(rows)}")
        texts = _generate(model, tokenizer, [prompts[i] for i in indices])
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
        done += len(indices)
    progress(f"{label}: {done}/{len(rows)}\n")
    return answers


def batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def progress(text: str) -> None:
    """Overwrite the progress line."""
    sys.stderr.write(f"\r{text}")
    sys.stderr.flush()


def _generate(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> list[str]:
    import torch

    # The template wrote the special tokens already.
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        output_BT = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    completions_BT = output_BT[:, inputs["input_ids"].shape[1] :]
    return [
        text.strip() for text in tokenizer.batch_decode(completions_BT, skip_special_tokens=True)
    ]


def evaluate(model_dir: Path, adapter_dir: Path, heldout: Path) -> Result:
    """One load, two passes: with the adapter off and on. Raises: as `read_rows` and `load`."""
    rows = read_rows(heldout)
    progress("loading the model ...\n")
    model, tokenizer = load(model_dir, adapter_dir)
    with model.disable_adapter():
        before = answer_all(model, tokenizer, rows, label="before training")
    after = answer_all(model, tokenizer, rows, label="after training")
    return score(rows, before, after)


def score(rows: Sequence[Row], before: Sequence[str], after: Sequence[str]) -> Result:
    """Count exact answers; the three sequences run in parallel and are not empty."""
    correct_before = sum(
        is_exact(text, row.expected) for row, text in zip(rows, before, strict=True)
    )
    correct_after = sum(is_exact(text, row.expected) for row, text in zip(rows, after, strict=True))
    return Result(
        rows=len(rows),
        correct_before=correct_before,
        correct_after=correct_after,
        accuracy_before=correct_before / len(rows),
        accuracy_after=correct_after / len(rows),
        answers=tuple(
            {"question": row.question, "expected": row.expected, "before": old, "after": new}
            for row, old, new in zip(rows, before, after, strict=True)
        ),
    )


def show(result: Result, count: int) -> None:
    """Print the first `count` answers side by side, then the two accuracies, in 80 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=WIDTH, highlight=False)
    if count:
        table = Table(
            title=f"{min(count, result.rows)} of {result.rows} held-out questions", width=WIDTH
        )
        table.add_column("question", ratio=5)
        table.add_column("expected", width=10)
        table.add_column("before", ratio=4)
        table.add_column("after", width=10)
        for answer in result.answers[:count]:
            cells = [Text(answer["question"]), Text(answer["expected"])]
            for text in (answer["before"], answer["after"]):
                colour = "green" if is_exact(text, answer["expected"]) else "red"
                cells.append(Text(" ".join(text.split()), style=colour))
            table.add_row(*cells)
        console.print(table)
    summary = (
        ("before", result.correct_before, result.accuracy_before),
        ("after", result.correct_after, result.accuracy_after),
    )
    for when, correct, accuracy in summary:
        label = f"{when} training:"
        console.print(f"exact answers {label:<16}{correct:>4} of {result.rows} ({accuracy:.1%})")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Exact answers on held-out rows, before and after training."
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER_DIR")
    parser.add_argument("heldout", type=Path, metavar="HELDOUT.jsonl")
    parser.add_argument(
        "--show", type=int, default=5, metavar="N", help="answers to print side by side; default: 5"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write accuracies and every answer there"
    )
    options = parser.parse_args(arguments)
    try:
        result = evaluate(options.model, options.adapter, options.heldout)
        if options.json:
            options.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    except (EvaluationError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"evaluate: {error}.\nRun: pip install -e '.[train]'  (`make setup` does it)",
            file=sys.stderr,
        )
        return 4
    except KeyboardInterrupt:
        print("\nevaluate: stopped", file=sys.stderr)
        return 130
    show(result, max(0, options.show))
    return 0


if __name__ == "__main__":
    sys.exit(main())
