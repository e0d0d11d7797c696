"""Intervals against SciPy, against known numbers, and against how often they hold the truth."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from rankkit.statistics import (
    LEVEL,
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
    assume(np.std(differences) > 1e-9 * np.abs(differences).max())  # others are the next test
    found = mean_interval(differences)
    degrees, error = len(differences) - 1, stats.sem(differences)
    half = float(stats.t.ppf(0.975, degrees) * error)
    assert found.mean == pytest.approx(np.mean(differences), rel=1e-12, abs=1e-12)
    assert found.half_width == pytest.approx(half, rel=1e-9, abs=1e-9)
    assert found.upper - found.mean == pytest.approx(found.mean - found.lower, rel=1e-6, abs=1e-9)
    assert (found.count, found.kind) == (len(differences), "paired t over seeds")


@pytest.mark.parametrize("value", [0.0, 0.1, -64.0, 1e10])
def test_values_without_spread_have_no_interval_and_no_p_value(value: float) -> None:
    for values in ([value] * 3, [value, value * (1 + 2e-16), value]):
        found = mean_interval(values)
        assert found.mean == pytest.approx(value)
        assert math.isnan(found.lower)
        assert math.isnan(found.upper)
        assert not found.resolved
        assert math.isnan(mean_p_value(values))


def test_the_p_value_is_that_of_the_interval_however_wide() -> None:
    for number in range(200):
        values = np.random.default_rng(number).normal(1.0, 1.0, size=4)
        assert mean_p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
        widened = mean_interval(values).widened(0.3, "by 0.3")
        assert (mean_p_value(values, error=0.3) < 0.05) == widened.resolved
    assert mean_p_value([1.0, 1.1], error=2.0) == 1
    assert math.isnan(mean_p_value([1.0, 1.1], error=math.nan))


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


def test_the_interval_of_few_unequal_documents_covers_the_truth() -> None:
    generator, documents = np.random.default_rng(2), np.repeat(np.arange(6), [16, 8, 4, 2, 1, 1])
    inside = 0
    for _ in range(1000):
        values = generator.standard_normal(6)[documents] + generator.standard_normal(32)
        found = bootstrap_over_documents(values, documents)
        inside += found.lower <= 0 <= found.upper
    assert inside / 1000 >= 0.93  # with the plain error and 5 degrees of freedom: 0.84


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


def test_an_interval_is_widened_on_both_sides_and_says_by_what() -> None:
    found = interval(-1.0, 3.0).widened(0.5, "widened by brackets")
    assert (found.mean, found.lower, found.upper) == (1.0, -1.5, 3.5)
    assert found.kind == "paired t over seeds, widened by brackets"
    assert interval(-1.0, 3.0).widened(0.0, "widened by brackets") == interval(-1.0, 3.0)


@given(numbers)
def test_between_seeds_is_the_root_mean_square_over_all_pairs(values: list[float]) -> None:
    squares = [(a - b) ** 2 for a, b in combinations(values, 2)]
    assert between_seeds(values) == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-9, abs=1e-9)
    assert between_seeds([*values, math.nan]) == between_seeds(values)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_between_seeds_of_one_seed_is_nan(values: list[float]) -> None:
    assert math.isnan(between_seeds(values))


def test_two_means_of_three_seeds_differ_by_between_seeds_over_the_root_of_three() -> None:
    seeds = np.random.default_rng(3).normal(50, 4, size=(20_000, 2, 3))
    apart = np.sqrt(np.mean(np.diff(seeds.mean(axis=2), axis=1) ** 2))
    single = np.sqrt(np.mean([between_seeds(arm) ** 2 for arm in seeds[:2000, 0]]))
    assert apart == pytest.approx(single / math.sqrt(3), rel=0.05)  # both are known to about 2%


# One mean over sequences that come in documents.


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_clustered_t_test_is_scipys_on_document_means_where_documents_are_equal(k: int, size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.4, 1, size=(3, k, size))
    order = np.random.default_rng(seed + 1).permutation(k * size)
    found = clustered_t_test(values.reshape(3, -1)[:, order], np.repeat(np.arange(k) * 7, size)[order])
    for row, of_document in enumerate(values.mean(axis=2)):
        expected = stats.ttest_1samp(of_document, 0)
        bounds = expected.confidence_interval(0.95)
        assert found.mean[row] == pytest.approx(of_document.mean(), rel=1e-9)
        assert found.p_value[row] == pytest.approx(expected.pvalue, rel=1e-6)
        assert (found.lower[row], found.upper[row]) == pytest.approx((bounds.low, bounds.high), rel=1e-6)
    assert found.documents.tolist() == [k] * 3


def test_clustered_t_test_has_the_variance_and_the_degrees_of_freedom_of_bell_and_mccaffrey() -> None:
    """The closed form against the matrices of the definition, for documents of 4, 2, 1 and 1 sequences."""
    sizes = np.array([4, 2, 1, 1])
    documents = np.repeat(np.arange(4), sizes)
    values = np.random.default_rng(0).normal(0.5, 1, 8)
    one, n = np.ones(8), 8
    residuals = values - values.mean()
    variance, columns = 0.0, []
    for c in range(4):
        inside = documents == c
        leverage = np.eye(sizes[c]) - 1 / n  # I - H_cc of the regression on a constant
        eigenvalues, vectors = np.linalg.eigh(leverage)
        adjusted = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T
        variance += (np.ones(sizes[c]) @ adjusted @ residuals[inside] / n) ** 2
        selects = np.zeros((sizes[c], n))
        selects[:, inside] = np.eye(sizes[c])
        columns.append((np.eye(n) - np.outer(one, one) / n) @ selects.T @ adjusted @ np.ones(sizes[c]) / n)
    eigenvalues = np.linalg.eigvalsh(np.array(columns) @ np.array(columns).T)
    degrees = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    found = clustered_t_test(values, documents)
    assert float(found.upper - found.mean) == pytest.approx(stats.t.ppf(0.975, degrees) * math.sqrt(variance))
    assert float(found.p_value) == pytest.approx(2 * stats.t.sf(values.mean() / math.sqrt(variance), degrees))


@pytest.mark.parametrize(
    ("sizes", "of_document"),
    [([16, 8, 4, 2, 1, 1], 0.5), ([10, *[1] * 22], 0.5), ([6, 5, 4, 3, 2, 2, 2, 2, *[1] * 6], 0.0)],
)
def test_clustered_t_test_rejects_about_5_in_100_true_nulls_where_documents_are_unequal(
    sizes: list[int], of_document: float
) -> None:
    generator, k, n = np.random.default_rng(5), len(sizes), sum(sizes)
    documents = np.repeat(np.arange(k), sizes)
    shared = generator.standard_normal((20_000, k))[:, documents]
    values = math.sqrt(of_document) * shared + math.sqrt(1 - of_document) * generator.standard_normal((20_000, n))
    rejected = np.mean(clustered_t_test(values, documents).p_value <= LEVEL)
    assert 0.035 <= rejected <= 0.065  # the plain error with k - 1 degrees of freedom: 16, 10 and 6.2 in 100


def test_clustered_t_test_leaves_out_what_is_nan() -> None:
    documents = np.array([0, 0, 1, 2, 2, 3])
    values = np.array([1.0, 2.0, np.nan, 0.5, np.nan, 4.0])
    kept = ~np.isnan(values)
    found, expected = clustered_t_test(values, documents), clustered_t_test(values[kept], documents[kept])
    assert float(found.p_value) == pytest.approx(float(expected.p_value), rel=1e-12)
    assert float(found.lower) == pytest.approx(float(expected.lower), rel=1e-12)
    assert int(found.documents) == 3
    nothing = clustered_t_test([np.nan] * 3, [0, 1, 2])
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.p_value)
    assert int(nothing.documents) == 0


def test_one_document_tests_nothing_and_equal_values_are_certain() -> None:
    alone = clustered_t_test([1.0, 2.0], [7, 7])
    assert float(alone.mean) == 1.5
    assert math.isnan(alone.p_value)
    assert math.isnan(alone.lower)
    found = clustered_t_test([[0.0] * 4, [2.0] * 4], [0, 0, 1, 2])
    assert found.p_value.tolist() == [1.0, 0.0]
    assert (found.lower.tolist(), found.upper.tolist()) == ([0.0, 2.0], [0.0, 2.0])


@pytest.mark.parametrize(("values", "documents"), [([], []), ([1.0], []), ([[1.0, 2.0]], [0])])
def test_sequences_without_their_documents_are_refused(values: list[float], documents: list[int]) -> None:
    with pytest.raises(ValueError, match="values must have one entry per sequence on their last axis, got shape"):
        clustered_t_test(values, documents)


# Many tests.

p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def test_holm_of_the_example_worked_by_hand() -> None:
    # In order 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 = 0.02, 0.03, 0.06, 0.04, and the last may not fall below 0.06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=1e-12)


@given(p_lists)
def test_holm_only_raises_keeps_the_order_and_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    given_p, found = np.array(p), holm(p)
    assert (found >= given_p).all()
    assert (found <= np.minimum(1, len(p) * given_p)).all()
    order = np.argsort(given_p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert found[order[0]] == min(1, len(p) * given_p[order[0]])


@given(p_lists, st.integers(0, 10**6))
def test_holm_does_not_depend_on_the_order_nor_on_the_shape(p: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p))
    np.testing.assert_array_equal(holm(np.array(p)[order]), holm(p)[order])
    np.testing.assert_array_equal(holm(np.array(p)[:, None]), holm(p)[:, None])


@given(p_lists, st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_calls_what_the_step_down_procedure_calls(p: list[float], level: float) -> None:
    called = set()
    for step, index in enumerate(np.argsort(p, kind="stable").tolist()):
        if not (len(p) - step) * p[index] <= level:
            break
        called.add(index)
    assert set(np.flatnonzero(holm(p) <= level).tolist()) == called


@given(p_lists)
def test_what_was_not_tested_is_no_part_of_the_family(p: list[float]) -> None:
    found = holm([math.nan, *p, math.nan])
    np.testing.assert_array_equal(found, [math.nan, *holm(p).tolist(), math.nan])


@pytest.mark.parametrize("correlation", [0.0, 0.7])
@pytest.mark.parametrize("effects", [0, 8])
def test_holm_makes_a_false_call_in_at_most_5_of_100_families(correlation: float, effects: int) -> None:
    """Of 16 heads, `effects` with a real one; the others null, independent or moving together."""
    generator, trials = np.random.default_rng(7), 4000
    shared, own = generator.standard_normal((trials, 1)), generator.standard_normal((trials, 16))
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    z[:, :effects] += 6.0
    p = 2 * stats.norm.sf(np.abs(z))
    adjusted = np.array([holm(row) for row in p])
    false = np.mean((adjusted[:, effects:] <= LEVEL).any(axis=1))
    assert false <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
    assert np.mean((p[:, effects:] <= LEVEL).any(axis=1)) > 0.15  # without a correction
    if effects:
        assert (adjusted[:, :effects] <= LEVEL).mean() > 0.95  # and it still finds what is there


@pytest.mark.parametrize("p", [[-0.1], [0.2, 1.1], [math.inf]])
def test_what_is_no_probability_is_refused(p: list[float]) -> None:
    with pytest.raises(ValueError, match="p_values must be between 0 and 1, got"):
        holm(p)


@given(st.integers(1, 5000))
def test_documents_needed_are_the_fewest_whose_signs_could_survive_holm(comparisons: int) -> None:
    k = documents_needed(comparisons)
    assert comparisons * 2.0 ** (1 - k) <= LEVEL < comparisons * 2.0 ** (2 - k)


def test_documents_needed_for_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="comparisons must be at least 1, got 0"):
        documents_needed(0)


def test_an_interval_says_its_ends_or_that_it_has_none() -> None:
    assert mean_interval([1.0, 2.0, 3.0]).words() == "-0.4841 to +4.4841"
    assert mean_interval([1.0, 2.0, 3.0]).words(1) == "-0.5 to +4.5"
    assert mean_interval([0.5, 0.5]).words() == "no interval, for the values do not vary"
    assert mean_interval([0.5]).words() == "no interval"
