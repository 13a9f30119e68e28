"""Words of other tools, short forms and misspellings: what is meant is named first, and nothing passes in silence."""

from __future__ import annotations

import random
import string

import pytest

from ft.recipes import vocabulary
from ft.recipes.errors import Severity
from ft.recipes.foreign import meant_below, meant_by
from ft.recipes.load import loads
from ft.recipes.nearest import nearest
from ft.recipes.normalize import normalize
from ft.recipes.plugins import PLUGIN_OF
from ft.recipes.reference import find, near_words
from ft.recipes.schema import SECTION_OF
from ft.recipes.schema.base import Status, info_of
from ft.recipes.schema.plugins import PLUGIN_SECTIONS, SECTION_OF_PLUGIN
from ft.recipes.spelling import LEGACY

KNOWN = [*SECTION_OF, *PLUGIN_OF, *vocabulary.ALIASES, *LEGACY]


def said(text: str) -> list[tuple[str, str]]:
    problems = normalize(loads(text, source="r.yml")).problems
    return [(str(problem.severity), f"{problem.dotted}: {problem.message}") for problem in problems]


def asks(*keys: str) -> str:
    *others, last = (f"`{key}`" for key in keys)
    return f"unknown key. Did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


# ------------------------------------------------------------------------------------- other tools' words


def test_every_word_of_another_tool_is_an_error_that_names_our_key_first() -> None:
    wrong = []
    for word, meant in vocabulary.ELSEWHERE.items():
        [(severity, text)] = said(f"{word}: 7")
        if severity != "error" or not text.startswith(f"{word}: {asks(*meant.split())}"):
            wrong.append((word, meant, text))
    assert wrong == []


def test_what_the_tables_name_are_keys_and_the_words_are_none() -> None:
    targets = {key for meant in vocabulary.ELSEWHERE.values() for key in meant.split()}
    assert [key for key in sorted(targets) if not find(key)] == []
    assert vocabulary.ELSEWHERE.keys() & {*KNOWN, *vocabulary.IGNORED, *vocabulary.REMOVED} == set()
    for block, words in vocabulary.ELSEWHERE_BELOW.items():
        assert [key for key in words.values() if not find(f"{block}.{key}")] == []
        assert [word for word in words if find(f"{block}.{word}")] == []
    for key, words in vocabulary.VALUES_ELSEWHERE.items():
        [entry] = find(key)
        assert [value for value in words.values() if value not in entry.values] == []
        assert [word for word in words if word in entry.values] == []


TRAINING_ARGUMENTS = {
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "num_train_epochs": "num_epochs",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "logging_dir": "output_dir",
    "report_to": "wandb_project",
    "push_to_hub": "hub_model_id",
    "run_name": "wandb_name",
    "max_seq_length": "sequence_len",
    "packing": "sample_packing",
    "neftune_alpha": "neftune_noise_alpha",
}
"""Of Transformers and TRL."""
LLAMA_FACTORY = {
    "model_name_or_path": "base_model",
    "finetuning_type": "adapter",
    "stage": "rl",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "cutoff_len": "sequence_len",
    "template": "chat_template",
    "flash_attn": "attn_implementation",
    "quantization_bit": "load_in_4bit",
    "val_size": "val_set_size",
    "neat_packing": "sample_packing",
    "preprocessing_num_workers": "dataset_num_proc",
    "train_on_prompt": "train_on_inputs",
    "pref_beta": "rl_beta",
    "additional_target": "lora_modules_to_save",
    "use_dora": "peft_use_dora",
}
SHORT_FORMS = {
    "seq_len": "sequence_len", "grad_accum": "gradient_accumulation_steps", "epoch": "num_epochs",
    "epochs": "num_epochs", "val_set": "val_set_size", "warmup": "warmup_steps", "rank": "lora_r",
    "alpha": "lora_alpha", "batch": "micro_batch_size", "noise_alpha": "neftune_noise_alpha", "trl_config": "trl",
    "hub_id": "hub_model_id", "peft_target_modules": "lora_target_modules",
    "eval_dataset": "test_datasets", "wandb": "wandb_project", "resume": "resume_from_checkpoint",
    "pad_token": "special_tokens.pad_token", "bos_token": "special_tokens.bos_token", "ds_config": "deepspeed",
    "deepspeed_config": "deepspeed", "loss_watchdog": "loss_watchdog_threshold", "train_batch_size": "micro_batch_size",
    "use_flash_attention": "attn_implementation", "load_4_bit": "load_in_4bit", "load_8_bit": "load_in_8bit",
    "load_4bit": "load_in_4bit", "load4bit": "load_in_4bit", "sequence_length": "sequence_len",
    "gradient_acc_steps": "gradient_accumulation_steps", "weightdecay": "weight_decay", "WarmupSteps": "warmup_steps",
    "numTrainEpochs": "num_epochs", "per_device_train_batchsize": "micro_batch_size", "hf_token": "hf_use_auth_token",
    "extend": "extends", "grad_ckpt": "gradient_checkpointing", "l\u043er\u0430_r": "lora_r",
    "b\u0430se_m\u043edel": "base_model", "\uff4c\uff52": "learning_rate", "LR": "learning_rate",
}  # fmt: skip


