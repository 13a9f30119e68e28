"""Rules about keys that have no effect, or not the one they promise, as another key is off, newer or goes first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ft.recipes.errors import Severity
from ft.recipes.facts import Facts
from ft.recipes.references import dataset_entries
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import (
    BITS,
    changes_something,
    is_on,
    quoted,
    state_of,
    value_of,
)
from ft.recipes.schema import FlatRecipe


def _has_an_heir(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Axolotl has replaced these keys and keeps them only for old recipes."""
    heirs = {
        "eval_table_size": "generate_samples: true` and `num_generation_samples",
        "eval_max_new_tokens": "generation_max_new_tokens",
    }
    for key, heir in heirs.items():
        if changes_something(recipe, key):
            message = f"Axolotl keeps it only for old recipes. Write `{heir}`."
            yield Finding((key,), message, Severity.WARNING)


_SAMPLES: Final = (
    *("num_generation_samples", "generation_max_new_tokens", "generation_temperature"),
    *("generation_top_p", "generation_top_k", "generation_prompt_ratio", "generation_do_sample"),
)
_PACKING: Final = (
    *("sample_packing_group_size", "sample_packing_bin_size", "sample_packing_sequentially"),
    *("sample_packing_eff_est", "multipack_real_batches"),
)
OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(_PACKING, ("sample_packing", "eval_sample_packing")),
    **dict.fromkeys(_SAMPLES, ("generate_samples",)),
    "streaming_multipack_buffer_size": ("streaming", "pretraining_dataset"),
    "pretraining_sample_concatenation": ("pretraining_dataset",),
    "pretrain_multipack_attn": ("pretraining_dataset",),
    "pose_max_context_len": ("use_pose",),
    "pose_num_chunks": ("use_pose",),
    "pose_split_on_token_ids": ("use_pose",),
    "image_size": ("processor_type",),
    "image_resize_algorithm": ("processor_type",),
    "role_boundaries": ("processor_type",),
    "dataset_shard_idx": ("dataset_shard_num",),
    "eval_causal_lm_metrics": ("do_causal_lm_eval",),
    "eval_max_new_tokens": ("eval_table_size", "do_causal_lm_eval"),
    "bench_dataset": ("do_bench_eval",),
    "bench_split": ("do_bench_eval",),
    "profiler_steps_start": ("profiler_steps",),
    "hub_strategy": ("hub_model_id",),
    "hub_revision": ("hub_model_id",),
}
"""Key -> the keys of which one must be on for it to have an effect."""


