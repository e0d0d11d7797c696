"""Where a token stands, as attention sees it: rotations of queries and keys, or numbers added to their products."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["alibi", "rotate", "rotation_angles"]


def rotation_angles(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, "position feature".

    Angle of pair k at position m: m * base^(-2k / head_dim), computed in float64 and rounded once.

    Source: Su et al. (2021), RoFormer, section 3.2.2.
    """
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions.double()[:, None] * base ** (-pairs / head_dim)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate the pairs (k, k + head_dim / 2) of "... position feature"; a rotation, so norms stay."""
    first, second = x.chunk(2, dim=-1)
    turned = x * cosines + torch.cat((-second, first), dim=-1) * sines
    return turned.to(x.dtype)


def alibi(num_heads: int, queries: int, keys: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Attention with linear biases, the same ahead as behind: b_ij = -m_h |i - j|, m_h = 2^(-8 (h + 1) / num_heads).

    The formula is taken for every number of heads; the authors' code has other slopes where that is no power of two.

    Args:
        num_heads: h counts them from 0.
        queries: rows i, the last of the positions.
        keys: columns j, all of the positions.
        device: of the result.
        dtype: of the result; computed in float64 and rounded once.

    Returns:
        "head offset": b_ij at j - i + queries - 1, rows and columns counted from 0 each, as `OffsetBias` has it.

    Source: Press, Smith and Lewis (2022), Train short, test long, section 3.
    """
    heads = torch.arange(1, num_heads + 1, device=device, dtype=torch.float64)
    distance = (torch.arange(queries + keys - 1, device=device, dtype=torch.float64) - (keys - 1)).abs()
    return (-(2.0 ** (-8 * heads / num_heads))[:, None] * distance).to(dtype)
