"""Recipe -> plan -> submission -> record, without a run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ft.launcher import dispatch
from ft.launcher.backends.base import Handle, Submission
from ft.launcher.backends.local import LocalBackend
from ft.launcher.facts import DRIVER_NAMES, catalog_name, machine_for, machine_of
from ft.launcher.runs import RunRecord, Runs, holder, is_locked, locked, new_id
from ft.recipes.catalog import GPUS
from ft.recipes.errors import NotFoundError, PlanError, RecipeError, UsageError
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.runstore import RunState

RECIPE = """\
base_model: some/model
datasets: [{path: rows.jsonl, type: alpaca}]
learning_rate: 1e-4
cloud: {gpu: cpu}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 5)
    (tmp_path / "recipe.yml").write_text(RECIPE)
    return "recipe.yml"


def test_prepare_is_a_value_and_starts_nothing(recipe: str, tmp_path: Path) -> None:
    prepared = dispatch.prepare(recipe)
    again = dispatch.prepare(recipe)
    assert prepared.submission == again.submission
    assert prepared.plan.sha256 == again.plan.sha256
    assert (prepared.backend, prepared.backend_origin, prepared.num_rows) == ("local", "default", 5)
    assert prepared.output_dir == tmp_path / "model-out"
    (upload,) = prepared.submission.uploads
    assert (upload.source, upload.size) == (tmp_path / "rows.jsonl", 180)
    assert prepared.submission.request["store"] == f"{tmp_path}/share/ft/store/{{run}}"
    assert (
        Submission.from_json(json.loads(json.dumps(prepared.submission.to_json())))
        == prepared.submission
    )
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "share").exists()


def test_a_backend_is_the_flag_then_the_recipe_then_local(recipe: str) -> None:
    assert dispatch.prepare(recipe, backend="local").backend_origin == "--backend"
    assert dispatch.prepare(recipe, ["cloud.backend=local"]).backend_origin == "cloud.backend"
    elsewhere = ["cloud.backend=modal", "cloud.timeout=3d"]
    prepared = dispatch.prepare(recipe, elsewhere, backend="local")
    assert (prepared.backend, prepared.backend_origin) == ("local", "--backend")
    with pytest.raises(UsageError, match="backend 'nowhere' is not one of local"):
        dispatch.prepare(recipe, backend="nowhere")


