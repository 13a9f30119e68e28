"""Commands on runs, with records and stores as the local backend and the agent write them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ft.launcher.backends.base import Submission
from ft.launcher.backends.local import LOCK
from ft.launcher.cli.ending import from_last_traceback, without_boilerplate
from ft.launcher.cli.runs_view import Pace, disagreement, pace
from ft.launcher.ends import OUTCOME, Outcome
from ft.launcher.runs import RunRecord, Runs
from ft.recipes.runstore import AttemptEnd, Event, RunState, Status, write_atomic
from ft.recipes.store import LocalStore

COMMAND = [sys.executable, "-P", "-m", "ft.launcher.cli.app"]
ONE, TWO, THREE = "20261123-170000-aaaa", "20261123-170001-bbbb", "20261124-080000-cccc"


@dataclass(frozen=True)
class Home:
    """A laptop with its runs, and `ft` on it."""

    folder: Path

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "LC_ALL"}
        }
        homes = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("STATE", "DATA")}
        return kept | homes | {"COLUMNS": "80", "TERM": "xterm-256color", **(more or {})}

    def ft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.env(),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def runs(self) -> Runs:
        return Runs(self.folder / "state/ft/runs")

    def run(self, run_id: str, name: str | None = None) -> Run:
        """A run that a backend has taken; nothing has happened yet."""
        store = LocalStore(self.folder / "data/ft/store" / run_id)
        store.root.mkdir(parents=True)
        record = RunRecord(
            id=run_id,
            name=name or run_id,
            backend="local",
            state="QUEUED",
            created_at=time.time() - 300,
            recipe="recipes/dates.yml",
            plan_sha256="0" * 64,
            output_dir=str(self.folder / "out"),
            store=store.uri,
            handle={"run": run_id, "store": store.uri},
            overrides=["seed=1"],
            cloud_file="cloud.yaml",
        )
        self.runs.create(record, Submission("local", {"store": store.uri}, "{}", ()))
        return Run(self.runs.folder(run_id), store, record.created_at)


@dataclass(frozen=True)
class Run:
    folder: Path
    store: LocalStore
    created_at: float

    def event(self, kind: str, attempt: int = 1, *, after: float = 0, **data: object) -> None:
        self.store.append_event(Event(kind, self.created_at + after, attempt, data))

    def steps(self, first: int, last: int, attempt: int = 1) -> None:
        for step in range(first, last + 1):
            loss = 3.0 - step / 10
            values = {"step": step, "total_steps": 20, "loss": loss, "learning_rate": 1e-4}
            speed = {"tokens_per_s": 512.4, "step_time_s": 0.5, "trained_tokens": 100 * step}
            self.event("step", attempt, after=10 + step, **values, **speed)

    def status(self, **values: object) -> None:
        folder = self.store.attempt_folder(1)
        folder.mkdir(parents=True, exist_ok=True)
        given = {"attempt": 1, "phase": "train", "updated_at": time.time(), **values}
        self.store.put_status(Status(**given))  # type: ignore[arg-type]  # values of one test each

    def log(self, *lines: str, attempt: int = 1, source: str = "rank0") -> None:
        folder = self.store.attempt_folder(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{source}.log").open("a") as stream:
            stream.writelines(f"{line}\n" for line in lines)

    def end(self, state: str, reason: str, message: str, delivered_to: str = "") -> None:
        outcome = Outcome(state, reason, 0, message, self.created_at + 65, delivered_to)
        write_atomic(self.folder / OUTCOME, outcome.to_json())

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Hold what the supervisor of a living run holds."""
        with (self.folder / LOCK).open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def finished(home: Home, run_id: str = ONE, name: str | None = None) -> Run:
    """A run of two attempts that ended well."""
    run = home.run(run_id, name)
    run.event("attempt", mark="begin")
    run.event("phase", name="load", mark="end", seconds=2.5)
    run.steps(1, 12)
    run.event("attempt", 2, mark="begin")
    run.event("resume", 2, step=10, name="step-00000010")
    run.steps(11, 20, attempt=2)
    run.event("phase", 2, after=65, name="export", mark="end", seconds=0.5)
    run.status(step=20, total_steps=20, loss=1.0, exit_code=0, reason="done", attempt=2)
    run.end("SUCCEEDED", "done", "done", str(home.folder / "out"))
    return run


