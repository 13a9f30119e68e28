"""A run in a bucket or a shared folder as another laptop finds it: its name, and what was left for whoever goes on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ft.images import bundle
from ft.images.dockerfile import SOURCE_FILE
from ft.launcher.backends.base import Submission, Upload
from ft.launcher.backends.left import Left
from ft.launcher.bucket_store import RunBucket
from ft.launcher.inputs import lacking
from ft.launcher.runs import RUN_ID, SUBMISSION
from ft.recipes.digest import sha256_of_file
from ft.recipes.errors import NotFoundError, StoreError, SubmitError, UnreachableError, UsageError
from ft.recipes.plan import plan_of
from ft.recipes.runstore import PLAN

HINT: Final = "what opened it on the laptop that began it opens it here: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …"
WHERE: Final = "ft cloud status RUN  says its store on the laptop that began it"


def run_named(store: str) -> str:
    """The run of `s3://BUCKET/PREFIX/RUN` or `file:///FOLDER/RUN`. Raises: UsageError if it names none."""
    run = store.rpartition("/")[2]
    if not RUN_ID.fullmatch(run):
        scheme = store.partition("://")[0]
        place = "/FOLDER" if scheme == "file" else "BUCKET/PREFIX"
        raise UsageError(
            f"{store} names no run: expected {scheme}://{place}/RUN, the run by its id (20261123-174512-3f9a)",
            hint=WHERE,
        )
    return run


def left_in(copy: RunBucket) -> Left | None:
    """What was sent last; None if nobody has left it. Raises: as `RunBucket`, StoreError if it cannot be read."""
    text = copy.read(SUBMISSION)
    if text is None:
        return None
    try:
        return Left.from_json(text)
    except ValueError as error:
        raise StoreError(f"{copy.uri}/{SUBMISSION} cannot be read: {error}") from error


def sender(store: str) -> str | None:
    """The backend that a run in a bucket was sent to last; None if nobody has left it there.

    Raises: UsageError, StoreError, as `read_left`.
    """
    run_named(store)
    with _of_another_laptop():
        left = left_in(RunBucket(store))
    return None if left is None else left.backend


@contextlib.contextmanager
def _of_another_laptop() -> Iterator[None]:
    """A store that does not open here opens there: what is said of it says how."""
    try:
        yield
    except UnreachableError:
        raise
    except StoreError as error:
        raise StoreError(error.message, hint=error.hint and HINT) from error


def read_left(store: str, backend: str) -> tuple[Submission, Left, list[Upload]]:
    """What a run of `backend` in a bucket was sent with, and the inputs that the bucket lacks. Only read.

    Raises: NotFoundError if there is no such run; UsageError, PlanError, StoreError if it cannot be adopted.
    """
    with _of_another_laptop():
        copy = RunBucket(store)
        with copy.talking():
            listed = copy.bucket.listed()
        plan_text, left = copy.read(PLAN), left_in(copy)
    if not listed:
        raise NotFoundError(
            f"there is no run {store}",
            hint=WHERE,
        )
    if left is None or not plan_text:
        missing = " and no ".join(
            name for name, found in ((PLAN, plan_text), (SUBMISSION, left)) if not found
        )
        raise UsageError(
            f"{store} is half a run: it has no {missing}",
            hint="its sending was cut off; any ft command of the laptop that began it goes on with that",
        )
    if left.backend != backend:
        raise UsageError(
            f"{store} is the copy of a run of backend {left.backend}: the machine that has it looks after it",
            hint=f"there: ft cloud resume {run_named(store)} --backend {backend}  makes it one to adopt",
        )
    plan = plan_of(plan_text, f"{store}/{PLAN}")
    try:
        submission = left.submission(plan)
    except ValueError as error:
        raise StoreError(f"{store}/{SUBMISSION} cannot be read: {error}") from error
    where = str(left.request.get("store", "")).replace("{run}", run_named(store))
    if (where, left.job().get("plan_sha256")) != (store, plan.sha256):
        what = f"was sent as {where}" if where != store else "is of another plan"
        raise StoreError(f"{store} is a copy, or of two runs: its {SUBMISSION} {what}")
    return submission, left, lacking(listed, submission.uploads)


def put_source(path: Path, sha256: str, copy: RunBucket) -> None:
    """The source that a run was planned with, here and in the bucket, whatever version of ft this laptop has.

    Raises: SubmitError if it is to be had nowhere.
    """
    if not path.exists() or sha256_of_file(path) != sha256:
        made = (bundle.bundle_bytes(), copy.read(SOURCE_FILE))
        content = next((c for c in made if c and hashlib.sha256(c).hexdigest() == sha256), None)
        if content is None:
            raise SubmitError(
                "the run was planned by another version of ft than this one",
                hint="start it anew: ft cloud run RECIPE",
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(path)
    copy.put(SOURCE_FILE, path)
