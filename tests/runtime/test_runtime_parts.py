"""Tables, exit codes, schedule and micro batches: the small parts of a run."""

from __future__ import annotations

import errno
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import LlamaConfig, LlamaForCausalLM

from ft.recipes import catalog
from ft.recipes.errors import PlanError, RecipeError
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import RunPlan
from ft.recipes.resolve import resolve
from ft.recipes.runstore import RankExit
from ft.runtime import registry
from ft.runtime.adapters import lora
from ft.runtime.data.batches import MicroBatches, TokenCounts
from ft.runtime.data.collate import Collator
from ft.runtime.data.order import Order, PackedOrder
from ft.runtime.data.pack import Packing
from ft.runtime.data.row import DataError
from ft.runtime.methods.sft import Cadence, Schedule, arguments
from ft.runtime.model.load import load_model
from ft.runtime.model.source import may_pass, reading
from ft.runtime.model.tokenizer import load_tokenizer
from ft.runtime.node import Node, child_env, children_of, interface_to
from ft.runtime.parallel.check import assert_parallel
from ft.runtime.worker import classify

# The hub's client has changed its HTTP library, so it is asked which one it has now.
httpx = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0])

SMALL = "base_model: some/model\ndatasets: [{path: some/data, type: chat_template}]\nlearning_rate: 2e-4\n"


def plan_of(text: str) -> RunPlan:
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    return resolve(normalize(loads(SMALL + text)).flat, Facts(files={}, machine=machine))


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (registry.FORMATS, catalog.FORMATS),
        (registry.METHODS, catalog.METHODS),
        (registry.ADAPTERS, catalog.ADAPTERS),
    ],
)
def test_a_table_has_the_names_of_the_catalog_and_every_target_is_there(
    table: Any, names: Any
) -> None:
    assert set(table) == set(names)
    for name in table:
        assert callable(registry.target(table, name))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), RankExit(79, "oom", "out of memory: MemoryError", 7)),
        (torch.OutOfMemoryError("CUDA"), RankExit(79, "oom", "out of memory: CUDA", 7)),
        (PlanError("no"), RankExit(78, "config", "no", 7)),
        (RecipeError([]), RankExit(78, "config", "0 problems", 7)),
        (
            PlanError("no", hint="Set yes"),
            RankExit(78, "config", "no. Set yes", 7),
        ),
        (
            ModuleNotFoundError("No module named 'torch'"),
            RankExit(
                78,
                "config",
                "No module named 'torch': training needs pip install 'ft-launcher[train]'",
                7,
            ),
        ),
        (ValueError("x"), RankExit(1, "unclassified", "ValueError: x", 7)),
        (
            KeyboardInterrupt(),
            RankExit(1, "unclassified", "KeyboardInterrupt: KeyboardInterrupt", 7),
        ),
    ],
)
def test_an_exception_has_one_exit_code(error: BaseException, expected: RankExit) -> None:
    assert classify(error, 7) == expected


def test_a_data_error_is_79_and_keeps_its_words() -> None:
    error = DataError(path="rows.jsonl", row=5, excerpt="{}", reason="no messages")
    end = classify(error, 0)
    assert (end.exit_code, end.reason, end.message) == (79, "data", str(error))


NEVER = Cadence(None, 0)


@pytest.mark.parametrize(
    ("text", "rows", "evaluates", "expected"),
    [
        # 100 rows, batch 8: 13 steps per epoch; 3 % of 26 is 0.78, one step of warm-up; a save per epoch.
        ("micro_batch_size: 8\nnum_epochs: 2", 100, False, Schedule(13, 26, 1, Cadence(None, 1), NEVER)),
        ("micro_batch_size: 8\nsaves_per_epoch: 2\nevals_per_epoch: 3\nval_set_size: 4", 100, True,
         Schedule(13, 13, 1, Cadence(None, 2), Cadence(None, 3))),
        ("micro_batch_size: 8\nmax_steps: 5\nsave_steps: 2\nwarmup_steps: 3", 100, False,
         Schedule(13, 5, 3, Cadence(2, 1), NEVER)),
        ("micro_batch_size: 2\ngradient_accumulation_steps: 4\nwarmup_ratio: 0.1\neval_steps: 4\nval_set_size: 4", 80,
         True, Schedule(10, 10, 1, Cadence(None, 1), Cadence(4, 1))),
    ],
)  # fmt: skip
def test_the_schedule(text: str, rows: int, evaluates: bool, expected: Schedule) -> None:
    assert Schedule.of(plan_of(text), rows, evaluates=evaluates) == expected


