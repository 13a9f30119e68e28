"""What a run under fire has left, and whether every promise was kept.

Judged from the run's own files, on purpose without the product's own checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEEP = 3
"""`save_total_limit` of these runs."""

Event = dict[str, Any]


@dataclass
class Attempt:
    """One attempt as events.jsonl tells it. None: it did not come that far."""

    number: int
    began: float
    ended: float
    start: int | None = None
    """The step that training began from; 0 without a checkpoint."""
    reached: int | None = None
    """The last finished step."""
    saved: dict[int, float] = field(default_factory=dict)
    """Step -> when its checkpoint was published."""
    end: Event = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return str(self.end.get("reason", "killed"))

    def apply(self, event: Event) -> None:
        data = event["data"]
        self.began, self.ended = min(self.began, event["time"]), max(self.ended, event["time"])
        match event["kind"]:
            case "resume":
                self.start = self.reached = data["step"]
            case "phase" if (data["name"], data["mark"]) == ("train", "begin"):
                self.start = self.start or 0
                self.reached = self.reached or 0
            case "step":
                self.reached = data["step"]
            case "checkpoint":
                self.saved[data["step"]] = event["time"]
            case "attempt" if data["mark"] == "end":
                self.end = data


def attempts_of(events: Iterable[Event]) -> list[Attempt]:
    """In order."""
    found: dict[int, Attempt] = {}
    for event in events:
        number = event["attempt"]
        found.setdefault(number, Attempt(number, event["time"], event["time"])).apply(event)
    return [found[number] for number in sorted(found)]


@dataclass(frozen=True)
class Damage:
    """A checkpoint that the harness broke."""

    name: str
    at: float


def steps_lost(attempts: Sequence[Attempt]) -> list[int]:
    """At each restart, the finished steps that had to be done again."""
    lost, reached = [], 0
    for attempt in attempts:
        if attempt.start is not None:
            lost.append(reached - attempt.start)
            reached = attempt.reached or 0
    return lost[1:]


def judge_losses(
    attempts: Sequence[Attempt],
    damaged: Sequence[Damage],
    *,
    save_steps: int,
    intervals: int,
    keep: int = KEEP,
) -> Iterator[str]:
    """No loss of more than an interval, and no older checkpoint than the newest whole one of the `keep` newest.

    `intervals` is more than 1 where the fault takes saves away: broken checkpoints, refused saves.
    """
    trained = [attempt for attempt in attempts if attempt.start is not None]
    for n, (before, after) in enumerate(itertools.pairwise(trained), start=1):
        assert before.reached is not None
        assert after.start is not None
        lost = before.reached - after.start
        if before.reason != "rollback" and lost > intervals * save_steps:
            yield f"attempt {after.number} began {lost} steps back, an interval is {save_steps}"
        saved = {step: at for attempt in trained[:n] for step, at in attempt.saved.items()}
        kept = sorted(saved)[-keep:]
        broken = {d.name for d in damaged if d.at > saved.get(step_of(d.name), d.at)}
        newest = max((step for step in kept if name_of(step) not in broken), default=0)
        if before.reason != "rollback" and after.start < newest:
            yield f"attempt {after.number} began at step {after.start}, step {newest} was whole"


def judge_resumes(events: Sequence[Event], damaged: Sequence[Damage]) -> Iterator[str]:
    """No broken checkpoint is ever loaded; one of the same name that was written later may be."""
    for event in events:
        if event["kind"] != "resume":
            continue
        name, now = event["data"]["name"], event["time"]
        written = [
            e["time"]
            for e in events
            if e["kind"] == "checkpoint" and e["data"]["name"] == name and e["time"] < now
        ]
        if any(d.name == name and max(written, default=0.0) < d.at < now for d in damaged):
            yield f"attempt {event['attempt']} loaded {name}, which was broken"


def judge_writers(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Attempts follow one another: none says a word once the next has begun."""
    for before, after in itertools.pairwise(attempts):
        if before.ended > after.began:
            late = before.ended - after.began
            yield f"attempt {before.number} wrote {late:.3f} s into attempt {after.number}"


