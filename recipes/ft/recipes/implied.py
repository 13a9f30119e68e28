"""What a key that is set means for one that is not: the values that Axolotl's schema fills in, for any recipe.

Only what follows from the recipe itself: nothing of the machine, and no constant (an unset key stays unset).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ft.recipes.errors import KeyPath

Implied = dict[KeyPath, str]
"""Key that was filled in -> top-level key that made it so."""

PREFERENCE_METHODS: Final = frozenset({"dpo", "ipo", "simpo", "orpo", "kto", "ebft"})
"""Values of `rl` whose data sets are no conversations to be rendered: nothing is filled in there."""
MESSAGE: Final = {"role": "role", "content": "content"}
"""Properties of a message, where a data set says nothing of them."""


FOLLOWS: Final[tuple[tuple[str, Mapping[str, object]], ...]] = (
    ("sample_packing", {"eval_sample_packing": True, "pad_to_sequence_len": True}),
    ("skip_prepare_dataset", {"remove_unused_columns": False}),
    (
        "reward_model",
        {
            "num_labels": 1,
            "type_of_model": "AutoModelForSequenceClassification",
            "pad_to_sequence_len": True,
        },
    ),
    (
        "process_reward_model",
        {"num_labels": 2, "type_of_model": "AutoModelForTokenClassification"},
    ),
)
"""Key that is true -> what follows for others."""


def as_lists(values: dict[str, Any]) -> dict[KeyPath, KeyPath]:
    """Write `pretraining_dataset`, where it is one data set or only its path, as a list with it.

    Returns place in the list -> place in the file.
    """
    key = "pretraining_dataset"
    given = values.get(key)
    if isinstance(given, str):
        values[key] = [{"path": given}]
        return {(key, 0, "path"): (key,)}
    if isinstance(given, dict):
        values[key] = [given]
        return {(key, 0): (key,)}
    return {}


def imply(values: dict[str, Any]) -> Implied:
    """Fill in `values`, in today's spelling; a key that is set is never changed, but for `gradient_checkpointing`."""
    implied: Implied = {}
    for key, others in FOLLOWS:
        if values.get(key) is True:
            for other, value in others.items():
                _fill(values, other, value, key, implied)
    if bool(values.get("sample_packing")) != bool(values.get("eval_sample_packing")):
        _fill(values, "remove_unused_columns", False, "eval_sample_packing", implied)
    if "chat_template_jinja" in values:
        _fill(values, "chat_template", "jinja", "chat_template_jinja", implied)
    if values.get("gemma4_hybrid_attn_impl") is True:
        kernel = "flash_attention_2"
        _fill(values, "attn_implementation", kernel, "gemma4_hybrid_attn_impl", implied)
    if values.get("optimizer") == "q_galore_adamw8bit":
        _fill(values, "optim_target_modules", ["attn", "mlp"], "optimizer", implied)
    _ring(values, implied)
    _ringmaster(values, implied)
    _streaming(values, implied)
    _offload(values, implied)
    _fsdp_version(values, implied)
    _fill_paths(values, implied)
    method = values.get("rl")
    if not isinstance(method, str) or method not in PREFERENCE_METHODS:
        for key in ("datasets", "test_datasets"):
            _fill_datasets(values, key, implied)
    return implied


def _fill(values: dict[str, Any], key: str, value: object, because: str, implied: Implied) -> None:
    if key not in values:
        values[key] = value
        implied[(key,)] = because


def _ring(values: dict[str, Any], implied: Implied) -> None:
    size = values.get("context_parallel_size")
    if isinstance(size, int) and size > 1 and "context_parallel" not in values:
        how = "varlen_llama3" if values.get("sample_packing") is True else "batch_ring"
        _fill(values, "ring_attn_func", how, "context_parallel_size", implied)


def _ringmaster(values: dict[str, Any], implied: Implied) -> None:
    """The block of Axolotl 0.21 says how many processes share a sequence as well."""
    block = values.get("context_parallel")
    if isinstance(block, dict) and isinstance(size := block.get("size"), int):
        _fill(values, "context_parallel_size", size, "context_parallel", implied)


def _streaming(values: dict[str, Any], implied: Implied) -> None:
    """Rows that come from a stream are not split or sent around by accelerate."""
    if values.get("pretraining_dataset"):
        block = {"split_batches": False, "dispatch_batches": False}
        _fill_block(values, "accelerator_config", block, "pretraining_dataset", implied)


def _offload(values: dict[str, Any], implied: Implied) -> None:
    """`gradient_checkpointing: offload` is two wishes in one word."""
    where = {"offload": True, "offload_disk": "disk"}
    word = values.get("gradient_checkpointing")
    if isinstance(word, str) and word in where and "activation_offloading" not in values:
        values["gradient_checkpointing"] = True
        values["activation_offloading"] = where[word]
        implied[("activation_offloading",)] = "gradient_checkpointing"


def _fsdp_version(values: dict[str, Any], implied: Implied) -> None:
    """`fsdp_version` stands at the top and in `fsdp_config`; unset it is 1, as in Axolotl."""
    config = values.get("fsdp_config")
    if not isinstance(config, dict) or not config:
        return
    version = values.get("fsdp_version", config.get("fsdp_version", 1))
    if "fsdp_version" not in values:
        values["fsdp_version"] = version
        implied[("fsdp_version",)] = "fsdp_config"
    if "fsdp_version" not in config:
        config["fsdp_version"] = version
        implied[("fsdp_config", "fsdp_version")] = "fsdp_version"


def _fill_block(
    values: dict[str, Any], key: str, block: Mapping[str, object], because: str, implied: Implied
) -> None:
    if key not in values:
        implied[(key,)] = because
    inner = values.setdefault(key, {})
    if isinstance(inner, dict):
        for name, value in block.items():
            if name not in inner:
                inner[name] = value
                implied[(key, name)] = because


def _fill_paths(values: dict[str, Any], implied: Implied) -> None:
    """`data_files` without a path are read by the reader of their format, which the path then names."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        listed = values.get(key)
        for index, dataset in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(dataset, dict) and dataset.get("data_files") and "path" not in dataset:
                dataset["path"] = dataset.get("ds_type", "json")
                implied[(key, index, "path")] = key


def _fill_datasets(values: dict[str, Any], key: str, implied: Implied) -> None:
    listed = values.get(key)
    if not isinstance(listed, list):
        return
    for index, dataset in enumerate(listed):
        if not isinstance(dataset, dict) or not dataset:
            continue
        defaults: dict[str, Any] = {
            "message_property_mappings": MESSAGE,
            "trust_remote_code": False,
        }
        if dataset.get("type") == "chat_template":
            defaults["chat_template"] = (
                "jinja" if "chat_template_jinja" in dataset else "tokenizer_default"
            )
        for name, value in defaults.items():
            if name not in dataset:
                dataset[name] = dict(value) if isinstance(value, dict) else value
                implied[(key, index, name)] = (
                    f"{key}.{index}.type" if name == "chat_template" else key
                )
        mapping = dataset["message_property_mappings"]
        for role, value in MESSAGE.items():
            if isinstance(mapping, dict) and role not in mapping:
                mapping[role] = value
                implied[(key, index, "message_property_mappings", role)] = key