# ---------------------------------------------------------------------------------- ls and status


def test_ls_fits_80_columns_and_names_everything(home: Home) -> None:
    finished(home, ONE)
    home.run(TWO, "a-name-that-is-much-too-long-for-its-column")
    run = home.run(THREE, "dates")
    run.status(step=7, total_steps=20, loss=2.34567)
    with run.alive():
        result = home.ft("cloud", "ls")
    assert (result.returncode, result.stderr) == (
        0,
        f"{TWO}: the supervisor was killed, or the machine restarted; no attempt was running; "
        f"`ft cloud resume {TWO}` goes on\n",
    )
    newest = home.ft("cloud", "ls", "--limit", "1").stdout.splitlines()
    assert [line.split()[0] for line in newest] == ["ID", THREE]
    assert result.stdout.splitlines() == [
        "ID                    NAME           STATE      STEP   LOSS    STARTED    RECIPE",
        "20261123-170000-aaaa  -              SUCCEEDED  20/20  1.0000  5 min ago  dates",
        "20261123-170001-bbbb  a-name-that-…  UNKNOWN    -      -       5 min ago  dates",
        "20261124-080000-cccc  dates          RUNNING    7/20   2.3457  5 min ago  dates",
    ]


def test_ls_json(home: Home) -> None:
    assert json.loads(home.ft("cloud", "ls", "--json").stdout) == []
    run = finished(home, ONE, "dates")
    assert json.loads(home.ft("cloud", "ls", "--json").stdout) == [
        {
            "id": ONE,
            "name": "dates",
            "backend": "local",
            "state": "SUCCEEDED",
            "reason": "done",
            "message": "done",
            "step": 20,
            "total_steps": 20,
            "loss": 1.0,
            "created_at": run.created_at,
            "recipe": "recipes/dates.yml",
        }
    ]
    record = home.runs.get(ONE)
    assert record is not None
    assert record.state == "SUCCEEDED"  # The record remembers an end.


def test_a_broken_store_hides_no_other_run(home: Home) -> None:
    broken = finished(home, ONE)
    (broken.store.root / "status.json").write_text("{")
    finished(home, TWO)
    result = home.ft("cloud", "ls")
    assert result.returncode == 0
    assert [line.split()[:1] for line in result.stdout.splitlines()] == [["ID"], [ONE], [TWO]]
    assert result.stderr.startswith(f"warning: {broken.store.root}: its status cannot be read")
    assert home.ft("cloud", "status", ONE).returncode == 5


def test_status_shows_machines_and_training_side_by_side(home: Home) -> None:
    run = home.run(ONE, "dates")
    run.status(step=7, total_steps=20, loss=2.5, tokens_per_s=512.4, checkpoint_step=5)
    with run.alive():
        result = home.ft("cloud", "status", "dates")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[:9] == [
        f"run {ONE} (dates), started 5 min ago",
        "",
        "  machines                                training",
        "    backend    local                        phase      train",
        "    state      RUNNING                      attempt    1",
        "    attempts   1                            step       7 of 20",
        "                                            loss       2.5000",
        "                                            speed      512 tokens/s",
        "                                            saved      step 5",
    ]
    assert (
        "  recipe        recipes/dates.yml --cloud cloud.yaml --set seed=1"
        in result.stdout.splitlines()
    )


def test_status_says_where_the_two_disagree(home: Home) -> None:
    run = home.run(ONE)
    run.status(step=7, updated_at=time.time() - 150)
    with run.alive():
        silent = " ".join(home.ft("cloud", "status", "@last").stdout.split())
    assert "note The machines run, but training has said nothing for 2 min 3" in silent
    gone = " ".join(home.ft("cloud", "status", "@last").stdout.split())
    assert "state UNKNOWN" in gone
    assert "why the supervisor was killed, or the machine restarted; training died with it" in gone
    assert "note The machines are gone, while training said that it was in phase train" in gone