@pytest.mark.parametrize(
    ("word", "meant"), [*TRAINING_ARGUMENTS.items(), *LLAMA_FACTORY.items(), *SHORT_FORMS.items()]
)
def test_what_people_write_gets_the_right_key_first(word: str, meant: str) -> None:
    assert meant_by(word, KNOWN)[:1] == (meant,)


def test_ft_explain_knows_them_too() -> None:
    assert [entry.status for entry in find("extends")] == [Status.IMPLEMENTED]
    assert near_words("max_seq_length")[0] == "sequence_len"
    assert near_words("report_to") == ["wandb_project", "use_tensorboard", "use_mlflow"]
    assert near_words("lerning_rate")[0] == "learning_rate"


def test_a_letter_that_only_looks_right_is_named() -> None:
    assert said("l\u043er\u0430_r: 8") == [
        (
            "error",
            "l\u043er\u0430_r: unknown key. `\u043e` in it is CYRILLIC SMALL LETTER O. Did you mean `lora_r`?",
        )
    ]


@pytest.mark.parametrize(
    ("word", "never"),
    [
        ("load_4_bit", "load_in_8bit"),
        ("load_in_4_bits", "load_in_8bit"),
        ("train_batch_size", "eval_batch_size"),
        ("training_steps", "eval_steps"),
        ("load_steps", "save_steps"),
        ("max_sample_len", "min_sample_len"),
        ("min_mask_ratio", "max_mask_ratio"),
        ("adam_beta_2", "adam_beta1"),
    ],
)
def test_the_opposite_is_never_suggested(word: str, never: str) -> None:
    known = [key for key in {*KNOWN, "max_mask_ratio"} if key != word]
    assert never not in nearest(word, known, 10)


def test_a_misspelt_word_of_another_tool_is_understood_too() -> None:
    rng, wrong = random.Random(7), []
    words = [word for word in vocabulary.ELSEWHERE if len(word) > 9]
    for _ in range(200):
        word = rng.choice(words)
        at = rng.randrange(1, len(word))
        typo = word[:at] + rng.choice(string.ascii_lowercase) + word[at:]
        if typo in vocabulary.ELSEWHERE:
            continue
        near = meant_by(typo, KNOWN)
        if near != tuple(vocabulary.ELSEWHERE[word].split()) and not nearest(typo, KNOWN, 1):
            wrong.append((typo, word, near))
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("special_tokens: {pad: x}", "special_tokens.pad: unknown key. Did you mean `pad_token`?"),
        ("cloud: {volume: x}", "cloud.volume: unknown key. Did you mean `store_volume`?"),
        ("cloud: {num_gpus: 8}", "cloud.num_gpus: unknown key. Did you mean `gpu`?"),
        (
            "datasets: [{path: a, train_on_split: train}]",
            "datasets.0.train_on_split: unknown key. Did you mean `split`?",
        ),
        (
            "test_datasets: [{path: a, subset: x}]",
            "test_datasets.0.subset: unknown key. Did you mean `name`?",
        ),
        (
            "datasets: [{path: a, type: {file: x}}]",
            "datasets.0.type.file: unknown key.",
        ),
    ],
)
def test_words_below_a_block(text: str, expected: str) -> None:
    assert ("error", expected) in said(text)


