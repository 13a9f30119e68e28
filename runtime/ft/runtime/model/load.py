"""The model of a run, in its training dtype, on the rank's device."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ft.recipes.plan import RunPlan
from ft.runtime.model.tokenizer import located


def load_model(plan: RunPlan, run_folder: Path) -> PreTrainedModel:
    """Weights in bf16 if `plan.model.bf16`, else fp32. The trainer moves it to the device."""
    keys = plan.model
    common = {"revision": keys.revision_of_model, "trust_remote_code": keys.trust_remote_code}
    config = AutoConfig.from_pretrained(located(keys.base_model_config, run_folder), **common)
    model = AutoModelForCausalLM.from_pretrained(
        located(keys.base_model, run_folder),
        config=config,
        dtype=torch.bfloat16 if keys.bf16 else torch.float32,
        attn_implementation=keys.attn_implementation,
        **common,
    )
    model.config.use_cache = False
    return model


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in counts if trainable), sum(n for n, _ in counts)
