"""Biases told from what a model added to its logits: one number per offset where that is all there is to it."""

from __future__ import annotations

import torch
from torch import Tensor

from rankkit.operators import Bias, DenseBias, OffsetBias

__all__ = ["bias_of"]

ROUNDING = 2e-7
"""Relative to the largest bias: what float32 moves when a model multiplies slopes and positions (an ulp and a half)."""


def bias_of(values: Tensor, allowed: Tensor, inside: slice) -> Bias | None:
    """What is added to the logits of the visible pairs, in the form that takes the least memory.

    A bias that depends on the key alone up to a slope times the offset (ALiBi as BLOOM and Falcon write it) is one of
    offsets but for a number per row, which softmax does not see; that number is taken off.

    Args:
        values: "head query key", square; anything where hidden.
        allowed: "query key", bool.
        inside: the rows and columns that are not padding.

    Returns:
        None where nothing is added; `OffsetBias` "head offset" where the numbers of every diagonal agree exactly, or up
        to rounding once each row's own is taken off; else `DenseBias` of `values`.
    """
    seen = allowed[inside, inside]
    blocks = [head[inside, inside].to(torch.promote_types(values.dtype, torch.float32)) for head in values]
    if not any(bool(torch.where(seen, block, 0).any()) for block in blocks):
        return None
    strips = [_offsets(block, seen) for block in blocks]
    if any(strip is None for strip in strips):
        return DenseBias(values=values)
    found = torch.stack([strip for strip in strips if strip is not None])
    n, length = len(allowed), len(seen)
    whole = found.new_zeros(len(found), 2 * n - 1)
    whole[:, n - length : n + length - 1] = found
    return OffsetBias(values=whole)


def _offsets(block: Tensor, seen: Tensor) -> Tensor | None:
    """One number per offset of a square block, None where that would not give it back."""
    strip = _strip(block, seen)
    if _distance(block, strip, seen) == 0:
        return strip
    if not bool(seen.diagonal().all()):
        return None
    shifted = block.double() - block.double().diagonal()[:, None]
    strip = _strip(shifted, seen)
    largest = float(torch.where(seen, block, 0).abs().max())
    return strip.to(block.dtype) if _distance(shifted, strip, seen) <= ROUNDING * largest else None


def _strip(block: Tensor, seen: Tensor) -> Tensor:
    """Offsets below 0 from the last row, the others from the first; between them these two rows see every offset seen."""
    n = len(block)
    strip = block.new_zeros(2 * n - 1)
    strip[:n] = torch.where(seen[-1], block[-1], 0)
    strip[n - 1 :] = torch.where(seen[0], block[0], 0)
    return strip


def _distance(block: Tensor, strip: Tensor, seen: Tensor) -> float:
    """Largest difference to the numbers of a strip, where seen."""
    n = len(block)
    return float(torch.where(seen, block - OffsetBias(values=strip).block((0, n), (0, n), n), 0).abs().max())
