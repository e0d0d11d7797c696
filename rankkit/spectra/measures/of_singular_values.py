"""Functions of the singular values, from "... component" to "..."."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError

__all__ = [
    "default_tolerance",
    "effective_rank",
    "effective_rank_energy",
    "energy_rank",
    "frobenius_norm",
    "mass_at_quarter",
    "mass_rank",
    "nuclear_norm",
    "numerical_rank",
    "participation_ratio",
    "spectral_norm",
    "spectral_ratio",
    "stable_rank",
]

EPS_FLOAT32: Final = 2.0**-23  # spacing of float32 above 1: below n times this a float32 model's own rounding decides
CUMULATIVE_SLACK: Final = 1e-12  # a cumulative share this close below its target counts as reaching it: summation error


def default_tolerance(rows: int | Tensor, columns: int | Tensor) -> Tensor:
    """Threshold of `numerical_rank` relative to sigma_1: max(rows, columns) * eps(float32).

    Returns:
        "...", float64: 6.1e-5 for 512 x 512.

    Source: the convention of NumPy and LAPACK, at the precision models compute in.
    """
    return torch.maximum(torch.as_tensor(rows), torch.as_tensor(columns)).to(torch.float64) * EPS_FLOAT32


def numerical_rank(singular_values: Tensor, /, *, tolerance: float | Tensor) -> Tensor:
    """Number of singular values above tolerance * sigma_1.

    Args:
        singular_values: "... component", non-negative, any order; nan is padding.
        tolerance: relative to sigma_1, at least 0, one or one per matrix; see `default_tolerance`.

    Returns:
        "...", float64, a whole number in 0..r; 0 for the zero matrix; nan for a spectrum of nan alone.

    Raises:
        ConfigurationError: a negative tolerance; infinite or negative singular values.
    """
    limit = torch.as_tensor(tolerance, dtype=torch.float64, device=singular_values.device)
    if not bool((limit >= 0).all()):
        raise ConfigurationError(f"tolerance must be at least 0, got {tolerance!r}. Omit it for the default.")
    sigma = descending(singular_values)
    rank = (sigma > limit.unsqueeze(-1) * sigma[..., :1]).sum(dim=-1).to(torch.float64)
    return rank.where(components(singular_values) > 0, torch.nan)


def effective_rank(singular_values: Tensor, /) -> Tensor:
    """Exponential of the entropy of the normalised singular values.

    With p = sigma / sum(sigma), exp(-sum p log p): 1 for rank one, n for a flat spectrum of length n. Values near 0
    count for almost nothing each: r of them at x sigma_1 add about r x log(1/x).

    Args:
        singular_values: "... component", non-negative, any order; nan is padding.

    Returns:
        "...", float64, in [1, rank]; nan where all values are zero.

    Source: Roy and Vetterli (2007), The effective rank.
    """
    return _entropy(_shares(descending(singular_values))).exp()


def effective_rank_energy(singular_values: Tensor, /) -> Tensor:
    """Exponential of the entropy of q = sigma^2 / sum(sigma^2): "..." in [1, effective_rank]; nan for zero."""
    return _entropy(_shares(relative(singular_values).square())).exp()


def stable_rank(singular_values: Tensor, /) -> Tensor:
    """Energy over its largest part, sum sigma^2 / sigma_1^2: "..." in [1, rank]; nan for zero.

    Source: Rudelson and Vershynin (2007), Sampling from large matrices.
    """
    return relative(singular_values).square().sum(dim=-1)


def participation_ratio(singular_values: Tensor, /) -> Tensor:
    """(sum sigma^2)^2 / sum sigma^4, how many directions share the energy: "..." in [1, rank]; nan for zero."""
    energy = relative(singular_values).square()
    return energy.sum(dim=-1).square() / energy.square().sum(dim=-1)


def energy_rank(singular_values: Tensor, /, *, fraction: float) -> Tensor:
    """Least k for which the k largest sigma^2 sum to the fraction of their total (with a slack of 1e-12).

    Args:
        singular_values: "... component", non-negative, any order; nan is padding.
        fraction: in (0, 1].

    Returns:
        "...", float64, a whole number in 1..r; nan where all values are zero.

    Raises:
        ConfigurationError: a fraction outside (0, 1]; infinite or negative singular values.

    Source: the convention of principal component analysis.
    """
    return _least_count(relative(singular_values).square(), fraction)


def mass_rank(singular_values: Tensor, /, *, fraction: float) -> Tensor:
    """As `energy_rank`, on the singular values themselves, not squared: 2 to 10 times larger, so never mix the two.

    Source: Wang et al. (2020), Linformer.
    """
    return _least_count(relative(singular_values), fraction)


def mass_at_quarter(singular_values: Tensor, /) -> Tensor:
    """Share of sum(sigma) held by the largest quarter, the first ceil(r / 4) of r values: "..." in [1/4, 1].

    r counts the values given, zeros among them, padding not; nan where all are zero.

    Source: Wang et al. (2020), Linformer, figure 1 (128 of 512).
    """
    sigma = descending(singular_values)
    first = torch.arange(sigma.shape[-1], device=sigma.device) < first_quarter(singular_values).unsqueeze(-1)
    return _shares(sigma).where(first, 0.0).sum(dim=-1)


def nuclear_norm(singular_values: Tensor, /) -> Tensor:
    """Sum of the singular values: "...", at least 0."""
    return spectral_norm(singular_values) * _or_zero(relative(singular_values).sum(dim=-1))


def frobenius_norm(singular_values: Tensor, /) -> Tensor:
    """sqrt(sum sigma^2): "...", at least 0; squares are taken relative to sigma_1, so none overflows."""
    return spectral_norm(singular_values) * _or_zero(stable_rank(singular_values).sqrt())


def spectral_norm(singular_values: Tensor, /) -> Tensor:
    """sigma_1: "...", at least 0. Rows that sum to 1 keep it in [sqrt(n/m), sqrt(n)] for n x m."""
    return descending(singular_values)[..., 0].where(components(singular_values) > 0, torch.nan)


def spectral_ratio(singular_values: Tensor, /, *, floor: Tensor | None = None) -> Tensor:
    """sigma_1 / sigma_2: how far the matrix is from rank one.

    Args:
        singular_values: "... component", non-negative, any order; nan is padding.
        floor: "...", values at or below it are noise; None for values known exactly.

    Returns:
        "...", float64, at least 1; inf where sigma_2 is 0, noise or absent (n = 1); nan for the zero matrix.

    Raises:
        ConfigurationError: infinite or negative singular values.
    """
    sigma = descending(singular_values)
    first, second = sigma[..., 0], sigma[..., 1] if sigma.shape[-1] > 1 else torch.zeros_like(sigma[..., 0])
    noise = second <= (torch.zeros_like(second) if floor is None else floor.to(second))
    return (first / second).where(~noise, torch.inf).where(first > 0, torch.nan)


def descending(singular_values: Tensor) -> Tensor:
    """Float64, largest first, padding turned into zeros at the end; at least one component."""
    sigma = singular_values.to(torch.float64)
    if sigma.ndim < 1 or sigma.shape[-1] < 1:
        raise ConfigurationError(
            f"singular_values must have at least one component, got shape {tuple(sigma.shape)!r}. "
            "Pass an array of shape (..., component)."
        )
    wrong = (sigma < 0) | sigma.isinf()
    if bool(wrong.any()):
        raise ConfigurationError(
            f"singular_values must be finite and at least 0 (nan pads), got {float(sigma[wrong][0])!r}. "
            "Compute them with rankkit_kernels.singular_values, which marks what failed with nan."
        )
    return sigma.nan_to_num(nan=0.0).sort(dim=-1, descending=True).values


def components(singular_values: Tensor) -> Tensor:
    """How many components are not padding, "..."."""
    return (~singular_values.isnan()).sum(dim=-1)


def first_quarter(singular_values: Tensor) -> Tensor:
    """How many components are the largest quarter, "...": ceil(r / 4), and 1 where nothing is left, for one nan share."""
    return ((components(singular_values) + 3) // 4).clamp(min=1)


def relative(singular_values: Tensor) -> Tensor:
    """Values over sigma_1, descending, so that squares and fourth powers stay in range; nan for the zero matrix."""
    sigma = descending(singular_values)
    return sigma / sigma[..., :1]


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def _entropy(shares: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float64).tiny
    return -(shares * shares.clamp(min=tiny).log()).sum(dim=-1)  # clamped, so that its derivative at 0 is finite


def _least_count(weights: Tensor, fraction: float) -> Tensor:
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"fraction must be above 0 and at most 1, got {fraction!r}. Pass 0.9 for 90%.")
    cumulative = _shares(weights).cumsum(dim=-1)
    count = (cumulative < fraction - CUMULATIVE_SLACK).sum(dim=-1).to(torch.float64) + 1
    return count.where(cumulative[..., -1].isfinite(), torch.nan)


def _or_zero(ratio: Tensor) -> Tensor:
    """The zero matrix has no ratios but has norms."""
    return ratio.nan_to_num(nan=0.0)