def test_a_backend_that_is_asked_for_is_one_for_the_rules(recipe: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dispatch.prepare(recipe, ["cloud.timeout=3d"], backend="modal")
    cloud = [str(problem) for problem in caught.value.problems if problem.key[0] == "cloud"]
    assert cloud == [
        "--set: cloud.timeout: R187 3d is longer than the 24 hours that Modal gives one attempt. Write `24h`: shortly "
        "before, the run saves and a new attempt goes on from there, as often as it takes.",
    ]


def test_where_the_backend_was_chosen(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "cloud.yaml").write_text("gpu: h100\n")

    def chosen(*overrides: str, **layers: str) -> tuple[str, str]:
        return dispatch.backend_of(dispatch.check(recipe, overrides, **layers).normalized)

    assert chosen() == ("local", "default")
    assert chosen("cloud.backend=modal") == ("modal", "cloud.backend")
    assert chosen(cloud="cloud.yaml") == ("modal", "--cloud")
    assert chosen("cloud.backend=sky", cloud="cloud.yaml") == ("sky", "cloud.backend")
    assert chosen("cloud.backend=sky", cloud="cloud.yaml", backend="local") == (
        "local",
        "--backend",
    )


def test_a_cloud_file_is_remembered_by_the_record(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "cloud.yaml").write_text("gpu: h100\n")
    prepared = dispatch.prepare(recipe, ["cloud.gpu=cpu"], cloud="cloud.yaml", backend="local")
    assert (prepared.plan.parallel.gpu, prepared.backend_origin) == ("cpu", "--backend")
    record = dispatch._record(prepared, None, run_id="1")
    assert (record.recipe, record.cloud_file) == ("recipe.yml", "cloud.yaml")


def test_a_recipe_with_errors_carries_all_of_them(recipe: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dispatch.prepare(recipe, ["lora_rank=3", "seed=x", "datasets.0.path=no.jsonl"])
    assert [p.dotted for p in caught.value.problems] == ["datasets.0.path", "lora_rank", "seed"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("save_first_step=true", "this version of ft cannot run it"),
        ("cloud.gpu=H100:8", "this machine has"),
        ("cloud.nodes=2", "backend local is this one machine"),
    ],
)
def test_what_is_right_but_cannot_run_here_is_a_plan_error(
    recipe: str, override: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        dispatch.prepare(recipe, [override])
    planned = ["--set: save_first_step: not runnable yet"] if "save" in override else []
    assert [str(problem) for problem in caught.value.problems] == planned


def test_machine_facts() -> None:
    def of(gpu: str) -> object:
        return machine_for(normalize(loads(f"cloud: {{gpu: '{gpu}', nodes: 2}}")).flat)

    h100, cpu = of("H100:8"), of("cpu:2")
    assert (h100.device, h100.num_processes_per_node, h100.num_nodes, h100.bf16) == (
        "cuda",
        8,
        2,
        True,
    )  # type: ignore[attr-defined]
    assert (cpu.device, cpu.num_processes_per_node, cpu.bf16) == ("cpu", 2, False)  # type: ignore[attr-defined]
    assert of("X9000:1") is None


SMI = """\
0, GPU-aaa, NVIDIA A100-SXM4-80GB, 81920, 8.0
1, GPU-bbb, NVIDIA A100-SXM4-80GB, 81920, 8.0
2, GPU-ccc, NVIDIA A100-SXM4-80GB, 81920, 8.0
"""


@pytest.mark.parametrize(
    ("listing", "visible", "expected"),
    [
        ("", None, ("cpu", "cpu", 1, False)),
        (SMI, None, ("cuda", "A100-80GB", 3, True)),
        (SMI, "0,2", ("cuda", "A100-80GB", 2, True)),
        (SMI, "GPU-bbb", ("cuda", "A100-80GB", 1, True)),
        (SMI, "", ("cpu", "cpu", 1, False)),
        (SMI, "-1", ("cpu", "cpu", 1, False)),
        ("0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 9.0\n", None, ("cuda", "H100", 1, True)),
        ("0, GPU-a, NVIDIA A100-PCIE-40GB, 40960, 8.0\n", None, ("cuda", "A100-40GB", 1, True)),
        ("0, GPU-a, Tesla T4, 15360, 7.5\n", None, ("cuda", "T4", 1, False)),
        ("0, GPU-a, NVIDIA H200, 143771, 9.0\n", None, ("cuda", "H200", 1, True)),
        (
            "0, GPU-a, NVIDIA GeForce RTX 2080 Ti, 11264, 7.5\n",
            None,
            ("cuda", "GeForce RTX 2080 Ti", 1, False),
        ),
        (
            "0, GPU-a, NVIDIA L4, 23034, 8.9\n1, GPU-b, Tesla T4, 15360, 7.5\n",
            None,
            ("cuda", "L4", 1, True),
        ),
        (
            "0, GPU-a, NVIDIA RTX PRO 6000 Blackwell Server Edition, 97887, 12.0\n",
            None,
            ("cuda", "RTX-PRO-6000", 1, True),
        ),
    ],
)
def test_the_driver_s_names_are_the_catalogs(
    listing: str, visible: str | None, expected: tuple[object, ...]
) -> None:
    found = machine_of(listing, visible)
    assert (found.device, found.gpu, found.num_processes_per_node, found.bf16) == expected
    assert found.tf32 == found.bf16


@pytest.mark.parametrize(
    ("driver_name", "mib", "expected"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "97887", "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "97887", "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "97887", "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 4500 Blackwell", "32623", "RTX PRO 4500 Blackwell"),
        ("NVIDIA GeForce RTX 3090", "24576", "RTX3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "24564", "GeForce RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 4090", "24564", "RTX4090"),
        ("NVIDIA GeForce RTX 4090 D", "24564", "GeForce RTX 4090 D"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "16376", "GeForce RTX 4090 Laptop GPU"),
        ("NVIDIA GeForce RTX 5090", "32607", "RTX5090"),
        ("NVIDIA RTX A6000", "49140", "A6000"),
        ("NVIDIA RTX A5000", "24564", "RTX A5000"),
        ("NVIDIA RTX 6000 Ada Generation", "49140", "RTX6000-Ada"),
        ("Quadro RTX 6000", "24576", "Quadro RTX 6000"),
        ("NVIDIA A40", "46068", "A40"),
        ("NVIDIA A10", "23028", "A10"),
        ("NVIDIA A10G", "23028", "A10G"),
        ("NVIDIA L40", "46068", "L40"),
        ("NVIDIA L40S", "46068", "L40S"),
        ("NVIDIA L4", "23034", "L4"),
        ("NVIDIA A100 80GB PCIe", "81920", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "40960", "A100-40GB"),
        ("NVIDIA H100 NVL", "95830", "H100"),
        ("NVIDIA GH200 480GB", "97871", "GH200 480GB"),
        ("NVIDIA B200", "183359", "B200"),
        ("NVIDIA B300 SXM6 AC", "275040", "B300"),
    ],
)
def test_a_card_has_one_name(driver_name: str, mib: str, expected: str) -> None:
    assert catalog_name(driver_name, mib) == expected


def test_the_driver_s_own_words_lead_to_gpus_of_the_catalog() -> None:
    assert set(DRIVER_NAMES.values()) <= set(GPUS)


def test_nodes_count_without_a_gpu_too() -> None:
    assert machine_for(normalize(loads("cloud: {nodes: 2}")).flat).num_nodes == 2  # type: ignore[union-attr]


def test_an_output_folder_that_cannot_be_is_refused_before_anything_runs(
    recipe: str, tmp_path: Path
) -> None:
    (tmp_path / "a-file").touch()
    for value, message in (
        ("a-file", "is not a folder"),
        ("a-file/x", "is not a folder"),
        ("a\0b", "is no path"),
    ):
        with pytest.raises(PlanError, match=message):
            dispatch.prepare(recipe, [f"output_dir={json.dumps(value)}"])
    with pytest.raises(UsageError, match="no such user"):
        dispatch.prepare(recipe, ["output_dir=~nobody-of-that-name/x"])


def record(runs: Runs, name: str, **changes: object) -> RunRecord:
    prepared = dispatch.prepare("recipe.yml")
    values = RunRecord(
        id=new_id(), name=name, backend="local", state="SUBMITTING", created_at=1.0, recipe="recipe.yml",
        plan_sha256=prepared.plan.sha256, output_dir="out", store="s",
    )  # fmt: skip
    made = RunRecord(**{**json.loads(values.to_json()), **changes})  # type: ignore[arg-type]
    runs.create(made, prepared.submission)
    return made


def test_runs_are_found_by_id_name_prefix_and_last(recipe: str) -> None:
    runs = Runs()
    with pytest.raises(NotFoundError, match="there is no run yet"):
        runs.find("@last")
    one = record(runs, "one", id="20260101-000000-aaaa", state="FAILED")
    two = record(runs, "two", id="20260102-000000-bbbb", state="FAILED")
    assert runs.all() == [one, two]
    assert runs.find("one") == runs.find("20260101-000000-aaaa") == runs.find("20260101") == one
    assert runs.find("@last") == two
    with pytest.raises(UsageError, match="fits 2 runs"):
        runs.find("2026")
    with pytest.raises(NotFoundError, match="no run 'three'"):
        runs.find("three")
    assert runs.submission(one.id) == dispatch.prepare(recipe).submission


def test_a_folder_without_a_whole_record_is_passed_over(recipe: str) -> None:
    runs = Runs()
    one = record(runs, "one", state="FAILED")
    (runs.root / "20260101-000000-half").mkdir()
    (runs.root / "20260101-000000-torn").mkdir()
    (runs.root / "20260101-000000-torn" / "record.json").write_text('{"id": ')
    assert runs.all() == [one]


def test_an_update_changes_what_it_names_and_nothing_else(recipe: str) -> None:
    """Two commands hold the same record; the one that writes last knows nothing of the other's change."""
    runs = Runs()
    prepared = dispatch.prepare(recipe)
    record = RunRecord(
        "r1", "r1", "local", "QUEUED", 1.0, recipe, prepared.plan.sha256, "out", "s",
        handle={"run": "r1", "store": "s"},
    )  # fmt: skip
    runs.create(record, prepared.submission)
    runs.update(record, resumed_after=3)
    assert runs.update(record, fetched_to="/out") == replace(
        record, resumed_after=3, fetched_to="/out"
    )
    ended = Ended(runs)
    assert dispatch.refresh(record, runs, ended) == (
        replace(record, state=RunState.FAILED, resumed_after=3, fetched_to="/out"),
        RunState.FAILED,
    )
    runs.remove(record)
    assert dispatch.refresh(record, runs, ended) == (record, RunState.FAILED)
    for late in (
        lambda: runs.update(record, state="QUEUED"),
        lambda: dispatch.settle(record, runs),
        lambda: dispatch.revive(record, runs),
    ):
        with pytest.raises(NotFoundError) as caught:
            late()
        assert caught.value.message == "run r1 was removed in the meantime"
    assert not runs.folder("r1").exists()


class Ended(LocalBackend):
    """Its runs have failed."""

    def status(self, handle: Handle) -> RunState:
        del handle
        return RunState.FAILED


def test_a_lock_says_whether_its_holder_lives(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        assert holder(path) == os.getpid()
    assert not is_locked(path)
    assert holder(path) is None


def test_an_abandoned_submission_whose_source_is_gone_is_failed_not_retried_for_ever(
    recipe: str,
) -> None:
    runs = Runs()
    made = record(runs, "one")
    Path("rows.jsonl").unlink()
    (error,) = dispatch.heal(runs)
    assert "is gone since the run was planned" in error.message
    failed = runs.get(made.id)
    assert failed is not None
    assert failed.state == "FAILED"
    assert "is gone since the run was planned" in failed.message
    assert dispatch.heal(runs) == []


def test_doctor_checks_have_a_fix_where_they_fail(recipe: str, tmp_path: Path) -> None:
    checks = {check.name: check for check in LocalBackend().check()}
    assert checks["packages"].ok
    assert checks["machine"].ok
    assert all(check.ok or check.fix for check in checks.values())


def test_no_value_of_the_environment_is_written_down(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_value")
    runs = Runs()
    made = record(runs, "one", state="FAILED")
    written = "".join(p.read_text() for p in runs.folder(made.id).iterdir())
    assert "hf_a_secret_value" not in written
    assert os.environ["HF_TOKEN"] == "hf_a_secret_value"
