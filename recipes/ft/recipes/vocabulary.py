"""Words of Axolotl's vocabulary that are not keys of ours: legacy, renamed, ignored, not yet supported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

RENAMED: Final[Mapping[str, str]] = {
    "sequence_parallel_degree": "context_parallel_size",
    "model_revision": "revision_of_model",
}
"""Older spelling -> current spelling; the value stays."""

ATTENTION_FLAGS: Final[Mapping[str, str]] = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Older flag -> value of `attn_implementation` when the flag is true."""

DATASET_RENAMED: Final[Mapping[str, tuple[str, str]]] = {
    "message_field_role": ("message_property_mappings", "role"),
    "message_field_content": ("message_property_mappings", "content"),
}
"""Older key of a data set -> key and sub-key of today."""

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
    "strict": "unknown keys are always errors here",
    "test_value": "Axolotl ignores it too",
    "torch_dtype": "Axolotl ignores it too; the key is `bf16`",
}
"""Key -> what to say about it: a warning."""

NEUTRAL: Final[Mapping[str, object]] = {
    "model_type": "AutoModelForCausalLM",
    "tokenizer_type": "AutoTokenizer",
    "merge_method": "memory_efficient",
    "save_safetensors": True,
    "tokenizer_use_fast": True,
    "remove_unused_columns": True,
    "ddp_find_unused_parameters": False,
}
"""Key that is not ours yet -> the one value that changes nothing."""

NOT_OFF: Final[frozenset[str]] = frozenset(
    {
        "dataloader_pin_memory", "ddp_broadcast_buffers", "eval_strategy", "peft_autocast_adapter_dtype",
        "peft_init_lora_weights", "save_safetensors", "save_strategy", "tokenizer_legacy", "tokenizer_use_fast",
    }
)  # fmt: skip
"""Keys that are not ours yet for which `false` is a wish, not "off": YAML reads `save_strategy: no` as false."""

PLANNED_VALUES: Final[Mapping[str, frozenset[str]]] = {
    "adapter": frozenset({"qlora"}),
    "attn_implementation": frozenset({"xformers", "flex_attention", "flash_attention_3", "sage_attention"}),
    "optimizer": frozenset(
        {
            "adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit", "adamw_torch_4bit", "paged_adamw_8bit",
            "paged_adamw_32bit", "adafactor", "lion_8bit", "muon", "adopt_adamw", "came_pytorch",
        }
    ),
    "lr_scheduler": frozenset({"one_cycle", "rex", "polynomial", "cosine_with_restarts", "inverse_sqrt"}),
    "backend": frozenset({"modal", "sky"}),
}  # fmt: skip
"""Value of a key of ours that is valid vocabulary, but does not run yet."""

