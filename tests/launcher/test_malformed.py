"""Bad input of every kind: all that `ft check` says to it, to the letter. Never a traceback, never slow."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ft.launcher.cli.app import main

GOOD = """\
base_model: model
datasets:
  - path: rows.jsonl
    type: completion
learning_rate: 1e-4
"""
"""Five lines; what a case adds begins in line 6."""

MODEL = "base_model: model\nlearning_rate: 1e-4\n"
"""Two lines; the data sets of a case begin in line 3."""

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
"""Of <linux/prctl.h> and <linux/capability.h>."""

Check = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a model and two rows, and its name taken out of the way."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 2048}')
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGPIPE)
    yield tmp_path
    signal.signal(signal.SIGPIPE, before)


@pytest.fixture
def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """`ft check`: exit code, lines of stdout, stderr."""

    def run(*arguments: str) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as end:
            main(["check", *arguments])
        out, err = capsys.readouterr()
        assert out.isprintable() or set(filter(lambda c: not c.isprintable(), out)) == {"\n"}
        return int(end.value.code or 0), out.splitlines(), err

    return run


def bomb() -> str:
    """Nine to the power of eight words."""
    names = "abcdefgh"
    lines = [f"a: &a [{', '.join(['x'] * 9)}]"]
    lines += [f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in pairwise(names)]
    return "\n".join(lines)


def merge_bomb() -> str:
    """Each mapping is merged ten times into the next one."""
    lines = ["a0: &a0 {k0: 1}"]
    lines += [
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}" for i in range(1, 250)
    ]
    return "\n".join(lines)


NO_CONFIG = "6 rules could not be checked here; --verbose says which"
"""They ask for the model's config.json."""
AT_LEAST = "a recipe has at least `base_model`, `datasets` and `learning_rate`"
SCHEDULERS = "one of the 14 values that `ft explain lr_scheduler` lists"
ADAPTERS = "'lora', 'qlora', 'llama-adapter' or 'mora'"
NO_ADAPTER = "warning: R005 has no effect without `adapter: lora`: all weights will be trained"

