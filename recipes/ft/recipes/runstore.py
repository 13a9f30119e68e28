"""A run on disk: folder layout, status, events, manifests, control, ends. Launcher and runtime share it.

```
<store>/                          LocalStore("…/store/<run id>"), or a prefix in a bucket
├── plan.json                     RunPlan
├── inputs/<name>                 files that travel with the run (decision 5)
├── work/                         where training runs: copies of what is included, made anew for every attempt
├── status.json                   Status: the truth about training (decision 11), written by the agent
├── events.jsonl                  Event per line, appended
├── control.json                  Control: the launcher's only way to speak
├── attempts/<n>/                 agent.log  rank<r>.log  rank<r>.rows.jsonl  rank<r>.exit.json  preflight.json
│                                 rank<r>.pid  stop (why and until when)  scratch-rank<r>/  end.json (AttemptEnd)
├── adjust.json                   Adjust: what attempts learned and the next ones keep
├── checkpoints/step-00000120/    files and manifest.json, written last
├── checkpoints/broken-00000120/  set aside: it did not match its manifest
└── final/                        the adapter or the model, and manifest.json
```

An attempt over several nodes: nothing is shared but the network. Each node has a folder as above of its own, with the
same plan.json and inputs/, and an agent that writes what it sees there. The run's is that of node 0: status, events,
checkpoints and final/. What the side that starts the agents has to do:

- Before an attempt, give every node's folder the newest checkpoint of node 0's; a node without it ends with BAD_NODE.
- Start one agent per node. A stop may be told to any one of them, by a signal or its control.json: all save and end.
- Once an agent has ended, give the others a moment (what they wait for is gone), then SIGTERM, after the grace SIGKILL.
- Of all that they said make one end, `combined`, judge the run by that and put it into the run's status.json: that of
  node 0 may say only that another node has gone.
- Keep adjust.json of every node: that of one which ran out of memory says what to try next. `learnt_by_all` makes one
  of them all, for the folder of any node of the next attempt; ranks hand it to the other nodes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, Self

from ft.recipes.digest import sha256_of_file

PLAN = "plan.json"
STATUS = "status.json"
EVENTS = "events.jsonl"
CONTROL = "control.json"
ATTEMPT_END = "end.json"
ADJUST = "adjust.json"
ATTEMPT_LOCK = ".attempt.lock"
"""Held (flock) by the agent that writes: a second one is refused."""
RANKS_LOCK = ".ranks.lock"
"""Shared by the ranks of an attempt: one that outlives its agent still writes."""
INPUTS = "inputs"
WORK = "work"
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"
FINAL = "final"
MANIFEST = "manifest.json"


class ExitCode(IntEnum):
    """How an attempt ends (decision 8). A negative or 128+n code is a death by signal."""

    DONE = 0
    UNCLASSIFIED = 1
    PREEMPTED = 75
    HAND_OFF = 76
    BAD_NODE = 77
    CONFIG = 78
    DETERMINISTIC = 79


class Reason(StrEnum):
    """Why an attempt or a run ended, in one word."""

    DONE = "done"
    PREEMPTED = "preempted"
    HAND_OFF = "hand-off"
    BAD_NODE = "bad_node"
    CONFIG = "config"
    DATA = "data"
    OOM = "oom"
    DETERMINISTIC = "deterministic"
    INFRA = "infra"
    CANCELLED = "cancelled"
    """`ft cloud cancel`."""
    USER = "user"
    """Ctrl-C in the terminal that waited, or the user's own limit `max_cost`."""

    KILLED = "killed"
    """Of an attempt only: it died by a signal, without a word."""
    ROLLBACK = "rollback"
    """Of an attempt only: numbers that were not finite; the next one goes back and leaves those rows out."""
    LOST_PEER = "lost_peer"
    """Of one node's attempt only: a rank of another node has gone or does not come; that node may know why."""
    UNCLASSIFIED = "unclassified"
    """Of an attempt only: an error that has no name; it is tried once more."""


class RunState(StrEnum):
    """States of a run. The last four are ends."""

    SUBMITTING = "SUBMITTING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


