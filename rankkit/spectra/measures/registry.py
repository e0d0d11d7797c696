"""Every measure by name, with what a file and a table say of it, what it requires and how far it can be off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from rankkit.spectra.floors import arithmetic_floor
from rankkit.spectra.measures.decay import (
    decay_exponent,
    decay_exponent_r_squared,
    decay_exponent_standard_error,
    moved_decay_exponent,
)
from rankkit.spectra.measures.errors_of_attention import (
    moved_attention_entropy,
    moved_attention_entropy_relative,
    moved_logit_std,
    moved_mass,
    moved_mean_ipr,
    moved_rank_one_residual,
    moved_sink_position,
)
from rankkit.spectra.measures.errors_of_singular_values import (
    moved,
    moved_mass_at_quarter,
    moved_numerical_rank,
    moved_share_rank,
    moved_spectral_ratio,
)
from rankkit.spectra.measures.measure import Measure, Structure
from rankkit.spectra.measures.of_attention import (
    attention_entropy,
    attention_entropy_relative,
    diagonal_mass,
    logit_std,
    mean_ipr,
    previous_key_mass,
    rank_one_residual,
    sink_mass,
    sink_position,
)
from rankkit.spectra.measures.of_operators import (
    log10_smallest_singular_value,
    log_abs_det,
    log_abs_det_bound,
    moved_log10_smallest_singular_value,
    moved_log_abs_det,
)
from rankkit.spectra.measures.of_singular_values import (
    default_tolerance,
    effective_rank,
    effective_rank_energy,
    energy_rank,
    frobenius_norm,
    mass_at_quarter,
    mass_rank,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    spectral_norm,
    spectral_ratio,
    stable_rank,
)
from rankkit.spectra.measures.off_diagonal_blocks import moved_off_diagonal_block_rank, off_diagonal_block_rank

__all__ = ["DEFAULT_MEASURES", "MEASURES"]


def _unknown(values: Tensor, rows: int, columns: int, floor: Tensor | None, delta: Tensor) -> Tensor:
    """Nan: no bound is known."""
    return torch.full_like(delta, torch.nan, dtype=torch.float64)


def _to_the_floor(rows: int | Tensor, columns: int | Tensor) -> Tensor:
    """As far down as an SVD sees: its floor over sigma_1."""
    return arithmetic_floor("svd", rows, columns, torch.ones((), dtype=torch.float64))


def _spectral(
    name: str,
    long_name: str,
    definition: str,
    function: Callable[[Tensor], Tensor],
    source: str = "",
    error: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Measure:
    """A smooth function of the singular values alone; `error` from them and delta, by default from derivatives."""
    moved_by = partial(moved, function) if error is None else error
    return Measure(
        name=name,
        long_name=long_name,
        definition=definition,
        needs="singular_values",
        compute=lambda sigma, rows, columns, floor=None: function(sigma),
        error=lambda sigma, rows, columns, floor, delta: moved_by(sigma, delta),
        source=source,
    )


def _share_rank(kind: str, power: int, percent: int, function: Callable[..., Tensor], source: str) -> Measure:
    summand, fraction = "sigma^2" if power == 2 else "sigma", percent / 100
    return _spectral(
        f"{kind}_rank_{percent}",
        f"rank at {percent}% {kind}",
        f"least k whose k largest {summand} sum to {fraction:.2f} of the whole",
        partial(function, fraction=fraction),
        source,
        partial(moved_share_rank, fraction=fraction, power=power),
    )


def _of_the_tail(
    name: str, long_name: str, definition: str, function: Callable[..., Tensor], error: Callable[..., Tensor]
) -> Measure:
    """A function of the singular values above the floor."""
    return Measure(
        name=name,
        long_name=long_name,
        definition=definition,
        needs="singular_values",
        compute=lambda sigma, rows, columns, floor=None: function(sigma, floor=floor),
        error=error,
        relative_threshold=_to_the_floor,
    )


def _of_attention(
    name: str,
    long_name: str,
    definition: str,
    function: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, Tensor], Tensor],
    requires: frozenset[Structure],
    source: str = "",
) -> Measure:
    """A function of the attention matrix that does not ask for the mask."""
    return Measure(
        name=name,
        long_name=long_name,
        definition=definition,
        needs="attention",
        compute=lambda attention, allowed: function(attention),
        error=lambda attention, allowed, eta: error(attention, eta),
        requires=requires,
        source=source,
    )


_NON_NEGATIVE: Final[frozenset[Structure]] = frozenset({"non_negative"})
_STOCHASTIC: Final[frozenset[Structure]] = frozenset({"non_negative", "rows_sum_to_one"})
_DIAGONAL: Final[frozenset[Structure]] = frozenset({"non_negative", "square"})

_ALL: Final = (
    Measure(
        name="numerical_rank",
        long_name="numerical rank",
        definition="number of singular values above max(n, m) * eps(float32) * sigma_1",
        needs="singular_values",
        compute=lambda sigma, rows, columns, floor=None: numerical_rank(
            sigma, tolerance=default_tolerance(rows, columns)
        ),
        error=lambda sigma, rows, columns, floor, delta: moved_numerical_rank(
            sigma, delta, tolerance=default_tolerance(rows, columns)
        ),
        source="NumPy/LAPACK convention",
        relative_threshold=default_tolerance,
    ),
    _spectral(
        "effective_rank",
        "effective rank",
        "exp(-sum p log p), p = sigma / sum(sigma)",
        effective_rank,
        "Roy and Vetterli (2007)",
    ),
    _spectral(
        "effective_rank_energy",
        "effective rank of the squared singular values",
        "exp(-sum q log q), q = sigma^2 / sum(sigma^2)",
        effective_rank_energy,
    ),
    _spectral(
        "stable_rank",
        "stable rank",
        "sum(sigma^2) / sigma_1^2",
        stable_rank,
        "Rudelson and Vershynin (2007)",
    ),
    _spectral(
        "participation_ratio",
        "participation ratio",
        "sum(sigma^2)^2 / sum(sigma^4)",
        participation_ratio,
    ),
    *(_share_rank("energy", 2, percent, energy_rank, "PCA convention") for percent in (90, 95, 99)),
    *(_share_rank("mass", 1, percent, mass_rank, "Wang et al. (2020), Linformer") for percent in (80, 90)),
    _spectral(
        "mass_at_quarter",
        "share of the largest quarter of the singular values",
        "sum of the ceil(r / 4) largest sigma / sum(sigma), r = min(n, m)",
        mass_at_quarter,
        "Wang et al. (2020), Linformer",
        moved_mass_at_quarter,
    ),
    _spectral("nuclear_norm", "nuclear norm", "sum(sigma)", nuclear_norm),
    _spectral("frobenius_norm", "Frobenius norm", "sqrt(sum(sigma^2))", frobenius_norm),
    _spectral("spectral_norm", "spectral norm", "sigma_1", spectral_norm),
    _of_the_tail(
        "spectral_ratio",
        "largest over second singular value",
        "sigma_1 / sigma_2, inf where sigma_2 is under the floor",
        spectral_ratio,
        lambda sigma, rows, columns, floor, delta: moved_spectral_ratio(sigma, delta, floor=floor),
    ),
    _of_the_tail(
        "decay_exponent",
        "decay exponent of the singular values",
        "slope of log sigma_i on log i from i = 2 to the floor, negative where they fall, least squares, 8 points or more",
        decay_exponent,
        lambda sigma, rows, columns, floor, delta: moved_decay_exponent(sigma, floor=floor, delta=delta),
    ),
    _of_the_tail(
        "decay_exponent_standard_error",
        "standard error of the decay exponent",
        "standard error of the slope of log sigma_i on log i, residuals taken as independent",
        decay_exponent_standard_error,
        _unknown,
    ),
    _of_the_tail(
        "decay_exponent_r_squared",
        "share of the decay that a power law explains",
        "1 - residual over total sum of squares of log sigma_i around the line of decay_exponent",
        decay_exponent_r_squared,
        _unknown,
    ),
    _of_attention(
        "attention_entropy",
        "mean row entropy in nats",
        "mean over valid rows of -sum_j A_ij log A_ij",
        attention_entropy,
        moved_attention_entropy,
        _STOCHASTIC,
        "Zhai et al. (2023)",
    ),
    Measure(
        name="attention_entropy_relative",
        long_name="mean row entropy relative to its largest possible value",
        definition="mean over rows with at least two visible keys of H_i / log(number of visible keys)",
        needs="attention",
        compute=lambda attention, allowed: attention_entropy_relative(attention, allowed=allowed),
        error=lambda attention, allowed, eta: moved_attention_entropy_relative(attention, eta, allowed=allowed),
        requires=frozenset({"attention", "rows_sum_to_one"}),  # whose mask is known
    ),
    _of_attention(
        "mean_ipr",
        "mean inverse participation ratio of the rows",
        "sum_ij A_ij^2 / n",
        mean_ipr,
        moved_mean_ipr,
        _STOCHASTIC,
    ),
    _of_attention(
        "rank_one_residual",
        "relative distance from the nearest matrix with all rows equal",
        "||A - 1 a^T||_F / ||A||_F, a the mean row",
        rank_one_residual,
        moved_rank_one_residual,
        _NON_NEGATIVE,
        "after Dong et al. (2021)",
    ),
    _of_attention(
        "sink_position",
        "key that receives most attention",
        "argmax_j sum_i A_ij",
        sink_position,
        moved_sink_position,
        _NON_NEGATIVE,
    ),
    _of_attention(
        "sink_mass",
        "mean attention to that key",
        "max_j sum_i A_ij / n",
        sink_mass,
        partial(moved_mass, sink_mass),
        _NON_NEGATIVE,
    ),
    _of_attention(
        "diagonal_mass",
        "mean attention to oneself",
        "mean_i A_ii",
        diagonal_mass,
        partial(moved_mass, diagonal_mass),
        _DIAGONAL,
    ),
    _of_attention(
        "previous_key_mass",
        "mean attention to the previous key",
        "mean_i A_i,i-1",
        previous_key_mass,
        partial(moved_mass, previous_key_mass),
        _DIAGONAL,
    ),
    _of_attention(
        "off_diagonal_block_rank",
        "largest rank of a block below the diagonal",
        "max over i = n/8, 2n/8, ..., 7n/8 of #{sigma(A[i:, :i]) > n * eps(float32) * sigma_1(A)}",
        off_diagonal_block_rank,
        moved_off_diagonal_block_rank,
        frozenset({"square", "triangular"}),
    ),
    Measure(
        name="logit_std",
        long_name="standard deviation of the row-centred logits",
        definition="sqrt(mean over visible entries of (s_ij - row mean)^2)",
        needs="logits",
        compute=lambda logits, allowed: logit_std(logits, allowed=allowed),
        error=lambda logits, allowed, eta: moved_logit_std(logits, eta, allowed=allowed),
        requires=frozenset({"attention"}),
    ),
    Measure(
        name="log_abs_det",
        long_name="log of the absolute determinant in nats",
        definition="log|det P| by pivoted LU + sum over triangular rows of s_ii - lse_i; nan where its bound exceeds 1e-3",
        needs="operator",
        compute=log_abs_det,
        error=moved_log_abs_det,
        requires=frozenset({"attention", "square"}),
    ),
    Measure(
        name="log_abs_det_bound",
        long_name="bound of the rounding error of the log-determinant",
        definition="p * eps(float64) * cond_1(P) + what rounding the logits in float64 can do",
        needs="operator",
        compute=log_abs_det_bound,
        error=lambda operator, eta: torch.full(operator.batch_shape, torch.nan, dtype=torch.float64),
        requires=frozenset({"attention", "square"}),
    ),
    Measure(
        name="log10_smallest_singular_value",
        long_name="decimal order of the smallest singular value",
        definition="-log10 ||A^-1||_2 by forward substitution, A triangular",
        needs="operator",
        compute=log10_smallest_singular_value,
        error=moved_log10_smallest_singular_value,
        requires=frozenset({"square", "triangular"}),
        source="after Viswanath and Trefethen (1998)",
    ),
)

MEASURES: Final[Mapping[str, Measure]] = MappingProxyType({measure.name: measure for measure in _ALL})
"""Every measure by name, in the order of tables."""

DEFAULT_MEASURES: Final = (
    "numerical_rank",
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "energy_rank_90",
    "energy_rank_95",
    "energy_rank_99",
    "mass_rank_80",
    "mass_rank_90",
    "attention_entropy",
    "mean_ipr",
    "sink_position",
    "sink_mass",
    "logit_std",
)
"""What is measured unless asked otherwise: the ranks, and beside them what a rank means nothing without."""
