"""What Axolotl's own validation refuses, warns of and fills in, line by line, and what becomes of each here.

A line is answered by a rule, when the recipe is read, by a value that is filled in as Axolotl does, or by a
reason why not. The first three are shown on a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from ft.recipes.catalog import GPUS
from ft.recipes.errors import Severity
from ft.recipes.facts import Facts, Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.rules import RULES, check

HEAD: dict[str, Any] = {
    "base_model": "some/model",
    "datasets": [{"path": "some/data", "type": "chat_template"}],
    "learning_rate": 2e-4,
}
LORA = "adapter: lora\nlora_r: 8\nlora_alpha: 8\n"
QLORA = "adapter: qlora\nlora_r: 8\nlora_alpha: 8\nload_in_4bit: true\n"
FSDP1 = "fsdp_version: 1\nfsdp_config: {offload_params: true}\n"
FSDP2 = "fsdp_version: 2\nfsdp_config: {offload_params: true}\n"
LIGER = "plugins: [axolotl.integrations.liger.LigerPlugin]\n"
KERNELS = "plugins: [axolotl.integrations.kernels.KernelsPlugin]\n"
CCE = "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n"
GRPO = "rl: grpo\ntrl: {reward_funcs: [a.b], num_generations: 4, "
EXPERTS = "plugins: [axolotl.integrations.expert_parallel.ExpertParallelPlugin]\n"


@dataclass(frozen=True)
class Says:
    """A rule, and a recipe to which it has something to say."""

    rule: str
    recipe: str
    gpu: str = ""
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reads:
    """Said when the recipe is read: by types, bounds and spellings."""

    recipe: str
    severity: Severity = Severity.ERROR


@dataclass(frozen=True)
class Fills:
    """A value that follows from others."""

    recipe: str
    key: str
    value: Any


@dataclass(frozen=True)
class Left:
    """Left out on purpose."""

    reason: str


TORCH = Left("ft pins torch, far above that version")
LIBRARY = Left("of the machine, not of the recipe: preflight and the import itself say it there")
OF_THE_MACHINE = Left(
    "Axolotl writes what its own machine has; a recipe says the same on every machine"
)
NPU = Left("no NPU is in the catalog of machines")

LINES: dict[str, Says | Reads | Fills | Left] = {
    # --- data sets
    "seed-null": Left("an unset seed is 42, as Axolotl makes it"),
    "type-sharegpt": Reads("datasets: [{path: a/b, type: sharegpt}]"),
    "unsloth-flags": Reads("unsloth_rope: true"),
    "no-datasets": Says("R001", "datasets:"),
    "pretraining-without-streaming": Says("R035", "datasets:\npretraining_dataset: a/b\nmax_steps: 9"),
    "push-without-token": Says("R030", "push_dataset_to_hub: a/b"),
    "test-datasets-and-val-set-size": Says("R031", "val_set_size: 0.1\ntest_datasets: [{path: a/b, type: alpaca}]"),
    "bench-eval-empty-test-set": Left("a stand-in of Axolotl's trainer, which evaluates nothing without a data set"),
    "eval-table-packed": Says("R040", "sample_packing: true\neval_table_size: 3\nval_set_size: 0.1"),
    "eval-sample-packing": Fills("sample_packing: true", "eval_sample_packing", True),
    "remove-unused-columns": Fills("skip_prepare_dataset: true", "remove_unused_columns", False),
    "no-data-set-in-list": Reads("datasets: []"),
    "chat-template-of-a-data-set": Fills("", "datasets.0.chat_template", "tokenizer_default"),
    "jinja-without-template": Says("R007", "chat_template: jinja"),
    "jinja-of-a-data-set": Says("R026", "datasets: [{path: a/b, type: chat_template, chat_template: jinja}]"),
    "template-without-jinja": Fills("chat_template_jinja: '{{ messages }}'", "chat_template", "jinja"),
    "message-field-and-mapping": Reads(
        "datasets: [{path: a/b, type: chat_template, message_field_role: from, "
        "message_property_mappings: {role: who}}]"
    ),
    "dedup-streaming": Says("R033", "streaming: true\nmax_steps: 9\ndataset_exact_deduplication: true"),
    "dedup-raw-rows": Says("R042", "skip_prepare_dataset: true\ndataset_exact_deduplication: true"),
    # --- attention
    "attention-flags": Fills("flash_attention: true", "attn_implementation", "flash_attention_2"),
    "attention-flags-old": Reads("flash_attention: true", Severity.WARNING),
    "attention-twice": Reads("flash_attention: true\nattn_implementation: eager"),
    "attention-short-name": Reads("attn_implementation: flash"),
    "attention-unknown-name": Reads("attn_implementation: fast"),
    "gemma4-hybrid": Says("R051", "gemma4_hybrid_attn_impl: true\nattn_implementation: sdpa"),
    "gemma4-hybrid-fills": Fills("gemma4_hybrid_attn_impl: true", "attn_implementation", "flash_attention_2"),
    "large-head-attention": Reads("large_head_attention: eager"),
    "packing-without-borders": Left("rows are apart with every kernel that runs; the model is asked"),
    "scaling-softmax": Says("R051", "scaling_softmax: true"),
    "sdpa-varlen-unpacked": Says("R081", "sdpa_varlen: true\nattn_implementation: sdpa"),
    "sdpa-varlen-torch": TORCH,
    "sage-lengths": Says("R178", LORA + "attn_implementation: sage"),
    "sage-all-weights": Says("R055", "attn_implementation: sage"),
    "sage-gpu": Says("R053", "attn_implementation: sage", gpu="T4"),
    "fp8-attention-gpu": Says("R053", "attn_implementation: fp8", gpu="A100-80GB"),
    "fp8-attention-torch": TORCH,
    "flex-torch": TORCH,
    "packing-sdpa-bf16": Left("a loss of 0 with torch's kernels of 2024; the borders of packed rows are tested here"),
    "batch-flattening-kernel": Says("R052", "batch_flattening: true\nattn_implementation: sdpa"),
    "batch-flattening-packed": Says(
        "R052", "batch_flattening: true\nattn_implementation: flash_attention_2\nsample_packing: true"
    ),
    "batch-flattening-one-row": Says(
        "R052", "batch_flattening: true\nattn_implementation: flash_attention_2\nmicro_batch_size: 1"
    ),
    # --- training
    "two-of-three-sizes": Left("each size has a default here: 1"),
    "accumulation-and-batch-size": Reads("batch_size: 8\ngradient_accumulation_steps: 4"),
    "batch-size": Fills("batch_size: 8\nmicro_batch_size: 2", "gradient_accumulation_steps", 4),
    "pad-packed": Fills("sample_packing: true", "pad_to_sequence_len", True),
    "pad-packed-not": Says("R045", "sample_packing: true\npad_to_sequence_len: false"),
    "pad-reward-model": Fills("reward_model: true", "pad_to_sequence_len", True),
    "reward-model-labels": Fills("reward_model: true", "num_labels", 1),
    "reward-model-class": Fills("reward_model: true", "type_of_model", "AutoModelForSequenceClassification"),
    "process-reward-model-labels": Fills("process_reward_model: true", "num_labels", 2),
    "process-reward-model-class": Fills(
        "process_reward_model: true", "type_of_model", "AutoModelForTokenClassification"
    ),
    "eval-batch-size": Says("R046", "eval_batch_size: 8\nmicro_batch_size: 2"),
    "warmup-twice": Says("R003", "warmup_steps: 3\nwarmup_ratio: 0.1"),
    "save-strategy-and-steps": Says("R036", "save_strategy: epoch\nsave_steps: 5"),
    "saves-twice": Says("R003", "saves_per_epoch: 2\nsave_steps: 5"),
    "best-without-measure": Says("R039", "save_strategy: best\nval_set_size: 0.1"),
    "hub-without-saves": Says("R049", "hub_model_id: a/b\nsave_strategy: 'no'"),
    "eval-strategy-and-steps": Says("R036", "eval_strategy: epoch\neval_steps: 5\nval_set_size: 0.1"),
    "eval-steps-without-rows": Says("R009", "eval_steps: 5"),
    "eval-strategy-without-rows": Says("R037", "eval_strategy: steps\nval_set_size: 0"),
    "evals-twice": Says("R003", "evals_per_epoch: 2\neval_steps: 5\nval_set_size: 0.1"),
    "evals-and-strategy": Says("R036", "evals_per_epoch: 2\neval_strategy: epoch\nval_set_size: 0.1"),
    "bench-eval-never": Says("R037", "do_bench_eval: true"),
    "noisy-embedding-alpha": Reads("noisy_embedding_alpha: 5", Severity.WARNING),
    "neftune-twice": Reads("noisy_embedding_alpha: 5\nneftune_noise_alpha: 3"),
    "neftune-positive": Reads("neftune_noise_alpha: 0"),
    "multipack-buffer": Reads("pretrain_multipack_buffer_size: 9", Severity.WARNING),
    "multipack-buffer-twice": Reads("pretrain_multipack_buffer_size: 9\nstreaming_multipack_buffer_size: 8"),
    "fp16-all-weights-packed": Says("R179", "bf16: false\nfp16: true\nsample_packing: true"),
    "fp8-uncompiled": Says("R057", "fp8: true"),
    "fp8-fsdp-checkpointing": Says(
        "R057", "fp8: true\ntorch_compile: true\nfsdp_version: 2\nfsdp_config: {activation_checkpointing: true}"
    ),
    "fp8-all-gather": Says("R058", "fp8: true\nfp8_enable_fsdp_float8_all_gather: true\n" + FSDP1),
    "fp8-gpu": Says("R054", "fp8: true", gpu="A100-80GB"),
    "fp8-library": LIBRARY,
    "unfrozen-reentrant": Says(
        "R060",
        "unfrozen_parameters: [lm_head]\ngradient_checkpointing: true\n"
        "gradient_checkpointing_kwargs: {use_reentrant: true}",
    ),
    "evaluation-strategy": Reads("evaluation_strategy: steps", Severity.WARNING),
    "causal-lm-eval-packed": Says("R040", "do_causal_lm_eval: true\neval_sample_packing: true\nval_set_size: 0.1"),
    "causal-lm-metrics-list": Reads("eval_causal_lm_metrics: 3"),
    "causal-lm-metrics-known": Reads("eval_causal_lm_metrics: [bleu]"),
    "magistral": Says("R044", "base_model: mistralai/Magistral-Small"),
    "mistral-common-overrides": Says("R043", "tokenizer_use_mistral_common: true\nadded_tokens_overrides: {3: a}"),
    "mistral-common-special": Says("R043", "tokenizer_use_mistral_common: true\nspecial_tokens: {pad_token: a}"),
    "mistral-common-tokens": Says("R043", "tokenizer_use_mistral_common: true\ntokens: [a]"),
    "mistral-common-template": Says("R043", "tokenizer_use_mistral_common: true\nchat_template: chatml"),
    "mistral-common-processor": Says("R043", "tokenizer_use_mistral_common: true\nprocessor_kwargs: {a: 1}"),
    "mistral-common-library": LIBRARY,
    "pretraining-tokens-per-second": Says(
        "R033", "datasets:\npretraining_dataset: a/b\nmax_steps: 9\ninclude_tokens_per_second: true"
    ),
    "learning-rate-text": Fills("learning_rate: '2e-4'", "learning_rate", 2e-4),
    "learning-rate-required": Says("R001", "learning_rate:"),
    "compile-options-known": Reads("torch_compile: true\ntorch_compile_options: {max_autotune: true}"),
    "compile-options-uncompiled": Says("R059", "torch_compile_options: {shape_padding: true}"),
    "compile-auto": Left("nothing is compiled yet; `auto` stays as it is"),
    "cudagraphs-packed": Says(
        "R082", "torch_compile: true\ntorch_compile_options: {triton.cudagraphs: true}\nsample_packing: true"
    ),
    "dataloader-defaults": OF_THE_MACHINE,
    "dataset-processes": Fills("dataset_processes: 3", "dataset_num_proc", 3),
    "gc-steps": Fills("gc_steps: 9", "gc_collect_steps", 9),
    "gc-steps-torch": Fills("gc_steps: 9", "torch_empty_cache_steps", 9),
    "early-stopping": Says(
        "R038", "early_stopping_patience: 2\nsave_steps: 5\neval_steps: 3\nval_set_size: 0.1"
    ),
    "save-safetensors": Reads("save_safetensors: false", Severity.PLANNED),
    "tf32-auto": OF_THE_MACHINE,
    "bf16-auto": OF_THE_MACHINE,
    # --- adapters
    "4bit-without-adapter": Says("R063", "load_in_4bit: true"),
    "8bit-without-adapter": Says("R063", "load_in_8bit: true"),
    "adapter-unknown": Reads("adapter: lorra"),
    "adapter-of-a-plugin": Says("R086", "adapter: mora"),
    "qlora-8bit": Says("R065", "adapter: qlora\nlora_r: 8\nlora_alpha: 8\nload_in_8bit: true"),
    "qlora-gptq": Says("R065", "adapter: qlora\nlora_r: 8\nlora_alpha: 8\ngptq: true"),
    "qlora-without-4bit": Says("R065", "adapter: qlora\nlora_r: 8\nlora_alpha: 8"),
    "qlora-merge": Says("R065", QLORA + "merge_lora: true"),
    "lora-dropout-null": Left("an unset dropout is 0, as Axolotl makes it"),
    "target-parameters-dropout": Says("R067", LORA + "lora_target_parameters: [a]\nlora_dropout: 0.1"),
    "target-modules-regex": Says("R069", LORA + "lora_target_modules: ['q_(proj']"),
    "lr-groups-loraplus": Says(
        "R127", LORA + "lr_groups: [{name: a, modules: [q_proj], lr: 1e-4}]\nloraplus_lr_ratio: 16"
    ),
    "unfrozen-and-layers": Says("R070", LORA + "unfrozen_parameters: [lm_head]\npeft_layers_to_transform: [0]"),
    "layers-pattern-alone": Says("R059", LORA + "peft_layers_pattern: [layers]"),
    "fuse-mlp-lora": Says("R071", LORA + "flash_attn_fuse_mlp: true"),
    "onebitllms-lora": Says("R071", LORA + "use_onebitllms: true"),
    "qlora-zero3": Says(
        "R062",
        QLORA + "deepspeed: zero3.json\ngradient_checkpointing: true\n"
        "gradient_checkpointing_kwargs: {use_reentrant: false}",
    ),
    **{
        f"{key}-8bit": Says("R072", LORA + f"load_in_8bit: true\n{key}: true")
        for key in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
    },
    **{
        f"{key}-remote-code": Says("R072", LORA + f"trust_remote_code: true\n{key}: true")
        for key in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
    },
    **{
        f"{key}-fsdp1": Says("R073", LORA + FSDP1 + f"{key}: true", gpu="H100:8")
        for key in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
    },
    "lora-kernels-on": Left("Axolotl turns its kernels on by itself; the plain path computes the same"),
    "moe-experts-target-linear": Says("R074", QLORA + "quantize_moe_experts: true\nlora_target_linear: true"),
    "moe-experts-adapter": Says("R074", "quantize_moe_experts: true\nload_in_4bit: true"),
    "moe-experts-bits": Says("R074", LORA + "quantize_moe_experts: true"),
    "moe-experts-cpu": Says("R054", QLORA + "quantize_moe_experts: true", gpu="cpu"),
    "untrained-tokens": Says("R076", LORA + "fix_untrained_tokens: 3\npeft_trainable_token_indices: [4]"),
    "new-tokens-frozen": Says("R075", LORA + "tokens: [a]"),
    "gptq-of-a-plain-model": Says("R077", LORA + "gptq: true", config={"model_type": "llama"}),
    "tied-tensor-parallel": Says("R155", "tensor_parallel_size: 2", config={"tie_word_embeddings": True}),
    # --- preferences and rewards
    "packing-rl": Says("R091", "rl: dpo\nsample_packing: true"),
    "kto-columns": Says("R092", "rl: kto\nremove_unused_columns: true"),
    "grpo-liger-context": Says("R093", GRPO + "use_liger_loss: true}\ncontext_parallel_size: 2"),
    "rl-qlora-reentrant": Says(
        "R094",
        QLORA + "rl: dpo\ngradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: true}",
        gpu="H100:2",
    ),
    "gdpo-aggregation": Says("R095", "rl: gdpo\ntrl: {multi_objective_aggregation: sum_then_normalize}"),
    "ipo": Says("R096", "rl: ipo"),
    "dpo-weights-alone": Says("R098", "rl: dpo\ndpo_loss_weights: [1.0]"),
    "dpo-weights-length": Says("R098", "rl: dpo\ndpo_loss_type: [sigmoid, sft]\ndpo_loss_weights: [1.0]"),
    "dpo-losses-elsewhere": Says("R097", "rl: kto\ndpo_loss_type: [sigmoid]"),
    "grpo-one-generation": Says("R099", "rl: grpo\ntrl: {num_generations: 1}"),
    "grpo-whole-groups": Says("R101", GRPO + "beta: 0.1}\nmicro_batch_size: 3", gpu="H100:1"),
    "grpo-generation-batch": Says("R100", GRPO + "generation_batch_size: 6}"),
    "grpo-processes": Left("TRL counts the processes in a step; Axolotl does not, and refuses what TRL runs (R101)"),
    "vllm-mode": Left("`server` is the declared default of `trl.vllm_mode`"),
    "fsdp2-bits-rl": Says("R105", QLORA + FSDP2 + "rl: dpo"),
    "simpo-warmup-ratio": Left("a gap of Axolotl's trainer for it; a warm-up by ratio is the same for every method"),
    "dpo-beta": Reads("rl: dpo\ndpo_beta: 0.1", Severity.WARNING),
    "two-betas": Says("R106", GRPO + "beta: 0.1}\nrl_beta: 0.2"),
    "ebft-block": Says("R107", "rl: ebft"),
    "ebft-compiled": Says(
        "R108", "rl: ebft\nebft: {mode: strided}\ntorch_compile: true\ngradient_checkpointing: true"
    ),
    "ebft-flex-offloading": Says(
        "R108",
        "rl: ebft\nebft: {mode: strided}\nattn_implementation: flex_attention\n"
        "gradient_checkpointing: true\nactivation_offloading: true",
    ),
    "ebft-reentrant": Left("how Axolotl's strided trainer recomputes; it is decided where EBFT is built"),
    "ebft-large": Says("R180", "rl: ebft\nsequence_len: 8192\nebft: {mode: strided, stride: 1}"),
    # Neither its schema nor an example has a key of that name; here it is an unknown key.
    "ebft-train-on-split": Reads("rl: ebft\nebft: {mode: strided}\ntrain_on_split: train"),
    # --- optimizer and processes
    "adam-numbers-unread": Says("R126", "optimizer: adafactor\nadam_beta1: 0.8"),
    "muon-deepspeed": Says("R120", "optimizer: muon\ndeepspeed: zero2.json"),
    "muon-fsdp1": Says("R120", "optimizer: muon\n" + FSDP1),
    "q-galore-adapter": Says("R121", LORA + "optimizer: q_galore_adamw8bit"),
    "q-galore-deepspeed": Says("R120", "optimizer: q_galore_adamw8bit\ndeepspeed: zero2.json"),
    "q-galore-fsdp1": Says("R120", "optimizer: q_galore_adamw8bit\n" + FSDP1),
    "q-galore-orig-params": Left("FSDP1 is refused with it, and FSDP2 always keeps the parameters as they are"),
    "q-galore-targets": Fills("optimizer: q_galore_adamw8bit", "optim_target_modules", ["attn", "mlp"]),
    "flash-optimizer-deepspeed": Says("R120", "optimizer: flash_adamw\ndeepspeed: zero2.json"),
    "flash-optimizer-fsdp1": Says("R120", "optimizer: flash_adamw\n" + FSDP1),
    "adopt-torch": TORCH,
    "two-cross-entropies": Says("R078", CCE + "chunked_cross_entropy: true"),
    "fsdp1-old": Says("R142", FSDP1),
    "pin-memory-fsdp1": Says(
        "R144", "fsdp_version: 1\nfsdp_config: {offload_params: true, cpu_offload_pin_memory: false}"
    ),
    "pin-memory-alone": Says("R144", "fsdp_version: 2\nfsdp_config: {cpu_offload_pin_memory: false}"),
    "fsdp-prefix": Reads("fsdp_version: 2\nfsdp_config: {fsdp_offload_params: true}", Severity.WARNING),
    "fsdp-prefix-fills": Fills(
        "fsdp_version: 2\nfsdp_config: {fsdp_offload_params: true}", "fsdp_config.offload_params", True
    ),
    "fsdp-version-default": Fills("fsdp_config: {offload_params: true}", "fsdp_version", 1),
    "fsdp-version-hoisted": Fills("fsdp_config: {fsdp_version: 2}", "fsdp_version", 2),
    "fsdp1-offload-8bit": Says("R122", "optimizer: adamw_8bit\n" + FSDP1),
    "fsdp2-adamw-8bit": Says("R123", "optimizer: adamw_8bit\n" + FSDP2),
    "fsdp2-adamw-bnb-8bit": Says("R123", "optimizer: adamw_bnb_8bit\n" + FSDP2),
    "wrap-by-size": Says("R145", "fsdp_version: 2\nfsdp_config: {auto_wrap_policy: SIZE_BASED_WRAP}"),
    "fsdp2-torch": TORCH,
    "fp32-norms-fsdp": Says("R149", "fp32_norms: true"),
    "fp32-norms-version": Says("R149", "fp32_norms: true\n" + FSDP1),
    "deepspeed-autotp": Left("what is handed to DeepSpeed is made where it runs, from `tensor_parallel_size`"),
    "deepcompile": Says("R150", "deepcompile: true"),
    "deepspeed-and-fsdp": Says("R140", "deepspeed: zero2.json\nfsdp: [full_shard]"),
    "two-memory-limits": Says("R084", "max_memory: {0: 20GiB}\ngpu_memory_limit: 20"),
    "two-quantizations": Says(
        "R064", QLORA + "model_quantization_config: FineGrainedFP8Config"
    ),
    "mxfp4-loading": Says(
        "R148",
        "model_quantization_config: Mxfp4Config\nfsdp_version: 2\nfsdp_config: {cpu_ram_efficient_loading: true}",
    ),
    "context-flash": Says("R159", "context_parallel_size: 2"),
    "context-one-row": Says(
        "R160",
        "context_parallel_size: 2\nattn_implementation: flash_attention_2\nsample_packing: true\n"
        "micro_batch_size: 2",
    ),
    "context-library": LIBRARY,
    "ring-attn-func": Fills("context_parallel_size: 2", "ring_attn_func", "batch_ring"),
    "ring-attn-func-packed": Fills(
        "context_parallel_size: 2\nsample_packing: true", "ring_attn_func", "varlen_llama3"
    ),
    "sequence-parallel-degree": Reads("sequence_parallel_degree: 2", Severity.WARNING),
    "qat-adapter": Says("R071", LORA + "qat: {weight_dtype: int4}"),
    "qat-4bit": Says("R064", "qat: {weight_dtype: int4}\nload_in_4bit: true"),
    "qat-8bit": Says("R064", "qat: {weight_dtype: int4}\nload_in_8bit: true"),
    "qat-torch": TORCH,
    "relora-steps": Says("R131", LORA + "relora: true"),
    "relora-adapter": Says("R131", "relora: true\njagged_restart_steps: 100"),
    "relora-fsdp": Says("R132", LORA + FSDP2 + "relora: true\njagged_restart_steps: 100"),
    "relora-deepspeed": Says("R132", LORA + "deepspeed: a.json\nrelora: true\njagged_restart_steps: 100"),
    "relora-one-cycle": Says("R132", LORA + "lr_scheduler: one_cycle\nrelora: true\njagged_restart_steps: 100"),
    "relora-fuse-mlp": Says(
        "R071", LORA + "flash_attn_fuse_mlp: true\nrelora: true\njagged_restart_steps: 100"
    ),
    "npu-attention": NPU,
    "npu-optimizers": NPU,
    "npu-bits": NPU,
    "npu-tf32": NPU,
    # --- models
    "falcon-fsdp": Says("R170", "base_model: tiiuae/falcon-7b\nfsdp: [full_shard]"),
    "mpt-checkpointing": Says("R171", "base_model: mosaicml/mpt-7b\ngradient_checkpointing: true"),
    "nemotron-h-checkpointing": Says(
        "R172", "base_model: nvidia/Nemotron-H-8B-Base-8K\ngradient_checkpointing: true"
    ),
    "gptq-revision": Says("R173", LORA + "gptq: true\nrevision_of_model: v2"),
    "better-transformer-amp": Says("R174", "flash_optimum: true\nbf16: true"),
    "checkpointing-offload": Fills("gradient_checkpointing: offload", "activation_offloading", True),
    "checkpointing-offload-disk": Fills("gradient_checkpointing: offload_disk", "activation_offloading", "disk"),
    "offloading-alone": Says("R059", "activation_offloading: true"),
    "hidden-states-reentrant": Says(
        "R060",
        "activation_offloading: hidden_states\ngradient_checkpointing: true\nunfrozen_parameters: [a]\n"
        "gradient_checkpointing_kwargs: {use_reentrant: true}",
    ),
    "selective-alone": Says("R059", "selective_checkpointing: true"),
    "selective-reentrant": Says(
        "R060",
        "selective_checkpointing: true\ngradient_checkpointing: true\n"
        "gradient_checkpointing_kwargs: {use_reentrant: true}",
    ),
    "selective-offloading": Says(
        "R061", "selective_checkpointing: true\ngradient_checkpointing: true\nactivation_offloading: true"
    ),
    "selective-matmul": Says(
        "R061", LORA + "selective_checkpointing: {save: ['aten::mm']}\ngradient_checkpointing: true"
    ),
    "processor-revision": Says("R085", "processor_type: AutoProcessor\nprocessor_kwargs: {revision: v2}"),
    "processor-remote-code": Says(
        "R085", "processor_type: AutoProcessor\nprocessor_kwargs: {trust_remote_code: true}"
    ),
    "trust-remote-code": Says("R015", "trust_remote_code: true"),
    # --- streams
    "stream-steps": Says("R032", "streaming: true"),
    "stream-held-out": Says("R033", "streaming: true\nmax_steps: 9\nval_set_size: 0.1"),
    "stream-packed": Says(
        "R034",
        "streaming: true\nmax_steps: 9\nsample_packing: true\n"
        "datasets: [{path: a/b, type: completion}, {path: a/c, type: completion}]",
    ),
    "stream-accelerate": Fills(
        "datasets:\npretraining_dataset: [{path: a/b}]\nmax_steps: 9", "accelerator_config.split_batches", False
    ),
    "stream-by-length": Says("R033", "streaming: true\nmax_steps: 9\ngroup_by_length: true"),
    # --- deprecated
    **{
        key: Reads(f"{key}: 1")
        for key in (
            "max_packed_sequence_len",
            "rope_scaling",
            "dpo_use_logits_to_keep",
            "dpo_generate_during_eval",
            "dpo_norm_loss",
            "rpo_alpha",
            "s2_attention",
            "flash_attn_rms_norm",
        )
    },
    "eval-table-size": Says("R029", "eval_table_size: 3\nval_set_size: 0.1"),
    "eval-max-new-tokens": Says("R029", "eval_max_new_tokens: 64"),
    # --- plugins
    "cce-16-bits": Says("R175", CCE + "bf16: false"),
    "cce-chunked": Says("R078", CCE + "chunked_cross_entropy: true"),
    "liger-swiglu-twice": Reads(LIGER + "liger_swiglu: true\nliger_glu_activation: false"),
    "liger-glu-tiled": Says(
        "R079", LIGER + "liger_glu_activation: true\ntiled_mlp: true\ntiled_mlp_use_original_mlp: false"
    ),
    "liger-norm-tensor-parallel": Says("R079", LIGER + "liger_rms_norm: true\ntensor_parallel_size: 2"),
    "liger-loss-tensor-parallel": Says(
        "R079", LIGER + "liger_fused_linear_cross_entropy: true\ntensor_parallel_size: 2"
    ),
    "liger-token-scaling": Says("R059", LIGER + "liger_use_token_scaling: true"),
    "liger-two-losses": Says(
        "R078", LIGER + "liger_cross_entropy: true\nliger_fused_linear_cross_entropy: true"
    ),
    "spectrum-fsdp": Says("R176", "plugins: [axolotl.integrations.spectrum.SpectrumPlugin]\n" + FSDP1),
    "expert-parallel-size": Reads(EXPERTS + "expert_parallel_size: 0"),
    "expert-parallel-capacity": Reads(EXPERTS + "expert_parallel_token_capacity: 0"),
    "swanlab-mode": Reads(
        "plugins: [axolotl.integrations.swanlab.SwanLabPlugin]\nswanlab_project: a\nswanlab_mode: on-line"
    ),
    "swanlab-project": Says("R086", "plugins: [axolotl.integrations.swanlab.SwanLabPlugin]"),
    "scattermoe-sonicmoe": Says("R080", KERNELS + "use_scattermoe: true\nuse_sonicmoe: true"),
    "expert-backend": Reads(KERNELS + "expert_backend: fast"),
    "merge-aware-sonicmoe": Says("R080", LORA + KERNELS + "nvfp4_merge_aware: true"),
    "merge-aware-adapter": Says("R080", KERNELS + "use_sonicmoe: true\nnvfp4_merge_aware: true"),
    "merge-aware-fused": Says(
        "R182", LORA + KERNELS + "use_sonicmoe: true\nnvfp4_merge_aware: true\nlora_o_kernel: true"
    ),
    "use-kernels": Left("Axolotl's kernels plugin chooses by itself; here what the recipe says stays"),
    "diffusion-range": Says(
        "R089",
        "plugins: [axolotl.integrations.diffusion.DiffusionPlugin]\ndiffusion: {min_mask_ratio: 0.95}",
    ),
    "nemo-gym-paths": Says(
        "R177",
        "plugins: [axolotl.integrations.nemo_gym.NemoGymPlugin]\nrl: grpo\nnemo_gym_enabled: true\n"
        "nemo_gym_datasets: [{path: a.jsonl}]",
    ),
    "nemo-gym-datasets": Says(
        "R177",
        "plugins: [axolotl.integrations.nemo_gym.NemoGymPlugin]\nrl: grpo\nnemo_gym_enabled: true\n"
        "nemo_gym_config_paths: [a.yaml]",
    ),
    "nemo-gym-folder": Left("a folder on the machine that runs it, cloned there if it is missing"),
    # --- the sizes of parallelism, which Axolotl checks when it starts
    "experts-divide-processes": Says("R153", EXPERTS + "expert_parallel_size: 3", gpu="H100:8"),
    "experts-with-tensor": Says("R152", EXPERTS + "expert_parallel_size: 2\ntensor_parallel_size: 2"),
    "shards-without-fsdp": Says("R151", "dp_shard_size: 2"),
    "sizes-and-processes": Says("R011", "dp_replicate_size: 3", gpu="H100:8"),
    "ddp-with-tensor": Says("R181", "tensor_parallel_size: 2", gpu="H100:8"),
    "ddp-with-context": Says(
        "R181", "context_parallel_size: 2\nattn_implementation: flash_attention_2", gpu="H100:8"
    ),
}  # fmt: skip
"""Short name of a line of Axolotl's validation -> what becomes of it."""


