"""Partial correlations against SciPy, and their intervals against how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rankkit.statistics import (
    correlation_over_seeds,
    correlation_within_seeds,
    detectable_over_seeds,
    detectable_within_seeds,
    partial_correlation,
    permutation_p_value,
)

Array = NDArray[np.float64]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def correlated(
    random: np.random.Generator, correlation: float, *shape: int, memory: float = 0.0
) -> tuple[Array, Array]:
    """Two normal tables of that correlation, each row a series of that autocorrelation."""

    def series() -> Array:
        noise = random.normal(size=shape)
        for step in range(1, shape[-1]):
            noise[..., step] = memory * noise[..., step - 1] + math.sqrt(1 - memory**2) * noise[..., step]
        return noise

    x = series()
    return x, correlation * x + math.sqrt(1 - correlation**2) * series()


@given(st.integers(0, 10_000), st.integers(3, 12))
def test_without_controls_it_is_scipys_correlation(seed: int, points: int) -> None:
    x, y = normal(seed, 2, points)
    assert partial_correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert partial_correlation(x, y, method="spearman") == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@given(st.integers(0, 10_000))
def test_one_control_gives_the_textbooks_formula(seed: int) -> None:
    x, y, z = normal(seed, 3, 8)
    xy, xz, yz = (stats.pearsonr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_correlation(x, y, [z]) == pytest.approx(expected, abs=1e-9)


def test_two_controls_are_the_correlation_of_residuals_whatever_their_units() -> None:
    x, y, *controls = normal(1, 4, 20)
    design = np.stack([np.ones(20), *controls], axis=1)
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (x, y)]
    expected = stats.pearsonr(*left).statistic
    assert partial_correlation(x, y, controls) == pytest.approx(expected, abs=1e-12)
    scaled = [1e8 * controls[0] + 5, 1e-8 * controls[1] - 5e-8]
    assert partial_correlation(1e-6 * x, y - 1e3, scaled) == pytest.approx(expected, abs=1e-6)


def test_a_common_cause_disappears_when_it_is_held_still() -> None:
    cause, *noise = normal(2, 3, 400)
    x, y = (cause + 0.3 * part for part in noise)
    assert partial_correlation(x, y) > 0.85
    assert abs(partial_correlation(x, y, [cause])) < 0.1


@pytest.mark.parametrize(
    ("x", "y", "controls"),
    [
        ([1.0, 2.0], [2.0, 1.0], ()),
        ([1.0, 2.0, 3.0, 5.0], [2.0, 1.0, 0.0, 4.0], [[0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0]]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], ()),
        ([1.0, 2.0, 4.0, 8.0], [1.0, 3.0, 2.0, 5.0], [[2.0, 4.0, 8.0, 16.0]]),
    ],
    ids=["two points", "as many controls", "a constant", "nothing left"],
)
def test_there_is_no_correlation_of_nothing(x: list[float], y: list[float], controls: list[list[float]]) -> None:
    assert math.isnan(partial_correlation(x, y, controls))


def test_a_constant_control_changes_nothing() -> None:
    x, y = normal(3, 2, 9)
    assert partial_correlation(x, y, [np.ones(9)]) == pytest.approx(partial_correlation(x, y), abs=1e-12)


def test_controls_of_other_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"controls must hold 5 points each, as x and y do, got shape \(1, 4\)"):
        partial_correlation(np.arange(5), np.arange(5), [np.arange(4)])


def test_the_interval_over_seeds_is_fishers() -> None:
    x, y = normal(4, 2, 10)
    expected = stats.pearsonr(x, y).confidence_interval(0.95)
    found = correlation_over_seeds(x, y)
    assert (found.lower, found.upper) == pytest.approx(tuple(expected), abs=1e-12)
    assert found.count == 10


@pytest.mark.parametrize(("seeds", "controls", "truth"), [(6, 0, 0.6), (6, 2, 0.6), (12, 2, 0.0)])
def test_fishers_interval_over_seeds_holds_the_truth_as_often_as_it_says(
    seeds: int, controls: int, truth: float
) -> None:
    random, held = np.random.default_rng(5), 0
    for _ in range(1000):
        x, y = correlated(random, truth, seeds)
        causes = random.normal(size=(controls, seeds))
        found = correlation_over_seeds(x + causes.sum(axis=0), y - causes.sum(axis=0), causes)
        held += found.lower <= truth <= found.upper
    assert 0.93 <= held / 1000 <= 0.98


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("seeds", [3, 6])
def test_steps_that_remember_each_other_do_not_narrow_the_interval(seeds: int, method: str) -> None:
    """Ten steps of autocorrelation 0.8 in each seed: counting them as independent points covers two cases in three."""
    random, truth, held, pooled = np.random.default_rng(6), 0.6, 0, 0
    target = truth if method == "pearson" else 6 / math.pi * math.asin(truth / 2)
    for _ in range(400):
        x, y = correlated(random, truth, seeds, 10, memory=0.8)
        found = correlation_within_seeds(x, y, method=method)  # type: ignore[arg-type]
        held += found.lower <= target <= found.upper
        wrong = correlation_over_seeds(x.ravel(), y.ravel(), method=method)  # type: ignore[arg-type]
        pooled += wrong.lower <= target <= wrong.upper
    assert 0.92 <= held / 400 <= 0.98
    assert pooled / 400 < 0.8


def test_what_all_seeds_share_is_held_still_within_each() -> None:
    causes = normal(7, 2, 6, 30)
    x, y = correlated(np.random.default_rng(8), 0.7, 6, 30)
    found = correlation_within_seeds(x + 3 * causes.sum(axis=0), y - 3 * causes.sum(axis=0), causes)
    assert found.lower > 0.4
    assert correlation_within_seeds(x + 3 * causes.sum(axis=0), y - 3 * causes.sum(axis=0)).upper < 0


def test_seeds_that_all_correlate_perfectly_have_no_spread_and_no_interval() -> None:
    steps = np.tile(np.arange(6.0), (3, 1))
    found = correlation_within_seeds(steps, -steps)
    assert found.mean == pytest.approx(-1)
    assert math.isnan(found.lower)
    assert math.isnan(correlation_over_seeds(np.ones(6), np.arange(6.0)).lower)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_the_permutation_test_is_scipys(method: str) -> None:
    x, y = normal(14, 2, 7)
    first, second = (stats.rankdata(x), stats.rankdata(y)) if method == "spearman" else (x, y)
    expected = stats.permutation_test(
        (first,), lambda dealt: abs(np.corrcoef(dealt, second)[0, 1]), permutation_type="pairings", n_resamples=np.inf,
        alternative="greater",
    )  # fmt: skip
    found = permutation_p_value(x, y, method=method)  # type: ignore[arg-type]
    assert found == pytest.approx(expected.pvalue, abs=1e-3)


@pytest.mark.parametrize(("points", "controls"), [(6, 0), (7, 1), (7, 2)])
def test_the_permutation_test_calls_what_is_not_linked_in_5_of_100_cases(points: int, controls: int) -> None:
    random, called = np.random.default_rng(15), 0
    trials = 300
    for _ in range(trials):
        causes = random.normal(size=(controls, points))
        x, y = random.normal(size=(2, points)) + 2 * causes.sum(axis=0)
        called += permutation_p_value(x, y, causes) <= 0.05
    assert called <= 0.08 * trials
    causes = random.normal(size=(controls, points))
    x = random.normal(size=points)
    assert permutation_p_value(x, x + causes.sum(axis=0) + 0.01 * random.normal(size=points), causes) < 0.01


def test_nothing_is_permuted_where_there_is_no_correlation() -> None:
    assert math.isnan(permutation_p_value(np.ones(6), np.arange(6.0)))


def test_seeds_without_a_correlation_are_not_counted() -> None:
    x, y = normal(9, 2, 3, 8)
    x[1] = 2.0
    assert correlation_within_seeds(x, y).count == 2
    nothing = correlation_within_seeds(np.ones((3, 8)), y)
    assert nothing.count == 0
    assert math.isnan(nothing.mean)


def test_too_few_seeds_give_no_interval_and_detect_nothing() -> None:
    x, y = normal(10, 2, 5)
    found = correlation_over_seeds(x, y, normal(11, 2, 5))
    assert not math.isnan(found.mean)
    assert math.isnan(found.lower)
    assert math.isnan(detectable_over_seeds(5, 2))
    assert math.isnan(correlation_within_seeds(x[None], y[None]).lower)


def test_the_detectable_correlation_is_found_four_times_in_five() -> None:
    random, seeds = np.random.default_rng(12), 20
    truth = detectable_over_seeds(seeds)
    pairs = (correlated(random, truth, seeds) for _ in range(2000))
    found = sum(correlation_over_seeds(x, y).resolved for x, y in pairs)
    assert abs(found / 2000 - 0.8) < 0.03
    x, y = normal(13, 2, 6, 40)
    assert 0 < detectable_within_seeds(x, y) < 0.5
