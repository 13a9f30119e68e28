"""What `ft cloud logs` asks for: times as people write them, ranks and attempts that there are."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

from ft.launcher.backends.base import LogQuery
from ft.launcher.cli.run import Run
from ft.launcher.logs import SUPERVISOR
from ft.recipes.errors import PlanError, UsageError
from ft.recipes.plan import read_plan
from ft.recipes.schema.cloud import duration_s


def query(
    run: Run,
    *,
    follow: bool,
    tail: int | None,
    since: str | None,
    rank: int | None,
    attempt: int | None,
    sources: list[str],
) -> LogQuery:
    """Raises: UsageError naming what there is, if a rank, an attempt or a source never was."""
    wanted = tuple(dict.fromkeys(sources))
    if rank is not None:
        wanted = (*wanted, f"rank{rank}")
    for source in wanted:
        _check_source(run, source)
    if attempt is not None and attempt not in (attempts := run.store.attempts()):
        there = f"its attempts are {_list(attempts)}" if attempts else "there is none yet"
        raise UsageError(f"run {run.record.id} has no attempt {attempt}; {there}")
    moment = parse_since(since, now=datetime.now(UTC)) if since is not None else None
    default = LogQuery().sources
    return LogQuery(follow, tail, moment, attempt, wanted or default)


def _check_source(run: Run, source: str) -> None:
    if source in {"agent", SUPERVISOR}:
        return
    number = source.removeprefix("rank")
    if not number.isdigit() or source == number:
        raise UsageError(f"--source {source}: expected agent, {SUPERVISOR} or rank0, rank1 …")
    ranks = ranks_of(run)
    if ranks and int(number) not in ranks:
        raise UsageError(f"run {run.record.id} has no rank {number}; its ranks are {_list(ranks)}")


def ranks_of(run: Run) -> list[int]:
    """Those that the plan has, and those that have logged something."""
    store = run.store
    names = [p.stem for p in store.root.glob("attempts/*/rank*.log")]
    logged = {int(n) for name in names if (n := name.removeprefix("rank")).isdigit()}
    try:
        planned = set(range(read_plan(store.plan_path).parallel.world_size))
    except PlanError:  # Of another version of ft; its logs can be read all the same.
        planned = set()
    return sorted(logged | planned)


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def parse_since(text: str, *, now: datetime) -> datetime:
    """`10m`, `2h`, `1d` before `now`, or a time in ISO 8601, which is local where it names no zone.

    Raises: UsageError.
    """
    with contextlib.suppress(ValueError):
        try:
            return now - timedelta(seconds=duration_s(text))
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since {text}: expected 10m, 2h, 1d, or a time such as 2026-11-23T17:45:00"
        ) from None
    return moment.astimezone() if moment.tzinfo is None else moment