@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [
        (RunState.RUNNING, Status(1, "train", 995.0, step=3, last_step_at=990.0), []),
        (
            RunState.RUNNING,
            Status(1, "train", 995.0, step=3, last_step_at=760.0),
            [
                "The worker is alive, but there was no step for 4 min 00 s, a step took 2.0 s: "
                "it may hang."
            ],
        ),
        # It saves, or it evaluates: there is no step to come.
        (RunState.RUNNING, Status(1, "save", 995.0, step=3, last_step_at=760.0), []),
        (
            RunState.RUNNING,
            Status(1, "train", 900.0, step=3, last_step_at=899.0),
            ["The machines run, but training has said nothing for 1 min 40 s: it may hang."],
        ),
        (
            RunState.UNKNOWN,
            Status(1, "train", 940.0, step=3),
            [
                "The machines are gone, while training said that it was in phase train at step 3 "
                "when it was last heard, 1 min 00 s ago."
            ],
        ),
        (RunState.UNKNOWN, Status(1, "end", 940.0, step=3, exit_code=75), []),
        (
            RunState.CANCELLED,
            Status(1, "save", 940.0, step=3),
            [
                "The run has ended, while training last said that it was in phase save at step 3: "
                "it was killed there."
            ],
        ),
        (RunState.QUEUED, None, []),
    ],
)
def test_disagreements(state: RunState, status: Status | None, expected: list[str]) -> None:
    assert list(disagreement(state, status, pace=Pace(step_time_s=2.0), now=1000.0)) == expected


def test_a_phase_that_takes_long_is_told() -> None:
    """The second save began 840 s ago; the first one, and that of an earlier attempt, are over."""
    status = Status(2, "save", 995.0, step=9, last_step_at=150.0)

    def mark(attempt: int, name: str, mark: str, at: float) -> Event:
        return Event("phase", at, attempt, {"name": name, "mark": mark})

    events = [
        mark(1, "save", "begin", 10.0),
        mark(2, "save", "begin", 100.0),
        mark(2, "save", "end", 101.0),
        Event("step", 150.0, 2, {"step": 9, "step_time_s": 2.5}),
    ]
    assert pace(events, status) == Pace(2.5, None)
    events.append(mark(2, "save", "begin", 160.0))
    assert pace(events, status) == Pace(2.5, 160.0)
    assert pace(events, None) == Pace(2.5, None)

    def told(phase: str, since: float | None) -> list[str]:
        now = Status(2, phase, 995.0, step=9)
        return list(disagreement(RunState.RUNNING, now, pace=Pace(2.5, since), now=1000.0))

    assert told("save", 160.0) == ["The worker is alive, but it has been saving for 14 min 00 s."]
    assert told("load", 1.0) == [
        "The worker is alive, but it has been loading the model for 16 min 39 s."
    ]
    assert told("data", 1.0)[0].endswith("it has been preparing the data for 16 min 39 s.")
    assert told("eval", 1.0)[0].endswith("it has been evaluating for 16 min 39 s.")
    assert told("eval", 401.0) == []
    assert told("save", None) == []


def test_status_reads_since_when_the_phase_goes_on(home: Home) -> None:
    run = home.run(ONE)
    run.event("phase", after=300 - 900, name="load", mark="begin")
    run.status(phase="load")
    with run.alive():
        told = json.loads(home.ft("cloud", "status", ONE, "--json").stdout)
    (note,) = told["notes"]
    assert note.startswith("The worker is alive, but it has been loading the model for 15 min 0")


def test_a_last_line_without_its_end_appears_once_its_attempt_has_ended(home: Home) -> None:
    run = home.run(ONE)
    for attempt in (1, 2):
        folder = run.store.attempt_folder(attempt)
        folder.mkdir(parents=True)
        (folder / "rank0.log").write_text(f"line of {attempt}\nno end of {attempt}")
    run.status(attempt=2)
    expected = ["line of 1", "no end of 1", "line of 2"]
    with run.alive():
        assert home.ft("cloud", "logs", ONE).stdout.splitlines() == expected
        following = home.start("cloud", "logs", ONE, "-f")
        assert following.stdout is not None
        assert [next(following.stdout) for _ in expected] == [f"{line}\n" for line in expected]
        run.end("FAILED", "data", "line 3")
    assert following.communicate(timeout=60)[0] == "no end of 2\n"
    assert home.ft("cloud", "logs", ONE).stdout.splitlines() == [*expected, "no end of 2"]


