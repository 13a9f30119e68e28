"""Rows from JSON lines on disk to prepared Arrow on disk: ft against datasets.map, TRL and Axolotl, in one run.

    python tests/bench/data.py --rows chat.jsonl [--axolotl-python PATH] [--cores 1] [--engine tokenizers]

Each side is a process of its own, on the same processors. What is timed begins after the libraries are imported and the
tokenizer is loaded, and ends when the rows are on disk; of Axolotl it is the phase "Tokenizing Prompts" that it
reports itself, without its write, and beside it the whole command. Rows are `{"messages": [{"role", "content"}]}`.
Axolotl needs an environment of its own: pip install --no-deps axolotl==0.19.0, and what it imports.
With it, the rows of both are compared one by one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
TOKENIZER = REPO / ".quickstart" / "SmolLM2-135M-Instruct"
LONGEST = 1 << 20
FAST = "fastokens"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# SmolLM2's own template, with what TRL asks for around the words of the assistant.
WITH_MARKS = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
)
PHASE = re.compile(r"Tokenizing Prompts[^\r\n]*?100%[^\r\n]*?\[(?:(\d+):)?(\d+):(\d+)<")


def say(seconds: float, tokens: int, trained: int | None, **more: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {"seconds": seconds, "tokens": tokens, "trained": trained, "peak_mib": peak, **more}
        )
    )


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


def side_ft(rows: Path, out: Path, cores: int, engine: str) -> None:
    from ft.recipes.facts import Facts, FileFact, Machine
    from ft.recipes.load import loads
    from ft.recipes.normalize import normalize
    from ft.recipes.resolve import resolve
    from ft.runtime.data.prepare import Work, build
    from ft.runtime.data.table import Table

    (out / "inputs").mkdir(parents=True)
    (out / "inputs" / "rows.jsonl").symlink_to(rows.resolve())
    digest = hashlib.sha256(b"not read here").hexdigest()
    fact = FileFact(kind="data", path=rows, name="rows.jsonl", sha256=digest, size=1)
    recipe = (
        f"base_model: inputs/model\nlearning_rate: 0.001\nsequence_len: {LONGEST}\n"
        "datasets: [{path: inputs/rows.jsonl, type: chat_template}]\n"
    )
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    files = {("datasets", 0, "path"): fact}
    plan = resolve(normalize(loads(recipe)).flat, Facts(files=dict(files), machine=machine))
    work = Work(plan.data, out, tokenizer(), cores, fast=engine == FAST)
    began = time.perf_counter()
    table = Table(out / "rows.arrow")
    counts = build(work, table)
    table.close()
    say(time.perf_counter() - began, counts["tokens"], counts["trained_tokens"])


def side_datasets(rows: Path, out: Path, cores: int, _: str) -> None:
    """Text and ids alone: no mask, no labels."""
    import datasets

    tok = tokenizer()

    def ids(batch: dict[str, Any]) -> Any:
        texts = tok.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tok(texts, add_special_tokens=False)["input_ids"]}

    began = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(out))
    found = loaded.map(
        ids, batched=True, remove_columns=["messages"], num_proc=cores if cores > 1 else None
    )
    found.save_to_disk(str(out / "rows"))
    seconds = time.perf_counter() - began
    say(seconds, sum(map(len, found["input_ids"])), None)


def side_trl(rows: Path, out: Path, cores: int, _: str) -> None:
    """SFTTrainer's own preparation with `assistant_only_loss`; its construction belongs to it."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tok = tokenizer()
    tok.chat_template = WITH_MARKS
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    arguments = SFTConfig(
        output_dir=str(out / "trl"), assistant_only_loss=True, max_length=None, packing=False, report_to=[],
        use_cpu=True, bf16=False, dataset_num_proc=cores if cores > 1 else None,
    )  # fmt: skip
    began = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(out))
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=loaded, processing_class=tok)
    trainer.train_dataset.save_to_disk(str(out / "rows"))
    seconds = time.perf_counter() - began
    found = trainer.train_dataset
    trained = sum(label != -100 for row in found["labels"] for label in row)
    say(seconds, sum(map(len, found["input_ids"])), trained)


