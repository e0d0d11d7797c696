"""Every measure by name, with what a file and a table say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

from torch import Tensor

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
    stable_rank,
)

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "Measure",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure: its name in files and tables, what it means, and what it is computed from."""

    name: str
    """Name in HDF5 files, options and tables."""
    long_name: str
    """Name in words."""
    definition: str
    """Definition in one line."""
    needs: Literal["singular_values", "attention", "logits"]
    """What it is computed from."""
    compute: Callable[..., Tensor]
    """By `needs`: (singular_values, rows, columns), (attention, allowed) or (logits, allowed), all positional."""
    source: str = ""
    """Where it comes from; empty for a plain definition."""
    units: str = "1"
    """Units; nats are dimensionless."""
    relative_threshold: Callable[[int | Tensor, int | Tensor], Tensor] | None = None
    """From (rows, columns), the smallest sigma / sigma_1 it must tell from noise; None where the tail hardly counts.

    A method whose arithmetic floor lies above it does not resolve what the measure needs.
    """


def _spectral(
    name: str, long_name: str, definition: str, function: Callable[[Tensor], Tensor], source: str = ""
) -> Measure:
    return Measure(
        name=name,
        long_name=long_name,
        definition=definition,
        needs="singular_values",
        compute=lambda sigma, rows, columns: function(sigma),
        source=source,
    )


def _share_rank(kind: str, summand: str, percent: int, function: Callable[..., Tensor], source: str) -> Measure:
    return _spectral(
        f"{kind}_rank_{percent}",
        f"rank at {percent}% {kind}",
        f"least k whose k largest {summand} sum to {percent / 100:.2f} of the whole",
        partial(function, fraction=percent / 100),
        source,
    )


def _of_attention(
    name: str, long_name: str, definition: str, function: Callable[[Tensor], Tensor], source: str = ""
) -> Measure:
    return Measure(
        name=name,
        long_name=long_name,
        definition=definition,
        needs="attention",
        compute=lambda attention, allowed: function(attention),
        source=source,
    )


_ALL: Final = (
    Measure(
        name="numerical_rank",
        long_name="numerical rank",
        definition="number of singular values above max(n, m) * eps(float32) * sigma_1",
        needs="singular_values",
        compute=lambda sigma, rows, columns: numerical_rank(sigma, tolerance=default_tolerance(rows, columns)),
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
    *(_share_rank("energy", "sigma^2", percent, energy_rank, "PCA convention") for percent in (90, 95, 99)),
    *(_share_rank("mass", "sigma", percent, mass_rank, "Wang et al. (2020), Linformer") for percent in (80, 90)),
    _spectral(
        "mass_at_quarter",
        "share of the largest quarter of the singular values",
        "sum of the ceil(r / 4) largest sigma / sum(sigma), r = min(n, m)",
        mass_at_quarter,
        "Wang et al. (2020), Linformer",
    ),
    _spectral("nuclear_norm", "nuclear norm", "sum(sigma)", nuclear_norm),
    _spectral("frobenius_norm", "Frobenius norm", "sqrt(sum(sigma^2))", frobenius_norm),
    _spectral("spectral_norm", "spectral norm", "sigma_1", spectral_norm),
    _of_attention(
        "attention_entropy",
        "mean row entropy in nats",
        "mean over valid rows of -sum_j A_ij log A_ij",
        attention_entropy,
        "Zhai et al. (2023)",
    ),
    Measure(
        name="attention_entropy_relative",
        long_name="mean row entropy relative to its largest possible value",
        definition="mean over rows with at least two visible keys of H_i / log(number of visible keys)",
        needs="attention",
        compute=lambda attention, allowed: attention_entropy_relative(attention, allowed=allowed),
    ),
    _of_attention(
        "mean_ipr",
        "mean inverse participation ratio of the rows",
        "sum_ij A_ij^2 / n",
        mean_ipr,
    ),
    _of_attention(
        "rank_one_residual",
        "relative distance from the nearest matrix with all rows equal",
        "||A - 1 a^T||_F / ||A||_F, a the mean row",
        rank_one_residual,
        "after Dong et al. (2021)",
    ),
    _of_attention("sink_position", "key that receives most attention", "argmax_j sum_i A_ij", sink_position),
    _of_attention("sink_mass", "mean attention to that key", "max_j sum_i A_ij / n", sink_mass),
    _of_attention("diagonal_mass", "mean attention to oneself", "mean_i A_ii", diagonal_mass),
    _of_attention("previous_key_mass", "mean attention to the previous key", "mean_i A_i,i-1", previous_key_mass),
    Measure(
        name="logit_std",
        long_name="standard deviation of the row-centred logits",
        definition="sqrt(mean over visible entries of (s_ij - row mean)^2)",
        needs="logits",
        compute=lambda logits, allowed: logit_std(logits, allowed=allowed),
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
