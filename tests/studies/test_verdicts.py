"""Verdicts on synthetic seeds: each outcome, what is needed, and how often truly equal arms are called different."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rankkit.statistics import mean_interval, minimum_detectable_effect, seeds_needed
from rankkit.studies.experiments.contrasts import parse_contrast
from rankkit.studies.experiments.verdicts import LARGEST_DETECTABLE, Outcome, Verdict, corrected, judge

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

CLAIM = parse_contrast("run/a < run/b", {"run": ("a", "b")}, {"run": None})


def verdict(first: list[float], second: list[float], **settings: object) -> Verdict:
    """Of the claim that the first arm is the lower one."""
    table = {("run", "a", False): dict(enumerate(first)), ("run", "b", False): dict(enumerate(second))}
    seeds, parts = CLAIM.parts(table)
    options = {"scale": float(np.mean([first, second])), **settings}
    return judge(CLAIM, "loss", seeds, parts, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "settings", "outcome"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.1], {}, Outcome.SUPPORTED),
        ([2.0, 2.2, 2.1], [1.0, 1.1, 1.2], {}, Outcome.CONTRADICTED),
        ([1.0, 1.2, 1.1], [1.1, 1.1, 1.1], {}, Outcome.NOT_RESOLVED),
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.1], {"untrained": ("run/a",)}, Outcome.NOT_TRAINED),
        ([1.0], [2.0], {}, Outcome.NOT_RESOLVED),
        ([1.0, 1.0], [1.0, 1.0], {}, Outcome.NOT_RESOLVED),
        ([63.5, 64.0], [64.0, 64.5], {}, Outcome.NOT_RESOLVED),
        ([0.1, 0.2, 0.3], [1.1, 1.2, 1.3], {}, Outcome.NOT_RESOLVED),
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.1], {"error": 0.9}, Outcome.NOT_RESOLVED),
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.1], {"error": math.nan}, Outcome.NOT_RESOLVED),
    ],
)
def test_every_outcome(first: list[float], second: list[float], settings: dict[str, object], outcome: Outcome) -> None:
    assert verdict(first, second, **settings).outcome is outcome


def test_a_verdict_prints_its_interval_what_was_detectable_and_the_control() -> None:
    found = verdict([1.0, 1.1, 1.3], [2.0, 2.2, 2.1], untrained=("run/b",), differs=("mask",))
    differences = np.array([-1.0, -1.1, -0.8])
    expected = mean_interval(differences)
    assert (found.interval.lower, found.interval.upper) == pytest.approx((expected.lower, expected.upper))
    assert found.by_seed == pytest.approx(tuple(differences))
    assert found.detectable == pytest.approx(minimum_detectable_effect(differences))
    deviations = [np.std(values, ddof=1) for values in ([1.0, 1.1, 1.3], [2.0, 2.2, 2.1])]
    assert found.same_mask == pytest.approx(math.hypot(*deviations))
    assert found.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert found.sentence() == (
        "not trained enough: run/a < run/b: loss, left - right -0.9667 (95% -1.346 to -0.5872, paired t over seeds, 3); "
        f"minimum detectable {found.detectable:.2g}, same-mask control {found.same_mask:.2g}; run/b not below the n-gram "
        "reference"
    )
    assert found.as_dict()["differs"] == ["mask"]


def test_the_control_is_what_two_seeds_of_one_arm_differ_by() -> None:
    """Two arms that are one arm under other seeds: the control is the root mean square of their differences."""
    draws = np.random.default_rng(0).normal(3, 0.2, size=(2, 4000))
    found = verdict(draws[0].tolist(), draws[1].tolist())
    assert found.same_mask == pytest.approx(np.sqrt(np.mean((draws[0] - draws[1]) ** 2)), rel=0.05)


def test_one_seed_gives_no_verdict() -> None:
    found = verdict([1.0], [2.0])
    assert found.sentence().endswith("one seed gives no verdict")
    assert math.isnan(found.p_value)
    assert math.isnan(found.detectable)


def test_seeds_without_a_number_give_no_verdict_either() -> None:
    found = verdict([math.nan], [2.0])
    assert (found.seeds, found.outcome) == ((), Outcome.NOT_RESOLVED)


def test_a_rank_measure_must_be_resolved_to_a_tenth_or_the_verdict_says_how_many_seeds_it_takes() -> None:
    first, second = [50.0, 62.0, 55.0], [45.0, 44.0, 51.0]
    found = verdict(first, second, limit=LARGEST_DETECTABLE)
    assert found.relative > LARGEST_DETECTABLE
    deviation = float(np.std(np.subtract(first, second), ddof=1))
    assert found.needed == seeds_needed(0.1 * found.scale, deviation)
    assert found.sentence().endswith(f"{found.needed} seeds are needed, 3 are there")
    enough = verdict([50.0, 50.1, 50.2], [45.0, 45.2, 45.1], limit=LARGEST_DETECTABLE)
    assert enough.needed is None
    assert "needed" not in enough.sentence()


def test_a_declared_effect_needs_its_seeds_too() -> None:
    found = verdict([1.0, 1.2, 1.1], [1.1, 1.1, 1.1], effect=0.05)
    assert found.needed == seeds_needed(0.05, 0.1)
    assert verdict([1.0, 1.2, 1.1], [1.1, 1.1, 1.1]).needed is None


def test_several_claims_are_corrected_for_how_many_they_are() -> None:
    one = verdict([1.0, 1.1, 1.2], [1.2, 1.25, 1.5])
    found = corrected([one, verdict([1.0, 1.2, 1.1], [1.1, 1.1, 1.1]), verdict([1.0], [2.0])])
    assert one.p_value < 0.05 < found[0].adjusted == pytest.approx(2 * one.p_value)
    assert one.outcome is Outcome.SUPPORTED
    assert found[0].outcome is Outcome.NOT_RESOLVED
    assert found[0].sentence().startswith("not resolved at this scale: ")
    assert "; not resolved after Holm's correction over all claims (p = 0." in found[0].sentence()
    assert found[0].as_dict()["outcome"] == "not resolved at this scale"
    assert math.isnan(found[2].adjusted)
    assert corrected([]) == ()


def test_ten_true_nulls_in_one_study_are_called_in_at_most_8_of_100_studies() -> None:
    random, called = np.random.default_rng(10), 0
    for _ in range(100):
        found = corrected([verdict(*random.normal(size=(2, 3)).tolist(), scale=1.0) for _ in range(10)])
        called += any(one.outcome in (Outcome.SUPPORTED, Outcome.CONTRADICTED) for one in found)
    assert called <= 8


def test_equal_differences_have_no_p_value() -> None:
    for first, second in (([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [2.0, 3.0]), ([0.1, 0.2, 0.3], [1.1, 1.2, 1.3])):
        found = verdict(first, second)
        assert math.isnan(found.p_value)
        assert math.isnan(found.interval.lower)


def test_an_error_of_the_numbers_widens_the_interval_and_what_can_be_detected() -> None:
    exact, rough = (verdict([1.0, 1.1, 1.3], [2.0, 2.2, 2.1], error=error) for error in (0.0, 0.25))
    assert rough.interval.lower == pytest.approx(exact.interval.lower - 0.25)
    assert rough.interval.upper == pytest.approx(exact.interval.upper + 0.25)
    assert rough.interval.kind.endswith("widened by the errors of its numbers")
    assert rough.detectable == pytest.approx(exact.detectable + 0.25)
    assert rough.p_value > exact.p_value
    assert rough.as_dict()["error"] == 0.25


def _normal(random: np.random.Generator, seeds: int) -> NDArray[np.float64]:
    return random.normal(0, 0.02, size=(2, seeds))


def _correlated(random: np.random.Generator, seeds: int) -> NDArray[np.float64]:
    """A seed moves both arms: they share initial weights and batches."""
    return random.normal(0, 0.05, size=seeds) + random.normal(0, 0.02, size=(2, seeds))


def _heavy(random: np.random.Generator, seeds: int) -> NDArray[np.float64]:
    """Now and then a training goes astray."""
    return 0.02 * random.standard_t(3, size=(2, seeds))


@pytest.mark.parametrize("draw", [_normal, _correlated, _heavy], ids=["normal", "correlated", "heavy tails"])
@pytest.mark.parametrize("seeds", [3, 6])
def test_two_arms_that_are_truly_the_same_are_called_different_in_at_most_8_of_100_studies(
    draw: Draw, seeds: int
) -> None:
    random, called = np.random.default_rng(2023), 0
    for _ in range(200):
        first, second = (4.0 + draw(random, seeds)).tolist()
        found = verdict(first, second, limit=LARGEST_DETECTABLE)
        called += found.outcome in (Outcome.SUPPORTED, Outcome.CONTRADICTED)
    assert called <= 0.08 * 200


def test_a_difference_as_large_as_the_detectable_one_is_called_in_four_studies_of_five() -> None:
    random, called, seeds = np.random.default_rng(7), 0, 6
    true = 1.4345 * 0.02 * math.sqrt(2)  # standard deviations of the paired difference over six seeds, 80% power
    for _ in range(400):
        first, second = 4.0 + random.normal(0, 0.02, size=(2, seeds))
        called += verdict(first.tolist(), (second + true).tolist()).outcome is Outcome.SUPPORTED
    assert abs(called / 400 - 0.8) < 0.06