def test_a_block_has_its_own_words() -> None:
    assert meant_below("special_tokens", "eos", ()) == ("eos_token",)
    assert meant_below("cloud", "eos", ()) == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optimizer: adamW", "adamw_torch_fused"),
        ("optimizer: AdamW", "adamw_torch_fused"),
        ("optimizer: adamw_hf", "adamw_torch"),
        ("optimizer: adamw_torch_fussed", "adamw_torch_fused"),
        ("lr_scheduler: cosine_annealing", "cosine"),
        ("attn_implementation: flash", "flash_attention_2"),
        ("chat_template: qwen2.5", "qwen_25"),
        ("datasets: [{path: a, chat_template: default}]", "tokenizer_default"),
    ],
)
def test_values_of_other_tools(text: str, value: str) -> None:
    [(severity, problem)] = [one for one in said(text) if "not runnable" not in one[1]]
    assert severity == "error"
    assert problem.endswith(f"Did you mean `{value}`?")


# ------------------------------------------------------------------------- ignored, or otherwise than written

IGNORED = {
    "eval_table_max_new_tokens": "eval_max_new_tokens",
    "attention": "attn_implementation",
    "is_multimodal": "processor_type",
    "moe_kernels": "use_scattermoe",
    "tensor_parallel": "tensor_parallel_size",
    "use_auth_token": "hf_use_auth_token",
    "data_seed": "seed",
    "val_dataset": "test_datasets",
    "flash_attn_fuse_qkv": "",
    "relora_steps": "jagged_restart_steps",
    "relora_warmup_steps": "jagged_restart_warmup_steps",
    "prompt_format": "type",
    "eos_token_id": "special_tokens",
    "bos_token_id": "special_tokens",
    "pad_token_id": "special_tokens",
}


@pytest.mark.parametrize(("word", "instead"), IGNORED.items())
def test_words_without_a_meaning_are_a_warning_that_says_what_has_one(
    word: str, instead: str
) -> None:
    [(severity, text)] = said(f"{word}: x")
    assert severity == "warning"
    assert text.startswith(f"{word}: ignored: Axolotl ignores it too")
    assert f"`{instead}`" in text.replace(": true`", "`") if instead else text.endswith("too.")


@pytest.mark.parametrize(
    ("word", "meant", "happens"),
    [
        ("load_4bit", "load_in_4bit", "trains with 16 bits"),
        ("sequence_length", "sequence_len", "takes 512"),
        ("max_seq_length", "sequence_len", "takes 512"),
    ],
)
def test_what_would_train_otherwise_than_written_is_an_error(
    word: str, meant: str, happens: str
) -> None:
    assert said(f"{word}: 1024") == [
        ("error", f"{word}: {asks(meant)} Axolotl ignores this one, and {happens}.")
    ]
    # Beside the key it is harmless only if both say the same.
    value = "true" if "bit" in word else "1024"
    other = "false" if "bit" in word else "512"
    assert ("error", f"{word}: {asks(meant)}") in said(f"{word}: {value}\n{meant}: {other}")
    assert (
        "warning",
        f"{word}: ignored: no key; it says the same as `{meant}`. Take it out.",
    ) in said(f"{word}: {value}\n{meant}: {value}")


def test_a_misspelt_key_is_an_error_even_beside_the_right_one() -> None:
    assert said("adaptor: lora\nadapter: lora") == [("error", f"adaptor: {asks('adapter')}")]


# -------------------------------------------------------------------------------------------- plugins

