"""Events of a run -> what is known of it now, and lines for people. Pure: no terminal, no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ft.launcher.cli.console import duration, size
from ft.recipes.runstore import Event

QUIET_PHASES = frozenset({"save", "eval"})
"""They come back many times, and an event of their own says what came of them."""

STEPS_FOR_ETA = 10


@dataclass(slots=True)
class Watch:
    """What the events so far say. `apply` takes them in order."""

    attempt: int = 0
    phase: str = ""
    losses: dict[int, float] = field(default_factory=dict)
    """step -> loss. After a restart steps come again; the last value counts."""
    last_step: Mapping[str, Any] = field(default_factory=dict)
    """Data of the newest `step` event."""
    eval_loss: float | None = None
    trained_tokens: int | None = None
    last_time: float | None = None
    """Unix time of the newest event."""
    _ended: bool = False
    """Whether the attempt has said how it ended."""
    _logged: str = ""
    """The last warning or error; the end of the attempt often repeats it."""
    _from_start: bool = False
    """Whether the next step would be the first of an attempt that resumed from nothing."""
    _step_times: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_FOR_ETA))

    @property
    def step(self) -> int:
        return int(self.last_step.get("step") or 0)

    @property
    def total_steps(self) -> int | None:
        return self.last_step.get("total_steps")

    @property
    def loss(self) -> float | None:
        return self.last_step.get("loss")

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step, from the steps before this one."""
        if not self._step_times or self.total_steps is None:
            return None
        mean = sum(self._step_times) / len(self._step_times)
        return mean * max(0, self.total_steps - self.step)

    def apply(self, event: Event) -> list[str]:
        """Take in one event. Returns lines worth keeping on the screen."""
        return list(self._apply(event))

    def _apply(self, event: Event) -> Iterator[str]:
        self.last_time = event.time
        if event.attempt > self.attempt:
            yield from self._next_attempt(event)
        data = event.data
        match event.kind:
            case "phase":
                yield from self._phase(data)
            case "step":
                yield from self._step(data)
            case "resume":
                self._from_start = False
                yield f"attempt {self.attempt}: resumed from step {data.get('step')}"
            case "attempt" if data.get("mark") == "end":
                yield from self._attempt_end(data)
            case _:
                yield from self._told(event.kind, data)

    def _next_attempt(self, event: Event) -> Iterator[str]:
        if self.attempt and not self._ended:
            yield f"attempt {self.attempt} ended without a word: it was killed"
        if event.attempt > 1:
            yield f"attempt {event.attempt}: started"
        self.attempt, self._ended, self.phase = event.attempt, False, ""
        self._from_start = event.attempt > 1
        self._step_times.clear()

    def _phase(self, data: Mapping[str, Any]) -> Iterator[str]:
        name = str(data.get("name", "?"))
        if data.get("mark") == "begin":
            self.phase = name
        elif name in QUIET_PHASES:
            self.phase = "train"
        else:
            self.phase = ""
            yield f"{name:<10} {duration(float(data.get('seconds') or 0))}"

    def _step(self, data: Mapping[str, Any]) -> Iterator[str]:
        step = int(data["step"])
        if self._from_start:
            self._from_start = False
            yield f"attempt {self.attempt}: there was no checkpoint, from the beginning"
        self.last_step = data
        if data.get("loss") is not None:
            self.losses[step] = float(data["loss"])
        if data.get("step_time_s"):
            self._step_times.append(float(data["step_time_s"]))
        if data.get("trained_tokens") is not None:
            self.trained_tokens = int(data["trained_tokens"])

    def _attempt_end(self, data: Mapping[str, Any]) -> Iterator[str]:
        self._ended = True
        code = data.get("exit_code")
        if code not in {0, None}:
            reason = data.get("reason") or "unknown"
            said = data.get("message") or ""
            message = f": {said}" if said and said != self._logged else ""
            yield f"attempt {self.attempt} ended ({reason}, exit code {code}){message}"

    def _told(self, kind: str, data: Mapping[str, Any]) -> Iterator[str]:
        """Lines of the kinds that only report something."""
        match kind:
            case "eval":
                self.eval_loss = data.get("loss")
                if self.eval_loss is not None:
                    yield f"step {data.get('step')}: evaluation loss {number(self.eval_loss)}"
            case "checkpoint":
                took = f", {duration(float(data['seconds']))}" if data.get("seconds") else ""
                yield f"step {data.get('step')}: saved ({size(data.get('bytes') or 0)}{took})"
            case "final":
                yield f"exported   {size(data.get('bytes') or 0)}"
            case "rows":
                counts = [f"{key} {value}" for key, value in data.items() if value]
                yield f"rows       {', '.join(counts).replace('_', ' ')}"
            case "log" if data.get("level") in {"warning", "error"}:
                self._logged = str(data.get("message", ""))
                yield f"{data['level']}: {data.get('message', '')}"

    def step_text(self) -> str:
        """`loss 1.2345  lr 1.0e-04  1234 tokens/s`; what is not known is left out."""
        data, parts = self.last_step, []
        if data.get("loss") is not None:
            parts.append(f"loss {number(float(data['loss']))}")
        if data.get("learning_rate") is not None:
            parts.append(f"lr {data['learning_rate']:.1e}")
        if data.get("tokens_per_s") is not None:
            parts.append(f"{data['tokens_per_s']:.0f} tokens/s")
        return "  ".join(parts)

    def progress(self) -> str:
        """`20/100`, or `20` while the end is not known."""
        return f"{self.step}/{self.total_steps}" if self.total_steps else str(self.step)


def number(value: float) -> str:
    """A loss: four decimals where they mean something."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
