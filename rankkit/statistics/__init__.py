"""Means with their error, differences with their interval, what a study can find, and what goes with what."""

from __future__ import annotations

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
    standard_error,
)

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
    "standard_error",
]