def why_broken(folder: Path, plan_sha256: str) -> str | None:
    """What is wrong with a published folder; on purpose not the product's own check."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = {entry["path"]: entry for entry in manifest["files"]}
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest: {error!r}"
    if manifest["plan_sha256"] != plan_sha256:
        return "it is of another plan"
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    there.pop("manifest.json")
    if sorted(there) != sorted(listed):
        return f"it holds {sorted(there)}, listed are {sorted(listed)}"
    for name, path in there.items():
        if hashlib.sha256(path.read_bytes()).hexdigest() != listed[name]["sha256"]:
            return f"{name} is not what the manifest says"
    return None


def judge_store(store: Path, plan_sha256: str, *, ended_well: bool) -> Iterator[str]:
    """What is published is whole, and nothing half-done lies about."""
    published = sorted((store / "checkpoints").glob("step-*"))
    if ended_well:
        published.append(store / "final")
    for folder in published:
        why = why_broken(folder, plan_sha256)
        if why is not None:
            yield f"{folder.name} is broken: {why}"
    patterns = (".staging-*", ".old-*", "checkpoints/.old-*", "attempts/*/scratch-*")
    left = [path for pattern in patterns for path in store.glob(pattern)]
    if left:
        yield f"left behind: {', '.join(str(path.relative_to(store)) for path in left)}"


def judge_aside(store: Path, events: Sequence[Event], damaged: Sequence[Damage]) -> Iterator[str]:
    """A broken checkpoint is set aside, and the log says why."""
    said = [e["data"]["message"] for e in events if e["kind"] == "log"]
    for damage in damaged:
        aside = damage.name.replace("step-", "broken-")
        if not (store / "checkpoints" / aside).is_dir():
            yield f"{damage.name} was broken and is not set aside as {aside}"
        if not any(line.startswith(f"checkpoint not used: {damage.name}: ") for line in said):
            yield f"no log line says why {damage.name} was not used"


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def files_of(final: Path) -> dict[str, str]:
    """Every file -> sha256; the manifest has the time in it."""
    return {
        path.relative_to(final).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(final.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def rows_of(store: Path, attempt: int | str = "*") -> dict[tuple[int, int], list[int]]:
    """(attempt, step) -> the rows that all ranks together read in it, sorted."""
    found: dict[tuple[int, int], list[int]] = {}
    for path in store.glob(f"attempts/{attempt}/rank*.rows.jsonl"):
        for part in json_lines(path):
            key = int(path.parent.name), part["step"]
            found[key] = sorted([*found.get(key, []), *part["rows"]])
    return found


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Without those that a kill or a full disk has cut short."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


@dataclass(frozen=True)
class Calm:
    """What an undisturbed run of the same recipe gives."""

    files: dict[str, str]
    losses: dict[int, float]
    counters: tuple[int, int]
    rows: dict[int, list[int]]
    seconds: float

    @classmethod
    def of(cls, store: Path, events: Sequence[Event]) -> Calm:
        return cls(
            files=files_of(store / "final"),
            losses=losses_of(events),
            counters=counters_of(events),
            rows={step: rows for (_, step), rows in rows_of(store, 1).items()},
            seconds=events[-1]["time"] - events[0]["time"],
        )


def losses_of(events: Iterable[Event]) -> dict[int, float]:
    """Step -> loss; a step that was done twice counts as it was done last."""
    return {e["data"]["step"]: e["data"]["loss"] for e in events if e["kind"] == "step"}


def counters_of(events: Iterable[Event]) -> tuple[int, int]:
    """(all, trained) tokens of the run, as its last step says."""
    last = [e["data"] for e in events if e["kind"] == "step"][-1]
    return last["tokens"], last["trained_tokens"]


def judge_result(final: Path, events: Sequence[Event], calm: Calm, *, steps: int) -> Iterator[str]:
    """The same adapter, the same loss in each step, the same counters."""
    files, losses = files_of(final), losses_of(events)
    other = sorted(
        name for name in {*files, *calm.files} if files.get(name) != calm.files.get(name)
    )
    if other:
        yield f"final differs from an undisturbed run's in {', '.join(other)}"
    off = [step for step in range(1, steps + 1) if losses.get(step) != calm.losses.get(step)]
    if off:
        yield f"other losses in steps {off}"
    if counters_of(events) != calm.counters:
        yield f"counted {counters_of(events)} tokens, expected {calm.counters}"


def judge_rows(store: Path, calm: Calm, left_out: Iterable[int] = ()) -> Iterator[str]:
    """Every step read its rows, all of them, once it was done; whatever the micro batch."""
    found, done = rows_of(store), set(left_out)
    for (attempt, step), rows in found.items():
        if rows == calm.rows.get(step):
            done.add(step)
        elif not set(rows) <= set(calm.rows.get(step, ())):
            yield f"attempt {attempt} read rows {rows} in step {step}, not {calm.rows.get(step)}"
    missing = sorted(set(calm.rows) - done)
    if missing:
        yield f"steps {missing} never saw all their rows"
