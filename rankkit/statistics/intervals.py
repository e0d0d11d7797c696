"""Means with their error, differences with their interval, and tests that know how many they are.

Source: mathematics of the project, section 6: over seeds the paired t interval; with one seed a bootstrap
over documents, which is the error of the evaluation alone and carries no verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "ClusteredTest",
    "Interval",
    "between_seeds",
    "bootstrap_over_documents",
    "clustered_standard_error",
    "clustered_t_test",
    "documents_needed",
    "holm",
    "mean_interval",
    "mean_p_value",
    "standard_error",
]

Array = NDArray[np.float64]

CONFIDENCE = 0.95
"""Of every interval."""
LEVEL = 0.05
"""Of every test: the chance that one says something where there is nothing."""
FEWEST_BOOTSTRAPPED = 10
"""With fewer documents a percentile bootstrap is too narrow (2 / 3 / 5 documents: it covered 49 / 69 / 86%, measured), so
a t interval over documents stands in."""
SAME = 1e-13  # of the largest value: what rounding leaves of the spread of values that are the same
BOOTSTRAP_RESAMPLES = 2000  # the 2.5% point then has a relative standard error of about 3%


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with a 95% confidence interval and the way it was made."""

    mean: float
    """The estimate."""
    lower: float
    """Lower 95% bound; nan where one value gives none."""
    upper: float
    """Upper 95% bound; nan where one value gives none."""
    count: int
    """How many independent values (seeds or documents) stand behind it."""
    kind: str
    """`paired t over seeds` (of one arm alone: `t over seeds`), or `bootstrap` (few documents: `t`) `over documents
    (error of the evaluation alone)`; where it was widened, by what."""

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.upper - self.lower) / 2

    def words(self, digits: int = 4) -> str:
        """Both ends, as "-0.2479 to +0.2961", or that there are none."""
        if np.isnan(self.lower) or np.isnan(self.upper):
            return "no interval, for the values do not vary" if self.count > 1 else "no interval"
        return f"{self.lower:+.{digits}f} to {self.upper:+.{digits}f}"

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero."""
        return self.lower > 0 or self.upper < 0

    def widened(self, by: float, reason: str) -> Interval:
        """The interval with `by`, an error that repeating does not reduce, added to both sides; itself where that is 0."""
        if by == 0:
            return self
        return replace(self, lower=self.lower - by, upper=self.upper + by, kind=f"{self.kind}, {reason}")


def standard_error(values: ArrayLike, /) -> float:
    """Standard error of the mean of independent values, "value"; nan for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float("nan")
    return float(array.std(ddof=1) / np.sqrt(array.size))


def clustered_standard_error(values: ArrayLike, documents: ArrayLike, /) -> float:
    """Standard error of the mean of values that come in clusters; nan for fewer than two clusters.

    sqrt(k / (k - 1) sum_c (sum of c - mean * size of c)^2) / number of values, over the k clusters c: the ratio
    estimator's linearisation.

    Args:
        values: "sequence".
        documents: "sequence", the cluster of each.

    Source: Cochran (1977), Sampling Techniques, 9A.
    """
    array, labels = np.asarray(values, dtype=np.float64).ravel(), np.asarray(documents).ravel()
    _, index = np.unique(labels, return_inverse=True)
    residuals = np.bincount(index, weights=array - array.mean())
    k = residuals.size
    if k < 2:
        return float("nan")
    return float(np.sqrt(k / (k - 1) * np.square(residuals).sum()) / array.size)


def between_seeds(by_seed: ArrayLike, /) -> float:
    """Root mean square difference between two seeds, over all pairs of them; nan for fewer than two.

    sqrt(2) SD. Two means of S seeds each, drawn apart, differ by this over sqrt(S) (root mean square).

    Args:
        by_seed: "seed", one value for each seed of one arm; nan for a seed without a value.
    """
    array = np.asarray(by_seed, dtype=np.float64).ravel()
    known = array[~np.isnan(array)]
    return float(np.sqrt(2) * known.std(ddof=1)) if known.size > 1 else float("nan")


