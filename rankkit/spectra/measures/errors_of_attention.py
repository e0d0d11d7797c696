"""How far a measure of attention can have moved when every entry moved by at most eta times itself.

That is what `model_floor` bounds: |dA_ij| <= eta A_ij between the attention that a model applied in its own precision and
the exact softmax of its logits, eta = floor / sigma_1. Every bound below is in closed form and holds for any eta >= 0.

All return "...", float64, at least 0; nan where the measure or eta is nan.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rankkit.spectra.measures.of_attention import (
    attention_rows,
    checked_mask,
    logit_std,
    mean_ipr,
    rank_one_residual,
    sink_position,
)

__all__ = [
    "moved_attention_entropy",
    "moved_attention_entropy_relative",
    "moved_logit_std",
    "moved_mass",
    "moved_mean_ipr",
    "moved_rank_one_residual",
    "moved_sink_position",
]


def moved_attention_entropy(attention: Tensor, eta: Tensor, /) -> Tensor:
    """Largest change of `attention_entropy`: mean over the rows of sum_j A_ij (eta |1 + log A_ij| + eta^2).

    With a' = a (1 + t), a' log a' - a log a = a t (1 + log a) + a ((1 + t) log(1 + t) - t), and the last bracket is at
    most t^2.
    """
    matrix, _, count = attention_rows(attention)
    return _row_change(matrix, eta).sum(dim=-1) / count


def moved_attention_entropy_relative(attention: Tensor, eta: Tensor, /, *, allowed: Tensor) -> Tensor:
    """Largest change of `attention_entropy_relative`: as for `attention_entropy`, over log(visible keys)."""
    matrix, valid, count = attention_rows(attention)
    visible = checked_mask(allowed, matrix).sum(dim=-1).to(torch.float64)
    used = valid & (visible >= 2)
    share = (_row_change(matrix, eta) / visible.log()).where(used, 0.0)
    return share.sum(dim=-1) / used.sum(dim=-1).where(count > 0, torch.nan)


def _row_change(matrix: Tensor, eta: Tensor) -> Tensor:
    share = eta.to(matrix)[..., None]
    slope: Tensor = (matrix * (1 + matrix.log()).abs()).where(matrix > 0, 0.0).sum(dim=-1)
    return share * slope + share.square() * matrix.sum(dim=-1)


def moved_mean_ipr(attention: Tensor, eta: Tensor, /) -> Tensor:
    """Largest change of `mean_ipr`, a mean of squares: ((1 + eta)^2 - 1) times it."""
    value = mean_ipr(attention)
    return (2 + eta.to(value)) * eta.to(value) * value


def moved_mass(measure: Callable[[Tensor], Tensor], attention: Tensor, eta: Tensor, /) -> Tensor:
    """Largest change of a mean of entries, or of the largest of several means: eta times it."""
    value = measure(attention)
    return eta.to(value) * value


def moved_rank_one_residual(attention: Tensor, eta: Tensor, /) -> Tensor:
    """Largest change of r = ||C A|| / ||A||, C the centring projection: eta (1 + r) / (1 - eta).

    ||C dA|| <= ||dA|| <= eta ||A||, and ||A|| itself lies within a factor of 1 +- eta; inf from eta = 1 on.
    """
    residual = rank_one_residual(attention)
    share = eta.to(residual)
    return (share * (1 + residual) / (1 - share)).where(~(share >= 1) | residual.isnan(), torch.inf)


def moved_sink_position(attention: Tensor, eta: Tensor, /) -> Tensor:
    """Distance to the farthest key whose column sum, raised by eta, reaches the largest one lowered by eta."""
    matrix, _, _ = attention_rows(attention)
    position, sums, share = sink_position(attention), matrix.sum(dim=-2), eta.to(matrix)[..., None]
    rival = sums * (1 + share) >= sums.amax(dim=-1, keepdim=True) * (1 - share)
    distance = (torch.arange(sums.shape[-1], device=sums.device) - position[..., None]).abs()
    known = ~(position.isnan() | share.squeeze(-1).isnan())
    return distance.where(rival, 0.0).amax(dim=-1).where(known, torch.nan)


def moved_logit_std(logits: Tensor, eta: Tensor, /, *, allowed: Tensor) -> Tensor:
    """Largest change of `logit_std`: eta / 2, since eta holds twice the largest error of a logit.

    Centring is a projection, so the root mean square of what is centred moves by at most that of the errors.
    """
    value = logit_std(logits, allowed=allowed)
    return (eta.to(value) / 2).where(~value.isnan(), torch.nan)
