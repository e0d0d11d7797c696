"""Numbers that say what rank an attention matrix has, each for a whole batch of matrices at once.

Three kinds, by what they read: the singular values, the attention matrix, or the logits before the softmax. All work
in float64 and return "..." from "... component" or "... query key". What none of them does is average matrices.

Edge cases, the same everywhere:

- nan among singular values is padding past the last component, or the mark of a matrix that failed; it is dropped, and
  a spectrum with nothing left measures nan;
- the zero matrix has rank 0 and norm 0; ratios of its values (effective rank, shares, ...) are nan;
- a row of attention that sums to 0 sees nothing (padding): it is left out of every mean; all rows empty measures nan;
- a matrix with a non-finite entry measures nan, alone in its batch; infinite or negative singular values and
  negative attention cannot come from any matrix and are refused.

For every spectrum, in the Renyi order: stable rank <= participation ratio <= effective rank of sigma^2 <= effective
rank <= rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "Measure",
    "attention_entropy",
    "attention_entropy_relative",
    "default_tolerance",
    "diagonal_mass",
    "effective_rank",
    "effective_rank_energy",
    "energy_rank",
    "frobenius_norm",
    "logit_std",
    "mass_at_quarter",
    "mass_rank",
    "mean_ipr",
    "nuclear_norm",
    "numerical_rank",
    "participation_ratio",
    "previous_key_mass",
    "rank_one_residual",
    "sink_mass",
    "sink_position",
    "spectral_norm",
    "stable_rank",
]

EPS_FLOAT32: Final = 2.0**-23  # spacing of float32 above 1: below n times this a float32 model's own rounding decides
CUMULATIVE_SLACK: Final = 1e-12  # a cumulative share this close below its target counts as reaching it: summation error


# Functions of the singular values.


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
    sigma = _descending(singular_values)
    rank = (sigma > limit.unsqueeze(-1) * sigma[..., :1]).sum(dim=-1).to(torch.float64)
    return rank.where(_components(singular_values) > 0, torch.nan)


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
    return _entropy(_shares(_descending(singular_values))).exp()


def effective_rank_energy(singular_values: Tensor, /) -> Tensor:
    """Exponential of the entropy of q = sigma^2 / sum(sigma^2): "..." in [1, effective_rank]; nan for zero."""
    return _entropy(_shares(_relative(singular_values).square())).exp()


def stable_rank(singular_values: Tensor, /) -> Tensor:
    """Energy over its largest part, sum sigma^2 / sigma_1^2: "..." in [1, rank]; nan for zero.

    Source: Rudelson and Vershynin (2007), Sampling from large matrices.
    """
    return _relative(singular_values).square().sum(dim=-1)


def participation_ratio(singular_values: Tensor, /) -> Tensor:
    """(sum sigma^2)^2 / sum sigma^4, how many directions share the energy: "..." in [1, rank]; nan for zero."""
    energy = _relative(singular_values).square()
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
    return _least_count(_relative(singular_values).square(), fraction)


def mass_rank(singular_values: Tensor, /, *, fraction: float) -> Tensor:
    """As `energy_rank`, on the singular values themselves, not squared: 2 to 10 times larger, so never mix the two.

    Source: Wang et al. (2020), Linformer.
    """
    return _least_count(_relative(singular_values), fraction)


def mass_at_quarter(singular_values: Tensor, /) -> Tensor:
    """Share of sum(sigma) held by the largest quarter, the first ceil(r / 4) of r values: "..." in [1/4, 1].

    r counts the values given, zeros among them, padding not; nan where all are zero.

    Source: Wang et al. (2020), Linformer, figure 1 (128 of 512).
    """
    sigma = _descending(singular_values)
    quarter = ((_components(singular_values) + 3) // 4).clamp(min=1)  # one nan share, not none, where nothing is left
    first = torch.arange(sigma.shape[-1], device=sigma.device) < quarter.unsqueeze(-1)
    return _shares(sigma).where(first, 0.0).sum(dim=-1)


def nuclear_norm(singular_values: Tensor, /) -> Tensor:
    """Sum of the singular values: "...", at least 0."""
    return spectral_norm(singular_values) * _or_zero(_relative(singular_values).sum(dim=-1))


def frobenius_norm(singular_values: Tensor, /) -> Tensor:
    """sqrt(sum sigma^2): "...", at least 0; squares are taken relative to sigma_1, so none overflows."""
    return spectral_norm(singular_values) * _or_zero(stable_rank(singular_values).sqrt())


def spectral_norm(singular_values: Tensor, /) -> Tensor:
    """sigma_1: "...", at least 0. Rows that sum to 1 keep it in [sqrt(n/m), sqrt(n)] for n x m."""
    return _descending(singular_values)[..., 0].where(_components(singular_values) > 0, torch.nan)


def _descending(singular_values: Tensor) -> Tensor:
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


def _components(singular_values: Tensor) -> Tensor:
    """How many components are not padding, "..."."""
    return (~singular_values.isnan()).sum(dim=-1)


def _relative(singular_values: Tensor) -> Tensor:
    """Values over sigma_1, descending, so that squares and fourth powers stay in range; nan for the zero matrix."""
    sigma = _descending(singular_values)
    return sigma / sigma[..., :1]


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.xlogy(shares, shares).sum(dim=-1)


def _least_count(weights: Tensor, fraction: float) -> Tensor:
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"fraction must be above 0 and at most 1, got {fraction!r}. Pass 0.9 for 90%.")
    cumulative = _shares(weights).cumsum(dim=-1)
    count = (cumulative < fraction - CUMULATIVE_SLACK).sum(dim=-1).to(torch.float64) + 1
    return count.where(cumulative[..., -1].isfinite(), torch.nan)


def _or_zero(ratio: Tensor) -> Tensor:
    """The zero matrix has no ratios but has norms."""
    return ratio.nan_to_num(nan=0.0)


# Functions of the attention matrix, "... query key", non-negative; rows sum to 1, or less beside a learned sink.


def attention_entropy(attention: Tensor, /) -> Tensor:
    """Mean over the rows that see something of -sum_j A_ij log A_ij, in nats.

    Args:
        attention: "... query key".

    Returns:
        "...", float64, in [0, log m] for m keys; 0 where every row sees one key.

    Raises:
        ConfigurationError: fewer than two axes, or a negative entry.

    Source: Zhai et al. (2023), Stabilizing Transformer training by preventing attention entropy collapse.
    """
    matrix, _, count = _rows(attention)
    return _row_entropy(matrix).sum(dim=-1) / count


def attention_entropy_relative(attention: Tensor, /, *, allowed: Tensor) -> Tensor:
    """Mean of H_i / log(number of visible keys), over the rows that see at least two.

    Args:
        attention: "... query key".
        allowed: "... query key" or "query key", bool, True where the row may see the key.

    Returns:
        "...", float64, in [0, 1] for rows that sum to 1; nan where no row sees two keys (n = 1 among them).

    Raises:
        ConfigurationError: as `attention_entropy`; a mask that is not boolean or has another shape.
    """
    matrix, valid, count = _rows(attention)
    visible = _mask(allowed, matrix).sum(dim=-1).to(torch.float64)
    used = valid & (visible >= 2)
    share = (_row_entropy(matrix) / visible.log()).where(used, 0.0)
    return share.sum(dim=-1) / used.sum(dim=-1).where(count > 0, torch.nan)


def mean_ipr(attention: Tensor, /) -> Tensor:
    """Mean inverse participation ratio of the rows, ||A||_F^2 / n: "..." in [1/m, 1] for rows that sum to 1."""
    matrix, _, count = _rows(attention)
    return matrix.square().sum(dim=(-2, -1)) / count


def rank_one_residual(attention: Tensor, /) -> Tensor:
    """Distance of A from the nearest matrix with all rows equal, ||A - 1 a^T||_F / ||A||_F with a the mean row.

    Returns:
        "...", float64, in [0, 1): 0 where every query attends alike, sqrt(1 - 1/n) for the identity.

    Source: after Dong et al. (2021), Attention is not all you need: pure attention loses rank doubly exponentially.
    """
    matrix, valid, count = _rows(attention)
    mean = matrix.sum(dim=-2) / count.unsqueeze(-1)
    distance = (matrix - rearrange(mean, "... key -> ... 1 key")).square().sum(dim=-1).where(valid, 0.0)
    return (distance.sum(dim=-1) / matrix.square().sum(dim=(-2, -1))).sqrt()


def sink_position(attention: Tensor, /) -> Tensor:
    """Key with the largest column sum, the first of several: "...", float64, a whole number in 0..m-1, or nan."""
    matrix, _, count = _rows(attention)
    return matrix.sum(dim=-2).argmax(dim=-1).to(torch.float64).where(count > 0, torch.nan)


def sink_mass(attention: Tensor, /) -> Tensor:
    """Mean attention that the rows pay to `sink_position`: "..." in [1/m, 1] for rows that sum to 1."""
    matrix, _, count = _rows(attention)
    return matrix.sum(dim=-2).amax(dim=-1) / count


def diagonal_mass(attention: Tensor, /) -> Tensor:
    """Mean over the rows of A_ii, attention to oneself: "..." in [0, 1]; nan where A is not square."""
    matrix, _, count = _rows(attention)
    return _square_only(matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / count, matrix)


def previous_key_mass(attention: Tensor, /) -> Tensor:
    """Mean over the rows after the first of A_{i,i-1}: "..." in [0, 1]; nan where A is not square, and for n = 1."""
    matrix, valid, count = _rows(attention)
    followers = valid[..., 1:].sum(dim=-1).where(count > 0, torch.nan)
    return _square_only(matrix.diagonal(offset=-1, dim1=-2, dim2=-1).sum(dim=-1) / followers, matrix)


def _row_entropy(matrix: Tensor) -> Tensor:
    summands: Tensor = torch.special.entr(matrix)  # -A log A, 0 at 0
    return summands.sum(dim=-1)


def _rows(attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix in float64, which rows see something, and their number: nan where no mean can be taken."""
    matrix = attention.to(torch.float64)
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ConfigurationError(
            f"attention must have at least one row and one column on its last two axes, got shape "
            f"{tuple(matrix.shape)!r}. Pass an array of shape (..., query, key)."
        )
    if matrix.numel() and bool((least := matrix.amin()) < 0):  # nan passes, and is told from the row sums
        raise ConfigurationError(f"attention must be at least 0, got {float(least)!r}. Pass it after the softmax.")
    sums = matrix.sum(dim=-1)
    valid = sums != 0
    usable = sums.isfinite().all(dim=-1) & valid.any(dim=-1)
    return matrix, valid, valid.sum(dim=-1).to(torch.float64).where(usable, torch.nan)


