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
        Gpu("L4", 24, bf16=True, capability=89),
        Gpu("A10", 24, bf16=True, capability=86),
        Gpu("A10G", 24, bf16=True, capability=86),
        Gpu("L40S", 48, bf16=True, capability=89),
        Gpu("A100-40GB", 40, bf16=True, capability=80),
        Gpu("A100-80GB", 80, bf16=True, capability=80),
        Gpu("H100", 80, bf16=True, capability=90),
        Gpu("H200", 141, bf16=True, capability=90),
        Gpu("B200", 180, bf16=True, capability=100),
    )
}
"""`cpu` is a name like any other: `cpu:2` is two processes on one machine without an accelerator.
bf16 is False on `cpu` because matmul in bf16 is emulated there, slower and less exact than fp32."""

METHODS: dict[str, str] = {"sft": "supervised fine-tuning: next-token loss on the trained tokens"}

ADAPTERS: dict[str, str] = {
    "lora": "low-rank adapters on a frozen model",
    "full": "all weights are trained (`adapter:` is left out)",
}

FORMATS: dict[str, str] = {
    "alpaca": "instruction, input?, output",
    "chat_template": "messages with roles, rendered by the model's chat template",
    "completion": "plain text, all of it trained",
    "input_output": "segments with a label each, tokenized as they are",
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