def normalized_of(recipe: str) -> Any:
    values = {**HEAD, **(yaml.safe_load(recipe) or {})}
    return normalize(loads(yaml.safe_dump(values, sort_keys=False)))


def facts_of(line: Says) -> Facts:
    machine = None
    if line.gpu:
        name, _, count = line.gpu.partition(":")
        bf16 = GPUS[name].bf16
        device = "cpu" if name == "cpu" else "cuda"
        machine = Machine(device, name, int(count or 1), 1, bf16=bf16, tf32=bf16)
    return Facts(files={}, model_config=line.config, machine=machine)


@pytest.mark.parametrize("name", [name for name, line in LINES.items() if isinstance(line, Says)])
def test_a_rule_says_what_axolotl_says(name: str) -> None:
    line = LINES[name]
    assert isinstance(line, Says)
    found = {p.rule for p in check(normalized_of(line.recipe), facts_of(line)).problems}
    assert line.rule in found


@pytest.mark.parametrize("name", [name for name, line in LINES.items() if isinstance(line, Reads)])
def test_reading_says_what_axolotl_says(name: str) -> None:
    line = LINES[name]
    assert isinstance(line, Reads)
    without = {str(p) for p in normalized_of("").problems}
    problems = [p for p in normalized_of(line.recipe).problems if str(p) not in without]
    assert line.severity in {p.severity for p in problems}


@pytest.mark.parametrize("name", [name for name, line in LINES.items() if isinstance(line, Fills)])
def test_what_axolotl_fills_in_is_filled_in(name: str) -> None:
    line = LINES[name]
    assert isinstance(line, Fills)
    normalized = normalized_of(line.recipe)
    assert [p for p in normalized.problems if p.severity is Severity.ERROR] == []
    value: Any = normalized.flat.flat()
    for part in line.key.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    assert (list(value) if isinstance(value, tuple) else value) == line.value


def test_a_line_is_answered_by_a_rule_that_exists_or_left_out_for_a_reason() -> None:
    ids = {rule.id for rule in RULES}
    assert [n for n, line in LINES.items() if isinstance(line, Says) and line.rule not in ids] == []
    assert [
        n for n, line in LINES.items() if isinstance(line, Left) and len(line.reason) < 20
    ] == []
