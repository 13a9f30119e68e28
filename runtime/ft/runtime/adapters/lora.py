"""Low-rank adapters: peft's LoRA on a frozen model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from ft.recipes.errors import PlanError
from ft.recipes.plan import AdapterPlan


def wrap(model: PreTrainedModel, spec: AdapterPlan) -> PeftModel:
    """The first weights depend on torch's seed: set it before.

    Raises: PlanError if no module has one of the target names, or peft refuses them.
    """
    targets = spec.lora_target_modules
    _require_each(model, () if isinstance(targets, str) else targets)
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(spec.lora_modules_to_save) or None,
        use_rslora=spec.peft_use_rslora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise PlanError(
            f"lora_target_modules {targets!r} cannot be used with this model: {error} "
            f"Its linear modules are {', '.join(linear_names(model))}; `all-linear` takes all but the head"
        ) from error


def _require_each(model: torch.nn.Module, targets: Sequence[str]) -> None:
    """peft is content when one of the names fits; a misspelt one beside it would be left out in silence."""
    names = [name for name, _ in model.named_modules()]
    missing = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names)]
    if missing:
        raise PlanError(
            f"lora_target_modules: no module is named {', '.join(missing)}",
            hint=f"the linear modules of this model are {', '.join(linear_names(model))}",
        )


def linear_names(model: torch.nn.Module) -> list[str]:
    """The last parts of the linear modules' names, each once."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
