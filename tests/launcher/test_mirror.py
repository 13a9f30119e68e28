"""The copy of a run on a volume: what a machine writes, what the next one takes back, what a laptop sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft.launcher import mirror as module
from ft.launcher.bucket import Bucket
from ft.launcher.medium import FolderMedium, Listed, Medium
from ft.launcher.mirror import PIECE_BYTES, PIECES, Mirror, Replica
from ft.launcher.shared_folder import SharedFolder
from ft.recipes.runstore import FINAL, MANIFEST, Event, Status, step_name, why_invalid
from ft.recipes.store import LocalStore

PLAN = "a" * 64


class Folder(FolderMedium):
    """Notes what it was asked, and loses a file on order."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, commit=self._note)
        self.loses = ""
        self.commits: list[list[str]] = []

    def _note(self) -> None:
        self.commits.append(files(self.root))

    def sizes(self, folder: str) -> dict[str, int]:
        found = super().sizes(folder)
        return {name: size for name, size in found.items() if Path(name).name != self.loses}


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def run_at(root: Path) -> LocalStore:
    (root / "inputs" / "abc-model").mkdir(parents=True)
    (root / "inputs" / "abc-model" / "weights").write_bytes(b"w" * 100)
    (root / "plan.json").write_text("{}")
    return LocalStore(root)


def save(store: LocalStore, step: int, text: str = "weights") -> None:
    name = step_name(step) if step else FINAL
    staged = store.staging(name)
    (staged / "deep").mkdir()
    (staged / "deep" / "model.safetensors").write_text(f"{text} {step}")
    store.publish(staged, name, step=step, attempt=1, plan_sha256=PLAN, meta={})


def pair(tmp_path: Path) -> tuple[LocalStore, Mirror, Folder]:
    """A run on a machine, its mirror, the medium; plan and inputs are there, as the launcher puts them."""
    run_at(tmp_path / "copy")
    store = LocalStore(tmp_path / "run")
    medium = Folder(tmp_path / "copy")
    found = Mirror(store, medium)
    assert found.restore(plan_sha256=PLAN) == []
    return store, found, medium


def test_a_new_machine_begins_with_plan_and_inputs(tmp_path: Path) -> None:
    store, _, _ = pair(tmp_path)
    assert files(store.root) == ["inputs/abc-model/weights", "plan.json"]


