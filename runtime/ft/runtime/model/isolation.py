"""Whether a model keeps the rows of a pack apart: asked of the model itself, which may have code of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ft.recipes.errors import PlanError
from ft.runtime.data.collate import TokenRow, collate, collate_packs

LENGTHS: Final = ((5, 4, 3), (6, 2))
"""Tokens of the rows of two packs; the second one is padded."""

MOST_SHIFT: Final = {torch.float32: 0.01}
OTHERWISE: Final = 0.1
"""How far a row's logits may be from those of the row alone, as a share of what other tokens would change:
kernels that are chosen by shape round otherwise. Positions that run on are more than a tenth."""


def assert_apart(model: torch.nn.Module, *, end_to_end: bool) -> None:
    """Three forward passes and a backward one of some twenty tokens, before anything is trained.

    They draw no random numbers and leave the model as it was.

    Raises: PlanError if a row's logits depend on the other rows of its pack, or differ from those of the
    row alone, because its positions do not begin at 0.
    """
    config: Any = model.config
    rows, others = _rows(config.get_text_config().vocab_size)
    was_training = model.training
    model.eval()
    try:
        packed, gradients = _with_gradients(model, _packed(rows, end_to_end))
        with torch.no_grad():
            other = _of_rows(_logits(model, _packed(others, end_to_end)))
            padded = _logits(model, collate(rows, pad_token_id=0))
    finally:
        model.train(was_training)
    alone = [padded[i, : len(row["input_ids"])] for i, row in enumerate(rows)]
    shift = _difference(packed, alone) / _difference(packed, other)
    reads_others = not _only_own(gradients)
    dtype = next(model.parameters()).dtype
    # Written so that a NaN does not pass.
    if not reads_others and shift <= MOST_SHIFT.get(dtype, OTHERWISE):
        return
    what = "reads other rows of its pack" if reads_others else "is not computed as if it were alone"
    raise PlanError(
        f"sample_packing: with {config.model_type} and attn_implementation "
        f"{config._attn_implementation}, a row {what}",
        hint="Write `sample_packing: false` and `eval_sample_packing: false`",
    )


def _rows(vocab_size: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Rows, and rows of the same lengths with another token at every place."""
    # From the middle of the vocabulary: special tokens stand at its ends.
    low, count = vocab_size // 4, max(2, vocab_size // 2)
    generator = torch.Generator().manual_seed(0)
    rows: list[TokenRow] = []
    others: list[TokenRow] = []
    for length in (length for pack in LENGTHS for length in pack):
        ids = torch.randint(count, (length,), generator=generator)
        moved = (ids + torch.randint(1, count, (length,), generator=generator)) % count
        for tokens, found in ((ids, rows), (moved, others)):
            found.append({"input_ids": (tokens + low).tolist(), "labels": [0] * length})
    return rows, others


def _packed(rows: Sequence[TokenRow], end_to_end: bool) -> dict[str, Tensor]:
    first = len(LENGTHS[0])
    return collate_packs([rows[:first], rows[first:]], pad_token_id=0, end_to_end=end_to_end)


def _of_rows(tensor: Tensor) -> list[Tensor]:
    """(packs, tokens, …) -> the tokens of each row, (tokens of it, …)."""
    flat, width = tensor.flatten(0, 1), max(sum(pack) for pack in LENGTHS)
    found = []
    for index, pack in enumerate(LENGTHS):
        start = index * width
        for length in pack:
            found.append(flat[start : start + length])
            start += length
    return found


def _with_gradients(
    model: torch.nn.Module, batch: dict[str, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Logits of each row, and how much those of every second one move with each token's embedding.

    By gradients, for what is masked has one of exactly 0, whatever kernels round elsewhere. (packs, tokens)
    """
    embeddings: list[Tensor] = []

    def begin_here(_: torch.nn.Module, __: Any, output: Tensor) -> Tensor:
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    get_embedding: Any = model.get_input_embeddings
    handle = get_embedding().register_forward_hook(begin_here)
    try:
        logits = _of_rows(_logits(model, batch))
    finally:
        handle.remove()
    # Not a plain sum, in which parts of a gradient might cancel.
    generator = torch.Generator().manual_seed(0)
    weighed = [
        (torch.randn(part.shape, generator=generator).to(part.device) * part).sum()
        for part in logits[1::2]
    ]
    gradients = torch.autograd.grad(torch.stack(weighed).sum(), embeddings)
    amounts = torch.stack([gradient.float().abs().sum(-1) for gradient in gradients]).sum(0)
    return [part.detach() for part in logits], amounts


def _only_own(amounts: Tensor) -> bool:
    """Whether every second row has a gradient, and no other token has."""
    own = _of_rows(amounts)[1::2]
    some = all(bool(part.any()) for part in own)
    return some and int(amounts.count_nonzero()) == sum(int(part.count_nonzero()) for part in own)


def _logits(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(packs, tokens, vocabulary), float32."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits.float()


def _difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Mean over all logits of all rows."""
    return float((torch.cat(list(one)) - torch.cat(list(other))).abs().mean())
