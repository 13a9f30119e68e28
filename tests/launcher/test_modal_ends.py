"""Ends of a run on Modal that only its laptop sees: what it keeps of what a container said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ft.launcher import dispatch
from ft.launcher.backends.base import Handle
from ft.launcher.backends.modal_ import ModalBackend
from ft.launcher.ends import outcome
from ft.recipes.runstore import ExitCode, Reason, RunState

RUN = "20261123-174512-3f9a"
TOKEN = "hf_planted_value_1234"
KEPT = "kept-on-modal-0123456789"
SAID = f"401 for https://x/?token={TOKEN} and {KEPT}"
HIDDEN = "401 for https://x/?token=*** and ***"


@pytest.fixture
def broken(laptop: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[ModalBackend, Handle]:
    """A run whose container wrote nothing. One of its secrets is from here, one is Modal's and by now here as well."""
    recipe = laptop.folder / "modal.yml"
    (laptop.folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 5)
    recipe.write_text(
        "base_model: some/model\ndatasets: [{path: rows.jsonl, type: alpaca}]\nlearning_rate: 1e-4\nmax_steps: 9\n"
        "cloud: {backend: modal, gpu: cpu, secrets: [HF_TOKEN, OTHER_TOKEN]}\n"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("OTHER_TOKEN", raising=False)
    submission = dispatch.prepare(str(recipe)).submission
    assert submission.request["secrets"] == {
        "from_here": ["HF_TOKEN"],
        "on_modal": ["OTHER_TOKEN"],
    }
    monkeypatch.setenv("OTHER_TOKEN", KEPT)
    laptop.runs.folder(RUN).mkdir(parents=True)
    laptop.runs.put_submission(RUN, submission)
    store = laptop.folder / "shared" / RUN
    store.mkdir(parents=True)
    return ModalBackend(laptop.runs), Handle("modal", {"run": RUN, "bucket": f"file://{store}"})


def kept(backend: ModalBackend) -> str:
    """The message of the end; no file of the record has a secret."""
    folder: Path = backend.runs.folder(RUN)
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if TOKEN in text or KEPT in text]
    return str(json.loads((folder / "outcome.json").read_text())["message"])


def test_what_a_container_raised_is_kept_without_secrets(
    broken: tuple[ModalBackend, Handle],
) -> None:
    """It quotes what the program that failed had printed last."""
    backend, handle = broken
    why = f"ft: RuntimeError: preprocess ended with exit code 1: {SAID}"
    backend._note_broken(handle, RuntimeError(why))
    hidden = f"RuntimeError: preprocess ended with exit code 1: {HIDDEN}"
    assert kept(backend) == f"Modal gave it up: {hidden}"


def test_an_end_that_a_container_could_not_write_is_kept_without_secrets(
    broken: tuple[ModalBackend, Handle],
) -> None:
    backend, handle = broken
    backend._note_said(handle, outcome(RunState.FAILED, Reason.CONFIG, ExitCode.CONFIG, SAID))
    assert kept(backend) == HIDDEN
