"""The first run: fetch a small model, train an adapter on this machine, show before and after.

    make quickstart                                    about 6 minutes on 2 cores
    python quickstart/run.py [ARGUMENTS OF `ft cloud run`]      for instance: --set max_steps=40

Nothing here is special: the three commands are printed, and each works by itself. Running it again
trains again and replaces the adapter. Exit codes are those of the command that did not end well:
4 the model or a library is not to be had, 6 the run failed, 130 Ctrl-C (the run lives on).
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ".quickstart/SmolLM2-135M-Instruct"
RECIPE = "recipes/gallery/smollm2/135m-lora-sft.yml"
HELDOUT = "recipes/gallery/smollm2/dates-heldout.jsonl"
OUTPUT_DIR = "outputs/smollm2-dates"
"""As in the recipe."""
EVALUATION = ".quickstart/evaluation.json"

INTERRUPTED = 130


def run(title: str, command: Sequence[str]) -> int:
    """Run one step with this terminal; its exit code, 128 + n after signal n."""
    print(f"\n── {title}\n$ {as_typed(command)}", flush=True)
    code = subprocess.Popen(command, cwd=ROOT).wait()
    return code if code >= 0 else 128 - code


def as_typed(command: Sequence[str]) -> str:
    """The command as somebody in the repository would type it."""
    return shlex.join(word.removeprefix(f"{ROOT}/") for word in command)


def output_dir(extra: Sequence[str]) -> str:
    """Where the adapter will be: as in the recipe, unless an argument sets `output_dir`."""
    given = [word.removeprefix("--set=").partition("output_dir=") for word in extra]
    folders = [folder for before, found, folder in given if found and not before]
    return folders[-1] if folders else OUTPUT_DIR


def main(extra: list[str]) -> int:
    if {"-h", "--help"} & set(extra):
        print(__doc__)
        return 0
    ft = Path(sys.executable).with_name("ft")
    if not ft.exists():
        print(
            f"quickstart: no `ft` beside {sys.executable}.\nRun `make setup` first.",
            file=sys.stderr,
        )
        return 4
    # Ctrl-C reaches every process of the terminal: each step ends in its own way, and this one waits
    # for it. Not SIG_IGN, which the steps would inherit.
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)

    fetch = ["quickstart/fetch_model.py", "--out", MODEL]
    train = ["cloud", "run", RECIPE, "--backend", "local", "--set", f"base_model={MODEL}", *extra]
    measure = ["quickstart/evaluate.py", MODEL, output_dir(extra), HELDOUT, "--json", EVALUATION]

    code = run("1/3 the model, 93 MB, once", [sys.executable, *fetch])
    if code:
        return code
    code = run("2/3 training", [str(ft), *train])
    if code == INTERRUPTED:
        print(f"\nThe run goes on. Once it is done:\n$ {as_typed([sys.executable, *measure])}")
    if code:
        return code
    return run("3/3 before and after, on dates it was not trained on", [sys.executable, *measure])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
