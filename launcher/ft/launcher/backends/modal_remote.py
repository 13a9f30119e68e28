"""What runs in containers on Modal: rows on a CPU, then attempts on GPUs, one segment of a run after the other.

A call is a segment. Modal starts its input anew when it takes the machine back: that is another attempt of the same
segment. A segment that has to end (24 hours, a bad machine) notes that there is a next one, spawns it and returns. A
claim among the run's words says which call holds a segment, so that a second one, spawned after a lost reply, ends at
once; and a segment that sees a later one begin ends as well.

The run lies on the container's own disk; a mirror on the volume or in the bucket is what outlives it (`mirror.py`). So
no file of the volume is open while it is committed.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import modal

from ft.launcher.backends.modal_cpu import Export, Preparation
from ft.launcher.backends.modal_host import ModalHost, ModalJob, commit
from ft.launcher.backends.modal_request import UNWRITTEN
from ft.launcher.ends import outcome
from ft.launcher.machine.stage import Stage, SupersededError, logged, run_words
from ft.launcher.machine.training import Assistance, Segment
from ft.launcher.medium import MediumRefusedError
from ft.recipes.runstore import ExitCode, Reason, RunState

log = logging.getLogger("ft.machine")

BROKE: Final = "ft: "
"""How the message begins of what ended a segment that could not go on."""
SUPERSEDED: Final = "superseded"
WAY_IN: Final = "containers open it with what cloud.secrets and cloud.env give them"


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Function on Modal: inputs verified, model and data fetched, rows made, on a CPU; then training is spawned."""
    wanted = ModalJob.from_json(job)
    return _run(lambda: Preparation(wanted, ModalHost(wanted)))


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Function on Modal: the result of a trained run, out of its last checkpoint, on a CPU. Returns its end."""
    wanted = ModalJob.from_json(job)
    return _run(lambda: Export(wanted, ModalHost(wanted)))


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Function on Modal: one segment of training. Returns the end of the run, or which call goes on.

    On several machines every container of the call is here, and what node 0 returns counts.
    """
    wanted = ModalJob.from_json(job)

    def stage() -> Stage:
        host = ModalHost(wanted)
        cluster = host.cluster()
        return (Segment if cluster.rank == 0 else Assistance)(wanted, cluster, host)

    return _run(stage)


def run_cmd(
    cmd: str | Sequence[str],
    run_folder: str,
    volumes: Mapping[str, modal.Volume] | None = None,
) -> int:
    """Run a command in `run_folder`, in a container. Its exit code, 128+n after a signal.

    `volumes` (path -> volume) are reloaded before, and committed after, whatever the exit code is. A text is split as a
    shell would, quotes and all; a list is taken as it is. A signal that ends this process is passed on first.
    """
    words = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
    mounted = (volumes or {}).values()
    for volume in mounted:
        volume.reload()
    try:
        return run_words(words, run_folder)
    finally:
        for volume in mounted:
            commit(volume)


def _run(stage: Callable[[], Stage]) -> dict[str, Any]:
    """The edge: whatever fails goes to the laptop as one kind of error, which it can tell from those of the client."""
    with logged(logging.StreamHandler()):
        try:
            return stage().work()
        except SupersededError as error:
            return {"state": SUPERSEDED, "next": error.call}
        except MediumRefusedError as error:
            # As an end, which Modal does not try again. It cannot be written where the run lies: the laptop keeps it.
            log.error("%s", error)
            end = outcome(RunState.FAILED, Reason.CONFIG, ExitCode.CONFIG, f"{error}; {WAY_IN}")
            return {**asdict(end), UNWRITTEN: True}
        except Exception as error:
            log.exception("the segment failed")
            raise RuntimeError(f"{BROKE}{type(error).__name__}: {error}") from error
