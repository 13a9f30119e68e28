"""Low-rank adapters: peft's LoRA on a frozen model."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from ft.recipes.plan import AdapterPlan


def wrap(model: PreTrainedModel, spec: AdapterPlan) -> PeftModel:
    """The first weights depend on torch's seed: set it before.

    Raises: ValueError from peft if no module has one of the target names.
    """
    targets = spec.lora_target_modules
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(spec.lora_modules_to_save) or None,
        use_rslora=spec.peft_use_rslora,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