def axolotl(python: Path, rows: Path, out: Path, cores: int, pinned: list[str]) -> dict[str, Any]:
    """`axolotl preprocess`, as it is."""
    values = {
        "base_model": str(TOKENIZER),
        "datasets": [{"path": str(rows.resolve()), "ds_type": "json", "type": "chat_template"}],
        "dataset_prepared_path": str(out / "prepared"),
        "shuffle_merged_datasets": False,
        "sequence_len": LONGEST,
        "dataset_num_proc": cores,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "output_dir": str(out / "out"),
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "sample_packing": False,
        "sdp_attention": True,
        "val_set_size": 0,
    }
    out.mkdir(parents=True)
    (out / "recipe.yml").write_text(json.dumps(values))
    env = {
        **os.environ,
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    env["HF_HOME"] = str(out / "hf")
    command = [*pinned, str(python), "-m", "axolotl.cli.preprocess", str(out / "recipe.yml")]
    began = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - began
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"axolotl failed:\n{said[-3000:]}")
    times = [int(h or 0) * 3600 + int(m) * 60 + int(s) for h, m, s in PHASE.findall(said)]
    return {"seconds": float(max(times, default=0)), "whole": whole}


def compare(ours: Path, theirs: Path) -> list[str]:
    """Row by row: equal ids, equal labels; and the first differences."""
    import datasets
    import numpy as np

    from ft.runtime.data.table import opened

    mine = opened(ours, "bench")
    (folder,) = [path.parent for path in theirs.rglob("state.json")]
    other = datasets.load_from_disk(str(folder))
    lines, same_ids, same_labels = [], 0, 0
    for number in range(min(len(mine), len(other))):
        a, b = mine[number], other[number]
        equal_ids = a["input_ids"] == b["input_ids"]
        same_ids += equal_ids
        same_labels += equal_ids and a["labels"] == b["labels"]
        if (not equal_ids or a["labels"] != b["labels"]) and len(lines) < 5:
            where = "ids"
            if equal_ids:
                at = np.flatnonzero(np.array(a["labels"]) != np.array(b["labels"]))
                where = f"{len(at)} labels, first at token {at[0]} of {len(a['labels'])}"
            lines.append(f"  row {number}: {where}")
    head = f"rows: ft {len(mine)}, Axolotl {len(other)}; same ids {same_ids}, same ids and labels {same_labels}"
    return [head, *lines]


SIDES: dict[str, Callable[[Path, Path, int, str], None]] = {
    "ft": side_ft, "datasets.map": side_datasets, "TRL": side_trl,
}  # fmt: skip


def measure(
    side: str, options: argparse.Namespace, work: Path, pinned: list[str]
) -> dict[str, Any]:
    out = work / side.replace(".", "-")
    if side == "Axolotl":
        return axolotl(options.axolotl_python, options.rows, out, options.cores, pinned)
    out.mkdir()
    command = [
        *pinned,
        sys.executable,
        __file__,
        "--side",
        side,
        "--out",
        str(out),
        "--rows",
        str(options.rows),
    ]
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
    }
    env["HF_HOME"] = str(out / "hf")
    command += ["--cores", str(options.cores), "--engine", options.engine]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--rows", type=Path, help="JSON lines of conversations; without it nothing is measured"
    )
    parser.add_argument("--axolotl-python", type=Path)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument(
        "--engine", choices=[FAST, "tokenizers"], default=FAST, help="what ft tokenizes with"
    )
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.rows is None:
        print("no --rows: real conversations are not part of the repository")
        return
    if options.side:
        SIDES[options.side](options.rows, options.out, options.cores, options.engine)
        return
    pinned = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[: options.cores]))]
    sides = [*SIDES, *(["Axolotl"] if options.axolotl_python else [])]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = {side: measure(side, options, work, pinned) for side in sides}
        print(f"{options.rows.name}, {options.cores} core(s), ft with {options.engine}\n")
        print(
            "| side | seconds | M tokens/s | ft is faster by | trained | peak MiB |\n|---|---|---|---|---|---|"
        )
        for side, row in found.items():
            tokens = row.get("tokens", found["ft"]["tokens"])
            trained = f"{row['trained'] / tokens:.1%}" if row.get("trained") else ""
            peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
            ratio = row["seconds"] / found["ft"]["seconds"]
            speed = tokens / row["seconds"] / 1e6 if row["seconds"] else 0
            print(
                f"| {side} | {row['seconds']:.2f} | {speed:.2f} | {ratio:.1f} | {trained} | {peak} |"
            )
        if "Axolotl" in found:
            print(f"\nAxolotl's whole command: {found['Axolotl']['whole']:.1f} s\n")
            print("\n".join(compare(work / "ft" / "rows.arrow", work / "Axolotl" / "prepared")))


if __name__ == "__main__":
    main()
