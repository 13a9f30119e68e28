"""Each rule: a recipe that breaks it, and the whole sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts, FileFact, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.resolve import resolve
from ft.recipes.rules import RULES, check

GOOD = """\
base_model: some/model
datasets: [{path: some/data, type: alpaca}]
learning_rate: 2e-4
"""
CPU = Machine("cpu", "cpu", 1, 1, bf16=False, tf32=False)
H100X8 = Machine("cuda", "H100", 8, 1, bf16=True, tf32=True)
T4 = Machine("cuda", "T4", 1, 1, bf16=False, tf32=False)
FACTS = Facts(files={}, model_config={"max_position_embeddings": 2048}, machine=CPU)


def said(text: str, facts: Facts = FACTS) -> list[str]:
    return [str(p) for p in check(normalize(loads(text, source="r.yml")), facts).problems]


def test_a_good_recipe_has_no_problem() -> None:
    assert said(GOOD) == []


@pytest.mark.parametrize(
    ("lines", "machine", "expected"),
    [
        ("adapter: lora\nlora_r: 8", CPU,
         "r.yml:1: lora_alpha: R004 required with `adapter: lora`; 16 is usual"),
        ("lora_r: 8", CPU,
         "r.yml:4: lora_r: R005 has no effect without `adapter: lora`: all weights will be trained"),
        ("adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_linear: true\nlora_target_modules: [q_proj]", CPU,
         "r.yml:8: lora_target_modules: R006 not runnable yet together with `lora_target_linear: true`. "
         "Keep one of the two."),
        ("adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: []", CPU,
         "r.yml:7: lora_target_modules: R006 `[]` gives no layer an adapter. Name some, or take it out for every "
         "linear layer."),
        ("save_steps: 5\nsaves_per_epoch: 1", CPU,
         "r.yml:4: save_steps: R003 stands beside `saves_per_epoch`; both decide the same. Keep one."),
        ("warmup_steps: 5\nwarmup_ratio: 0.1", CPU,
         "r.yml:4: warmup_steps: R003 stands beside `warmup_ratio`; both decide the same. Keep one."),
        ("chat_template: jinja", CPU,
         "r.yml:4: chat_template: R007 `jinja` needs `chat_template_jinja`: a template or a .jinja file"),
        ("chat_template: chatml\nchat_template_jinja: '{{ messages }}'", CPU,
         "r.yml:5: chat_template_jinja: R007 stands beside `chat_template: chatml`. Keep one."),
        ("eval_steps: 5", CPU,
         "r.yml:4: eval_steps: R009 no rows to evaluate on: set `val_set_size` or `test_datasets`."),
        ("val_set_size: 1", CPU,
         "r.yml:4: val_set_size: R009 1 is all rows: nothing is left to train on. 0.1 holds out a tenth."),
        ("val_set_size: 1.5", CPU,
         "r.yml:4: val_set_size: R009 1.5 is neither a share up to 1 nor a whole number of rows."),
        ("cloud: {gpu: 'h100:8'}", None,
         "r.yml:4: cloud.gpu: R010 h100 is not one of cpu, T4, RTX3090, RTX4090, RTX5090, L4, A10, A10G, A40, A6000, "
         "L40, L40S, RTX6000-Ada, RTX-PRO-6000, A100-40GB, A100-80GB, H100, H200, B200, B300. "
         "Did you mean `H100`?"),
        ("cloud: {gpu: [RTX-PRO-6000, V100]}", None,
         "r.yml:4: cloud.gpu.1: R010 V100 is not one of cpu, T4, RTX3090, RTX4090, RTX5090, L4, A10, A10G, A40, A6000, "
         "L40, L40S, RTX6000-Ada, RTX-PRO-6000, A100-40GB, A100-80GB, H100, H200, B200, B300. "
         "Did you mean `H100`?"),
        ("cloud: {gpu: 'a100:8'}", None,
         "r.yml:4: cloud.gpu: R010 a100 is not one of cpu, T4, RTX3090, RTX4090, RTX5090, L4, A10, A10G, A40, A6000, "
         "L40, L40S, RTX6000-Ada, RTX-PRO-6000, A100-40GB, A100-80GB, H100, H200, B200, B300. "
         "Did you mean `A100-40GB` or `A100-80GB`?"),
        ("context_parallel_size: 3", H100X8,
         "r.yml:4: context_parallel_size: R011 3 does not divide the 8 processes. Use one of 1, 2, 4, 8."),
        ("dp_replicate_size: 2", H100X8,
         "r.yml:4: dp_replicate_size: R011 the sizes multiply to 2, but there are 8 processes. "
         "Use dp_replicate_size 8, or leave it out."),
        ("save_steps: 0.1", CPU, "r.yml:4: save_steps: R012 not runnable yet: 0.1 of the run; write a number of steps"),
        ("attn_implementation: flash_attention_2", CPU,
         "r.yml:4: attn_implementation: R013 flash_attention_2 needs a GPU. On the CPU use sdpa."),
        ("bf16: true", T4, "r.yml:4: bf16: R013 T4 has no bfloat16. Use `bf16: auto` or another GPU."),
        ("tf32: true", CPU,
         "r.yml:4: tf32: R013 TF32 is a mode of NVIDIA GPUs; it has no effect on the CPU."),
        ("sequence_len: 4096", CPU,
         "r.yml:4: sequence_len: R014 4096 is longer than the 2048 positions that the model was made for"),
        ("trust_remote_code: true", CPU,
         "r.yml:4: trust_remote_code: R015 code that comes with the model will run on your machines, "
         "with your secrets"),
        ("cloud: {max_cost: 5}", CPU,
         "r.yml:4: cloud.max_cost: R017 nobody knows what an hour here costs. Add `price_per_hour`, in US dollars."),
    ],
)  # fmt: skip
def test_a_broken_rule_says_so(lines: str, machine: Machine | None, expected: str) -> None:
    facts = Facts(files={}, model_config=FACTS.model_config, machine=machine)
    found = said(GOOD + lines, facts)
    assert expected in found
    said_by = {line.split(": ")[2].split()[0] for line in found}
    assert said_by - {"not"} <= {
        rule.id for rule in RULES
    }  # "not runnable yet" is said by the schema.


@pytest.mark.parametrize(
    "lines",
    [
        "warmup_steps: 0\nwarmup_ratio: 0.1", "warmup_steps: 10\nwarmup_ratio: 0.0", "warmup_steps: 0\nwarmup_ratio: 0",
        "val_set_size: 0.1\nevals_per_epoch: 0\neval_steps: 10",
        "adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: []\nlora_target_linear: true",
        "dp_replicate_size: 1", "lora_target_modules: []",
    ],
)  # fmt: skip
def test_what_asks_for_nothing_contradicts_nothing(lines: str) -> None:
    errors = check(normalize(loads(GOOD + lines)), FACTS).of(Severity.ERROR)
    assert errors == []


@pytest.mark.parametrize("fsdp", ["fsdp_config: {offload_params: false}", "fsdp: [full_shard]"])
def test_fsdp_and_replicas_are_hybrid_sharding(fsdp: str) -> None:
    facts = Facts(files={}, machine=H100X8)
    hybrid = f"{GOOD}{fsdp}\nfsdp_version: 2\ndp_replicate_size: 2\n"
    assert check(normalize(loads(hybrid)), facts).of(Severity.ERROR) == []
    plan = resolve(normalize(loads(hybrid)).flat, facts).parallel
    assert (plan.dp_replicate_size, plan.dp_shard_size) == (2, 4)
    assert (
        "r.yml:6: dp_replicate_size: R011 3 does not divide the 8 processes. Use one of 1, 2, 4, 8."
        in (said(hybrid.replace("dp_replicate_size: 2", "dp_replicate_size: 3"), facts))
    )


def test_required_keys_are_all_named() -> None:
    assert said("sequence_len: 10") == [
        "r.yml:1: base_model: R001 required: a hub id or a local folder",
        "r.yml:1: datasets: R001 required: a list with `path` and `type` each",
        "r.yml:1: learning_rate: R001 required; 2e-4 is usual for LoRA, 2e-5 for all weights",
    ]


def test_a_missing_file_is_named_with_its_line() -> None:
    text = "base_model: some/model\ndatasets:\n  - path: a.jsonl\n    type: alpaca\nlearning_rate: 1e-4\n"
    facts = Facts(files={("datasets", 0, "path"): FileFact("data", None)}, machine=CPU)
    assert said(text, facts) == [
        "r.yml:3: datasets.0.path: R002 a.jsonl does not exist, neither in the current folder nor beside the "
        "recipe. Mend the path."
    ]


def test_a_path_that_no_terminal_should_see_is_escaped() -> None:
    facts = Facts(files={("base_model",): FileFact("model", None)}, machine=CPU)
    assert said(GOOD.replace("some/model", '"./a\\e[31m"'), facts) == [
        "r.yml:1: base_model: R002 './a\\x1b[31m' does not exist, neither in the current folder nor beside the "
        "recipe. Mend the path."
    ]


@pytest.mark.parametrize("cloud", ["{max_cost: 5, price_per_hour: 2}", "{price_per_hour: 2}", "{}"])
def test_a_budget_with_a_price_is_fine(cloud: str) -> None:
    assert said(f"{GOOD}cloud: {cloud}") == []


def test_a_price_of_the_backend_will_do() -> None:
    text = GOOD + "cloud: {max_cost: 5}"
    assert said(text, Facts(machine=CPU, price_per_hour=31.5936)) == []
    assert len(said(text, Facts(machine=CPU))) == 1


def test_what_is_wrong_with_a_price_is_not_said_twice() -> None:
    assert said(GOOD + "cloud: {max_cost: 5, price_per_hour: free}") == [
        "r.yml:4: cloud.price_per_hour: expected a number, got 'free'"
    ]


SEVERAL = """\
base_model: some/model
learning_rate: 2e-4
datasets:
  - {type: alpaca}
  - {path: a.jsonl, type: alpaca, pth: 3}
  - {path: b.jsonl, type: completion, feild: body}
  - {path: c.jsonl, type: completion}