def test_status_tells_attempts_with_their_ends(home: Home) -> None:
    run = home.run(ONE)
    run.steps(1, 12)
    run.event("attempt", after=30, mark="end", exit_code=137, reason="killed", message="killed")
    run.store.attempt_folder(1).mkdir(parents=True)
    run.store.put_attempt_end(1, AttemptEnd(137, 13, 10, "killed"))
    run.event("attempt", 2, after=31, mark="begin")
    run.event("resume", 2, after=32, step=10, name="step-00000010")
    run.steps(11, 14, attempt=2)
    run.store.attempt_folder(2).mkdir(parents=True)
    run.status(attempt=2, step=14)
    with run.alive():
        lines = home.ft("cloud", "status", ONE).stdout.splitlines()
        told = json.loads(home.ft("cloud", "status", ONE, "--json").stdout)["attempts"]
    start = lines.index("  ATTEMPT  STEPS  END           WHY")
    assert lines[start + 1 : start + 3] == [
        "  1        1-13   killed (137)",
        "  2        11-14  goes on",
    ]
    assert told == [
        {
            "number": 1,
            "began_at": None,
            "ended_at": run.created_at + 30,
            "first_step": 1,
            "last_step": 13,
            "checkpoint_step": None,
            "exit_code": 137,
            "reason": "killed",
            "message": "killed",
        },
        {
            "number": 2,
            "began_at": run.created_at + 31,
            "ended_at": None,
            "first_step": 11,
            "last_step": 14,
            "checkpoint_step": 10,
            "exit_code": None,
            "reason": None,
            "message": None,
        },
    ]


def test_status_json(home: Home) -> None:
    run = finished(home, ONE, "dates")
    result = json.loads(home.ft("cloud", "status", "dates", "--json").stdout)
    age = result.pop("heartbeat_age_s")
    assert 0 <= age < 30
    training = result.pop("training")
    assert (training["attempt"], training["step"], training["exit_code"]) == (2, 20, 0)
    assert [attempt["number"] for attempt in result.pop("attempts")] == [1, 2]
    assert result == {
        "id": ONE,
        "name": "dates",
        "created_at": run.created_at,
        "recipe": "recipes/dates.yml",
        "overrides": ["seed=1"],
        "cloud_file": "cloud.yaml",
        "plan_sha256": "0" * 64,
        "output_dir": str(home.folder / "out"),
        "store": run.store.uri,
        "output": str(home.folder / "out"),
        "machines": {
            "backend": "local",
            "state": "SUCCEEDED",
            "reason": "done",
            "message": "done",
        },
        "notes": [],
    }


def test_runs_are_found_by_prefix_name_and_last(home: Home) -> None:
    for run_id, name in ((ONE, None), (TWO, "dates"), (THREE, None)):
        finished(home, run_id, name)

    def found(reference: str) -> str:
        result = home.ft("cloud", "status", reference, "--json")
        assert result.returncode == 0, result.stderr
        return str(json.loads(result.stdout)["id"])

    assert [found(word) for word in ("20261124", "20261123-170001", "dates", "@last")] == [
        THREE,
        TWO,
        TWO,
        THREE,
    ]
    many = home.ft("cloud", "logs", "20261123")
    assert many.returncode == 2
    assert many.stderr.splitlines() == [
        f"error: '20261123' fits 2 runs: {ONE}, {TWO}",
        "hint: give more characters",
    ]
    none = home.ft("cloud", "attach", "2025")
    assert (none.returncode, none.stderr.splitlines()[0]) == (8, "error: no run '2025'")