def _mask(allowed: Tensor, matrix: Tensor) -> Tensor:
    if allowed.dtype != torch.bool or allowed.shape[-2:] != matrix.shape[-2:]:
        raise ConfigurationError(
            f"allowed must be a boolean mask of shape (..., {matrix.shape[-2]}, {matrix.shape[-1]}), got "
            f"{allowed.dtype} {tuple(allowed.shape)!r}. Pass the mask that the softmax was taken under."
        )
    return allowed


def _square_only(value: Tensor, matrix: Tensor) -> Tensor:
    return value if matrix.shape[-2] == matrix.shape[-1] else torch.full_like(value, torch.nan)


# Functions of the logits, "... query key".


def logit_std(logits: Tensor, /, *, allowed: Tensor) -> Tensor:
    """Standard deviation of the row-centred logits over visible entries.

    sqrt(sum (s_ij - mean_j s_ij)^2 / number of visible entries): the softmax does not see a shift of a row.

    Args:
        logits: "... query key", scaled and with any bias, as they enter the softmax; hidden entries may hold anything.
        allowed: "... query key" or "query key", bool, True where the row may see the key.

    Returns:
        "...", float64, at least 0; 0 where every row sees one key; nan where nothing is visible or something visible
        is not finite.

    Raises:
        ConfigurationError: a mask that is not boolean or has another shape.
    """
    scores = logits.to(torch.float64)
    visible = _mask(allowed, scores)
    per_row = visible.sum(dim=-1, keepdim=True)
    mean = scores.where(visible, 0.0).sum(dim=-1, keepdim=True) / per_row
    spread = (scores - mean).where(visible, 0.0).square().sum(dim=(-2, -1))
    return (spread / per_row.sum(dim=(-2, -1))).sqrt()


# The registry.


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