RECIPES: dict[str, tuple[str | bytes, list[str]]] = {
    # -------------------------------------------------------------------------------- values
    "wrong types": (
        GOOD + "micro_batch_size: two\nlora_r: [1]\nseed: {a: 1}\ngradient_checkpointing: 2\n",
        [
            "r.yml:6: micro_batch_size: expected a whole number, got 'two'",
            "r.yml:7: lora_r: expected a whole number, got [1]",
            "r.yml:8: seed: expected a whole number, got {'a': 1}",
            "r.yml:9: gradient_checkpointing: expected true or false or 'offload' or 'offload_disk', got 2",
            "4 problems",
        ],
    ),
    "number as text": (
        GOOD + "lora_r: '8.5'\nnum_epochs: '2x'\nlora_dropout: 0,1\nwarmup_ratio: 3%\nseed: ' 1'\n"
        "max_steps: 1e\nsave_steps: 1.2.3\nsave_total_limit: '0x2'\nlogging_steps: '٣'\n",
        [
            "r.yml:6: lora_r: expected a whole number, got '8.5'",
            "r.yml:7: num_epochs: expected a number, got '2x'",
            "r.yml:8: lora_dropout: expected a number, got '0,1'",
            "r.yml:9: warmup_ratio: expected a number, got '3%'",
            "r.yml:10: seed: expected a whole number, got ' 1'",
            "r.yml:11: max_steps: expected a whole number, got '1e'",
            "r.yml:12: save_steps: expected a number, got '1.2.3'",
            "r.yml:13: save_total_limit: expected a whole number, got '0x2'",
            "r.yml:14: logging_steps: expected a whole number, got '٣'",
            "9 problems",
        ],
    ),
    "no numbers": (
        MODEL.replace("1e-4", ".nan") + "weight_decay: .inf\nnum_epochs: -.inf\nwarmup_ratio: nan\n"
        "max_grad_norm: 1e999\nsave_steps: .inf\ndatasets: [{path: rows.jsonl, type: completion}]\n",
        [
            "r.yml:2: learning_rate: expected a finite number, got nan",
            "r.yml:3: weight_decay: expected a finite number, got inf",
            "r.yml:4: num_epochs: expected a finite number, got -inf",
            "r.yml:5: warmup_ratio: expected a number, got 'nan'",
            "r.yml:6: max_grad_norm: expected a finite number, got inf",
            "r.yml:7: save_steps: expected a finite number, got inf",
            "6 problems",
        ],
    ),
    "negative and zero": (
        GOOD + "lora_r: -8\nmicro_batch_size: 0\nnum_epochs: 0\nmax_steps: -1\nseed: -1\nval_set_size: -0.1\n",
        [
            "r.yml:6: lora_r: expected greater than or equal to 1, got -8",
            "r.yml:7: micro_batch_size: expected greater than or equal to 1, got 0",
            "r.yml:8: num_epochs: expected greater than 0, got 0",
            "r.yml:9: max_steps: warning: -1 means that it is not set: no limit.",
            "r.yml:10: seed: expected greater than or equal to 0, got -1",
            "r.yml:11: val_set_size: expected greater than or equal to 0, got -0.1",
            "5 problems, 1 warning",
        ],
    ),
    "numbers that never end": (
        GOOD + f"seed: {'9' * 5000}\nmax_steps: {'9:' * 5000}9\nlora_r: 1e30\n",
        [
            "r.yml:6: seed: 5000 characters are too many for a whole number, at most 100",
            "r.yml:7: max_steps: 10001 characters are too many for a whole number, at most 100",
            "r.yml:8: lora_r: expected a whole number, got 1e+30",
            "3 problems",
        ],
    ),
    "octal and base 60": (
        GOOD + "seed: 010\nlora_r: 08\nsave_steps: 1:30\nmicro_batch_size: 0x10\nmax_steps: 1_000\n",
        [
            "r.yml:6: seed: 010 is octal in YAML: 8. Write 8, or 10 without the zero in front.",
            f"r.yml:7: lora_r: {NO_ADAPTER}",
            "r.yml:8: save_steps: 1:30 is a number in base 60 to YAML: 90. Write 90, or quotes around text.",
            "2 problems, 1 warning",
        ],
    ),
    "dates": (
        GOOD + "output_dir: 2026-11-23\nseed: 2026-11-23T10:00:00Z\nrevision_of_model: 2026-13-45\n",
        [
            "r.yml:6: output_dir: expected text, got the date 2026-11-23. Quotes make it text.",
            "r.yml:7: seed: expected a whole number, got the date 2026-11-23 10:00:00+00:00",
            "r.yml:8: revision_of_model: '2026-13-45' is not a date. Quotes make it text.",
            "3 problems",
        ],
    ),
    "on, off, yes and no": (
        GOOD + "gradient_checkpointing: on\nbf16: off\ntrain_on_inputs: yes\nadapter: no\nlr_scheduler: on\n"
        "output_dir: yes\nseed: on\n",
        [
            f"r.yml:9: adapter: expected {ADAPTERS}, got false, which is how YAML reads no and off",
            f"r.yml:10: lr_scheduler: expected {SCHEDULERS}, got true, which is how YAML reads yes and on",
            "r.yml:11: output_dir: expected text, got true, which is how YAML reads yes and on",
            "r.yml:12: seed: expected a whole number, got true",
            "4 problems",
        ],
    ),
    "nearly right values": (
        GOOD + "lr_scheduler: cosin\nadapter: LoRA\nchat_template: chatmI\noptimizer: sgd\nrevision_of_model: 12\n",
        [
            f"r.yml:6: lr_scheduler: expected {SCHEDULERS}, got 'cosin'. Did you mean `cosine`?",
            f"r.yml:7: adapter: expected {ADAPTERS}, got 'LoRA'. Did you mean `lora`?",
            "r.yml:8: chat_template: expected one of the 41 values that `ft explain chat_template` lists, "
            "got 'chatmI'. Did you mean `chatml`?",
            "r.yml:9: optimizer: not runnable yet: sgd",
            "r.yml:10: revision_of_model: expected text, got 12. Quotes make it text.",
            "4 problems, 1 not runnable yet",
        ],
    ),
    "null everywhere": (
        "base_model:\ndatasets:\n  -\n  - path:\n    type:\nlearning_rate: ~\nadapter: null\ncloud: null\nseed:\n",
        [
            "r.yml:1: base_model: R001 required: a hub id or a local folder",
            "r.yml:3: datasets.0: expected a mapping of keys, got null",
            "r.yml:4: datasets.1.path: required, but not there",
            "r.yml:6: learning_rate: R001 required; 2e-4 is usual for LoRA, 2e-5 for all weights",
            NO_CONFIG,
            "4 problems",
        ],
    ),
    # ---------------------------------------------------------------------------------- keys
    "unknown keys": (
        GOOD + "lora_rank: 3\nxyzzyq: 3\nlogging_stepz: 1\nds_type: json\nepochs: 2\n",
        [
            "r.yml:6: lora_rank: unknown key. Did you mean `lora_r`?",
            "r.yml:7: xyzzyq: unknown key.",
            "r.yml:8: logging_stepz: unknown key. Did you mean `logging_steps`?",
            "r.yml:9: ds_type: unknown key.",
            "r.yml:10: epochs: unknown key. Did you mean `num_epochs`?",
            "5 problems",
        ],
    ),
    "duplicate keys hide nothing": (
        GOOD + "seed: x\nlora_rank: 3\nseed: 2\ncloud:\n  gpu: cpu\n  gpu: cpu:2\nseed: 3\n",
        [
            "r.yml:6: seed: expected a whole number, got 'x'",
            "r.yml:7: lora_rank: unknown key. Did you mean `lora_r`?",
            "r.yml:8: seed: the key stands twice; first in line 6. Keep one.",
            "r.yml:11: cloud.gpu: the key stands twice; first in line 10. Keep one.",
            "r.yml:12: seed: the key stands twice; first in line 6. Keep one.",
            "5 problems",
        ],
    ),
    "keys that are no words": (
        GOOD + "learning rate: 3\n? [a, b]\n: 1\n1: 2\ntrue: 3\nnull: 3\n2026-01-01: x\n{{ x }}: 1\n\"\": 2\n",
        [
            "r.yml:6: learning rate: unknown key. Did you mean `learning_rate`?",
            "r.yml:7: a list or mapping as a key; put quotes around text that begins with [ or {",
            "r.yml:9: 1: unknown key.",
            "r.yml:10: true: unknown key.",
            "r.yml:11: null: unknown key.",
            "r.yml:12: 2026-01-01: unknown key.",
            "r.yml:13: a list or mapping as a key; put quotes around text that begins with [ or {",
            "r.yml:14: a value without a key",
            "8 problems",
        ],
    ),
    "a very long key": (
        GOOD + f"? {'k' * 5000}\n: 1\n",
        ["r.yml:6: a key of 5000 characters, at most 200", "1 problem"],
    ),
    "letters that only look right": (
        GOOD + 'l\u043era_r: 8\n\u200bseed: 1\n"\\e[31mseed": 1\nadapter: "\\e[31mlora"\n',
        [
            "r.yml:6: l\u043era_r: unknown key. `\u043e` in it is CYRILLIC SMALL LETTER O. Did you mean `lora_r`?",
            "r.yml:7: the key '\\u200bseed' has a character that cannot be seen",
            "r.yml:8: the key '\\x1b[31mseed' has a character that cannot be seen",
            f"r.yml:9: adapter: expected {ADAPTERS}, got '\\x1b[31mlora'",
            "4 problems",
        ],
    ),
    "a template without quotes": (
        GOOD + "chat_template_jinja: {{ messages }}\nseed: x\n",
        [
            "r.yml:6: chat_template_jinja: a list or mapping as a key; put quotes around text that begins "
            "with [ or {",
            "r.yml:7: seed: expected a whole number, got 'x'",
            "2 problems",
        ],
    ),
    # --------------------------------------------------------------------------------- cloud
    "an impossible layout": (
        GOOD + "dp_shard_size: 3\ncloud: {gpu: 'H100:8'}\nbf16: false\n",
        [
            "r.yml:6: dp_shard_size: not runnable yet",
            "r.yml:6: dp_shard_size: R011 3 does not divide the 8 processes. Use one of 1, 2, 4, 8.",
            "r.yml:6: dp_shard_size: R151 3 shards nothing without `fsdp_config`. Add it with `fsdp_version: 2`.",
            "2 problems, 1 not runnable yet",
        ],
    ),
    "more machines than there are": (
        GOOD + "dp_replicate_size: 7\ncloud: {gpu: 'H100:8', nodes: 1000000000000}\nbf16: false\n",
        [
            "r.yml:6: dp_replicate_size: R011 7 does not divide the 8000000000000 processes.",
            "1 problem",
        ],
    ),
    "a cloud block of nonsense": (
        GOOD + "cloud:\n  timeout: soon\n  gpu: 'H100:'\n  nodes: 0\n  max_cost: lots\n  price_per_hour: -1\n"
        "  store: 3\n",
        [
            "r.yml:7: cloud.timeout: expected seconds, or 90m, 6h, 1d, got 'soon'",
            "r.yml:8: cloud.gpu: expected NAME:COUNT such as H100:8 or cpu:2, got 'H100:'",
            "r.yml:9: cloud.nodes: expected greater than or equal to 1, got 0",
            "r.yml:10: cloud.max_cost: expected a number, got 'lots'",
            "r.yml:11: cloud.price_per_hour: expected greater than 0, got -1",
            "r.yml:12: cloud.store: expected text, got 3. Quotes make it text.",
            "6 problems",
        ],
    ),
    "a cloud block that is none": (
        GOOD + "cloud: modal\n",
        ["r.yml:6: cloud: expected a mapping of keys, got 'modal'", "1 problem"],
    ),
    "max_cost without a price": (
        GOOD + "cloud: {gpu: cpu, max_cost: 5}\n",
        [
            "r.yml:6: cloud.max_cost: R017 nobody knows what an hour here costs. Add `price_per_hour`, in US dollars.",
            "1 problem",
        ],
    ),
    # ----------------------------------------------------------------------------- data sets
    "datasets: {}": (
        MODEL + "datasets: {}\n",
        ["r.yml:3: datasets: expected a list, got {}", "1 problem"],
    ),
    "datasets: []": (
        MODEL + "datasets: []\n",
        ["r.yml:3: datasets: expected at least one element, got []", "1 problem"],
    ),
    "datasets is one": (
        MODEL + "datasets: {path: a, type: alpaca}\n",
        [
            "r.yml:3: datasets: expected a list, got {'path': 'a', 'type': 'alpaca'}. "
            "Put `- ` in front of each element.",
            "1 problem",
        ],
    ),
    "datasets is a name": (
        MODEL + "datasets: rows.jsonl\n",
        [
            "r.yml:3: datasets: expected a list, got 'rows.jsonl'. "
            "Write `datasets: [{path: rows.jsonl, type: alpaca}]`.",
            "1 problem",
        ],
    ),
    "datasets is a list of names": (
        MODEL + "datasets: [rows.jsonl, {path: rows.jsonl, type: completion}]\n",
        [
            "r.yml:3: datasets.0: expected a mapping of keys, got 'rows.jsonl'. "
            "Write `{path: rows.jsonl, type: alpaca}`.",
            "1 problem",
        ],
    ),
    "a bit of everything": (
        MODEL + "datasets:\n  - type: completion\n  - {path: rows.jsonl, type: sharegpt}\n"
        "  - {path: rows.jsonl, type: chat-template}\n  - rows.jsonl\n"
        "  - {path: rows.jsonl, type: completion, ds_type: json}\n"
        "  - {path: gone.jsonl, type: completion}\n  - {path: rows.jsonl, type: completion, field: txt}\n",
        [
            "r.yml:4: datasets.0.path: required, but not there",
            "r.yml:5: datasets.1.type: sharegpt is gone: write `type: chat_template`, "
            "`field_messages: conversations` and `message_property_mappings: {role: from, content: value}`",
            "r.yml:6: datasets.2.type: 'chat-template' is no format. Did you mean `chat_template`?",
            "r.yml:7: datasets.3: expected a mapping of keys, got 'rows.jsonl'. "
            "Write `{path: rows.jsonl, type: alpaca}`.",
            "r.yml:8: datasets.4.ds_type: not runnable yet",
            "r.yml:9: datasets.5.path: R002 gone.jsonl does not exist, neither in the current folder nor beside the "
            "recipe. Mend the path.",
            "r.yml:10: datasets.6: R018 rows.jsonl, line 1: has no column `txt`; its columns: `text`. "
            "`field` names another one.",
            "r.yml:10: datasets.6: R018 rows.jsonl, line 2: has no column `txt`; its columns: `text`. "
            "`field` names another one.",
            "7 problems, 1 not runnable yet",
        ],
    ),
    "a path that cannot be": (
        MODEL + 'datasets: [{path: "a\\0.jsonl", type: completion}, {path: ~nouser/a, type: completion}]\n',
        [
            "r.yml:3: datasets.0.path: R002 'a\\x00.jsonl' does not exist, neither in the current folder nor beside "
            "the recipe. Mend the path.",
            "r.yml:3: datasets.1.path: R002 ~nouser/a does not exist, neither in the current folder nor beside the "
            "recipe. Mend the path.",
            "2 problems",
        ],
    ),
    "a model that is a file": (
        GOOD.replace("base_model: model", "base_model: rows.jsonl"),
        ["r.yml:1: base_model: R018 rows.jsonl is a file, expected the folder of a model.",
         NO_CONFIG,
         "1 problem"],
    ),
    # ---------------------------------------------------------------------------------- YAML
    "an open quote": (
        GOOD + 'output_dir: "./out\nseed: x\n',
        [
            "r.yml:6: a quote opens here that is never closed",
            "1 problem",
        ],
    ),
    "an open bracket": (
        GOOD + "lora_target_modules: [q_proj\nseed: x\n",
        [
            "r.yml:7: not YAML: did not find expected ',' or ']' (while parsing a flow sequence that begins in line 6)",
            "1 problem",
        ],
    ),
    "a key without a colon": (
        GOOD + "seed 42\nlora_r: 3\n",
        [
            "r.yml:6: expected `key: value`, got `seed 42`: no colon with a blank after it",
            "1 problem",
        ],
    ),
    "a tab": (
        MODEL + "datasets:\n\t- path: rows.jsonl\n",
        ["r.yml:4: a tab; YAML is indented with spaces", "1 problem"],
    ),
    "indented by one too few": (
        MODEL + "datasets:\n  - path: rows.jsonl\n   type: completion\n",
        [
            "r.yml:5: `type` stands behind 3 blanks, `path` in line 4 behind 4. What belongs together begins in the "
            "same column.",
            "1 problem",
        ],
    ),
    "two documents": (
        GOOD + "---\nseed: 1\n",
        ["r.yml:6: a second document begins here (`---`); a recipe is one", "1 problem"],
    ),
    "a list": ("- a\n- b\n", ["r.yml:1: expected `key: value` lines, got list", "1 problem"]),
    "a word": ("hello\n", ["r.yml:1: expected `key: value` lines, got text", "1 problem"]),
    "empty": ("", [f"r.yml:1: the file is empty; {AT_LEAST}", "1 problem"]),
    "only comments": (
        "# nothing\n\n   # here\n",
        [f"r.yml:1: there are no keys in this file; {AT_LEAST}", "1 problem"],
    ),
    "an empty document": ("---\n", [f"r.yml:1: there are no keys in this file; {AT_LEAST}", "1 problem"]),
    "too little": (
        "seed: 1\n",
        [
            "r.yml:1: base_model: R001 required: a hub id or a local folder",
            "r.yml:1: datasets: R001 required: a list with `path` and `type` each",
            "r.yml:1: learning_rate: R001 required; 2e-4 is usual for LoRA, 2e-5 for all weights",
            NO_CONFIG,
            "3 problems",
        ],
    ),
    "a block without a blank": (
        GOOD + "cloud:\n  gpu:cpu\n",
        ["r.yml:6: cloud: expected a mapping of keys, got 'gpu:cpu'. Write `gpu: cpu`, with a blank.", "1 problem"],
    ),
    # ------------------------------------------------------------------- tags, aliases, bombs
    "unsafe tags": (
        GOOD + "output_dir: !!python/object/apply:os.system ['touch pwned']\n"
        "seed: !!python/object/new:os._exit [3]\n!!python/name:os.system : 1\nlora_r: !env RANK\nlora_rank: 3\n",
        [
            "r.yml:6: output_dir: tag !!python/object/apply:os.system is not allowed: a recipe is data, "
            "it cannot run code",
            "r.yml:7: seed: tag !!python/object/new:os._exit is not allowed: a recipe is data, it cannot run code",
            "r.yml:8: tag !!python/name:os.system is not allowed: a recipe is data, it cannot run code",
            "r.yml:9: lora_r: tag !env is not allowed: a recipe is data, it cannot run code",
            "r.yml:10: lora_rank: unknown key. Did you mean `lora_r`?",
            "5 problems",
        ],
    ),
    "tags that lie": (
        GOOD + "seed: !!int x\nlora_r: !!float ''\nbf16: !!bool maybe\nmax_steps: !!timestamp x\n"
        "num_epochs: !!set {a}\n",
        [
            "r.yml:6: seed: 'x' is not a whole number. Quotes make it text.",
            "r.yml:7: lora_r: '' is not a number. Quotes make it text.",
            "r.yml:8: bf16: 'maybe' is not true or false. Quotes make it text.",
            "r.yml:9: max_steps: 'x' is not a date. Quotes make it text.",
            "r.yml:10: num_epochs: tag !!set is not allowed: a recipe is data, it cannot run code",
            "5 problems",
        ],
    ),
    "a billion laughs": (
        bomb(),
        ["r.yml:5: too much for a recipe: its aliases stand for more than 20000 values", "1 problem"],
    ),
    "a merge bomb": (
        merge_bomb(),
        ["r.yml:61: too much for a recipe: its aliases stand for more than 20000 values", "1 problem"],
    ),
    "an alias of itself": (
        GOOD + "lora_target_modules: &a [q_proj, *a]\n",
        ["r.yml:6: an alias that contains itself", "1 problem"],
    ),
    "a merge of itself": (
        GOOD + "cloud: &a {gpu: cpu, <<: *a}\n",
        ["r.yml:6: an alias that contains itself", "1 problem"],
    ),
    "an alias of nothing": (
        GOOD + "seed: *nope\n",
        ["r.yml:6: not YAML: found undefined alias", "1 problem"],
    ),
    "a merge of no mapping": (
        GOOD + "cloud: {<<: 3, nodes: 0}\n",
        [
            "r.yml:6: cloud: `<<` needs a mapping",
            "r.yml:6: cloud.nodes: expected greater than or equal to 1, got 0",
            "2 problems",
        ],
    ),
    "an anchor on the side": (
        "defaults: &set {path: rows.jsonl, type: completion}\n" + MODEL + "datasets:\n  - <<: *set\n  - *set\n",
        ["r.yml:1: defaults: unknown key.", "1 problem"],
    ),
    "deep": (f"a: {'[' * 20_000}{']' * 20_000}\n", ["r.yml:1: nested deeper than 32 levels", "1 problem"]),
    "deep lines": (
        "".join(f"{' ' * i}a:\n" for i in range(1000)),
        ["r.yml:33: nested deeper than 32 levels", "1 problem"],
    ),
    "deep by aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} {'[' * 20}*a{i - 1}{']' * 20}\n" for i in range(1, 30)),
        ["r.yml:3: nested deeper than 32 levels", "1 problem"],
    ),
    "5 MB": (
        "# x\n" * 1_250_000,
        ["r.yml:1: too long for a recipe: more than 1048576 bytes", "1 problem"],
    ),
    "a megabyte of keys": (
        "".join(f"k{i}: 1\n" for i in range(90_000)),
        ["r.yml:10000: too much for a recipe: it has more than 20000 values", "1 problem"],
    ),
    # --------------------------------------------------------------------------------- bytes
    "not UTF-8": (
        GOOD.encode() + "output_dir: M\u00fcller\n".encode("latin-1"),
        ["r.yml:6: not UTF-8 text (byte 103): it looks like Latin-1. Save it as UTF-8.", "1 problem"],
    ),
    "UTF-16": (
        GOOD.encode("utf-16"),
        ["r.yml:1: not UTF-8 text (byte 0): it looks like UTF-16. Save it as UTF-8.", "1 problem"],
    ),
    "a NUL": (
        GOOD.encode() + b"output_dir: a\0b\n",
        ["r.yml:6: a control character (U+0000); is this a text file?", "1 problem"],
    ),
    "a picture": (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        ["r.yml:1: not UTF-8 text (byte 0)", "1 problem"],
    ),
    "a program": (
        b"\x7fELF\x02\x01\x01\0\0\0\0\0",
        ["r.yml:1: a control character (U+007F); is this a text file?", "1 problem"],
    ),
    "lines that end as on Windows": (
        (GOOD + "seed: x\nlora_rank: 3\n").replace("\n", "\r\n"),
        [
            "r.yml:6: seed: expected a whole number, got 'x'",
            "r.yml:7: lora_rank: unknown key. Did you mean `lora_r`?",
            "2 problems",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_explained(check: Check, folder: Path, name: str) -> None:
    content, expected = RECIPES[name]
    (folder / "r.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert check("r.yml") == (2, expected, "")
    assert sorted(path.name for path in folder.iterdir()) == ["model", "r.yml", "rows.jsonl"]


@pytest.mark.parametrize(
    "content",
    [
        GOOD.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
        (GOOD + "seed:\t42\n").encode(),
        (GOOD + "cloud: &c\n  gpu: cpu\n").encode(),
        (GOOD + "output_dir: ./Müller/出力\n...\n").encode(),
        (GOOD + "seed: 0\nmax_steps: 0x10\nnum_epochs: 1_0\n").encode(),
    ],
    ids=["CRLF", "BOM", "both", "a tab before a value", "an anchor", "Unicode", "numbers"],
)
def test_what_only_looks_odd_is_right(check: Check, folder: Path, content: bytes) -> None:
    (folder / "r.yml").write_bytes(content)
    assert check("r.yml") == (0, ["no problems"], "hint: ft plan r.yml\n")


def test_numbers_and_switches_in_another_form_are_read(
    check: Check, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meant = {
        "num_epochs": ("'2'", 2.0),
        "max_steps": ('"1_000"', 1000),
        "micro_batch_size": ("2.0", 2),
        "gradient_accumulation_steps": ("'08'", 8),
        "weight_decay": ('"1e-2"', 0.01),
        "max_grad_norm": (".5", 0.5),
        "warmup_steps": ("off", 0),
        "seed": ("false", 0),
        "gradient_checkpointing": ("1", True),
        "bf16": ('"False"', False),
        "train_on_inputs": ("'on'", True),
        "tf32": ("0", False),
        "cloud": ("{nodes: 1.0, gpu: cpu}", {"gpu": "cpu", "nodes": 1}),
    }
    (folder / "r.yml").write_text(GOOD + "".join(f"{k}: {v}\n" for k, (v, _) in meant.items()))
    assert check("r.yml") == (0, ["no problems"], "hint: ft plan r.yml\n")
    with pytest.raises(SystemExit) as end:
        main(["resolve", "r.yml", "--json"])
    assert end.value.code in {None, 0}
    resolved = json.loads(capsys.readouterr().out)
    assert {key: resolved[key] for key in meant} == {
        key: value for key, (_, value) in meant.items()
    }
    assert [type(resolved[key]) for key in meant] == [type(value) for _, value in meant.values()]


# ------------------------------------------------------------------------------------------- data

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
AGAIN = "`message_property_mappings` names another one."


def lines(*rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


DATA: dict[str, tuple[dict[str, str | bytes], str, list[str]]] = {
    "0 bytes": (
        {"d.jsonl": "", "d.csv": "", "d.parquet": "", "d.txt": ""},
        "{path: d.jsonl, type: completion}, {path: d.csv, type: alpaca}, {path: d.parquet, type: chat_template}, "
        "{path: d.txt, type: completion}",
        [
            "datasets.0: R018 d.jsonl is empty: no rows to train on.",
            "datasets.1: R018 d.csv is empty: no rows to train on.",
            "datasets.2: R018 d.parquet is empty: no rows to train on.",
            "datasets.3: R018 d.txt is empty: no rows to train on.",
            "4 problems",
        ],
    ),
    "only blank lines": (
        {"d.jsonl": "\n \n\t\n\r\n"},
        "{path: d.jsonl, type: completion}",
        ["datasets.0: R018 d.jsonl has no rows to train on.", "1 problem"],
    ),
    "an empty list": (
        {"d.json": " [ ]\n"},
        "{path: d.json, type: completion}",
        ["datasets.0: R018 d.json has no rows to train on.", "1 problem"],
    ),
    "folders without data": (
        {"a/readme.md": "x", "b/.hidden/d.jsonl": "x", "b/dataset_info.json": "{}", "c/d.jsonl": "", "c/e.csv": ""},
        "{path: a, type: completion}, {path: b, type: completion}, {path: c, type: completion}",
        [
            "datasets.0: R018 a is a folder without data files (.json, .jsonl, .parquet, .arrow, .csv, .txt).",
            "datasets.1: R018 b is a folder without data files (.json, .jsonl, .parquet, .arrow, .csv, .txt).",
            "datasets.2: R018 c: all data files in it are empty.",
            "3 problems",
        ],
    ),
    "rows that are no objects": (
        {"d.jsonl": '{"text": "a"}\n\n[1]\n"x"\n3\nnull\n{"text": \n'},
        "{path: d.jsonl, type: completion}",
        [
            "datasets.0: R018 d.jsonl, line 3: is a list, expected an object.",
            "datasets.0: R018 d.jsonl, line 4: is text, expected an object.",
            "datasets.0: R018 d.jsonl, line 5: is a number, expected an object.",
            "datasets.0: R018 d.jsonl: 2 more of its first 6 rows cannot be used.",
            "4 problems",
        ],
    ),
    "no JSON": (
        {"d.jsonl": b'{"text": "a"}\n{text: a}\n\xff\xfe\n', "e.json": '[{"text": "a"},\n {"text" "b"}]'},
        "{path: d.jsonl, type: completion}, {path: e.json, type: completion}",
        [
            "datasets.0: R018 d.jsonl, line 2: is not JSON: Expecting property name enclosed in double quotes at "
            "character 2.",
            "datasets.0: R018 d.jsonl, line 3: is not UTF-8 at byte 1.",
            "datasets.1: R018 e.json, line 2: is not JSON: Expecting ':' delimiter.",
            "3 problems",
        ],
    ),
    "columns that are not there": (
        {
            "d.jsonl": lines({"text": "a"}),
            "e.json": json.dumps([{"prompt": "a", "output": "b"}, {"instruction": 3, "output": "b"}]),
            "f.jsonl": lines({"body": "a", "title": "b"}),
            "g.jsonl": lines({"segments": [{"text": "a"}]}, {"segments": "a"}, {}),
        },
        "{path: d.jsonl, type: chat_template}, {path: e.json, type: alpaca}, {path: f.jsonl, type: completion}, "
        "{path: g.jsonl, type: input_output}",
        [
            "datasets.0: R018 d.jsonl, line 1: has no column `messages`; its columns: `text`. `field_messages` names "
            "another one.",
            "datasets.1: R018 e.json, row 1: has no column `instruction`; its columns: `prompt`, `output`.",
            "datasets.1: R018 e.json, row 2: `instruction` holds a number, expected text.",
            "datasets.2: R018 f.jsonl, line 1: has no column `text`; its columns: `body`, `title`. `field` names "
            "another one.",
            "datasets.3: R018 g.jsonl, line 1: segment 1: `label` holds null, expected true or false.",
            "datasets.3: R018 g.jsonl, line 2: `segments` holds text, expected a list.",
            "datasets.3: R018 g.jsonl, line 3: has no column `segments`; its columns: none.",
            "7 problems",
        ],
    ),
    "conversations in other words": (
        {
            "d.jsonl": lines(SHAREGPT),
            "e.jsonl": lines(
                {"messages": [{"role": "bot", "content": "a"}]},
                {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["b"]}]},
                {"messages": [3]},
            ),
        },
        "{path: d.jsonl, type: chat_template}, {path: d.jsonl, type: chat_template, field_messages: conversations}, "
        "{path: e.jsonl, type: chat_template}",
        [
            "datasets.0: R018 d.jsonl, line 1: has no column `messages`; its columns: `conversations`. "
            "`field_messages` names another one.",
            f"datasets.1: R018 d.jsonl, line 1: message 1: has no `role`; its properties: `from`, `value`. {AGAIN}",
            "datasets.2: R018 e.jsonl, line 1: message 1: unknown role `bot`. Known roles: `user`, `human`, "
            "`assistant`, `gpt`, `system`, `tool`; add it under `roles:`.",
            "datasets.2: R018 e.jsonl, line 2: message 2: `content`: item 1 is text, expected an object.",
            "datasets.2: R018 e.jsonl, line 3: `messages`: item 1 is a number, expected an object.",
            "5 problems",
        ],
    ),
    "a long file is looked into, not read": (
        {"d.jsonl": lines(*[{"a": "x" * 1000}] * 30) + "broken\n" * 100_000},
        "{path: d.jsonl, type: completion}",
        [
            f"datasets.0: R018 d.jsonl, line {n}: has no column `text`; its columns: `a`. `field` names another one."
            for n in (1, 2, 3)
        ]
        + ["datasets.0: R018 d.jsonl: 4997 more of its first 5000 rows cannot be used.", "4 problems"],
    ),
}  # fmt: skip


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", DATA)
def test_data_that_no_run_could_use_is_found(check: Check, folder: Path, name: str) -> None:
    files, datasets, expected = DATA[name]
    write(folder, files)
    (folder / "r.yml").write_text(f"{MODEL}datasets: [{datasets}]\n")
    found = [line if "problem" in line else f"r.yml:3: {line}" for line in expected]
    assert check("r.yml") == (2, found, "")


@pytest.mark.parametrize(
    ("files", "dataset"),
    [
        ({"d.jsonl": lines(SHAREGPT)}, "type: chat_template, field_messages: conversations, "
         "message_property_mappings: {role: from, content: value}"),
        ({"d.jsonl": lines({"messages": [{"role": "bot", "content": "a"}]})},
         "type: chat_template, roles: {user: [bot]}"),
        ({"d.jsonl": lines({"messages": json.dumps(ROW["messages"])})}, "type: chat_template"),
        ({"d.jsonl": lines({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]})},
         "type: chat_template"),
        ({"d.jsonl": lines({"messages": [{"role": "assistant", "tool_calls": [{}]}]})}, "type: chat_template"),
        ({"d.jsonl": lines({"x": 1}, {"text": "a"})}, "type: completion, split: 'train[1:]'"),
        ({"d.jsonl": lines({"instruction": "a", "output": "b"}, {"instruction": "a", "input": None, "output": "b"})},
         "type: alpaca"),
        ({"d.jsonl": "\ufeff" + lines({"body": "a"})}, "type: completion, field: body"),
        ({"d.jsonl": '{"text": "' + "x" * 100_000 + '"}\n'}, "type: completion"),
        ({"d.jsonl": '{"text": "a"}\n' + '{"text": "' + "x" * 100_000 + '"}\n'}, "type: completion"),
        ({"d.json": "\ufeff \n[" + '{"text": "é"},' * 90000 + "broken"}, "type: completion"),
        ({"d.json": '{"text": "a"}\n{"text": "b"}\n'}, "type: completion"),
        ({"d.csv": "text\n"}, "type: alpaca"),
        ({"d.parquet": "no parquet"}, "type: alpaca"),
        ({"d/state.json": "{}"}, "type: alpaca"),
        ({"d/train.jsonl": lines({"x": 1}), "d/empty.jsonl": ""}, "type: alpaca"),
    ],
)  # fmt: skip
def test_in_doubt_nothing_is_said(
    check: Check, folder: Path, files: dict[str, str | bytes], dataset: str
) -> None:
    write(folder, files)
    path = next(iter(files)).partition("/")[0]
    (folder / "r.yml").write_text(f"{MODEL}datasets: [{{path: {path}, {dataset}}}]\n")
    assert check("r.yml") == (0, ["no problems"], "hint: ft plan r.yml\n")


def test_a_pipe_as_data_is_not_waited_for(check: Check, folder: Path) -> None:
    os.mkfifo(folder / "d.jsonl")
    (folder / "r.yml").write_text(f"{MODEL}datasets: [{{path: d.jsonl, type: completion}}]\n")
    expected = "r.yml:3: datasets.0: R018 d.jsonl is neither a file nor a folder."
    assert check("r.yml") == (2, [expected, "1 problem"], "")


# --------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("seed", "--set seed: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("a..b=1", "--set a..b=1: expected key=value"),
        (".=1", "--set .=1: expected key=value"),
        ("\x1b[31m=1", "--set '\\x1b[31m=1': expected key=value"),
        (f"{'a.' * 1000}a=1", f"--set {'a.' * 1000}a=1: expected key=value"),
    ],
)
def test_an_override_that_is_none(check: Check, folder: Path, item: str, said: str) -> None:
    (folder / "r.yml").write_text(GOOD)
    hint = "hint: ft train r.yml --set learning_rate=1e-4"
    assert check("r.yml", "--set", item) == (2, [], f"error: {said}\n{hint}\n")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("datasets.7.path=x", "--set datasets.7.path=x: 7 is not one of the 1 elements (0 is the first)"),
        ("datasets.-1.path=x", "--set datasets.-1.path=x: -1 is not one of the 1 elements (0 is the first)"),
        ("datasets.²=x", "--set datasets.²=x: ² is not one of the 1 elements (0 is the first)"),
        ("seed.0=x", "--set seed.0=x: `seed` is not a list in the recipe"),
        ("cloud.0=x", "--set cloud.0=x: `cloud` is not a list in the recipe"),
        ("datasets[0].path=y", "--set datasets[0].path=y: an element of a list is named with a dot\n"
         "hint: --set datasets.0.path=y"),
    ],
)  # fmt: skip
def test_an_override_that_fits_nowhere(check: Check, folder: Path, item: str, said: str) -> None:
    (folder / "r.yml").write_text(GOOD)
    assert check("r.yml", "--set", item) == (2, [], f"error: {said}\n")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("seed=x", "seed: expected a whole number, got 'x'"),
        ("seed=010", "seed: expected a whole number, got '010'"),
        ("seed=2026-13-45", "seed: expected a whole number, got '2026-13-45'"),
        ("seed=[[[", "seed: expected a whole number, got '[[['"),
        ("seed=!!python/name:os.system", "seed: expected a whole number, got '!!python/name:os.system'"),
        ("seed=&a [*a]", "seed: expected a whole number, got '&a [*a]'"),
        ("seed={1: 2, 1: 3}", "seed: expected a whole number, got '{1: 2, 1: 3}'"),
        (f"seed={'[' * 5000}", f"seed: expected a whole number, got '{'[' * 56}..."),
        ("5=3", "5: unknown key."),
        ("datasets.0=x", "datasets.0: expected a mapping of keys, got 'x'. Write `{path: x, type: alpaca}`."),
        # Not the line of the file, which is right.
        ("learning_rate.x=3", "learning_rate: expected a number, got {'x': 3}"),
        ("datasets.0.path.x=3", "datasets.0.path: expected text, got {'x': 3}"),
        ("cloud.timeout=6 hours", "cloud.timeout: expected seconds, or 90m, 6h, 1d, got '6 hours'"),
    ],
)  # fmt: skip
def test_an_override_of_nonsense(check: Check, folder: Path, item: str, said: str) -> None:
    (folder / "r.yml").write_text(GOOD)
    assert check("r.yml", "--set", item) == (2, [f"--set: {said}", "1 problem"], "")


