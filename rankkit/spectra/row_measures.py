"""Measures of attention's rows from one pass over them, without the matrix: exact, with their errors.

The definitions are those of `measures`; what enters here are sums over the rows of A. Every value carries the largest
change when every entry moves by at most eta times itself, the bounds of `measures.errors_of_attention` in terms of the
same sums, with eta the model's own error plus what summing n terms in float64 may lose.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from rankkit_kernels.row_blocks import RowStatistics

__all__ = ["ROW_MEASURES", "row_measures"]

_EPS: Final = 2.0**-52

ROW_MEASURES: Final = (
    "attention_entropy",
    "attention_entropy_relative",
    "diagonal_mass",
    "logit_std",
    "mean_ipr",
    "previous_key_mass",
    "rank_one_residual",
    "sink_mass",
    "sink_position",
)
"""What `row_measures` gives."""


def row_measures(statistics: RowStatistics, eta: Tensor, /, *, first: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Every measure of the rows, and how far it may be off.

    Args:
        statistics: of matrices "...".
        eta: "...", relative error of the entries that the model applied, at least 0.
        first: position of the first key among those of the matrix: how much padding stands before it.

    Returns:
        Value and error "..." by name, float64; nan where the measure is not defined. Entropies and `mean_ipr` mean
        something only where rows sum to 1: beside a sink they are switched off by name.
    """
    sums = statistics.column_sums
    valid = statistics.log_sum_exp != -torch.inf
    rows = valid.sum(dim=-1).to(sums)
    rows = rows.where(rows > 0, torch.nan)
    rounding = max(valid.shape[-1], sums.shape[-1]) * _EPS
    share = eta.to(sums) + rounding
    entropy = _entropies(statistics, valid, rows, share)
    masses = {
        "sink_mass": sums.amax(dim=-1) / rows,
        "diagonal_mass": statistics.diagonal.sum(dim=-1) / rows,
        "previous_key_mass": statistics.previous[..., 1:].sum(dim=-1) / (valid[..., 1:].sum(dim=-1) + 0 * rows),
    }
    ipr = statistics.squared_norm / rows
    position, distance = _sink_position(sums, rows, share)
    spread = (statistics.logit_squares.sum(dim=-1) / statistics.visible.sum()).sqrt()
    return {
        **entropy,
        **{name: (value, share * value) for name, value in masses.items()},
        "mean_ipr": (ipr, (2 + share) * share * ipr),
        "rank_one_residual": _rank_one_residual(statistics, rows, share),
        "sink_position": (position + first, distance),
        "logit_std": (spread, share / 2 + rounding * spread),
    }


def _entropies(
    statistics: RowStatistics, valid: Tensor, rows: Tensor, share: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over rows; sum_j A_ij |1 + log A_ij| is at most 1 + H_i."""
    entropy, visible = statistics.entropy, statistics.visible.to(statistics.entropy)
    change = share[..., None] * (1 + entropy + share[..., None])
    used = valid & (visible >= 2)
    counted = used.sum(dim=-1) + 0 * rows
    relative, relative_change = ((part / visible.log()).where(used, 0.0).sum(dim=-1) for part in (entropy, change))
    return {
        "attention_entropy": (
            entropy.where(valid, 0.0).sum(dim=-1) / rows,
            change.where(valid, 0.0).sum(dim=-1) / rows,
        ),
        "attention_entropy_relative": (relative / counted, relative_change / counted),
    }


def _rank_one_residual(statistics: RowStatistics, rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(1 - rows |a|^2 / ||A||_F^2), a the mean row.

    The difference cancels where all rows are nearly equal; its error is then that of the two terms, whose root is what
    the error says.
    """
    mean = statistics.column_sums / rows[..., None]
    together = rows * mean.square().sum(dim=-1) / statistics.squared_norm
    rounding = 4 * max(statistics.column_sums.shape[-1], statistics.entropy.shape[-1]) * _EPS
    square = (1 - together).clamp(min=0)
    value = square.sqrt()
    lost = torch.maximum((square + rounding).sqrt() - value, value - (square - rounding).clamp(min=0).sqrt())
    moved = (share * (1 + value) / (1 - share)).where((share < 1) | value.isnan(), torch.inf)
    return value, moved + lost


def _sink_position(sums: Tensor, rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The first key with the largest column sum, and the distance to the farthest that may have it."""
    position = sums.argmax(dim=-1).to(sums).where(~rows.isnan(), torch.nan)
    rival = sums * (1 + share[..., None]) >= sums.amax(dim=-1, keepdim=True) * (1 - share[..., None])
    distance = (torch.arange(sums.shape[-1], device=sums.device) - position[..., None]).abs()
    farthest = distance.where(rival, 0.0).amax(dim=-1)
    return position, farthest.where(~position.isnan(), torch.nan)