def mean_interval(differences: ArrayLike, /, *, kind: str = "paired t over seeds") -> Interval:
    """Paired t interval of the mean of one difference per seed.

    mean +- t(0.975, count - 1) * SD / sqrt(count). Values that are all the same say nothing of how others would vary: a
    spread of 0, or of rounding alone, gives no interval.

    Args:
        differences: "seed", one paired difference for each seed.
        kind: what the interval is called.

    Returns:
        The interval; bounds are nan for a single seed and for values without spread, which give no interval.

    Raises:
        ValueError: no differences.
    """
    from scipy.stats import t as student

    array = np.asarray(differences, dtype=np.float64).ravel()
    if array.size == 0:
        raise ValueError("differences must hold at least one seed, got none. Train a seed first.")
    half, error = float("nan"), standard_error(array)
    if error > SAME * float(np.abs(array).max()):
        half = float(student.ppf((1 + CONFIDENCE) / 2, array.size - 1)) * error
    mean = float(array.mean())
    return Interval(mean=mean, lower=mean - half, upper=mean + half, count=array.size, kind=kind)


def mean_p_value(differences: ArrayLike, /, *, error: float = 0.0) -> float:
    """Two-sided p value of the mean of one difference per seed: that of the test which `mean_interval` inverts.

    2 P(T > max(0, |mean| - error) / (SD / sqrt(count))), T of Student's t with count - 1 degrees of freedom.

    Args:
        differences: "seed", one paired difference for each seed.
        error: by which the interval is widened; at least 0.

    Returns:
        In [0, 1]; nan where there is no interval, or no bound on the error.
    """
    from scipy.special import stdtr

    array = np.asarray(differences, dtype=np.float64).ravel()
    deviation = standard_error(array)
    if not deviation > SAME * float(np.abs(array).max(initial=0.0)) or math.isnan(error):
        return float("nan")
    return float(2 * stdtr(array.size - 1, -max(0.0, abs(float(array.mean())) - error) / deviation))


