"""The tokenizer of a run, with the recipe's special tokens and chat template."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ft.recipes.errors import PlanError
from ft.recipes.plan import RunPlan
from ft.runtime.model.source import located, reading


def load_tokenizer(plan: RunPlan, run_folder: Path) -> PreTrainedTokenizerBase:
    """Raises: PlanError if there is no tokenizer, or if a special token is not in its vocabulary.

    A new token would have random weights.
    """
    model = plan.model
    source = located(model.tokenizer_config, run_folder)
    with reading("tokenizer_config", source):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=model.revision_of_model, trust_remote_code=model.trust_remote_code
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