def test_the_schedule_where_epochs_differ() -> None:
    # 10, 11, 12 … steps: 10 and half of 11, rounded up; two saves in the first epoch.
    plan = plan_of("num_epochs: 1.5\nsaves_per_epoch: 2")
    assert Schedule.of_epochs(plan, lambda epoch: 10 + epoch, evaluates=False) == Schedule(
        10, 16, 1, Cadence(None, 2), NEVER
    )


@pytest.mark.parametrize(
    ("cadence", "expected"),
    [
        # Epochs of 10 steps: the same ones in each of them, and always after the last step of the run.
        (Cadence(None, 4), [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
        (Cadence(None, 1), [10, 20, 25]),
        (Cadence(4, 1), [4, 8, 12, 16, 20, 24, 25]),
        (Cadence(1000, 1), [25]),
        (NEVER, []),
    ],
)
def test_a_cadence_per_epoch_does_not_drift_over_its_end(
    cadence: Cadence, expected: list[int]
) -> None:
    schedule = Schedule(10, 25, 1, cadence, cadence)
    assert [step for step in range(1, 26) if schedule.is_due(schedule.saves, step)] == expected


@pytest.mark.parametrize(
    ("line", "argument", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("micro_batch_size: 3", "per_device_train_batch_size", 3),
        ("gradient_accumulation_steps: 3", "gradient_accumulation_steps", 3),
        ("lr_scheduler: linear", "lr_scheduler_type", "linear"),
        ("optimizer: adamw_torch", "optim", "adamw_torch"),
        ("weight_decay: 0.1", "weight_decay", 0.1),
        ("adam_beta1: 0.8", "adam_beta1", 0.8),
        ("adam_beta2: 0.9", "adam_beta2", 0.9),
        ("adam_epsilon: 1e-6", "adam_epsilon", 1e-6),
        ("max_grad_norm: 0", "max_grad_norm", 0.0),
        ("seed: 7", "seed", 7),
        ("bf16: true", "bf16", True),
        ("gradient_checkpointing: true", "gradient_checkpointing", True),
        ("logging_steps: 5", "logging_steps", 5),
        ("max_steps: 4", "max_steps", 4),
        ("warmup_steps: 2", "warmup_steps", 2),
        ("eval_batch_size: 6\nval_set_size: 2", "per_device_eval_batch_size", 6),
    ],
)
def test_a_key_reaches_the_trainers_arguments(
    tmp_path: Path, line: str, argument: str, value: object
) -> None:
    text = (
        "".join(
            f"{row}\n"
            for row in SMALL.splitlines()
            if row.split(":")[0] != line.split(":", maxsplit=1)[0]
        )
        + line
    )
    machine = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
    plan = resolve(normalize(loads(text)).flat, Facts(files={}, machine=machine))
    found = getattr(arguments(plan, Schedule.of(plan, 100, evaluates=False), tmp_path), argument)
    assert found == value
    plain = plan_of("")
    assert (
        getattr(arguments(plain, Schedule.of(plain, 100, evaluates=False), tmp_path), argument)
        != value
    )


def test_micro_batches_and_the_rows_that_they_note(tmp_path: Path) -> None:
    # 5 rows, batch 4 = 2 micro · 2 accumulation: the second step has one row, and one inert micro batch.
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[i] * (i + 1) for i in range(5)],
            "labels": [[-100] + [i] * i for i in range(5)],
            "row_id": [10, 11, 12, 13, 14],
        }
    )
    batches = MicroBatches(
        rows, Order(5, 4, 0, shuffle=False), accumulation=2, micro_batch_size=2, rank=0, data_parallel_size=1,
        collator=Collator(9), total_steps=3, rows_log=tmp_path / "rows.jsonl",
    )  # fmt: skip
    assert len(batches) == 6
    found = list(batches.loader())
    assert found[1]["input_ids"].tolist() == [[2, 2, 2, 9], [3, 3, 3, 3]]
    assert found[1]["labels"].tolist() == [[-100, 2, 2, -100], [-100, 3, 3, 3]]
    assert found[1]["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert found[3]["labels"].tolist() == [[-100]]
    noted = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(n["step"], n["rows"]) for n in noted] == [
        (1, [10, 11]), (1, [12, 13]), (2, [14]), (2, []), (3, [10, 11]), (3, [12, 13]),
    ]  # fmt: skip
    batches.first_step = 2
    assert batches[0]["input_ids"].tolist() == found[4]["input_ids"].tolist()