PLUGIN_KEYS = [
    (key, info_of(section.model_fields[key]).default)
    for section in PLUGIN_SECTIONS.values()
    for key in section.model_fields
]


@pytest.mark.parametrize(("key", "default"), PLUGIN_KEYS)
def test_a_key_of_a_plugin_that_is_not_listed_is_an_error_whatever_its_value(
    key: str, default: object
) -> None:
    plugin = PLUGIN_SECTIONS[PLUGIN_OF[key]].plugins[0]
    expected = [("error", f"{key}: belongs to a plugin. Add `- {plugin}` to `plugins`.")]
    value = {True: "true", False: "1"}.get(default, default) if default is not None else "x"
    assert said(f"{key}: {value}") == expected


def test_false_of_a_plugin_that_is_not_listed_asks_for_nothing_unless_it_is_a_wish() -> None:
    assert said("liger_rope: false\ncut_cross_entropy: false\nswanlab_log_model: false") == []
    [(severity, _)] = said("nemo_gym_auto_start: false")
    assert severity == "error"


@pytest.mark.parametrize(
    ("plugin", "more", "severity", "text"),
    [
        (
            "cut_cross_entropy.CutCrossEntropyPlugin",
            "",
            "warning",
            "has no effect here yet: the loss is computed from whole logits, which takes more memory",
        ),
        ("cut_cross_entropy.CutCrossEntropyPlugin", "cut_cross_entropy: false", "", ""),
        (
            "cut_cross_entropy.CutCrossEntropyPlugin",
            "cut_cross_entropy: true",
            "warning",
            "has no effect here yet: the loss is computed from whole logits, which takes more memory",
        ),
        ("spectrum.SpectrumPlugin", "", "planned", "not runnable yet"),
        ("grokfast.GrokfastPlugin", "", "planned", "not runnable yet"),
        ("diffusion.DiffusionPlugin", "", "planned", "not runnable yet"),
        ("densemixer.DenseMixerPlugin", "", "planned", "not runnable yet"),
        ("densemixer.DenseMixerPlugin", "dense_mixer: false", "", ""),
        ("hatchery.HatcheryPlugin", "", "planned", "not runnable yet"),
        ("nemo_gym.NemoGymPlugin", "", "planned", "not runnable yet"),
        ("liger.LigerPlugin", "", "", ""),
        ("kernels.KernelsPlugin", "", "", ""),
        ("context_parallel.ContextParallelPlugin", "", "", ""),
    ],
)
@pytest.mark.parametrize("folder", ["", "axolotl.integrations."])
def test_a_plugin_that_changes_a_run_by_being_listed_says_so_in_its_line(
    folder: str, plugin: str, more: str, severity: str, text: str
) -> None:
    listed = f"base_model: x\nplugins:\n  - liger.LigerPlugin\n  - {folder}{plugin}\n{more}"
    problems = normalize(loads(listed, source="r.yml")).problems
    expected = [(severity, f"r.yml:4: plugins.1: {text}")] if severity else []
    assert [(str(p.severity), str(p)) for p in problems] == expected


@pytest.mark.parametrize("plugin", SECTION_OF_PLUGIN)
def test_a_misspelt_plugin_is_an_error_that_names_the_right_one(plugin: str) -> None:
    own = (
        ""
        if plugin.startswith("axolotl.")
        else " A plugin of your own declares its keys (entry point ft.recipes.plugins)."
    )
    module, _, name = plugin.rpartition(".")
    for typo in (f"{module}.{name[:-2]}ni", f"{module[:-1]}.{name}", f"{module}.{name.lower()}"):
        assert typo != plugin
        assert said(f"plugins: [{typo}]") == [
            ("error", f"plugins.0: no plugin of Axolotl. Did you mean `{plugin}`?{own}")
        ]


def test_another_plugin_is_not_taken_for_a_misspelt_one() -> None:
    for plugin in (
        "my_pkg.LigerPlugin",
        "axolotl.integrations.diffusion_gemma.DiffusionGemmaPlugin",
    ):
        [(severity, text)] = said(f"plugins: [{plugin}]")
        assert (severity, text.partition(" (")[0]) == (
            "planned",
            "plugins.0: not runnable yet: a plugin that declares no keys",
        )