def test_why_a_run_never_started_is_told_wherever_one_looks(home: Home) -> None:
    home.run(ONE, "dates")
    record = home.runs.get(ONE)
    assert record is not None
    home.runs.update(record, state="FAILED", handle={}, message="training here needs torch")

    assert "  why           training here needs torch" in (
        home.ft("cloud", "status", ONE).stdout.splitlines()
    )
    machines = json.loads(home.ft("cloud", "status", ONE, "--json").stdout)["machines"]
    assert machines == {
        "backend": "local",
        "state": "FAILED",
        "reason": "infra",
        "message": "training here needs torch",
    }
    error = [
        f"error: run {ONE} never started: training here needs torch",
        "hint: ft cloud run recipes/dates.yml --name dates",
    ]
    attached = home.ft("cloud", "attach", ONE)
    assert (attached.returncode, attached.stdout) == (5, "")
    assert attached.stderr.splitlines() == error
    program = home.ft("cloud", "attach", ONE, "--json")
    assert (program.returncode, program.stderr.splitlines()) == (5, error)
    result = json.loads(program.stdout)
    assert (result["id"], result["state"], result["message"], result["step"]) == (
        ONE,
        "FAILED",
        "training here needs torch",
        0,
    )


# ------------------------------------------------------------------------------------------- logs


def test_logs_are_plain_lines_of_all_attempts(home: Home) -> None:
    run = home.run(ONE)
    run.log("one", "two")
    run.log("started", source="agent")
    run.log("three \x1b[31mred\x1b[0m", attempt=2)
    run.log("from rank 1", source="rank1", attempt=2)
    run.end("CANCELLED", "cancelled", "cancelled at step 3")
    everything = home.ft("cloud", "logs", ONE)
    assert everything.stdout == "started\none\ntwo\nthree \x1b[31mred\x1b[0m\n"
    assert home.ft("cloud", "logs", ONE, "--tail", "2").stdout.splitlines()[0] == "two"
    assert home.ft("cloud", "logs", ONE, "--rank", "1").stdout == "from rank 1\n"
    nobody = home.ft("cloud", "logs", ONE, "--rank", "7")
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert nobody.stderr == f"error: run {ONE} has no rank 7; its ranks are 0, 1\n"
    assert home.ft("cloud", "logs", ONE, "--attempt", "2").stdout == "three \x1b[31mred\x1b[0m\n"
    never = home.ft("cloud", "logs", ONE, "--attempt", "3")
    assert never.stderr == f"error: run {ONE} has no attempt 3; its attempts are 1, 2\n"
    # On a terminal a colour ends with its line, and nothing moves the cursor.
    run.log("20% \x1b[32mgreen \x1b[2J\x1b]0;title\x07", attempt=2)
    shown = on_terminal(home, "cloud", "logs", ONE, "--attempt", "2")
    assert shown.splitlines() == [
        "three \x1b[31mred\x1b[0m\x1b[0m",
        "20% \x1b[32mgreen \\x1b[2J\\x1b]0;title\\x07\x1b[0m",
        "",
        "exit 0",
    ]


def test_logs_by_time_and_source(home: Home) -> None:
    run = home.run(ONE)
    old, new = (datetime.fromtimestamp(time.time() - age, UTC) for age in (7200, 60))
    run.log(f"{old:%Y-%m-%dT%H:%M:%SZ} old", "  a line of the old one")
    run.log(f"{new:%Y-%m-%dT%H:%M:%SZ} new", "  a line of the new one")
    (run.folder / "supervisor.log").write_text("attempt 1\n")

    def logs(*arguments: str) -> list[str]:
        result = home.ft("cloud", "logs", ONE, *arguments)
        assert result.returncode == 0, result.stderr
        return [line.split("Z ")[-1] for line in result.stdout.splitlines()]

    recent = ["new", "  a line of the new one"]
    assert logs("--since", "10m") == recent
    assert logs("--since", (new - timedelta(minutes=1)).isoformat()) == recent
    assert logs("--since", "3h") == ["old", "  a line of the old one", *recent]
    assert logs("--source", "supervisor") == ["attempt 1"]
    assert logs("--source", "supervisor", "--source", "rank0", "--tail", "2") == recent
    for bad in ("yesterday", "10", "10x"):
        wrong = home.ft("cloud", "logs", ONE, "--since", bad)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith(f"error: --since {bad}: expected 10m, 2h, 1d, or a time")
    wrong = home.ft("cloud", "logs", ONE, "--source", "rankx")
    assert wrong.stderr.splitlines()[0] == (
        "error: --source rankx: expected agent, supervisor or rank0, rank1 …"
    )


