"""What a study with so many seeds can find, and how many seeds it takes to find something."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike

from rankkit.statistics.intervals import CONFIDENCE, Interval

__all__ = [
    "POWER",
    "minimum_detectable_effect",
    "resolvable_by",
    "seeds_needed",
    "smallest_resolvable_difference",
]

POWER = 0.8
"""The probability with which a study is usually planned to find what is there."""


def smallest_resolvable_difference(seeds: int, deviation: float) -> float:
    """The true difference that a paired t test over the seeds finds with probability 0.8 at the 5% level.

    shift * deviation / sqrt(seeds), with the shift at which a noncentral t of seeds - 1 degrees of freedom exceeds
    t(0.975, seeds - 1) with probability 0.8.

    Args:
        seeds: how many.
        deviation: standard deviation of the paired differences over seeds.

    Returns:
        In the units of `deviation`; nan for fewer than two seeds.
    """
    return _resolvable_deviations(seeds) * deviation if seeds > 1 else math.nan


@functools.cache
def _resolvable_deviations(seeds: int) -> float:
    from scipy.optimize import brentq
    from scipy.stats import nct as noncentral
    from scipy.stats import t as student

    critical = float(student.ppf((1 + CONFIDENCE) / 2, seeds - 1))
    # Without a shift the probability is 0.025, with the largest one here above 0.95 for every number of seeds.
    shift = brentq(lambda shift: noncentral.sf(critical, seeds - 1, shift) - POWER, 0, 2 * critical + 2)
    return float(shift / math.sqrt(seeds))


def minimum_detectable_effect(differences: ArrayLike, /) -> float:
    """The same for the spread that paired differences were seen to have.

    Args:
        differences: "seed".

    Returns:
        In their units; nan for fewer than two.
    """
    array = np.asarray(differences, dtype=np.float64).ravel()
    if array.size < 2:
        return math.nan
    return smallest_resolvable_difference(array.size, float(array.std(ddof=1)))


def resolvable_by(interval: Interval, /) -> float:
    """The same for an interval over seeds, whose half-width says what spread the differences have.

    SD = half-width * sqrt(count) / t(0.975, count - 1). An interval that brackets of estimates have widened gives more.

    Args:
        interval: from `mean_interval`.

    Returns:
        In its units; nan without an interval, and for one that is not over seeds.
    """
    from scipy.stats import t as student

    if interval.count < 2 or "over seeds" not in interval.kind:
        return math.nan
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, interval.count - 1))
    deviation = interval.half_width * math.sqrt(interval.count) / quantile
    return smallest_resolvable_difference(interval.count, deviation)


def seeds_needed(effect: float, deviation: float) -> int:
    """The fewest seeds over which a paired t test finds a true difference of that size with probability 0.8.

    Args:
        effect: the difference, above 0.
        deviation: standard deviation of the paired differences over seeds, at least 0.

    Returns:
        At least 2.

    Raises:
        ValueError: an effect that is not above 0, or a deviation that is not a number of at least 0.
    """
    if not effect > 0 or not 0 <= deviation < math.inf:
        raise ValueError(
            f"effect must be above 0 and deviation at least 0, got {effect} and {deviation}. Name a size worth finding."
        )
    too_few, enough = 1, 2
    while smallest_resolvable_difference(enough, deviation) > effect:
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if smallest_resolvable_difference(middle, deviation) > effect:
            too_few = middle
        else:
            enough = middle
    return enough
