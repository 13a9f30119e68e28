"""A run in a bucket, as a laptop finds it that did not begin it: only read, and taken for what it says it is."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ft.images import bundle
from ft.images.dockerfile import SOURCE_FILE
from ft.launcher import dispatch, lifecycle
from ft.launcher.backends import modal_request
from ft.launcher.backends.afar import Alive
from ft.launcher.backends.bucket_left import put_source
from ft.launcher.backends.left import Left
from ft.launcher.backends.modal_ import ModalBackend
from ft.launcher.backends.sky import SkyBackend
from ft.launcher.backends.sky_jobs import BLIND, Managed
from ft.launcher.backends.sky_notes import Notes, SkyJobRef
from ft.launcher.bucket_store import RunBucket
from ft.launcher.ends import outcome
from ft.launcher.machine.bucket_words import BucketWords
from ft.recipes.errors import DependencyError, StoreError, SubmitError, UsageError
from ft.recipes.runstore import AttemptEnd, ExitCode, Reason, RunState, Status

RUN = "20261123-174512-3f9a"
STORE = f"s3://bucket-one/team/{RUN}"


@dataclass
class Sent:
    """What another laptop has put into the bucket. SkyPilot is not installed here, nor asked."""

    copy: RunBucket
    submission: Any
    source: bytes

    def leave(self, *, number: int = 1, resumed_after: int = 0, **changes: Any) -> None:
        digest = self.submission.request["source_sha256"]
        left = Left.of(
            self.submission, source_sha256=digest, resumed_after=resumed_after, number=number
        )
        self.copy.write("submission.json", replace(left, **changes).to_json())

    def end(self, state: RunState, reason: Reason, code: ExitCode) -> None:
        self.copy.write("outcome.json", outcome(state, reason, code, "said there").to_json())


@pytest.fixture
def sent(laptop: Any, object_store: Any, monkeypatch: pytest.MonkeyPatch) -> Sent:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_value_1234")
    (laptop.folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 5)
    recipe = laptop.folder / "sky.yml"
    recipe.write_text(
        "base_model: some/model\ndatasets: [{path: rows.jsonl, type: alpaca}]\nlearning_rate: 1e-4\nmax_steps: 9\n"
        "cloud: {backend: sky, gpu: cpu, store_bucket: 's3://bucket-one/team', secrets: [HF_TOKEN]}\n"
    )
    submission = dispatch.prepare(str(recipe)).submission
    copy = RunBucket(STORE)
    copy.upload(submission.uploads, submission.plan_json)
    made = Sent(copy, submission, bundle.bundle_bytes())
    made.leave()
    object_store.log.clear()
    return made


def test_an_ended_run_is_adopted_by_its_name_and_nothing_is_written_there(
    laptop: Any, sent: Sent, object_store: Any
) -> None:
    sent.end(RunState.CANCELLED, Reason.CANCELLED, ExitCode.PREEMPTED)
    status = Status(1, "end", 1.0, 7, exit_code=75, reason=Reason.PREEMPTED)
    sent.copy.write("status.json", status.to_json())
    sent.copy.write("attempts/001/end.json", AttemptEnd(75, 7, 4, Reason.PREEMPTED).to_json())
    sent.leave(number=2, resumed_after=1)
    object_store.log.clear()

    adopted = laptop.ft("cloud", "adopt", f"{STORE}/", "--name", "theirs")
    assert (adopted.returncode, adopted.stdout) == (0, f"{RUN}\n"), adopted.stderr
    assert adopted.stderr.splitlines()[0] == f"run {RUN} (theirs) adopted"
    again = laptop.ft("cloud", "adopt", STORE)
    assert again.stderr.splitlines()[0] == f"run {RUN} (theirs) is here already"
    told = json.loads(laptop.ft("cloud", "status", "theirs", "--json").stdout)
    assert told["store"] == STORE
    assert (told["machines"]["state"], told["machines"]["message"]) == ("CANCELLED", "said there")
    assert told["training"]["step"] == 7
    assert {line.split()[0] for line in object_store.log} <= {"GET", "HEAD"}

    record, submission = laptop.runs.get(RUN), laptop.runs.submission(RUN)
    assert (record.backend, record.adopted, record.resumed_after) == ("sky", True, 1)
    where = {"run": RUN, "store": STORE, "cluster": ""}
    assert record.handle == {**where, "job": "", "submission": "2"}
    assert submission == sent.submission, (
        "a resume, and one with another backend, have all they need"
    )
    here = "".join(p.read_text() for p in laptop.runs.folder(RUN).rglob("*.json"))
    assert "planted" not in here + sent.copy.read("submission.json").decode()

    pruned = laptop.ft("cloud", "prune", "--yes")
    assert pruned.returncode == 0, pruned.stderr
    assert laptop.runs.all() == []
    assert sent.copy.read("plan.json") is not None


def test_what_another_laptop_has_gone_on_with_is_no_business_of_the_old_job(
    laptop: Any, sent: Sent
) -> None:
    """Each server counts its own: the number of the old job may be that of the new one there, or of a stranger's."""
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    notes = Notes(laptop.runs.folder(RUN))
    notes.begin(1)
    notes.found(SkyJobRef(7, 1))
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    assert (notes.job(), notes.earlier()) == (SkyJobRef(7, 1), []), "nobody has gone on"

    sent.leave(number=2, resumed_after=1)
    backend = SkyBackend(laptop.runs)
    with pytest.raises(SubmitError, match="has gone on from another laptop"):
        backend._number(RUN, sent.copy)
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    assert (notes.job(), notes.sending(), notes.earlier(), notes.known()) == (None, None, [7], 2)
    assert sent.copy.read("outcome.json") is None


