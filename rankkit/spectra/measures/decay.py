"""How fast singular values fall: a power law fitted to those above the floor, and how far noise can turn the fit.

    log sigma_i = a + b log i + residual,   i = 2 .. k,   sigma_k the last value above the floor

by ordinary least squares. sigma_1 is left out: under attention it belongs to the sink, not to the decay.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from rankkit.spectra.measures.of_singular_values import descending

__all__ = [
    "decay_exponent",
    "decay_exponent_r_squared",
    "decay_exponent_standard_error",
    "moved_decay_exponent",
]

LEAST_POINTS: Final = 8  # a line through fewer says more about their scatter than about the spectrum
_ROUNDING: Final = 2.0**-50  # of the fit itself, per point: sums of r terms, each off by a few eps64


def decay_exponent(singular_values: Tensor, /, *, floor: Tensor | None = None) -> Tensor:
    """Slope b of log sigma_i on log i from i = 2 to the floor: negative, -1 for sigma_i proportional to 1 / i.

    Args:
        singular_values: "... component", non-negative, any order; nan is padding.
        floor: "...", values at or below it are noise and not fitted; None for values known exactly.

    Returns:
        "...", float64, at most 0; nan with fewer than 8 points.

    Raises:
        ConfigurationError: infinite or negative singular values.
    """
    return _fit(singular_values, floor).slope


def decay_exponent_standard_error(singular_values: Tensor, /, *, floor: Tensor | None = None) -> Tensor:
    """Standard error of `decay_exponent` if residuals were independent: "...", at least 0; nan with fewer than 8 points.

    Singular values are not independent, so it says how straight the line is and is no confidence interval.
    """
    return _fit(singular_values, floor).standard_error


def decay_exponent_r_squared(singular_values: Tensor, /, *, floor: Tensor | None = None) -> Tensor:
    """Share of the variance of log sigma_i that the line explains: "..." in [0, 1]; nan with fewer than 8 points.

    Nan also for a flat spectrum, which has no variance. Near 1 for a power law; a convex curve that is no power law can
    still reach 0.9.
    """
    return _fit(singular_values, floor).r_squared


class _Fit(NamedTuple):
    slope: Tensor
    standard_error: Tensor
    r_squared: Tensor


def _fit(singular_values: Tensor, floor: Tensor | None) -> _Fit:
    sigma = descending(singular_values)
    limit = _limit(sigma, floor)
    place = _log_index(sigma)
    used = (sigma > limit) & (torch.arange(sigma.shape[-1], device=sigma.device) >= 1)
    count = used.sum(dim=-1).to(sigma)
    count = count.where(count >= LEAST_POINTS, torch.nan)

    def centred(values: Tensor) -> Tensor:
        kept = values.where(used, 0.0)
        return (kept - (kept.sum(dim=-1) / count).unsqueeze(-1)).where(used, 0.0)

    x, y = centred(place.expand_as(sigma)), centred(sigma.log())
    spread = x.square().sum(dim=-1)
    slope = (x * y).sum(dim=-1) / spread
    residual = (y - slope.unsqueeze(-1) * x).square().sum(dim=-1)
    return _Fit(slope, (residual / (count - 2) / spread).sqrt(), 1 - residual / y.square().sum(dim=-1))


def moved_decay_exponent(singular_values: Tensor, /, *, floor: Tensor | None, delta: Tensor) -> Tensor:
    """Largest change of `decay_exponent` when no singular value moves by more than delta.

    The slope is linear in the log sigma_i, each of which lies in [log max(sigma_i - delta, floor), log(sigma_i + delta)],
    and the line may end anywhere between the last value that stays above the floor and the last one that can rise above
    it: the slope's extremes over all of these are taken, so this is a bound and not a first-order estimate.

    Args:
        singular_values: as in `decay_exponent`.
        floor: as in `decay_exponent`.
        delta: "...", at least 0, in the units of the singular values.

    Returns:
        "...", float64; nan where the slope is nan or fewer than 8 points are certain.
    """
    sigma, step = descending(singular_values), delta.to(torch.float64).unsqueeze(-1)
    limit, slope = _limit(sigma, floor), _fit(singular_values, floor).slope.unsqueeze(-1)
    low, high = torch.maximum(sigma - step, limit).log(), (sigma + step).log()
    largest, smallest = _extreme_slopes(low, high), -_extreme_slopes(-high, -low)
    last = torch.arange(1, sigma.shape[-1] + 1, device=sigma.device)
    certain, possible = ((edge > limit).sum(dim=-1, keepdim=True) for edge in (sigma - step, sigma + step))
    ends = (last >= certain) & (last <= possible)
    change = torch.maximum(largest - slope, slope - smallest).masked_fill(~ends, -torch.inf).amax(dim=-1)
    change = change + _ROUNDING * sigma.shape[-1] * (1 + slope.abs().squeeze(-1))
    return change.where(certain.squeeze(-1) > LEAST_POINTS, torch.nan).where(~slope.squeeze(-1).isnan(), torch.nan)


def _extreme_slopes(low: Tensor, high: Tensor) -> Tensor:
    """Largest slope through points 2..m with low_i <= y_i <= high_i, for every m: "... component".

    The slope is sum_i (x_i - mean) y_i / sum_i (x_i - mean)^2, so the points left of the mean are taken low and those
    right of it high.
    """
    x = _log_index(low)
    number = torch.arange(low.shape[-1], device=low.device).to(low)  # of points 2..m
    mean = x.cumsum(dim=-1) / number  # x_1 = log 1 = 0
    spread = x.square().cumsum(dim=-1) - number * mean.square()
    split = torch.searchsorted(x, mean.nan_to_num()).clamp(min=1)

    def sums(y: Tensor) -> tuple[Tensor, Tensor]:
        kept = y.masked_fill(number == 0, 0.0)  # without the first
        return kept.cumsum(dim=-1), (x * kept).cumsum(dim=-1)

    def until(total: Tensor) -> Tensor:
        return total[..., split - 1]

    (left, left_x), (right, right_x) = sums(low), sums(high)
    above = right_x - until(right_x) - mean * (right - until(right))
    below = until(left_x) - mean * until(left)
    return (above + below) / spread


def _limit(sigma: Tensor, floor: Tensor | None) -> Tensor:
    """The floor, "... 1"; 0 where none is given."""
    return torch.zeros_like(sigma[..., :1]) if floor is None else floor.to(sigma).unsqueeze(-1)


def _log_index(sigma: Tensor) -> Tensor:
    return torch.arange(1, sigma.shape[-1] + 1, device=sigma.device, dtype=torch.float64).log()
