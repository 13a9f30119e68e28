"""The model of a run, in its training dtype, on the rank's device."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ft.recipes.plan import RunPlan
from ft.runtime.model.source import located, reading


def load_model(plan: RunPlan, run_folder: Path) -> PreTrainedModel:
    """Weights in bf16 if `plan.model.bf16`, else fp32. The trainer moves it to the device.

    Raises: PlanError if there is no such model, or not one that transformers can load as asked.
    """
    keys = plan.model
    common = {"revision": keys.revision_of_model, "trust_remote_code": keys.trust_remote_code}
    source = located(keys.base_model_config, run_folder)
    with reading("base_model_config", source):
        config = AutoConfig.from_pretrained(source, **common)
    source = located(keys.base_model, run_folder)
    with reading("base_model", source):
        model = AutoModelForCausalLM.from_pretrained(
            source,
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