def test_an_override_may_be_any_text(check: Check, folder: Path) -> None:
    (folder / "r.yml").write_text(GOOD)
    for item in (
        "chat_template_jinja={{ messages }}",
        "chat_template_jinja={% for m in messages %}{{ m }}{% endfor %}",
        "output_dir=#1",
        "output_dir=1:30",
        "revision_of_model=0123",
    ):
        assert check("r.yml", "--set", item)[:2] == (0, ["no problems"])


def test_a_recipe_that_is_no_file(check: Check, folder: Path) -> None:
    hint = "hint: ft recipes ls  lists recipes to start from\n"
    os.mkfifo(folder / "pipe.yml")
    (folder / "loop.yml").symlink_to("loop.yml")
    (folder / "broken.yml").symlink_to("nowhere.yml")
    (folder / "loop").symlink_to("loop")
    for name, what in (
        ("loop.yml", "is a link that leads back to itself"),
        ("loop", "is a link that leads back to itself"),
        ("broken.yml", "is a link to nowhere.yml, which does not exist"),
        ("gone.yml", "does not exist"),
        ("model", "is a folder"),
        ("pipe.yml", "is no regular file"),
        ("./\udcff.yml", "does not exist"),
    ):
        shown = name.replace("\udcff", "\\udcff")
        assert check(name) == (8, [], f"error: {shown} {what}\n{hint}")
    assert check("") == (2, [], f"error: expected a recipe, got an empty name\n{hint}")