"""


def test_one_data_set_does_not_hide_another() -> None:
    """The first one is taken out, so in the typed recipe the others stand one place further up."""
    files = {
        ("datasets", 0, "path"): FileFact("data", None),
        ("datasets", 1, "path"): FileFact(
            "data", Path("b.jsonl"), complaints=("may follow from `feild`",)
        ),
        ("datasets", 2, "path"): FileFact(
            "data", Path("c.jsonl"), complaints=("c.jsonl is empty.", "And old.")
        ),
    }
    assert said(SEVERAL, Facts(files=files, machine=CPU)) == [
        "r.yml:4: datasets.0.path: required, but not there",
        "r.yml:5: datasets.1.path: R002 a.jsonl does not exist, neither in the current folder nor beside the recipe. "
        "Mend the path.",
        "r.yml:5: datasets.1.pth: unknown key. Did you mean `path`?",
        "r.yml:6: datasets.2.feild: unknown key. Did you mean `field`?",
        "r.yml:7: datasets.3: R018 c.jsonl is empty.",
        "r.yml:7: datasets.3: R018 And old.",
    ]


def test_a_model_that_cannot_be_used_is_named_by_its_key() -> None:
    files = {("base_model",): FileFact("model", Path("m"), complaints=("m is an empty folder.",))}
    assert said(GOOD, Facts(files=files, machine=CPU)) == [
        "r.yml:1: base_model: R018 m is an empty folder."
    ]


def test_keys_that_a_format_does_not_read_are_warnings() -> None:
    text = GOOD.replace("type: alpaca", "type: alpaca, field: x, roles_to_train: [user]")
    assert said(text) == [
        "r.yml:2: datasets.0.field: R008 has no effect: `type: alpaca` does not read it. Take it out.",
        "r.yml:2: datasets.0.roles_to_train: R008 has no effect: `type: alpaca` does not read it. Take it out.",
    ]


def test_a_rule_about_an_older_spelling_names_what_stands_in_the_file() -> None:
    assert said(GOOD + "flash_attention: true") == [
        "r.yml:4: flash_attention: older spelling of `attn_implementation`; ft migrate rewrites it",
        "r.yml:4: flash_attention: R013 flash_attention_2 needs a GPU. On the CPU use sdpa.",
    ]


def test_a_name_cannot_be_two_roles() -> None:
    text = GOOD.replace("type: alpaca", "type: chat_template, roles: {user: [x], assistant: [x]}")
    assert said(text) == [
        "r.yml:2: datasets.0.roles: R016 `x` is given to both `user` and `assistant`. Keep one."
    ]


def test_a_broken_key_gives_no_second_problem() -> None:
    assert said(GOOD.replace("2e-4", "fast")) == [
        "r.yml:3: learning_rate: expected a number, got 'fast'"
    ]


def test_a_rule_without_its_facts_is_deferred_not_guessed() -> None:
    report = check(normalize(loads(GOOD + "dp_replicate_size: 3")), Facts())
    assert report.deferred == tuple(rule.id for rule in RULES if rule.needs)
    assert {"R002", "R011", "R014"} <= set(report.deferred)
    assert report.of(Severity.ERROR) == []


def test_no_rule_needs_a_file_to_read(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a rule read a file")

    normalized = normalize(loads(GOOD))
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    assert check(normalized, FACTS).problems == ()
