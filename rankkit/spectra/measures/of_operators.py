"""Measures that need the operator itself: what the matrix, once formed, no longer holds.

log |det A| comes from the logits and the smallest singular value from the inverse; neither from singular values, which are
noise where these live.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from rankkit.operators import AttentionOperator, Operator
from rankkit.spectra import determinant
from rankkit.spectra.triangular import SmallestSingularValue, smallest_singular_value

__all__ = [
    "log10_smallest_singular_value",
    "log_abs_det",
    "log_abs_det_bound",
    "moved_log10_smallest_singular_value",
    "moved_log_abs_det",
]

UNRESOLVED_FROM: Final = 1e-3  # relative error of sigma_min by rounding alone from which it is not reported

_EPS: Final = 2.0**-52


def log_abs_det(operator: AttentionOperator, /) -> Tensor:
    """Natural logarithm of |det A| of attention: "...", nats, at most 0.

    -inf where A is singular for certain; nan where rectangular, not finite, or unresolved: see `log_abs_det_bound`.
    """
    return determinant.log_abs_det(operator).value


def log_abs_det_bound(operator: AttentionOperator, /) -> Tensor:
    """How far rounding can put `log_abs_det` off: "...", nats; above 1e-3 the value is not reported."""
    return determinant.log_abs_det(operator).bound


def moved_log_abs_det(operator: AttentionOperator, eta: Tensor, /) -> Tensor:
    """Largest change of `log_abs_det` when entries move by at most eta times themselves, and its rounding."""
    return determinant.moved_log_abs_det(operator, eta)


def log10_smallest_singular_value(operator: Operator, /) -> Tensor:
    """Decimal logarithm of sigma_min of triangular matrices: "..."; -inf where a diagonal entry is 0 and not underflowed.

    Nan where the operator is not triangular, a matrix not finite, or where entries that underflow in float64 decide it:
    logits more than 700 apart.
    """
    found = _smallest(operator)
    resolved = found.log10.isneginf() | (_rounding(operator) * found.condition < UNRESOLVED_FROM)
    return found.log10.where(resolved, torch.nan)


def moved_log10_smallest_singular_value(operator: Operator, eta: Tensor, /) -> Tensor:
    """Largest change of `log10_smallest_singular_value` when entries move by at most eta times themselves.

    First order: log10(e) condition eta, and its own rounding; nan where sigma_min could change by all of itself.
    """
    found = _smallest(operator)
    change = found.condition * (eta.to("cpu", torch.float64) + _rounding(operator))
    bound = change / math.log(10) + 4 * _EPS * found.log10.abs()
    return bound.where((change < 1) & found.log10.isfinite(), torch.nan)


def _rounding(operator: Operator) -> float:
    """Relative error of the rows of the inverse: n u."""
    return operator.rows * _EPS / 2


def _smallest(operator: Operator) -> SmallestSingularValue:
    """Of one matrix after the other, so that only one is dense at a time."""
    if "triangular" not in operator.structure:
        missing = torch.full(operator.batch_shape, torch.nan, dtype=torch.float64)
        return SmallestSingularValue(missing, missing)
    flat, logs = operator.flattened(), None
    if isinstance(operator, AttentionOperator):
        statistics = operator.row_statistics
        logs = (statistics.diagonal_logit - statistics.log_sum_exp).reshape(-1, operator.rows)
    found = [
        smallest_singular_value(
            flat[index : index + 1].dense(), log_diagonal=None if logs is None else logs[index : index + 1]
        )
        for index in range(torch.Size(operator.batch_shape).numel())
    ]
    columns = ([part[place] for part in found] for place in range(2))
    empty = torch.empty(0, dtype=torch.float64)
    return SmallestSingularValue(*(torch.cat([empty, *column]).reshape(operator.batch_shape) for column in columns))
