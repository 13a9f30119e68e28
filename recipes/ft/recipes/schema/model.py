"""Keys about the model, its tokenizer and its numbers."""

from __future__ import annotations

from typing import Literal

from ft.recipes.schema.base import Section


class SpecialTokens(Section):
    """Tokens that replace the tokenizer's own."""

    pad_token: str | None = None
    """Fills rows of a batch up to the longest. Default: the tokenizer's, else its EOS token."""
    eos_token: str | None = None
    """Ends a text. Default: the tokenizer's."""
    bos_token: str | None = None
    """Begins a text. Default: the tokenizer's."""
    unk_token: str | None = None
    """Stands for what the vocabulary lacks. Default: the tokenizer's."""


class GradientCheckpointing(Section):
    """How activations are computed again in the backward pass."""

    use_reentrant: bool | None = None
    """torch's older implementation. Default: false."""


class ModelKeys(Section):
    """What is trained."""

    base_model: str | None = None
    """Hub id or local folder of the model to start from. Required."""
    base_model_config: str | None = None
    """Hub id or folder of the model's configuration, where it is not the model's own. Default: `base_model`."""
    tokenizer_config: str | None = None
    """Hub id or folder of the tokenizer. Default: `base_model`."""
    revision_of_model: str | None = None
    """Branch, tag or commit on the hub. Default: `main`. Matters for a run that somebody should be able to repeat."""
    trust_remote_code: bool | None = None
    """Run Python code that comes with the model. Default: false. It runs on your machines with your secrets."""
    special_tokens: SpecialTokens | None = None
    """Tokens that replace the tokenizer's own. They must be in the vocabulary."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """Attention kernel. Default: `sdpa`. `flash_attention_2` needs a GPU."""
    bf16: bool | Literal["auto"] | None = None
    """Compute in bfloat16. Default: `auto`: where the GPU can."""
    tf32: bool | Literal["auto"] | None = None
    """Let fp32 matmuls use TF32 on NVIDIA GPUs. Default: `auto`: where the GPU can."""
    gradient_checkpointing: bool | None = None
    """Forget activations and compute them again: about a third more time, far less memory. Default: false."""
    gradient_checkpointing_kwargs: GradientCheckpointing | None = None
    """Options for `gradient_checkpointing`."""