def test_a_manifest_is_written_once_all_else_is_committed(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    save(store, 20)
    assert mirror.push_published(keep=2) == ["step-00000020"]
    before, after = medium.commits
    weights = "checkpoints/step-00000020/deep/model.safetensors"
    assert weights in before
    assert set(after) - set(before) == {"checkpoints/step-00000020/manifest.json"}
    assert why_invalid(medium.root / "checkpoints" / "step-00000020", plan_sha256=PLAN) is None
    assert mirror.push_published(keep=2) == []
    assert len(medium.commits) == 2, "nothing new, nothing committed"


def test_what_the_medium_lost_is_not_published(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    save(store, 20)
    medium.loses = "model.safetensors"
    with pytest.raises(OSError, match=r"model\.safetensors has 10 bytes, committed were None"):
        mirror.push_published(keep=2)
    assert not (medium.root / "checkpoints" / "step-00000020" / MANIFEST).exists()
    medium.loses = ""
    assert mirror.push_published(keep=2) == ["step-00000020"]


def test_old_checkpoints_go_also_those_of_earlier_machines(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    for step in (10, 20):
        save(store, step)
        mirror.push_published(keep=2)
    second = Mirror(LocalStore(tmp_path / "second"), medium)
    second.restore(plan_sha256=PLAN)
    assert [p.name for p in sorted(second.store.checkpoints.iterdir())] == ["step-00000020"]
    save(second.store, 30)
    second.push_published(keep=2)
    assert sorted(p.name for p in (medium.root / "checkpoints").iterdir()) == [
        "step-00000020",
        "step-00000030",
    ]
    save(second.store, 0, "adapter")
    assert second.push_published(keep=2) == [FINAL]
    assert second.has_final()


def test_a_checkpoint_that_is_dropped_while_it_travels_arrives(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    save(store, 20)
    upload = medium.upload

    def drop_and_upload(files: Mapping[str, Path]) -> None:
        shutil.rmtree(store.checkpoints / "step-00000020", ignore_errors=True)
        upload(files)

    medium.upload = drop_and_upload  # type: ignore[method-assign]
    assert mirror.push_published(keep=1) == ["step-00000020"]
    assert why_invalid(medium.root / "checkpoints" / "step-00000020", plan_sha256=PLAN) is None
    assert files(store.root) == ["inputs/abc-model/weights", "plan.json"], "nothing is left of it"


def test_what_a_lost_machine_left_half_renamed_is_no_piece(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    store.append_event(Event("phase", 1.0, 1, {"name": "load"}))
    mirror.push_words()
    (medium.root / f"events.jsonl{PIECES}" / ".000000.7.tmp").write_bytes(b"half")
    second = Mirror(LocalStore(tmp_path / "second"), medium)
    second.restore(plan_sha256=PLAN)
    assert second.store.events()[0] == store.events()[0]


def test_a_machine_that_assists_pushes_its_own_files_only(tmp_path: Path) -> None:
    store, _, medium = pair(tmp_path)
    folder = store.attempt_folder(1)
    folder.mkdir(parents=True)
    for name in ("rank0.log", "rank1.log", "agent.log", "agent1.log", "rank1.exit.json"):
        (folder / name).write_text(name)
    store.put_status(Status(1, "train", 1.0))
    store.append_event(Event("phase", 1.0, 1, {"name": "load"}))
    own = Mirror(store, medium, only=lambda name: name.startswith(("rank1.", "agent1.")))
    assert own.push_words()
    assert [name for name in files(medium.root) if not name.startswith("inputs")] == [
        f"attempts/1/agent1.log{PIECES}/000000",
        "attempts/1/rank1.exit.json",
        f"attempts/1/rank1.log{PIECES}/000000",
        "plan.json",
    ]


def test_a_step_that_was_made_again_replaces_the_one_before(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    save(store, 20, "first")
    mirror.push_published(keep=2)
    save(store, 20, "second")
    assert mirror.push_published(keep=2) == ["step-00000020"]
    weights = medium.root / "checkpoints" / "step-00000020" / "deep" / "model.safetensors"
    assert weights.read_text() == "second 20"


def test_a_broken_checkpoint_is_set_aside_and_the_one_before_it_is_taken(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    for step in (10, 20):
        save(store, step)
        mirror.push_published(keep=4)
    (medium.root / "checkpoints" / "step-00000020" / "deep" / "model.safetensors").write_text("x")
    third = Mirror(LocalStore(tmp_path / "third"), medium)
    (line,) = third.restore(plan_sha256=PLAN)
    assert line == (
        "checkpoint not used: step-00000020: deep/model.safetensors has 1 bytes, expected 10; "
        "set aside"
    )
    assert [p.name for p in third.store.checkpoints.iterdir()] == ["step-00000010"]
    aside = medium.root / "checkpoints" / "step-00000020"
    assert files(aside) == ["deep/model.safetensors", "manifest.broken.json"], "nothing is lost"
    # Cut off while it was copied: no manifest, so it does not exist.
    (medium.root / "checkpoints" / "step-00000090").mkdir()
    assert Mirror(LocalStore(tmp_path / "fourth"), medium).restore(plan_sha256=PLAN) == []


def test_words_come_back_and_locks_and_marks_do_not_travel(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    folder = store.attempt_folder(1)
    folder.mkdir(parents=True)
    (folder / "rank0.log").write_text("one\n")
    (folder / "rank0.pid").write_text("7")
    (folder / "rank0.mark").write_text("x")
    (folder / "end.json").write_text("{}")
    (store.root / ".attempt.lock").touch()
    store.append_event(Event("phase", 1.0, 1, {"name": "load"}))
    store.put_status(Status(1, "load", 1.0))
    assert mirror.push_words()
    assert not mirror.push_words(), "nothing is new"
    assert [name for name in files(medium.root) if not name.startswith("inputs")] == [
        "attempts/1/end.json",
        f"attempts/1/rank0.log{PIECES}/000000",
        f"events.jsonl{PIECES}/000000",
        "plan.json",
        "status.json",
    ]
    with (folder / "rank0.log").open("a") as stream:
        stream.write("two\n")
    assert mirror.push_words()
    second = Mirror(LocalStore(tmp_path / "second"), medium)
    second.restore(plan_sha256=PLAN)
    assert not (second.store.attempt_folder(1) / "rank0.log").exists(), "only people read it"
    assert (second.store.attempt_folder(1) / "end.json").exists()
    assert second.store.events()[0] == store.events()[0]
    assert second.store.get_status() == store.get_status()
    assert not second.push_words(), "what was taken back is there already"


def test_what_is_appended_while_a_file_is_pushed_gets_no_piece_of_its_own(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    events, write = store.root / "events.jsonl", medium.write

    def append_and_write(name: str, content: bytes) -> None:
        write(name, content)
        if events.stat().st_size < 20:
            with events.open("ab") as stream:
                stream.write(b"second\n")

    medium.write = append_and_write  # type: ignore[method-assign]
    events.write_bytes(b"first\n")
    for _ in range(3):
        mirror.push_words()
    pieces = medium.root / f"events.jsonl{PIECES}"
    assert [path.name for path in pieces.iterdir()] == ["000000"]
    assert (pieces / "000000").read_bytes() == events.read_bytes()


CHUNKS = st.lists(st.binary(max_size=60), min_size=1, max_size=12)


@settings(max_examples=60)
@given(chunks=CHUNKS, move_after=st.integers(0, 12), piece=st.integers(1, 40))
def test_a_growing_file_is_the_same_on_every_side(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], move_after: int, piece: int
) -> None:
    """Whatever is appended when, a machine is lost in between, and somebody looks on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece)
        root = tmp_path_factory.mktemp("growing")
        store, mirror, medium = pair(root)
        replica, whole = Replica(root / "seen"), b""
        for number, chunk in enumerate(chunks):
            if number == move_after:
                shutil.rmtree(store.root)
                store = LocalStore(root / f"machine{number}")
                mirror = Mirror(store, medium)
                mirror.restore(plan_sha256=PLAN)
            whole += chunk
            with (store.root / "events.jsonl").open("ab") as stream:
                stream.write(chunk)
            mirror.push_words()
            look(replica, medium.root)
            seen = root / "seen" / "events.jsonl"
            assert (seen.read_bytes() if seen.exists() else b"") == whole
        shutil.rmtree(root)


def look(replica: Replica, root: Path, read: list[str] | None = None) -> None:
    """As a volume lists it: whole seconds."""
    listed = [
        Listed(name, (root / name).stat().st_size, float(int((root / name).stat().st_mtime)))
        for name in files(root)
    ]

    def content(name: str) -> bytes:
        if read is not None:
            read.append(name)
        return (root / name).read_bytes()

    replica.refresh(listed, content)


def test_a_laptop_sees_words_and_manifests_and_no_weights(tmp_path: Path) -> None:
    store, mirror, medium = pair(tmp_path)
    save(store, 10)
    store.put_status(Status(1, "train", 1.0, step=10))
    mirror.push_words()
    mirror.push_published(keep=2)
    replica = Replica(tmp_path / "seen")
    look(replica, medium.root)
    assert files(tmp_path / "seen") == [
        ".replica.json",
        "checkpoints/step-00000010/manifest.json",
        "plan.json",
        "status.json",
    ]
    assert LocalStore(tmp_path / "seen").get_status() == store.get_status()
    shutil.rmtree(medium.root / "checkpoints")
    look(replica, medium.root)
    assert files(tmp_path / "seen") == [".replica.json", "plan.json", "status.json"]


def test_only_what_changed_is_fetched_and_a_change_within_a_second_is_not_missed(
    tmp_path: Path,
) -> None:
    contents = {"status.json": b"1", "plan.json": b"{}", f"events.jsonl{PIECES}/000000": b"a"}
    times = {"status.json": 100.0, "plan.json": 50.0, f"events.jsonl{PIECES}/000000": 50.0}
    replica, asked = Replica(tmp_path), []

    def refresh() -> list[str]:
        asked.clear()
        listed = [Listed(name, len(contents[name]), times[name]) for name in contents]
        replica.refresh(listed, lambda name: asked.append(name) or contents[name])
        return list(asked)

    assert refresh() == [f"events.jsonl{PIECES}/000000", "plan.json", "status.json"]
    contents["status.json"] = b"2"  # The same second, the same size.
    assert refresh() == ["status.json"]
    assert (tmp_path / "status.json").read_bytes() == b"2"
    times[f"events.jsonl{PIECES}/000001"] = times[f"events.jsonl{PIECES}/000000"] = 200.0
    contents[f"events.jsonl{PIECES}/000000"] = b"a" * PIECE_BYTES
    contents[f"events.jsonl{PIECES}/000001"] = b"b"
    assert len(refresh()) == 3
    assert (tmp_path / "events.jsonl").read_bytes() == b"a" * PIECE_BYTES + b"b"


def test_the_end_comes_last_and_can_be_forgotten(tmp_path: Path) -> None:
    order: list[str] = []
    listed = [Listed(n, 2, 1.0) for n in ("outcome.json", "zebra.json", "status.json")]
    replica = Replica(tmp_path)
    replica.refresh(listed, lambda name: order.append(name) or b"{}")
    assert order == ["zebra.json", "status.json", "outcome.json"]
    replica.forget_end()
    assert not (tmp_path / "outcome.json").exists()
    assert "outcome.json" not in json.loads((tmp_path / ".replica.json").read_text())
    replica.refresh(listed, lambda name: order.append(name) or b"{}")
    assert (tmp_path / "outcome.json").exists()


def test_a_file_that_vanished_since_it_was_listed_is_no_error(tmp_path: Path) -> None:
    def read(name: str) -> bytes:
        raise FileNotFoundError(name)

    Replica(tmp_path).refresh([Listed("status.json", 1, 1.0)], read)
    assert files(tmp_path) == [".replica.json"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "attempts/../../x", ".hidden"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    replica = Replica(tmp_path / "seen")
    replica.refresh([Listed(name, 1, 1.0)], lambda _: b"x")
    assert files(tmp_path) == ["seen/.replica.json"]


@pytest.mark.parametrize("kind", ["folder", "shared", "bucket"])
def test_a_run_goes_from_machine_to_machine(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Whatever the medium is: the next machine has what the last one published, and a laptop sees it."""
    medium: Medium = FolderMedium(tmp_path / "copy")
    if kind == "shared":
        medium = SharedFolder(f"file://{tmp_path}/copy")
        medium.begin()
    if kind == "bucket":
        request.getfixturevalue("object_store")
        medium = Bucket("s3://bucket-one/team/run-1")
    run_at(tmp_path / "laptop")
    medium.upload({name: tmp_path / "laptop" / name for name in files(tmp_path / "laptop")})

    first = Mirror(LocalStore(tmp_path / "first"), medium)
    assert first.restore(plan_sha256=PLAN) == []
    assert not first.has_final()
    for step in (10, 20, 30):
        save(first.store, step)
        first.store.append_event(Event("step", float(step), 1, {"step": step}))
        first.store.put_status(Status(1, "train", float(step), step=step))
        assert first.push_words()
        assert first.push_published(keep=2) == [step_name(step)]
    medium.upload({f"checkpoints/{step_name(40)}/cut": tmp_path / "laptop" / "plan.json"})

    second = Mirror(LocalStore(tmp_path / "second"), medium)
    assert second.restore(plan_sha256=PLAN) == []
    assert files(second.store.root) == [
        "checkpoints/step-00000030/deep/model.safetensors",
        "checkpoints/step-00000030/manifest.json",
        "events.jsonl",
        "inputs/abc-model/weights",
        "plan.json",
        "status.json",
    ]
    assert second.store.events()[0] == first.store.events()[0]
    save(second.store, 40)
    save(second.store, 0, "adapter")
    assert sorted(second.push_published(keep=2)) == [FINAL, step_name(40)]
    replica = Replica(tmp_path / "seen")
    replica.refresh(medium.listed(), medium.read)
    assert files(tmp_path / "seen") == [
        ".replica.json",
        "checkpoints/step-00000030/manifest.json",
        "checkpoints/step-00000040/manifest.json",
        "events.jsonl",
        "final/manifest.json",
        "plan.json",
        "status.json",
    ]
    third = Mirror(LocalStore(tmp_path / "third"), medium)
    assert third.has_final()
    third.restore(plan_sha256=PLAN)
    assert why_invalid(third.store.root / FINAL, plan_sha256=PLAN) is None


def test_what_is_pushed_to_a_bucket_that_fails_arrives_the_next_time(
    tmp_path: Path, object_store: Any
) -> None:
    bucket = Bucket("s3://bucket-one/team/run-1", retry_s=0.2)
    mirror = Mirror(LocalStore(run_at(tmp_path / "run").root), bucket)
    save(mirror.store, 10)
    object_store.fault = lambda _: "expired"
    with pytest.raises(OSError, match="ExpiredToken"):
        mirror.push_published(keep=2)
    object_store.fault = None
    assert mirror.push_published(keep=2) == [step_name(10)]
    assert mirror.push_published(keep=2) == []
