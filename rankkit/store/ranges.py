"""The values that each measure can take: what a stored number is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROUNDING", "Range", "excluded", "measure_range"]

ROUNDING: Final = 1e-9  # relative; sums of at most 1e5 float64 values differ by less, whatever the order of summation

_UNRESOLVED_DETERMINANT: Final = 1e-3  # a log-determinant whose own bound is larger is not reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The values a measure can take, given the matrix's rank bound r = min(rows, columns) and its columns m.

    nan, for a number that is not known, is in every range.
    """

    lower: float
    """Least value, included."""
    upper: float | Literal["r", "r/2", "m", "log m"]
    """Greatest value, included."""
    infinite: float | None = None
    """The infinity that the measure may take, where its definition gives one; no other is in the range."""
    of_attention: bool = False
    """Whether the two ends hold only for matrices with rows of entries >= 0 that sum to 1 (or less, beside a sink)."""
    slack: float = ROUNDING
    """How far past an end rounding can take a value; relative to the upper end where that is above 1."""

    def __str__(self) -> str:
        """In words, such as "between 1 and r"."""
        unbounded = np.isinf(self.lower) or self.upper == np.inf
        return f"between {self.lower:g} and {self.upper}" + (", finite" if unbounded and self.infinite is None else "")

    def greatest(self, rank: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.float64]:
        """The upper end for each matrix.

        Args:
            rank: "...", min(rows, columns).
            columns: "...", number of columns.

        Returns:
            "...", float64.
        """
        match self.upper:
            case "r":
                return rank.astype(np.float64)
            case "r/2":
                return (rank // 2).astype(np.float64)
            case "m":
                return columns.astype(np.float64)
            case "log m":
                logarithm: NDArray[np.float64] = np.log(np.maximum(columns, 1).astype(np.float64))
                return logarithm
            case number:
                return np.full(rank.shape, number)


_COUNT = Range(lower=0, upper="r")
_MASS = Range(lower=0, upper=1, of_attention=True)
_RANK = Range(lower=1, upper="r")
_SHARE = Range(lower=0, upper=1)
_SIZE = Range(lower=0, upper=np.inf)

_RANGES: Final[Mapping[str, Range]] = {
    "attention_entropy": Range(lower=0, upper="log m", of_attention=True),
    "attention_entropy_relative": _MASS,
    "decay_exponent": Range(lower=-np.inf, upper=0),  # singular values are fitted in descending order
    "decay_exponent_r_squared": _SHARE,
    "decay_exponent_standard_error": _SIZE,
    "diagonal_mass": _MASS,
    "effective_rank": _RANK,
    "effective_rank_energy": _RANK,
    "frobenius_norm": _SIZE,
    # |det A| <= product of the rows' norms <= 1 (Hadamard), and sigma_min^n <= |det A|
    "log10_smallest_singular_value": Range(lower=-np.inf, upper=0, infinite=-np.inf, of_attention=True),
    "log_abs_det": Range(lower=-np.inf, upper=0, infinite=-np.inf, of_attention=True, slack=_UNRESOLVED_DETERMINANT),
    "log_abs_det_bound": Range(lower=0, upper=np.inf, infinite=np.inf),
    "logit_std": _SIZE,
    "mass_at_quarter": _SHARE,
    "mean_ipr": _MASS,
    "nuclear_norm": _SIZE,
    "numerical_rank": _COUNT,
    "off_diagonal_block_rank": Range(lower=0, upper="r/2"),
    "participation_ratio": _RANK,
    "previous_key_mass": _MASS,
    "rank_one_residual": _SHARE,
    "sink_mass": _MASS,
    "sink_position": Range(lower=0, upper="m"),
    "spectral_norm": _SIZE,
    "spectral_ratio": Range(lower=1, upper=np.inf, infinite=np.inf),
    "stable_rank": _RANK,
}
_FAMILIES: Final[Mapping[str, Range]] = {"energy_rank_": _RANK, "mass_rank_": _RANK}  # followed by a percentage


def measure_range(name: str) -> Range | None:
    """The range of a measure, or None for one that is not known here and may take any value."""
    for family, values in _FAMILIES.items():
        if name.startswith(family) and name.removeprefix(family).isdigit():
            return values
    return _RANGES.get(name)


def excluded(
    names: Sequence[str],
    values: NDArray[np.float64],
    rank: NDArray[np.integer],
    columns: NDArray[np.integer],
    *,
    rows_sum_to_one: bool,
) -> NDArray[np.bool_]:
    """Which values no matrix can have.

    Args:
        names: measures whose range is known, at least one.
        values: "measure ...".
        rank: "...", min(rows, columns).
        columns: "...".
        rows_sum_to_one: whether the matrices are attention, so that ranges of attention hold.

    Returns:
        "measure ...", bool.
    """
    bounds = _bounds(tuple(names), rows_sum_to_one)
    ends = {limits.upper: limits.greatest(rank, columns) for limits in bounds.ranges}
    upper = np.stack([ends[limits.upper] for limits in bounds.ranges])
    per_measure = (-1, *(1,) * rank.ndim)
    lower, slack, infinite = (column.reshape(per_measure) for column in (bounds.lower, bounds.slack, bounds.infinite))
    with np.errstate(invalid="ignore"):  # nan compares false, which is what is wanted
        outside = (values < lower) | (values > upper + slack * np.maximum(upper, 1))
    stray = np.isinf(values) & (values != infinite)
    return np.asarray(stray | outside)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The ends of several ranges, "measure"; infinite where they do not hold."""

    ranges: tuple[Range, ...]
    lower: NDArray[np.float64]
    slack: NDArray[np.float64]
    infinite: NDArray[np.float64]


@lru_cache(maxsize=64)
def _bounds(names: tuple[str, ...], rows_sum_to_one: bool) -> _Bounds:
    ranges = []
    for name in names:
        limits = measure_range(name)
        assert limits is not None, "asked of measures with a known range"
        holds = rows_sum_to_one or not limits.of_attention
        ranges.append(limits if holds else replace(limits, lower=-np.inf, upper=np.inf))
    return _Bounds(
        ranges=tuple(ranges),
        lower=np.array([limits.lower - limits.slack for limits in ranges]),
        slack=np.array([limits.slack for limits in ranges]),
        infinite=np.array([np.nan if limits.infinite is None else limits.infinite for limits in ranges]),
    )