def test_logs_json_is_an_object_per_line(home: Home) -> None:
    run = home.run(ONE)
    run.log("2026-11-23T17:45:12Z started", source="agent")
    run.log("loss \x1b[31m1.5\x1b[0m ü")
    run.log("again", attempt=2)
    run.end("CANCELLED", "cancelled", "cancelled at step 3")
    result = home.ft("cloud", "logs", ONE, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "time": 1795455912.0,
            "attempt": 1,
            "source": "agent",
            "text": "2026-11-23T17:45:12Z started",
        },
        {"time": None, "attempt": 1, "source": "rank0", "text": "loss \x1b[31m1.5\x1b[0m ü"},
        {"time": None, "attempt": 2, "source": "rank0", "text": "again"},
    ]
    tail = home.ft("cloud", "logs", ONE, "--json", "--tail", "1").stdout
    assert json.loads(tail)["text"] == "again"


def test_logs_follow_until_the_end(home: Home) -> None:
    run = home.run(ONE)
    run.log("one")
    with run.alive():
        process = home.start("cloud", "logs", "-f", ONE)
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        run.log("two")
        assert process.stdout.readline() == "two\n"
        run.end("SUCCEEDED", "done", "done")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


# ----------------------------------------------------------------------------------------- attach


def test_attach_to_a_run_that_ended_well(home: Home) -> None:
    finished(home, ONE)
    result = home.ft("cloud", "attach", ONE)
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "load       2.5 s",
        "step 1/20  loss 2.9000  lr 1.0e-04  512 tokens/s  9.5 s left",
        "step 12/20  loss 1.8000  lr 1.0e-04  512 tokens/s  4.0 s left",
        "attempt 1 ended without a word: it was killed",
        "attempt 2: started",
        "attempt 2: resumed from step 10",
        "step 20/20  loss 1.0000  lr 1.0e-04  512 tokens/s",
        "export     0.5 s",
    ]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("    2.90 ┤")
    assert lines[11].startswith("    1.00 ┤")
    assert lines[13].split() == ["1", "step", "20"]
    assert lines[14:] == [
        f"SUCCEEDED  run {ONE}",
        "  steps         20 of 20",
        "  loss          1.0000, at first 2.9000",
        "  time          1 min 05 s in 2 attempts",
        "  trained       2000 tokens",
        f"  output        {home.folder}/out",
    ]
    assert "\x1b" not in result.stdout + result.stderr


def test_attach_json_is_one_object(home: Home) -> None:
    finished(home, ONE, "dates")
    result = home.ft("cloud", "attach", "dates", "--json")
    assert json.loads(result.stdout) == {
        "id": ONE,
        "name": "dates",
        "backend": "local",
        "state": "SUCCEEDED",
        "reason": "done",
        "message": "done",
        "step": 20,
        "total_steps": 20,
        "loss": 1.0,
        "eval_loss": None,
        "trained_tokens": 2000,
        "attempts": 2,
        "wall_s": 65.0,
        "output": str(home.folder / "out"),
    }


def test_a_run_that_ended_well_but_was_not_delivered_says_so(home: Home) -> None:
    run = home.run(ONE)
    run.steps(1, 20)
    run.status(step=20, total_steps=20, loss=1.0, exit_code=0, reason="done")
    final = str(run.store.root / "final")
    message = "done, but /somewhere/out cannot be written (Permission denied); see output"
    run.end("SUCCEEDED", "done", message, final)
    result = home.ft("cloud", "attach", ONE)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[14:18] == [
        f"SUCCEEDED  run {ONE}",
        "  note          done, but /somewhere/out cannot be written (Permission denied);",
        "                see output",
        "  steps         20 of 20",
    ]
    assert lines[-1] == f"  output        {final}"
    assert json.loads(home.ft("cloud", "attach", ONE, "--json").stdout)["message"] == message


