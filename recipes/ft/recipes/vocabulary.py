"""Words of Axolotl's vocabulary that are not keys of ours: other names, older spellings, removed, ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ALIASES: Final[Mapping[str, str]] = {
    "model_config": "overrides_of_model_config",
    "model_kwargs": "overrides_of_model_kwargs",
    "model_revision": "revision_of_model",
    "model_type": "type_of_model",
}
"""A second name that is as good as the first. The first one can be an attribute of a pydantic model."""

RENAMED: Final[Mapping[str, str]] = {
    "dataset_processes": "dataset_num_proc",
    "dpo_beta": "rl_beta",
    "evaluation_strategy": "eval_strategy",
    "liger_swiglu": "liger_glu_activation",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "pretrain_multipack_buffer_size": "streaming_multipack_buffer_size",
    "sequence_parallel_degree": "context_parallel_size",
}
"""Older spelling -> current spelling; the value stays."""

ATTENTION_FLAGS: Final[Mapping[str, str]] = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Older flag -> value of `attn_implementation` when the flag is true. Of several the first one counts."""

FSDP_PREFIX: Final = "fsdp_"
"""Stands before the keys of `fsdp_config` in older recipes."""
FSDP_UNPREFIXED: Final = frozenset({"fsdp_version"})
"""Keys of `fsdp_config` that really begin so."""


def fsdp_name(key: str) -> str:
    """Today's name of a key of `fsdp_config`."""
    if key == "version":
        return "fsdp_version"
    return key if key in FSDP_UNPREFIXED else key.removeprefix(FSDP_PREFIX)


DATASET_RENAMED: Final[Mapping[str, tuple[str, str]]] = {
    "message_field_role": ("message_property_mappings", "role"),
    "message_field_content": ("message_property_mappings", "content"),
}
"""Older key of a data set -> key and sub-key of today."""

EXCLUSIVE: Final = (
    ("save_steps", "saves_per_epoch"),
    ("eval_steps", "evals_per_epoch"),
    ("warmup_steps", "warmup_ratio"),
)
"""Pairs of keys that decide the same thing."""

NOT_SET: Final[Mapping[str, tuple[tuple[int, ...], str]]] = {
    "eval_steps": ((0,), "`evals_per_epoch` decides"),
    "logging_steps": ((0,), "every step"),
    "max_steps": ((0, -1), "no limit"),
    "save_steps": ((0,), "`saves_per_epoch` decides"),
    "saves_per_epoch": ((0,), "once per epoch, unless `save_steps` is set"),
}
"""Key -> numbers by which Axolotl's recipes say that it is not set, and what that means."""

KEEPS_EMPTY: Final = frozenset(
    """
    chosen_format completion_format format no_input_format prompt_format rejected_format step_separator
    system_format
    """.split()
)
"""Keys within blocks of which an empty text is a value: what is written there is nothing."""
HANDED_ON: Final = frozenset(
    """
    chat_template_kwargs comet_experiment_config deepspeed flex_attn_compile_kwargs generation_kwargs
    lr_scheduler_kwargs model_config model_kwargs model_quantization_config_kwargs nemo_gym_datasets optim_args
    overrides_of_model_config overrides_of_model_kwargs processor_kwargs recipe torch_compile_options
    """.split()
)
"""Blocks that others read, as they are written: an empty text is a value there."""

IGNORED: Final[Mapping[str, str]] = {
    "adam_eps": "Axolotl ignores it too; the key is `adam_epsilon`",
    "base_model_ignore_patterns": "Axolotl ignores it too",
    "debug": "Axolotl ignores it too",
    "eta_min": "Axolotl ignores it too; the key is `cosine_min_lr_ratio`",
    "full_finetune": "Axolotl ignores it too; leave `adapter` out",
    "gptq_disable_exllama": "Axolotl ignores it too",
    "gptq_groupsize": "Axolotl ignores it too",
    "gptq_model_v1": "Axolotl ignores it too",
    "sample_packing_seq_len_multiplier": "Axolotl ignores it too",
    "test_value": "Axolotl ignores it too",
    "torch_dtype": "Axolotl ignores it too; the key is `bf16`",
}
"""Key -> what to say about it: a warning."""