# ---------------------------------------------------------------------------------- keys of Axolotl 0.21


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("use_dft: true", "use_dft"),
        (
            "context_parallel: {size: 8, backend: auto, load_balance: auto, ring_impl: auto}",
            "context_parallel",
        ),
        (
            "plugins: [nemo_gym.NemoGymPlugin]\nnemo_gym_enabled: false\nnemo_gym_max_turns: 4",
            "nemo_gym_max_turns",
        ),
    ],
)
def test_newer_keys_are_planned(text: str, key: str) -> None:
    severities = {p.dotted: p.severity for p in normalize(loads(text)).problems}
    assert severities.pop(key) is Severity.PLANNED
    assert not severities


def test_the_block_of_hatchery_is_typed() -> None:
    text = (
        "plugins: [hatchery.HatcheryPlugin]\nhatchery: {backend: %s, lora_rank: 16, loss_fn: ppo}"
    )
    assert said(text % "tinker") == [
        ("planned", "hatchery: not runnable yet"),
        ("planned", "plugins.0: not runnable yet"),
    ]
    assert said(text % "tinkr")[0] == (
        "error",
        "hatchery.backend: expected 'tinker' or 'hatchery', got 'tinkr'. Did you mean `tinker`?",
    )


def test_the_size_in_the_block_is_the_size_beside_it() -> None:
    flat = normalize(loads("context_parallel: {size: 8}")).flat.flat()
    assert flat == {"context_parallel": {"size": 8}, "context_parallel_size": 8}


# ------------------------------------------------------------------------------------- values and forms


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("lora_r: 99999999999999999999999999", "65536"),
        ("lora_alpha: 1e9", "1000000"),
        ("sequence_len: 1000000000", "67108864"),
        ("sequence_len: 1e9", "67108864"),
        ("micro_batch_size: 100000000", "1000000"),
        ("gradient_accumulation_steps: 100000000", "1000000"),
        ("max_steps: 10000000000", "1000000000"),
        ("learning_rate: 2e4", "100"),
        ("weight_decay: 1e6", "100"),
        ("tensor_parallel_size: 10000000", "1048576"),
    ],
)
def test_values_that_no_run_has_are_errors(text: str, most: str) -> None:
    [(severity, problem)] = said(text)
    assert severity == "error"
    assert f": expected less than or equal to {most}, got " in problem


def test_data_files_need_no_path() -> None:
    text = "datasets:\n- {ds_type: json, data_files: [a/b], split: train, type: completion}\n"
    normalized = normalize(loads(text, source="r.yml"))
    assert [str(p) for p in normalized.problems] == [
        "r.yml:2: datasets.0.ds_type: not runnable yet",
        "r.yml:2: datasets.0.data_files: not runnable yet",
    ]
    [dataset] = normalized.flat.flat()["datasets"]
    assert (dataset["path"], dataset["data_files"]) == ("json", ["a/b"])
    assert said("datasets: [{type: completion}]") == [
        ("error", "datasets.0.path: required, but not there")
    ]


@pytest.mark.parametrize("text", ["pretraining_dataset: a/b", "pretraining_dataset: {path: a/b}"])
def test_one_data_set_of_texts_is_a_list_with_it(text: str) -> None:
    normalized = normalize(loads(text, source="r.yml"))
    assert normalized.flat.flat()["pretraining_dataset"] == [{"path": "a/b"}]
    assert [str(p) for p in normalized.problems] == [
        "r.yml:1: pretraining_dataset: not runnable yet"
    ]


def test_a_problem_in_a_single_data_set_of_texts_has_its_line() -> None:
    text = "pretraining_dataset:\n  path: a/b\n  skp: 3\n"
    assert "r.yml:3: pretraining_dataset.skp: unknown key. Did you mean `skip`?" in [
        str(p) for p in normalize(loads(text, source="r.yml")).problems
    ]