def test_a_failed_run_shows_why_and_its_last_lines(home: Home) -> None:
    run = home.run(ONE)
    run.steps(1, 3)
    run.log(*(f"line {number}" for number in range(1, 21)))
    run.status(step=3, exit_code=1, reason="unclassified", message="CUDA error")
    run.end("FAILED", "deterministic", "CUDA error (failed twice in a row at step 3)")
    result = home.ft("cloud", "attach", ONE)
    assert result.returncode == 6
    assert result.stdout.splitlines()[14:17] == [
        f"FAILED (deterministic)  run {ONE}",
        "  why           CUDA error (failed twice in a row at step 3)",
        "  steps         3 of 20",
    ]
    tail = result.stderr.splitlines()
    start = tail.index("last lines of the log:")
    assert tail[start + 1 :] == [
        *(f"  line {number}" for number in range(9, 21)),
        f"error: run {ONE} failed",
        f"hint: ft cloud logs {ONE}  shows all of its log",
    ]


def test_the_log_of_the_rank_that_ended_it_from_its_last_traceback_on(home: Home) -> None:
    run = home.run(ONE)
    run.log("rank 0 is fine")
    begin = "Traceback (most recent call last):"
    run.log("one", begin, "  old", "ValueError: old", "two", begin, source="rank1")
    run.log(*(f'  File "x.py", line {n}' for n in range(20)), "ValueError: new", source="rank1")
    run.status(step=3, exit_code=1, reason="unclassified", message="rank 1: new", rank=1)
    run.end("FAILED", "deterministic", "rank 1: new (failed twice in a row at step 3)")
    lines = home.ft("cloud", "attach", ONE).stderr.splitlines()
    start = lines.index("last lines of the log of rank 1:")
    assert lines[start + 1 : start + 13] == [
        *(f'    File "x.py", line {n}' for n in range(9, 20)),
        "  ValueError: new",
    ]
    assert lines[start + 13] == f"error: run {ONE} failed"


TORCHRUN = """\
*****************************************
Setting OMP_NUM_THREADS environment variable for each process to be 1 in default
*****************************************
2026-11-23T22:34:46Z agent our own line
E1123 22:34:46.232000 4398 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/venv/lib/python3.11/site-packages/torch/distributed/run.py", line 1032, in <module>
    main()
    ^^^^^^
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
ft.runtime.worker FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
============================================================
2026-11-23T22:34:47Z agent attempt 1 ends: exit 1
Traceback (most recent call last):
  File "agent.py", line 3, in main
KeyError: 'ours'
"""


def test_torchrun_s_own_words_are_left_out() -> None:
    said = without_boilerplate(TORCHRUN.splitlines())
    assert said == [
        "2026-11-23T22:34:46Z agent our own line",
        "2026-11-23T22:34:47Z agent attempt 1 ends: exit 1",
        "Traceback (most recent call last):",
        '  File "agent.py", line 3, in main',
        "KeyError: 'ours'",
    ]
    assert from_last_traceback(said) == said[2:]
    assert from_last_traceback(said[:2]) == said[:2]


def test_a_user_s_mistake_needs_no_traceback_from_the_log(home: Home) -> None:
    run = home.run(ONE)
    run.log("Traceback (most recent call last):")
    run.status(exit_code=79, reason="data", message="rows.jsonl, line 3: no `text`")
    run.end("FAILED", "data", "rows.jsonl, line 3: no `text`")
    result = home.ft("cloud", "attach", ONE)
    assert result.returncode == 6
    assert "  why           rows.jsonl, line 3: no `text`" in result.stdout.splitlines()
    assert "Traceback" not in result.stderr


def test_a_cancelled_and_a_vanished_run(home: Home) -> None:
    home.run(ONE).end("CANCELLED", "cancelled", "cancelled at step 3")
    cancelled = home.ft("cloud", "attach", ONE)
    assert (cancelled.returncode, cancelled.stderr.splitlines()) == (
        7,
        [f"error: run {ONE} was cancelled", f"hint: ft cloud resume {ONE}  goes on"],
    )
    assert cancelled.stdout.splitlines()[0] == f"CANCELLED (cancelled)  run {ONE}"

    home.run(TWO)
    gone = home.ft("cloud", "attach", TWO)
    assert gone.returncode == 6
    assert gone.stdout.splitlines()[0] == f"UNKNOWN  run {TWO}"
    assert gone.stderr.splitlines()[0] == (
        f"error: run {TWO} is gone: the supervisor was killed, or the machine restarted; "
        f"no attempt was running; `ft cloud resume {TWO}` goes on"
    )


