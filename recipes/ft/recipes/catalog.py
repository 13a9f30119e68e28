"""Names and facts that launcher and runtime share. Light: the heavy targets are in `ft.runtime.registry`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of accelerator."""

    name: str
    memory_gib: int
    """What the vendor prints; 0 for `cpu`, where host memory counts."""
    bf16: bool
    capability: int
    """CUDA compute capability, 89 for 8.9; 0 for `cpu`. Kernels are compiled for some of them."""


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("cpu", 0, bf16=False, capability=0),
        Gpu("T4", 16, bf16=False, capability=75),
        Gpu("RTX3090", 24, bf16=True, capability=86),
        Gpu("RTX4090", 24, bf16=True, capability=89),
        Gpu("RTX5090", 32, bf16=True, capability=120),
        Gpu("L4", 24, bf16=True, capability=89),
        Gpu("A10", 24, bf16=True, capability=86),
        Gpu("A10G", 24, bf16=True, capability=86),
        Gpu("A40", 48, bf16=True, capability=86),
        Gpu("A6000", 48, bf16=True, capability=86),
        Gpu("L40", 48, bf16=True, capability=89),
        Gpu("L40S", 48, bf16=True, capability=89),
        Gpu("RTX6000-Ada", 48, bf16=True, capability=89),
        Gpu("RTX-PRO-6000", 96, bf16=True, capability=120),
        Gpu("A100-40GB", 40, bf16=True, capability=80),
        Gpu("A100-80GB", 80, bf16=True, capability=80),
        Gpu("H100", 80, bf16=True, capability=90),
        Gpu("H200", 141, bf16=True, capability=90),
        Gpu("B200", 180, bf16=True, capability=100),
        Gpu("B300", 288, bf16=True, capability=103),
    )
}
"""Capabilities are those of developer.nvidia.com/cuda-gpus. Nothing below 7.5 is here, such as a V100: torch built for
CUDA 13, which images get, has no kernels for it. Nor a GH200: its processor is no x86, which images are locked for.
`cpu` is a name like any other: `cpu:2` is two processes on one machine without an accelerator.
bf16 is False on `cpu` because matmul in bf16 is emulated there, slower and less exact than fp32."""

METHODS: dict[str, str] = {"sft": "supervised fine-tuning: next-token loss on the trained tokens"}

ADAPTERS: dict[str, str] = {
    "lora": "low-rank adapters on a frozen model",
    "full": "all weights are trained (`adapter:` is left out)",
}

FORMATS: dict[str, str] = {
    "alpaca": "instruction, input?, output",
    "alpaca:chat": "alpaca, worded SYSTEM, USER, ASSISTANT",
    "alpaca:chatml": "alpaca, worded as ChatML",
    "alpaca:instruct": "alpaca",
    "alpaca:phi": "alpaca, worded for Phi-3",
    "alpaca_chat": "as alpaca:chat",
    "alpaca_chat.load_camel_ai": "message_1, message_2; asks for a concise answer",
    "alpaca_chat.load_concise": "as alpaca:chat; asks for a concise answer",
    "alpaca_chat.load_no_prompt": "as alpaca:chat, without a preamble",
    "alpaca_chat.load_qa": "question, answer; asks for a concise answer",
    "alpaca_instruct": "alpaca",
    "alpaca_instruct.load_no_prompt": "alpaca, without a preamble",
    "alpaca_w_system": "system, instruction, input?, output, worded as alpaca:chat",
    "alpaca_w_system.load_chat": "as alpaca_w_system",
    "alpaca_w_system.load_open_orca": "system_prompt, question, response",
    "alpaca_w_system.load_open_orca_chatml": "system_prompt, question, response, worded as ChatML",
    "chat_template": "messages with roles, rendered by the model's chat template",
    "completion": "plain text, all of it trained",
    "concisechoice": "question, choices, solution or explanation; asks to be concise",
    "context_qa": "article, question, answer",
    "context_qa.load_404": "article, unanswerable_question; the answer is that there is none",
    "context_qa.load_v2": "context, question, answer",
    "explainchoice": "question, choices, solution or explanation; asks to explain",
    "gpteacher": "instruction, input?, response, worded as alpaca",
    "input_output": "segments with a label each, tokenized as they are",
    "jeopardy": "question, category, answer, worded as alpaca",
    "oasst": "INSTRUCTION, RESPONSE, worded as alpaca",
    "orcamini": "system_prompt, question, response, worded for Orca Mini",
    "pretokenized": "`type` is left out: input_ids, labels and attention_mask?, as they are",
    "summarizetldr": "article, summary",
    "user_defined": "`type` is a block: columns, and how the prompt is put together",
}

OPTIMIZERS: dict[str, str] = {
    "adamw_torch": "AdamW of torch",
    "adamw_torch_fused": "AdamW of torch in one kernel; the default",
}

LR_SCHEDULERS: dict[str, str] = {
    "cosine": "half a cosine down to zero",
    "linear": "straight down to zero",
    "constant": "the same learning rate throughout",
    "constant_with_warmup": "the same learning rate after the warm-up",
}

BACKENDS: dict[str, str] = {"local": "this machine, detached from the terminal"}

LORA_LINEAR = "all-linear"
"""What `lora_target_linear: true` means to peft: every linear layer but the head."""


DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow", ".csv", ".txt")
LOCAL_SUFFIXES = (*DATA_SUFFIXES, ".jinja", ".j2", ".yml", ".yaml", ".gguf", ".safetensors")