def test_a_run_in_a_shared_folder_is_adopted_by_its_uri(
    laptop: Any, sent: Sent, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    recipe = laptop.folder / "sky.yml"
    recipe.write_text(
        recipe.read_text().replace("store_bucket: 's3://bucket-one/team'", f"store: {shared}")
    )
    submission = dispatch.prepare(str(recipe)).submission
    copy = RunBucket(f"file://{shared}/{RUN}")
    copy.upload(submission.uploads, submission.plan_json)
    there = Sent(copy, submission, sent.source)
    there.leave()
    there.end(RunState.CANCELLED, Reason.CANCELLED, ExitCode.PREEMPTED)
    as_here = laptop.ft("cloud", "adopt", f"{shared}/{RUN}")
    assert f"ft cloud adopt file://{shared}/{RUN}" in " ".join(as_here.stderr.split())
    adopted = laptop.ft("cloud", "adopt", copy.uri)
    assert (adopted.returncode, adopted.stdout) == (0, f"{RUN}\n"), adopted.stderr
    told = json.loads(laptop.ft("cloud", "status", RUN, "--json").stdout)
    assert (told["store"], told["machines"]["state"]) == (copy.uri, "CANCELLED")
    unnamed = laptop.ft("cloud", "adopt", f"file://{shared}")
    assert "expected file:///FOLDER/RUN" in " ".join(unnamed.stderr.split())


@pytest.mark.parametrize("store", [f"file://shared/runs/{RUN}", f"file:///{RUN}", f"s3:///x/{RUN}"])
def test_a_name_with_a_part_missing_is_no_traceback(laptop: Any, store: str) -> None:
    adopted = laptop.ft("cloud", "adopt", store)
    assert (adopted.returncode, adopted.stdout) == (5, "")
    assert "expected" in adopted.stderr
    assert "Traceback" not in adopted.stderr


def test_a_run_that_may_live_is_said_to_be_unknown_where_nobody_can_ask(
    laptop: Any, sent: Sent
) -> None:
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    told = json.loads(laptop.ft("cloud", "status", RUN, "--json").stdout)
    assert (told["machines"]["state"], told["machines"]["message"]) == (
        "UNKNOWN", "backend sky needs skypilot",
    )  # fmt: skip
    resumed = laptop.ft("cloud", "resume", RUN)
    assert resumed.returncode != 0
    assert resumed.stderr.startswith("error: backend sky needs skypilot")


def test_what_was_sent_to_modal_last_is_a_run_of_modals(
    laptop: Any, sent: Sent, object_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written there, and Modal is not asked; the newest of its calls stands in the bucket."""
    pytest.importorskip("modal", reason="Modal's client is not installed")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(laptop.folder / "none.toml"))
    recipe = laptop.folder / "modal.yml"
    names = "[AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]"
    text = (laptop.folder / "sky.yml").read_text()
    recipe.write_text(text.replace("backend: sky", "backend: modal").replace("[HF_TOKEN]", names))
    submission = dispatch.prepare(str(recipe)).submission
    left = Left.of(submission, source_sha256="0" * 64, resumed_after=2)
    sent.copy.write("submission.json", left.to_json())
    for key, call in {"holder-1": "local-1", "holder-2": "fc-2", "call-3": "fc-3"}.items():
        sent.copy.say(key, call)
    object_store.log.clear()

    adopted = laptop.ft("cloud", "adopt", STORE)
    assert (adopted.returncode, adopted.stdout) == (0, f"{RUN}\n"), adopted.stderr
    assert "(source 000000000000), and here is ft" in " ".join(adopted.stderr.split())
    assert {line.split()[0] for line in object_store.log} <= {"GET", "HEAD"}
    record = laptop.runs.get(RUN)
    assert (record.backend, record.store, record.resumed_after) == ("modal", STORE, 2)
    assert record.handle == {
        "run": RUN, "app": f"ft-{RUN}", "app_id": "", "call": "fc-3", "segment": "3",
        "volume": "", "words": "", "bucket": STORE, "environment": "",
    }  # fmt: skip

    first = partial(ModalBackend._first_segment, modal_request.filled(submission.request, RUN))
    assert [first(begun) for begun in (None, 1, 2, 3)] == [4, 4, 4, 3], "behind what is held"

    sent.leave(number=1)  # Another laptop has moved it to SkyPilot since.
    handle, backend = record.as_handle(), ModalBackend(laptop.runs)
    with pytest.raises(SubmitError, match="has gone on with backend sky, from another laptop"):
        backend.resume(submission, handle=handle)
    with pytest.raises(SubmitError, match="has gone on with backend sky, from another laptop"):
        backend.discard(handle, plan_sha256=record.plan_sha256)
    again = laptop.ft("cloud", "adopt", STORE)
    assert again.returncode == 2
    said = f"run {RUN} is here as one of backend modal, and has gone on with backend sky from another laptop"
    assert said in " ".join(again.stderr.split())


def test_what_the_bucket_has_not_cannot_be_adopted(laptop: Any, sent: Sent) -> None:
    def refused(store: str, code: int) -> tuple[str, str]:
        done = laptop.ft("cloud", "adopt", store)
        assert (done.returncode, done.stdout) == (code, "")
        error, _, hint = " ".join(done.stderr.split()).removeprefix("error: ").partition(" hint: ")
        return error, hint

    where = "ft cloud status RUN says its store on the laptop that began it"
    other = "s3://bucket-one/team/20261123-174512-0000"
    assert refused(other, 8) == (f"there is no run {other}", where)
    named = "s3://bucket-one/team names no run: expected s3://BUCKET/PREFIX/RUN, the run by its id"
    assert refused("s3://bucket-one/team", 2) == (f"{named} (20261123-174512-3f9a)", where)
    nowhere = STORE.replace("one", "two")
    error, hint = refused(nowhere, 5)
    assert error == f"{nowhere}: there is no bucket bucket-two"
    assert hint.startswith("what opened it on the laptop that began it opens it here: AWS_")

    sent.copy.remove("plan.json")
    error, hint = refused(STORE, 2)
    assert error == f"{STORE} is half a run: it has no plan.json"
    assert hint.startswith("its sending was cut off; any ft command of the laptop that began it")
    sent.copy.remove("submission.json")
    assert refused(STORE, 2)[0].endswith("it has no plan.json and no submission.json")
    assert laptop.runs.all() == []


def test_a_bucket_that_is_closed_says_what_opens_it(
    laptop: Any, sent: Sent, object_store: Any
) -> None:
    object_store.fault = lambda _: "expired"
    done = laptop.ft("cloud", "adopt", STORE)
    assert done.returncode == 5
    error, hint = done.stderr.splitlines()
    assert error == f"error: {STORE}: ExpiredToken: The provided token has expired."
    assert hint.startswith("hint: what opened it on the laptop that began it opens it here")
    object_store.fault = None

    closed = laptop.ft("cloud", "adopt", f"az://container/team/{RUN}")
    assert closed.returncode == 5
    assert closed.stderr.startswith("error: az://container: Generic MicrosoftAzure error: Account")


def test_what_was_left_is_read_for_what_it_says(laptop: Any, sent: Sent) -> None:
    def refused() -> str:
        done = laptop.ft("cloud", "adopt", STORE)
        assert done.returncode in {2, 5}
        return done.stderr.splitlines()[0]

    sent.leave(backend="local")
    assert refused() == (
        f"error: {STORE} is the copy of a run of backend local: the machine that has it looks after it"
    )
    moved = sent.submission.request["store"].replace("team", "other")
    sent.leave(request={**sent.submission.request, "store": moved})
    assert f"submission.json was sent as s3://bucket-one/other/{RUN}" in refused()
    job = {**sent.submission.request["job"], "plan_sha256": "0" * 64}
    sent.leave(request={**sent.submission.request, "job": job})
    assert refused().endswith("its submission.json is of another plan")
    sent.copy.write("submission.json", "{}")
    assert "submission.json cannot be read: Left: " in refused()


def test_inputs_that_are_nowhere_are_named(laptop: Any, sent: Sent) -> None:
    (upload,) = sent.submission.uploads
    names = [f.path for f in sent.copy.bucket.listed("inputs")]
    sent.copy.bucket.remove(names)
    assert "warning" not in laptop.ft("cloud", "adopt", STORE).stderr, "this laptop has them"
    upload.source.unlink()
    again = laptop.ft("cloud", "adopt", STORE)
    assert f"inputs/{upload.name} is missing: it can be looked at, but not resumed" in again.stderr


def test_a_run_that_another_laptop_went_on_with_is_neither_deleted_nor_sent_again(
    laptop: Any, sent: Sent
) -> None:
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    backend, handle = SkyBackend(laptop.runs), laptop.runs.get(RUN).as_handle()
    plan = laptop.runs.get(RUN).plan_sha256
    sent.leave(number=2)  # By the other one, a moment later.
    with pytest.raises(SubmitError, match="has gone on from another laptop"):
        backend.resume(sent.submission, handle=handle)
    with pytest.raises(StoreError, match="it has gone on since this laptop saw its end"):
        backend.discard(handle, plan_sha256=plan)
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    with pytest.raises(DependencyError):  # SkyPilot is asked from here on.
        backend.resume(sent.submission, handle=handle)
    sent.end(RunState.CANCELLED, Reason.CANCELLED, ExitCode.PREEMPTED)
    with pytest.raises(StoreError, match="it has gone on since"):
        backend.discard(handle, plan_sha256=plan)
    assert laptop.ft("cloud", "status", RUN).returncode == 0
    backend.discard(handle, plan_sha256=plan)
    assert sent.copy.bucket.listed() == []


def test_a_run_that_has_moved_is_no_business_of_its_former_backend(laptop: Any, sent: Sent) -> None:
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    record, backend = laptop.runs.get(RUN), SkyBackend(laptop.runs)
    sent.leave(number=0, backend="modal")  # By another laptop: Modal counts in another way.
    with pytest.raises(SubmitError, match="has gone on from another laptop"):
        backend.resume(sent.submission, handle=record.as_handle())
    with pytest.raises(SubmitError, match="has gone on from another laptop"):
        backend.release(record.as_handle())
    with pytest.raises(StoreError, match="it has gone on since this laptop saw its end"):
        backend.discard(record.as_handle(), plan_sha256=record.plan_sha256)
    with pytest.raises(UsageError, match="has gone on with backend modal, from another laptop"):
        lifecycle._must_be_movable(record, RunState.FAILED, sent.submission, "local")
    assert sent.copy.read("plan.json") is not None


def test_a_job_that_is_still_on_its_way_is_of_the_past_once_the_run_is_let_go(
    laptop: Any, sent: Sent
) -> None:
    from ft.launcher.backends.sky_remote import _is_the_job

    job, node = SimpleNamespace(submission=2), SimpleNamespace(job="7")
    words = BucketWords(STORE)
    assert _is_the_job(words, job, node)
    SkyBackend._withdraw(sent.copy, 2)
    assert not _is_the_job(words, job, node)
    assert SkyBackend(laptop.runs)._number(RUN, sent.copy) == 4, "the next one is behind that"
    notes = Notes(laptop.runs.folder(RUN))
    notes.folder.mkdir(parents=True)
    notes.begin(2)  # As of a withdrawal that was cut off: it is sent anew all the same.
    assert SkyBackend(laptop.runs)._number(RUN, sent.copy) == 4
    assert _is_the_job(words, SimpleNamespace(submission=4), SimpleNamespace(job="9"))


def test_a_move_that_is_refused_leaves_all_as_it_was(
    laptop: Any, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = laptop.submit("one")
    run.wait_for_step(3)
    laptop.ft("cloud", "cancel", "one")
    record, runs = laptop.runs.get(run.id), laptop.runs
    cloud = {"backend": "local", "gpu": "cpu", "store_bucket": "s3://bucket-one/team"}
    runs.put_submission(run.id, replace(runs.submission(run.id), cloud=cloud))
    copy, end = RunBucket(f"s3://bucket-one/team/{run.id}"), run.outcome()
    copy.write(
        "submission.json",
        Left.of(runs.submission(run.id), source_sha256="0", resumed_after=0).to_json(),
    )
    copy.write("outcome.json", json.dumps(end))
    before = [copy.read(name) for name in ("submission.json", "outcome.json")]

    def refuse(self: SkyBackend, submission: Any, *, key: str) -> None:
        copy.write("submission.json", "what was sent to SkyPilot")
        raise SubmitError("no machine is to be had")

    monkeypatch.setattr(SkyBackend, "submit", refuse)
    with pytest.raises(SubmitError, match="no machine"):
        lifecycle.move(record, runs, "sky", lifecycle.LimitChanges())
    assert [copy.read(name) for name in ("submission.json", "outcome.json")] == before
    assert (run.outcome(), runs.get(run.id)) == (end, record)


def test_the_source_of_the_run_is_had_from_the_bucket_by_a_laptop_with_another_one(
    laptop: Any, sent: Sent
) -> None:
    import hashlib

    theirs = b"a bundle of another version"
    digest = hashlib.sha256(theirs).hexdigest()
    path = laptop.folder / SOURCE_FILE
    with pytest.raises(SubmitError, match="planned by another version of ft"):
        put_source(path, digest, sent.copy)
    sent.copy.write(SOURCE_FILE, theirs.decode())
    put_source(path, digest, sent.copy)
    assert path.read_bytes() == theirs
    path.unlink()
    mine = hashlib.sha256(sent.source).hexdigest()
    put_source(path, mine, sent.copy)
    assert path.read_bytes() == sent.copy.read(SOURCE_FILE) == sent.source


def test_a_run_whose_controller_has_failed_is_what_its_machine_says(
    laptop: Any, sent: Sent
) -> None:
    """What SkyPilot sees no more may train on, and an end that was noted here would hide how it went."""
    look = Managed().seen({"failure_reason": "it died with hf_planted_value_1234"}, BLIND)
    assert (look.is_blind, look.alive.lives) == (True, False)
    assert laptop.ft("cloud", "adopt", STORE).returncode == 0
    backend, handle = SkyBackend(laptop.runs), laptop.runs.get(RUN).as_handle()
    assert backend._unseen(handle, look.why) is None, (
        "nothing has begun: SkyPilot's word is the end"
    )

    sent.copy.write("attempts/001/machine.json", "{}")
    sent.copy.write("status.json", Status(1, "train", time.time(), 7).to_json())
    alive = backend._unseen(handle, look.why)
    assert alive == Alive(
        lives=True,
        is_held=True,
        said="SkyPilot's controller failed (it died with ***), but its machine spoke a moment ago; "
        "nothing begins it anew if that is lost",
    )
    sent.copy.write("status.json", Status(1, "train", time.time() - 100, 7).to_json())
    alive = backend._unseen(handle, "")
    assert alive == Alive(
        lives=False,
        is_held=False,
        said="SkyPilot's controller failed, and its machine says nothing; "
        f"`ft cloud resume {RUN}` goes on",
    )
    assert backend._end(handle) is None
    sent.end(RunState.SUCCEEDED, Reason.DONE, ExitCode.DONE)
    assert backend._unseen(handle, look.why) is None
    assert backend.status(handle) is RunState.SUCCEEDED