def test_micro_batches_of_packs_and_the_rows_that_they_note(tmp_path: Path) -> None:
    # 3 + 2 and 2 tokens fit into two packs of 5, which are one step of 2 micro batches; then the next epoch.
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[1, 1, 1], [2, 2], [3, 3]],
            "labels": [[1, 1, 1], [2, 2], [3, 3]],
            "row_id": [10, 11, 12],
        }
    )
    order = PackedOrder(np.array([3, 2, 2]), Packing(5), 2, 0, shuffle=False)
    batches = MicroBatches(
        rows, order, accumulation=2, micro_batch_size=1, rank=0, data_parallel_size=1,
        collator=Collator(9, pad_to=6), total_steps=2, rows_log=tmp_path / "rows.jsonl", left_out=frozenset({2}),
    )  # fmt: skip
    found = list(batches.loader())
    assert found[0]["input_ids"].tolist() == [[1, 1, 1, 2, 2, 9]]
    assert found[0]["labels"].tolist() == [[-100, 1, 1, -100, 2, -100]]
    assert found[0]["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]
    assert found[1]["input_ids"].tolist() == [[3, 3, 9, 9, 9, 9]]
    assert found[2]["labels"].tolist() == [[-100] * 6]
    noted = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert noted == [
        {"step": 1, "rows": [10, 11], "packs": [2]},
        {"step": 1, "rows": [12], "packs": [1]},
        {"step": 2, "rows": [], "packs": []},
        {"step": 2, "rows": [], "packs": []},
    ]
    assert batches.row_ids_of_step(1) == [10, 11, 12]


def test_token_counts_leave_out_the_first_label_and_follow_a_selection() -> None:
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]],
            "labels": [[1, -100, 3], [-100, -100], [-100, 7, 8, 9], [1]],
        }
    )
    counts = TokenCounts.of(rows)
    assert counts.tokens.tolist() == [3, 2, 4, 1]
    assert counts.trained.tolist() == [1, 0, 3, 0]
    assert counts.of_rows(np.array([0, 2])) == (7, 4)
    assert TokenCounts.of(rows.select([2, 0])).trained.tolist() == [3, 1]


def test_iterating_the_loader_leaves_the_runs_random_numbers_alone(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1]], "labels": [[1]], "row_id": [0]})
    batches = MicroBatches(
        rows, Order(1, 1, 0, shuffle=True), accumulation=1, micro_batch_size=1, rank=0, data_parallel_size=1,
        collator=Collator(0), total_steps=1, rows_log=tmp_path / "rows.jsonl",
    )  # fmt: skip
    before = torch.random.get_rng_state()
    list(batches.loader())
    assert torch.equal(before, torch.random.get_rng_state())


def test_several_processes_without_ddp_are_an_error() -> None:
    class Two:
        size = 2

    with pytest.raises(RuntimeError, match="2 processes, but the model is a Linear"):
        assert_parallel(torch.nn.Linear(1, 1), Two())  # type: ignore[arg-type]


def test_node_from_the_environment() -> None:
    env = {
        "FT_NODE_RANK": "1",
        "FT_NUM_NODES": "2",
        "FT_MASTER_ADDR": "10.0.0.1",
        "FT_MASTER_PORT": "1234",
    }
    node = Node.from_env(env)
    assert node.torchrun(8, start=1, join_s=90) == [
        "-m", "torch.distributed.run",
        "--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=1235", "--rdzv-conf=timeout=90",
        "--nproc-per-node=8", "--max-restarts=0",
    ]  # fmt: skip
    assert node.others == "node 0"
    assert Node(1, 4, "10.0.0.1", 1234).others == "one of nodes 0, 2, 3"
    assert Node.from_env({}).torchrun(2) == [
        *("-m", "torch.distributed.run"),
        *("--standalone", "--nproc-per-node=2", "--max-restarts=0"),
    ]
    assert children_of(2**22 + 1) == []
    assert (
        child_env(10**6)["OMP_NUM_THREADS"] == "1" or "OMP_NUM_THREADS" in __import__("os").environ
    )


def test_a_rank_that_is_alone_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    # Somebody else's torchrun, around all of this.
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert Node.from_env({}).torchrun(1) == []
    place = {k: v for k, v in child_env(1).items() if k.endswith(("RANK", "WORLD_SIZE"))}
    assert place == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert Node(1, 2, "10.0.0.1", 1234).torchrun(1) != []