def _options_have_their_switch(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """An option of something that is off has no effect: often the switch was forgotten."""
    for key, switches in OPTIONS.items():
        if changes_something(recipe, key) and not any(value_of(recipe, one) for one in switches):
            message = f"has no effect without `{switches[0]}`. Write that too, or take this out."
            yield Finding((key,), message, Severity.WARNING, keys=switches)
    for at, dataset in dataset_entries(recipe):
        if dataset.shards_idx is not None and dataset.shards is None:
            message = "has no effect without `shards`. Write that too, or take this out."
            yield Finding((*at, "shards_idx"), message, Severity.WARNING)


OVERRULED: Final = (
    ("datasets", "pretraining_dataset"),
    ("auto_resume_from_checkpoints", "resume_from_checkpoint"),
    ("group_by_length", "sample_packing"),
    ("group_by_length", "curriculum_sampling"),
)
"""Key that is not read, and the key that goes before it."""


def _nothing_is_overruled(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Where two keys decide the same and one of them always goes first, the other one only looks as if it counted."""
    for key, first in OVERRULED:
        if is_on(recipe, key) and is_on(recipe, first):
            message = f"has no effect beside `{first}`, which goes first. Take one of them out."
            yield Finding((key,), message, Severity.WARNING, keys=(first,))
    template = recipe.data.chat_template
    if recipe.data.default_system_message is not None and template != "chatml":
        stands = quoted("chat_template", template) if template else "the tokenizer's template"
        message = f"only `chat_template: chatml` reads it, not {stands}. Take it out."
        yield Finding(
            ("default_system_message",), message, Severity.WARNING, keys=("chat_template",)
        )
    for at, dataset in dataset_entries(recipe):
        if dataset.shards is not None and dataset.preprocess_shards is not None:
            message = f"has no effect beside `shards: {dataset.shards}`. Take one of them out."
            yield Finding((*at, "preprocess_shards"), message, Severity.WARNING)
        if dataset.roles_to_train and recipe.data.train_on_inputs:
            message = "has no effect beside `train_on_inputs: true`, which trains all roles. Take one of them out."
            yield Finding(
                (*at, "roles_to_train"), message, Severity.WARNING, keys=("train_on_inputs",)
            )


NEEDS: Final = (
    ("activation_offloading", "gradient_checkpointing", "true"),
    ("selective_checkpointing", "gradient_checkpointing", "true"),
    ("torch_compile_options", "torch_compile", "true"),
    ("peft_layers_pattern", "peft_layers_to_transform", "[0, 1]"),
    ("liger_use_token_scaling", "liger_fused_linear_cross_entropy", "true"),
)


def _needs_other(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """These keys change how another one works and mean nothing by themselves.

    Without the other the run would be a different one than was asked for: more memory, or
    another loss.
    """
    for key, other, value in NEEDS:
        if value_of(recipe, key) and not value_of(recipe, other):
            state = state_of(recipe, other)
            message = f"needs `{other}`, which {state}. Write `{other}: {value}`, or take this out."
            yield Finding((key,), message, keys=(other,))


IDLE: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("scaling_softmax_factor", ("scaling_softmax",)),
    ("scaling_softmax_bias", ("scaling_softmax",)),
    ("sdpa_varlen", ("sample_packing",)),
    ("chunked_cross_entropy_num_chunks", ("chunked_cross_entropy",)),
    ("tiled_mlp_num_shards", ("tiled_mlp",)),
    ("tiled_mlp_use_original_mlp", ("tiled_mlp",)),
    ("torch_compile_backend", ("torch_compile",)),
    ("torch_compile_mode", ("torch_compile",)),
    ("gradient_checkpointing_kwargs", ("gradient_checkpointing",)),
    ("fp8_enable_fsdp_float8_all_gather", ("fp8",)),
    ("model_quantization_config_kwargs", ("model_quantization_config",)),
    ("bnb_config_kwargs", (*BITS, "peft")),
    ("qlora_sharded_model_loading", ("load_in_4bit", "peft")),
    ("lora_mlp_kernel", ("adapter",)),
    ("lora_qkv_kernel", ("adapter",)),
    ("lora_o_kernel", ("adapter",)),
    ("lora_embedding_kernel", ("adapter",)),
    ("layer_offloading", ("adapter", "unfrozen_parameters")),
    ("nvfp4_merge_aware_start_step", ("nvfp4_merge_aware",)),
    ("swanlab_lark_secret", ("swanlab_lark_webhook_url",)),
)
"""Key -> keys of which at least one must be on for it to be read."""
IDLE_ATTENTION: Final = (
    ("sdpa_varlen", ("sdpa", None)),
    ("flex_attn_compile_kwargs", ("flex_attention",)),
)
"""Key -> values of `attn_implementation` with which it is read."""


def _has_an_effect(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """These keys are options of another one.

    Where that is off nobody reads them, and whoever wrote them probably expects something else.
    """
    for key, others in IDLE:
        if value_of(recipe, key) and not any(value_of(recipe, other) for other in others):
            message = (
                f"has no effect: `{others[0]}` {state_of(recipe, others[0])}. Set that, or take "
                "this out."
            )
            yield Finding((key,), message, Severity.WARNING, keys=others)
    for key, kernels in IDLE_ATTENTION:
        if value_of(recipe, key) and recipe.model.attn_implementation not in kernels:
            state = state_of(recipe, "attn_implementation")
            message = (
                f"has no effect: `attn_implementation` {state}, not {kernels[0]}. Set that, or "
                "take this out."
            )
            yield Finding((key,), message, Severity.WARNING, keys=("attn_implementation",))


RULES: Final = (
    Rule("R029", _has_an_heir),
    Rule("R047", _options_have_their_switch),
    Rule("R048", _nothing_is_overruled),
    Rule("R059", _needs_other),
    Rule("R081", _has_an_effect),
)
