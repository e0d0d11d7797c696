"""Means over the heads of one arm, from which nothing is left out in silence.

A matrix may have no value (its spectrum failed, or the measure is not defined for it), or a bracket in place of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from einops import rearrange, reduce
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError

__all__ = ["Bracket", "HeadMeans", "filled", "head_means", "mean_of_known"]

Array: TypeAlias = NDArray[np.float64]
Bracket: TypeAlias = tuple[Array, Array]
"""(lower, upper) ends of estimates, shaped like the values that they stand for; nan where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadMeans:
    """One measure of one arm, averaged over heads; `over` leaves the axes region and layer away."""

    own: Array
    """"region layer seed sequence": under the arm's own mask, of every matrix that has a value there."""
    paired: Array
    """"applied_mask region layer seed sequence": of the matrices that have a value under both masks."""
    error: Array
    """"applied_mask region layer": mean half-bracket, 0 where every value is exact."""
    matrices: NDArray[np.int64]
    """"region layer": how many there are under both masks."""
    missing: NDArray[np.int64]
    """"region layer": how many of them have neither a finite value nor a bracket."""
    estimated: NDArray[np.int64]
    """"region layer": how many of them have a bracket alone."""

    def over(self, region: int, layers: list[int]) -> HeadMeans:
        """The mean over these layers (places along the axis) of one region, and the sum of the counts.

        A seed without a value in one of the layers has none in their mean.
        """
        return HeadMeans(
            own=self.own[region, layers].mean(axis=0),
            paired=self.paired[:, region, layers].mean(axis=1),
            error=self.error[:, region, layers].mean(axis=1),
            matrices=self.matrices[region, layers].sum(axis=0),
            missing=self.missing[region, layers].sum(axis=0),
            estimated=self.estimated[region, layers].sum(axis=0),
        )


def head_means(values: Array, bracket: Bracket | None = None, /) -> HeadMeans:
    """Average over heads.

    A matrix without a value takes the mean of its head over the other sequences, so that leaving it out changes no
    head's weight in the mean; a head without any is left out of its seed and layer.

    Args:
        values: "seed region applied_mask sequence layer head", applied masks own, swapped; not finite where there is none.
        bracket: of the matrices that have no value.

    Raises:
        ConfigurationError: a bracket of another shape, or upside down.
    """
    exact = np.isfinite(values)
    middle, half = _middle(values, bracket)
    estimated = ~exact & np.isfinite(middle)
    known = np.where(estimated, middle, np.where(exact, values, np.nan))
    in_both = np.isfinite(known).all(axis=2, keepdims=True)
    to_table = "seed region applied_mask sequence layer head -> region layer"
    means = mean_of_known(filled(np.where(in_both, known, np.nan), axis=3), axis=-1)
    errors = rearrange(
        np.where(estimated, half, np.where(exact, 0.0, np.nan)),
        "seed region applied_mask sequence layer head -> applied_mask region layer (seed sequence head)",
    )
    return HeadMeans(
        own=rearrange(
            mean_of_known(filled(known[:, :, 0], axis=2), axis=-1),
            "seed region sequence layer -> region layer seed sequence",
        ),
        paired=rearrange(means, "seed region applied_mask sequence layer -> applied_mask region layer seed sequence"),
        error=np.nan_to_num(mean_of_known(errors, axis=-1)),
        matrices=reduce(np.ones_like(values, dtype=np.int64), to_table, "sum"),
        missing=reduce((~np.isfinite(known)).astype(np.int64), to_table, "sum"),
        estimated=reduce(estimated.astype(np.int64), to_table, "sum"),
    )


def filled(values: Array, /, *, axis: int) -> Array:
    """The values with each nan replaced by the mean of what is known along the axis; nan where nothing is."""
    return np.where(np.isnan(values), np.expand_dims(mean_of_known(values, axis=axis), axis), values)


def mean_of_known(values: Array, /, *, axis: int) -> Array:
    """Mean of what is not nan; nan where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _middle(values: Array, bracket: Bracket | None) -> tuple[Array, Array]:
    """Middle and half-width of the brackets; nan where there is none."""
    if bracket is None:
        nothing = np.full(values.shape, np.nan)
        return nothing, nothing
    lower, upper = bracket
    if lower.shape != values.shape or upper.shape != values.shape:
        raise ConfigurationError(
            f"brackets must have the shape of their values, {values.shape}, got {lower.shape} and {upper.shape}. "
            "Give every matrix a pair, nan where its value is exact."
        )
    if (lower > upper).any():
        raise ConfigurationError("brackets must be (lower, upper), got a lower end above its upper one. Swap the two.")
    with np.errstate(invalid="ignore"):  # an end at infinity leaves no middle
        return (lower + upper) / 2, (upper - lower) / 2