REMOVED: Final[Mapping[str, str]] = {
    "dpo_generate_during_eval": "TRL has dropped it; take it out",
    "dpo_norm_loss": "TRL has dropped it; write `dpo_loss_type`",
    "dpo_use_logits_to_keep": "TRL has dropped it; take it out",
    "flash_attn_rms_norm": "write `liger_rms_norm` with the liger plugin",
    "max_packed_sequence_len": "write `sample_packing: true` and `sequence_len`",
    "rope_scaling": "write it below `model_config`",
    "rpo_alpha": "TRL has dropped it; write `dpo_loss_type: [sigmoid, sft]` and `dpo_loss_weights`",
    "s2_attention": "write `context_parallel_size` for long sequences",
    "unsloth_cross_entropy_loss": "write `cut_cross_entropy` with its plugin",
    "unsloth_lora_mlp": "write `lora_mlp_kernel`",
    "unsloth_lora_o": "write `lora_o_kernel`",
    "unsloth_lora_qkv": "write `lora_qkv_kernel`",
    "unsloth_rms_norm": "write `liger_rms_norm` with the liger plugin",
    "unsloth_rope": "write `liger_rope` with the liger plugin",
}
"""Key that was taken away -> what to write instead: an error, as in Axolotl."""

ELSEWHERE: Final[Mapping[str, str]] = {
    "cutoff_len": "sequence_len",
    "epochs": "num_epochs",
    "finetuning_type": "adapter",
    "logging_dir": "output_dir",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_length": "sequence_len",
    "max_seq_len": "sequence_len",
    "max_seq_length": "sequence_len",
    "max_train_epochs": "num_epochs",
    "model": "base_model",
    "model_id": "base_model",
    "model_name": "base_model",
    "model_name_or_path": "base_model",
    "model_path": "base_model",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "packing": "sample_packing",
    "per_device_eval_batch_size": "eval_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "target_modules": "lora_target_modules",
    "template": "chat_template",
    "train_file": "datasets",
    "train_on_prompt": "train_on_inputs",
}
"""Name in Transformers, TRL, PEFT or LLaMA-Factory -> our key: what somebody meant who comes from there."""

_PROMPTS: Final = (
    "alpaca concisechoice explainchoice gpteacher jeopardy oasst reflection summarizetldr".split()
)
_STYLES: Final = "chat chatml instruct phi".split()
DATASET_TYPES: Final = frozenset(
    f"{name}:{style}" for name in _PROMPTS for style in _STYLES
) | frozenset(
    """
    alpaca alpaca_chat.load_camel_ai
    alpaca_chat.load_concise alpaca_chat.load_no_prompt alpaca_chat.load_qa
    alpaca_instruct.load_no_prompt alpaca_w_system.load_chat alpaca_w_system.load_instruct
    alpaca_w_system.load_open_orca alpaca_w_system.load_open_orca_chatml
    alpaca_chat alpaca_instruct alpaca_w_system
    bradley_terry.chat_template bradley_terry.llama3 chat_template chat_template.argilla
    chat_template.argilla_chat chat_template.default chatml chatml.argilla chatml.argilla_chat
    chatml.default chatml.icr chatml.intel chatml.prompt_pairs chatml.ultra completion concisechoice
    context_qa context_qa.load_404 context_qa.load_v2 creative_acr.load_answer
    creative_acr.load_critique creative_acr.load_revise explainchoice gpteacher
    input_output jeopardy llama2_chat llama3 llama3.argilla llama3.argilla_chat
    llama3.default llama3.icr llama3.intel llama3.prompt_pairs llama3.ultra messages messages.chat
    metharme oasst orcamini passthrough passthrough.default pretrain pygmalion reflection
    stepwise_supervised summarizetldr user_defined user_defined.default zephyr.nectar _synthetic
    """.split()
)
"""Names for `type` of a data set that Axolotl knows. A name with a dot may also be a function of the user's."""
