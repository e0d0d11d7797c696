"""Intervals against SciPy, against known numbers, and against how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankkit.statistics import (
    Interval,
    bootstrap_over_documents,
    clustered_standard_error,
    mean_interval,
    standard_error,
)

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def interval(lower: float, upper: float) -> Interval:
    return Interval(mean=(lower + upper) / 2, lower=lower, upper=upper, count=3, kind="paired t over seeds")


@given(numbers)
def test_standard_error_is_that_of_scipy(values: list[float]) -> None:
    assert standard_error(values) == pytest.approx(float(stats.sem(values)), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("values", [[], [1.5]])
def test_standard_error_of_fewer_than_two_values_is_nan(values: list[float]) -> None:
    assert math.isnan(standard_error(values))


@settings(max_examples=30)
@given(numbers)
def test_mean_interval_is_the_paired_t_interval_of_scipy(differences: list[float]) -> None:
    found = mean_interval(differences)
    degrees, error = len(differences) - 1, stats.sem(differences)
    half = float(stats.t.ppf(0.975, degrees) * error)
    assert found.mean == pytest.approx(np.mean(differences), rel=1e-12, abs=1e-12)
    assert found.half_width == pytest.approx(half, rel=1e-9, abs=1e-9)
    assert found.upper - found.mean == pytest.approx(found.mean - found.lower, rel=1e-6, abs=1e-9)
    assert (found.count, found.kind) == (len(differences), "paired t over seeds")


def test_mean_interval_of_1_2_3_is_the_one_in_every_textbook() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302652729749464 / math.sqrt(3), rel=1e-9)  # t(0.975, 2) from tables


def test_one_seed_has_a_mean_but_no_interval_and_resolves_nothing() -> None:
    found = mean_interval([5.0])
    assert found.mean == 5.0
    assert math.isnan(found.lower)
    assert math.isnan(found.upper)
    assert math.isnan(found.half_width)
    assert not found.resolved


def test_mean_interval_covers_the_truth_in_95_of_100_runs_of_three_seeds() -> None:
    runs = np.random.default_rng(0).normal(loc=0.3, scale=0.021, size=(4000, 3))
    covered = np.mean([found.lower <= 0.3 <= found.upper for found in map(mean_interval, runs)])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(runs))  # three standard errors of a proportion


@pytest.mark.parametrize(
    ("lower", "upper", "resolved"), [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.3, False), (0.0, 0.3, False)]
)
def test_an_interval_resolves_a_sign_exactly_when_it_excludes_zero(lower: float, upper: float, resolved: bool) -> None:
    assert interval(lower, upper).resolved is resolved


def clustered(documents: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences that say the same wherever they stand in one document, whose documents differ by N(0, 1)."""
    of_document = np.random.default_rng(1).normal(size=documents)
    return np.repeat(of_document, size), np.repeat(np.arange(documents), size)


def test_bootstrap_draws_documents_and_not_their_sequences() -> None:
    values, documents = clustered(150, 16)
    whole = bootstrap_over_documents(values, documents)
    torn = bootstrap_over_documents(values, np.arange(values.size))  # as if every sequence were independent
    # One document says one thing, so the error is that of 150 values, four times that of 2400; a percentile of 2000
    # resamples is known to about 3%.
    assert whole.half_width == pytest.approx(1.96 * values.std() / math.sqrt(150), rel=0.1)
    assert whole.half_width / torn.half_width == pytest.approx(4.0, rel=0.1)
    assert (whole.count, torn.count) == (150, 2400)
    assert whole.kind == "bootstrap over documents (error of the evaluation alone)"


def test_bootstrap_weighs_a_document_by_its_sequences() -> None:
    documents = np.repeat(np.arange(20), [39, *[1] * 19])  # one long document, nineteen short ones
    values = np.where(documents == 0, 0.0, 1.0)
    found = bootstrap_over_documents(values, documents)
    assert found.mean == pytest.approx(19 / 58)
    assert found.upper == 1.0  # a third of the resamples hold no long document
    assert found.lower < 19 / 58


def test_few_documents_get_a_t_interval_because_a_bootstrap_would_be_too_narrow() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(3), 20)
    inside = 0
    for _ in range(400):
        values = rng.standard_normal(3)[documents] + 0.1 * rng.standard_normal(60)
        found = bootstrap_over_documents(values, documents)
        inside += found.lower <= 0 <= found.upper
    assert found.kind == "t over documents (error of the evaluation alone)"
    assert 0.92 <= inside / 400 <= 0.98  # a percentile bootstrap covers 69% here


def test_clustered_standard_error_is_that_of_document_means_where_documents_are_equal() -> None:
    values = np.random.default_rng(1).standard_normal(60)
    documents = np.repeat(np.arange(12), 5)
    means = values.reshape(12, 5).mean(axis=1)
    assert clustered_standard_error(values, documents) == pytest.approx(standard_error(means))
    assert clustered_standard_error(values, np.arange(60)) == pytest.approx(standard_error(values))
    assert math.isnan(clustered_standard_error(values, np.zeros(60)))


@settings(max_examples=20)
@given(st.permutations(range(12)), st.integers(0, 3))
def test_bootstrap_depends_on_the_seed_and_not_on_the_order_of_sequences(order: list[int], seed: int) -> None:
    values, documents = np.arange(12.0) ** 2, np.arange(12) // 3
    expected = bootstrap_over_documents(values, documents, seed=seed)
    found = bootstrap_over_documents(values[order], documents[order], seed=seed)
    assert (found.lower, found.upper) == pytest.approx((expected.lower, expected.upper), rel=1e-12)


def test_bootstrap_of_one_document_has_no_interval() -> None:
    found = bootstrap_over_documents([1.0, 2.0], [7, 7])
    assert (found.mean, found.count) == (1.5, 1)
    assert math.isnan(found.lower)
    assert not found.resolved


def test_no_seed_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="differences must hold at least one seed, got none"):
        mean_interval([])


@pytest.mark.parametrize(("values", "documents"), [([], []), ([1.0], []), ([1.0, 2.0], [0])])
def test_values_without_their_documents_are_refused(values: list[float], documents: list[int]) -> None:
    with pytest.raises(ValueError, match="values and documents must have one entry per sequence"):
        bootstrap_over_documents(values, documents)