def bootstrap_over_documents(values: ArrayLike, documents: ArrayLike, /, *, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean, resampling whole documents.

    Sequences of one document are not independent, so documents are drawn with replacement and each brings all its
    sequences. The interval is the error of the evaluation alone: it knows nothing of another training seed.

    Args:
        values: "sequence", one value (or paired difference) per sequence.
        documents: "sequence", the document each sequence comes from.
        seed: of the resampling.

    Returns:
        The interval; bounds are nan for a single document.

    Raises:
        ValueError: the lengths differ or are zero.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    labels = np.asarray(documents).ravel()
    if array.size == 0 or array.size != labels.size:
        raise ValueError(
            f"values and documents must have one entry per sequence, got {array.size} and {labels.size}. "
            "Pass the document of every sequence."
        )
    _, index = np.unique(labels, return_inverse=True)
    totals = np.asarray(np.bincount(index, weights=array), dtype=np.float64)
    sizes = np.bincount(index)
    if totals.size < FEWEST_BOOTSTRAPPED:
        test = clustered_t_test(array, labels)
        lower, upper = float(test.lower), float(test.upper)
    else:
        draws = np.random.default_rng(seed).integers(totals.size, size=(BOOTSTRAP_RESAMPLES, totals.size))
        means = totals[draws].sum(axis=1) / sizes[draws].sum(axis=1)
        lower, upper = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Interval(
        mean=float(array.mean()),
        lower=lower,
        upper=upper,
        count=int(totals.size),
        kind=f"{'t' if totals.size < FEWEST_BOOTSTRAPPED else 'bootstrap'} over documents (error of the evaluation alone)",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusteredTest:
    """Whether means over sequences differ from zero, where sequences of one document belong together."""

    mean: Array
    """"...", mean over sequences; nan where there are none."""
    lower: Array
    """"...", lower 95% bound; nan for fewer than two documents."""
    upper: Array
    """"...", upper 95% bound; nan for fewer than two documents."""
    p_value: Array
    """"...", two-sided, in [0, 1], not corrected for how many there are; nan for fewer than two documents."""
    documents: NDArray[np.int64]
    """"...": how many documents stand behind each."""


def clustered_t_test(values: ArrayLike, documents: ArrayLike, /) -> ClusteredTest:
    """Two-sided t test and interval of means over sequences that come in documents.

    With w_c the share of document c in the sequences and e_c the sum of its residuals over their number, the variance is
    sum_c e_c^2 / (1 - w_c) and has 1 / (sum w^2 + (sum q)^2 - sum q^2) degrees of freedom, q = w^2 / (1 - w): for k
    documents of equal size the t test of their means, k - 1. Documents of unequal size count for less: with 16, 8, 4, 2,
    1 and 1 sequences the plain standard error with k - 1 degrees rejects 9 to 17% of true nulls at 5%, this 2 to 5%.

    Assumes that documents are independent and their means about normal: with skewed ones (exponential, 8 to 26 documents)
    5% are 6 to 11%, and 0.1% are up to 1.6%; see `documents_needed`.

    Args:
        values: "... sequence", paired differences; nan is left out.
        documents: "sequence", the document each sequence comes from.

    Returns:
        One test for each mean. Values that are all the same have p = 1 where they are zero and 0 elsewhere.

    Raises:
        ValueError: the lengths differ or are zero.

    Source: Bell and McCaffrey (2002), bias reduction in standard errors; Imbens and Kolesar (2016), Robust standard errors
    in small samples: their degrees of freedom for a constant, in closed form.
    """
    from scipy.special import stdtr, stdtrit

    array, labels = np.asarray(values, dtype=np.float64), np.asarray(documents).ravel()
    if array.ndim == 0 or array.size == 0 or array.shape[-1] != labels.size:
        raise ValueError(
            f"values must have one entry per sequence on their last axis, got shape {array.shape} and {labels.size} "
            "documents. Pass the document of every sequence."
        )
    belongs = (labels[:, None] == np.unique(labels)).astype(np.float64)  # "sequence document"
    known = ~np.isnan(array)
    sizes = known.astype(np.float64) @ belongs
    count = sizes.sum(axis=-1)
    present = (sizes > 0).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # no sequence, or one document: nan is the answer
        mean = np.where(known, array, 0.0).sum(axis=-1) / count
        residuals = np.where(known, array - mean[..., None], 0.0) @ belongs / count[..., None]
        shares = sizes / count[..., None]
        variance = (residuals**2 / (1 - shares)).sum(axis=-1)
        q = shares**2 / (1 - shares)
        degrees = 1 / ((shares**2).sum(axis=-1) + q.sum(axis=-1) ** 2 - (q**2).sum(axis=-1))
        error = np.sqrt(variance)
        t = np.where(mean == 0, 0.0, mean / error)  # 0/0: nothing changed anywhere
        enough = present > 1
        half = np.where(enough, stdtrit(degrees, (1 + CONFIDENCE) / 2) * error, np.nan)
        p_value = np.where(enough, 2 * stdtr(degrees, -np.abs(t)), np.nan)
    return ClusteredTest(
        mean=np.asarray(mean),
        lower=np.asarray(mean - half),
        upper=np.asarray(mean + half),
        p_value=np.asarray(p_value),
        documents=np.asarray(present, dtype=np.int64),
    )


def holm(p_values: ArrayLike, /) -> Array:
    """P values adjusted for how many they are, by Holm's step-down method.

    With p_(1) <= ... <= p_(m): adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j)). Calling what is adjusted to
    at most alpha makes a false call anywhere with a probability of at most alpha, however the tests depend on each other.

    Args:
        p_values: "...", in [0, 1], the whole family; nan is no test, and is not counted.

    Returns:
        "...", in [0, 1], at least the p values and in their order; nan where they are.

    Raises:
        ValueError: a value outside [0, 1].

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    given = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(given)
    p = given[tested]
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"p_values must be between 0 and 1, got {p.min()} to {p.max()}. Pass probabilities, or nan.")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(np.arange(p.size, 0, -1) * p[order], 1.0)
    adjusted, family = np.full(given.shape, np.nan), np.empty_like(p)
    family[order] = np.maximum.accumulate(stepped)
    adjusted[tested] = family
    return adjusted


def documents_needed(comparisons: int, /) -> int:
    """Fewest documents with which a test that assumes no distribution could call one of so many comparisons.

    k independent signs all agree with a probability of 2^(1 - k), the least p value of a sign test, and Holm multiplies
    the least of m by m. With fewer documents, what `clustered_t_test` calls rests on the normality of their means alone.

    Args:
        comparisons: m, the size of the family, at least 1.

    Returns:
        The least k with m 2^(1 - k) <= 0.05: 6 for one comparison, 11 for 48, 14 for 384.

    Raises:
        ValueError: no comparison.
    """
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1, got {comparisons}. Count the tests of the family.")
    return 1 + math.ceil(math.log2(comparisons / LEVEL))
