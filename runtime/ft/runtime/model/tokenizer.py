"""The tokenizer of a run, with the recipe's special tokens and chat template."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ft.recipes.errors import PlanError
from ft.recipes.plan import RunPlan


def located(name: str, run_folder: Path) -> str:
    """`inputs/<name>` as a path in the run's folder; a hub id as it is."""
    return str(run_folder / name) if name.startswith("inputs/") else name


def load_tokenizer(plan: RunPlan, run_folder: Path) -> PreTrainedTokenizerBase:
    """Raises: PlanError if a special token is not in the vocabulary: a new one would have random weights."""
    model = plan.model
    tokenizer = AutoTokenizer.from_pretrained(
        located(model.tokenizer_config, run_folder),
        revision=model.revision_of_model,
        trust_remote_code=model.trust_remote_code,
    )
    vocabulary = tokenizer.get_vocab()
    for name, token in model.special_tokens.items():
        if token not in vocabulary:
            raise PlanError(f"special_tokens.{name} {token!r} is not in the tokenizer's vocabulary")
        setattr(tokenizer, name, token)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise PlanError(
                "the tokenizer has neither a pad nor an EOS token: set special_tokens.pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