def as_anybody() -> None:
    """Root may read every file. Without two of its rights, which nobody else has anyway, it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    for right in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, right, 0, 0, 0)


def test_a_recipe_that_may_not_be_read(folder: Path) -> None:
    (folder / "r.yml").write_text(GOOD)
    (folder / "r.yml").chmod(0)
    command = [sys.executable, "-P", "-m", "ft.launcher.cli.app", "check", "r.yml"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=as_anybody
    )
    said = "error: r.yml: Permission denied\n"
    assert (done.returncode, done.stdout, done.stderr) == (8, "", said)


# ------------------------------------------------------------------------------ time and memory

MEMORY_BYTES = 1 << 30
CPU_S = 60
"""For all of them: they need 10, one that grows exponentially needs more than there is."""

BOUNDED = f"""
import resource, sys
from ft.launcher.cli.app import main
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_S}, {CPU_S}))
for name in sys.argv[1:]:
    try:
        main(["check", name])
    except SystemExit as end:
        sys.stderr.write(f"{{name}} {{end.code}}\\n")
"""
"""Checks recipe after recipe; the kernel refuses more memory than a GiB, and more time than a minute."""


def test_bombs_cost_neither_memory_nor_time(folder: Path) -> None:
    texts = {
        "bomb": bomb(),
        "merges": merge_bomb(),
        "unknown": "".join(f"gradient_accumulation_stepz{i}: 1\n" for i in range(9_900)),
        "gone": MODEL + "datasets:\n" + "  - {path: gone.jsonl, type: completion}\n" * 3_900,
        "modules": f"{GOOD}lora_target_modules: [{'1, ' * 19_000}]\n",
        "open": "[" * 1_000_000,
        "text": f"{GOOD}adapter: {'a' * 1_000_000}\n",
        "aliases": "a: &a 1\n" + "".join(f"k{i}: *a\n" for i in range(9_900)),
        "digits": f"{GOOD}seed: {'0:' * 500_000}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-P", "-c", BOUNDED, *texts]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.splitlines() == [f"{name} 2" for name in texts]
