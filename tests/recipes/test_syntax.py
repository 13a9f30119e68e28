"""What is said about the common slips in YAML, to the letter, and in which line."""

from __future__ import annotations

import pytest

from ft.recipes.errors import RecipeError
from ft.recipes.load import loads

HEAD = "base_model: x\nlearning_rate: 1e-4\n"
"""Two lines; a case begins in line 3."""
CONFLICT = "is from a merge conflict. Keep one side, and take out the lines with <<<<<<<, ======= and >>>>>>>."
QUOTE_IT = "in YAML. Put quotes around the text."
NBSP = "stands U+00A0 (NO-BREAK SPACE) instead of a blank."
FLOW = "while parsing a flow sequence that begins in line 3"
BLOCK = "did not find expected key (while parsing a block mapping that begins in line 1)"
COLUMN = "What belongs together begins in the same column."
ITEM = "datasets:\n  - path: rows.jsonl\n"

SLIPS: list[tuple[str, str]] = [
    # A blank after the colon: YAML notices one line later.
    (HEAD + "lora_r:16\nseed: 1\n", "3: no blank after the colon. Write `lora_r: 16`."),
    (HEAD + "lora_r:16\n\n# ours\nseed: 1\n", "3: no blank after the colon. Write `lora_r: 16`."),
    (HEAD + "lora_r:16\n", "3: no blank after the colon. Write `lora_r: 16`."),
    ("lora_r:16\n" + HEAD, "1: no blank after the colon. Write `lora_r: 16`."),
    (HEAD + "datasets:\n  - path:rows.jsonl\n    type: alpaca\n",
     "4: no blank after the colon. Write `path: rows.jsonl`."),
    (HEAD + ITEM + "    type:alpaca\nseed: 1\n", "5: no blank after the colon. Write `type: alpaca`."),
    (HEAD + "datasets:\n  -path: a\n    type: b\n", "4: no blank after the dash. Write `- path: a`."),
    (HEAD + "seed 42\nlora_r: 3\n", "3: expected `key: value`, got `seed 42`: no colon with a blank after it"),
    (HEAD + f"{'so ' * 20}\n", f"3: expected `key: value`, got `{'so ' * 13}…`: no colon with a blank after it"),
    # One that only looks like it.
    (HEAD + "lora_r:\xa016\nseed: 1\n", f"3: behind `lora_r:` {NBSP} Write `lora_r: 16`."),
    ("lora_r:\xa016\n" + HEAD, f"1: behind `lora_r:` {NBSP} Write `lora_r: 16`."),
    (
        HEAD + "lora_r:\u200b16\nseed: 1\n",
        "3: behind `lora_r:` stands U+200B (ZERO WIDTH SPACE) instead of a blank. Write `lora_r: 16`.",
    ),
    (HEAD + "lora_r\uff1a16\nseed: 1\n", "3: `\uff1a` behind `lora_r` is a FULLWIDTH COLON. Write `lora_r: `."),
    # Quotes.
    (HEAD + 'output_dir: "./out\nseed: 1\n', "3: a quote opens here that is never closed"),
    (
        HEAD + "output_dir: './out\nseed: 1\nrun: 'a'\n",
        "3: a quote opens here that is closed in line 5 only. Close it in this line.",
    ),
    (
        HEAD + "output_dir: 'Bob's'\nseed: 1\n",
        "3: text behind the closing quote: `s'`. Quote all of it; inside '…' a quote is written twice: ''.",
    ),
    (HEAD + 'output_dir: "a" b\nseed: 1\n', "3: text behind the closing quote: `b`. Quote all of it."),
    (HEAD + 'output_dir: "C:\\Users\\me"\n', "3: a backslash begins an escape in \"…\". Write '…' around the text."),
    (HEAD + "title: foo: bar\nseed: 1\n",
     "3: a second `: ` in the value of `title`. Put quotes around it: `title: 'foo: bar'`."),
    # Letters that mean something else.
    (HEAD + "output_dir: @x\n", f"3: a value cannot begin with `@` {QUOTE_IT}"),
    (HEAD + "output_dir: `x`\n", f"3: a value cannot begin with a backtick {QUOTE_IT}"),
    (HEAD + "output_dir: %x\n", f"3: a value cannot begin with `%` {QUOTE_IT}"),
    (HEAD + "a:\n  - @x\n", f"4: a value cannot begin with `@` {QUOTE_IT}"),
    (HEAD + "a: *.jsonl\n", f"3: a value cannot begin with `*` {QUOTE_IT}"),
    (HEAD + "a: & b\n", f"3: a value cannot begin with `&` {QUOTE_IT}"),
    (HEAD + "%x: 1\n", f"3: a line cannot begin with `%` {QUOTE_IT}"),
    # What git leaves behind.
    (HEAD + "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> other\n", f"3: `<<<<<<<` {CONFLICT}"),
    ("<<<<<<< HEAD\n" + HEAD + "=======\nseed: 2\n>>>>>>> other\n", f"1: `<<<<<<<` {CONFLICT}"),
    (HEAD + ITEM + "<<<<<<< HEAD\n  - path: a\n=======\n  - path: b\n>>>>>>> x\n", f"5: `<<<<<<<` {CONFLICT}"),
    (HEAD + "seed: 1\n>>>>>>> other\n", f"4: `>>>>>>>` {CONFLICT}"),
    (HEAD + "=======\nseed: 1\n", f"3: `=======` {CONFLICT}"),
    # One blank off.
    (HEAD + " seed: 16\nlora_r: 1\n", f"3: `seed` stands behind 1 blank, `learning_rate` in line 2 behind 0. {COLUMN}"),
    (" base_model: x\nseed: 1\n", f"2: `seed` stands behind 0 blanks, `base_model` in line 1 behind 1. {COLUMN}"),
    (HEAD + ITEM + "   type: b\n", f"5: `type` stands behind 3 blanks, `path` in line 4 behind 4. {COLUMN}"),
    (HEAD + ITEM + "     type: b\n", f"5: `type` stands behind 5 blanks, `path` in line 4 behind 4. {COLUMN}"),
    (HEAD + "cloud:\n  gpu: cpu\n   nodes: 1\n",
     f"5: `nodes` stands behind 3 blanks, `gpu` in line 4 behind 2. {COLUMN}"),
    (HEAD + "cloud:\n  gpu: cpu\n # ours\n nodes: 1\n",
     f"6: `nodes` stands behind 1 blank, `gpu` in line 4 behind 2. {COLUMN}"),
    (HEAD + ITEM + " - path: c\n", f"5: `- ` stands behind 1 blank, the `- ` in line 4 behind 2. {COLUMN}"),
    # Nobody knows better.
    (HEAD + "a: [q\nseed: x\n", f"4: not YAML: did not find expected ',' or ']' ({FLOW})"),
    (HEAD + "a: {{ x }} y\n", f"3: not YAML: {BLOCK}"),
    # The line above is text, and has nothing to do with it.
    (HEAD + "a: |\n  x:y\nb: {{ x }} y\n", f"5: not YAML: {BLOCK}"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), SLIPS, ids=range(len(SLIPS)))
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_slip_is_named_where_it_is(text: str, said: str, end: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(text.replace("\n", end), source="r.yml")
    assert [str(problem) for problem in caught.value.problems] == [f"r.yml:{said}"]