def test_gloo_gets_the_interface_that_leads_to_the_other_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert interface_to("127.0.0.1") is None
    assert interface_to("nowhere.invalid") is None
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("ft.runtime.node.interface_to", {"10.0.0.1": "eth7", "::1": None}.get)
    assert child_env(1, Node(1, 2, "10.0.0.1", 1234))["GLOO_SOCKET_IFNAME"] == "eth7"
    for node in (Node(0, 1, "10.0.0.1", 1234), Node(1, 2, "::1", 1234), None):
        assert "GLOO_SOCKET_IFNAME" not in child_env(1, node)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    assert child_env(1, Node(1, 2, "10.0.0.1", 1234))["GLOO_SOCKET_IFNAME"] == "mine"


def test_without_torch_a_rank_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ft.runtime.worker import classify\n"
        "try:\n    import torch\n"
        "except ImportError as error:\n    print(classify(error, 0).exit_code, classify(ValueError('x'), 0).exit_code)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "78 1"


def tiny_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)  # type: ignore[arg-type]  # one dict
    )


def test_target_modules_that_are_not_there_are_named_with_those_that_are() -> None:
    for targets in ("[q_projj]", "[q_proj, q_projj]"):
        spec = plan_of(f"adapter: lora\nlora_target_modules: {targets}").adapter
        with pytest.raises(PlanError) as caught:
            lora.wrap(tiny_llama(), spec)
        assert caught.value.message == "lora_target_modules: no module is named q_projj"
        assert caught.value.hint == (
            "the linear modules of this model are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, "
            "up_proj, v_proj"
        )
    spec = plan_of("adapter: lora\nlora_target_modules: nothing-of-this-name").adapter
    with pytest.raises(PlanError) as caught:
        lora.wrap(tiny_llama(), spec)
    assert caught.value.message.startswith(
        "lora_target_modules 'nothing-of-this-name' cannot be used"
    )


def with_base(source: str) -> RunPlan:
    plan = plan_of("")
    names = ("base_model", "base_model_config", "tokenizer_config")
    model = plan.model.model_copy(update=dict.fromkeys(names, source))
    return plan.model_copy(update={"model": model})


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_is_not_there_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    (tmp_path / "inputs" / "000-m").mkdir(parents=True)
    (tmp_path / "inputs" / "000-m" / "config.json").write_text("{")
    folder = tmp_path / "inputs" / "000-m"
    missing = str(tmp_path / "none")
    with pytest.raises(PlanError) as caught:
        load_model(with_base(missing), tmp_path)
    assert caught.value.message == (
        f"base_model_config: {missing} is not there. Name a folder with a model, or a hub id"
    )
    with pytest.raises(PlanError) as caught:
        load_tokenizer(with_base("inputs/000-m"), tmp_path)
    assert caught.value.message.startswith(
        f"tokenizer_config: the folder {folder} cannot be used: "
    )


def test_offline_a_hub_id_must_be_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PlanError) as caught:
        load_model(with_base("nobody/nothing-at-all"), tmp_path)
    assert caught.value.message == (
        "base_model_config: nobody/nothing-at-all is not in the cache of this machine, and HF_HUB_OFFLINE is set. "
        "Download it first, or let the run go online"
    )


def hub_error(status: int) -> HfHubHTTPError:
    request = httpx.Request("HEAD", "http://127.0.0.1/m")
    return HfHubHTTPError(str(status), response=httpx.Response(status, request=request))


def caused(cause: BaseException) -> OSError:
    """As transformers words it: one OSError for everything, the reason behind it."""
    error = OSError("cannot load it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (caused(LocalEntryNotFoundError("not cached, and no answer")), True),
        (caused(httpx.ConnectError("refused")), True),
        (caused(ConnectionRefusedError(111, "refused")), True),
        (caused(TimeoutError()), True),
        (caused(hub_error(503)), True),
        (caused(hub_error(429)), True),
        (caused(hub_error(404)), False),
        (caused(hub_error(401)), False),
        (OSError(errno.EIO, "disk"), True),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (OSError("no file named model.safetensors"), False),
        (ValueError("Unrecognized model"), False),
    ],
)
def test_only_a_bad_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, passes: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert may_pass(error) is passes
    with pytest.raises(type(error) if passes else PlanError), reading("base_model", "some/model"):
        raise error
