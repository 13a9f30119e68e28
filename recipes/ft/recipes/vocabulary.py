"""Words of Axolotl's vocabulary that are not keys of ours: other names, older spellings, removed, ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from ft.recipes.errors import KeyPath

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
FSDP_KEYS: Final = frozenset(
    """
    activation_checkpointing auto_wrap_policy backward_prefetch cpu_offload_pin_memory
    cpu_ram_efficient_loading final_state_dict_type forward_prefetch fsdp_version limit_all_gathers
    min_num_params mixed_precision_policy offload_params reshard_after_forward sharding_strategy
    state_dict_type sync_module_states transformer_layer_cls_to_wrap use_orig_params
    """.split()
)
"""Today's keys of `fsdp_config`: what an older spelling can stand for."""


def fsdp_name(key: str) -> str:
    """Today's name of a key of `fsdp_config`; of a word that stands for none, the word itself."""
    if key == "version":
        return "fsdp_version"
    name = key.removeprefix(FSDP_PREFIX)
    return name if name in FSDP_KEYS - FSDP_UNPREFIXED else key


def older_below(path: KeyPath, known: Collection[str]) -> list[str]:
    """Older spellings that may stand at `path` within a block, which has the keys `known` today."""
    if path[:-1] == ("fsdp_config",):
        return [*(f"{FSDP_PREFIX}{key}" for key in known if key not in FSDP_UNPREFIXED), "version"]
    return [old for old, (new, _) in DATASET_RENAMED.items() if len(path) > 1 and new in known]


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
    chat_template_kwargs comet_experiment_config deepspeed env flex_attn_compile_kwargs generation_kwargs loss_fn_config
    lr_scheduler_kwargs modal model_config model_kwargs model_quantization_config_kwargs nemo_gym_datasets optim_args
    overrides_of_model_config overrides_of_model_kwargs processor_kwargs recipe sky torch_compile_options
    """.split()
)
"""Blocks that others read, as they are written: an empty text is a value there."""

IGNORED: Final[Mapping[str, str]] = {
    "adam_eps": "Axolotl ignores it too; the key is `adam_epsilon`",
    "attention": "Axolotl ignores it too; the key is `attn_implementation`",
    "base_model_ignore_patterns": "Axolotl ignores it too",
    "bos_token_id": "Axolotl ignores it too; the key is `special_tokens`, with `bos_token` below it",
    "data_seed": "Axolotl ignores it too; the key is `seed`",
    "debug": "Axolotl ignores it too",
    "eos_token_id": "Axolotl ignores it too; the key is `special_tokens`, with `eos_token` below it",
    "eta_min": "Axolotl ignores it too; the key is `cosine_min_lr_ratio`",
    "eval_table_max_new_tokens": "Axolotl ignores it too; the key is `eval_max_new_tokens`",
    "flash_attn_fuse_qkv": "Axolotl ignores it too",
    "full_finetune": "Axolotl ignores it too; leave `adapter` out",
    "gptq_disable_exllama": "Axolotl ignores it too",
    "gptq_groupsize": "Axolotl ignores it too",
    "gptq_model_v1": "Axolotl ignores it too",
    "is_multimodal": "Axolotl ignores it too; what is read beside text follows from `processor_type`",
    "moe_kernels": "Axolotl ignores it too; the keys are `use_scattermoe` and `use_sonicmoe`, of a plugin",
    "pad_token_id": "Axolotl ignores it too; the key is `special_tokens`, with `pad_token` below it",
    "prompt_format": "Axolotl ignores it too; the key is `type` of a data set",
    "relora_steps": "Axolotl ignores it too; the keys are `relora: true` and `jagged_restart_steps`",
    "relora_warmup_steps": "Axolotl ignores it too; the key is `jagged_restart_warmup_steps`",
    "sample_packing_seq_len_multiplier": "Axolotl ignores it too",
    "tensor_parallel": "Axolotl ignores it too; the key is `tensor_parallel_size`",
    "test_value": "Axolotl ignores it too",
    "torch_dtype": "Axolotl ignores it too; the key is `bf16`",
    "use_auth_token": "Axolotl ignores it too; the key is `hf_use_auth_token`",
    "val_dataset": "Axolotl ignores it too; the key is `test_datasets`",
}
"""Key -> what to say about it: a warning. What is only misspelt, so that something else would be trained than is
written, is not here but an error: `load_4bit`, `max_seq_length`."""

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
    "4bit": "load_in_4bit",
    "8bit": "load_in_8bit",
    "ac": "gradient_checkpointing",
    "accumulation_steps": "gradient_accumulation_steps",
    "activation_checkpointing": "gradient_checkpointing",
    "additional_target": "lora_modules_to_save",
    "alpha": "lora_alpha",
    "attn": "attn_implementation",
    "base_model_name_or_path": "base_model",
    "batch": "micro_batch_size",
    "beta": "rl_beta",
    "betas": "adam_beta1 adam_beta2",
    "bits": "load_in_4bit load_in_8bit",
    "block_size": "sequence_len",
    "bos": "special_tokens.bos_token",
    "bos_token": "special_tokens.bos_token",
    "bs": "micro_batch_size",
    "checkpoint_dir": "output_dir",
    "clip_grad_norm": "max_grad_norm",
    "compile": "torch_compile",
    "completion_only_loss": "train_on_inputs",
    "context_length": "sequence_len",
    "cp_size": "context_parallel_size",
    "cutoff_len": "sequence_len",
    "data": "datasets",
    "data_path": "datasets",
    "dataset_dir": "datasets",
    "dataset_name": "datasets",
    "dataset_text_field": "datasets.field",
    "deepspeed_config": "deepspeed",
    "deepspeed_config_file": "deepspeed",
    "device_batch_size": "micro_batch_size",
    "dpo_loss": "dpo_loss_type",
    "dropout": "lora_dropout",
    "ds_config": "deepspeed",
    "dtype": "bf16",
    "early_stopping": "early_stopping_patience",
    "early_stopping_steps": "early_stopping_patience",
    "enable_liger_kernel": "plugins",
    "eos": "special_tokens.eos_token",
    "eos_token": "special_tokens.eos_token",
    "epoch": "num_epochs",
    "epochs": "num_epochs",
    "eval_data": "test_datasets",
    "eval_dataset": "test_datasets",
    "eval_datasets": "test_datasets",
    "eval_every": "eval_steps",
    "eval_max_length": "eval_sequence_len",
    "eval_set": "val_set_size",
    "eval_split": "val_set_size",
    "evaluation_dataset": "test_datasets",
    "experiment_name": "mlflow_experiment_name",
    "finetuning_type": "adapter",
    "flash": "attn_implementation",
    "flash_attn": "attn_implementation",
    "flash_attn_2": "attn_implementation",
    "from_checkpoint": "resume_from_checkpoint",
    "ga": "gradient_accumulation_steps",
    "gas": "gradient_accumulation_steps",
    "global_batch_size": "micro_batch_size gradient_accumulation_steps",
    "gpus": "cloud.gpu",
    "grad_acc": "gradient_accumulation_steps",
    "grad_accum": "gradient_accumulation_steps",
    "grad_checkpoint": "gradient_checkpointing",
    "grad_ckpt": "gradient_checkpointing",
    "grad_clip": "max_grad_norm",
    "gradient_checkpoint": "gradient_checkpointing",
    "gradient_clip_val": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "group_by_len": "group_by_length",
    "hub_id": "hub_model_id",
    "hub_repo": "hub_model_id",
    "hub_repo_id": "hub_model_id",
    "is_4bit": "load_in_4bit",
    "iterations": "max_steps",
    "learning_rate_scheduler": "lr_scheduler",
    "load_4bit": "load_in_4bit",
    "load_8bit": "load_in_8bit",
    "log_every": "logging_steps",
    "log_interval": "logging_steps",
    "log_steps": "logging_steps",
    "logging_dir": "output_dir",
    "lora": "adapter",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lora_targets": "lora_target_modules",
    "loss_watchdog": "loss_watchdog_threshold",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "lr_warmup_steps": "warmup_steps",
    "mask_inputs": "train_on_inputs",
    "mask_prompt": "train_on_inputs",
    "max_completion_length": "trl.max_completion_length",
    "max_epochs": "num_epochs",
    "max_iters": "max_steps",
    "max_length": "sequence_len",
    "max_samples": "datasets.split",
    "max_seq_len": "sequence_len",
    "max_seq_length": "sequence_len",
    "max_sequence_length": "sequence_len",
    "max_train_epochs": "num_epochs",
    "max_train_steps": "max_steps",
    "metrics": "use_tensorboard wandb_project use_mlflow",
    "micro_bs": "micro_batch_size",
    "mixed_precision": "bf16 fp16",
    "model": "base_model",
    "model_dir": "base_model",
    "model_id": "base_model",
    "model_max_length": "sequence_len",
    "model_name": "base_model",
    "model_name_or_path": "base_model",
    "model_path": "base_model",
    "modules_to_save": "lora_modules_to_save",
    "n_epochs": "num_epochs",
    "neat_packing": "sample_packing",
    "neftune": "neftune_noise_alpha",
    "neftune_alpha": "neftune_noise_alpha",
    "noise_alpha": "neftune_noise_alpha",
    "num_gpus": "cloud.gpu",
    "num_nodes": "cloud.nodes",
    "num_proc": "dataset_num_proc",
    "num_train_epochs": "num_epochs",
    "num_workers": "dataloader_num_workers",
    "optim": "optimizer",
    "optimizer_type": "optimizer",
    "out_dir": "output_dir",
    "packed": "sample_packing",
    "packing": "sample_packing",
    "pad_token": "special_tokens.pad_token",
    "padding": "pad_to_sequence_len",
    "patience": "early_stopping_patience",
    "peft_target_modules": "lora_target_modules",
    "peft_type": "adapter",
    "per_device_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "per_gpu_train_batch_size": "micro_batch_size",
    "precision": "bf16 fp16",
    "pref_beta": "rl_beta",
    "pref_loss": "rl",
    "preprocessing_num_workers": "dataset_num_proc",
    "project": "wandb_project",
    "project_name": "wandb_project",
    "push_to_hub": "hub_model_id",
    "push_to_hub_model_id": "hub_model_id",
    "quantization_bit": "load_in_4bit load_in_8bit",
    "r": "lora_r",
    "random_seed": "seed",
    "rank": "lora_r",
    "report_to": "wandb_project use_tensorboard use_mlflow use_comet",
    "response_template": "train_on_inputs",
    "resume": "resume_from_checkpoint auto_resume_from_checkpoints",
    "resume_from": "resume_from_checkpoint",
    "rslora": "peft_use_rslora",
    "run_name": "wandb_name",
    "save_dir": "output_dir",
    "save_every": "save_steps",
    "save_interval": "save_steps",
    "scheduler": "lr_scheduler",
    "seq_len": "sequence_len",
    "seq_length": "sequence_len",
    "sequence_length": "sequence_len",
    "sft_packing": "sample_packing",
    "shuffle": "shuffle_merged_datasets",
    "stage": "rl",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "template": "chat_template",
    "test_dataset": "test_datasets",
    "test_size": "val_set_size",
    "tokenizer": "tokenizer_config",
    "tokenizer_name": "tokenizer_config",
    "tokenizer_name_or_path": "tokenizer_config",
    "tokenizer_path": "tokenizer_config",
    "total_steps": "max_steps",
    "tp_size": "tensor_parallel_size",
    "train_batch_size": "micro_batch_size",
    "train_data": "datasets",
    "train_dataset": "datasets",
    "train_datasets": "datasets",
    "train_file": "datasets",
    "train_files": "datasets",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "train_on_completions": "train_on_inputs",
    "train_on_prompt": "train_on_inputs",
    "train_set": "datasets",
    "train_split": "datasets.split",
    "train_steps": "max_steps",
    "trl_config": "trl",
    "trust_remote": "trust_remote_code",
    "unk_token": "special_tokens.unk_token",
    "use_4bit": "load_in_4bit",
    "use_8bit": "load_in_8bit",
    "use_bf16": "bf16",
    "use_deepspeed": "deepspeed",
    "use_dora": "peft_use_dora",
    "use_flash_attention": "attn_implementation",
    "use_flash_attention_2": "attn_implementation",
    "use_flash_attn": "attn_implementation",
    "use_flash_attn_2": "attn_implementation",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "use_liger": "plugins",
    "use_liger_kernel": "plugins",
    "use_lora": "adapter",
    "use_peft": "adapter",
    "use_qlora": "adapter",
    "use_rslora": "peft_use_rslora",
    "val_batch_size": "eval_batch_size",
    "val_data": "test_datasets",
    "val_datasets": "test_datasets",
    "val_file": "test_datasets",
    "val_set": "val_set_size",
    "val_size": "val_set_size",
    "valid_dataset": "test_datasets",
    "validation_dataset": "test_datasets",
    "validation_file": "test_datasets",
    "validation_split": "val_set_size",
    "validation_split_percentage": "val_set_size",
    "wandb": "wandb_project",
    "wandb_run_name": "wandb_name",
    "warm_up_steps": "warmup_steps",
    "warmup": "warmup_steps warmup_ratio",
    "wd": "weight_decay",
}
"""Name in Transformers, TRL, PEFT, LLaMA-Factory and others, or a short form -> our key, or several of which one is
meant: what somebody wanted who comes from there."""

ELSEWHERE_BELOW: Final[Mapping[str, Mapping[str, str]]] = {
    "cloud": {
        "accelerators": "gpu",
        "apt_install": "image.apt",
        "apt_packages": "image.apt",
        "bucket": "store_bucket",
        "budget": "max_cost",
        "cache": "cache_volume",
        "cores": "cpu",
        "cost": "max_cost",
        "cpus": "cpu",
        "disk_size": "disk",
        "dockerfile_commands": "image.commands",
        "environment": "env",
        "ephemeral_disk": "disk",
        "file_mounts": "volumes",
        "gpu_count": "gpu",
        "gpu_type": "gpu",
        "gpus": "gpu",
        "instances": "nodes",
        "machines": "nodes",
        "max_retries": "retries",
        "max_restarts": "retries",
        "memory_gb": "memory",
        "memory_gib": "memory",
        "node_count": "nodes",
        "num_gpus": "gpu",
        "num_nodes": "nodes",
        "pip_install": "image.pip",
        "pip_packages": "image.pip",
        "provider": "backend",
        "ram": "memory",
        "regions": "region",
        "time_limit": "timeout",
        "volume": "store_volume",
        "workdir": "include",
    },
    "datasets": {
        "column": "field",
        "config": "name",
        "dataset": "path",
        "dataset_name": "path",
        "dataset_path": "path",
        "file": "path",
        "files": "data_files",
        "file_name": "path",
        "format": "type",
        "formatting": "type",
        "hf_hub_url": "path",
        "messages": "field_messages",
        "mapping": "message_property_mappings",
        "repo": "path",
        "subset": "name",
        "template": "chat_template",
        "text_column": "field",
        "text_field": "field",
        "train_on_split": "split",
        "url": "path",
    },
    "special_tokens": {
        "additional": "additional_special_tokens",
        "bos": "bos_token",
        "eos": "eos_token",
        "pad": "pad_token",
        "unk": "unk_token",
    },
}
"""Block -> words below it that are no keys -> what is meant; `test_datasets` is like `datasets`."""

VALUES_ELSEWHERE: Final[Mapping[str, Mapping[str, str]]] = {
    "attn_implementation": {
        "fa2": "flash_attention_2",
        "fa3": "flash_attention_3",
        "flash": "flash_attention_2",
        "flash_attention": "flash_attention_2",
        "flash_attn": "flash_attention_2",
        "flash_attn_2": "flash_attention_2",
        "flex": "flex_attention",
        "sdp": "sdpa",
    },
    "chat_template": {
        "default": "tokenizer_default",
        "qwen": "qwen_25",
        "qwen2": "qwen_25",
        "qwen2_5": "qwen_25",
        "qwen25": "qwen_25",
    },
    "lr_scheduler": {
        "constant_warmup": "constant_with_warmup",
        "cosine_annealing": "cosine",
        "cosine_with_warmup": "cosine",
        "onecycle": "one_cycle",
        "wsd": "warmup_stable_decay",
    },
    "optimizer": {
        "adam": "adamw_torch_fused",
        "adam_w": "adamw_torch_fused",
        "adamw": "adamw_torch_fused",
        "adamw_apex_fused": "adamw_torch_fused",
        "adamw_bnb": "adamw_bnb_8bit",
        "adamw_fused": "adamw_torch_fused",
        "adamw_hf": "adamw_torch",
        "came": "came_pytorch",
        "fused_adamw": "adamw_torch_fused",
        "lion": "lion_32bit",
        "paged_adamw": "paged_adamw_32bit",
        "schedule_free": "schedule_free_adamw",
    },
}
"""Key -> values that others have, or had -> ours."""

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