def test_attach_follows_a_living_run_and_ctrl_c_lets_go(home: Home) -> None:
    run = home.run(ONE)
    run.status()
    with run.alive():
        process = home.start("cloud", "attach", ONE)
        assert process.stderr is not None
        run.event("phase", name="load", mark="end", seconds=0.5)
        assert process.stderr.readline() == "load       0.5 s\n"
        run.steps(1, 1)
        assert process.stderr.readline().startswith("step 1/20  loss 2.9000")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.splitlines() == [
            "",
            f"let go; run {ONE} goes on",
            f"  ft cloud attach {ONE}",
            f"  ft cloud logs -f {ONE}",
            f"  ft cloud status {ONE}",
        ]
        state = json.loads(home.ft("cloud", "status", ONE, "--json").stdout)["machines"]["state"]
        assert state == "RUNNING"
        assert run.store.get_control() is None  # Nobody was asked to stop.


def test_attach_waits_no_longer_than_it_is_told(home: Home) -> None:
    run = home.run(ONE, "dates")
    error = [f"error: run {ONE} is QUEUED after 0 s; it goes on", f"hint: ft cloud attach {ONE}"]
    with run.alive():
        queued = home.ft("cloud", "attach", "dates", "--timeout", "0")
        assert (queued.returncode, queued.stdout) == (124, "")
        assert queued.stderr.splitlines() == error

        run.status(step=3)
        run.steps(1, 3)
        began = time.monotonic()
        running = home.ft("cloud", "attach", ONE, "--timeout", "0.4", "--json")
        assert time.monotonic() - began >= 0.4
        assert running.returncode == 124
        assert running.stderr.splitlines()[-2] == (
            f"error: run {ONE} is RUNNING after 0.4 s; it goes on"
        )
        result = json.loads(running.stdout)
        assert (result["state"], result["step"], result["loss"]) == ("RUNNING", 3, 2.7)
        assert run.store.get_control() is None  # Nobody was asked to stop.

        assert home.ft("cloud", "attach", ONE, "--timeout", "-1").returncode == 2
        run.end("SUCCEEDED", "done", "done")
        assert home.ft("cloud", "attach", ONE, "--timeout", "0").returncode == 0
    assert "exit code 124" in " ".join(home.ft("cloud", "attach", "--help").stdout.split())


# -------------------------------------------------------------------------------------- terminal


def on_terminal(home: Home, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What `ft` writes to a terminal of 80 columns, and its exit code at the end."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=home.folder, env=home.env(env), stdout=slave, stderr=slave
    )
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(master, 65536):
            written += chunk
    except OSError:  # Linux says EIO when the other side has gone.
        pass
    finally:
        os.close(master)
    return f"{written.decode()}\nexit {process.wait(timeout=60)}"


def test_a_terminal_gets_a_bar_and_colours_unless_they_are_unwanted(home: Home) -> None:
    finished(home, ONE)
    colours = on_terminal(home, "cloud", "attach", ONE)
    assert colours.endswith("exit 0")
    assert "\x1b[?25h" in colours  # The cursor is shown again.
    assert f"\x1b[32;1mSUCCEEDED  run {ONE}\x1b[0m" in colours
    assert "20/20" in colours

    plain = on_terminal(home, "cloud", "attach", ONE, env={"NO_COLOR": "1"})
    assert f"SUCCEEDED  run {ONE}" in plain
    assert "\x1b[3" not in plain
    assert "\x1b[1" not in plain.replace("\x1b[1A", "")

    dumb = on_terminal(home, "cloud", "attach", ONE, env={"TERM": "dumb"})
    assert "\x1b" not in dumb
    assert "step 20/20  loss 1.0000" in dumb
