"""What is said about data on the laptop, the runtime says too: never a false alarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ft.launcher import samples
from ft.launcher.facts import gather
from ft.launcher.samples import complaints
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.plan import DatasetPlan
from ft.recipes.references import Reference
from ft.recipes.resolve import resolve
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.data import DataKeys
from ft.recipes.schema.dataset import UNWRITTEN_FORMATS, DatasetKeys, FormatName
from ft.recipes.schema.model import ModelKeys
from ft.runtime import registry
from ft.runtime.data import sources
from ft.runtime.data.row import DataError, RowError

DATA = Reference(("datasets", 0, "path"), "d", "data")


def said(path: Path, keys: DatasetKeys) -> tuple[str, ...]:
    return complaints(DATA, path, keys)


def plan_of(keys: DatasetKeys, name: str) -> DatasetPlan:
    """What the runtime gets, with every default decided where it is decided."""
    recipe = FlatRecipe(model=ModelKeys(base_model="m"), data=DataKeys(datasets=(keys,)))
    facts = Facts(
        files={DATA.key: FileFact("data", Path(name), name, "0" * 64, 1)},
        machine=Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False),
    )
    return resolve(recipe, facts).data.datasets[0]


def refused(folder: Path, keys: DatasetKeys, name: str) -> bool:
    """Whether the runtime refuses the data set, or finds no row in it."""
    plan = plan_of(keys, name)
    rows = registry.target(registry.FORMATS, plan.type)
    try:
        found = [rows(item.value, plan) for item in sources.examples(plan, folder)]
    except (DataError, RowError):
        return True
    return not found


LEAVES = st.sampled_from(
    [
        None,
        True,
        3,
        [3],
        [{"text": "a"}],
        "a",
        "user",
        "human",
        "bot",
        "assistant",
        "[]",
        '[{"role": 3}]',
        ["a"],
        {},
    ]
)
NAMES = st.sampled_from(
    [
        "role", "content", "from", "value", "tool_calls", "label", "text", "messages", "conversations", "segments",
        "instruction", "input", "output", "body", "system", "tools", "input_ids", "labels", "question", "answer",
        "response", "system_prompt", "article", "summary", "reasoning_content", "choices", "solution",
    ]
)  # fmt: skip
MESSAGES = st.lists(st.dictionaries(NAMES, LEAVES, max_size=4) | LEAVES, max_size=3)
GOOD_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "gpt", "bot"]), "content": LEAVES}), max_size=3
)  # fmt: skip
ROWS = st.dictionaries(NAMES, LEAVES | MESSAGES | GOOD_MESSAGES, max_size=5) | LEAVES

OWN = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("field_instruction", "field_input", "field_output", "field_system"), NAMES)
)  # fmt: skip
TYPES = st.sampled_from(
    [name for name in get_args(FormatName) if name not in UNWRITTEN_FORMATS]
) | st.sampled_from(["alpaca", "completion", "input_output", "chat_template"])
KEYS = st.fixed_dictionaries(
    {"type": TYPES | OWN | st.none()},
    optional={
        "field_system": NAMES,
        "field_thinking": NAMES,
        "template_thinking_key": NAMES,
        "message_field_training": NAMES,
        "drop_system_message": st.booleans(),
        "split": st.sampled_from(["train", "test", "train[1:]", "train[:50%]"]),
        "field": NAMES,
        "field_messages": NAMES,
        "message_property_mappings": st.dictionaries(
            st.sampled_from(["role", "content", "tool_calls", "reasoning_content"]), NAMES
        ),
        "roles": st.dictionaries(
            NAMES, st.lists(LEAVES.filter(lambda v: isinstance(v, str)), max_size=2), max_size=2
        ),
    },
)

FILES = st.one_of(
    st.lists(ROWS, max_size=4).map(lambda rows: ("d.jsonl", "\n".join(map(json.dumps, rows)))),
    st.lists(ROWS, max_size=4).map(lambda rows: ("d.json", json.dumps(rows, indent=1))),
    st.lists(
        st.sampled_from(
            [
                '{"text": "a"}',
                "[",
                "]",
                ",",
                " ",
                "\n",
                "\r",
                "\x85",
                "{",
                "\ufeff",
                "é",
                "3",
                '"',
                "NaN",
            ]
        ),
        max_size=12,
    ).flatmap(
        lambda parts: st.sampled_from(["d.jsonl", "d.json"]).map(
            lambda name: (name, "".join(parts))
        )
    ),
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(("d.jsonl", '{"messages": []}'), {"type": "chat_template"}, 5)
@example(("d.json", '[{"text": "a"}] 3'), {"type": "completion"}, 64 << 10)
@given(FILES, KEYS, st.sampled_from([5, 20, 64 << 10]))
def test_no_false_alarm(
    tmp_path: Path, file: tuple[str, str], keys: dict[str, Any], sample_bytes: int
) -> None:
    """Whatever the beginning of a file says, the runtime would have refused the whole file as well."""
    name, text = file
    inputs = tmp_path / "inputs"
    inputs.mkdir(exist_ok=True)
    (inputs / name).write_bytes(text.encode())
    dataset = DatasetKeys.model_validate({"path": name, **keys})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SAMPLE_BYTES", sample_bytes)
        found = said(inputs / name, dataset)
    assert all(name in sentence for sentence in found)
    if found:
        assert refused(tmp_path, dataset, name)


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        ({"type": "completion"}, {"body": "a"}),
        ({"type": "completion", "field": "body"}, {"body": 3}),
        ({"type": "alpaca"}, {"instruction": "a", "input": 3, "output": "b"}),
        ({"type": "alpaca"}, {"instruction": "a", "input": "b"}),
        ({"type": "alpaca"}, {"output": "b"}),
        ({"type": "input_output"}, {"segments": [{"label": True, "text": "a"}, {"label": False, "text": None}]}),
        ({"type": "input_output"}, {"segments": [3]}),
        ({"type": "chat_template"}, {"messages": [{"role": "user", "content": [{"type": "image", "path": "a"}]}]}),
        ({"type": "chat_template"}, {"messages": [{"role": "user", "content": ["a"]}]}),
        ({"type": "gpteacher"}, {"instruction": "a", "output": "b"}),
        ({"type": "alpaca_w_system"}, {"instruction": "a", "output": "b", "system": 3}),
        ({"type": {"field_output": "reply"}}, {"instruction": "a", "output": "b"}),
        ({"type": None}, {"messages": []}),
        ({"type": None}, {"input_ids": [1], "labels": 3}),
        ({"type": "chat_template"}, {"conversations": []}),
        ({"type": "chat_template"}, {"messages": {"role": "user"}}),
        ({"type": "chat_template"}, {"messages": "["}),
        ({"type": "chat_template"}, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}),
        ({"type": "chat_template"}, {"messages": [{"role": None, "content": "a"}]}),
        ({"type": "chat_template", "roles": {"user": ["human"]}}, {"messages": [{"role": "user", "content": "a"}]}),
    ],
)  # fmt: skip
def test_what_a_format_refuses_is_found(
    tmp_path: Path, keys: dict[str, Any], row: dict[str, Any]
) -> None:
    dataset = DatasetKeys.model_validate({"path": "d.jsonl", **keys})
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    (sentence,) = said(tmp_path / "d.jsonl", dataset)
    assert sentence.startswith("d.jsonl, line 1: ")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "d.jsonl").rename(tmp_path / "inputs" / "d.jsonl")
    assert refused(tmp_path, dataset, "d.jsonl")


def test_which_files_of_a_folder_are_data_is_what_the_runtime_says() -> None:
    assert samples.NO_DATA == sources.NO_DATA
    assert set(samples.SAVED) < sources.NO_DATA


def test_names_in_data_are_cut_and_escaped(tmp_path: Path) -> None:
    row = {"\x1b[31m": 1, "x" * 100: 2, **{f"c{number}": 3 for number in range(10)}}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    assert said(tmp_path / "d.jsonl", DatasetKeys(path="d", type="alpaca")) == (
        "d.jsonl, line 1: has no column `instruction`; its columns: `'\\x1b[31m'`, "
        f"`{'x' * 39}…`, `c0`, `c1`, `c2`, `c3`, `c4`, `c5`, 4 more.",
    )


def test_models_and_templates(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    model = Reference(("base_model",), "m", "model")
    config = Reference(("base_model_config",), "m", "model")
    template = Reference(("chat_template_jinja",), "t", "template")
    assert complaints(model, tmp_path / "file") == (
        "file is a file, expected the folder of a model.",
    )
    assert complaints(model, tmp_path / "folder") == ("folder is an empty folder.",)
    assert complaints(config, tmp_path / "file") == ()
    assert complaints(template, tmp_path / "file") == ()
    assert complaints(template, tmp_path / "folder") == (
        "folder is a folder, expected a file with a template.",
    )
    (tmp_path / "folder" / "config.json").write_text("{}")
    assert complaints(model, tmp_path / "folder") == ()


def test_a_huge_folder_is_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        (tmp_path / f"{number}.md").touch()
    keys = DatasetKeys(path="d", type="alpaca")
    assert len(said(tmp_path, keys)) == 1
    monkeypatch.setattr(samples, "MAX_ENTRIES", 3)
    assert said(tmp_path, keys) == ()


@pytest.mark.parametrize(
    ("more", "num_complaints"),
    [("", 1), ("on_bad_row: stop\n", 1), ("on_bad_row: skip\n", 0), ("rl: dpo\n", 0)],
)
def test_rows_that_the_run_leaves_out_are_no_complaint(
    tmp_path: Path, more: str, num_complaints: int
) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "x"}\n')
    recipe = f"base_model: m\ndatasets: [{{path: {tmp_path}/d.jsonl, type: alpaca}}]\n{more}"
    facts = gather(normalize(loads(recipe)), hashed=False, here=True)
    assert facts.files is not None
    fact = facts.files[DATA.key]
    assert fact is not None
    assert len(fact.complaints) == num_complaints


def test_a_template_of_a_data_set_travels(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    recipe = (
        f"base_model: m\ndatasets: [{{path: {tmp_path}/d.jsonl, type: chat_template, "
        f"chat_template_jinja: {tmp_path}/mine.jinja}}]\n"
    )
    normalized = normalize(loads(recipe))
    plan = resolve(normalized.flat, gather(normalized, hashed=True, here=True))
    [template] = [given for given in plan.inputs if given.kind == "template"]
    assert template.name.endswith("-mine.jinja")
    [spec] = plan.data.datasets
    assert (spec.chat_template, spec.chat_template_jinja) == ("jinja", f"inputs/{template.name}")
    assert (plan.data.chat_template, plan.data.chat_template_jinja) == ("tokenizer_default", None)
