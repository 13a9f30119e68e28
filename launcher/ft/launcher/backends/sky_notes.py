"""What a laptop remembers of the jobs of a run, beside its record.

`sending.json` (something was sent), `known.json` (the newest submission that this laptop has sent or seen),
`request.json` (the request, written before anybody waits for it), `job.json` (the job), `earlier.json` (those before).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ft.recipes.runstore import JsonRecord, write_atomic

SENDING: Final = "sending.json"
KNOWN: Final = "known.json"
REQUEST: Final = "request.json"
JOB: Final = "job.json"
EARLIER: Final = "earlier.json"


@dataclass(frozen=True, slots=True)
class SkyJobRef(JsonRecord):
    """A job that this laptop sent, or found."""

    job: int
    submission: int
    cluster: str = ""
    """The plain cluster in whose queue it is; empty for a managed job."""


class Notes:
    """Of one run. A submission is its number among those of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, submission: int) -> None:
        """From now on something of it may be on its way."""
        self._write(SENDING, {"submission": submission})
        self.know(submission)

    def sending(self) -> int | None:
        """The submission that was begun last; None if none was, it is over, or it went to another backend."""
        found = (self._read(SENDING) or {}).get("submission")
        return None if found is None else int(found)

    def sent(self, submission: int, request: str) -> None:
        """It goes on whether somebody waits for it or not."""
        self._write(REQUEST, {"request": request, "submission": submission})

    def request(self, submission: int) -> str | None:
        """Of this submission."""
        found = self._read(REQUEST) or {}
        return str(found["request"]) if found.get("submission") == submission else None

    def found(self, job: SkyJobRef) -> None:
        write_atomic(self.folder / JOB, job.to_json())

    def job(self) -> SkyJobRef | None:
        found = self._read(JOB)
        return None if found is None else SkyJobRef.from_json(json.dumps(found))

    def over(self, *jobs: int) -> None:
        """They are of the past, and are not looked for any more."""
        self._write(EARLIER, sorted({*self.earlier(), *jobs}))
        self.forget()

    def earlier(self) -> list[int]:
        """Jobs that the run had before."""
        return [int(job) for job in self._read(EARLIER) or []]

    def forget(self) -> None:
        """What was sent last, so that it is looked for by its name."""
        for name in (JOB, REQUEST, SENDING):
            (self.folder / name).unlink(missing_ok=True)

    def know(self, submission: int) -> None:
        """This laptop has sent it, or seen it."""
        self._write(KNOWN, {"submission": submission})

    def known(self) -> int:
        """0 if it has sent none, nor seen one since the run was adopted."""
        return int((self._read(KNOWN) or {}).get("submission", 0))

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, name: str, value: Any) -> None:
        write_atomic(self.folder / name, json.dumps(value))
