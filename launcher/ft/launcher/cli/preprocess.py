"""`ft preprocess`: rows made on this machine, and kept for the runs that train on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import JsonOption, RecipeArgument, SetOption

FATES: Final = {
    "bad": "could not be read",
    "too_long": "longer than sequence_len",
    "too_short": "shorter than min_sample_len",
    "untrained": "nothing to train",
}
"""Count -> why such rows are left out."""

SAY_EVERY_S: Final = 5.0
"""Where nobody looks at a bar."""

ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="Processes that make rows. Default: one for each processor, fewer for little data.",
        show_default=False,
    ),
]


def preprocess(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    processes: ProcessesOption = None,
    json_: JsonOption = False,
) -> None:
    """Make the rows of a recipe now, on this machine; a run here finds them. ft cache ls shows what is kept."""
    from ft.launcher import preparing
    from ft.launcher.cli import gallery

    rows = preparing.look(gallery.locate(recipe), set_ or ())
    arguments = () if processes is None else ("--processes", str(processes))
    done = watched(preparing.ask("preprocess", rows, *arguments))
    if json_:
        console.out_json({key: value for key, value in done.items() if key != "event"})
        return
    for line in summary(done):
        console.out(line)
    console.hint(f"ft preview {recipe}  shows what is trained")


def watched(said: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Show progress until the last answer, and return that."""
    bar, last = Bar(), {}
    try:
        bar.say("loading the tokenizer")
        for answer in said:
            if answer["event"] == "progress":
                bar.show(answer)
            else:
                last = dict(answer)
    finally:
        bar.close()
    return last


class Bar:
    """Progress with rate and time left: a line that is written over on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._first: tuple[float, Mapping[str, Any]] | None = None
        """When rows were first there, and how many: what loading took says nothing of the rate."""
        self._said = 0.0
        self._lives = console.is_terminal(sys.stderr)
        self._shown = False

    def show(self, at: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if not at["examples"]:
            self.say("waiting for another process that makes the same rows")
        elif self._first is None:
            self._first, self._said = (now, at), now
        elif self._lives:
            self.say(self._line(at, now))
        elif now - self._said >= SAY_EVERY_S:
            self._said = now
            console.note(self._line(at, now))

    def say(self, text: str) -> None:
        """What is done now; for a person who looks."""
        if self._lives:
            sys.stderr.write(f"\r\033[K{console.cut(text, console.width() - 1)}")
            sys.stderr.flush()
            self._shown = True

    def _line(self, at: Mapping[str, Any], now: float) -> str:
        assert self._first is not None
        began, first = self._first
        elapsed_s = max(now - began, 1e-9)
        rate = (at["tokens"] - first["tokens"]) / elapsed_s
        parts = [
            f"{at['examples']:,} examples", f"{at['tokens']:,} tokens", f"{rate / 1e6:.2f} M/s",
        ]  # fmt: skip
        read, left = at["bytes"] - first["bytes"], at["total_bytes"] - at["bytes"]
        if read > 0 and left >= 0:
            share = at["bytes"] / at["total_bytes"]
            parts = [f"{share:4.0%}", *parts, f"{console.duration(elapsed_s * left / read)} left"]
        return "  ".join(parts)

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def summary(done: Mapping[str, Any]) -> Iterable[str]:
    """What was made of what, and where it is."""
    yield from counted(done)
    yield from made(done)


def counted(done: Mapping[str, Any]) -> Iterable[str]:
    """Examples, rows and tokens, every loss with its reason."""
    counts = done["counts"]
    of_eval = f", {done['eval_rows']:,} of them to evaluate on" if done["eval_rows"] else ""
    yield from console.labelled("examples", f"{counts['read']:,} read", margin="")
    yield from console.labelled("rows", f"{counts['kept']:,} kept{of_eval}", margin="")
    for fate, why in FATES.items():
        if counts[fate]:
            yield from console.labelled("left out", f"{counts[fate]:,} {why}", margin="")
    if counts["truncated"]:
        yield from console.labelled("cut", f"{counts['truncated']:,} to sequence_len", margin="")
    share = counts["trained_tokens"] / max(counts["tokens"], 1)
    tokens = f"{counts['tokens']:,}, {counts['trained_tokens']:,} of them trained ({share:.1%})"
    yield from console.labelled("tokens", tokens, margin="")


def made(done: Mapping[str, Any]) -> Iterable[str]:
    """How long it took, and where the rows are."""
    took = "found, made earlier" if done["was_there"] else console.duration(done["seconds"])
    yield from console.labelled("time", took, margin="")
    for folder in done["folders"]:
        yield from console.labelled("kept in", folder, margin="")
