"""What seeds can find, against how often a t test finds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rankkit.statistics import POWER, minimum_detectable_effect, seeds_needed, smallest_resolvable_difference


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_smallest_difference_is_found_four_times_in_five(seeds: int) -> None:
    true = smallest_resolvable_difference(seeds, deviation=0.5)
    differences = np.random.default_rng(seeds).normal(true, 0.5, size=(20_000, seeds))
    found = stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05
    assert abs(found.mean() - POWER) < 0.01  # 3.5 standard errors of a proportion


def test_the_smallest_difference_is_the_published_number_of_deviations() -> None:
    published = {3: 3.26, 5: 1.68, 8: 1.16, 10: 1.00, 20: 0.66}  # 80% power, two-sided 5%, paired
    for seeds, deviations in published.items():
        assert smallest_resolvable_difference(seeds, 1.0) == pytest.approx(deviations, abs=0.005)


def test_the_smallest_difference_shrinks_with_seeds_and_scales_with_their_spread() -> None:
    sizes = [smallest_resolvable_difference(seeds, 0.02) for seeds in range(2, 40)]
    assert sizes == sorted(sizes, reverse=True)
    assert smallest_resolvable_difference(3, 2.0) == pytest.approx(2 * smallest_resolvable_difference(3, 1.0))
    many = 2.8016 / math.sqrt(1000)  # z(0.975) + z(0.8), to which the t test tends
    assert smallest_resolvable_difference(1000, 1.0) == pytest.approx(many, rel=1e-2)


@pytest.mark.parametrize("seeds", [0, 1])
def test_one_seed_resolves_nothing(seeds: int) -> None:
    assert math.isnan(smallest_resolvable_difference(seeds, 0.02))
    assert math.isnan(minimum_detectable_effect([0.3] * seeds))


def test_what_is_detectable_follows_from_the_spread_of_the_differences() -> None:
    assert minimum_detectable_effect([1.0, 2.0, 3.0]) == pytest.approx(smallest_resolvable_difference(3, 1.0))
    assert minimum_detectable_effect([101.0, 102.0, 103.0]) == pytest.approx(minimum_detectable_effect([1.0, 2.0, 3.0]))
    assert minimum_detectable_effect([2.0, 2.0]) == 0


@given(st.floats(0.05, 20.0), st.floats(0.01, 10.0))
def test_the_seeds_needed_are_enough_and_one_fewer_is_not(effect: float, deviation: float) -> None:
    seeds = seeds_needed(effect, deviation)
    assert smallest_resolvable_difference(seeds, deviation) <= effect
    assert seeds == 2 or smallest_resolvable_difference(seeds - 1, deviation) > effect


def test_no_spread_needs_two_seeds() -> None:
    assert seeds_needed(1e-9, 0.0) == 2


@pytest.mark.parametrize(("effect", "deviation"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (1, -1)])
def test_no_effect_takes_no_number_of_seeds(effect: float, deviation: float) -> None:
    with pytest.raises(ValueError, match=r"effect must be above 0 and deviation at least 0, got .* Name a size"):
        seeds_needed(effect, deviation)