class JsonRecord:
    """A frozen dataclass that is one JSON object. Unknown keys of a newer writer are dropped on reading."""

    def to_json(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # mixin
        return json.dumps({k: v for k, v in values.items() if v is not None}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises: ValueError if the text is not a JSON object with the required keys."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"{cls.__name__}: expected a JSON object, got {type(data).__name__}")
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # mixin
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Status(JsonRecord):
    """One snapshot of training, overwritten as a whole."""

    attempt: int
    phase: str
    """start, preflight, load, data, train, export, end; save and eval, after which it is train again."""
    updated_at: float
    """Unix time in seconds; the agent's heartbeat."""
    step: int = 0
    """Last finished step, whether it was logged or not: a second old at most, exact at the end."""
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    trained_tokens: int | None = None
    checkpoint_step: int | None = None
    exit_code: int | None = None
    reason: str | None = None
    message: str | None = None
    last_step_at: float | None = None
    """Unix time in seconds when the newest step that we know of was finished."""
    rank: int | None = None
    """The rank that ended the attempt, where one did: its log says more."""
    cost: float | None = None
    """US dollars for all attempts so far; None without a price."""


@dataclass(frozen=True, slots=True)
class Event(JsonRecord):
    """One line of events.jsonl. `data` by kind:

    `phase`: name, mark ("begin" or "end"), seconds on "end". `step`: step, total_steps, epoch, loss, learning_rate,
    grad_norm, tokens_per_s, step_time_s, tokens (all, of the run), trained_tokens, peak_memory_bytes.
    `progress`: step, total_steps; at most once a second, and for the last step, where no `step` says it.
    `eval`: step, loss, trained_tokens. `checkpoint`: step, name, bytes, seconds. `resume`: step, name.
    `rows`: counts of the data preparation. `log`: level, message. `final`: name, bytes.
    `attempt`: mark, exit_code, reason, message on "end".
    """

    kind: str
    time: float
    """Unix time in seconds."""
    attempt: int
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control(JsonRecord):
    """What the launcher asks of the run; the agent polls it."""

    request: str
    """`stop`: save and end."""
    at: float
    """Unix time in seconds."""
    by: str = ""
    reason: str = "cancelled"
    """Why the run ends: `cancelled` or `user`."""
    grace_s: float | None = None
    """Seconds from `at` until it is killed, so that nobody begins a save that cannot end. None: no limit."""


@dataclass(frozen=True, slots=True)
class Adjust(JsonRecord):
    """What an attempt found out that the next ones keep. The plan stays as it was."""

    micro_batch_size: int | None = None
    """After running out of memory: smaller than the plan's; accumulation makes up for it. None: as planned."""
    eval_batch_size: int | None = None
    """After running out of memory in an evaluation: smaller than the plan's."""
    left_out: tuple[int, ...] = ()
    """Optimizer steps, counted from 1, whose rows are not trained on: their numbers were not finite."""
    rollbacks: tuple[int, ...] = ()
    """For each time that the run went back: the step whose numbers were the last straw."""


def learnt_by_all(found: Iterable[Adjust]) -> Adjust:
    """What the nodes of an attempt found out, each by itself, in one: what fits all of them. Pure."""
    adjusts = list(found)
    micro = [a.micro_batch_size for a in adjusts if a.micro_batch_size is not None]
    evals = [a.eval_batch_size for a in adjusts if a.eval_batch_size is not None]
    return Adjust(
        micro_batch_size=min(micro, default=None),
        eval_batch_size=min(evals, default=None),
        left_out=tuple(sorted({step for a in adjusts for step in a.left_out})),
        # Only node 0 goes back; a copy elsewhere is as old as or older than its own.
        rollbacks=max((tuple(a.rollbacks) for a in adjusts), key=len, default=()),
    )


@dataclass(frozen=True, slots=True)
class RankExit(JsonRecord):
    """Last words of one rank. None at all means that it died by a signal."""

    exit_code: int
    reason: str
    message: str
    step: int
    """Last finished step."""
    at: float = 0.0
    """Unix time in seconds; when it failed, not when it was written down."""
    rank: int | None = None
    """Which one it was, once its agent has told them apart."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    path: str
    """Relative, with forward slashes."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What belongs to a published folder. It is written last, so that a folder without one is not whole."""

    name: str
    step: int
    attempt: int
    plan_sha256: str
    files: tuple[FileEntry, ...]
    created_at: float
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> str:
        return json.dumps(
            {
                "name": self.name,
                "step": self.step,
                "attempt": self.attempt,
                "plan_sha256": self.plan_sha256,
                "created_at": self.created_at,
                "meta": dict(self.meta),
                "files": [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in self.files],
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises: ValueError on anything that is not a manifest."""
        try:
            data = json.loads(text)
            return cls(
                name=data["name"],
                step=int(data["step"]),
                attempt=int(data["attempt"]),
                plan_sha256=data["plan_sha256"],
                created_at=float(data["created_at"]),
                meta=dict(data["meta"]),
                files=tuple(
                    FileEntry(e["path"], int(e["size"]), e["sha256"]) for e in data["files"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a manifest: {error!r}") from error


def entries_of(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` with size and hash, sorted by path; the manifest itself is left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return tuple(
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of_file(path))
        for path in paths
    )


def why_invalid(folder: Path, *, plan_sha256: str | None = None) -> str | None:
    """None if `folder` is a whole published folder, else what is wrong with it. Reads every byte."""
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
    except OSError:
        return "no manifest"
    except ValueError as error:
        return f"manifest unreadable: {error}"
    if plan_sha256 is not None and manifest.plan_sha256 != plan_sha256:
        return f"written by another plan ({manifest.plan_sha256[:12]}, not {plan_sha256[:12]})"
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            return f"{entry.path} is missing"
        size = path.stat().st_size
        if size != entry.size:
            return f"{entry.path} has {size} bytes, expected {entry.size}"
        if sha256_of_file(path) != entry.sha256:
            return f"{entry.path} has another sha256 than its manifest"
    return None


def step_name(step: int) -> str:
    """Zero-padded, so that names sort as steps do."""
    return f"step-{step:08d}"


def step_folders(checkpoints: Path) -> list[Path]:
    """Folders that look like published checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(p for p in checkpoints.iterdir() if p.is_dir() and p.name.startswith("step-"))


def newest_valid(
    checkpoints: Path, *, plan_sha256: str | None = None
) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that was passed over."""
    passed: list[str] = []
    for folder in reversed(step_folders(checkpoints)):
        why = why_invalid(folder, plan_sha256=plan_sha256)
        if why is None:
            return folder, passed
        passed.append(f"{folder.name}: {why}")
    return None, passed


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` as a whole: a reader sees the old or the new text, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


@dataclass(frozen=True, slots=True)
class AttemptEnd(JsonRecord):
    """One finished attempt, as the restart policy sees it; kept as `attempts/<n>/end.json`."""

    exit_code: int
    step: int
    """Last optimizer step that was reached."""
    checkpoint_step: int
    """Step of the newest valid checkpoint after the attempt; 0 without one."""
    reason: str = ""


def end_of_node(exit_code: int, status: Status | None, *, attempt: int) -> RankExit | None:
    """How one node's attempt ended: the exit code of its agent, and what it told in its own status.json.

    `exit_code` is 128+n after a signal, or -n. None: the agent was killed before it could tell.
    """
    mine = status if status is not None and status.attempt == attempt else None
    if mine is not None and mine.exit_code == exit_code:
        return RankExit(
            exit_code, mine.reason or "", mine.message or "", mine.step, mine.updated_at, mine.rank
        )
    if _is_signal(exit_code):
        return None
    message = f"its agent ended with exit code {exit_code} and said nothing"
    return RankExit(exit_code, "", message, mine.step if mine else 0)


def combined(ends: Sequence[RankExit | None]) -> RankExit:
    """The end of an attempt over several nodes, from the end of each, by node; None: see `end_of_node`. Pure.

    Done only if all are. Else it is the gravest: what must not be tried again, then what the next attempt does in
    another way, then a broken machine, an error, a rank that was killed, a stop. A node that only lost the others never
    hides one that knows more; nor does one that was killed itself, as vendors do once a first node has ended.
    """
    number, worst = min(enumerate(ends), key=lambda item: (_gravity(item[1]), item[0]))
    step = max((end.step for end in ends if end is not None), default=0)
    if worst is None:
        message = f"node {number} ended without a word: its machine is gone, or it was killed"
        return RankExit(128 + signal.SIGKILL, Reason.KILLED, message, step)
    said = {None if end is None else end.message for end in ends}
    if len(said) == 1 or worst.reason in _OF_ALL_NODES:
        return replace(worst, step=step)
    return replace(worst, step=step, message=f"node {number}: {worst.message}")


_OF_ALL_NODES = {Reason.PREEMPTED, Reason.HAND_OFF, Reason.CANCELLED, Reason.USER, Reason.ROLLBACK}
"""All ranks have agreed on these, so the message is no single node's."""


class _Gravity(IntEnum):
    """Of a node's end: the smallest is that of the attempt."""

    CONFIG = 0
    DETERMINISTIC = 1
    ANOTHER_WAY = 2
    """The next attempt goes back, or has a smaller micro batch."""
    BAD_NODE = 3
    ERROR = 4
    SIGNAL = 5
    STOPPED = 6
    SILENT = 7
    LOST_PEER = 8
    DONE = 9


def _gravity(end: RankExit | None) -> _Gravity:
    if end is None:
        return _Gravity.SILENT
    if end.reason == Reason.LOST_PEER:
        return _Gravity.LOST_PEER
    if end.exit_code == ExitCode.PREEMPTED and end.reason in {Reason.OOM, Reason.ROLLBACK}:
        return _Gravity.ANOTHER_WAY
    if _is_signal(end.exit_code):
        return _Gravity.SIGNAL
    return _GRAVITIES.get(end.exit_code, _Gravity.ERROR)


_GRAVITIES: Mapping[int, _Gravity] = {
    ExitCode.DONE: _Gravity.DONE,
    ExitCode.CONFIG: _Gravity.CONFIG,
    ExitCode.DETERMINISTIC: _Gravity.DETERMINISTIC,
    ExitCode.BAD_NODE: _Gravity.BAD_NODE,
    ExitCode.PREEMPTED: _Gravity.STOPPED,
    ExitCode.HAND_OFF: _Gravity.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the backend does after an attempt."""

    restart: bool
    reason: Reason
    message: str


MAX_ATTEMPTS_WITHOUT_PROGRESS = 10

RESTARTS: Mapping[int, Reason] = {
    ExitCode.PREEMPTED: Reason.PREEMPTED,
    ExitCode.HAND_OFF: Reason.HAND_OFF,
    ExitCode.BAD_NODE: Reason.BAD_NODE,
}
SAME_AGAIN = "it would fail the same way again"
NEVER_AGAIN: Mapping[Reason, str] = {
    Reason.CANCELLED: "cancelled",
    Reason.USER: "ended as the user wished",
}
"""Ends that are no failures."""


def verdict(ends: Iterable[AttemptEnd]) -> Verdict:
    """Decision 8: restart or not, after the last of `ends` (oldest first, at least one)."""
    history = list(ends)
    last = history[-1]
    if last.exit_code == ExitCode.DONE:
        return Verdict(restart=False, reason=Reason.DONE, message="done")
    if last.exit_code == ExitCode.CONFIG:
        return Verdict(restart=False, reason=Reason.CONFIG, message="the plan cannot run as it is")
    if last.exit_code == ExitCode.DETERMINISTIC:
        reason = Reason(last.reason) if last.reason in set(Reason) else Reason.DETERMINISTIC
        return Verdict(restart=False, reason=reason, message=NEVER_AGAIN.get(reason, SAME_AGAIN))
    stuck = _attempts_without_progress(history)
    if stuck >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return Verdict(
            restart=False,
            reason=Reason.INFRA,
            message=f"{stuck} attempts in a row brought no new checkpoint",
        )
    if _is_unclassified(last.exit_code):
        before = history[-2] if len(history) > 1 else None
        if before is not None and _is_unclassified(before.exit_code) and before.step == last.step:
            return Verdict(
                restart=False,
                reason=Reason.DETERMINISTIC,
                message=f"failed twice in a row at step {last.step}",
            )
        return Verdict(
            restart=True, reason=Reason.UNCLASSIFIED, message="unknown failure, tried once more"
        )
    # An attempt that ends to begin again in another way says why: out of memory, or a rollback.
    known = {Reason.PREEMPTED, Reason.HAND_OFF, Reason.BAD_NODE, Reason.OOM, Reason.ROLLBACK}
    reason = RESTARTS.get(last.exit_code, Reason.KILLED)
    if last.exit_code in RESTARTS and last.reason in known:
        reason = Reason(last.reason)
    return Verdict(
        restart=True, reason=reason, message="restarted from the newest valid checkpoint"
    )


def _is_unclassified(exit_code: int) -> bool:
    return not _is_signal(exit_code) and exit_code not in set(ExitCode) - {ExitCode.UNCLASSIFIED}


def _is_signal(exit_code: int) -> bool:
    return exit_code < 0 or exit_code > 128


def _attempts_without_progress(history: list[AttemptEnd]) -> int:
    """Attempts at the end of `history` that left the newest checkpoint where it was."""
    steps = [0, *(end.checkpoint_step for end in history)]
    count = 0
    for before, after in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
        if after > before:
            break
        count += 1
    return count
