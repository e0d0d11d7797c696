"""A model whose attention is cut to its leading singular triplets, for as long as a context lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.hooks.replacement import replaced_attention
from rankkit.models.transformer import Transformer
from rankkit.operators import AttentionOperator
from rankkit.spectra.truncated import cut_product

__all__ = ["truncated_attention"]


@contextlib.contextmanager
def truncated_attention(
    model: Transformer,
    *,
    rank: int,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    remask: bool = True,
) -> Iterator[None]:
    """Chosen heads attend with A_k = sum_{i<=k} sigma_i u_i v_i^T in the place of A; gradients are off.

        with rankkit.truncated_attention(model, rank=32, layers=[2]):
            hidden = model(tokens, prefix_lengths)

    The cut is made in float64 from the Q and K that the layer then has, so a layer after a cut one is cut as it reacts to
    it; the product with the values is rounded to the model's dtype, in which everything else runs. Rows are not
    normalised again. Heads that were not chosen keep the bits of the fused kernel, and the model is left as it was, also
    after an exception.

    Args:
        model: any rankkit Transformer.
        rank: k, from 1 to the sequence length; at the sequence length the output is the model's own to rounding.
        layers: which, counted from 0; None for all.
        heads: which of each of those layers; None for all.
        remask: whether to set what the mask hides back to 0. Without it rows mix in values of their future, and a loss is
            not a language model's; with it a row's weights still depend on later rows through the singular vectors.

    Raises:
        ConfigurationError: a rank below 1, or, in the forward pass, above the sequence length.
        CaptureError: the model lacks a layer or head that was asked for, or runs with a key-value cache.
        NonFiniteLossError: in the forward pass, attention that is not finite.
    """
    if rank < 1:
        raise ConfigurationError(f"rank must be at least 1, got {rank}. Keep at least one triplet.")

    def cut(operator: AttentionOperator, value: Tensor) -> Tensor:
        return cut_product(operator, value, rank=rank, remask=remask)

    with torch.no_grad(), replaced_attention(model, cut, layers=layers, heads=heads):
        yield