PLANNED: Final[frozenset[str]] = frozenset(
    """
    accelerator_config activation_offloading adam_beta3 adam_epsilon2 added_tokens_overrides
    auto_find_batch_size auto_resume_from_checkpoints batch_flattening bench_dataset bfloat16
    bnb_config_kwargs center_rewards_coefficient chat_template_kwargs chunked_cross_entropy
    chunked_cross_entropy_num_chunks cls_model_config comet_api_key comet_experiment_key
    comet_project_name comet_workspace cosine_constant_lr_ratio cosine_min_lr_ratio cpo_alpha
    curriculum_sampling cut_cross_entropy dataloader_drop_last dataloader_num_workers
    dataloader_pin_memory dataloader_prefetch_factor dataset_exact_deduplication
    dataset_keep_in_memory dataset_num_proc dataset_prepared_path dataset_processes
    dataset_shard_idx dataset_shard_num ddp ddp_broadcast_buffers ddp_bucket_cap_mb
    ddp_find_unused_parameters deepcompile deepspeed default_system_message
    device_map do_bench_eval do_causal_lm_eval dpo_label_smoothing dpo_loss_type
    dpo_loss_weights dpo_padding_free dpo_use_liger_kernel dpo_use_weighting
    dsv4_fp4_grouped_mode dynamic_checkpoint eaft_alpha eaft_k early_stopping_patience ebft
    embedding_lr embedding_lr_scale eot_tokens eval_causal_lm_metrics eval_max_new_tokens
    eval_sample_packing eval_sequence_len eval_strategy eval_table_size
    experimental_skip_move_to_device expert_parallel_num_nvl_bytes expert_parallel_size
    expert_parallel_token_capacity experts_implementation fix_untrained_tokens
    flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm flash_optimum
    flex_attention flex_attn_compile_kwargs float16 fp16 fp32_norm_classes fp32_norms fp8
    fp8_enable_fsdp_float8_all_gather freeze_mm_modules fsdp fsdp_config fsdp_version
    fused_attn_kernel gc_collect_steps gemma4_hybrid_attn_impl generate_samples
    generation_max_new_tokens generation_prompt_ratio generation_temperature gptq
    gpu_memory_limit greater_is_better group_by_length heads_k_stride hf_use_auth_token
    hub_model_id hub_revision hub_strategy image_resize_algorithm image_size include_tkps
    include_tokens_per_second jagged_restart_anneal_steps jagged_restart_steps
    jagged_restart_warmup_steps kto_desirable_weight kto_undesirable_weight large_head_attention
    layer_offloading liger_fused_linear_cross_entropy liger_glu_activation liger_layer_norm
    liger_rms_norm liger_rms_norm_gated liger_rope lisa_layers_attribute lisa_n_layers
    lisa_step_interval llama4_linearized_experts llmcompressor load_best_model_at_end
    load_in_4bit load_in_8bit local_rank lora_alpha_pattern lora_embedding_kernel
    lora_fan_in_fan_out lora_mlp_kernel lora_model_dir lora_o_kernel lora_on_cpu lora_qkv_kernel
    lora_rank_pattern lora_target_parameters loraplus_lr_embedding loraplus_lr_ratio
    loss_watchdog_patience loss_watchdog_threshold low_cpu_mem_usage lr_groups
    lr_quadratic_warmup lr_scheduler_kwargs max_memory max_packed_sequence_len max_prompt_len
    merge_method metric_for_best_model mlflow_experiment_name mlflow_run_name
    mlflow_tracking_uri model_config model_kwargs model_quantization_config
    model_quantization_config_kwargs model_type multipack_real_batches neftune_noise_alpha
    noisy_embedding_alpha num_dataset_shards_to_save num_generation_samples num_labels
    nvfp4_merge_aware optim_args optim_target_modules orpo_alpha otel_metrics_host
    otel_metrics_port pad_to_multiple_of pad_to_sequence_len peft peft_autocast_adapter_dtype
    peft_ensure_weight_tying peft_init_lora_weights peft_layer_replication peft_layers_pattern
    peft_layers_to_transform peft_trainable_token_indices peft_use_dora plugins
    precompute_ref_log_probs pretrain_multipack_attn pretraining_dataset
    pretraining_sample_concatenation process_reward_model processor_kwargs processor_type
    profiler_steps profiler_steps_start push_dataset_to_hub qat qlora_sharded_model_loading
    quantization quantize_moe_experts ray_num_workers reinit_weights relora relora_cpu_offload
    relora_prune_method relora_prune_ratio remove_unused_columns resize_token_embeddings_to_32x
    resume_from_checkpoint reward_model ring_attn_func rl rl_beta role_boundaries sage_attention
    sample_packing sample_packing_bin_size sample_packing_eff_est sample_packing_group_size
    sample_packing_mp_start_method sample_packing_sequentially save_first_step save_only_model
    save_safetensors save_strategy scaling_softmax sdpa_varlen selective_checkpointing
    shuffle_before_merging_datasets simpo_gamma skip_prepare_dataset streaming
    streaming_multipack_buffer_size swanlab_completion_log_interval
    swanlab_completion_max_buffer swanlab_description swanlab_experiment_name
    swanlab_log_completions swanlab_log_model swanlab_mode swanlab_project swanlab_workspace
    test_datasets tiled_mlp tiled_mlp_num_shards tokenizer_legacy tokenizer_type
    tokenizer_use_fast tokenizer_use_mistral_common tokens torch_compile torch_compile_backend
    torch_compile_mode torch_compile_options torch_empty_cache_steps torchdistx_path
    total_num_tokens trackio_project_name trackio_run_name trackio_space_id trainer_cls trl
    unfrozen_parameters use_comet use_dsv4_kernels use_eaft use_glm_dsa_kernels use_kernels
    use_mlflow use_onebitllms use_otel_metrics use_pose use_ray use_scattermoe use_sonicmoe
    use_swanlab use_tensorboard use_wandb vllm wandb_entity wandb_log_model wandb_name
    wandb_project wandb_run_id wandb_watch xformers_attention
    """.split()
)
"""Keys of Axolotl that do not run here yet. `null`, and `false` but for NOT_OFF, mean "off" and are fine."""
