"""Means with their error, differences with their interval, what a study can find, and what goes with what."""

from __future__ import annotations

from rankkit.statistics.correlations import (
    Method,
    correlation_over_seeds,
    correlation_within_seeds,
    correlations_by_seed,
    detectable_over_seeds,
    detectable_within_seeds,
    fisher_z,
    partial_correlation,
    permutation_p_value,
)
from rankkit.statistics.intervals import (
    CONFIDENCE,
    LEVEL,
    ClusteredTest,
    Interval,
    between_seeds,
    bootstrap_over_documents,
    clustered_standard_error,
    clustered_t_test,
    documents_needed,
    holm,
    mean_interval,
    mean_p_value,
    standard_error,
)
from rankkit.statistics.power import (
    POWER,
    minimum_detectable_effect,
    resolvable_by,
    seeds_needed,
    smallest_resolvable_difference,
)

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "POWER",
    "ClusteredTest",
    "Interval",
    "Method",
    "between_seeds",
    "bootstrap_over_documents",
    "clustered_standard_error",
    "clustered_t_test",
    "correlation_over_seeds",
    "correlation_within_seeds",
    "correlations_by_seed",
    "detectable_over_seeds",
    "detectable_within_seeds",
    "documents_needed",
    "fisher_z",
    "holm",
    "mean_interval",
    "mean_p_value",
    "minimum_detectable_effect",
    "partial_correlation",
    "permutation_p_value",
    "resolvable_by",
    "seeds_needed",
    "smallest_resolvable_difference",
    "standard_error",
]
